"""What the blocks of one arm say: the interval of a percentile, and how many independent queries they are worth.

>>> generator = np.random.default_rng(0)
>>> launches = [[generator.integers(900, 1_100, 50) for _ in range(6)] for _ in range(5)]
>>> ((low, high),) = hierarchical_bootstrap(launches, [0.5], seed=0)
>>> 980 < low < high < 1_020
True
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.statistics.formulas import (
    CONFIDENCE,
    RESAMPLES,
    FloatArray,
    IntArray,
    Interval,
    percentile,
    percentile_interval,
)
from edgebert.bench.statistics.student_t import expanded_confidence

_MIN_BLOCKS = 5  # in all launches; five blocks have 126 distinct resamples, fewer say nothing
_CHUNK_ITEMS = 4_000_000  # of a table at a time: 32 MB


def hierarchical_bootstrap(
    launches: Sequence[Sequence[IntArray]], shares: Sequence[float], *, seed: int
) -> tuple[Interval | None, ...]:
    """Return the 95 % interval of each percentile of the pooled values; launches are resampled, then blocks in them.

    2,000 resamples (bench.md, section 4.2), the percentiles of these expanded for the number of launches, or of blocks where
    there is one launch: without that five launches cover 84 % (docs/bench-statistics.md). Below five launches it is too
    narrow even so. None where there are fewer than five blocks.

    No value is copied: a resample is how often each block was drawn, and its percentile the value at which the summed counts
    reach the nearest rank, found exactly.

    Args:
        launches: for each launch the values of its blocks, none empty.
        shares: percentiles in (0, 1).
        seed: of the resampling.
    """
    blocks = [block for launch in launches for block in launch]
    if len(blocks) < _MIN_BLOCKS:
        return tuple(None for _ in shares)
    draws = _block_draws([len(launch) for launch in launches], np.random.default_rng([seed, 7]))
    estimates = weighted_percentiles(blocks, draws, shares)
    confidence = expanded_confidence(len(launches) if len(launches) > 1 else len(blocks), CONFIDENCE)
    return tuple(percentile_interval(estimates[:, column], confidence=confidence) for column in range(len(shares)))


def weighted_percentiles(blocks: Sequence[IntArray], draws: FloatArray, shares: Sequence[float]) -> FloatArray:
    """Return float64 (resamples, shares): nearest-rank percentiles of pools that hold blocks as often as they were drawn.

    Args:
        blocks: values of each block, none empty.
        draws: (resamples, blocks) whole numbers as float64, at least one above 0 in each row.
        shares: percentiles in (0, 1).
    """
    sizes = np.array([block.size for block in blocks])
    assert sizes.all()
    owners, values = np.repeat(np.arange(len(blocks)), sizes), np.concatenate(blocks)
    order = np.argsort(values, kind="stable")
    owners, values = owners[order], values[order]  # of the pool, ascending
    step = max(1, math.isqrt(values.size))
    cells = np.arange(values.size) // step
    counts = np.zeros((len(blocks), int(cells[-1]) + 1))
    np.add.at(counts, (owners, cells), 1)
    up_to = counts.cumsum(axis=1)  # (blocks, cells): values of the block up to the end of the cell
    estimates = np.empty((len(draws), len(shares)))
    for rows in _chunks(len(draws), max(step, up_to.shape[1], len(blocks))):
        drawn = draws[rows]
        reached = drawn @ up_to  # (resamples, cells), whole numbers below 2^53: exact
        for column, share in enumerate(shares):
            estimates[rows, column] = values[_positions(drawn, reached, owners, step, share)]
    return estimates


def effective_queries(blocks: Sequence[IntArray], *, share: float = 0.5) -> float:
    """Return how many independent queries would know the percentile as well as these do; at most as many as there are.

    The share f of a block's queries at or below the pooled percentile is averaged over B blocks; its variance is s_f^2 tau /
    B, with tau = 1 + 2 sum of the autocorrelations of f over blocks, summed in pairs while these are positive (Geyer 1992,
    section 3.3). n independent queries would give f (1 - f) / n. Unlike the mean's, this n does not hang on a few outliers.

    Args:
        blocks: values of each block in the order they ran, launch after launch; none empty.
        share: percentile in (0, 1).
    """
    assert blocks
    values = np.concatenate(blocks)
    threshold = percentile(values, share)
    weights = np.array([block.size for block in blocks]) / values.size
    shares = np.array([np.mean(block <= threshold) for block in blocks])
    pooled = float(weights @ shares)
    if len(blocks) < 2 or pooled in (0.0, 1.0):
        return float(values.size)
    deviations = (shares - pooled) * weights * len(blocks)  # equal to the plain ones where blocks are of one size
    variance = float(deviations @ deviations) / (len(blocks) - 1) / len(blocks) * _correlation_time(deviations)
    if variance == 0:
        return float(values.size)
    return min(float(values.size), max(1.0, pooled * (1 - pooled) / variance))


def _correlation_time(series: FloatArray) -> float:
    """Return tau >= 1 of a series of mean about 0."""
    scale = float(series @ series)
    if scale == 0:
        return 1.0
    correlations = [float(series[lag:] @ series[: len(series) - lag]) / scale for lag in range(len(series))]
    total = -1.0
    for even in range(0, len(correlations) - 1, 2):
        pair = correlations[even] + correlations[even + 1]
        if pair <= 0:
            break
        total += 2 * pair
    return max(1.0, total)


def _block_draws(blocks_of: Sequence[int], generator: np.random.Generator) -> FloatArray:
    """Return float64 (RESAMPLES, blocks): how often each block is drawn, launches first and then blocks of each."""
    launches = len(blocks_of)
    picks = generator.integers(launches, size=(RESAMPLES, launches))
    times = np.stack([(picks == launch).sum(axis=1) for launch in range(launches)], axis=1)  # (resamples, launches)
    drawn = [
        generator.multinomial(times[:, launch] * count, np.full(count, 1 / count))
        for launch, count in enumerate(blocks_of)
    ]
    return np.concatenate(drawn, axis=1).astype(np.float64)


def _positions(
    drawn: FloatArray, reached: FloatArray, owners: NDArray[np.int64], step: int, share: float
) -> NDArray[np.int64]:
    """Return where in the ascending pool each resample reaches its nearest rank: the cell first, then within it."""
    totals = reached[:, -1]
    ranks = np.clip(np.ceil(np.round(totals * share, 9)), 1, totals)  # as `nearest_rank`
    cell = np.argmax(reached >= ranks[:, None], axis=1)
    rows = np.arange(len(drawn))
    before = np.where(cell > 0, reached[rows, cell - 1], 0.0)
    inside = cell[:, None] * step + np.arange(step)  # (resamples, step)
    weights = drawn[rows[:, None], owners[np.minimum(inside, len(owners) - 1)]]
    positions: NDArray[np.int64] = cell * step + np.argmax(
        before[:, None] + weights.cumsum(axis=1) >= ranks[:, None], axis=1
    )
    return positions


def _chunks(count: int, width: int) -> Iterator[slice]:
    size = max(1, _CHUNK_ITEMS // width)
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
