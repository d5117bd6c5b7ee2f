"""Proposes the student to train: the largest whose latency on the target is inside a budget, measured and not computed.

Latency needs no training: an untrained student runs the same operators on the same shapes. Accuracy does: nothing here says
how well a shape learns, and its multiply-accumulates (MACs) stand in for what it could.

The grid has hundreds of shapes, and measuring one takes many seconds. So a few that differ much are measured first, a model of
latency (`edgebert.train.sizing_cost`) is fitted to them, and the shapes that it places around the budget are measured next:
at most `MAX_ROUNDS` rounds, each one interleaved run on the target. Only what was measured is ever proposed.
"""

from __future__ import annotations

import logging
import math
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgebert import __version__
from edgebert._console import columns
from edgebert._files import check_file_is_free, staged_file
from edgebert._json import JsonObject, dump_json
from edgebert.bench.codec import to_json
from edgebert.bench.environment.computer import Environment, read_environment
from edgebert.bench.options import MAX_THREADS
from edgebert.bench.report.table import count_text, size_text
from edgebert.card import check_class_names
from edgebert.data import DataOptions, load_dataset
from edgebert.errors import UnavailableError, UsageError
from edgebert.export.place import Place
from edgebert.fingerprint import machine
from edgebert.manifest import Precision
from edgebert.preprocess import MAX_SIDE, Preprocessing, Resize
from edgebert.runtime.runner import check_device, physical_cores
from edgebert.target import Target, resolve_target
from edgebert.train.options import check_choice, check_range
from edgebert.train.sizing_cost import (
    Candidate,
    candidate_of,
    fitted_model,
    grid_of_candidates,
    next_candidates,
    spread_anchors,
)
from edgebert.train.sizing_measure import (
    MAX_OTHER_BUSY,
    PRECISIONS,
    Latency,
    MeasureArms,
    Setting,
    Timing,
    Workshop,
)

_log = logging.getLogger("edgebert")

SIZE_SCHEMA = "edgebert.size/1"
MAX_ROUNDS = 4
ANCHORS = 5  # one more than the model of latency has coefficients
PER_ROUND = 3  # new shapes of each later round; the best so far is measured again beside them

