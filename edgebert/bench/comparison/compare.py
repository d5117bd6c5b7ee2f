"""What two measurements say of each other: `edgebert compare`, with the verdicts and exit codes of bench.md, section 4.3.

Every number is made from the raw samples; the statistics in the files are not believed. The exit code is that of the worst
verdict, in the order in which a gate must stop: not comparable (5), slower or less accurate (3), inconclusive (4), else 0.

>>> worst_exit_code([4, 3, 0])
3
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgebert._json import JsonObject
from edgebert.bench.codec import to_json
from edgebert.bench.comparison.comparability import (
    arm_differences,
    dataset_differences,
    deciding,
    status_obstacles,
    surrounding_differences,
)
from edgebert.bench.comparison.launch_times import MetricName, launch_times, queries_needed, schema_metric
from edgebert.bench.comparison.measured_run import DEFAULT_MARGIN, MeasuredRun
from edgebert.bench.comparison.validation import fitting_samples
from edgebert.bench.comparisons import SCENARIO, comparison_of
from edgebert.bench.environment.difference import Difference
from edgebert.bench.paired_accuracy import twin_from_samples
from edgebert.bench.schema import Arm, Comparison, NoiseFloor
from edgebert.bench.statistics.decision import VERDICT_EXIT_CODES
from edgebert.bench.statistics.launches import simultaneous_confidence, unpaired_contrast
from edgebert.errors import UsageError

SIGNIFICANT = 0.05
SLOWER_EXIT_CODE, INCONCLUSIVE_EXIT_CODE = VERDICT_EXIT_CODES["slower"], VERDICT_EXIT_CODES["inconclusive"]
NOT_COMPARABLE_EXIT_CODE = VERDICT_EXIT_CODES["not comparable"]

_SEVERITY = (NOT_COMPARABLE_EXIT_CODE, SLOWER_EXIT_CODE, INCONCLUSIVE_EXIT_CODE, 0)

_NAME_BOTH = "name both: --baseline ARM_OF_A --arm ARM_OF_B"

Guard = Literal["kept", "exceeded", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """How to compare.

    Attributes:
        arm: name of the arm to judge; every one that both have if not given.
        baseline: name of the arm that it is held against; in two results the arm of the same name if not given.
        metrics: p50, p90, p99 or throughput.
        margin: relative difference that matters; less is not claimed. None for that of the run; 1 % for two.
        max_drop: points of top-1 that may be lost; None for no such guard.
        cross_device: results of different devices are compared on purpose.
    """

    arm: str | None = None
    baseline: str | None = None
    metrics: tuple[MetricName, ...] = ("p50",)
    margin: float | None = None
    max_drop: float | None = None
    cross_device: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 <= self.margin < 1:
            raise UsageError(f"`--margin {self.margin:g}` is out of range", expected="0 to below 1")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"`--max-drop {self.max_drop:g}` is out of range", expected="0 to 100 points")


def compare_options_from(
    *,
    arm: str | None,
    baseline: str | None,
    metrics: Sequence[str],
    margin: str | None,
    max_drop: float | None,
    cross_device: bool,
) -> CompareOptions:
    """Return options of what stands on a command line; the fields are those of `CompareOptions`.

    Raises:
        UsageError: an unknown metric, or a margin that is no share.
    """
    known = {name: name for name in get_args(MetricName)}
    for name in metrics:
        if name not in known:
            raise UsageError(f"`--metric {name}` is unknown", expected=", ".join(known))
    return CompareOptions(
        arm=arm,
        baseline=baseline,
        metrics=tuple(dict.fromkeys(known[name] for name in metrics)),
        margin=None if margin is None else share_of_text(margin),
        max_drop=max_drop,
        cross_device=cross_device,
    )


def share_of_text(text: str) -> float:
    """Return a share from `1%`, `0.5 %` or `0.01`.

    >>> share_of_text("1%"), share_of_text("0.02")
    (0.01, 0.02)

    Raises:
        UsageError: anything else, and a share of 1 and more, which is meant as a per cent.
    """
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number) / (100 if "%" in text else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UsageError(f"`--margin {text:.40}` is no share", expected="0 to below 1, such as `1%` or `0.01`")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One arm of one result.

    Attributes:
        file: name of the result.
        run_id: of the run.
        created: when it was measured.
        arm: name of the arm.
        sha256: of its artefact.
    """

    file: str
    run_id: str
    created: str
    arm: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    """Arm `b` held against arm `a`.

    Attributes:
        a: the baseline.
        b: the one that is judged.
        obstacles: why no verdict is given; empty where there is one.
        differences: of how the two were measured; those that decide are obstacles.
        comparisons: one for each metric that can be stated; none where the two cannot be compared at all.
        guard: what became of `--max-drop`; None without it.
        cross_device: two devices.
    """

    a: Side
    b: Side
    obstacles: tuple[str, ...]
    differences: tuple[Difference, ...]
    comparisons: tuple[Comparison, ...]
    guard: Guard | None
    cross_device: bool

    @property
    def exit_code(self) -> int:
        """Return that of the worst verdict."""
        if self.obstacles:
            return NOT_COMPARABLE_EXIT_CODE
        guard = {None: 0, "kept": 0, "exceeded": SLOWER_EXIT_CODE, "inconclusive": INCONCLUSIVE_EXIT_CODE}[self.guard]
        return worst_exit_code([guard, *(VERDICT_EXIT_CODES[entry.verdict] for entry in self.comparisons)])

    @property
    def better(self) -> Literal["a", "b"] | None:
        """Return which of both is better in speed and accuracy together, or None where neither dominates."""
        return dominating(self.comparisons)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """What `edgebert compare` says.

    Attributes:
        arms: the comparisons of arms; empty where a run forbids all of them.
        obstacles: why nothing can be compared; empty where something can.
        differences: of the two runs' computers and images.
        notes: what the reader should know; no reason against a verdict.
        max_drop: points of top-1 that may be lost, as asked for.
    """

    arms: tuple[ArmComparison, ...]
    obstacles: tuple[str, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    max_drop: float | None

    @property
    def exit_code(self) -> int:
        """Return 5 where anything is not comparable, else 3, else 4 where a verdict is so, else 0."""
        if self.obstacles:
            return NOT_COMPARABLE_EXIT_CODE
        return worst_exit_code([entry.exit_code for entry in self.arms])

    def to_text(self) -> str:
        """Return the verdicts as sentences, no line wider than 100 columns."""
        from edgebert.bench.comparison.text import text_of_report

        return text_of_report(self)

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object, with the sentences and the exit codes."""
        from edgebert.bench.comparison.text import sentence_of

        arms = [
            {
                **to_json(entry),
                "better": entry.better,
                "exit_code": entry.exit_code,
                "sentences": [sentence_of(entry, comparison) for comparison in entry.comparisons],
            }
            for entry in self.arms
        ]
        return {**to_json(self), "arms": arms, "exit_code": self.exit_code}


def compare_results(paths: Sequence[Path], options: CompareOptions) -> CompareReport:
    """Compare the arms of one result with its baseline, or two results arm by arm, the first the baseline.

    Raises:
        UsageError: not one or two results, or an arm that is not there.
        InputNotFoundError, BadDataError, RefusedError: as `read_result`.
    """
    if len(paths) not in (1, 2):
        raise UsageError(f"{len(paths)} results are named", expected="one, or two: the baseline and the candidate")
    alike = len({path.name for path in paths}) < len(paths)  # such as old/result.json and new/result.json
    runs = [MeasuredRun.read(path, name=str(path) if alike else path.name) for path in paths]
    if len(runs) == 1 and options.cross_device:
        raise UsageError("`--cross-device` is for two results", expected="A.json B.json")
    with fitting_samples(" and ".join(f"`{run.name}`" for run in runs)):
        return _compare_within(runs[0], options) if len(runs) == 1 else _compare_runs(runs[0], runs[1], options)


def worst_exit_code(codes: Iterable[int]) -> int:
    """Return the one at which a gate must stop first: 5, then 3, then 4, then 0."""
    return min(codes, key=_SEVERITY.index, default=0)


def dominating(comparisons: Sequence[Comparison]) -> Literal["a", "b"] | None:
    """Return the arm that is no worse in anything and better in something (Pareto); None where neither is so.

    In speed what the verdicts say; in accuracy a change that McNemar's test does not put down to chance (p < 0.05), and a
    point estimate that does not speak against it.
    """
    if not comparisons or any(entry.verdict in ("inconclusive", "not comparable") for entry in comparisons):
        return None
    twin = comparisons[0].accuracy
    surely = twin.mcnemar_p < SIGNIFICANT
    for winner, gained, good, bad in (
        ("b", twin.delta_top1, "faster", "slower"),
        ("a", -twin.delta_top1, "slower", "faster"),
    ):
        verdicts = {entry.verdict for entry in comparisons}
        if bad not in verdicts and gained >= 0 and (good in verdicts or (gained > 0 and surely)):
            return "b" if winner == "b" else "a"
    return None


def guard_of(comparison: Comparison, max_drop: float) -> Guard:
    """Return whether top-1 falls by more than `max_drop` points: by its whole interval, by none of it, or unknown."""
    low, high = comparison.accuracy.delta_ci95
    if 100 * high < -max_drop:
        return "exceeded"
    return "kept" if 100 * low >= -max_drop else "inconclusive"


def _compare_within(run: MeasuredRun, options: CompareOptions) -> CompareReport:
    """Return how the arms of one run compare, from their interleaved blocks."""
    obstacles = status_obstacles(run.result, f"`{run.name}`")
    if obstacles:
        return _refused(obstacles, (), options)
    for flag, name in (("arm", options.arm), ("baseline", options.baseline)):
        if name is not None and name not in run.names:
            raise UsageError(f"`{run.name}` has no arm `{name}` (`--{flag}`)", expected=", ".join(run.names))
    own = next(arm.id for arm in run.result.arms if arm.role == "baseline")
    baseline = own if options.baseline is None else options.baseline
    arms = [name for name in run.names if name != baseline and options.arm in (None, name)]
    if not arms:
        raise UsageError(
            f"`{run.name}` has no arm to hold against `{baseline}`",
            expected=f"another of {', '.join(run.names)}, or two results",
        )
    made = run.comparisons(baseline, options.arm, options.metrics, options.margin)
    return CompareReport(
        arms=tuple(
            _judged(run, baseline, run, arm, tuple(entry for entry in made if entry.b == arm), (), options)
            for arm in arms
        ),
        obstacles=(),
        differences=(),
        notes=_notes(run),
        max_drop=options.max_drop,
    )


def _compare_runs(first: MeasuredRun, second: MeasuredRun, options: CompareOptions) -> CompareReport:
    """Return how the arms of two runs compare, unpaired: the first is the baseline."""
    obstacles = [
        *status_obstacles(first.result, f"`{first.name}`"),
        *status_obstacles(second.result, f"`{second.name}`"),
    ]
    if not first.result.arms or not second.result.arms:
        return _refused(tuple(obstacles), (), options)
    pairs = pairs_of_arms(first, second, arm=options.arm, baseline=options.baseline)
    found = {
        (a.id, b.id): surrounding_differences(first.result, a, second.result, b, cross_device=options.cross_device)
        for a, b in pairs
    }
    shared = {entry.path: entry for entries in found.values() for entry in entries if not _of_arm(entry)}
    common = (*shared.values(), *dataset_differences(first.result, second.result))
    obstacles += [difference_text(entry) for entry in deciding(common)]
    if obstacles:
        return _refused(tuple(obstacles), common, options)
    confidence = simultaneous_confidence(len(pairs))
    return CompareReport(
        arms=tuple(
            _compare_arms(
                first, a, second, b, tuple(entry for entry in found[a.id, b.id] if _of_arm(entry)), options, confidence
            )
            for a, b in pairs
        ),
        obstacles=(),
        differences=common,
        notes=(*_notes(first), *_notes(second)),
        max_drop=options.max_drop,
    )


def pairs_of_arms(
    first: MeasuredRun, second: MeasuredRun, *, arm: str | None, baseline: str | None
) -> list[tuple[Arm, Arm]]:
    """Return which arm is held against which: as named, else by name, else by artefact, else the only ones there are.

    Raises:
        UsageError: none of these; the message lists the names.
    """
    ours, theirs = ({entry.id: entry for entry in run.result.measured_arms} for run in (first, second))
    if arm is not None or baseline is not None:
        a = _named(first, ours, arm if baseline is None else baseline)
        b = _named(second, theirs, baseline if arm is None else arm)
        return [(a, b)]
    if shared := [name for name in ours if name in theirs]:
        return [(ours[name], theirs[name]) for name in shared]
    same = [(a, b) for a in ours.values() for b in theirs.values() if a.artifact.sha256 == b.artifact.sha256]
    if len(same) == 1:
        return same
    if len(ours) == len(theirs) == 1:
        return [(next(iter(ours.values())), next(iter(theirs.values())))]
    raise UsageError(
        "the two results have no arm in common",
        expected=f"`{first.name}` has {', '.join(ours)}; `{second.name}` has {', '.join(theirs)}",
        hint=_NAME_BOTH,
    )


def _named(run: MeasuredRun, arms: Mapping[str, Arm], name: str | None) -> Arm:
    """Return the arm of a name, or the only one there is."""
    if name is not None and name in arms:
        return arms[name]
    if len(arms) == 1:
        return next(iter(arms.values()))
    raise UsageError(f"`{run.name}` has no arm `{name}`", expected=", ".join(arms), hint=_NAME_BOTH)


def _compare_arms(
    first: MeasuredRun,
    a: Arm,
    second: MeasuredRun,
    b: Arm,
    surroundings: tuple[Difference, ...],
    options: CompareOptions,
    confidence: float,
) -> ArmComparison:
    found = (*surroundings, *arm_differences(a, b, SCENARIO))
    twin = twin_from_samples(first.samples, first.index(a.id), second.samples, second.index(b.id))
    obstacles = [difference_text(entry) for entry in deciding(found)]
    if twin is None:
        obstacles.append("the labels of the test images differ, image by image")
    if twin is None or obstacles:
        return _judged(first, a.id, second, b.id, (), found, options, obstacles=tuple(obstacles))
    made = []
    for metric in options.metrics:
        times_a, times_b = (
            launch_times(run.samples, run.index(arm.id), metric) for run, arm in ((first, a), (second, b))
        )
        if times_a is None or times_b is None:
            continue
        contrast = unpaired_contrast(times_a, times_b, seed=second.result.seeds.bootstrap, confidence=confidence)
        floor = wider_floor([first.noise_floor(metric), second.noise_floor(metric)])
        margin = DEFAULT_MARGIN if options.margin is None else options.margin
        made.append(
            comparison_of(
                contrast,
                (a.id, b.id),
                schema_metric(metric),
                margin=margin,
                control=floor,
                accuracy=twin,
                paired=False,
            )
        )
    return _judged(first, a.id, second, b.id, tuple(made), found, options)


def _judged(
    first: MeasuredRun,
    a: str,
    second: MeasuredRun,
    b: str,
    comparisons: tuple[Comparison, ...],
    found: tuple[Difference, ...],
    options: CompareOptions,
    *,
    obstacles: tuple[str, ...] = (),
) -> ArmComparison:
    stated = {entry.metric for entry in comparisons}
    if not obstacles:
        obstacles = tuple(
            f"{metric} is not estimable: a launch has fewer than {queries_needed(metric)} queries"
            for metric in options.metrics
            if schema_metric(metric) not in stated
        )
    return ArmComparison(
        a=_side(first, a),
        b=_side(second, b),
        obstacles=obstacles,
        differences=found,
        comparisons=comparisons,
        guard=guard_of(comparisons[0], options.max_drop) if comparisons and options.max_drop is not None else None,
        cross_device=options.cross_device,
    )


def _side(run: MeasuredRun, arm: str) -> Side:
    result = run.result
    return Side(
        file=run.name, run_id=result.run_id, created=result.created, arm=arm, sha256=result.arm(arm).artifact.sha256
    )


def _of_arm(entry: Difference) -> bool:
    return entry.path.startswith("arms.")


def wider_floor(floors: Sequence[NoiseFloor | None]) -> NoiseFloor | None:
    """Return the A/A control whose interval reaches farthest from 1; None where no run has one."""
    known = [(floor, floor.ci95) for floor in floors if floor is not None and floor.ci95 is not None]
    if not known:
        return None
    return max(known, key=lambda pair: max(abs(bound - 1) for bound in pair[1]))[0]


def difference_text(entry: Difference) -> str:
    """Return one difference as a line: `os.kernel: 6.1 against 6.8`."""
    why = f" ({entry.why})" if entry.why else ""
    return f"{entry.path}: {entry.a} against {entry.b}{why}"


def _notes(run: MeasuredRun) -> tuple[str, ...]:
    """Return what is worth a look but forbids nothing."""
    result, found = run.result, []
    if not result.status.converged:
        found.append(f"`{run.name}` is not converged: the interval says how sure the verdict is")
    if not any(arm.role == "aa" for arm in result.arms):
        found.append(f"`{run.name}` has no A/A control: noise is not measured, only the margin is kept")
    if result.status.warnings:
        found.append(f"`{run.name}`: {'; '.join(result.status.warnings)}")
    return tuple(found)


def _refused(obstacles: tuple[str, ...], found: tuple[Difference, ...], options: CompareOptions) -> CompareReport:
    return CompareReport(arms=(), obstacles=obstacles, differences=found, notes=(), max_drop=options.max_drop)
