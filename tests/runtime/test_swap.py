"""`Classifier.swap`, `close`, `warm_up` and what else concerns the life of an opened bundle."""

from __future__ import annotations

import collections
import copy
import multiprocessing
import operator
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgebert.runtime.classifier as classifier_module
from edgebert.bundle import read_bundle
from edgebert.errors import (
    BatchSizeError,
    BundleError,
    ClosedError,
    ImageError,
    NoSuchBundleError,
    NotFiniteError,
    RefusedBundleError,
    UsageError,
)
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.opened import open_bundle

WAIT = 30


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class _Thread(threading.Thread):
    """A thread whose function's result or error is kept."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  # told to the test's own thread
            self.result = error

    def end(self) -> Any:
        self.join(WAIT)
        assert not self.is_alive()
        return self.result


# Swap


def test_swap_changes_the_bundle_and_says_so_in_every_answer(
    opened: Any, models: Any, toy: Any, other_bundle: Path
) -> None:
    classifier, _ = opened()
    image = toy.images(1)[0]
    before = classifier.predict(image)
    digest = classifier.swap(other_bundle)
    assert digest == classifier.digest == read_bundle(other_bundle).digest != before.digest
    assert classifier.path == other_bundle
    for answer in (
        classifier.predict(image),
        classifier.predict_batch([image])[0],
        classifier.submit(image).result(WAIT),
    ):
        assert answer.digest == digest
        assert answer.scores == before.scores
    assert [model.closed for model in models.opened] == [1, 0]
    assert (classifier.counters().swaps, classifier.counters().digest) == (1, digest)


def test_swap_frees_the_old_bundle_when_its_last_call_has_ended(
    opened: Any, models: Any, toy: Any, other_bundle: Path
) -> None:
    classifier, model = opened()
    old = classifier.digest
    model.go.clear()
    call = _Thread(lambda: classifier.predict(toy.images(1)[0]))
    model.wait_for_call()
    swap = _Thread(lambda: classifier.swap(other_bundle))
    _until(lambda: classifier.digest != old)
    assert classifier.predict(toy.images(1)[0]).digest == classifier.digest  # served while the old one is drained
    assert swap.is_alive()
    assert model.closed == 0
    model.go.set()
    assert call.end().digest == old
    assert swap.end() == classifier.digest
    assert model.closed == 1


def test_swap_answers_what_was_submitted_before_with_the_old_bundle(
    opened: Any, models: Any, toy: Any, other_bundle: Path
) -> None:
    classifier, model = opened(max_batch=8)
    old, images = classifier.digest, toy.images(6)
    model.go.clear()
    futures = [classifier.submit(images[0])]
    model.wait_for_call()
    futures += [classifier.submit(image) for image in images[1:3]]
    swap = _Thread(lambda: classifier.swap(other_bundle))
    _until(lambda: classifier.digest != old)
    later = [classifier.submit(image) for image in images[3:]]
    model.go.set()
    assert {future.result(WAIT).digest for future in futures} == {old}
    assert {future.result(WAIT).digest for future in later} == {swap.end()}
    assert models[0].sizes == [1, 2]
    assert len(models[1].batches[-1]) == 3  # no batch holds images of both


def test_a_failed_swap_leaves_the_old_bundle_serving(opened: Any, toy: Any, other_bundle: Path, tmp_path: Path) -> None:
    classifier, model = opened()
    before = classifier.predict(toy.images(1)[0])
    broken = shutil.copytree(other_bundle, tmp_path / "broken.edgebert")
    (broken / "model.onnx").write_bytes(b"changed")
    with pytest.raises(RefusedBundleError, match=r"model\.onnx"):
        classifier.swap(broken)
    with pytest.raises(NoSuchBundleError):
        classifier.swap(tmp_path / "none")
    assert classifier.predict(toy.images(1)[0]) == before
    assert model.closed == 0
    assert (classifier.counters().swaps, classifier.counters().failed_swaps) == (0, 2)


def test_a_candidate_that_fails_its_self_test_never_serves(
    opened: Any, models: Any, toy: Any, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = opened()
    before = classifier.predict(toy.images(1)[0])
    monkeypatch.setattr(type(models[0]), "_usable_model", lambda self: lambda batch: toy.logits(batch) + np.float32(1))
    with pytest.raises(BundleError, match="canary"):
        classifier.swap(other_bundle)
    monkeypatch.undo()
    assert classifier.predict(toy.images(1)[0]) == before
    assert [model.closed for model in models.opened] == [0, 1]


def test_swap_takes_other_class_names_and_another_size(other_toy_bundle: Path, toy_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with Classifier(toy_bundle) as classifier:
        assert classifier.predict(frame).label in ("bolt", "gear", "nut", "washer")
        classifier.swap(other_toy_bundle)
        assert classifier.class_names == ("left", "right")
        assert (classifier.input_spec.height, classifier.input_spec.width) == (4, 10)
        assert classifier.predict(frame).label in ("left", "right")
        assert classifier.submit(frame).result(WAIT) == classifier.predict(frame)


def test_swap_after_close_is_refused(opened: Any, models: Any, other_bundle: Path) -> None:
    classifier, _ = opened()
    classifier.close()
    with pytest.raises(ClosedError):
        classifier.swap(other_bundle)
    assert len(models.opened) == 1


def test_swap_during_close_frees_both(
    opened: Any, models: Any, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = opened()

    def load_and_close(*arguments: Any) -> Any:
        fresh = open_bundle(*arguments)
        classifier.close()
        return fresh

    monkeypatch.setattr(classifier_module, "open_bundle", load_and_close)
    with pytest.raises(ClosedError):
        classifier.swap(other_bundle)
    assert all(model.closed for model in models.opened)
    assert classifier.counters().swaps == 0


def test_swap_from_a_callback_returns_and_the_last_call_frees(
    opened: Any, models: Any, toy: Any, other_bundle: Path
) -> None:
    classifier, model = opened(max_batch=1)
    digests: list[str] = []
    model.go.clear()
    future = classifier.submit(toy.images(1)[0])
    future.add_done_callback(lambda _: digests.append(classifier.swap(other_bundle)))
    model.go.set()
    future.result(WAIT)
    _until(lambda: models[0].closed > 0)
    assert digests == [classifier.digest]
    assert classifier.submit(toy.images(1)[0]).result(WAIT).digest == classifier.digest


# Close


def test_close_waits_for_running_calls_which_end_normally(opened: Any, toy: Any) -> None:
    classifier, model = opened()
    model.go.clear()
    calls = [
        _Thread(lambda: classifier.predict(toy.images(1)[0])),
        _Thread(lambda: classifier.predict_batch(toy.images(3))),
    ]
    for _ in calls:
        model.wait_for_call()
    closing = [_Thread(classifier.close), _Thread(classifier.close)]
    closing[0].join(0.05)
    assert closing[0].is_alive()
    with pytest.raises(ClosedError):
        classifier.predict(toy.images(1)[0])
    model.go.set()
    assert calls[0].end().label
    assert len(calls[1].end()) == 3
    assert [thread.end() for thread in closing] == [None, None]
    assert model.closed > 0


@pytest.mark.parametrize("method", ["predict", "predict_batch", "submit", "swap", "warm_up", "properties"])
def test_every_method_is_refused_after_close(opened: Any, toy: Any, toy_bundle: Path, method: str) -> None:
    classifier, _ = opened()
    classifier.close()
    arguments: dict[str, tuple[Any, ...]] = {
        "predict": (toy.images(1)[0],),
        "predict_batch": (toy.images(2),),
        "submit": (toy.images(1)[0],),
        "swap": (toy_bundle,),
    }
    with pytest.raises(ClosedError, match="was closed"):
        getattr(classifier, method)(*arguments.get(method, ()))


def test_counters_and_names_outlive_close(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    classifier.predict(toy.images(1)[0])
    classifier.close()
    assert classifier.counters().answers == 1
    assert classifier.class_names == ("bolt", "gear", "nut", "washer")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no SIGALRM on Windows")
def test_close_in_a_signal_handler_that_interrupted_a_call(opened: Any, toy: Any) -> None:
    classifier, model = opened()

    def stop(*_: object) -> None:
        classifier.close()
        model.go.set()

    model.go.clear()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert classifier.predict(toy.images(1)[0]).label  # interrupted, closed over, and answered all the same
    finally:
        signal.signal(signal.SIGALRM, before)
    assert model.closed > 0
    with pytest.raises(ClosedError):
        classifier.predict(toy.images(1)[0])


def test_an_interrupt_leaves_the_classifier_usable(opened: Any, toy: Any) -> None:
    classifier, model = opened()
    model.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        classifier.predict(toy.images(1)[0])
    model.error = None
    assert classifier.predict(toy.images(1)[0]).label
    classifier.close()
    assert model.closed == 1


# Processes


def test_a_classifier_is_not_sent_to_another_process(opened: Any) -> None:
    classifier, _ = opened()
    with pytest.raises(UsageError, match="one Classifier per process"):
        copy.copy(classifier)
    process = multiprocessing.get_context("spawn").Process(target=print, args=(classifier,))
    with pytest.raises(UsageError, match="open it there"):
        process.start()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: forking with threads is what is tested
@pytest.mark.parametrize("method", ["predict", "predict_batch", "submit", "swap", "warm_up", "properties", "counters"])
def test_every_method_is_refused_in_a_forked_child(opened: Any, toy: Any, toy_bundle: Path, method: str) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on Windows")
    classifier, _ = opened()
    arguments: dict[str, tuple[Any, ...]] = {
        "predict": (toy.images(1)[0],),
        "predict_batch": (toy.images(2),),
        "submit": (toy.images(1)[0],),
        "swap": (toy_bundle,),
    }
    child = os.fork()
    if child == 0:
        code = 1
        try:
            classifier.close()  # does nothing: the model is the parent's
            getattr(classifier, method)(*arguments.get(method, ()))
        except BaseException as error:  # noqa: BLE001  # told, and the child ends here whatever it was
            code = 41 if type(error).__name__ == "ForkedRuntimeError" else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
    assert classifier.predict(toy.images(1)[0]).label


# What a batch and an array may be


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        ([], BatchSizeError),
        (np.zeros((0, 6, 8, 3), np.uint8), BatchSizeError),
        (np.broadcast_to(np.uint8(0), (65_537, 6, 8, 3)), BatchSizeError),
        ([b""] * 65_537, BatchSizeError),
        (np.zeros((6, 8, 3), np.uint8), ImageError),
        (np.zeros((2, 6, 8, 3), np.float32), ImageError),
        (np.zeros((2, 6, 8, 4), np.uint8), ImageError),
        (np.zeros((2, 0, 8, 3), np.uint8), ImageError),
        (b"an image", ImageError),
        ("part.png", ImageError),
        (iter([b""]), ImageError),
        (None, ImageError),
    ],
)
def test_predict_batch_refuses_what_is_no_batch(opened: Any, batch: Any, kind: type[Exception]) -> None:
    classifier, model = opened()
    with pytest.raises(kind, match="the batch"):
        classifier.predict_batch(batch)
    assert model.batches == []


def test_predict_batch_takes_an_array_of_images(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    images = toy.images(40)
    assert classifier.predict_batch(images) == [classifier.predict(image) for image in images]


class _Indexed(Sequence[Any]):
    """A sequence that cannot be sliced, as a list of files that are read when they are asked for."""

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        return self._images[operator.index(index)]


@pytest.mark.parametrize("kind", [collections.deque, _Indexed, tuple])
def test_predict_batch_takes_any_sequence(opened: Any, toy: Any, kind: Callable[[Any], Any]) -> None:
    classifier, _ = opened()
    images = toy.images(40)
    assert classifier.predict_batch(kind(images)) == classifier.predict_batch(images)


@pytest.mark.parametrize("place", [0, 31, 32, 40])
def test_predict_batch_says_which_image_was_answered_with_nan(opened: Any, toy: Any, place: int) -> None:
    classifier, model = opened()
    images = toy.images(50)
    images[place] = 7
    model.broken = lambda image: bool((image == 7).all())
    with pytest.raises(NotFiniteError, match=rf"image {place} of 50 with \[nan"):
        classifier.predict_batch(images)


def test_predict_batch_is_answered_by_one_bundle(opened: Any, models: Any, toy: Any, other_bundle: Path) -> None:
    classifier, model = opened()
    old = classifier.digest
    model.go.clear()
    batch = _Thread(lambda: classifier.predict_batch(toy.images(70)))
    model.wait_for_call()
    swap = _Thread(lambda: classifier.swap(other_bundle))
    _until(lambda: classifier.digest != old)
    model.go.set()
    assert {answer.digest for answer in batch.end()} == {old}
    assert swap.end() == classifier.digest


@pytest.mark.parametrize("size", [(6, 8), (20, 30)])
@pytest.mark.parametrize("layout", ["fortran", "reversed", "mirrored", "strided", "read-only", "channels-first view"])
def test_predict_takes_any_strides_and_writes_nothing(opened: Any, layout: str, size: tuple[int, int]) -> None:
    classifier, _ = opened()
    plain = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    arrays: dict[str, Any] = {
        "fortran": np.asfortranarray(plain),
        "reversed": plain[::-1].copy()[::-1],
        "mirrored": plain[:, ::-1].copy()[:, ::-1],
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        "read-only": plain.copy(),
        "channels-first view": plain.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    }
    array = arrays[layout]
    array.flags.writeable = layout != "read-only"
    expected = classifier.predict(plain.copy())
    for answer in (
        classifier.predict(array),
        classifier.predict_batch([array])[0],
        classifier.predict_batch(array[np.newaxis])[0],
        classifier.submit(array).result(WAIT),
    ):
        assert answer == expected
    assert np.array_equal(array, plain)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((6, 8), np.uint8),
        np.zeros((6, 8, 1), np.uint8),
        np.zeros((1, 6, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((6, 8, 3), np.int8),
        np.zeros((6, 8, 3), np.uint16),
        np.zeros((6, 8, 3), np.bool_),
        np.zeros((6, 8, 3), object),
        None,
        3,
        [[0]],
    ],
    ids=str,
)
def test_predict_refuses_other_arrays_and_types(opened: Any, bad: Any) -> None:
    classifier, model = opened()
    with pytest.raises(ImageError):
        classifier.predict(bad)
    assert model.batches == []
    assert dict(classifier.counters().errors) == {"ImageError": 1}


@pytest.mark.parametrize("method", ["predict", "predict_batch"])
def test_nan_logits_are_an_error(opened: Any, toy: Any, method: str) -> None:
    classifier, model = opened()
    model.broken = lambda image: True
    with pytest.raises(NotFiniteError):
        getattr(classifier, method)(toy.images(1)[0] if method == "predict" else toy.images(3))
    assert dict(classifier.counters().errors) == {"NotFiniteError": 1}


def test_answers_hold_plain_python_values(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    answer = classifier.predict(toy.images(1)[0])
    assert [type(value) for value in (answer.label, answer.score, answer.index, answer.scores, answer.digest)] == [
        str,
        float,
        int,
        tuple,
        str,
    ]
    assert {type(score) for score in answer.scores} == {float}


# Warming up and counting


def test_warm_up_runs_the_model_and_is_not_counted(opened: Any) -> None:
    classifier, model = opened()
    classifier.warm_up(calls=3)
    assert model.sizes == [8, 1, 1, 1]
    assert classifier.counters().answers == 0


def test_warm_up_lasts_as_long_as_it_is_told(opened: Any) -> None:
    classifier, _ = opened()
    started = time.monotonic()
    classifier.warm_up(seconds=0.05)
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize(
    "options", [{"calls": 0}, {"seconds": 0}, {"seconds": float("nan")}, {"calls": 1, "seconds": 1}]
)
def test_warm_up_refuses_what_it_cannot_do(opened: Any, options: dict[str, Any]) -> None:
    classifier, _ = opened()
    with pytest.raises(UsageError, match="warm_up"):
        classifier.warm_up(**options)


def test_counters_count_every_way_of_asking(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    images = toy.images(40)
    classifier.predict(images[0])
    classifier.predict_batch(images)
    classifier.submit(images[0]).result(WAIT)
    counters = classifier.counters()
    assert counters.answers == 42
    assert dict(counters.batch_sizes) == {1: 2, 8: 1, 32: 1}
    assert counters.preprocess.count == 42
    assert (counters.infer.count, counters.postprocess.count) == (4, 4)
    assert (counters.queue.count, counters.whole.count) == (1, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_failing_calls_leave_nothing_behind(opened: Any, toy: Any) -> None:
    import gc
    import tracemalloc

    classifier, model = opened()
    model.broken = lambda image: bool((image == 7).all())
    nan = np.full((6, 8, 3), 7, np.uint8)

    def fail(times: int) -> None:
        for _ in range(times):
            for bad in (nan, np.zeros((2, 2), np.uint8), b"no"):
                with pytest.raises((NotFiniteError, ImageError)):
                    classifier.predict(bad)
            assert classifier.submit(nan).exception(WAIT) is not None
        model.batches.clear()
        gc.collect()

    fail(50)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fail(200)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000  # 25 bytes for each of 800 failures would be seen
