from __future__ import annotations

import pytest

from edgebert.bench.statistics.formulas import Interval
from edgebert.bench.statistics.launches import LaunchContrast
from edgebert.bench.statistics.stopping import Decision, StoppingRule, relative_half_width

RULE = StoppingRule(min_launches=5, max_launches=14, half_width=0.01)


def _contrast(ci: Interval | None, ratio: float = 1.0) -> LaunchContrast:
    return LaunchContrast(ratio=ratio, ci95=ci, launches=5, rounds=10, scope="launches", method="planted", sd_log=0.01)


NARROW, WIDE, NONE = _contrast((0.995, 1.005)), _contrast((0.98, 1.02)), _contrast(None)


@pytest.mark.parametrize(
    ("contrasts", "launches", "looks", "expected"),
    [
        ([NARROW], 4, 1, "go on"),
        ([NARROW], 5, 1, "enough"),
        ([NARROW, WIDE], 5, 1, "go on"),
        ([NARROW, NONE], 5, 1, "go on"),
        ([NARROW, WIDE], 14, 2, "budget spent"),
        ([NARROW, NONE], 14, 2, "budget spent"),
        ([WIDE], 6, 10, "budget spent"),
        ([WIDE], 6, 9, "go on"),
        ([NARROW], 14, 10, "enough"),
    ],
)
def test_decide_stops_by_precision_or_budget(
    contrasts: list[LaunchContrast], launches: int, looks: int, expected: Decision
) -> None:
    assert RULE.decide(contrasts, launches, looks) == expected


@pytest.mark.parametrize(("queries", "expected"), [(298, "go on"), (299, "enough"), (None, "enough")])
def test_decide_waits_for_the_queries_that_the_percentiles_need(queries: int | None, expected: Decision) -> None:
    rule = StoppingRule(min_launches=5, max_launches=14, half_width=0.01, min_queries=299)
    assert rule.decide([NARROW], 5, 1, queries=queries) == expected


def test_decide_does_not_look_at_what_the_ratio_says() -> None:
    assert RULE.decide([_contrast((1.99, 2.01), 2.0)], 5, 1) == "enough"
    assert RULE.decide([_contrast((1.95, 2.05), 2.0)], 5, 1) == "go on"  # 2.5 % of the ratio


def test_relative_half_width_is_infinite_without_an_interval() -> None:
    assert relative_half_width(NONE) == float("inf")
    assert relative_half_width(_contrast((1.9, 2.1), 2.0)) == pytest.approx(0.05)
