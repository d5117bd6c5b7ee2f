"""Signals at every point at which Python lets them in: after a Ctrl-C everything is as if the call had not been made, and nothing hangs.

Python runs a signal handler when a function is entered and when one of C's returns. A profile function is called at the same
points, so that one that raises there is a Ctrl-C that came there.
"""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from edgebert.errors import QueueFullError, UsageError
from edgebert.runtime import micro_batches
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.micro_batches import MicroBatches

WAIT = 30  # seconds within which everything must happen; nothing takes as long unless it hangs
OURS = ("classifier.py", "micro_batches.py", "opened.py", "threading.py")


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def _ends(function: Callable[[], object]) -> bool:
    """Run a function in a thread of its own and say whether it ended."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(WAIT)
    return not thread.is_alive()


def _hold(model: Any, classifier: Classifier, image: Any) -> Any:
    model.go.clear()
    future = classifier.submit(image)
    model.wait_for_call()
    return future


def _is_interrupted_at(place: int, function: Callable[[], object]) -> bool:
    """Run a function and raise KeyboardInterrupt at the place-th point; say whether there was one."""
    left = place

    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event not in ("call", "c_return") or Path(frame.f_code.co_filename).name not in OURS:
            return
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(interrupt)
    try:
        function()
    except KeyboardInterrupt:
        assert left == 0
        return True
    except QueueFullError:
        return False
    finally:
        sys.setprofile(before)
    return False


def _leaves_nothing(classifier: Classifier) -> bool:
    queue = classifier._queue
    kept = (
        classifier._opened.running,
        classifier._submitting,
        queue._reserved,
        queue._waiting,
        queue._unanswered,
        queue._turns,
    )
    return not any(kept)


@pytest.mark.parametrize("timeout", [None, 1.0])
def test_an_interrupt_at_any_point_of_submit_leaves_nothing_behind(
    opened: Any, toy: Any, timeout: float | None
) -> None:
    classifier, _ = opened()
    image = toy.images(1)[0]
    expected = classifier.submit(image).result(WAIT)
    place = 1
    while _is_interrupted_at(place, lambda: classifier.submit(image, timeout=timeout)):
        assert classifier.submit(image).result(WAIT) == expected, place
        _until(lambda: _leaves_nothing(classifier))
        place += 1
    assert place > 20
    assert _ends(classifier.close)


def test_an_interrupt_at_any_point_of_the_first_submit_leaves_it_to_the_next(toy_bundle: Path) -> None:
    # In a process of its own: an interrupted `Thread.start` of Python's can leave a thread that never gets further.
    pytest.importorskip("onnxruntime")
    script = f"""
from __future__ import annotations
import sys
from pathlib import Path
import numpy as np
from edgebert import Classifier
from edgebert.errors import QueueFullError
OURS = {OURS!r}
{inspect.getsource(_is_interrupted_at)}
image, place, interrupted = np.zeros((6, 8, 3), np.uint8), 0, True
while interrupted:
    place += 1
    with Classifier({str(toy_bundle)!r}, target="cpu", threads=1) as classifier:
        interrupted = _is_interrupted_at(place, lambda: classifier.submit(image))
        assert classifier.submit(image).result({WAIT}).label, place
assert place > 30, place
print("end")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "end\n", "")


