"""Energy of an image above idle, from the samples of the power rails (bench.md, section 12; tensorrt_jetson.md, section 8).

The method, in full:

* The power is that of the board's input rail; where it has none, the sum of its rails, which is less and is called so. A rail behind the
  input is never added to it.
* Idle power is the mean over the ten seconds before the first worker starts and the ten after the last has ended, with the sampler
  running, as it does while timing. The two are kept: a board that has become warm idles higher.
* The arms take turns in windows of ten seconds of one query after the other (ABBA). Of each window, and of each idle time, the first
  second is left out: the chips show the mean of their last interval, which then still holds what was before.
* Energy of a window is the trapezoid over its samples, with the values at its ends interpolated; it is divided by the images that were
  answered in the same time. Above idle is that less idle power times the time.
* The interval is Student's over the windows. It says how windows differ. It does not hold what all of them share: the chip's own error
  (some percent), what is not behind the rail, and the drift of idle power.
* Nothing is stated where less than 95 % of the expected samples have a value.

>>> trapezoid_j(np.array([0, 10**9]), np.array([2_000_000, 4_000_000]), 0, 10**9)
3.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.environment.jetson.rails import Scope, label_of, scope_of
from edgebert.bench.environment.source import MISSING
from edgebert.bench.environment.telemetry import Telemetry, telemetry_of_columns
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_WARMUP
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import Arm, Energy, Interval, ScenarioName
from edgebert.bench.statistics.student_t import t_quantile

FloatArray = NDArray[np.float64]

IDLE_S = 10.0  # bench.md, section 12
WINDOW_S = 10.0
WINDOWS = 2  # of each arm in a launch: one on either side of the middle
LEAD_S = 1.0
MIN_WINDOW_S = 4.0
MIN_COVERAGE = 0.95
ENERGY_SCENARIOS: tuple[ScenarioName, ...] = ("energy", "soak")  # those with windows that are long enough
IDLE_COLUMNS = ("idle_start_ns", "idle_end_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Power:
    """Power over time: (samples,) int64 stamps in ns, float64 µW; `interval_ns` between two samples, median."""

    t_ns: IntArray
    microwatts: FloatArray
    interval_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A time without its first second: its energy, the images answered in it, and the share of samples that have a value."""

    joules: float
    seconds: float
    images: int
    coverage: float


def rails_of(columns: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """Return label -> column of the rails among the columns of a telemetry."""
    return {label: values for name, values in columns.items() if (label := label_of(name)) is not None}


def energy_of(samples: Samples, arm: int, name: ScenarioName) -> Energy | str:
    """Return the energy of an arm's images in a scenario, or why it cannot be stated.

    Args:
        samples: of the run.
        arm: index of the arm.
        name: `energy`, or another one whose windows are long enough (`soak`).
    """
    telemetry = telemetry_of_columns(samples)
    scope = None if telemetry is None else scope_of(tuple(rails_of(telemetry.columns)))
    if telemetry is None or scope is None:
        return "no power rail was read"
    power = _power_of(telemetry, scope)
    idle = [_span(power, start, end) for start, end in idle_spans(samples)]
    if power is None or not idle or any(span is None for span in idle):
        return "idle power was not measured"
    windows = _windows(power, samples, arm, name)
    known = [span for span in (*idle, *windows) if span is not None]
    if not windows:
        return f"no window of {MIN_WINDOW_S:g} s or longer: shorter ones are not resolved by the sensors"
    if len(known) < len(idle) + len(windows) or min(span.coverage for span in known) < MIN_COVERAGE:
        return f"less than {100 * MIN_COVERAGE:g} % of the expected samples of power have a value"
    resting, working = known[: len(idle)], known[len(idle) :]
    if not all(span.images for span in working):
        return "a window without an answer"
    return _stated(power, scope, resting, working)


def missing_energy(samples: Samples, arms: Sequence[Arm]) -> dict[str, str]:
    """Return path -> why the energy of a scenario that would have one is not stated."""
    return {
        f"arms.{arm.id}.scenarios.{scenario.name}.energy": found
        for index, arm in enumerate(arms)
        for scenario in arm.scenarios
        if scenario.name in ENERGY_SCENARIOS and isinstance(found := energy_of(samples, index, scenario.name), str)
    }


def idle_columns(spans: Sequence[tuple[int, int]]) -> dict[str, IntArray]:
    """Return the times in which nothing ran as columns of a run; none where there were none."""
    rows = np.array(spans, np.int64).reshape(-1, 2)
    return {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(IDLE_COLUMNS)} if spans else {}


def idle_spans(samples: Samples) -> list[tuple[int, int]]:
    """Return begin and end of the times in which nothing ran."""
    starts, ends = (samples.columns.get(name) for name in IDLE_COLUMNS)
    return [] if starts is None or ends is None else list(zip(starts.tolist(), ends.tolist(), strict=True))


def trapezoid_j(t_ns: IntArray, microwatts: IntArray | FloatArray, start_ns: int, end_ns: int) -> float:
    """Return the energy in J between two times: the trapezoid over the samples, interpolated at both ends.

    Args:
        t_ns: (samples,) int64, rising.
        microwatts: (samples,), of each.
        start_ns: where the energy begins.
        end_ns: where it ends; outside of the samples the nearest one holds.
    """
    inside = (t_ns > start_ns) & (t_ns < end_ns)
    edges = np.interp([start_ns, end_ns], t_ns, microwatts)
    times = np.concatenate([[start_ns], t_ns[inside], [end_ns]]).astype(np.float64) / 1e9
    watts = np.concatenate([edges[:1], microwatts[inside], edges[1:]]) / 1e6
    return float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))


