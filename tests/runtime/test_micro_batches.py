"""`Classifier.submit`: order, batches, the full queue, cancelling, and whose error is whose."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.errors import (
    ClosedError,
    ImageError,
    InputNotFoundError,
    NotFiniteError,
    QueueFullError,
    UsageError,
)
from edgebert.runtime.classifier import Classifier

WAIT = 30  # seconds within which everything must happen; nothing takes as long unless it hangs


def _hold(model: Any, classifier: Classifier, image: Any) -> Any:
    """Let the worker stand in a call of the model, so that what is submitted next has to wait."""
    model.go.clear()
    future = classifier.submit(image)
    model.wait_for_call()
    return future


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_submit_answers_as_predict(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    images = toy.images(20)
    assert [classifier.submit(image).result(WAIT) for image in images] == [
        classifier.predict(image) for image in images
    ]


def test_one_that_waits_alone_is_run_at_once(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_wait_ms=1_000, max_batch=8)
    for image in toy.images(5):
        classifier.submit(image).result(WAIT)
    assert model.sizes == [1] * 5
    assert classifier.counters().queue.quantile_ms(1.0) < 900  # none of them waited for company


def test_what_waits_together_is_run_together_in_order(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=4)
    images = toy.images(11)
    held = _hold(model, classifier, images[0])
    futures = [classifier.submit(image) for image in images[1:]]
    model.go.set()
    answers = [future.result(WAIT) for future in [held, *futures]]
    assert model.sizes == [1, 4, 4, 2]
    assert np.array_equal(np.concatenate(model.batches), images)
    assert answers == [classifier.predict(image) for image in images]


def test_answers_come_in_the_order_of_submission(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=3)
    order: list[int] = []
    futures = [_hold(model, classifier, toy.images(1)[0])]
    futures += [classifier.submit(image) for image in toy.images(20)]
    for place, future in enumerate(futures):
        future.add_done_callback(lambda _, place=place: order.append(place))
    model.go.set()
    concurrent.futures.wait(futures, WAIT)
    _until(lambda: len(order) == 21)
    assert order == list(range(21))


def test_a_batch_waits_for_those_that_shared_the_last_one(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=4, max_wait_ms=1_000)
    images = toy.images(9)
    held = _hold(model, classifier, images[0])
    first = [classifier.submit(image) for image in images[1:5]]
    model.go.set()
    concurrent.futures.wait([held, *first], WAIT)
    second = [classifier.submit(image) for image in images[5:]]
    concurrent.futures.wait(second, WAIT)
    assert model.sizes[:2] == [1, 4]
    assert sum(model.sizes) == 9


def test_the_backend_says_how_large_a_batch_may_be(opened: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, model = opened()
    monkeypatch.setattr(type(model), "preferred_batch", 2)
    held = _hold(model, classifier, toy.images(1)[0])
    futures = [classifier.submit(image) for image in toy.images(5)]
    model.go.set()
    concurrent.futures.wait([held, *futures], WAIT)
    assert model.sizes == [1, 2, 2, 1]


def test_submit_copies_the_array_before_it_returns(opened: Any, toy: Any) -> None:
    classifier, model = opened()
    frame = toy.images(1)[0]
    expected = classifier.predict(frame)
    _hold(model, classifier, toy.images(1, seed=9)[0])
    future = classifier.submit(frame)
    frame[:] = 0
    model.go.set()
    assert future.result(WAIT) == expected


# Errors


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (np.zeros((4, 4, 3), np.float32), ImageError),
        (np.zeros((0, 4, 3), np.uint8), ImageError),
        (b"no image", ImageError),
        (Path("none.png"), InputNotFoundError),
    ],
)
def test_an_image_that_is_none_fails_its_own_future(opened: Any, toy: Any, bad: Any, kind: type[Exception]) -> None:
    classifier, model = opened()
    held = _hold(model, classifier, toy.images(1)[0])
    futures = [classifier.submit(image) for image in (toy.images(1)[0], bad, toy.images(1)[0])]
    model.go.set()
    assert isinstance(futures[1].exception(WAIT), kind)
    assert all(future.result(WAIT).label for future in (held, futures[0], futures[2]))
    assert dict(classifier.counters().errors) == {kind.__name__: 1}


def test_a_failing_call_fails_exactly_its_batch(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=2)
    images = toy.images(5)
    held = _hold(model, classifier, images[0])
    futures = [classifier.submit(image) for image in images[1:]]
    # Callbacks run in the worker, between one batch and the next.
    held.add_done_callback(lambda _: setattr(model, "error", RuntimeError("the device is gone")))
    futures[1].add_done_callback(lambda _: setattr(model, "error", None))
    model.go.set()
    assert held.result(WAIT).label
    assert [str(future.exception(WAIT)) for future in futures[:2]] == ["the device is gone"] * 2
    assert [future.result(WAIT) for future in futures[2:]] == [classifier.predict(image) for image in images[3:]]


class _Picky(Exception):
    """An error that cannot be copied: it asks for more than it keeps."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)


@pytest.mark.parametrize("error", [RuntimeError("the device is gone"), _Picky("the device is gone", "here")])
def test_an_error_of_a_backend_keeps_no_model(opened: Any, toy: Any, error: Exception) -> None:
    classifier, model = opened(max_batch=2)
    held = _hold(model, classifier, toy.images(1)[0])
    futures = [held, *(classifier.submit(image) for image in toy.images(2))]
    model.error = error
    model.go.set()
    errors = [future.exception(WAIT) for future in futures]
    assert [(type(each), str(each)) for each in errors] == [(type(error), "the device is gone")] * 3
    assert [each.__traceback__ for each in errors if each is not None] == [None] * 3
    assert errors[1] is not errors[2] or isinstance(error, _Picky)


