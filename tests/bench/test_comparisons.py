from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.bench.comparison.validation import check_status
from edgebert.bench.comparisons import P50, P90, P99, wide_comparisons
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.report.method import method_of
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Comparison, Result
from edgebert.errors import BadDataError

Synthetic = Callable[..., tuple[Result, Samples]]


def with_half_widths(result: Result, **half_widths: float | None) -> tuple[Comparison, ...]:
    """Return the comparisons of `student` with intervals of this relative half-width by percentile; None for none."""
    found = []
    for metric, name in ((P50, "p50"), (P90, "p90"), (P99, "p99")):
        comparison, half = result.comparison("student", metric), half_widths[name]
        assert comparison is not None
        ratio = comparison.ratio
        interval = None if half is None else (ratio * (1 - half), ratio * (1 + half))
        found.append(replace(comparison, ci95=interval))
    return tuple(found)


@pytest.mark.parametrize(
    ("half_widths", "wide"),
    [
        ({"p50": 0.009, "p90": 0.019, "p99": 0.5}, []),
        ({"p50": 0.011, "p90": 0.019, "p99": 0.5}, [P50]),
        ({"p50": 0.009, "p90": 0.021, "p99": 0.5}, [P90]),
        ({"p50": None, "p90": None, "p99": None}, [P50, P90]),
    ],
)
def test_wide_comparisons_hold_p90_to_twice_the_half_width_of_p50(
    synthetic: Synthetic, half_widths: dict[str, float | None], wide: list[str]
) -> None:
    result, _ = synthetic(launches=5)
    comparisons = with_half_widths(result, **half_widths)
    assert [found.metric for found in wide_comparisons(comparisons, 0.01)] == wide
    assert wide_comparisons(comparisons, math.inf) == []


def test_check_status_refuses_a_run_that_calls_itself_converged_with_a_wide_p90(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=5)
    narrow = with_half_widths(result, p50=0.009, p90=0.019, p99=0.5)
    check_status(replace(result, rigor="standard", comparisons=narrow), "r.json")
    wide = with_half_widths(result, p50=0.009, p90=0.03, p99=0.5)
    with pytest.raises(BadDataError, match=r"status\.converged"):
        check_status(replace(result, rigor="standard", comparisons=wide), "r.json")


def test_a_run_goes_on_until_its_intervals_are_narrow_or_the_budget_is_spent(
    quick: BenchOptions, script_arm: Callable[..., Path], worker_command: list[str], tmp_path: Path
) -> None:
    options = replace(quick, rigor="standard", launches=1, max_launches=3, seconds=0.2)
    arms = [script_arm("a"), script_arm("b")]
    result = result_from_arms(arms, tmp_path / "r.json", options, worker_command=worker_command)
    # Below five launches p90 has no interval, and no interval is never narrow enough.
    assert (result.arms[0].scenarios[0].launches, result.arms[0].scenarios[0].looks) == (3, 3)
    assert not result.status.converged
    assert any(
        "p90 of `b` against `a` has no interval, and 2.0% was asked for" in text for text in result.status.reasons
    )


def test_method_of_says_the_delta_of_the_arms_and_not_of_the_control(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=5, noise=0.05)
    comparison = result.comparison("student")
    assert comparison is not None
    assert comparison.delta > comparison.margin
    assert f"δ = {100 * comparison.delta:.1f}" in " ".join(method_of(result))


def test_comparison_far_beyond_delta_needs_no_more_launches_than_an_interval_does(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=3, noise=0.05)
    comparison = result.comparison("student", P90)
    assert comparison is not None
    # Four times as fast, but with three launches there is no interval of p90 yet.
    assert (comparison.ci95, comparison.verdict, comparison.launches_needed) == (None, "inconclusive", 5)
    close, _ = synthetic(launches=3, noise=0.05, times_ms=(1.0, 1.01))
    found = close.comparison("student", P90)
    assert found is not None
    assert found.launches_needed is not None
    assert found.launches_needed > 20
