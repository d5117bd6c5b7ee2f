"""What the sampler saw while timing: one row of integers for each tenth of a second, and what follows from it.

>>> telemetry = Telemetry(t_ns=np.array([0, 100]), columns={"throttle_events": np.array([3, 4])}, reasons={}, coverage={})
>>> throttled_blocks(telemetry, np.array([10]), np.array([90]))
array([ True])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.environment.source import MISSING
from edgebert.bench.samples import TELEMETRY, IntArray, Samples

BoolArray = NDArray[np.bool_]

# Counters whose movement means that the processor was slowed down or taken away (bench.md, section 12).
THROTTLE_COUNTERS = ("throttle_events", "throttle_ms", "quota_events", "quota_us", "oc1_events", "oc2_events")

# States of a Jetson whose being above 0 means that it is slowed down now (tensorrt_jetson.md, section 8.3).
THROTTLE_STATES = ("throttle_alerts", "gpu_cap_state")

_LOW_CLOCK = 0.95  # of the median
_LOW_SHARE = 0.01  # of the time
_REWARM_SHARE = 0.1  # the first queries of a block count for nothing (bench.md, section 4.2), nor does their clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Samples of the sensors.

    Attributes:
        t_ns: (samples,) int64, time of `time.perf_counter_ns`, the clock of the queries' stamps.
        columns: sensor -> (samples,) int64, -1 where a value is missing; names end with the unit.
        reasons: sensor that is not there -> why.
        coverage: sensor -> share of the expected samples that have a value, in [0, 1].
        origins: sensor -> where it was read.
        cost_cpu_s: processor time that the sampler used while it sampled, its start not included; None where it was killed.
        warnings: what went wrong with the sampler.
    """

    t_ns: IntArray
    columns: Mapping[str, IntArray]
    reasons: Mapping[str, str]
    coverage: Mapping[str, float]
    origins: Mapping[str, str] = field(default_factory=dict)
    cost_cpu_s: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sees_throttling(self) -> bool:
        """Whether a clock or a thermal counter was read at all; without one, no block can be found throttled by heat."""
        telling = ("clock_khz", "throttle_events", *THROTTLE_STATES)
        return any(np.any(self.columns[name] != MISSING) for name in telling if name in self.columns)


def throttled_blocks(
    telemetry: Telemetry,
    block_starts_ns: IntArray,
    block_ends_ns: IntArray,
    *,
    groups: IntArray | None = None,
) -> BoolArray:
    """Say which blocks were throttled: a counter moved, a state was raised, or the clock was low (bench.md, section 12).

    A counter moved in a block if it differs between the last sample before the block and the first one after it, so an
    event in the tenth of a second around a block counts for it; so does a state that one of these samples, or one between
    them, shows raised. The clock is low where it is below 95 % of the median
    over all blocks of the same group, for more than 1 % of the block's samples; the first tenth of a block, whose
    queries are left out as well, is not judged.

    Args:
        telemetry: of the run.
        block_starts_ns: (blocks,) int64, clock of `telemetry.t_ns`.
        block_ends_ns: (blocks,) int64.
        groups: (blocks,) int64, such as the arm of each block: code with wide vectors lowers the clock by design, and
            is compared with itself only. All blocks are one group where it is None.

    Returns:
        (blocks,) bool; False where nothing was read, see `Telemetry.sees_throttling`.
    """
    starts, ends = np.asarray(block_starts_ns, np.int64), np.asarray(block_ends_ns, np.int64)
    throttled = np.zeros(len(starts), np.bool_)
    for name in THROTTLE_COUNTERS:
        if name in telemetry.columns:
            throttled |= _moved(telemetry.t_ns, telemetry.columns[name], starts, ends)
    for name in THROTTLE_STATES:
        if name in telemetry.columns:
            throttled |= _raised(telemetry.t_ns, telemetry.columns[name], starts, ends)
    if "clock_khz" in telemetry.columns:
        alike = np.zeros(len(starts), np.int64) if groups is None else np.asarray(groups, np.int64)
        throttled |= _low(telemetry.t_ns, telemetry.columns["clock_khz"], starts, ends, alike)
    return throttled


def _moved(t_ns: IntArray, counter: IntArray, starts: IntArray, ends: IntArray) -> BoolArray:
    known = counter != MISSING
    times, values = t_ns[known], counter[known]
    if len(times) == 0:
        return np.zeros(len(starts), np.bool_)
    before = np.maximum(np.searchsorted(times, starts, side="right") - 1, 0)
    after = np.minimum(np.searchsorted(times, ends, side="left"), len(times) - 1)
    moved: BoolArray = values[np.maximum(after, before)] != values[before]
    return moved


def _raised(t_ns: IntArray, state: IntArray, starts: IntArray, ends: IntArray) -> BoolArray:
    known = state != MISSING
    times, values = t_ns[known], state[known] > 0
    first = np.maximum(np.searchsorted(times, starts, side="right") - 1, 0)
    last = np.searchsorted(times, ends, side="left") + 1
    return np.array([bool(values[begin:end].any()) for begin, end in zip(first, last, strict=True)], np.bool_)


def _low(t_ns: IntArray, clock: IntArray, starts: IntArray, ends: IntArray, groups: IntArray) -> BoolArray:
    known = clock != MISSING
    times, values = t_ns[known], clock[known]
    first = np.searchsorted(times, starts + np.round((ends - starts) * _REWARM_SHARE).astype(np.int64))
    last = np.searchsorted(times, ends, side="right")
    within = [values[begin:end] for begin, end in zip(first, last, strict=True)]
    low = np.zeros(len(starts), np.bool_)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        together = np.concatenate([within[index] for index in members])
        if len(together) == 0:
            continue
        limit = _LOW_CLOCK * float(np.median(together))
        for index in members:
            low[index] = len(within[index]) > 0 and float(np.mean(within[index] < limit)) > _LOW_SHARE
    return low


def columns_of_telemetry(telemetry: Telemetry) -> dict[str, IntArray]:
    """Return the samples as columns of a run: `telemetry_t_ns`, and one `telemetry_…` for each sensor."""
    named = {"t_ns": telemetry.t_ns, **telemetry.columns}
    return {f"{TELEMETRY}{name}": np.asarray(column, np.int64) for name, column in named.items()}


def telemetry_of_columns(samples: Samples) -> Telemetry | None:
    """Return what `columns_of_telemetry` was given, without reasons; None where the sampler did not run."""
    named = {
        name.removeprefix(TELEMETRY): column for name, column in samples.columns.items() if name.startswith(TELEMETRY)
    }
    if "t_ns" not in named:
        return None
    return Telemetry(t_ns=named.pop("t_ns"), columns=named, reasons={}, coverage={})
