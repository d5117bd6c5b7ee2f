"""Whether INT8 is worth it: from the measurements of both compiled forms to one sentence that says what ships and why.

INT8 ships where it keeps the accuracy and is shown to be faster; otherwise FP32 ships. `edgebert.export.verdict_measure` measures.

Measured numbers differ from run to run, and they stand in the bundle's manifest: two bundles of the same graphs, made with
`--precision auto`, hold the same forms and have different digests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgebert._json import JsonObject
from edgebert.bench.report.table import milliseconds, percent
from edgebert.bench.statistics.formulas import Interval
from edgebert.data import Example
from edgebert.manifest import Precision

_log = logging.getLogger("edgebert")

Asked = Literal["auto", "int8", "fp32"]
IntArray = NDArray[np.int64]


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
        form: of an engine, such as `strong-fp16`; else empty.
        times_ns: int64 (queries,), all counted times.
    """

    accuracy: float
    p50_ns: int
    p90_ns: int
    size_bytes: int
    weight_bits: int | None
    times_ns: IntArray = field(repr=False, compare=False)
    form: str = ""

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
            **({"form": self.form} if self.form else {}),
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
        float_name: what the float one is called: `FP16` of a TensorRT engine, whose float graph is built so.
        float_logits: float32 (images, classes): what the float one answers.
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
    float_name: str = "FP32"
    float_logits: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def name_of(self, precision: Precision) -> str:
        """Return what a sentence calls a precision here."""
        return "INT8" if precision == "int8" else self.float_name

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


def verdict_of(measurements: tuple[Measurement, ...], asked: Asked, limits: Limits) -> Verdict:
    """Decide from numbers alone; with several targets the first one decides, and it is said where another would not agree.

    Args:
        measurements: of each target, at least one.
        asked: `auto`, or what ships in any case.
        limits: what INT8 may cost.
    """
    found = tuple(decision_of(measurement, limits) for measurement in measurements)
    verdict = Verdict(
        asked=asked,
        precision=found[0].precision if asked == "auto" else asked,
        sentence=found[0].sentence if asked == "auto" else _as_asked(asked, found[0], measurements[0]),
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
                measurement.name_of(decision.precision),
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
    why = f"INT8 {_joined(against)}: " if against else ""
    return Decision(
        precision=precision, sentence=f"{measurement.name_of(precision)} ships: {why}{_numbers(measurement)}"
    )


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _lost(measurement: Measurement, limits: Limits) -> list[str]:
    points = 100 * (measurement.fp32.accuracy - measurement.int8.accuracy)
    lost = []
    if points > limits.max_drop + 1e-9:  # so that 0.5 points are 0.5 points in binary, too
        lost.append(f"loses {points:.2f} points of accuracy ({limits.max_drop:g} are allowed)")
    if 100 * measurement.agreement < limits.min_agreement - 1e-9:
        lost.append(f"agrees with {measurement.float_name} on less than {limits.min_agreement:g} % of the images")
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


def _as_asked(asked: Precision, decision: Decision, measurement: Measurement) -> str:
    numbers = decision.sentence.partition(": ")[2]
    also = (
        "as `auto` would"
        if decision.precision == asked
        else f"`auto` would take {measurement.name_of(decision.precision)}"
    )
    return f"{measurement.name_of(asked)} ships, as asked ({also}): {numbers}"


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
