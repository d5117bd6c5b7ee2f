"""How one arm compares with another, from launches: the unit of replication is the process, not the query.

A launch gives one number, d, the logarithm of how much longer arm b takes; the interval is Student's t over launches
(bench.md, section 4.2). Queries and blocks of one process share what that process got: addresses, threads, clocks. Taken as
replicates they make two copies of the same model differ "significantly" in 37 % of all runs and more (section 4.1).

>>> a = [np.full((2, 2), level) for level in (1.00, 1.02, 0.99, 1.01, 1.00)]
>>> b = [1.05 * launch * wobble for launch, wobble in zip(a, (1.0, 1.01, 0.99, 1.0, 1.0))]
>>> found = launch_contrast(a, b, seed=0)
>>> round(found.ratio, 3), [round(bound, 3) for bound in found.ci95], found.scope
(1.05, [1.041, 1.059], 'launches')
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgebert.bench.statistics.formulas import CONFIDENCE, RESAMPLES, FloatArray, Interval, percentile_interval
from edgebert.bench.statistics.student_t import expanded_confidence, t_quantile, t_tail

MIN_LAUNCHES = 5  # from here on the interval is over launches (bench.md, section 4.2)

Scope = Literal["launches", "within-run only"]

_MIN_ROUNDS = 5  # in all launches; fewer have too few distinct resamples
_MAX_LAUNCHES_NEEDED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchContrast:
    """The time of arm b over that of arm a.

    Attributes:
        ratio: exp(mean of d over launches); above 1: b is slower.
        ci95: interval of the ratio at `confidence`; None where it cannot be stated.
        launches: pairs of launches; of two runs the smaller number.
        rounds: of blocks, in all launches.
        scope: what the interval speaks about: `launches`, the next launches too; `within-run only`, nothing but these.
        method: how the interval was made, one sentence.
        sd_log: standard deviation of d over launches; None for a single one.
        confidence: of `ci95`: 0.95, or more where several intervals are to hold together.
        standard_error: of log(ratio) over launches; None where `scope` is `within-run only`.
        degrees: of freedom of that standard error; not whole after Welch.
    """

    ratio: float
    ci95: Interval | None
    launches: int
    rounds: int
    scope: Scope
    method: str
    sd_log: float | None
    confidence: float = CONFIDENCE
    standard_error: float | None = None
    degrees: float | None = None


def launch_contrast(
    first: Sequence[FloatArray], second: Sequence[FloatArray], *, seed: int, confidence: float = CONFIDENCE
) -> LaunchContrast:
    """Return how much longer the second arm takes, from blocks that alternate with the first arm's in every launch.

    d of a launch is the median over rounds of mean(log b1, log b2) - mean(log a1, log a2): a round is a random order and its
    mirror image, so linear drift cancels, and a round that was disturbed does not move the median. From five launches on the
    interval is mean(d) +- t s / sqrt(L). Below, launches and their rounds are resampled; that interval, expanded as it is for
    few launches, is too narrow for what the next launch will show (docs/bench-statistics.md), hence `within-run only`. It
    needs five rounds.

    Args:
        first: for each launch (rounds, 2) float64 above 0, the time of the first arm's two blocks in each round.
        second: the same of the second arm.
        seed: of the bootstrap.
        confidence: of the interval.
    """
    assert len(first) == len(second) >= 1
    differences = [_round_differences(a, b) for a, b in zip(first, second, strict=True)]
    values = np.array([np.median(launch) for launch in differences])
    rounds = sum(len(launch) for launch in differences)
    if len(values) >= MIN_LAUNCHES:
        return _over_launches(values, rounds=rounds, confidence=confidence)
    interval = None
    if rounds >= _MIN_ROUNDS:
        estimates = np.exp(_resampled(differences, np.random.default_rng([seed, 5])))
        units = len(values) if len(values) > 1 else rounds
        interval = percentile_interval(estimates, confidence=expanded_confidence(units, confidence))
    launches = f"{len(values)} launch{'es' if len(values) > 1 else ''}"
    return _within_run(
        values,
        interval,
        rounds=rounds,
        confidence=confidence,
        method=f"exp(mean over {launches} of the median over rounds of the difference of log block times); "
        + (
            "bootstrap of launches and of their rounds, too narrow for what another launch may show"
            if interval
            else f"no interval with {rounds} round{'s' if rounds > 1 else ''} (needs {_MIN_ROUNDS})"
        ),
    )


def pooled_contrast(
    first: FloatArray, second: FloatArray, *, rounds: int = 0, confidence: float = CONFIDENCE
) -> LaunchContrast:
    """Return the same from one number per launch and arm, paired by launch, such as the p90 of the launch's queries.

    There is no interval below five launches: a single number per launch leaves nothing else to resample.

    Args:
        first: (launches,) float64 above 0.
        second: the same of the second arm.
        rounds: of blocks behind them, for the record.
        confidence: of the interval.
    """
    assert first.shape == second.shape == (len(first),)
    assert len(first) >= 1
    values = np.log(second) - np.log(first)
    if len(values) >= MIN_LAUNCHES:
        return _over_launches(values, rounds=rounds, confidence=confidence)
    method = f"exp(mean over launches of the difference of logs); no interval below {MIN_LAUNCHES} launches"
    return _within_run(values, None, rounds=rounds, confidence=confidence, method=method)


def unpaired_contrast(
    first: Sequence[FloatArray] | FloatArray,
    second: Sequence[FloatArray] | FloatArray,
    *,
    seed: int,
    confidence: float = CONFIDENCE,
) -> LaunchContrast:
    """Return the time of the second run over that of the first: two runs, or two devices, that share no launch.

    Welch's t over the launches' log values where both runs have five, a hierarchical bootstrap of both sides below
    (bench.md, section 4.3), and no interval where a side has fewer than five values in all.

    Args:
        first: for each launch of the first run its block times, any shape, float64 above 0; or one number per launch.
        second: the same of the second run.
        seed: of the bootstrap.
        confidence: of the interval.
    """
    sides = [[np.log(np.asarray(launch, np.float64)).reshape(-1) for launch in side] for side in (first, second)]
    assert all(len(side) >= 1 and all(launch.size for launch in side) for side in sides)
    values_a, values_b = (np.array([np.median(launch) for launch in side]) for side in sides)
    shift, launches = float(values_b.mean() - values_a.mean()), min(len(values_a), len(values_b))
    sd = math.hypot(values_a.std(ddof=1), values_b.std(ddof=1)) if launches > 1 else None
    if launches >= MIN_LAUNCHES:
        error, degrees = _welch(values_a, values_b)
        return LaunchContrast(
            ratio=math.exp(shift),
            ci95=_t_interval(shift, error, degrees, confidence),
            launches=launches,
            rounds=0,
            scope="launches",
            method="exp(difference of mean logs of two runs); Welch's t over launches, unpaired",
            sd_log=sd,
            confidence=confidence,
            standard_error=error,
            degrees=degrees,
        )
    interval = None
    if all(sum(launch.size for launch in side) >= _MIN_ROUNDS for side in sides):
        generator = np.random.default_rng([seed, 6])
        resampled = [_resampled(side, generator) for side in sides]
        units = launches if launches > 1 else min(sum(launch.size for launch in side) for side in sides)
        interval = percentile_interval(
            np.exp(resampled[1] - resampled[0]), confidence=expanded_confidence(units, confidence)
        )
    return LaunchContrast(
        ratio=math.exp(shift),
        ci95=interval,
        launches=launches,
        rounds=0,
        scope="within-run only",
        method="exp(difference of mean logs of two runs); bootstrap of launches and blocks of both, unpaired",
        sd_log=sd,
        confidence=confidence,
    )


def contrast_p_value(contrast: LaunchContrast) -> float | None:
    """Return the two-sided t p-value of no difference; None where the interval is not over launches."""
    if contrast.standard_error is None or contrast.degrees is None:
        return None
    shift = abs(math.log(contrast.ratio))
    if contrast.standard_error == 0:
        return 1.0 if shift == 0 else 0.0
    return 2 * t_tail(shift / contrast.standard_error, contrast.degrees)


def launches_needed(sd_log: float, margin: float, *, confidence: float = CONFIDENCE) -> int:
    """Return the launches from which on the half-width of a paired contrast is expected to be at most `margin`.

    The smallest L >= 5 with t(L - 1) sd / sqrt(L) <= log(1 + margin). bench.md, section 4.2, writes L ~ (t sqrt(2) sigma /
    delta)^2 with sigma of one arm's launches; `sd_log` is that of their difference, sqrt(2) sigma where arms are independent.

    Args:
        sd_log: standard deviation of d over launches (`LaunchContrast.sd_log`).
        margin: relative, above 0: 0.01 for 1 %.
        confidence: of the interval.
    """
    assert sd_log >= 0
    assert margin > 0
    target = math.log1p(margin)

    def wide(launches: int) -> bool:
        return t_quantile(1 - (1 - confidence) / 2, launches - 1) * sd_log / math.sqrt(launches) > target

    low, high = MIN_LAUNCHES, MIN_LAUNCHES
    while wide(high) and high < _MAX_LAUNCHES_NEEDED:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if wide(middle) else (low, middle)
    return high


def simultaneous_confidence(comparisons: int, *, confidence: float = CONFIDENCE) -> float:
    """Return the confidence each of several intervals needs so that all hold together with `confidence` (Bonferroni)."""
    assert comparisons >= 1
    return 1 - (1 - confidence) / comparisons


def _round_differences(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return float64 (rounds,): mean log time of the second arm's two blocks minus that of the first's."""
    assert first.shape == second.shape == (len(first), 2)
    assert len(first) >= 1
    differences: FloatArray = (np.log(second) - np.log(first)).mean(axis=1)
    return differences


