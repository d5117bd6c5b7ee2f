from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgebert.bench.statistics.formulas import (
    holm,
    interleaved_ratio,
    is_steady,
    mcnemar_exact,
    minimum_queries,
    mlperf_bound,
    nearest_rank,
    percentile,
    percentile_upper_bound,
    theil_sen_interval,
    tukey_fences,
    wilson_interval,
)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 100, 299, 1000])
def test_percentile_is_the_nearest_rank_of_numpy(share: float, count: int) -> None:
    values = np.random.default_rng(count).integers(0, 10**9, count).astype(np.int64)
    assert percentile(values, share) == np.percentile(values, 100 * share, method="inverted_cdf")


def test_nearest_rank_does_not_round_up_when_the_product_is_whole() -> None:
    assert nearest_rank(100, 0.99) == 99
    assert nearest_rank(10, 0.7) == 7


@pytest.mark.parametrize(
    ("share", "at_95", "at_99"),
    [(0.5, 5, 7), (0.9, 29, 44), (0.95, 59, 90), (0.99, 299, 459), (0.999, 2_995, 4_603)],
)
def test_minimum_queries_is_the_table_of_the_reference(share: float, at_95: int, at_99: int) -> None:
    assert minimum_queries(share) == at_95
    assert minimum_queries(share, confidence=0.99) == at_99


@pytest.mark.parametrize(("share", "expected"), [(0.9, 46), (0.99, 473)])
def test_minimum_queries_allows_one_exceedance(share: float, expected: int) -> None:
    assert minimum_queries(share, exceedances=1) == expected


@pytest.mark.parametrize(("share", "expected"), [(0.9, 64), (0.99, 662)])
def test_minimum_queries_gives_the_minima_of_mlperf_at_99_percent(share: float, expected: int) -> None:
    assert minimum_queries(share, confidence=0.99, exceedances=1) == expected


def test_minimum_queries_states_no_bound_with_one_query_less() -> None:
    values = np.arange(298, dtype=np.int64)
    assert percentile_upper_bound(values, 0.99) is None
    assert percentile_upper_bound(np.arange(299, dtype=np.int64), 0.99) == 298


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_percentile_upper_bound_is_the_binomial_order_statistic_of_scipy(share: float) -> None:
    values = np.arange(2_000, dtype=np.int64)
    rank = next(k for k in range(1, 2_001) if stats.binom.cdf(k - 1, 2_000, share) >= 0.95)
    assert percentile_upper_bound(values, share) == rank - 1


def test_percentile_upper_bound_covers_the_true_percentile() -> None:
    generator = np.random.default_rng(1)
    true = stats.expon.ppf(0.9, scale=1e6)
    covered = 0
    for _ in range(400):
        bound = percentile_upper_bound(generator.exponential(1e6, 120).astype(np.int64), 0.9)
        covered += bound is not None and bound >= true
    assert covered >= 0.93 * 400


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (356, 359), (9_900, 10_000)])
def test_wilson_interval_is_that_of_scipy(successes: int, count: int) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_of_a_hand_value() -> None:
    # 8 of 10 (Newcombe 1998): 0.4902 to 0.9433
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (3, 9), (9, 3), (5, 5), (40, 90)])
def test_mcnemar_exact_is_the_binomial_test_of_scipy(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    expected = stats.binomtest(only_first, total, 0.5).pvalue if total else 1.0
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_interleaved_ratio_is_exact_when_both_drift_linearly_in_the_logarithm() -> None:
    drift = np.exp(0.01 * np.arange(40)).reshape(10, 4)  # (rounds, A B B A)
    found = interleaved_ratio(drift[:, [0, 3]], 1.25 * drift[:, [1, 2]], seed=0)
    assert found.ratio == pytest.approx(1.25, rel=1e-12)
    assert found.ci95 == pytest.approx((1.25, 1.25), rel=1e-12)
    assert found.rounds == 10


def test_interleaved_ratio_covers_no_difference_in_most_runs_of_identical_arms() -> None:
    generator = np.random.default_rng(3)
    excluded = 0
    for trial in range(60):
        noise = np.exp(np.cumsum(generator.normal(0, 0.003, 48)) + generator.normal(0, 0.02, 48)).reshape(12, 4)
        found = interleaved_ratio(noise[:, [0, 3]], noise[:, [1, 2]], seed=trial)
        assert found.ci95 is not None
        excluded += not found.ci95[0] <= 1 <= found.ci95[1]
    assert excluded <= 9


def test_interleaved_ratio_has_no_interval_when_there_are_four_rounds() -> None:
    assert interleaved_ratio(np.ones((4, 2)), np.ones((4, 2)), seed=0).ci95 is None


def test_tukey_fences_lie_above_the_upper_quartile() -> None:
    values = np.array([10] * 30 + [20] * 44 + [30] * 30 + [65, 66, 95], np.int64)  # fences: 60 and 90
    assert tukey_fences(values) == (60.0, 90.0)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([1.0, 1.0, 1.0], False),
        ([9.0, 1.0, 1.01, 1.02, 1.0], True),
        ([1.0, 1.0, 1.0, 1.03], False),
        ([1.0, 1.01, 1.02, 1.03], False),
        ([1.0, 1.001, 1.002, 1.003], False),  # it still rises
        ([1.003, 1.002, 1.001, 1.0], False),
        ([1.0, 1.001, 1.001, 1.002], True),
        ([1.0, 1.0, 1.0, 1.0], True),
    ],
)
def test_is_steady_wants_four_windows_within_two_percent_and_no_trend(medians: list[float], expected: bool) -> None:
    assert is_steady(medians) is expected


