from __future__ import annotations

import math

import pytest
from scipy import stats

from edgebert.bench.statistics.student_t import expanded_confidence, t_quantile, t_tail

DEGREES = [0.5, 1, 2, 3, 4, 4.7, 9, 29, 99.5, 1_000, 1e6]


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 2.776, 7.0, 40.0, 1e4])
def test_t_tail_is_that_of_scipy(degrees: float, value: float) -> None:
    assert t_tail(value, degrees) == pytest.approx(stats.t.sf(value, degrees), rel=1e-8, abs=1e-290)
    assert t_tail(-value, degrees) == pytest.approx(stats.t.sf(-value, degrees), rel=1e-8)


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("probability", [0.005, 0.3, 0.5, 0.6, 0.95, 0.975, 0.995, 0.9999])
def test_t_quantile_is_that_of_scipy(degrees: float, probability: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(("degrees", "printed"), [(1, 12.706), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_t_quantile_is_that_of_the_printed_table(degrees: int, printed: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(printed, abs=5e-4)


def test_t_tail_has_limits_at_infinity() -> None:
    assert t_tail(math.inf, 3) == 0
    assert t_tail(-math.inf, 3) == 1
    assert t_tail(1e200, 3) == 0  # its square overflows


def test_t_tail_keeps_its_digits_near_zero() -> None:
    assert 0.5 - t_tail(1e-8, 1) == pytest.approx(math.atan(1e-8) / math.pi, rel=1e-6)  # Cauchy


@pytest.mark.parametrize("units", [2, 3, 5, 10, 100])
def test_expanded_confidence_is_the_formula_of_hesterberg(units: int) -> None:
    tail = stats.norm.cdf(-math.sqrt(units / (units - 1)) * stats.t.ppf(0.975, units - 1))
    assert expanded_confidence(units, 0.95) == pytest.approx(1 - 2 * tail, abs=1e-9)
