"""The fake runner that users' tests get."""

from __future__ import annotations

import numpy as np
import pytest

from edgebert.errors import BadDataError
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions
from edgebert.testing import FakeRunner

SPEC = InputSpec(height=2, width=3, classes=4)


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 3, 3), np.uint8)


def test_fake_runner_gives_the_scripted_logits() -> None:
    logits = FakeRunner(SPEC, logits=[1, 2, 3, 4]).infer(_images(2))
    assert logits.dtype == np.float32
    assert logits.tolist() == [[1, 2, 3, 4]] * 2


def test_fake_runner_asks_the_given_function() -> None:
    runner = FakeRunner(SPEC, logits=lambda batch: batch.reshape(len(batch), -1)[:, :4].astype(np.float32))
    batch = _images(3)
    assert runner.infer(batch).tolist() == batch.reshape(3, -1)[:, :4].tolist()


def test_fake_runner_tells_images_apart_by_default() -> None:
    first, second = FakeRunner(SPEC).infer(_images(2))
    assert not np.allclose(first, second)
    assert np.array_equal(FakeRunner(SPEC).infer(_images(2))[0], first)


def test_fake_runner_sleeps_as_scripted_and_starts_again() -> None:
    slept: list[float] = []
    runner = FakeRunner(SPEC, latency_ms=[5, 20], sleep=slept.append)
    for _ in range(3):
        runner.infer(_images(1))
    assert slept == [0.005, 0.02, 0.005]


def test_fake_runner_does_not_sleep_unasked() -> None:
    FakeRunner(SPEC, sleep=lambda seconds: pytest.fail(f"slept {seconds} s")).infer(_images(1))


def test_fake_runner_refuses_a_script_of_another_shape() -> None:
    with pytest.raises(BadDataError, match="one logit per class"):
        FakeRunner(SPEC, logits=[1.0, 2.0]).infer(_images(1))


def test_fake_runner_opens_like_any_other() -> None:
    assert FakeRunner.devices() == ("CPU",)
    with FakeRunner.open(ModelSource(spec=SPEC), RunnerOptions()) as runner:
        assert runner.infer(_images(1)).shape == (1, 4)
