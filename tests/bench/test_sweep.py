"""Windows of closed loops, and the message that asks a worker for one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert._json import Fields
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.recorder import BLOCK_ROW_COLUMNS, FLAG_ERROR, FLAG_REWARM, ROW_COLUMNS
from edgebert.bench.samples import SCENARIOS, IntArray
from edgebert.bench.scenarios.closed_loop import Window, run_window, takes_batch
from edgebert.bench.scenarios.probe import Probed, ProbeRequest, probe
from edgebert.bench.scenarios.query import Asker
from edgebert.card import ModelCard, Provenance
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
STAMPS = ("t_sched", "t_issue", "t_pre_end", "t_inf_end", "t_done")
IMAGES = [np.full((2, 2, 3), value, np.uint8) for value in range(7)]


class Backend:
    """Answers after a pause, counts calls and how many run at once, and fails or refuses where told to."""

    def __init__(self, *, pause_s: float = 0.001, largest: int = 1_024, fail_at: int = -1) -> None:
        self.pause_s, self.largest, self.fail_at = pause_s, largest, fail_at
        self.sizes: list[int] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self.lock:
            self.sizes.append(len(batch))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            time.sleep(self.pause_s)
            if len(batch) > self.largest or len(self.sizes) == self.fail_at:
                raise RuntimeError("the planted failure")
            return np.eye(3, dtype=np.float32)[batch[:, 0, 0, 0] % 3]
        finally:
            with self.lock:
                self.now -= 1


def pipeline_of(answer: Answer) -> Pipeline:
    card = ModelCard(
        class_names=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=2, width=2),
        provenance=Provenance(stage="import"),
    )
    return Pipeline(FakeRunner(InputSpec(height=2, width=2, classes=3), logits=answer), card)


def probed(backend: Answer, request: ProbeRequest) -> tuple[dict[str, IntArray], dict[str, int], Probed]:
    rows, block, answer = probe(pipeline_of(backend), IMAGES, Fields(to_json(request), what="a test"))
    assert rows.shape[1] == len(ROW_COLUMNS)
    columns = {name: rows[:, place] for place, name in enumerate(ROW_COLUMNS)}
    return columns, dict(zip(BLOCK_ROW_COLUMNS, block.tolist(), strict=True)), from_json(Probed, answer, what="a test")


def test_run_window_gives_the_images_of_a_batch_one_set_of_stamps() -> None:
    backend = Backend()
    asker = Asker(pipeline_of(backend), IMAGES)
    run_window([asker], Window(group=3, ns=20_000_000))
    rows = asker.rows(scenario=2, point=5, block=1)
    stamps = rows[:, [ROW_COLUMNS.index(name) for name in STAMPS]].reshape(-1, 3, 5)  # (questions, images, stamps)
    assert set(backend.sizes) == {3}
    assert len(stamps) == len(backend.sizes)
    assert (stamps == stamps[:, :1]).all()
    assert (np.diff(stamps[:, 0], axis=1) >= 0).all()
    assert (stamps[1:, 0, 1] >= stamps[:-1, 0, 4]).all()  # one question at a time
    index = rows[:, ROW_COLUMNS.index("sample_index")]
    assert index.tolist() == [number % len(IMAGES) for number in range(len(index))]
    np.testing.assert_array_equal(rows[:, ROW_COLUMNS.index("pred")], index % 3)


def test_run_window_asks_once_before_the_window_and_flags_it() -> None:
    asker = Asker(pipeline_of(Backend()), IMAGES)
    run_window([asker], Window(group=1, ns=10_000_000))
    rows = asker.rows(scenario=2, point=0, block=0)
    flags = rows[:, ROW_COLUMNS.index("flags")]
    assert flags[0] == FLAG_REWARM
    assert not flags[1:].any()
    issue, done = rows[:, ROW_COLUMNS.index("t_issue")], rows[:, ROW_COLUMNS.index("t_done")]
    assert done[-1] - issue[1] >= 9_000_000  # as long as asked, but for what lies before the first question


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_run_window_keeps_as_many_questions_in_flight_as_there_are_threads(threads: int) -> None:
    backend = Backend(pause_s=0.004)
    pipeline = pipeline_of(backend)
    askers = [Asker(pipeline, IMAGES) for _ in range(threads)]
    run_window(askers, Window(group=2, ns=60_000_000))
    rows = np.concatenate([asker.rows(scenario=2, point=0, block=0) for asker in askers])
    assert backend.most == threads
    # Every number is drawn once: over whole cycles of the images none is asked about more often than another by two.
    counts = Counter(rows[:, ROW_COLUMNS.index("sample_index")].tolist())
    assert max(counts.values()) - min(counts.values()) <= 2
    assert len(rows) == 2 * len(backend.sizes)


def test_run_window_is_as_long_as_its_least_question() -> None:
    asker = Asker(pipeline_of(Backend(pause_s=0.01)), IMAGES)
    run_window([asker], Window(group=1, ns=0))
    assert asker.questions == 2  # the one before, and one


def test_run_window_keeps_the_load_up_when_it_keeps_no_more_stamps() -> None:
    backend = Backend(fail_at=12)
    asker = Asker(pipeline_of(backend), IMAGES)
    started = time.perf_counter_ns()
    run_window([asker], Window(group=1, ns=60_000_000, most=4))
    assert time.perf_counter_ns() - started >= 60_000_000
    flags = asker.rows(scenario=5, point=0, block=0)[:, ROW_COLUMNS.index("flags")].tolist()
    assert len(backend.sizes) > 12
    assert flags == [FLAG_REWARM, 0, 0, 0, 0, FLAG_ERROR]  # what fails is never forgotten
    assert asker.first_error == "RuntimeError: the planted failure"


def test_takes_batch_forgets_the_question_that_was_refused() -> None:
    asker = Asker(pipeline_of(Backend(largest=2)), IMAGES)
    assert takes_batch(asker, 2)
    assert not takes_batch(asker, 4)
    assert (asker.questions, asker.first_error) == (1, None)


def test_probe_multi_stream_asks_for_all_images_in_one_call() -> None:
    backend = Backend()
    request = ProbeRequest(scenario="multi-stream", point=0, block=3, seed=0, samples=5, seconds=0.02)
    rows, block, answer = probed(backend, request)
    assert set(backend.sizes) == {5}
    assert (answer.batch, answer.point) == (5, 0)
    assert answer.images == 5 * answer.queries == np.count_nonzero(rows["flags"] == 0)
    assert block["block_index"] == 3
    assert block["block_scenario"] == SCENARIOS.index("multi-stream")


def test_probe_multi_stream_asks_one_by_one_when_the_model_takes_no_batch() -> None:
    backend = Backend(largest=1)
    request = ProbeRequest(scenario="multi-stream", point=0, block=0, seed=0, samples=4, seconds=0.03)
    rows, _, answer = probed(backend, request)
    assert Counter(backend.sizes)[4] == 1  # tried once
    assert (answer.batch, answer.point, answer.first_error, answer.failed) == (1, 1, None, 0)
    assert set(rows["point"]) == {1}
    stamps = np.column_stack([rows[name] for name in STAMPS]).reshape(-1, 4, 5)
    assert (stamps == stamps[:, :1]).all()  # the query is done when its last image is
    infer = (stamps[:, 0, 3] - stamps[:, 0, 2]) / (stamps[:, 0, 4] - stamps[:, 0, 1])
    assert (infer > 0.5).all()  # four pauses are inference, whatever the machine does between them
    np.testing.assert_array_equal(rows["pred"], rows["sample_index"] % 3)


def test_probe_offline_times_nothing_when_the_model_refuses_the_batch() -> None:
    request = ProbeRequest(scenario="offline", point=8_001, block=0, seed=0, batch=8, seconds=0.02)
    rows, block, answer = probed(Backend(largest=4), request)
    assert len(rows["flags"]) == 0
    assert (answer.batch, answer.queries, answer.failed, block["block_wall_ns"]) == (0, 0, 0, 0)
    assert answer.first_error is None


def test_probe_offline_answer_says_what_its_rows_say() -> None:
    request = ProbeRequest(scenario="offline", point=2_002, block=9, seed=3, batch=2, inflight=2, seconds=0.03)
    rows, block, answer = probed(Backend(), request)
    counted = rows["flags"] == 0
    assert answer.images == np.count_nonzero(counted)
    assert answer.wall_ns == rows["t_done"][counted].max() - rows["t_issue"][counted].min() == block["block_wall_ns"]
    assert block["block_start_ns"] == rows["t_issue"][counted].min()
    assert block["block_cpu_ns"] > 0
    assert answer.p50 in rows["t_done"] - rows["t_sched"]
    np.testing.assert_array_equal(rows["t_sched"], rows["t_issue"])


def test_probe_counts_failed_queries_and_keeps_the_first_message() -> None:
    request = ProbeRequest(scenario="offline", point=1_001, block=0, seed=0, seconds=0.03)
    rows, _, answer = probed(Backend(fail_at=5), request)
    assert answer.failed == np.count_nonzero(rows["flags"] & FLAG_ERROR) == 1
    assert answer.first_error == "RuntimeError: the planted failure"
    assert answer.queries == len(rows["flags"]) - 2


def test_probe_server_says_when_it_gave_up() -> None:
    backend = Backend(pause_s=0.004)
    slow = ProbeRequest(
        scenario="server", point=0, block=0, seed=1, queries=400, rate=2_000.0, policy="queue", bound_ns=5_000_000
    )
    _, _, answer = probed(backend, slow)
    assert answer.backlog
    assert answer.dropped > answer.queries > answer.within
    assert answer.wall_ns < 3 * 400 / 2_000 * 1e9


def test_probe_paced_drop_is_no_backlog() -> None:
    request = ProbeRequest(
        scenario="paced", point=0, block=0, seed=0, queries=40, rate=500.0, policy="drop", bound_ns=2_000_000
    )
    _, _, answer = probed(Backend(pause_s=0.003), request)
    assert answer.dropped >= 10  # each takes longer than a frame
    assert answer.queries + answer.dropped == 40
    assert (answer.backlog, answer.within) == (False, 0)
