"""Models that are asked the same and timed in turn: answers to all images, and interleaved blocks of single ones.

What runs where a form is for: `edgebert.export.verdict_measure` on this computer, `edgebert.remote.device_engine` on a device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebert.runtime.runner import Runner

IntArray: TypeAlias = NDArray[np.int64]
Times: TypeAlias = list[list[list[IntArray]]]  # by model, round and block: nanoseconds

TIMED_IMAGES = 256  # distinct ones, so that no cache is filled by repetition

_BATCH = 32
_BLOCK_NS = 100_000_000
_MIN_QUERIES, _MAX_QUERIES = 3, 5_000  # of a block
_ROUNDS, _MIN_ROUNDS = 12, 5  # ABBA or BAAB each; below five there is no interval (edgebert.bench.statistics.formulas)
_WARMUP_NS, _MIN_WARMUP = 300_000_000, 3


def answers_of(runner: Runner, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes): what a model answers to uint8 (images, height, width, 3)."""
    return np.concatenate([runner.infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


def timed_rounds(
    infers: Sequence[Callable[[NDArray[np.uint8]], object]],
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
    quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Times:
    """Time models in interleaved blocks, two of them A B B A, then B A A B, and so on.

    How much is timed is decided after the warm-up, before anything is timed: there is no looking at results and going on. Both
    blocks of a pair take the same images. The first tenth of a block, in which the other model's traces leave the
    caches, is not counted.

    Args:
        infers: models, each called with uint8 (1, height, width, 3).
        images: uint8 (images, height, width, 3).
        max_seconds: of all blocks, at most, as far as the warm-up tells; one round is always timed.
        clock: gives nanoseconds.
        quiet: entered around the warm-ups and around each half of a round, so that nothing else is done meanwhile.

    Returns:
        by model, round and block (two in each round): int64 (queries,) nanoseconds.
    """
    single = [images[index : index + 1] for index in range(len(images))]
    medians = []
    for infer in infers:
        with quiet():
            medians.append(_warmed_up(infer, single, clock))
    queries = [min(_MAX_QUERIES, max(_MIN_QUERIES, math.ceil(_BLOCK_NS / median))) for median in medians]
    round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    if round_ns * _MIN_ROUNDS > max_seconds * 1e9:  # slow models: smaller blocks before fewer rounds
        share = max_seconds * 1e9 / (round_ns * _MIN_ROUNDS)
        queries = [max(_MIN_QUERIES, math.floor(count * share)) for count in queries]
        round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    rounds = max(1, min(_ROUNDS, math.floor(max_seconds * 1e9 / round_ns)))
    times: Times = [[] for _ in infers]
    forward = tuple(range(len(infers)))
    orders = (forward, forward[::-1])
    for number in range(rounds):
        for arm in times:
            arm.append([])
        for half, order in enumerate(orders if number % 2 == 0 else orders[::-1]):
            start = (2 * number + half) * max(queries)
            with quiet():
                blocks = {index: _block(infers[index], single, start, queries[index], clock) for index in order}
            for index, block in blocks.items():
                times[index][-1].append(block[math.ceil(len(block) / 10) :])
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