Measure = Callable[[Sequence[str]], Sequence[Timing]]
Stop = Literal["found", "rounds", "time", "all measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOptions:
    """How to search.

    Attributes:
        image_size: side of the student's square input, in pixels.
        target: name of `edgebert.target`; it must be able to run here.
        budget_ms: what p90 may be, end to end from a decoded image at batch 1.
        shapes: measure these only, such as `d64-l3-h2-r2`; empty to search the grid.
        resize: how images become square.
        threads: intra-op threads of the backend; 0 means the physical cores this process may use.
        calibration_images: training images that quantise each candidate. Latency does not depend on the ranges they give, so few
            are enough; the student that ships is quantised with more.
        timed_images: how many different validation images are timed.
        max_minutes: no new round begins that is expected to end later; one round always runs.
        seed: of the untrained weights and the order of images and blocks.
        max_skipped: largest share of unreadable images before the run stops.
        force: replace an existing output.
    """

    image_size: int
    target: str
    budget_ms: float
    shapes: tuple[str, ...] = ()
    resize: Resize = "stretch"
    threads: int = 0
    calibration_images: int = 16
    timed_images: int = 64
    max_minutes: float = 5.0
    seed: int = 0
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 4, MAX_SIDE)
        resolve_target(self.target)
        check_range("budget_ms", self.budget_ms, 0.01, 60_000.0)
        if len(set(self.shapes)) < len(self.shapes):
            raise UsageError(f"shapes `{', '.join(self.shapes)}`", expected="each once")
        check_choice("resize", self.resize, ("crop", "stretch"))
        check_range("threads", self.threads, 0, MAX_THREADS)
        check_range("calibration_images", self.calibration_images, 16, 512)
        check_range("timed_images", self.timed_images, 3, 1024)
        check_range("max_minutes", self.max_minutes, 0.1, 1440.0)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_range("max_skipped", self.max_skipped, 0.0, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRow:
    """A measured shape; its figures are those of the last round that it was measured in.

    Attributes:
        shape: as `--student` takes it.
        tokens: length of its sequence at this image size.
        macs: multiply-accumulates of one image.
        parameters: number of weights.
        round: counted from 1.
        precision: the faster of its two forms, which is the one to ship.
        latencies: precision -> figures.
        inside: p90 of the faster form is at most the budget.
        pareto: no measured shape has as many MACs and a lower p90.
        other_busy: share of the processors that other programs used in that round; None where that is unknown.
    """

    shape: str
    tokens: int
    macs: int
    parameters: int
    round: int
    precision: Precision
    latencies: dict[Precision, Latency]
    inside: bool
    pareto: bool
    other_busy: float | None

    @property
    def latency(self) -> Latency:
        """Of the faster form."""
        return self.latencies[self.precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """What was measured, and what is proposed.

    Attributes:
        data: as it was named.
        target: name of the target.
        image_size: side in pixels.
        budget_ms: as asked for.
        threads: in effect.
        rows: the measured shapes, fastest first.
        proposed: the shape with the most MACs inside the budget (more parameters where equal); None where none is inside.
        rounds: of measuring.
        stopped: why there was no further round.
        grid: how many shapes there were to choose from.
        calibration_images: training images that quantised each.
        timed_images: different images that were timed.
        minutes: of the whole search.
        environment: the computer, as bench records it.
        path: where the table was written; None for nowhere.
    """

    data: str
    target: str
    image_size: int
    budget_ms: float
    threads: int
    rows: tuple[SizeRow, ...]
    proposed: str | None
    rounds: int
    stopped: Stop
    grid: int
    calibration_images: int
    timed_images: int
    minutes: float
    environment: Environment
    path: Path | None

    @property
    def exit_code(self) -> int:
        """0, or 1 where no measured shape is inside the budget."""
        return 0 if self.proposed is not None else 1

    def row(self, shape: str) -> SizeRow:
        """Return the row of a measured shape."""
        return next(row for row in self.rows if row.shape == shape)

    def to_json(self) -> JsonObject:
        """Return the report as JSON, schema `edgebert.size/1`."""
        content = {key: value for key, value in to_json(replace(self, path=None)).items() if key != "path"}
        return {"schema": SIZE_SCHEMA, "edgebert": __version__, **content, "command": self._command()}

    def to_text(self) -> str:
        """Return the table and the proposal for a terminal."""
        header = (
            "shape",
            "tokens",
            "MACs",
            "parameters",
            "ship",
            "p50 ms",
            "p90 ms",
            "other form",
            "size",
            "budget",
            "front",
        )
        rows = [self._cells(row) for row in self.rows]
        cpu = self.environment.device.cpu.model or self.environment.device.arch
        reason = {
            "found": "; the shapes left over are predicted to be smaller or too slow.",
            "rounds": f"; {MAX_ROUNDS} rounds are the most.",
            "time": "; the time limit came first (`--max-minutes`).",
            "all measured": ".",
        }[self.stopped]
        notes = f"""\
p50 and p90 end to end from a decoded image, one image at a time, {self.threads} threads, `{self.target}`, {cpu}.
ship: the faster of FP32 and INT8; other form: p90 of the slower; front *: none has as many MACs and is faster.
INT8 with ranges of {self.calibration_images} training images; {self.timed_images} different images timed.
{len(self.rows)} of {self.grid} shapes measured in {self.rounds} rounds, {self.minutes:.1f} minutes{reason}
Latency needs no training, accuracy does: none of these has learnt anything yet. MACs stand in for capacity."""
        disturbed = [share for row in self.rows if (share := row.other_busy or 0.0) > MAX_OTHER_BUSY]
        if disturbed:
            notes += f"\nOther programs used up to {max(disturbed):.0%} of the processors: latencies are too high, measure again."
        return "\n".join([columns(header, rows), "", notes, "", *self._proposal()])

    def _cells(self, row: SizeRow) -> tuple[str, ...]:
        other = next((row.latencies[precision] for precision in row.latencies if precision != row.precision), None)
        return (
            row.shape,
            str(row.tokens),
            count_text(row.macs),
            count_text(row.parameters),
            row.precision,
            f"{row.latency.p50:.3f}",
            f"{row.latency.p90:.3f}",
            "" if other is None else f"{other.p90:.3f}",
            size_text(row.latency.size_bytes),
            "inside" if row.inside else "beyond",
            "*" if row.pareto else "",
        )

    def _proposal(self) -> list[str]:
        if self.proposed is None:
            fastest = self.rows[0]
            said = f"the fastest, {fastest.shape}, has p90 {fastest.latency.p90:.3f} ms"
            return [
                f"no measured shape is inside {self.budget_ms:g} ms: {said}",
                "hint: a larger --budget-ms, a smaller --image-size, or another --target",
            ]
        row = self.row(self.proposed)
        return [
            f"the largest inside {self.budget_ms:g} ms: {row.shape}, {row.precision}, p90 {row.latency.p90:.3f} ms",
            "",
            "[distill]",
            f'student = "{row.shape}"',
            f"image_size = {self.image_size}",
            "",
            str(self._command()),
        ]

    def _command(self) -> str | None:
        if self.proposed is None:
            return None
        return (
            f"edgebert distill {shlex.quote(self.data)} --teacher TEACHER --student {self.proposed} "
            f"--image-size {self.image_size} -o student/"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePlace:
    """Another computer that candidates are measured on: a device of `edgebert.remote.size`.

    Attributes:
        place: that builds and answers them.
        measure_arms: that measures them.
        environment: of it.
        cores: its physical cores.
    """

    place: Place
    measure_arms: MeasureArms
    environment: Environment
    cores: int


def sizes_from_data(
    data: str, options: SizeOptions, output: Path | None = None, elsewhere: SizePlace | None = None
) -> SizeReport:
    """Measure untrained students on the target and propose the largest inside the budget.

    Args:
        data: as every command takes it; class count, calibration and timed images come from its training and validation
            splits, its test split is not touched.
        options: how.
        output: a `.json` file for the table; None for none.
        elsewhere: the device that is the target; None for this computer.

    Raises:
        UnavailableError: the target cannot run here; found out before any image is read.
        UsageError: a shape that no student can have.
        CannotWriteError: the output exists without `force`, or cannot be written.
        EdgebertError: the data are not what they must be, or a candidate cannot be built or run.
    """
    started = time.monotonic()
    if output is not None:
        check_file_is_free(output, force=options.force)
    target = resolve_target(options.target)
    if elsewhere is None:
        _check_runs_here(target)
    else:
        elsewhere.place.check(target)
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped))
    check_class_names(dataset.class_names)
    classes = len(dataset.class_names)
    candidates = (
        [candidate_of(shape, options.image_size, classes) for shape in options.shapes]
        if options.shapes
        else grid_of_candidates(options.image_size, classes)
    )
    setting = Setting(
        dataset=dataset,
        target=target,
        preprocessing=Preprocessing(
            height=options.image_size,
            width=options.image_size,
            resize=options.resize,
            shortest_edge=options.image_size if options.resize == "crop" else None,
        ),
        calibration_images=options.calibration_images,
        timed_images=options.timed_images,
        threads=options.threads or (physical_cores() if elsewhere is None else elsewhere.cores),
        seed=options.seed,
    )
    _log.info("%s", dataset.summary())
    _log.info("latency needs no training, accuracy does: the candidates are untrained")
    with tempfile.TemporaryDirectory(prefix="edgebert-size-") as folder:
        if elsewhere is None:
            workshop = Workshop(setting, Path(folder))
        else:
            workshop = Workshop(setting, Path(folder), place=elsewhere.place, measure_arms=elsewhere.measure_arms)
        limit_s = 60 * options.max_minutes - (time.monotonic() - started)
        found = search(candidates, workshop.measure, options.budget_ms, limit_s=limit_s, fixed=bool(options.shapes))
        calibrating, timed = workshop.counts
    report = SizeReport(
        data=data,
        target=options.target,
        image_size=options.image_size,
        budget_ms=options.budget_ms,
        threads=setting.threads,
        rows=found.rows,
        proposed=found.proposed,
        rounds=found.rounds,
        stopped=found.stopped,
        grid=len(candidates),
        calibration_images=calibrating,
        timed_images=timed,
        minutes=(time.monotonic() - started) / 60,
        environment=read_environment() if elsewhere is None else elsewhere.environment,
        path=output,
    )
    if output is not None:
        with staged_file(output, force=options.force) as staging:
            staging.write_text(dump_json(report.to_json()), encoding="utf-8")
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to; see `SizeReport`."""

    rows: tuple[SizeRow, ...]
    proposed: str | None
    rounds: int
    stopped: Stop


def search(
    candidates: Sequence[Candidate],
    measure: Measure,
    budget_ms: float,
    *,
    limit_s: float,
    fixed: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Measure anchors, then rounds of shapes around the budget.

    Args:
        candidates: the grid.
        measure: builds and measures shapes, together; what was built once is not built again.
        budget_ms: what p90 may be.
        limit_s: no round begins that is expected to end later; the first always runs.
        fixed: measure all candidates in one round and stop.
        clock: seconds.
    """
    by_name = {candidate.shape: candidate for candidate in candidates}
    timings: dict[str, _Timed] = {}
    started, rounds, best = clock(), 0, None
    chosen = list(candidates) if fixed else spread_anchors(candidates, budget_ms, min(ANCHORS, len(candidates)))
    while True:
        rounds += 1
        # Rounds are runs of their own, and computers drift: the best so far is measured again beside what may replace it.
        together = [candidate.shape for candidate in chosen] + ([best] if best is not None else [])
        _log.info("round %d: %s", rounds, ", ".join(together))
        for timing in measure(together):
            timings[timing.shape] = _Timed(candidate=by_name[timing.shape], timing=timing, round=rounds)
        best = _largest_inside(timings.values(), budget_ms)
        _say(best, timings, budget_ms)
        left = [candidate for candidate in candidates if candidate.shape not in timings]
        spent = clock() - started
        affordable = math.floor((limit_s - spent) * len(timings) / max(spent, 1e-9)) - (best is not None)
        chosen = _worth_measuring(left, timings, best, budget_ms)
        stopped = _reason_to_stop(left, chosen, rounds, affordable, fixed=fixed)
        if stopped is not None:
            return Found(rows=_rows(timings.values(), budget_ms), proposed=best, rounds=rounds, stopped=stopped)
        chosen = chosen[:affordable]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    candidate: Candidate
    timing: Timing
    round: int

    @property
    def precision(self) -> Precision:
        """The faster form; FP32 where both take as long."""
        return min(PRECISIONS, key=lambda precision: self.timing.latencies[precision].p90)

    @property
    def p90(self) -> float:
        return self.timing.latencies[self.precision].p90

    @property
    def size(self) -> tuple[int, int]:
        """What `largest` means."""
        return self.candidate.cost.macs, self.timing.parameters


def _largest_inside(timed: Iterable[_Timed], budget_ms: float) -> str | None:
    inside = [entry for entry in timed if entry.p90 <= budget_ms]
    return max(inside, key=lambda entry: entry.size).candidate.shape if inside else None


def _worth_measuring(
    left: Sequence[Candidate], timings: Mapping[str, _Timed], best: str | None, budget_ms: float
) -> list[Candidate]:
    """Return what may replace the best, by a model of latency that is fitted to all that was measured."""
    models = [
        fitted_model([(entry.candidate.cost, entry.timing.latencies[precision].p90) for entry in timings.values()])
        for precision in PRECISIONS
    ]
    larger = [entry for entry in left if best is None or entry.cost.macs > timings[best].candidate.cost.macs]
    return next_candidates(larger, models, budget_ms, PER_ROUND)


def _reason_to_stop(
    left: Sequence[Candidate], chosen: Sequence[Candidate], rounds: int, affordable: int, *, fixed: bool
) -> Stop | None:
    if fixed or not left:
        return "all measured"
    if not chosen:
        return "found"
    if rounds == MAX_ROUNDS:
        return "rounds"
    return "time" if affordable < 1 else None


def _rows(timed: Iterable[_Timed], budget_ms: float) -> tuple[SizeRow, ...]:
    ordered = sorted(timed, key=lambda entry: (entry.p90, entry.candidate.shape))
    return tuple(
        SizeRow(
            shape=entry.candidate.shape,
            tokens=entry.candidate.cost.tokens,
            macs=entry.candidate.cost.macs,
            parameters=entry.timing.parameters,
            round=entry.round,
            precision=entry.precision,
            latencies=entry.timing.latencies,
            inside=entry.p90 <= budget_ms,
            other_busy=entry.timing.other_busy,
            pareto=all(faster.candidate.cost.macs < entry.candidate.cost.macs for faster in ordered[:position]),
        )
        for position, entry in enumerate(ordered)
    )


def _say(best: str | None, timings: Mapping[str, _Timed], budget_ms: float) -> None:
    if best is None:
        fastest = min(timings.values(), key=lambda entry: entry.p90)
        _log.info(
            "nothing inside %g ms yet; the fastest is %s: %.3f ms", budget_ms, fastest.candidate.shape, fastest.p90
        )
    else:
        _log.info("the largest inside %g ms so far: %s, %.3f ms", budget_ms, best, timings[best].p90)


def _check_runs_here(target: Target) -> None:
    """Raise `UnavailableError` where this computer is not the target: latency is measured on it or not at all."""
    check_device(target.backend, target.device)
    if target.form == "ir" and machine() != "x86_64":
        raise UnavailableError(
            f"`{target.name}` needs an x86_64 processor, and this computer has {machine()}",
            expected="a target of this computer, such as `cpu`",
            hint="edgebert targets",
        )