def _resampled(launches: Sequence[FloatArray], generator: np.random.Generator) -> FloatArray:
    """Return float64 (RESAMPLES,): the mean over resampled launches of the median of their resampled values."""
    count = len(launches)
    picks = generator.integers(count, size=(RESAMPLES, count))
    medians = np.empty(picks.shape)
    for index, values in enumerate(launches):
        chosen = picks == index
        drawn = values[generator.integers(len(values), size=(int(chosen.sum()), len(values)))]
        medians[chosen] = np.median(drawn, axis=1)
    means: FloatArray = medians.mean(axis=1)
    return means


def _over_launches(values: FloatArray, *, rounds: int, confidence: float) -> LaunchContrast:
    shift, sd = float(values.mean()), float(values.std(ddof=1))
    error = sd / math.sqrt(len(values))
    return LaunchContrast(
        ratio=math.exp(shift),
        ci95=_t_interval(shift, error, len(values) - 1, confidence),
        launches=len(values),
        rounds=rounds,
        scope="launches",
        method=f"exp(mean over launches of the difference of logs); Student's t over {len(values)} launches",
        sd_log=sd,
        confidence=confidence,
        standard_error=error,
        degrees=float(len(values) - 1),
    )


def _within_run(
    values: FloatArray, interval: Interval | None, *, rounds: int, confidence: float, method: str
) -> LaunchContrast:
    return LaunchContrast(
        ratio=math.exp(float(values.mean())),
        ci95=interval,
        launches=len(values),
        rounds=rounds,
        scope="within-run only",
        method=method,
        sd_log=float(values.std(ddof=1)) if len(values) > 1 else None,
        confidence=confidence,
    )


def _t_interval(shift: float, error: float, degrees: float, confidence: float) -> Interval:
    half = t_quantile(1 - (1 - confidence) / 2, degrees) * error
    return math.exp(shift - half), math.exp(shift + half)


def _welch(first: FloatArray, second: FloatArray) -> tuple[float, float]:
    """Return the standard error of the difference of means and its degrees of freedom (Welch 1947, Satterthwaite 1946)."""
    parts = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
    total = sum(parts)
    if total == 0:
        return 0.0, float(len(first) + len(second) - 2)
    degrees = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True))
    return math.sqrt(total), degrees
