"""What samples say of a backend's honesty: every fault is found, and named; honest samples are left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from edgebert.bench.audit.honesty import (
    MAX_CONFIDENCE_DIFFERENCE,
    MAX_RSS_GROWTH,
    consistency_from_samples,
    cpu_ratio,
    instant_share,
    reasons_of,
    rss_growth_per_query,
    theil_sen_slope,
    warnings_of,
)
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, NO_CLASS, NO_CONFIDENCE
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import Arm, Consistency, Result

Synthetic = Callable[..., tuple[Result, Samples]]
STUDENT = 1
BLOCK = 40  # queries of a block of `synthetic`


@pytest.fixture
def columns(synthetic: Synthetic) -> dict[str, IntArray]:
    """Return columns of an honest run that a test may change."""
    return {name: column.copy() for name, column in _made(synthetic)[1].columns.items()}


@pytest.fixture
def arm(synthetic: Synthetic) -> Arm:
    """Return an arm of an honest run."""
    return _made(synthetic)[0].arms[STUDENT]


@cache
def _made(synthetic: Synthetic) -> tuple[Result, Samples]:
    return synthetic()


def consistency(columns: dict[str, IntArray], *, sensitivity: float | None = 1.0) -> Consistency:
    return consistency_from_samples(Samples(columns), STUDENT, first_error="the first", input_sensitivity=sensitivity)


def reasons(arm: Arm, columns: dict[str, IntArray], *, sensitivity: float | None = 1.0) -> list[str]:
    return reasons_of(replace(arm, consistency=consistency(columns, sensitivity=sensitivity)))


def of(columns: dict[str, IntArray], arm: int = STUDENT) -> IntArray:
    """Return where the queries of an arm stand."""
    return np.flatnonzero(columns["arm"] == arm)


def test_consistency_from_samples_of_an_honest_run_has_no_fault(arm: Arm, columns: dict[str, IntArray]) -> None:
    found = consistency(columns)
    assert found.timed_checked == len(of(columns))
    assert (found.mismatch, found.recheck_mismatch, found.errors, found.instant_share) == (0, 0, 0, 0.0)
    assert found.rechecked == np.count_nonzero(columns["recheck_arm"] == STUDENT)
    assert reasons(arm, columns) == []


@pytest.mark.parametrize("where", [0, -1])
def test_consistency_from_samples_counts_a_single_wrong_answer_in_the_warm_up_or_at_the_end(
    arm: Arm, columns: dict[str, IntArray], where: int
) -> None:
    columns["pred"][of(columns)[where]] += 1
    assert consistency(columns).mismatch == 1
    assert "1 of" in reasons(arm, columns)[0]
    assert "timed answers differ" in reasons(arm, columns)[0]
    assert "`student`" in reasons(arm, columns)[0]


@pytest.mark.parametrize(("times", "expected"), [(0.5, 0), (1.5, 1), (-1.5, 1)])
def test_consistency_from_samples_compares_confidences_beyond_honest_rounding(
    columns: dict[str, IntArray], times: float, expected: int
) -> None:
    columns["confidence"][of(columns)[7]] += round(times * MAX_CONFIDENCE_DIFFERENCE * 1e9)
    assert consistency(columns).mismatch == expected


def test_consistency_from_samples_leaves_other_arms_faults_to_them(columns: dict[str, IntArray]) -> None:
    columns["pred"][of(columns, 0)] += 1
    assert consistency(columns).mismatch == 0


def test_consistency_from_samples_counts_what_failed_in_any_pass(arm: Arm, columns: dict[str, IntArray]) -> None:
    place = of(columns)[3]
    columns["flags"][place] |= FLAG_ERROR
    columns["pred"][place], columns["confidence"][place] = NO_CLASS, NO_CONFIDENCE
    judged = np.flatnonzero(columns["accuracy_arm"] == STUDENT)
    columns["accuracy_pred"][judged[-1]] = NO_CLASS
    found = consistency(columns)
    assert found.errors == 2
    assert found.timed_checked == len(of(columns)) - 1
    assert "2 queries failed; the first: the first" in reasons(arm, columns)[0]


def test_consistency_from_samples_does_not_compare_dropped_frames(columns: dict[str, IntArray]) -> None:
    place = of(columns)[3]
    columns["flags"][place] |= FLAG_DROPPED
    columns["pred"][place], columns["confidence"][place] = NO_CLASS, NO_CONFIDENCE
    found = consistency(columns)
    assert (found.mismatch, found.errors, found.timed_checked) == (0, 0, len(of(columns)) - 1)


def test_consistency_from_samples_compares_later_launches_with_the_first(
    arm: Arm, columns: dict[str, IntArray]
) -> None:
    judged = columns["accuracy_arm"] == STUDENT
    answers = columns["accuracy_pred"][judged].copy()
    answers[4] += 1
    again = {
        "recheck_arm": np.full_like(answers, STUDENT),
        "recheck_launch": np.ones_like(answers),
        "recheck_sample": columns["accuracy_sample"][judged],
        "recheck_pred": answers,
        "recheck_confidence": columns["accuracy_confidence"][judged],
    }
    found = consistency({**columns, **again})
    assert (found.rechecked, found.recheck_mismatch) == (len(answers), 1)
    assert "answers of later launches differ" in reasons(arm, {**columns, **again})[0]


def test_reasons_of_names_remembered_answers(arm: Arm, columns: dict[str, IntArray]) -> None:
    assert "answers are remembered" in reasons(arm, columns, sensitivity=0.1)[0]
    assert reasons(arm, columns, sensitivity=None) == []


@pytest.mark.parametrize("every", [10, 50])
def test_reasons_of_names_skipped_work(arm: Arm, columns: dict[str, IntArray], every: int) -> None:
    places = of(columns)[::every]
    columns["t_inf_end"][places] = columns["t_pre_end"][places] + 1_000
    assert instant_share(Samples(columns), STUDENT) == pytest.approx(1 / every, rel=0.3)
    assert "work is skipped" in reasons(arm, columns)[0]


def test_instant_share_is_of_each_blocks_own_median(columns: dict[str, IntArray]) -> None:
    """A processor whose clock rises to five times as fast halfway makes no query instant."""
    places = of(columns)
    fast = places[columns["block"][places] > np.median(columns["block"][places])]
    columns["t_inf_end"][fast] = columns["t_pre_end"][fast] + (columns["t_inf_end"] - columns["t_pre_end"])[fast] // 5
    assert instant_share(Samples(columns), STUDENT) == 0.0


def test_reasons_of_names_a_waiting_backend_only_where_it_must_compute(arm: Arm, columns: dict[str, IntArray]) -> None:
    columns["block_cpu_ns"] = columns["block_wall_ns"] // 10
    assert cpu_ratio(Samples(columns), STUDENT) == pytest.approx(0.1, rel=1e-3)
    assert "waits instead of computing" in reasons(arm, columns)[0]
    assert reasons(replace(arm, options={**arm.options, "device": "GPU.0"}), columns) == []


@pytest.mark.parametrize(("bytes_per_query", "leaks"), [(0, False), (MAX_RSS_GROWTH // 2, False), (5_000, True)])
def test_warnings_of_names_a_leak_although_the_numbers_hold(
    arm: Arm, columns: dict[str, IntArray], bytes_per_query: int, leaks: bool
) -> None:
    columns["block_rss"] = 10**8 + BLOCK * bytes_per_query * _rank_in_launch(columns)
    found = consistency(columns)
    assert found.rss_growth_per_query == pytest.approx(bytes_per_query, rel=0.01, abs=1)
    assert reasons(arm, columns) == []
    warnings = warnings_of(replace(arm, consistency=found))
    assert bool(warnings) == leaks
    assert all("leaks memory" in warning for warning in warnings)


def _rank_in_launch(columns: dict[str, IntArray]) -> IntArray:
    """Return for each block how many blocks of its arm and launch came before it."""
    keys = list(zip(columns["block_arm"], columns["block_launch"], columns["block_index"], strict=True))
    return np.array([sum(other[:2] == key[:2] and other[2] < key[2] for other in keys) for key in keys], np.int64)


def test_rss_growth_per_query_is_none_where_memory_cannot_be_read(columns: dict[str, IntArray]) -> None:
    columns["block_rss"][:] = -1
    assert rss_growth_per_query(Samples(columns), STUDENT) is None


def test_rss_growth_per_query_is_not_moved_by_an_arena_that_grows_once(columns: dict[str, IntArray]) -> None:
    columns["block_rss"] = np.where(_rank_in_launch(columns) < 2, 10**8, 10**8 + (64 << 20))
    growth = rss_growth_per_query(Samples(columns), STUDENT)
    assert growth is not None
    assert growth < MAX_RSS_GROWTH


def test_theil_sen_slope_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    x = np.sort(generator.uniform(0, 100, 60))
    y = 3 * x + generator.standard_cauchy(60)
    assert theil_sen_slope(x, y) == pytest.approx(stats.theilslopes(y, x).slope)
