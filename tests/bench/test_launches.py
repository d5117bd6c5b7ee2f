from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgebert.bench.statistics.launches import (
    LaunchContrast,
    contrast_p_value,
    launch_contrast,
    launches_needed,
    pooled_contrast,
    simultaneous_confidence,
    unpaired_contrast,
)

FloatArray = NDArray[np.float64]


def _launches(
    launches: int, *, rounds: int = 6, process: float = 0.01, ratio: float = 1.0, seed: int = 0
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Return block medians of two arms; each process has a level of its own."""
    generator = np.random.default_rng(seed)
    levels = generator.normal(0, process, (2, launches, 1, 1)) + np.log([1, ratio]).reshape(2, 1, 1, 1)
    blocks = np.exp(levels + generator.normal(0, 0.004, (2, launches, rounds, 2)))
    return list(blocks[0]), list(blocks[1])


def _values(first: list[FloatArray], second: list[FloatArray]) -> FloatArray:
    """Return d of each launch, written another way."""
    return np.array(
        [np.median(np.log(np.sqrt(b.prod(axis=1) / a.prod(axis=1)))) for a, b in zip(first, second, strict=True)]
    )


@pytest.mark.parametrize("launches", [5, 8, 12])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_launch_contrast_is_the_paired_t_interval_of_scipy(launches: int, confidence: float) -> None:
    first, second = _launches(launches, ratio=1.05)
    found = launch_contrast(first, second, seed=0, confidence=confidence)
    expected: Any = stats.ttest_1samp(_values(first, second), 0)
    interval = expected.confidence_interval(confidence)
    assert found.ci95 == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-9)
    assert contrast_p_value(found) == pytest.approx(expected.pvalue, rel=1e-8)
    assert found.ratio == pytest.approx(math.exp(_values(first, second).mean()))
    assert (found.launches, found.rounds, found.scope) == (launches, 6 * launches, "launches")


def test_launch_contrast_is_exact_when_both_drift_linearly_in_the_logarithm() -> None:
    drift = np.exp(0.01 * np.arange(40)).reshape(10, 4)  # (rounds, A B B A)
    found = launch_contrast([drift[:, [0, 3]]] * 5, [1.25 * drift[:, [1, 2]]] * 5, seed=0)
    assert found.ratio == pytest.approx(1.25, rel=1e-12)
    assert found.ci95 == pytest.approx((1.25, 1.25), rel=1e-12)


def test_launch_contrast_takes_launches_of_unequal_rounds() -> None:
    first, second = _launches(6)
    whole = launch_contrast(first, second, seed=0)
    cut = launch_contrast([first[0][:3], *first[1:]], [second[0][:3], *second[1:]], seed=0)
    assert (whole.rounds, cut.rounds) == (36, 33)


def test_launch_contrast_ignores_one_disturbed_round_of_a_launch() -> None:
    first, second = _launches(5, process=0.0)
    disturbed = [launch.copy() for launch in second]
    disturbed[2][1] *= 3
    assert launch_contrast(first, disturbed, seed=0).ratio == pytest.approx(1.0, abs=0.005)


def test_launch_contrast_does_not_narrow_with_rounds_when_processes_differ() -> None:
    few = launch_contrast(*_launches(8, rounds=3), seed=0).ci95
    many = launch_contrast(*_launches(8, rounds=300), seed=0).ci95
    assert few is not None
    assert many is not None
    assert many[1] - many[0] > 0.5 * (few[1] - few[0])


@pytest.mark.parametrize("launches", [1, 2, 4])
def test_launch_contrast_resamples_within_the_run_when_launches_are_few(launches: int) -> None:
    found = launch_contrast(*_launches(launches, ratio=1.1), seed=3)
    assert found.scope == "within-run only"
    assert found.ci95 is not None
    assert found.ci95[0] <= found.ratio <= found.ci95[1]
    assert contrast_p_value(found) is None
    assert (found.sd_log is None) == (launches == 1)
    assert found == launch_contrast(*_launches(launches, ratio=1.1), seed=3)


def test_launch_contrast_resamples_launches_and_not_rounds_alone() -> None:
    first, second = _launches(4, process=0.05)
    found = launch_contrast(first, second, seed=0).ci95
    values = _values(first, second)
    assert found is not None
    # Expanded for four launches, it reaches the extreme resamples: one launch, drawn four times.
    assert math.log(found[0]) == pytest.approx(values.min(), abs=0.01)
    assert math.log(found[1]) == pytest.approx(values.max(), abs=0.01)


@pytest.mark.parametrize(("launches", "rounds"), [(1, 4), (2, 2), (4, 1)])
def test_launch_contrast_has_no_interval_when_there_are_less_than_five_rounds(launches: int, rounds: int) -> None:
    found = launch_contrast(*_launches(launches, rounds=rounds), seed=0)
    assert found.ci95 is None
    assert "no interval" in found.method


def test_pooled_contrast_is_the_paired_t_interval_over_launches() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(100, 2, 7), generator.normal(104, 2, 7)
    expected = stats.ttest_rel(np.log(second), np.log(first)).confidence_interval(0.95)
    found = pooled_contrast(first, second, rounds=21)
    assert found.ci95 == pytest.approx((math.exp(expected.low), math.exp(expected.high)), rel=1e-9)
    assert (found.launches, found.rounds) == (7, 21)


def test_pooled_contrast_has_no_interval_when_launches_are_few() -> None:
    found = pooled_contrast(np.array([1.0, 1.1, 1.0, 1.2]), np.array([1.0, 1.1, 1.0, 1.2]))
    assert (found.ratio, found.ci95, found.scope) == (1.0, None, "within-run only")


def test_unpaired_contrast_is_the_welch_interval_of_scipy() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.normal(100, 1, 6), generator.normal(90, 4, 9)
    expected: Any = stats.ttest_ind(np.log(second), np.log(first), equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = unpaired_contrast(first, second, seed=0)
    assert found.ci95 == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-9)
    assert found.degrees == pytest.approx(expected.df)
    assert contrast_p_value(found) == pytest.approx(expected.pvalue, rel=1e-8)
    assert (found.launches, found.scope) == (6, "launches")


def test_unpaired_contrast_takes_the_median_of_the_blocks_of_a_launch() -> None:
    first, second = _launches(5, ratio=1.2)
    by_blocks = unpaired_contrast(first, second, seed=0)
    by_medians = unpaired_contrast(
        *(np.array([np.exp(np.median(np.log(launch))) for launch in side]) for side in (first, second)), seed=0
    )
    assert by_blocks.ci95 == pytest.approx(by_medians.ci95)


def test_unpaired_contrast_resamples_both_sides_when_one_has_few_launches() -> None:
    first, second = _launches(8)[0], _launches(3, seed=1)[1]
    found = unpaired_contrast(first, second, seed=0)
    assert (found.scope, found.launches) == ("within-run only", 3)
    assert found.ci95 is not None
    assert found.ci95[0] < found.ratio < found.ci95[1]


def test_unpaired_contrast_has_no_interval_when_a_side_has_four_numbers() -> None:
    assert unpaired_contrast(np.ones(8), np.ones(4), seed=0).ci95 is None


def test_unpaired_contrast_of_constant_launches_is_a_point() -> None:
    found = unpaired_contrast(np.ones(5), np.ones(5), seed=0)
    assert found.ci95 == (1.0, 1.0)
    assert contrast_p_value(found) == 1.0


def test_contrast_p_value_of_constant_different_launches_is_zero() -> None:
    assert contrast_p_value(pooled_contrast(np.ones(5), np.full(5, 2.0))) == 0.0


@pytest.mark.parametrize(("sd", "margin"), [(0.0, 0.01), (0.005, 0.01), (0.0141, 0.01), (0.03, 0.01), (0.0141, 0.05)])
def test_launches_needed_is_the_smallest_number_that_is_narrow_enough(sd: float, margin: float) -> None:
    def half(launches: int) -> float:
        return float(stats.t.ppf(0.975, launches - 1)) * sd / math.sqrt(launches)

    needed = launches_needed(sd, margin)
    assert half(needed) <= math.log1p(margin)
    assert needed == 5 or half(needed - 1) > math.log1p(margin)


def test_launches_needed_grows_with_confidence_and_agrees_with_the_formula_of_the_reference() -> None:
    sigma, delta = 0.01, 0.005  # (t sqrt(2) sigma / delta)^2, t near 2.04 for about 33 launches
    assert launches_needed(math.sqrt(2) * sigma, delta) == pytest.approx(
        (2.04 * math.sqrt(2) * sigma / delta) ** 2, abs=2
    )
    assert launches_needed(0.02, 0.01, confidence=0.99) > launches_needed(0.02, 0.01)


def test_simultaneous_confidence_divides_the_error() -> None:
    assert simultaneous_confidence(1) == pytest.approx(0.95)
    assert simultaneous_confidence(5) == pytest.approx(0.99)


def test_launch_contrast_is_frozen() -> None:
    found = pooled_contrast(np.ones(5), np.ones(5))
    assert isinstance(found, LaunchContrast)
    with pytest.raises(AttributeError):
        found.ratio = 2.0  # type: ignore[misc]  # that is what is tested
