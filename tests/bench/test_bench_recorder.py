from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.bench.recorder import FLAG_ERROR, FLAG_REWARM, FLAG_WARMUP, NO_CLASS, Recorder, timer_overhead_ns
from edgebert.card import ModelCard, Provenance
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

Answer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

SPEC = InputSpec(height=4, width=4, classes=3)
CARD = ModelCard(
    class_names=("a", "b", "c"),
    preprocessing=Preprocessing(height=4, width=4),
    provenance=Provenance(stage="export"),
)


def recorder(answer: Answer | None = None, latency_ms: tuple[float, ...] = (), images: int = 5) -> Recorder:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 6, 5, 3), np.uint8)
    return Recorder(Pipeline(FakeRunner(SPEC, logits=answer, latency_ms=latency_ms), CARD), list(pixels))


def test_block_stamps_are_monotonic_and_shared_by_the_stages() -> None:
    recorded = recorder()
    recorded.block(0, 50)
    columns = recorded.columns()
    stamps = np.stack([columns[name] for name in ("t_issue", "t_pre_end", "t_inf_end", "t_done")], axis=1)
    assert (np.diff(stamps, axis=1) >= 0).all()
    assert (columns["t_issue"][1:] >= columns["t_done"][:-1]).all()
    assert all(column.dtype == np.int64 for column in columns.values())


def test_block_walks_the_images_in_order_and_goes_on_where_the_last_block_ended() -> None:
    recorded = recorder(images=5)
    recorded.block(0, 12)
    recorded.block(1, 12)
    assert recorded.columns()["sample_index"].tolist() == [index % 5 for index in range(24)]


def test_block_flags_its_first_queries() -> None:
    recorded = recorder()
    recorded.block(7, 10)
    recorded.block(8, 45)
    columns = recorded.columns()
    flags, block = columns["flags"], columns["block"]
    assert (flags[block == 7] == FLAG_REWARM).tolist() == [True] * 2 + [False] * 8
    assert np.count_nonzero(flags[block == 8] == FLAG_REWARM) == 5
    assert columns["block_index"].tolist() == [7, 8]


def test_block_keeps_a_slow_query() -> None:
    recorded = recorder(latency_ms=(1.0,) * 9 + (60.0,))
    recorded.block(0, 10)
    columns = recorded.columns()
    infer = columns["t_inf_end"] - columns["t_pre_end"]
    assert infer.max() >= 60_000_000
    assert infer.argmax() == 9


def test_block_keeps_a_failed_query_with_its_flag() -> None:
    calls = iter(range(100))

    def fails_once(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(calls) == 4:
            raise RuntimeError("planted")
        return np.zeros((1, 3), np.float32)

    recorded = recorder(fails_once)
    recorded.block(0, 10)
    columns = recorded.columns()
    failed = (columns["flags"] & FLAG_ERROR) != 0
    assert np.flatnonzero(failed).tolist() == [4]
    assert columns["pred"][4] == NO_CLASS
    assert recorded.first_error == "RuntimeError: planted"


def test_block_runs_without_the_garbage_collector_and_turns_it_on_again() -> None:
    seen = []

    def looks(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(gc.isenabled())
        return np.zeros((1, 3), np.float32)

    recorder(looks).block(0, 10)
    assert not any(seen)
    assert gc.isenabled()


def test_block_is_deaf_to_steps_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(0, 10**9, 3_600))
    monkeypatch.setattr(time, "time", lambda: float(next(steps)))
    monkeypatch.setattr(time, "time_ns", lambda: next(steps) * 10**9)
    recorded = recorder()
    recorded.block(0, 20)
    columns = recorded.columns()
    assert (columns["t_done"] - columns["t_issue"]).max() < 3_600 * 10**9


def test_warm_up_keeps_its_queries_apart_and_starts_the_images_again() -> None:
    recorded = recorder(latency_ms=(1.0,))
    warmup = recorded.warm_up(0)
    recorded.block(0, 10)
    columns = recorded.columns()
    warm = (columns["flags"] & FLAG_WARMUP) != 0
    assert np.count_nonzero(warm) == warmup.queries >= 10
    assert set(columns["block"][warm]) == {-1}
    assert columns["sample_index"][~warm][0] == 0
    assert not warmup.converged
    assert warmup.median_ns >= 1_000_000


def test_warm_up_ends_unconverged_when_it_never_becomes_steady() -> None:
    waits = iter(np.geomspace(0.05, 50.0, 400))

    def ever_slower(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        until = time.perf_counter_ns() + round(next(waits) * 1e6)
        while time.perf_counter_ns() < until:
            pass
        return np.zeros((1, 3), np.float32)

    warmup = recorder(ever_slower).warm_up(2_500_000_000)
    assert not warmup.converged
    assert warmup.ns >= 2_500_000_000


def test_input_sensitivity_is_about_one_for_an_honest_model() -> None:
    def spins(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        until = time.perf_counter_ns() + 200_000
        while time.perf_counter_ns() < until:
            pass
        return np.zeros((1, 3), np.float32)

    assert 0.8 < recorder(spins).input_sensitivity(32) < 1.25


def test_input_sensitivity_is_far_below_one_when_answers_are_remembered() -> None:
    known: set[bytes] = set()

    def remembers(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        if batch.tobytes() not in known:
            known.add(batch.tobytes())
            time.sleep(0.001)
        return np.zeros((1, 3), np.float32)

    assert recorder(remembers).input_sensitivity(32) < 0.3


def test_input_sensitivity_never_writes_into_the_images() -> None:
    recorded = recorder()
    before = [image.copy() for image in recorded.images]
    recorded.input_sensitivity(200)
    assert all(np.array_equal(image, copy) for image, copy in zip(recorded.images, before, strict=True))


def test_timer_overhead_ns_is_positive_and_small() -> None:
    assert 0 < timer_overhead_ns() < 100_000
