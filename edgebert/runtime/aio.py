"""The embedding API for asyncio: the same answers, and an event loop that is never blocked.

    async with AsyncClassifier("widgets.edgebert") as classifier:
        predictions = await asyncio.gather(*(classifier.predict(frame) for frame in frames))

Images are decoded in a few threads of its own and answered by `Classifier.submit`, so that concurrent tasks share calls of the
model. A task that is cancelled takes its image back, unless the model is at it already.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import ClosedError, QueueFullError
from edgebert.preprocess import Decoding, ImageSource
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.counters import Counters
from edgebert.runtime.micro_batches import Pending, Request, check_timeout
from edgebert.runtime.opened import closed
from edgebert.runtime.pipeline import Prediction
from edgebert.runtime.runner import check_process

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.signing import SignaturePolicy

_T = TypeVar("_T")

_MOST_DECODERS = 4  # threads that decode: more than that wait for each other, since resizing is short


class AsyncClassifier:
    """A `Classifier` for one event loop; opened by `async with`, or by `open`.

    Args:
        path: a bundle, `NAME.edgebert`.
        target: see `Classifier`, as for the others.
        threads: for each answer; 0 means the physical cores this process may use.
        signers: who must have signed the bundle; None asks for no signature.
        decoding: `exact` or `reduced`.
        max_batch: images that share one call of the model, at most.
        max_wait_ms: milliseconds that an image waits for others, at most, and only where another one waits already.
        max_queue: images under way, at most; a further `predict` waits, or raises where it has a `timeout`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: str | None = None,
        threads: int = 0,
        signers: SignaturePolicy | None = None,
        decoding: Decoding = "exact",
        max_batch: int | None = None,
        max_wait_ms: float = 2.0,
        max_queue: int = 256,
    ) -> None:
        self._path = path
        self._load = partial(
            Classifier,
            path,
            target=target,
            threads=threads,
            signers=signers,
            decoding=decoding,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            max_queue=max_queue,
        )
        self._max_queue = max_queue
        self._created_in = os.getpid()
        self._classifier: Classifier | None = None

    async def open(self) -> None:
        """Verify, load and self-test the bundle in a thread.

        Raises:
            EdgebertError: what `Classifier` raises.
        """
        check_process(self._created_in)
        self._classifier = await asyncio.to_thread(self._load)
        self._decoders = ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "edgebert-decode")
        self._room = asyncio.Semaphore(self._max_queue)

    @property
    def classifier(self) -> Classifier:
        """The `Classifier` behind it: its `class_names`, `input_spec`, `digest`, `target` and `backend` may be read here.

        Raises:
            ClosedError: it was not opened.
            ForkedRuntimeError: asked in a forked child.
        """
        check_process(self._created_in)
        if self._classifier is None:
            raise ClosedError(
                f"`{self._path}` is not open yet", hint="`async with AsyncClassifier(...)`, or `await open()`"
            )
        return self._classifier

    async def predict(self, image: ImageSource, *, timeout: float | None = None) -> Prediction:
        """Classify one image.

        Args:
            image: what `Classifier.predict` takes. An array must not change until this returns.
            timeout: seconds to wait where `max_queue` images are under way already; None, or infinity, waits as long as it takes.

        Raises:
            QueueFullError: there was no room within `timeout`.
            UsageError: `timeout` is not a number.
            EdgebertError: what `Classifier.predict` raises.
        """
        classifier = self.classifier
        queue = classifier._queue
        request = Request(queue)
        queue.announce(request)  # from now on it waits, and its time runs
        try:
            await self._acquire(classifier, timeout)
            try:
                return await self._answer(classifier, request, image)
            finally:
                self._room.release()
        finally:
            queue.unannounce(request)

    async def predict_batch(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> list[Prediction]:
        """Classify several images in a thread; see `Classifier.predict_batch`. Cancelled, it ends with the next 32 images."""
        classifier, cancelled = self.classifier, threading.Event()
        try:
            return await asyncio.to_thread(classifier._predict_batch, images, lambda: not cancelled.is_set())
        finally:
            cancelled.set()

    async def swap(self, path: str | os.PathLike[str]) -> str:
        """Let another bundle take over; see `Classifier.swap`. A swap whose task is cancelled still takes place."""
        return await asyncio.to_thread(self.classifier.swap, path)

    async def warm_up(self, *, calls: int | None = None, seconds: float | None = None) -> None:
        """Run the model on a made-up image; see `Classifier.warm_up`."""
        await asyncio.to_thread(partial(self.classifier.warm_up, calls=calls, seconds=seconds))

    def counters(self) -> Counters:
        """Return what was answered so far; see `Classifier.counters`. This takes microseconds and needs no `await`."""
        return self.classifier.counters()

    def properties(self) -> Mapping[str, str]:
        """Return what the backend really uses; see `Classifier.properties`."""
        return self.classifier.properties()

    async def close(self, pending: Pending = "answer") -> None:
        """Take no more images, let those that run end, and free the model; see `Classifier.close`.

        With `cancel`, a task whose image waits gets `ClosedError`. Closing twice is allowed, also what was never opened.
        """
        if self._classifier is None or os.getpid() != self._created_in:
            return
        await asyncio.to_thread(self._classifier.close, pending)
        self._decoders.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _acquire(self, classifier: Classifier, timeout: float | None) -> None:
        """Wait for room, and count who gets none."""
        try:
            await self._wait_for_room(timeout)
        except asyncio.CancelledError:
            classifier._tally.cancelled()
            raise
        except QueueFullError as error:
            classifier._failed(error)
            raise

    async def _wait_for_room(self, timeout: float | None) -> None:
        """Wait for room. Not `asyncio.wait_for`, which before Python 3.12 can lose what it waited for when it is cancelled."""
        check_timeout(timeout)
        if timeout is None or timeout == math.inf or not self._room.locked():
            await self._room.acquire()
            return
        acquiring = asyncio.ensure_future(self._room.acquire())
        try:
            await asyncio.wait({acquiring}, timeout=timeout)
        except asyncio.CancelledError:
            if not acquiring.cancel() and not acquiring.cancelled():
                self._room.release()
            raise
        if not acquiring.done():
            acquiring.cancel()
            raise QueueFullError(
                f"{self._max_queue} images are under way",
                expected="`max_queue` of the AsyncClassifier, at most",
                hint="ask less often, or give a longer `timeout`",
            )

    async def _answer(self, classifier: Classifier, request: Request, image: ImageSource) -> Prediction:
        try:
            submitting = self._decoders.submit(classifier._submit, request, image)
        except RuntimeError as error:  # the pool was shut down
            raise closed() from error
        try:
            await _outcome(submitting)
        except asyncio.CancelledError:
            if submitting.cancelled():  # no thread had taken it up
                classifier._tally.cancelled()
            elif request.cancel():  # and where it was still being decoded, it is queued only now
                submitting.add_done_callback(lambda _: classifier._queue.forget(request))
            raise
        return await _outcome(request)


async def _outcome(source: Future[_T]) -> _T:
    """Wait for a future of a thread; a task that is cancelled cancels it.

    Not `asyncio.wrap_future`, in which a future that was cancelled by `close` looks like a task that somebody cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(_: Future[_T]) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_finish, done)

    source.add_done_callback(tell)
    try:
        await done
    except asyncio.CancelledError:
        source.cancel()
        raise
    try:
        return source.result()
    except CancelledError:
        raise closed() from None


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
