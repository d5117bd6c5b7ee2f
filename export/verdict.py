"""Whether INT8 is worth it: both compiled forms measured on the target, and one sentence that says what ships and why.

INT8 ships where it keeps the accuracy and is shown to be faster; otherwise FP32 ships. Images are those of the validation split,
the test split is not read. Latency is that of `Runner.infer`, one image at a time, on distinct preprocessed images:
decoding and resizing are the same for both and would only dilute the difference. `edgebert bench` measures end to end.

Measured numbers differ from run to run, and they stand in the bundle's manifest: two bundles of the same graphs, made with
`--precision auto`, hold the same forms and have different digests.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgebert._json import JsonObject
from edgebert.bench.environment import read_environment
from edgebert.bench.statistics import Interval, interleaved_ratio, percentile
from edgebert.bench.table import milliseconds, percent
from edgebert.card import ModelCard, hash_of_hashes
from edgebert.data import Example
from edgebert.decisions import decisions, said_names
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.forms import CompiledForm
from edgebert.manifest import Precision
from edgebert.metrics import exact_match
from edgebert.preprocess import load_image
from edgebert.runtime.instructions import int8_instructions
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, open_runner

_log = logging.getLogger("edgebert")

Asked = Literal["auto", "int8", "fp32"]
IntArray = NDArray[np.int64]

MAX_IMAGES = 2_000  # as many as `quantize` compares on
TIMED_IMAGES = 256  # distinct ones, so that no cache is filled by repetition

_BATCH = 32
_BLOCK_NS = 100_000_000
_MIN_QUERIES, _MAX_QUERIES = 3, 5_000  # of a block
_ROUNDS, _MIN_ROUNDS = 12, 5  # ABBA or BAAB each; below five there is no interval (edgebert.bench.statistics)
_WARMUP_NS, _MIN_WARMUP = 300_000_000, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What INT8 may cost.

    Attributes:
        max_drop: percentage points of accuracy that it may lose.
        min_agreement: per cent of the images that it must decide as FP32 does.
    """

    max_drop: float
    min_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One precision on one target.

    Attributes:
        accuracy: share of images decided rightly, in [0, 1].
        p50_ns: median of the counted times.
        p90_ns: nearest rank.
        size_bytes: of the compiled form.
        weight_bits: 8 or 7 of INT8, None of FP32.
        times_ns: int64 (queries,), all counted times.
    """

    accuracy: float
    p50_ns: int
    p90_ns: int
    size_bytes: int
    weight_bits: int | None
    times_ns: IntArray = field(repr=False, compare=False)

    def to_json(self) -> JsonObject:
        """Return the figures for a manifest, times in milliseconds; the single times are left out."""
        bits: JsonObject = {} if self.weight_bits is None else {"weight_bits": self.weight_bits}
        return {
            "accuracy": self.accuracy,
            "p50_ms": self.p50_ns / 1e6,
            "p90_ms": self.p90_ns / 1e6,
            "queries": int(self.times_ns.size),
            "size_bytes": self.size_bytes,
            **bits,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An image that INT8 decides otherwise than FP32.

    Attributes:
        example: the image.
        true: its class names.
        fp32: what FP32 says.
        int8: what INT8 says.
    """

    example: Example
    true: tuple[str, ...]
    fp32: tuple[str, ...]
    int8: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Both precisions on one target.

    Attributes:
        target: its name.
        metric: `top-1`, or `exact match` where images have several labels.
        images: how many validation images accuracy and agreement are of.
        images_sha256: of the list of their pixel hashes.
        fp32, int8: what was measured.
        agreement: share of images that both decide alike, in [0, 1].
        flips: the others; those that INT8 alone gets wrong first.
        ratio: INT8's time over FP32's, above 1 where INT8 is slower.
        ratio_ci95: of the ratio, a bootstrap over interleaved rounds; None with fewer than five.
        hardware: the CPU's name.
        instructions: what int8 is multiplied with there.
        versions: package -> version of what ran and compiled the forms.
        threads: of the backend, as it says itself.
    """

    target: str
    metric: str
    images: int
    images_sha256: str
    fp32: Figures
    int8: Figures
    agreement: float
    flips: tuple[Flip, ...]
    ratio: float
    ratio_ci95: Interval | None
    hardware: str
    instructions: str
    versions: Mapping[str, str]
    threads: str

    def to_json(self) -> JsonObject:
        """Return the numbers for a manifest; of the flips, how many."""
        return {
            "metric": self.metric,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "fp32": self.fp32.to_json(),
            "int8": self.int8.to_json(),
            "agreement": self.agreement,
            "flips": len(self.flips),
            "ratio": self.ratio,
            "ratio_ci95": None if self.ratio_ci95 is None else list(self.ratio_ci95),
            "hardware": self.hardware,
            "instructions": self.instructions,
            "versions": dict(self.versions),
            "threads": self.threads,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What should ship on one target, and why, in one sentence."""

    precision: Precision
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What ships.

    Attributes:
        asked: `auto`, or the precision that was asked for whatever is measured.
        precision: of the bundle.
        sentence: why, in numbers of the first target.
        limits: what INT8 was allowed to cost.
        measurements: of each target, in the order of the targets.
        decisions: what `auto` takes on each of them.
    """

    asked: Asked
    precision: Precision
    sentence: str
    limits: Limits
    measurements: tuple[Measurement, ...]
    decisions: tuple[Decision, ...]

    def to_json(self) -> JsonObject:
        """Return what the manifest keeps under `measured`, `precision_choice`. It holds no time of day."""
        return {
            "asked": self.asked,
            "ships": self.precision,
            "decided_on": self.measurements[0].target,
            "sentence": self.sentence,
            "max_drop": self.limits.max_drop,
            "min_agreement": self.limits.min_agreement,
            "targets": {
                measurement.target: {**measurement.to_json(), "ships": decision.precision}
                for measurement, decision in zip(self.measurements, self.decisions, strict=True)
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One precision, compiled.

    Attributes:
        precision: of the graph.
        forms: target name -> form.
        weight_bits: target name -> 8 or 7; empty for FP32.
    """

    precision: Precision
    forms: Mapping[str, CompiledForm]
    weight_bits: Mapping[str, int] = field(default_factory=dict)


