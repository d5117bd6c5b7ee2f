"""The queue behind `Classifier.submit`: images that wait together are answered by one call of the model.

* Images are taken in the order in which they were submitted, up to `max_batch` of them, all of the same bundle.
* A batch forms of what came while the model was busy. Only where at least two images wait, the worker gives the others of
  the last batch `max_wait_ms` to come back, counted from when the first of them was queued; one that waits alone is run at once.
* At most `max_queue` images wait; a further `submit` waits for room.
* An image that cannot be decoded fails its own future; a call of the model that fails, exactly those of its batch.

The worker thread starts with the first image and holds no Classifier, so that one that nobody holds any more is collected: what
it was given is still answered, then its worker ends. At the interpreter's end what waits is cancelled, and what runs ends.

A signal handler may interrupt the main thread anywhere, raise there (Ctrl-C) or call `close` and `swap`, which wait for the
worker. Hence three rules: an image is in exactly one of `_reserved`, `_waiting` and the worker's hands, told apart under the
queue's lock; nobody waits for a future's lock while holding the queue's; and who may be waited for can be asked (`is_held_here`).
"""

from __future__ import annotations

import atexit
import copy
import logging
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import monotonic, perf_counter_ns
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import ClosedError, EdgebertError, ForkedRuntimeError, NotFiniteError, QueueFullError, UsageError
from edgebert.preprocess import ImageSource
from edgebert.runtime.counters import Tally
from edgebert.runtime.opened import OpenedBundle, begin_exit, closed, refuse_at_exit
from edgebert.runtime.pipeline import Prediction
from edgebert.runtime.runner import MAX_BATCH

Pending = Literal["answer", "cancel"]

_log = logging.getLogger("edgebert")

MAX_WAIT_MS = 1_000.0
MAX_QUEUE = 65_536
_EXIT_WAIT_S = 10.0  # for a call of the model that runs when the interpreter ends; a hung one must not keep it for ever

_live: weakref.WeakSet[MicroBatches] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchOptions:
    """How submitted images share calls of the model.

    Attributes:
        max_batch: images in one call, at most; None: as many as the backend gains from, which the runner says.
        max_wait_ms: milliseconds that an image waits for others, at most, where at least one other waits already.
        max_queue: images that may wait, at most, those of the running call not counted.
    """

    max_batch: int | None = None
    max_wait_ms: float = 2.0
    max_queue: int = 256

    def __post_init__(self) -> None:
        if self.max_batch is not None and not 1 <= self.max_batch <= MAX_BATCH:
            raise UsageError(f"max_batch `{self.max_batch}`", expected=f"1 to {MAX_BATCH} images, or None")
        if not 0 <= self.max_wait_ms <= MAX_WAIT_MS:
            raise UsageError(f"max_wait_ms `{self.max_wait_ms}`", expected=f"0 to {MAX_WAIT_MS:g} milliseconds")
        if not 1 <= self.max_queue <= MAX_QUEUE:
            raise UsageError(f"max_queue `{self.max_queue}`", expected=f"1 to {MAX_QUEUE:,} images")


