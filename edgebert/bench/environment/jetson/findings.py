"""What slowed a Jetson down while a run was timed, from the sampler's columns (tensorrt_jetson.md, section 8.3).

Three kinds of evidence: counters of the regulators, as the difference over the timed spans; cooling devices that were at work; and a
GPU clock below 99 % of its ceiling. The third is proof only where the clocks were held: a governor lowers them too.

>>> seen = Telemetry(
...     t_ns=np.array([0, 10, 20]), columns={"oc2_events": np.array([7, 7, 9])}, reasons={}, coverage={}
... )
>>> [(found.throttled, found.text) for found in slow_down_findings(seen, [(5, 20)])]
[(True, 'oc2 (average current above its limit): 2 events while timing')]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgebert.bench.environment.jetson.heat import OVER_CURRENT
from edgebert.bench.environment.source import MISSING
from edgebert.bench.environment.telemetry import BoolArray, Telemetry
from edgebert.bench.samples import IntArray, Samples

FULL_CLOCK = 0.99  # of the ceiling: not throttled (section 8.3)
_LOW_SHARE = 0.01  # of the samples that count; as for the processor's clock
_BUSY_PERMILLE = 900  # the governor has no reason to lower the clock of a GPU that works so much
_HARMLESS = 3  # momentary over-current: climbs in MAXN_SUPER without heat, so it is told and decides nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDown:
    """Something that was seen.

    Attributes:
        throttled: whether it means that the chip was slowed down; otherwise it is to be told.
        text: what, in one clause.
    """

    throttled: bool
    text: str


def slow_down_findings(telemetry: Telemetry, spans: Sequence[tuple[int, int]]) -> tuple[SlowDown, ...]:
    """Return what was seen within the timed spans.

    Args:
        telemetry: of the run; without a Jetson's columns nothing is found.
        spans: begin and end of what was timed, on the clock of `telemetry.t_ns`.
    """
    inside = np.zeros(len(telemetry.t_ns), np.bool_)
    for start, end in spans:
        inside |= (telemetry.t_ns >= start) & (telemetry.t_ns <= end)
    return (*_over_current(telemetry, spans), *_cooling(telemetry, inside), *_sag(telemetry, inside))


def timed_spans(samples: Samples) -> list[tuple[int, int]]:
    """Return begin and end of the blocks of each launch."""
    starts = samples["block_start_ns"]
    ends = starts + samples["block_wall_ns"]
    launches = samples["block_launch"]
    own = [launches == launch for launch in np.unique(launches)]
    return [(int(starts[chosen].min()), int(ends[chosen].max())) for chosen in own]


def counted(telemetry: Telemetry, column: str, spans: Sequence[tuple[int, int]]) -> int | None:
    """Return by how much a cumulative counter grew within the spans, None where it was not read.

    From the last value before a span, or the first in it, to the last in it; a counter that begins anew counts for nothing.
    """
    values = telemetry.columns.get(column)
    if values is None:
        return None
    known = values != MISSING
    times, values = telemetry.t_ns[known], values[known]
    if not len(times):
        return None
    grown = 0
    for start, end in spans:
        first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
        last = int(np.searchsorted(times, end, side="right")) - 1
        if last > first:
            grown += max(0, int(values[last] - values[first]))
    return grown


def _over_current(telemetry: Telemetry, spans: Sequence[tuple[int, int]]) -> Iterator[SlowDown]:
    for number, meaning in OVER_CURRENT.items():
        events = counted(telemetry, f"oc{number}_events", spans)
        if events:
            note = "; seen in MAXN_SUPER without heat, so it decides nothing" if number == _HARMLESS else ""
            text = f"oc{number} ({meaning}): {events} event{'s' if events > 1 else ''} while timing{note}"
            yield SlowDown(throttled=number != _HARMLESS, text=text)


def _cooling(telemetry: Telemetry, inside: BoolArray) -> Iterator[SlowDown]:
    for column, what in (
        ("throttle_alerts", "a throttle alert was raised"),
        ("gpu_cap_state", "heat capped the GPU's clock"),
    ):
        known = _known(telemetry, column, inside)
        raised = int(np.count_nonzero(known > 0))
        if raised:
            yield SlowDown(throttled=True, text=f"{what} in {raised} of {len(known)} samples while timing")


def _sag(telemetry: Telemetry, inside: BoolArray) -> Iterator[SlowDown]:
    """Compare the GPU's clock with its ceiling: a cooling device lowers the limit of the moment, so the highest one seen counts."""
    clock, lowest, highest = (
        telemetry.columns.get(name) for name in ("gpu_clock_khz", "gpu_clock_min_khz", "gpu_clock_max_khz")
    )
    if clock is None or highest is None or not len(clock):
        return
    ceiling = int(highest.max())
    held = lowest is not None and int(lowest.max()) >= ceiling > 0
    counts = inside & (clock > 0)  # a GPU that is gated has no clock
    load = telemetry.columns.get("gpu_load_permille")
    if not held:
        if load is None:
            return
        counts &= load >= _BUSY_PERMILLE
    seen = clock[counts]
    low = int(np.count_nonzero(seen < FULL_CLOCK * ceiling))
    if len(seen) == 0 or low <= _LOW_SHARE * len(seen):
        return
    where = f"below 99 % of {ceiling / 1_000:.0f} MHz in {low} of {len(seen)} samples"
    if held:
        yield SlowDown(throttled=True, text=f"the GPU's clock is held, and was {where}")
    else:
        why = "its governor or a limit lowered it, and with clocks that are not held the two cannot be told apart"
        yield SlowDown(throttled=False, text=f"the busy GPU's clock was {where}: {why} (sudo jetson_clocks)")


def _known(telemetry: Telemetry, column: str, inside: BoolArray) -> IntArray:
    values = telemetry.columns.get(column)
    if values is None:
        return np.zeros(0, np.int64)
    known: IntArray = values[inside & (values != MISSING)]
    return known