def verdict_from_forms(
    fp32: Contender,
    int8: Contender,
    card: ModelCard,
    examples: Sequence[Example],
    *,
    asked: Asked,
    limits: Limits,
    max_seconds: float,
) -> Verdict:
    """Measure both precisions on every target and decide; with several targets the first one decides.

    Args:
        fp32: FP32's forms.
        int8: INT8's, for the same targets in the same order.
        card: class names, preprocessing and thresholds of both.
        examples: validation images, with labels in the card's order.
        asked: `auto`, or what ships in any case.
        limits: what INT8 may cost.
        max_seconds: timed on each target, at most; accuracy takes what it takes.

    Raises:
        BadDataError: there is no image.
        EdgebertError: a form answers with numbers that are not finite.
    """
    if not examples:
        raise BadDataError("there are no validation images to measure on", expected="a validation split")
    images = np.stack([load_image(example.load(), card.preprocessing) for example in examples])
    measurements = tuple(
        _measured(target, (fp32, int8), card, examples, images, max_seconds=max_seconds) for target in int8.forms
    )
    found = tuple(decision_of(measurement, limits) for measurement in measurements)
    verdict = Verdict(
        asked=asked,
        precision=found[0].precision if asked == "auto" else asked,
        sentence=found[0].sentence if asked == "auto" else _as_asked(asked, found[0]),
        limits=limits,
        measurements=measurements,
        decisions=found,
    )
    for measurement, decision in zip(measurements[1:], found[1:], strict=True):
        _log.info("on `%s`: %s", measurement.target, decision.sentence)
        if asked == "auto" and decision.precision != verdict.precision:
            _log.warning(
                "`%s` alone would ship %s; `%s` decides, as the first target. A bundle for each ships both",
                measurement.target,
                decision.precision.upper(),
                measurements[0].target,
            )
    return verdict


def decision_of(measurement: Measurement, limits: Limits) -> Decision:
    """Decide from numbers alone: INT8 where it keeps the accuracy and its time is below FP32's with 95 % confidence.

    Args:
        measurement: of one target.
        limits: what INT8 may cost.
    """
    against = [*_lost(measurement, limits), *_not_faster(measurement)]
    precision: Precision = "fp32" if against else "int8"
    why = f"INT8 {' and '.join(against)}: " if against else ""
    return Decision(precision=precision, sentence=f"{precision.upper()} ships: {why}{_numbers(measurement)}")


def _lost(measurement: Measurement, limits: Limits) -> list[str]:
    points = 100 * (measurement.fp32.accuracy - measurement.int8.accuracy)
    lost = []
    if points > limits.max_drop + 1e-9:  # so that 0.5 points are 0.5 points in binary, too
        lost.append(f"loses {points:.2f} points of accuracy, more than {limits.max_drop:g},")
    if 100 * measurement.agreement < limits.min_agreement - 1e-9:
        lost.append(f"agrees with FP32 on less than {limits.min_agreement:g} % of the images")
    return lost