@pytest.mark.parametrize(("share", "minimum"), [(0.9, 64), (0.99, 662)])
def test_mlperf_bound_starts_at_the_minima_of_mlperf(share: float, minimum: int) -> None:
    assert mlperf_bound(np.arange(minimum - 1, dtype=np.int64), share) is None
    assert mlperf_bound(np.arange(minimum, dtype=np.int64), share) == minimum - 1  # of so few the slowest


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [700, 1_000, 24_576])
def test_mlperf_bound_is_the_rule_of_loadgen(share: float, count: int) -> None:
    # h + t queries with at most t slow ones: as `early_stopping.cc` puts it, t grows while h(t) + t <= count.
    allowed = int(np.flatnonzero(stats.binom.cdf(np.arange(count), count, 1 - share) < 0.01)[-1])
    values = np.random.default_rng(count).permutation(count).astype(np.int64)
    assert mlperf_bound(values, share) == count - allowed


def test_mlperf_bound_lies_above_the_percentile_and_falls_to_it() -> None:
    excess = [mlperf_bound(np.arange(count, dtype=np.int64), 0.9) for count in (100, 10_000)]
    assert excess[0] is not None
    assert excess[1] is not None
    assert excess[0] / 100 > excess[1] / 10_000 > 0.9


def test_holm_is_a_hand_value() -> None:
    # Holm (1979): sorted 0.005, 0.011, 0.02, 0.04 times 4, 3, 2, 1, never falling
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])


def test_holm_never_exceeds_one_and_takes_nothing() -> None:
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed: int) -> None:
    p_values = np.random.default_rng(seed).uniform(0, 0.3, 5).tolist()
    expected = [
        max(
            min(1.0, len(subset) * min(p_values[i] for i in subset))
            for size in range(1, 6)
            for subset in combinations(range(5), size)
            if index in subset
        )
        for index in range(5)
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("count", [10, 25, 60])
def test_theil_sen_interval_is_near_that_of_scipy(count: int) -> None:
    values = 0.3 * np.arange(count) + np.random.default_rng(count).normal(0, 1, count)
    # scipy's is by the normal approximation, so a rank apart.
    expected: Any = stats.theilslopes(values, np.arange(count), 0.95)
    low, high = expected[2:4]
    assert theil_sen_interval(values.tolist()) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(("count", "at_least"), [(4, 1 - 2 / 24), (5, 0.95), (6, 0.95), (7, 0.95)])
def test_theil_sen_interval_holds_no_trend_in_exactly_that_share_of_orders(count: int, at_least: float) -> None:
    held = []
    for order in permutations(range(count)):
        low, high = theil_sen_interval([float(value) for value in order])
        held.append(low <= 0 <= high)
    assert at_least <= np.mean(held) + 1e-12
    assert np.mean(held) <= max(at_least, 0.985)


@pytest.mark.parametrize(("count", "share"), [(3, 0.2), (500, 0.9), (100_000, 0.99)])
def test_percentile_upper_bound_is_right_for_many_values_too(count: int, share: float) -> None:
    expected = int(stats.binom.ppf(0.95, count, share))
    values = np.arange(count, dtype=np.int64)
    assert percentile_upper_bound(values, share) == (expected if expected < count else None)
