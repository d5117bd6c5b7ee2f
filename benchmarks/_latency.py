"""Latency of several opened models in one interleaved run: what this shared computer does meanwhile hits all alike.

A round is a random order of the models followed by its mirror image, so that a linear drift falls out (bench.md, section 4.2).
In each of its blocks a model answers one image at a time; the first queries of a block only warm it up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.schedule import order_of_blocks, rewarm_queries
from edgebert.runtime.runner import Runner

BLOCK_NS = 30_000_000  # small blocks, so that many rounds fit into the minutes that a computer stays alike
_QUERIES = (5, 2_000)  # of a block, at least and at most
_WARMUP = 20


def interleaved_medians(
    runners: Sequence[Runner], images: NDArray[np.uint8], *, rounds: int, seed: int
) -> NDArray[np.float64]:
    """Return the median time of a query in every block, in ns: float64 (runners, rounds, 2).

    Args:
        runners: the opened models; all take the same images.
        images: uint8 (images, height, width, 3), answered in turn.
        rounds: of blocks.
        seed: of the order.
    """
    queries = [_block_queries(_query_times(runner, images, _WARMUP)) for runner in runners]
    medians = np.empty((len(runners), rounds, 2))
    for number, order in enumerate(order_of_blocks(arms=len(runners), rounds=rounds, seed=seed)):
        for place, index in enumerate(order.tolist()):
            times = _query_times(runners[index], images, queries[index])
            # The second half of a round is the mirror image of the first, and holds each model's second block.
            half = int(place >= len(runners))
            medians[index, number, half] = np.median(times[rewarm_queries(queries[index]) :])
    return medians


def _query_times(runner: Runner, images: NDArray[np.uint8], queries: int) -> NDArray[np.int64]:
    """Return the time of each query in ns, int64 (queries,)."""
    times = np.empty(queries, np.int64)
    for query in range(queries):
        at = query % len(images)
        image = images[at : at + 1]  # (1, height, width, 3)
        started = time.perf_counter_ns()
        runner.infer(image)
        times[query] = time.perf_counter_ns() - started
    return times


def _block_queries(times: NDArray[np.int64]) -> int:
    least, most = _QUERIES
    return int(np.clip(BLOCK_NS // max(1, int(np.median(times[_WARMUP // 2 :]))), least, most))