def test_a_second_worker_ends_at_once(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    classifier.submit(toy.images(1)[0]).result(WAIT)
    worker = classifier._queue._worker
    assert _ends(classifier._queue.work)
    assert classifier._queue._worker is worker


def test_an_interrupt_at_any_point_of_a_wait_for_room_leaves_nothing_behind(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=1)
    image = toy.images(1)[0]
    futures = [_hold(model, classifier, image), classifier.submit(image)]
    place = 1
    while _is_interrupted_at(place, lambda: classifier.submit(image, timeout=0.002)):
        assert classifier.counters().queue_depth == 1
        assert not classifier._queue._turns, place
        place += 1
    assert place > 20
    model.go.set()
    assert all(future.result(WAIT).label for future in futures)
    _until(lambda: _leaves_nothing(classifier))


def test_a_second_interrupt_while_the_first_is_dealt_with_keeps_no_model_open(
    opened: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, model = opened()
    classifier.submit(toy.images(1)[0]).result(WAIT)

    def interrupt(count: int = 1) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(classifier._queue._arrived, "notify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            classifier.submit(toy.images(1)[0])
    assert _ends(classifier.close)
    assert model.closed > 0


def test_an_interrupt_of_one_that_was_called_calls_the_next(
    opened: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, model = opened(max_queue=1)
    image = toy.images(1)[0]
    _hold(model, classifier, image)
    waiting = classifier.submit(image)
    others: list[threading.Thread] = []

    class Turn:
        """A lock in whose `acquire` a Ctrl-C comes, just when it has been acquired."""

        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.lock.acquire()
            self.release = self.lock.release

        def acquire(self, timeout: float) -> None:
            monkeypatch.undo()  # the second one waits as usual
            others.append(threading.Thread(target=lambda: classifier.submit(image).result(WAIT), daemon=True))
            others[0].start()
            _until(lambda: len(classifier._queue._turns) == 2)
            assert waiting.cancel()
            assert self.lock.acquire(timeout=WAIT)
            raise KeyboardInterrupt

    monkeypatch.setattr(micro_batches, "_taken_lock", Turn)
    with pytest.raises(KeyboardInterrupt):
        classifier.submit(image)
    model.go.set()
    others[0].join(WAIT)
    assert not others[0].is_alive()


def test_a_cancelled_image_that_the_worker_takes_makes_room(
    opened: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, model = opened(max_queue=1)
    image = toy.images(1)[0]
    _hold(model, classifier, image)
    waiting = classifier.submit(image)
    another = threading.Thread(target=lambda: classifier.submit(image).result(WAIT), daemon=True)
    another.start()
    _until(lambda: bool(classifier._queue._turns))
    forget, taken = MicroBatches.forget, threading.Event()

    def too_late(self: MicroBatches, request: Any) -> None:
        model.go.set()
        assert taken.wait(WAIT)
        forget(self, request)

    monkeypatch.setattr(MicroBatches, "forget", too_late)
    monkeypatch.setattr(classifier._tally, "cancelled", taken.set)  # the worker saw it
    assert waiting.cancel()
    another.join(WAIT)
    assert not another.is_alive()


def test_a_fault_of_the_worker_s_own_fails_its_batch_and_no_other(
    opened: Any, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = opened()
    waited = classifier._tally.waited

    def fails_once(nanoseconds: int) -> None:
        monkeypatch.setattr(classifier._tally, "waited", waited)
        raise MemoryError

    monkeypatch.setattr(classifier._tally, "waited", fails_once)
    assert isinstance(classifier.submit(toy.images(1)[0]).exception(WAIT), MemoryError)
    assert classifier.submit(toy.images(1)[0]).result(WAIT).label


# `close` and `swap` in a handler that interrupted `result`, `wait` or `cancel` while it held a lock


@pytest.mark.parametrize("which", ["running", "waiting"])
@pytest.mark.parametrize("pending", ["answer", "cancel"])
def test_close_does_not_wait_where_its_thread_holds_a_future(opened: Any, toy: Any, which: str, pending: Any) -> None:
    classifier, model = opened(max_batch=1)
    futures = {"running": _hold(model, classifier, toy.images(1)[0]), "waiting": classifier.submit(toy.images(1)[0])}

    def interrupted() -> None:
        with futures[which]._condition:
            model.go.set()
            if which == "waiting":
                futures["running"].result(WAIT)  # now the worker takes the other one, and needs its lock
            classifier.close(pending)

    assert _ends(interrupted)
    assert all(future.cancelled() or future.result(WAIT).label for future in futures.values())
    assert futures["waiting"].exception if pending == "answer" else futures["waiting"].cancelled
    _until(lambda: model.closed > 0)


def test_swap_does_not_wait_where_its_thread_holds_a_future(
    opened: Any, toy: Any, models: Any, other_bundle: Path
) -> None:
    classifier, model = opened()
    future = _hold(model, classifier, toy.images(1)[0])

    def interrupted() -> None:
        with future._condition:
            classifier.swap(other_bundle)

    assert _ends(interrupted)
    model.go.set()
    assert future.result(WAIT).digest != classifier.digest
    _until(lambda: model.closed > 0)


@pytest.mark.parametrize("part", ["_queue", "_tally"])
def test_close_does_not_wait_where_its_thread_holds_a_lock_of_the_worker(opened: Any, toy: Any, part: str) -> None:
    classifier, model = opened()
    future = _hold(model, classifier, toy.images(1)[0])

    def interrupted() -> None:
        with getattr(classifier, part)._lock:  # as `Future.cancel` holds both
            model.go.set()
            classifier.close()

    assert _ends(interrupted)
    assert future.result(WAIT).label


def test_close_cancels_the_future_that_its_thread_is_about_to_wait_for(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_batch=1)
    _hold(model, classifier, toy.images(1)[0])
    future = classifier.submit(toy.images(1)[0])

    def interrupted() -> None:
        with future._condition:  # as `result` does, which has looked and found no answer
            classifier.close("cancel")
            model.go.set()
            assert future._condition.wait(WAIT)

    assert _ends(interrupted)
    assert future.cancelled()


# How long


def test_submit_waits_as_long_as_it_takes_where_the_timeout_is_infinite(opened: Any, toy: Any) -> None:
    classifier, model = opened(max_queue=1)
    _hold(model, classifier, toy.images(1)[0])
    classifier.submit(toy.images(1)[0])
    answers: list[Any] = []

    def submit(timeout: float) -> None:
        answers.append(classifier.submit(toy.images(1)[0], timeout=timeout))

    threads = [threading.Thread(target=submit, args=(timeout,), daemon=True) for timeout in (math.inf, 1e300)]
    for thread in threads:
        thread.start()
    _until(lambda: len(classifier._queue._turns) == 2)
    model.go.set()
    for thread in threads:
        thread.join(WAIT)
    assert [answer.result(WAIT).label for answer in answers] == [classifier.predict(toy.images(1)[0]).label] * 2


def test_submit_refuses_a_timeout_that_is_no_number(opened: Any, toy: Any) -> None:
    classifier, _ = opened()
    with pytest.raises(UsageError, match="timeout `nan`"):
        classifier.submit(toy.images(1)[0], timeout=math.nan)