def test_a_logit_that_is_not_finite_fails_only_its_image(opened: Any, toy: Any) -> None:
    classifier, model = opened()
    images = toy.images(4)
    images[2] = 7
    model.broken = lambda image: bool((image == 7).all())
    held = _hold(model, classifier, images[0])
    futures = [classifier.submit(image) for image in images[1:]]
    model.go.set()
    errors = [future.exception(WAIT) for future in [held, *futures]]
    assert [type(error) for error in errors] == [type(None), type(None), NotFiniteError, type(None)]


def test_a_callback_that_ends_the_thread_does_not(opened: Any, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    classifier, model = opened()
    held = _hold(model, classifier, toy.images(1)[0])

    def leave(_: object) -> None:
        raise SystemExit

    held.add_done_callback(leave)
    with caplog.at_level(logging.ERROR, "edgebert"):
        model.go.set()
        held.result(WAIT)
        assert classifier.submit(toy.images(1)[0]).result(WAIT).label
    assert "callback" in caplog.text


# The full queue


def test_submit_raises_where_no_place_becomes_free_in_time(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=2)
    image = toy.images(1)[0]
    futures = [_hold(model, classifier, image), classifier.submit(image), classifier.submit(image)]
    for timeout in (0, 0.01):
        with pytest.raises(QueueFullError, match="max_queue"):
            classifier.submit(image, timeout=timeout)
    model.go.set()
    concurrent.futures.wait(futures, WAIT)
    counters = classifier.counters()
    assert (counters.queue_depth, counters.queue_depth_max, counters.answers) == (0, 2, 3)
    assert dict(counters.errors) == {"QueueFullError": 2}


def test_submit_waits_for_room(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=1)
    image = toy.images(1)[0]
    _hold(model, classifier, image)
    classifier.submit(image)
    done = threading.Event()

    def submit() -> None:
        classifier.submit(image).result(WAIT)
        done.set()

    thread = threading.Thread(target=submit)
    thread.start()
    assert not done.wait(0.05)
    model.go.set()
    thread.join(WAIT)
    assert done.is_set()


def test_a_cancelled_future_makes_room_and_is_never_run(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=1)
    images = toy.images(3)
    held = _hold(model, classifier, images[0])
    future = classifier.submit(images[1])
    assert future.cancel()
    assert future.cancel()
    assert concurrent.futures.wait([future], 5).done == {future}
    last = classifier.submit(images[2], timeout=0)
    assert not held.cancel()
    model.go.set()
    assert last.result(WAIT).label
    assert np.array_equal(np.concatenate(model.batches), images[[0, 2]])
    assert classifier.counters().cancelled == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0},
        {"max_batch": 1_025},
        {"max_wait_ms": -1},
        {"max_wait_ms": float("nan")},
        {"max_queue": 0},
        {"max_queue": 1 << 20},
    ],
)
def test_options_out_of_their_range_are_refused(opened: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        opened(**options)


# Closing


def test_close_answers_what_was_submitted(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=2)
    futures = [_hold(model, classifier, toy.images(1)[0])]
    futures += [classifier.submit(image) for image in toy.images(5)]
    threading.Timer(0.05, model.go.set).start()
    classifier.close()
    assert all(future.done() and future.result().label for future in futures)
    assert model.closed == 1
    with pytest.raises(ClosedError, match="was closed"):
        classifier.submit(toy.images(1)[0])


def test_close_cancels_what_waits_where_it_is_told_to(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=1)
    held = _hold(model, classifier, toy.images(1)[0])
    futures = [classifier.submit(image) for image in toy.images(3)]
    threading.Timer(0.05, model.go.set).start()
    classifier.close("cancel")
    assert held.result(0).label
    assert all(future.cancelled() for future in futures)
    assert model.sizes == [1]


def test_close_ends_a_submit_that_waits_for_room(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=1)
    image = toy.images(1)[0]
    _hold(model, classifier, image)
    classifier.submit(image)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            classifier.submit(image)
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(0.05)
    threading.Timer(0.05, model.go.set).start()
    classifier.close()
    thread.join(WAIT)
    assert [type(error) for error in errors] == [ClosedError]


def test_close_from_a_callback_does_not_wait_for_itself(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=1)
    held = _hold(model, classifier, toy.images(1)[0])
    last = classifier.submit(toy.images(1)[0])
    held.add_done_callback(lambda _: classifier.close())
    model.go.set()
    assert last.result(WAIT).label
    _until(lambda: model.closed > 0)


def test_the_worker_ends_with_its_classifier(opened: Any, toy: Any, models: Any, toy_bundle: Path) -> None:
    def workers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "edgebert-micro-batches"}

    before = workers()
    future = Classifier(toy_bundle).submit(toy.images(1)[0])  # nobody holds the Classifier from here on
    assert future.result(WAIT).label
    _until(lambda: workers() <= before)


def test_no_worker_starts_before_the_first_submit(opened: Any, toy: Any) -> None:
    before = threading.active_count()
    classifier, _ = opened()
    classifier.predict(toy.images(1)[0])
    assert threading.active_count() == before