def _not_faster(measurement: Measurement) -> list[str]:
    if measurement.ratio_ci95 is None:
        return ["was timed too little to tell"]
    low, high = measurement.ratio_ci95
    if high < 1:
        return []
    return ["is not worth it here" if low > 1 else "is not shown to be faster here"]


def _numbers(measurement: Measurement) -> str:
    fp32, int8, interval = measurement.fp32, measurement.int8, measurement.ratio_ci95
    sure = (
        "no interval" if interval is None else f"95 % interval {ratio_text(interval[0])} to {ratio_text(interval[1])}"
    )
    return (
        f"p50 {milliseconds(int8.p50_ns)} ms against {milliseconds(fp32.p50_ns)} ms "
        f"({ratio_text(measurement.ratio)} times, {sure}), "
        f"{_named(measurement.metric)} {percent(int8.accuracy)} % against {percent(fp32.accuracy)} %, "
        f"agreement {percent(measurement.agreement)} % on {measurement.images:,} validation images"
    )


def ratio_text(ratio: float) -> str:
    """Return a ratio with two decimals, and as many more as tell it from 1.

    >>> ratio_text(1.2), ratio_text(0.9971), ratio_text(1.00004)
    ('1.20', '0.997', '1.00004')
    """
    digits = 2
    while ratio != 1 and float(f"{ratio:.{digits}f}") == 1 and digits < 9:
        digits += 1
    return f"{ratio:.{digits}f}"


def _named(metric: str) -> str:
    return "accuracy" if metric == "top-1" else metric


def _as_asked(asked: Precision, decision: Decision) -> str:
    numbers = decision.sentence.partition(": ")[2]
    also = "as `auto` would" if decision.precision == asked else f"`auto` would take {decision.precision.upper()}"
    return f"{asked.upper()} ships, as asked ({also}): {numbers}"


def _measured(
    target: str,
    candidates: tuple[Contender, Contender],
    card: ModelCard,
    examples: Sequence[Example],
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
) -> Measurement:
    """Open both forms in this process, compare what they say, and time them in turn."""
    forms = [candidate.forms[target] for candidate in candidates]
    runners: list[Runner] = []
    try:
        for form in forms:
            runners.append(_opened(form, card))
        said = [
            _said(runner, card, images, what=f"{candidate.precision.upper()} on `{target}`")
            for runner, candidate in zip(runners, candidates, strict=True)
        ]
        times = timed_rounds([runner.infer for runner in runners], images[:TIMED_IMAGES], max_seconds=max_seconds)
        properties = runners[1].properties()
    finally:
        for runner in runners:
            runner.close()
    labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = True
    first, second = (np.array([[np.median(block) for block in round_] for round_ in arm]) for arm in times)
    contrast = interleaved_ratio(first, second, seed=0)
    figures = [
        _figures(float(exact_match(labels, rows)), arm, form, candidate.weight_bits.get(target))
        for rows, arm, form, candidate in zip(said, times, forms, candidates, strict=True)
    ]
    return Measurement(
        target=target,
        metric="exact match" if card.thresholds else "top-1",
        images=len(examples),
        images_sha256=hash_of_hashes([example.pixel_sha256 for example in examples]),
        fp32=figures[0],
        int8=figures[1],
        agreement=float(exact_match(said[0], said[1])),
        flips=_flips(examples, labels, said[0], said[1], card),
        ratio=contrast.ratio,
        ratio_ci95=contrast.ci95,
        hardware=read_environment().device.cpu.model or "unknown",
        instructions=int8_instructions(forms[1].backend).to_text() if forms[1].device == "CPU" else forms[1].device,
        versions={**forms[0].versions, **forms[1].versions},
        threads=properties.get("threads", "unknown"),
    )


def _opened(form: CompiledForm, card: ModelCard) -> Runner:
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    options = RunnerOptions(device=form.device, disabled_optimizers=form.disabled_optimizers)
    return open_runner(form.backend, ModelSource(spec=spec, files=form.files), options)


