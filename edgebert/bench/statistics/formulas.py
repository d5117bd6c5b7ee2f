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


def mlperf_bound(values: IntArray, share: float, *, confidence: float = 0.99) -> int | None:
    """Return MLPerf's early-stopping estimate of a percentile, or None with too few values (64 for p90, 662 for p99).

    Of n queries t is the largest number, from 1, with P(Binomial(n, 1 - share) <= t) < 1 - `confidence`: so few queries above
    the true percentile would be unlikely. The t - 1 slowest are put aside and the slowest of the rest is the estimate
    (LoadGen's `early_stopping.cc` and `results.cc`, tolerance 0).

    Args:
        values: queries of one arm, taken as independent.
        share: percentile in (0, 1).
        confidence: 0.99 in MLPerf's rules.
    """
    unlikely = np.flatnonzero(_binomial_cdf(values.size, 1 - share) < 1 - confidence)
    if not unlikely.size or unlikely[-1] < 1:
        return None
    place = values.size - int(unlikely[-1])  # 0-based: that of the t-th largest
    return int(np.partition(values, place)[place])


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


def paired_difference_interval(gained: int, lost: int, count: int) -> Interval:
    """Return the 95 % interval of the difference of two paired shares, (gained - lost) / count.

    Wald's interval after half an image was added to each of the four cells: Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions", section 2.

    Args:
        gained: images that only the second classifier gets right.
        lost: images that only the first gets right.
        count: of all images.
    """
    wider = count + 2
    centre = (gained - lost) / wider
    variance = (gained + lost + 1 - (gained - lost) ** 2 / wider) / wider**2
    half = _Z95 * math.sqrt(variance)
    return max(-1.0, centre - half), min(1.0, centre + half)


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


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the order given (Holm 1979): below alpha means rejected at alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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
    low, high = percentile_interval(np.exp(np.median(differences[picks], axis=1)))
    return Contrast(ratio=ratio, ci95=(low, high), rounds=len(differences))


def tukey_fences(values: IntArray) -> tuple[float, float]:
    """Return the values above which one is a mild and a severe outlier: only slow ones are (Tukey 1977).

    They lie 1.5 and 3 interquartile ranges above the upper quartile.
    """
    low, high = percentile(values, 0.25), percentile(values, 0.75)
    return high + 1.5 * (high - low), high + 3.0 * (high - low)


def is_steady(medians: Sequence[float]) -> bool:
    """Say whether a warm-up has settled: the medians of its last four windows lie within 2 % and show no trend.

    No trend: 0 lies in the interval of the Theil-Sen slope (bench.md, section 8). Of four windows that is all but a strict
    rise or fall, which windows without any trend show once in twelve times; the warm-up then takes one window more.
    """
    last = medians[-STEADY_WINDOWS:]
    if len(last) < STEADY_WINDOWS or max(last) > 1.02 * min(last):
        return False
    low, high = theil_sen_interval(last)
    return low <= 0 <= high


def theil_sen_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the Theil-Sen slope: the median of the slopes of all pairs, per step.

    Order statistics of the slopes, from the exact distribution of Kendall's statistic (Sen 1968, section 6). Below five
    values no interval has 95 %: then it is all slopes, which holds with 1 - 2 / n! (92 % for four).

    Args:
        values: at least two, evenly spaced.
        confidence: at least this where it can be had.
    """
    assert len(values) >= 2
    array = np.asarray(values, np.float64)
    early, late = np.triu_indices(len(array), 1)
    slopes = np.sort((array[late] - array[early]) / (late - early))
    cumulative = np.cumsum(_inversion_shares(len(array)))
    # The true slope lies below the k-th smallest (from 0) with P(inversions <= k): the largest k that the tail allows.
    cut = max(0, int(np.searchsorted(cumulative, (1 - confidence) / 2, side="right")) - 1)
    return float(slopes[cut]), float(slopes[len(slopes) - 1 - cut])


def percentile_interval(estimates: FloatArray, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the percentile bootstrap interval of estimates from resamples (Efron and Tibshirani 1993, section 13.3)."""
    ordered = np.sort(estimates)
    tail = max((1 - confidence) / 2, 1 / ordered.size)  # the extremes are the widest there is
    low = ordered[nearest_rank(ordered.size, tail) - 1]
    return float(low), float(ordered[nearest_rank(ordered.size, 1 - tail) - 1])


def _inversion_shares(count: int) -> FloatArray:
    """Return the share of orders of `count` things that have 0, 1, … inversions (Mahonian numbers over the factorial)."""
    shares = np.ones(1)
    for size in range(2, count + 1):
        shares = np.convolve(shares, np.full(size, 1 / size))
    return shares


def _at_most(most: int, count: int, share: float) -> float:
    """Return P(Binomial(count, share) <= most) for a small `most`."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(most + 1))


def _binomial_cdf(count: int, share: float) -> FloatArray:
    """Return P(Binomial(count, share) <= k) for k = 0 … count, by logarithms so that large counts do not underflow."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # log k!
    successes = np.arange(count + 1)
    logarithms = factorials[-1] - factorials - factorials[::-1]
    logarithms += successes * math.log(share) + (count - successes) * math.log1p(-share)
    cumulative: FloatArray = np.minimum(np.cumsum(np.exp(logarithms)), 1.0)
    return cumulative
