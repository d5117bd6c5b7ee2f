"""The formulas of the harness, on plain numbers and arrays; nothing here knows where they came from.

A percentile is the nearest rank, ceil(n p), of all values: nothing is interpolated and no outlier is deleted.

>>> percentile(np.array([5, 1, 3, 2, 4]), 0.5)
3
>>> minimum_queries(0.99)
299
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
RESAMPLES = 2_000  # bench.md, section 4.2

STEADY_WINDOWS = 4

_Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
_MIN_BLOCKS = 5  # below this a bootstrap over blocks says nothing: 5 blocks have 126 distinct resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The time of one arm over the time of another, from interleaved blocks.

    Attributes:
        ratio: above 1 means the second arm is slower.
        ci95: bootstrap over rounds; holds within this run only. None with fewer than five rounds.
        rounds: how many rounds of blocks entered.
    """

    ratio: float
    ci95: Interval | None
    rounds: int


def percentile(values: IntArray, share: float) -> int:
    """Return the nearest-rank percentile: the ceil(n * share)-th smallest value.

    Args:
        values: at least one number.
        share: in (0, 1].
    """
    rank = nearest_rank(values.size, share)
    return int(np.partition(values, rank - 1)[rank - 1])


def nearest_rank(count: int, share: float) -> int:
    """Return ceil(count * share), from 1 to `count`, safe from rounding (0.99 * 100 is 99, not 100)."""
    assert count >= 1
    assert 0 < share <= 1
    return min(count, max(1, math.ceil(round(count * share, 9))))


def minimum_queries(share: float, *, confidence: float = CONFIDENCE, exceedances: int = 0) -> int:
    """Return the fewest queries from which an upper bound on a percentile can be stated (bench.md, section 4.2).

    The (n - exceedances)-th smallest of n independent queries lies below the percentile with the probability that at
    most `exceedances` of them exceed it. That must fall to 1 - `confidence`.
    """
    count = exceedances + 1
    while _at_most(exceedances, count, 1 - share) > 1 - confidence:
        count += 1
    return count


def percentile_upper_bound(values: IntArray, share: float, *, confidence: float = CONFIDENCE) -> int | None:
    """Return x such that the true percentile is at most x with `confidence`, or None with too few values.

    The order statistic whose rank k is the smallest with P(Binomial(n, share) <= k - 1) >= `confidence`; it assumes
    independent queries (bench.md, section 4.2: "a one-sided binomial upper bound").
    """
    reaches = np.flatnonzero(_binomial_cdf(values.size, share)[: values.size] >= confidence)
    if not reaches.size:
        return None
    return int(np.partition(values, reaches[0])[reaches[0]])


def wilson_interval(successes: int, count: int) -> Interval:
    """Return the 95 % Wilson score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1)."""
    assert 0 <= successes <= count
    assert count > 0
    share, z2 = successes / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # At 0 and n the bound is exactly 0 and 1; only rounding says otherwise.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == count else min(1.0, centre + half)
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p of McNemar's test.

    Args:
        only_first: images that only the first classifier gets right.
        only_second: images that only the second gets right.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    tail = float(_binomial_cdf(discordant, 0.5)[min(only_first, only_second)])
    return min(1.0, 2 * tail)


def block_bootstrap(blocks: Sequence[IntArray], shares: Sequence[float], *, seed: int) -> tuple[Interval | None, ...]:
    """Return the 95 % bootstrap interval of each percentile of the pooled values; blocks are what is resampled.

    Queries of a block are correlated, blocks less so; resampling queries would claim a precision that is not there
    (bench.md, section 4.1). None where there are fewer than five blocks.

    Args:
        blocks: values of each block, none empty.
        shares: percentiles in (0, 1).
        seed: of the resampling.
    """
    if len(blocks) < _MIN_BLOCKS:
        return tuple(None for _ in shares)
    generator = np.random.default_rng([seed, 3])
    estimates = np.empty((RESAMPLES, len(shares)))
    for resample in range(RESAMPLES):
        pooled = np.concatenate([blocks[pick] for pick in generator.integers(len(blocks), size=len(blocks))])
        ranks = [nearest_rank(pooled.size, share) - 1 for share in shares]
        estimates[resample] = np.partition(pooled, ranks)[ranks]
    return tuple(_percentile_interval(estimates[:, column]) for column in range(len(shares)))


def interleaved_ratio(first: FloatArray, second: FloatArray, *, seed: int) -> Contrast:
    """Return how much longer the second arm takes, from blocks that alternate with the first arm's.

    A round is a random order of the arms followed by its mirror image (ABBA or BAAB for two), so a linear drift falls
    out of d = mean(log B1, log B2) - mean(log A1, log A2). The estimate is exp(median of d) (bench.md, section 4.2).

    Args:
        first: (rounds, 2) float64, median time of the first arm's two blocks in each round, above 0.
        second: the same of the second arm.
        seed: of the bootstrap over rounds.
    """
    assert first.shape == second.shape == (len(first), 2)
    assert len(first) >= 1
    differences = np.log(second).mean(axis=1) - np.log(first).mean(axis=1)
    ratio = float(np.exp(np.median(differences)))
    if len(differences) < _MIN_BLOCKS:
        return Contrast(ratio=ratio, ci95=None, rounds=len(differences))
    picks = np.random.default_rng([seed, 4]).integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = _percentile_interval(np.exp(np.median(differences[picks], axis=1)))
    return Contrast(ratio=ratio, ci95=(low, high), rounds=len(differences))


def tukey_outliers(values: IntArray) -> tuple[int, int]:
    """Count values above the upper quartile by more than 1.5 (mild) and more than 3 (severe) interquartile ranges.

    Only slow values are counted, a severe one is not counted as mild, and none is ever removed (Tukey 1977).
    """
    low, high = percentile(values, 0.25), percentile(values, 0.75)
    above = values - high
    severe = int(np.count_nonzero(above > 3.0 * (high - low)))
    return int(np.count_nonzero(above > 1.5 * (high - low))) - severe, severe


def is_steady(medians: Sequence[float]) -> bool:
    """Say whether the medians of the last four windows of a warm-up lie within 2 % (bench.md, section 8)."""
    last = medians[-STEADY_WINDOWS:]
    return len(last) == STEADY_WINDOWS and max(last) <= 1.02 * min(last)


def _percentile_interval(estimates: FloatArray) -> Interval:
    ordered = np.sort(estimates)
    tail = (1 - CONFIDENCE) / 2
    low = ordered[nearest_rank(ordered.size, tail) - 1]
    return float(low), float(ordered[nearest_rank(ordered.size, 1 - tail) - 1])


def _at_most(most: int, count: int, share: float) -> float:
    """Return P(Binomial(count, share) <= most) for a small `most`."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(most + 1))


def _binomial_cdf(count: int, share: float) -> FloatArray:
    """Return P(Binomial(count, share) <= k) for k = 0 … count, by logarithms so that large counts do not underflow."""
    successes = range(count + 1)
    constant = math.lgamma(count + 1)
    logarithms = np.array(
        [
            constant
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * math.log(share)
            + (count - k) * math.log1p(-share)
            for k in successes
        ]
    )
    cumulative: FloatArray = np.minimum(np.cumsum(np.exp(logarithms)), 1.0)
    return cumulative