def _said(runner: Runner, card: ModelCard, images: NDArray[np.uint8], *, what: str) -> NDArray[np.bool_]:
    """Return bool (images, classes): what a form says of every image."""
    parts = [runner.infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    logits = np.concatenate(parts)  # (images, classes)
    if not np.isfinite(logits).all():
        raise EdgebertError(f"{what} answers with numbers that are not finite", expected="finite logits")
    return decisions(logits, card.thresholds)


def timed_rounds(
    infers: Sequence[Callable[[NDArray[np.uint8]], object]],
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[list[IntArray]]]:
    """Time two models in interleaved blocks: A B B A, then B A A B, and so on.

    How much is timed is decided after the warm-up, before anything is timed: there is no looking at results and going on. Both
    blocks of a pair take the same images. The first tenth of a block, in which the other model's traces leave the
    caches, is not counted.

    Args:
        infers: two models, each called with uint8 (1, height, width, 3).
        images: uint8 (images, height, width, 3).
        max_seconds: of all blocks, at most, as far as the warm-up tells; one round is always timed.
        clock: gives nanoseconds.

    Returns:
        by model, round and block (two in each round): int64 (queries,) nanoseconds.
    """
    single = [images[index : index + 1] for index in range(len(images))]
    medians = [_warmed_up(infer, single, clock) for infer in infers]
    queries = [min(_MAX_QUERIES, max(_MIN_QUERIES, math.ceil(_BLOCK_NS / median))) for median in medians]
    round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    if round_ns * _MIN_ROUNDS > max_seconds * 1e9:  # slow models: smaller blocks before fewer rounds
        share = max_seconds * 1e9 / (round_ns * _MIN_ROUNDS)
        queries = [max(_MIN_QUERIES, math.floor(count * share)) for count in queries]
        round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    rounds = max(1, min(_ROUNDS, math.floor(max_seconds * 1e9 / round_ns)))
    times: list[list[list[IntArray]]] = [[], []]
    for number in range(rounds):
        for arm in times:
            arm.append([])
        for half, order in enumerate(((0, 1), (1, 0)) if number % 2 == 0 else ((1, 0), (0, 1))):
            start = (2 * number + half) * max(queries)
            for arm_index in order:
                block = _block(infers[arm_index], single, start, queries[arm_index], clock)
                times[arm_index][-1].append(block[math.ceil(len(block) / 10) :])
    return times


def _warmed_up(
    infer: Callable[[NDArray[np.uint8]], object], single: Sequence[NDArray[np.uint8]], clock: Callable[[], int]
) -> int:
    """Run a model until it is warm and return the median of the later half, in nanoseconds, at least 1."""
    taken: list[int] = []
    while len(taken) < _MIN_WARMUP or sum(taken) < _WARMUP_NS:
        taken.append(int(_block(infer, single, len(taken), 1, clock)[0]))
        if len(taken) >= _MAX_QUERIES:
            break
    return max(1, int(np.median(taken[len(taken) // 2 :])))


def _block(
    infer: Callable[[NDArray[np.uint8]], object],
    single: Sequence[NDArray[np.uint8]],
    start: int,
    queries: int,
    clock: Callable[[], int],
) -> IntArray:
    taken = np.empty(queries, np.int64)
    for query in range(queries):
        image = single[(start + query) % len(single)]
        began = clock()
        infer(image)
        taken[query] = clock() - began
    return taken


def _figures(accuracy: float, rounds: list[list[IntArray]], form: CompiledForm, weight_bits: int | None) -> Figures:
    times = np.concatenate([block for blocks in rounds for block in blocks])
    return Figures(
        accuracy=accuracy,
        p50_ns=percentile(times, 0.5),
        p90_ns=percentile(times, 0.9),
        size_bytes=sum(len(content) for content in form.files.values()),
        weight_bits=weight_bits,
        times_ns=times,
    )


def _flips(
    examples: Sequence[Example],
    labels: NDArray[np.bool_],
    fp32: NDArray[np.bool_],
    int8: NDArray[np.bool_],
    card: ModelCard,
) -> tuple[Flip, ...]:
    """Return what is decided otherwise: first what INT8 alone gets wrong, then what both do, then what it alone gets right."""
    names = card.class_names
    found = []
    for row in np.flatnonzero((fp32 != int8).any(axis=1)).tolist():
        right = bool((int8[row] == labels[row]).all()), not bool((fp32[row] == labels[row]).all())
        flip = Flip(
            example=examples[row],
            true=said_names(labels[row], names),
            fp32=said_names(fp32[row], names),
            int8=said_names(int8[row], names),
        )
        found.append((right, row, flip))
    return tuple(flip for _, _, flip in sorted(found, key=lambda entry: entry[:2]))


def merged_choice(before: JsonObject | None, verdict: Verdict) -> JsonObject:
    """Return what the manifest keeps when targets are added: the first verdict stands, with the new targets' numbers.

    Args:
        before: what the manifest holds already, or None.
        verdict: of the targets that are added.
    """
    now = verdict.to_json()
    if before is None:
        return now
    old, new = before.get("targets"), now["targets"]
    assert isinstance(new, Mapping)
    return {**before, "targets": {**(old if isinstance(old, Mapping) else {}), **new}}
