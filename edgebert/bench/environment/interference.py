"""What else ran while the arms were timed, from the computer's counters before and after the blocks of every launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgebert.bench.environment.computer import Activity, other_busy_ratio, steal_ratio
from edgebert.bench.schema import Interference


def interference_of(pairs: Sequence[tuple[Activity, Activity]], own_cpu_s: float) -> Interference:
    """Return what else ran.

    Args:
        pairs: activity before and after the blocks of each launch.
        own_cpu_s: processor seconds of the workers in between.
    """
    before, after = spanned(pairs)
    return Interference(
        load_before=before.load,
        load_after=after.load,
        steal_ratio=steal_ratio(before, after),
        other_busy_ratio=other_busy_ratio(before, after, own_cpu_s),
        swap_used_bytes=after.swap_used_bytes,
        pressure_before=before.pressure,
        pressure_after=after.pressure,
        quota_before=before.quota,
        quota_after=after.quota,
    )


def spanned(pairs: Sequence[tuple[Activity, Activity]]) -> tuple[Activity, Activity]:
    """Return one pair of activities that differ by what the counters moved within all pairs, and not in between.

    >>> def at(tick): return Activity(load=(), ticks=(0, 0, tick), throttle_events=tick, swap_used_bytes=0)
    >>> before, after = spanned([(at(0), at(10)), (at(50), at(55))])
    >>> after.ticks, after.throttle_events
    ((0, 0, 15), 15)
    """
    first, last = pairs[0][0], pairs[-1][1]
    ticks = [
        [late - early for early, late in zip(before.ticks, after.ticks, strict=True)]
        for before, after in pairs
        if before.ticks is not None and after.ticks is not None
    ]
    events = [
        after.throttle_events - before.throttle_events
        for before, after in pairs
        if before.throttle_events is not None and after.throttle_events is not None
    ]
    moved = None
    if first.ticks is not None and ticks:
        stolen, idle, everything = (
            start + sum(column) for start, column in zip(first.ticks, zip(*ticks, strict=True), strict=True)
        )
        moved = (stolen, idle, everything)
    throttled = None if first.throttle_events is None or not events else first.throttle_events + sum(events)
    return first, replace(last, ticks=moved, throttle_events=throttled)
