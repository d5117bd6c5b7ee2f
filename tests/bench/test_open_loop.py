"""Arrivals on a clock that the test drives: nothing here waits, and every time is exact but for the clock's own ticks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.bench.harness_cost import harness_cost
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_REWARM, NO_CLASS, ROW_COLUMNS
from edgebert.bench.samples import IntArray
from edgebert.bench.scenarios.lateness import late_by, lateness_of
from edgebert.bench.scenarios.open_loop import SPIN_NS, Arrivals, Policy, paced_schedule, poisson_schedule, run_arrivals
from edgebert.bench.scenarios.query import Asker
from edgebert.card import ModelCard, Provenance
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

MS = 1_000_000
STAMPS = ("t_sched", "t_issue", "t_pre_end", "t_inf_end", "t_done")


@dataclass
class DrivenClock:
    """A clock that moves by 10 ns at every look, and by as much as somebody sleeps."""

    now: int = 0
    sleeps: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self) -> int:
        self.now += 10
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append((self.now, self.now + round(seconds * 1e9)))
        self.now += round(seconds * 1e9)


def pipeline_of(answer: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Pipeline:
    card = ModelCard(
        class_names=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=2, width=2),
        provenance=Provenance(stage="import"),
    )
    return Pipeline(FakeRunner(InputSpec(height=2, width=2, classes=3), logits=answer), card)


def served(
    offsets: IntArray, service_ns: int, *, policy: Policy = "queue", patience_ns: int | None = None, fail_at: int = -1
) -> tuple[dict[str, IntArray], DrivenClock, int]:
    """Return the rows of a run whose every query takes `service_ns`, the clock, and how many images the model saw."""
    clock, seen = DrivenClock(), [0]

    def answer(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        clock.now += service_ns
        seen[0] += 1
        if seen[0] == fail_at:
            raise RuntimeError("the planted failure")
        return np.eye(3, dtype=np.float32)[batch[:, 0, 0, 0] % 3]

    asker = Asker(pipeline_of(answer), [np.full((2, 2, 3), value, np.uint8) for value in range(5)], clock)
    run_arrivals([asker], Arrivals(offsets=offsets, policy=policy, patience_ns=patience_ns), sleep=clock.sleep)
    rows = asker.rows(scenario=3, point=0, block=7)
    assert rows[0, ROW_COLUMNS.index("flags")] == FLAG_REWARM
    return {name: rows[1:, place] for place, name in enumerate(ROW_COLUMNS)}, clock, seen[0] - 1


@pytest.mark.parametrize(("service_ns", "each"), [(MS // 2, 1), (3 * MS // 2, 2), (5 * MS // 2, 3)])
def test_run_arrivals_drops_frames_that_come_while_another_is_worked_on(service_ns: int, each: int) -> None:
    rows, _, seen = served(paced_schedule(1_000.0, 60), service_ns, policy="drop")
    dropped = rows["flags"] == FLAG_DROPPED
    assert np.flatnonzero(~dropped).tolist() == list(range(0, 60, each))
    assert seen == 60 // each  # nobody looked at the others
    for name in STAMPS:
        np.testing.assert_array_equal(rows[name][dropped], rows["t_sched"][dropped])
    assert (rows["pred"][dropped] == NO_CLASS).all()


def test_run_arrivals_lets_latency_grow_when_frames_queue() -> None:
    rows, _, seen = served(paced_schedule(1_000.0, 40), 3 * MS // 2, policy="queue")
    latency = rows["t_done"] - rows["t_sched"]
    assert seen == 40
    # Each frame waits half a millisecond longer than the one before; the ticks of the clock are far below that.
    np.testing.assert_allclose(np.diff(latency), MS / 2, rtol=0.01)
    queue = rows["t_issue"] - rows["t_sched"]
    assert queue[-1] > 15 * queue[1] > 0


def test_run_arrivals_never_issues_before_a_query_is_due_and_sleeps_until_shortly_before() -> None:
    rows, clock, _ = served(paced_schedule(100.0, 20), MS)
    assert (rows["t_issue"] >= rows["t_sched"]).all()
    ends = np.array([end for _, end in clock.sleeps])
    np.testing.assert_allclose(rows["t_sched"] - ends, SPIN_NS, atol=100)
    assert (late_by(rows["t_sched"], rows["t_issue"], rows["t_done"]) < 1_000).all()


def test_run_arrivals_gives_up_when_the_server_cannot_keep_up() -> None:
    rows, clock, seen = served(paced_schedule(1_000.0, 1_000), 4 * MS, patience_ns=50 * MS)
    dropped = rows["flags"] == FLAG_DROPPED
    answered = ~dropped
    assert seen == np.count_nonzero(answered) < 20
    late = (rows["t_done"] - rows["t_sched"])[answered]
    assert (late[:-1] <= 50 * MS).all()
    assert late[-1] > 50 * MS
    # Those that had come by then have a row, later ones have none; the run ended there and not a second later.
    assert (rows["t_sched"][dropped] <= rows["t_done"][answered][-1]).all()
    assert len(rows["flags"]) == 1 + (rows["t_done"][answered][-1] - rows["t_sched"][0]) // MS
    assert clock.now - rows["t_sched"][0] < 100 * MS


def test_run_arrivals_flags_a_failed_query_and_goes_on() -> None:
    rows, _, _ = served(paced_schedule(100.0, 10), MS, fail_at=4)  # the first is asked before the first arrival
    assert rows["flags"].tolist() == [0, 0, FLAG_ERROR, 0, 0, 0, 0, 0, 0, 0]
    assert (rows["pred"][2], rows["confidence"][2]) == (-1, -1)
    ordered = np.column_stack([rows[name] for name in STAMPS])
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_run_arrivals_cycles_the_images_and_fills_every_column() -> None:
    rows, _, _ = served(paced_schedule(1_000.0, 12), MS // 4)
    assert rows["sample_index"].tolist() == [n % 5 for n in range(12)]
    assert rows["pred"].tolist() == [n % 5 % 3 for n in range(12)]
    assert set(rows["scenario"]) == {3}
    assert set(rows["block"]) == {7}
    assert (rows["confidence"] > 500_000_000).all()


@pytest.mark.parametrize("servers", [1, 2])
def test_run_arrivals_works_on_as_many_queries_at_once_as_there_are_servers(servers: int) -> None:
    lock, state = threading.Lock(), {"now": 0, "most": 0}

    def answer(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.005)
        with lock:
            state["now"] -= 1
        return np.eye(3, dtype=np.float32)[batch[:, 0, 0, 0] % 3]

    pipeline, images = pipeline_of(answer), [np.zeros((2, 2, 3), np.uint8)]
    askers = [Asker(pipeline, images) for _ in range(servers)]
    run_arrivals(askers, Arrivals(offsets=paced_schedule(1_000.0, 20)))
    rows = np.concatenate([asker.rows(scenario=4, point=0, block=0) for asker in askers])
    assert len(rows) == 20 + servers  # each arrival once, and one question of each server before the first
    assert len(np.unique(rows[:, ROW_COLUMNS.index("t_sched")])) == 20 + servers
    assert state["most"] == servers


def test_poisson_schedule_has_exponential_gaps_of_the_rate_and_repeats_with_its_seed() -> None:
    offsets = poisson_schedule(200.0, 20_000, seed=1)
    gaps = np.diff(offsets)
    assert gaps.mean() == pytest.approx(5 * MS, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential distribution they are equal
    assert np.mean(gaps < 5 * MS) == pytest.approx(1 - np.exp(-1), abs=0.01)
    np.testing.assert_array_equal(offsets, poisson_schedule(200.0, 20_000, seed=1))
    assert not np.array_equal(offsets, poisson_schedule(200.0, 20_000, seed=2))


def test_late_by_counts_only_queries_that_found_a_server_idle() -> None:
    due = np.array([0, 100, 200, 300])
    issued = np.array([2, 103, 260, 305])
    done = np.array([50, 250, 280, 400])
    assert late_by(due, issued, done).tolist() == [2, 3, 5]  # the third came while the second was worked on
    assert late_by(due, issued, done, servers=2).tolist() == [2, 3, 60, 5]


def test_lateness_of_no_idle_arrival_is_none() -> None:
    assert lateness_of(np.zeros(0, np.int64)) is None
    found = lateness_of(np.arange(1, 101))
    assert found is not None
    assert (found.p50, found.p99, found.max, found.n) == (50, 99, 100, 100)


def test_harness_cost_measures_the_loops_of_this_process() -> None:
    found = harness_cost()
    assert 0 < found.timer_overhead_ns < found.recorder_ns <= found.recorder_p99_ns
    assert 0 < found.lateness.p50 <= found.lateness.p99 <= found.lateness.max
    assert 1 <= found.lateness.n <= 300