class Request(Future[Prediction]):
    """The future of one submitted image, and what its answer needs until it is there."""

    def __init__(self, queue: MicroBatches) -> None:
        super().__init__()
        self._condition: threading.Condition  # of `Future`; typeshed leaves it out
        self._queue: MicroBatches | None = queue
        self.opened: OpenedBundle | None = None
        self.tensor: NDArray[np.uint8] | None = None  # (1, height, width, 3)
        self.asked_ns = perf_counter_ns()
        self.waited_ns = 0  # for room, and for a thread that decodes
        self.queued_ns = 0
        self.queued_at = 0.0  # seconds of `time.monotonic`

    def cancel(self) -> bool:
        """Cancel the image unless the model is at it already, and make room for another."""
        cancelled = super().cancel()
        queue = self._queue
        if cancelled and queue is not None:
            queue.forget(self)
        return cancelled

    def prepare(self, image: ImageSource, tally: Tally) -> None:
        """Decode and resize in the caller's thread, so that the array may change as soon as `submit` has returned."""
        assert self.opened is not None  # it was entered just now
        begun = perf_counter_ns()
        self.waited_ns = begun - self.asked_ns
        tensor = self.opened.pipeline.pre(image)
        if isinstance(image, np.ndarray) and np.may_share_memory(tensor, image):
            tensor = tensor.copy()
        self.tensor = tensor
        tally.prepared(perf_counter_ns() - begun)

    def fail(self, error: BaseException) -> None:
        """Answer with an error.

        It is copied: its traceback holds the frames that hold this future, and through them the Classifier, so that only
        the collector would free either.
        """
        with suppress(InvalidStateError):  # a task cancelled it meanwhile
            self.set_exception(_copy(error))

    def is_asked_here(self) -> bool:
        """Whether this thread was interrupted while it held the lock of this future, in `result` or `wait`."""
        owned: bool = self._condition._is_owned()  # type: ignore[attr-defined]  # typeshed leaves it out
        return owned

    def finished(self) -> None:
        """Let go of everything but the answer: a future that is kept must not keep a model."""
        opened, self.opened, self.tensor, self._queue = self.opened, None, None, None
        if opened is not None:
            opened.leave(self)

    def lose_in_child(self) -> None:
        """Answer with `ForkedRuntimeError` in a forked child, where nobody will ever answer.

        `set_exception` would wait for a lock that a thread of the parent may have held, and run callbacks that belong to
        the parent, such as one that wakes its event loop.
        """
        self._condition = threading.Condition()
        self._done_callbacks.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
        self._waiters.clear()
        if self.done():  # forked in the moment in which it was answered
            return
        self._exception = ForkedRuntimeError(
            f"the answer to this image was due in the parent of process {os.getpid()}, not in its forked child",
            expected="one Classifier per process",
            hint="open it after the fork, or start processes with `spawn`",
        )
        self._state = FINISHED