def _power_of(telemetry: Telemetry, scope: Scope) -> _Power | None:
    """Return the scope's power; a sample that lacks one of its rails is none."""
    rails = rails_of(telemetry.columns)
    values = np.stack([rails[label] for label in scope.labels])  # (rails, samples)
    known = (values != MISSING).all(axis=0)
    if np.count_nonzero(known) < 2:
        return None
    return _Power(
        t_ns=telemetry.t_ns[known],
        microwatts=values[:, known].sum(axis=0).astype(np.float64),
        interval_ns=float(np.median(np.diff(telemetry.t_ns))),
    )


def _span(power: _Power | None, start_ns: int, end_ns: int, done_ns: IntArray | None = None) -> _Span | None:
    """Return what a time holds after its first second, None where it is too short."""
    begin = start_ns + round(LEAD_S * 1e9)
    if power is None or end_ns - start_ns < MIN_WINDOW_S * 1e9:
        return None
    samples = int(np.count_nonzero((power.t_ns >= begin) & (power.t_ns <= end_ns)))
    return _Span(
        joules=trapezoid_j(power.t_ns, power.microwatts, begin, end_ns),
        seconds=(end_ns - begin) / 1e9,
        images=0 if done_ns is None else int(np.count_nonzero((done_ns > begin) & (done_ns <= end_ns))),
        coverage=min(1.0, samples / max(1.0, math.floor((end_ns - begin) / power.interval_ns))),
    )


def _windows(power: _Power, samples: Samples, arm: int, name: ScenarioName) -> list[_Span | None]:
    blocks, rows = samples.blocks_of(arm, name), samples.queries_of(arm, name)
    answered = (rows["flags"] & (FLAG_WARMUP | FLAG_ERROR | FLAG_DROPPED)) == 0
    done = rows["t_done"][answered]
    starts = blocks["block_start_ns"]
    long_enough = blocks["block_wall_ns"] >= MIN_WINDOW_S * 1e9
    spans = zip(starts[long_enough].tolist(), blocks["block_wall_ns"][long_enough].tolist(), strict=True)
    return [_span(power, start, start + wall, done) for start, wall in spans]


def _stated(power: _Power, scope: Scope, resting: list[_Span], working: list[_Span]) -> Energy:
    idle = [span.joules / span.seconds for span in resting]
    idle_w = sum(idle) / len(idle)
    images, seconds = sum(span.images for span in working), sum(span.seconds for span in working)
    joules = sum(span.joules for span in working)
    each = [(span.joules - idle_w * span.seconds) / span.images for span in working]
    return Energy(
        scope=scope.kind,
        rails=scope.labels,
        idle_w=idle_w,
        idle_before_w=idle[0],
        idle_after_w=idle[-1] if len(idle) > 1 else None,
        mean_w=joules / seconds,
        gross_j_per_image=joules / images,
        above_idle_j_per_image=(joules - idle_w * seconds) / images,
        above_idle_ci95=_interval(each),
        images=images,
        windows=len(working),
        seconds=seconds,
        coverage=min(span.coverage for span in (*resting, *working)),
        sample_interval_ms=power.interval_ns / 1e6,
        change_interval_ms=_change_interval_ms(power),
    )


def _interval(values: list[float]) -> Interval | None:
    """Return Student's 95 % interval of the mean; None of fewer than three windows."""
    if len(values) < 3:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile(0.975, len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def _change_interval_ms(power: _Power) -> float | None:
    """Return the median time between two values that differ: no sensor that changes more slowly was sampled in vain unnoticed."""
    changes = power.t_ns[1:][np.diff(power.microwatts) != 0]
    return float(np.median(np.diff(changes))) / 1e6 if len(changes) > 1 else None
