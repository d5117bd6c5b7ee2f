"""How late an open loop issues queries although nothing is in their way: the harness's own share of a latency.

>>> due, done = np.array([0, 100, 200]), np.array([50, 250, 300])
>>> late_by(due, np.array([1, 103, 250]), done).tolist()  # the third came while the second was worked on
[1, 3]
"""

from __future__ import annotations

import heapq

import numpy as np

from edgebert.bench.samples import IntArray
from edgebert.bench.schema import Lateness
from edgebert.bench.statistics.formulas import percentile


def late_by(due: IntArray, issued: IntArray, done: IntArray, *, servers: int = 1) -> IntArray:
    """Return how long after it was due each query was issued that found a server idle; int64 (such queries,) nanoseconds.

    Args:
        due: (queries,) when each was due, ascending; one run of arrivals, without those that nobody looked at.
        issued: when each was issued.
        done: when each was answered, or failed.
        servers: that work side by side, and take queries in order.
    """
    free = [-(2**63)] * servers  # from when on each server has nothing to do
    idle = np.zeros(len(due), np.bool_)
    for place, (at, end) in enumerate(zip(due.tolist(), done.tolist(), strict=True)):
        idle[place] = free[0] < at
        heapq.heapreplace(free, end)
    late: IntArray = (issued - due)[idle]
    return late


def lateness_of(late: IntArray) -> Lateness | None:
    """Return the summary of what `late_by` found, of all runs together; None where no query found an idle server."""
    if not len(late):
        return None
    return Lateness(p50=percentile(late, 0.5), p99=percentile(late, 0.99), max=int(late.max()), n=len(late))