class MicroBatches:
    """The queue of one Classifier and the thread that works on it."""

    def __init__(self, options: MicroBatchOptions, tally: Tally) -> None:
        self._options = options
        self._tally = tally
        self._opened_in = os.getpid()
        # Re-entrant: the collector may end a Classifier while this thread holds it, and a signal handler may close it.
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        # Those that wait for room, in order; each waits for its own to be released. No `Condition`, whose `wait` an interrupt can
        # leave without its lock, or with a notification that then wakes nobody else.
        self._turns: deque[threading.Lock] = deque()
        self._waiting: deque[Request] = deque()
        self._announced: set[Request] = set()  # images that wait elsewhere for their turn to be submitted
        self._reserved: set[Request] = set()  # images that are being decoded, each with a place of its own
        self._unanswered: set[Request] = set()  # from when they are queued until they have their answer
        self._demand = 1  # images that were run or waited when the last batch ended
        self._closing = False
        self._cancels = False  # what is taken is cancelled instead of run
        self._worker: threading.Thread | None = None
        self._works = False  # whether it has begun
        _live.add(self)

    @property
    def depth(self) -> int:
        """Images that wait: those that are being decoded included, and those that were announced and have no place yet."""
        return self._places + len(self._announced)

    @property
    def _places(self) -> int:
        """Places of the queue that are taken."""
        return len(self._waiting) + len(self._reserved)

    @property
    def worker_ident(self) -> int:
        """The thread that answers; 0 before the first image."""
        return 0 if self._worker is None else self._worker.ident or 0

    def announce(self, request: Request) -> None:
        """Count an image among those that wait, which is going to be submitted."""
        self._announced.add(request)
        self._tally.queued(self.depth)

    def unannounce(self, request: Request) -> None:
        """Expect an image no longer; it may have been submitted, or not announced."""
        self._announced.discard(request)

    def reserve(self, request: Request, timeout: float | None) -> None:
        """Take a place in the queue, and start the worker if there is none.

        Args:
            request: what the place is for.
            timeout: seconds to wait for room; None waits as long as it takes.

        Raises:
            QueueFullError: no room within the time.
            ClosedError: closed before there was room, or the interpreter is ending.
        """
        check_timeout(timeout)
        if not self._reserve(request, math.inf if timeout is None else monotonic() + timeout):
            refuse_at_exit()
            raise closed()

    def _reserve(self, request: Request, until: float) -> bool:
        """Return whether there is a place, which there will not be after the end."""
        turn: threading.Lock | None = None
        try:
            # Here, as Python 3.11 takes an interrupt at a loop's jump back for one of the instruction before the loop.
            limit = self._options.max_queue
            while True:
                with self._lock:
                    if self._closing:
                        return False
                    if self._places < limit:
                        self._take_place(request)
                        return True
                    left = until - monotonic()
                    if left <= 0:
                        raise QueueFullError(
                            f"{self._places} images wait for an answer",
                            expected=f"at most {limit}, `max_queue` of the Classifier",
                            hint="submit less often, or give a longer `timeout`",
                        )
                    if turn is None or turn not in self._turns:  # a wait may end early, and then goes on
                        turn = _taken_lock()
                        self._turns.append(turn)
                turn.acquire(timeout=min(left, threading.TIMEOUT_MAX))
        finally:
            if turn is not None:
                with self._lock:
                    if turn in self._turns:
                        self._turns.remove(turn)
                    else:  # called: where it found no place or was interrupted, it is the next one's turn
                        self._call_next()

    def _take_place(self, request: Request) -> None:
        if self._worker is None:
            self._start_worker()
        self._reserved.add(request)
        self._announced.discard(request)
        self._tally.queued(self.depth)

    def _start_worker(self) -> None:
        self._worker = worker = threading.Thread(target=self.work, name="edgebert-micro-batches", daemon=True)
        try:
            worker.start()
        except BaseException as error:
            # It may be on its way all the same, if this was interrupted; the next image starts another one, and `work` chooses.
            self._worker = None
            if isinstance(error.__context__, KeyboardInterrupt):  # `start` was left without its own lock
                raise error.__context__ from None
            if isinstance(error, RuntimeError):
                raise ClosedError(f"no thread can be started to answer submitted images: {error}") from error
            raise

    def _call_next(self) -> None:
        """Wake as many of those that wait for room as there is room for; counted, so that no call can get lost."""
        for turn in tuple(islice(self._turns, max(0, self._options.max_queue - self._places))):
            with suppress(RuntimeError):  # called already, by one that was interrupted before it took it out
                turn.release()
            self._turns.remove(turn)

    def put(self, request: Request) -> None:
        """Queue an image in the place that was reserved for it.

        Raises:
            ClosedError: its place was dropped, as the interpreter is ending.
        """
        request.queued_ns, request.queued_at = perf_counter_ns(), monotonic()
        assert request.opened is not None  # it was entered before its image was prepared
        request.opened.running[request] = self.worker_ident
        with self._lock:
            has_place = request in self._reserved
            if has_place:
                self._unanswered.add(request)
                self._waiting.append(request)
                self._reserved.discard(request)
                self._arrived.notify()
        if not has_place:
            request.finished()
            refuse_at_exit()
            raise closed()

    def withdraw(self, request: Request) -> None:
        """Take back an image whose `submit` failed or was interrupted, wherever it is; one that the worker has taken stays its own."""
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
            elif request not in self._reserved:  # the worker has it, or there was no place for it
                return
            self._reserved.discard(request)
            self._unanswered.discard(request)
        try:
            with self._lock:
                self._call_next()
                self._arrived.notify()
        finally:  # also where a second Ctrl-C comes: what has not left its bundle is waited for
            request.finished()

    def forget(self, request: Request) -> None:
        """Take a cancelled image out."""
        with self._lock:
            try:
                self._waiting.remove(request)
            except ValueError:  # not queued yet, or taken in this moment
                return
            self._unanswered.discard(request)
            self._call_next()
            self._arrived.notify()
        request.set_running_or_notify_cancel()  # tells those who wait for several futures
        self._tally.cancelled()
        request.finished()

    def close(self, pending: Pending) -> None:
        """Take no more images, let the worker end after the last, and do not wait for it."""
        if os.getpid() != self._opened_in:
            return
        with self._lock:
            self._closing = True
            self._cancels = self._cancels or pending == "cancel"
            waiting = tuple(self._waiting) if pending == "cancel" else ()
            self._arrived.notify_all()
            while self._turns:
                with suppress(RuntimeError):  # see `_call_next`
                    self._turns.popleft().release()
        for request in waiting:
            # One that this very thread is about to wait for in `result` would not see it: that is left to the worker.
            if not request.is_asked_here():
                request.cancel()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the worker to end, unless this is the worker itself."""
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout)

    def drop_places(self) -> None:
        """Expect no image any more that is being decoded: the threads that do it are stopped when the interpreter ends."""
        with self._lock:
            self._reserved.clear()
            self._arrived.notify()

    def is_held_here(self) -> bool:
        """Whether this thread was interrupted where it holds a lock that the worker needs: the queue's, the counters', a future's."""
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # typeshed leaves it out
        return owned or self._tally.is_held_here() or any(one.is_asked_here() for one in self._unanswered.copy())

    def lose_in_child(self) -> None:
        """Answer everything with an error in a forked child."""
        for request in self._unanswered:
            request.lose_in_child()

    def work(self) -> None:
        """Answer batch after batch until closed and empty; the worker's whole life."""
        with self._lock:
            if self._works:  # another one, whose start was interrupted when it was on its way already
                return
            self._works, self._worker = True, threading.current_thread()
        try:
            self._answer_all()
        finally:
            self._works = False

    def _answer_all(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except BaseException as error:  # noqa: BLE001  # such as no memory: these futures fail, and the next ones do not
                for request in batch:
                    if not request.done():
                        self._tell(request, _copy(error))
            with self._lock:
                self._demand = len(batch) + len(self._waiting)
            del batch

    def _next_batch(self) -> list[Request]:
        """Wait for images and return those of the next call; none where no more will come."""
        while taken := self._take():
            if self._cancels:
                for request in taken:
                    request.cancel()
            # Without the queue's lock: a future's may be held by a thread whose signal handler waits for the queue's.
            batch = [request for request in taken if self._is_still_wanted(request)]
            if batch:
                return batch
        return []

    def _take(self) -> list[Request]:
        """Wait for images and take the first ones, all of the same bundle; none where no more will come."""
        with self._lock:
            while True:
                while not self._waiting:
                    if self._closing and not self._reserved:
                        return []
                    self._arrived.wait()
                opened = self._waiting[0].opened
                assert opened is not None  # whoever lets go of it takes it out before
                most = self._options.max_batch or opened.pipeline.runner.preferred_batch
                self._gather(min(most, self._demand))
                taken: list[Request] = []
                while self._waiting and len(taken) < most and (not taken or self._waiting[0].opened is taken[0].opened):
                    taken.append(self._waiting.popleft())
                    self._reserved.discard(taken[-1])  # there still if `put` was interrupted
                self._call_next()
                if taken:
                    return taken

    def _is_still_wanted(self, request: Request) -> bool:
        """Say whether an image is to be run; one that was cancelled in this moment, too late for `forget`, is let go."""
        if request.set_running_or_notify_cancel():
            return True
        self._unanswered.discard(request)
        self._tally.cancelled()
        request.finished()
        return False

    def _gather(self, wanted: int) -> None:
        """Where two images wait or more, give as many as there were last time a moment to come."""
        if not 2 <= len(self._waiting) < wanted:
            return
        until = self._waiting[0].queued_at + self._options.max_wait_ms / 1_000
        while self._waiting and len(self._waiting) < wanted and not self._closing:
            left = until - monotonic()
            if left <= 0:
                return
            self._arrived.wait(left)

    def _answer(self, batch: list[Request]) -> None:
        """Answer a batch, whatever happens: each of its futures is done afterwards."""
        opened = batch[0].opened
        assert opened is not None  # they were just taken
        started = perf_counter_ns()
        tensors = [request.tensor for request in batch if request.tensor is not None]
        for request, answer in zip(batch, self._run(opened, tensors, started), strict=True):
            self._tally.waited(request.waited_ns + started - request.queued_ns)
            self._tell(request, answer)
        del batch, request, answer, tensors  # an error's traceback holds this frame, which must hold no future

    def _run(
        self, opened: OpenedBundle, tensors: list[NDArray[np.uint8]], started: int
    ) -> Sequence[Prediction | BaseException]:
        """Return an answer or an error for each of several uint8 (1, height, width, 3)."""
        try:
            tensor = tensors[0] if len(tensors) == 1 else np.concatenate(tensors)  # (batch, height, width, 3)
            logits = opened.pipeline.infer(tensor)
            inferred = perf_counter_ns()
            answers = _read_answers(opened, logits)
            self._tally.ran(len(tensors), started, inferred, perf_counter_ns())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to these futures
            return [_copy(error) for _ in tensors]
        return answers

    def _tell(self, request: Request, answer: Prediction | BaseException) -> None:
        try:
            if isinstance(answer, BaseException):
                self._tally.failed(answer)
                request.set_exception(answer)
            else:
                self._tally.answered(1, perf_counter_ns() - request.asked_ns)
                request.set_result(answer)
        except BaseException:  # noqa: BLE001  # a callback's SystemExit, which `Future` lets through
            _log.exception("the callback of a future ended with an error")
        self._unanswered.discard(request)  # not before it has its answer, for a child that is forked in between
        request.finished()


def _read_answers(opened: OpenedBundle, logits: NDArray[np.float32]) -> Sequence[Prediction | BaseException]:
    """Return the answer of each row; where one is not finite, an error for that row alone."""
    try:
        return opened.pipeline.post(logits)
    except NotFiniteError:
        return [_read_answer(opened, logits[row : row + 1]) for row in range(len(logits))]


def _read_answer(opened: OpenedBundle, logits: NDArray[np.float32]) -> Prediction | BaseException:
    try:
        return opened.pipeline.post(logits)[0]
    except NotFiniteError as error:
        return _copy(error)


def _copy(error: BaseException) -> BaseException:
    """Return an error for one of several futures, without the traceback.

    Each is raised in a thread of its own, which writes a traceback into it; and that of the original holds frames, and through them
    the model, as long as somebody keeps the future.
    """
    if isinstance(error, EdgebertError):
        return type(error)(error.what, expected=error.expected, hint=error.hint)
    with suppress(TypeError):  # of a class that asks for other arguments than it keeps
        return copy.copy(error)
    return error.with_traceback(None)


def check_timeout(timeout: float | None) -> None:
    """Raise `UsageError` for what is not a number: no time would be compared with it."""
    if timeout is not None and math.isnan(timeout):
        raise UsageError(f"timeout `{timeout}`", expected="seconds, or None")


def _taken_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _end_workers() -> None:
    """Cancel what waits and let running calls end, before the interpreter stops the workers in the middle of native code."""
    begin_exit()
    queues = tuple(_live)
    for queue in queues:
        queue.close("cancel")
        queue.drop_places()
    for queue in queues:
        queue.join(_EXIT_WAIT_S)


def _lose_in_child() -> None:
    for queue in tuple(_live):
        queue.lose_in_child()
    _live.clear()


atexit.register(_end_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_in_child)
