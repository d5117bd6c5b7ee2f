"""The search for the largest rate of arrivals at which a latency bound is kept, on a fixed grid of rates.

A grid, so that the point number of a rate is the same in every launch and for every arm: 16 rates for each doubling, 4.4 % apart.

>>> rate_mhz(GRID_ONE), rate_mhz(GRID_ONE + 16)  # 1 and 2 arrivals per second
(1000, 2000)
>>> search(lambda point, attempt: point <= 700, start=690)
Search(limit=700, confirmed=True, probes=7)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgebert.bench.statistics.formulas import percentile_upper_bound

GRID_STEPS = 16  # for each doubling
GRID_ONE = 160  # the point of one arrival per second; point 0 is one in a quarter of an hour
_FIRST_STEP = 4  # of the bracketing: 19 %
_MAX_UP = 8 * GRID_STEPS  # 256 times the first rate
_MAX_DOWN = 3 * GRID_STEPS  # an eighth of it: a bound that is not kept there is missed for reasons other than the rate
_CONFIRMATIONS = 3


@dataclass(frozen=True, slots=True)
class Search:
    """What was found: the point on the grid, whether a probe with another seed kept the bound there too, and how many were made."""

    limit: int | None
    confirmed: bool
    probes: int


def rate_mhz(point: int) -> int:
    """Return arrivals per 1,000 s of a point of the grid."""
    return max(1, round(1_000 * 2 ** ((point - GRID_ONE) / GRID_STEPS)))


def point_of_rate(rate: float) -> int:
    """Return the point nearest to `rate` arrivals per second."""
    return max(0, GRID_ONE + round(GRID_STEPS * math.log2(rate)))


def keeps_bound(within: int, arrived: int, share: float) -> bool:
    """Say whether at least `share` of the arrivals are answered within the bound, with 95 % confidence on one side.

    The exact binomial test (Clopper and Pearson 1934), the one behind the upper bound of a percentile: it takes 299 queries without
    a late one for a share of 0.99. It takes queries as independent, which those of one queue are not; hence the confirming run.
    """
    late = np.repeat([0, 1], [within, arrived - within])  # int64 (arrived,)
    return arrived > 0 and percentile_upper_bound(late, share) == 0


def late_allowed(arrived: int, share: float) -> int:
    """Return how many of so many arrivals may be late for `keeps_bound`; -1 where there are too few to say."""
    low, high = -1, arrived  # allowed, not allowed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps_bound(arrived - middle, arrived, share) else (low, middle)
    return low


def search(kept: Callable[[int, int], bool], *, start: int) -> Search:
    """Return the largest point at which the bound is kept: bracketing by steps that double, bisection, confirmation.

    A limit that its confirming probe does not keep was luck; then the next lower point needs two probes that keep it.

    Args:
        kept: called with a point and the number of the attempt there, from 0; runs a probe, says whether it kept the bound.
        start: the point to begin at.
    """
    attempts: dict[int, list[bool]] = {}

    def probe(point: int) -> bool:
        found = attempts.setdefault(point, [])
        found.append(kept(point, len(found)))
        return found[-1]

    low, high = _bracket(probe, start)
    if low is None:
        return Search(None, False, _count(attempts))
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if probe(middle) else (low, middle)
    for point in range(low, max(-1, low - _CONFIRMATIONS), -1):
        if (point in attempts or probe(point)) and all(attempts[point]) and probe(point):
            return Search(point, True, _count(attempts))
    steady = [point for point, found in attempts.items() if all(found)]
    return Search(max(steady, default=None), False, _count(attempts))


def _bracket(probe: Callable[[int], bool], start: int) -> tuple[int | None, int | None]:
    """Return a point that keeps the bound and a higher one that does not; None where there is none in reach."""
    step, point = _FIRST_STEP, start
    if probe(start):
        while point - start < _MAX_UP:
            if not probe(point + step):
                return point, point + step
            point, step = point + step, 2 * step
        return point, None
    while point > max(0, start - _MAX_DOWN):
        lower = max(0, start - _MAX_DOWN, point - step)
        if probe(lower):
            return lower, point
        point, step = lower, 2 * step
    return None, point


def _count(attempts: dict[int, list[bool]]) -> int:
    return sum(map(len, attempts.values()))
