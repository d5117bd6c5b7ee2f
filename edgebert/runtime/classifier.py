"""The embedding API: open a bundle, classify images.

with Classifier("widgets.edgebert") as classifier:
    prediction = classifier.predict("part.png")
    print(prediction.label, prediction.score)

A multi-label bundle says any number of classes: `prediction.labels`, the surest first. docs/runtime.md tells what an application may
rely on: threads, processes, swapping, closing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from threading import get_ident
from time import perf_counter, perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import (
    BadDataError,
    BatchSizeError,
    ClosedError,
    ForkedRuntimeError,
    ImageError,
    InputNotFoundError,
    NotFiniteError,
    UsageError,
)
from edgebert.preprocess import Decoding, ImageSource
from edgebert.runtime.counters import Counters, Tally
from edgebert.runtime.micro_batches import MicroBatches, MicroBatchOptions, Pending, Request
from edgebert.runtime.opened import OpenedBundle, OpenOptions, closed, open_bundle, refuse_at_exit, return_freed_memory
from edgebert.runtime.pipeline import Pipeline, Prediction
from edgebert.runtime.runner import InputSpec, check_process

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.signing import SignaturePolicy

__all__ = ["MAX_IMAGES", "Classifier", "Prediction"]

MAX_IMAGES = 65_536  # in one `predict_batch`; a longer list is a mistake, or better read bit by bit
_CHUNK = 32  # images decoded and run at a time: bounds the memory of a long list
_WARM_UP_CALLS = 10


class Classifier:
    """An opened bundle that answers for images.

    Opening verifies every hash, picks the form that fits this computer, and answers every canary; a bundle that
    fails any of it is refused. A form whose int8 products would saturate on this CPU is used only where nothing else
    fits, and that is said in a warning. Every method may be called from many threads at once. The caller's arrays are never
    written, answers hold plain Python values, and a forked child gets `ForkedRuntimeError` instead of a hang.

    Args:
        path: a bundle, `NAME.edgebert`; a `.zip` of one; or an installation, the folder of `edgebert install --to`, of which the
            current bundle is opened, and the one before it where that fails (docs/install.md); `DIR/current` is the same.
        target: use the form of this target and no other; None picks the first form that fits, and where none does
            the portable graph, which is said in a warning of the logger `edgebert`.
        threads: for each answer; 0 means the physical cores this process may use.
        signers: who must have signed the bundle; None asks for no signature beyond what an installation demands itself. An
            installation whose bundle they did not sign is refused, and goes back to nothing: others may demand otherwise.
        decoding: `exact`, or `reduced`: large JPEG files are decoded at a smaller size, which is faster and gives slightly other
            pixels than those that accuracy was measured with (docs/runtime-speed.md).
        max_batch: images of `submit` that share one call of the model, at most; None: as many as the backend gains from.
        max_wait_ms: milliseconds that a submitted image waits for others, at most, and only where another one waits already.
        max_queue: submitted images that may wait, at most; a further `submit` waits for room.

    Raises:
        InputNotFoundError: there is nothing at `path`.
        BadDataError: it is no bundle, or a malformed one.
        RefusedError: a file was changed, or a canary is not answered as it was when the bundle was made.
        UnavailableError: nothing in it can run on this computer.
        MemoryExhaustedError: memory ran out while it was loaded.
        UsageError: no such target, or a number out of its range.
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
        options = MicroBatchOptions(max_batch=max_batch, max_wait_ms=max_wait_ms, max_queue=max_queue)
        self._options = OpenOptions(target=target, threads=threads, signers=signers, decoding=decoding)
        self._opened_in = os.getpid()
        self._opened = open_bundle(Path(path), self._options)
        self._closed = False
        self._loading = threading.RLock()  # one swap loads at a time
        self._tally = Tally()
        self._queue = MicroBatches(options, self._tally)
        self._submitting: dict[Request, int] = {}  # an image that the worker may have to wait for -> its thread
        weakref.finalize(
            self, self._queue.close, "answer"
        ).atexit = False  # the interpreter's end is the queue's own matter

    @property
    def path(self) -> Path:
        """Where the bundle that serves was read from."""
        return self._opened.path

    @property
    def digest(self) -> str:
        """The digest of the bundle that serves: SHA-256 of its `SHA256SUMS`."""
        return self._opened.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the bundle that serves, in the order of `Prediction.scores`."""
        return self._opened.class_names

    @property
    def input_spec(self) -> InputSpec:
        """Height and width of the network's input in pixels, and the number of classes."""
        return self._opened.input_spec

    @property
    def target(self) -> str:
        """The target whose form runs, or `portable`."""
        return self._opened.target

    @property
    def backend(self) -> str:
        """What runs it, such as `openvino`."""
        return self._opened.backend

    def predict(self, image: ImageSource) -> Prediction:
        """Classify one image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or a uint8 (height, width, 3) RGB array of any strides.

        Raises:
            ImageError: it is no image of an accepted kind.
            InputNotFoundError: the path cannot be read.
            NotFiniteError: the model answered with NaN or infinity.
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        asked = perf_counter_ns()
        call = object()
        opened = self._opened
        try:
            opened.running[call] = get_ident()
            if opened.retired:
                opened.leave(call)
                opened = self._enter(call)
            pipeline = opened.pipeline
            tensor = pipeline.pre(image)
            prepared = perf_counter_ns()
            logits = pipeline.infer(tensor)
            inferred = perf_counter_ns()
            answer = pipeline.post(logits)[0]
            self._tally.answered_alone(asked, prepared, inferred, perf_counter_ns())
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            opened.leave(call)
        return answer

    def predict_batch(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> list[Prediction]:
        """Classify several images, all of them with one bundle. Each gets the answer that `predict` gives it.

        Args:
            images: 1 to 65,536 images of any kind that `predict` takes, or uint8 (batch, height, width, 3) RGB. They are
                decoded and run 32 at a time.

        Raises:
            BatchSizeError: none, or more than 65,536.
            ImageError: one is no image of an accepted kind; the message says which. The others are not answered.
            InputNotFoundError: a path cannot be read.
            NotFiniteError: the model answered with NaN or infinity; the message says for which image.
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        return self._predict_batch(images, _always)

    def submit(self, image: ImageSource, *, timeout: float | None = None) -> Future[Prediction]:
        """Take one image and return its future at once; images that wait together share calls of the model.

        The image is decoded and resized here, in the caller's thread, so that an array may be overwritten as soon as this
        returns. Answers come in the order in which images were submitted, each from the bundle that served when it was. Callbacks of
        the future run in the thread that answers: they shall be short. The future can be cancelled while it waits.

        Args:
            image: what `predict` takes; one that `predict` would refuse fails its own future and no other.
            timeout: seconds to wait where `max_queue` images wait already; None, or infinity, waits as long as it takes.

        Raises:
            QueueFullError: there was no room within `timeout`.
            UsageError: `timeout` is not a number.
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        check_process(self._opened_in)
        return self._submit(Request(self._queue), image, timeout)

    def swap(self, path: str | os.PathLike[str]) -> str:
        """Let another bundle take over without a dropped answer, and return its digest.

        It is read, verified, loaded and self-tested beside the one that serves. Then every new call goes to it, those that began
        before end with the old one, and when they have, the old one is freed and this returns. Class names and input size
        may differ. Where anything fails, the old one serves on.

        Called from the callback of a future or from a signal handler that interrupted a call, this returns without waiting
        for the old one to be freed.

        Raises:
            BundleError: there is no bundle at `path`, or it is malformed, or it was refused.
            UnavailableError: nothing in it can run on this computer.
            MemoryExhaustedError: memory ran out while it was loaded.
            ClosedError: the classifier is closed, or was closed meanwhile.
            ForkedRuntimeError: called in a forked child.
        """
        check_process(self._opened_in)
        with self._loading:
            self._check_open()
            try:
                fresh = open_bundle(Path(path), self._options)
            except BaseException:
                self._tally.swapped("failed")
                raise
            old, self._opened = self._opened, fresh
        old.retire()
        try:
            self._check_open()
        except ClosedError:  # `close` says so before it looks for what to free, so one of the two frees the fresh one
            fresh.retire()
            raise
        self._tally.swapped("done")
        if not self._is_waited_for():
            old.wait_until_freed()
            return_freed_memory()
        return fresh.digest

    def warm_up(self, *, calls: int | None = None, seconds: float | None = None) -> None:
        """Run the model on a made-up image until its buffers and the processor's clock are where they will be; not counted.

        Args:
            calls: how many times; 10 where neither is given.
            seconds: for how long; at least one call.

        Raises:
            UsageError: both are given, or one is not above 0.
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        if calls is not None and seconds is not None:
            raise UsageError(f"warm_up of {calls} calls and {seconds} seconds", expected="one of them")
        if (calls is not None and calls < 1) or (seconds is not None and not 0 < seconds < float("inf")):
            raise UsageError(f"warm_up of `{calls if seconds is None else seconds}`", expected="a number above 0")
        check_process(self._opened_in)
        call = object()
        opened = self._enter(call)
        try:
            _warm_up(opened.pipeline, calls=_WARM_UP_CALLS if calls is seconds is None else calls, seconds=seconds)
        finally:
            opened.leave(call)

    def counters(self) -> Counters:
        """Return what was answered, failed and swapped so far, and how long it took; also after `close`.

        Raises:
            ForkedRuntimeError: called in a forked child.
        """
        check_process(self._opened_in)
        return self._tally.counters(digest=self._opened.digest, queue_depth=self._queue.depth)

    def properties(self) -> Mapping[str, str]:
        """Return what the backend really uses: version, threads, precision, device.

        Raises:
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        check_process(self._opened_in)
        call = object()
        opened = self._enter(call)
        try:
            return opened.pipeline.runner.properties()
        finally:
            opened.leave(call)

    def close(self, pending: Pending = "answer") -> None:
        """Take no more calls, let those that run end, and free the model. Closing twice is allowed.

        In a forked child this does nothing: the model is the parent's. Called from the callback of a future or from a signal
        handler that interrupted a call, it returns without waiting, and the last call frees the model.

        Args:
            pending: what becomes of submitted images that wait: `answer` answers them first, `cancel` cancels their futures.
        """
        if os.getpid() != self._opened_in:
            return
        self._closed = True
        self._queue.close(pending)
        opened = self._opened
        opened.retire()
        if self._is_waited_for() or opened.is_called_here():
            return
        opened.wait_until_freed()
        self._queue.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"a Classifier of `{self.path}` cannot be copied, pickled or sent to another process",
            expected="one Classifier per process",
            hint=f'open it there: `Classifier("{self.path}")`',
        )

    def _submit(self, request: Request, image: ImageSource, timeout: float | None = None) -> Request:
        """Submit an image whose future is there already."""
        try:
            self._submitting[request] = get_ident()
            self._queue.reserve(request, timeout)
            request.opened = self._enter(request)
            request.prepare(image, self._tally)
            self._queue.put(request)
        except BaseException as error:
            self._queue.withdraw(request)  # a Ctrl-C may come after it was queued
            self._failed(error)
            if not isinstance(error, (BadDataError, InputNotFoundError)):
                raise
            request.fail(error)  # of this image, and of no other
        finally:
            self._submitting.pop(request, None)
        return request

    def _enter(self, call: object) -> OpenedBundle:
        """Write a call into the bundle that serves; the caller lets the call leave it.

        Raises:
            ClosedError: the classifier is closed.
            ForkedRuntimeError: called in a forked child.
        """
        while True:
            opened = self._opened
            opened.running[call] = get_ident()
            if not opened.retired:
                return opened
            opened.leave(call)
            check_process(self._opened_in)
            self._check_open()
            refuse_at_exit()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _predict_batch(
        self, images: Sequence[ImageSource] | NDArray[np.uint8], is_wanted: Callable[[], bool]
    ) -> list[Prediction]:
        asked = perf_counter_ns()
        check_process(self._opened_in)
        call = object()
        opened = self._enter(call)
        try:
            _check_images(images)
            answers: list[Prediction] = []
            for start in range(0, len(images), _CHUNK):
                if not is_wanted():
                    raise CancelledError
                batch = np.concatenate(list(self._preprocessed(opened.pipeline, images, start)))
                started = perf_counter_ns()
                logits = opened.pipeline.infer(batch)  # of (chunk, height, width, 3)
                inferred = perf_counter_ns()
                answers += _answers(opened.pipeline, logits, start, len(images))
                self._tally.ran(len(batch), started, inferred, perf_counter_ns())
            self._tally.answered(len(answers), perf_counter_ns() - asked)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            opened.leave(call)
        return answers

    def _preprocessed(
        self, pipeline: Pipeline, images: Sequence[ImageSource] | NDArray[np.uint8], start: int
    ) -> Iterator[NDArray[np.uint8]]:
        for index in range(start, min(start + _CHUNK, len(images))):
            image = images[index]  # one by one: not every sequence can be sliced
            begun = perf_counter_ns()
            try:
                tensor = pipeline.pre(image)
            except (BadDataError, InputNotFoundError) as error:
                where = f"image {index} of {len(images)}: {error.what}"
                raise type(error)(where, expected=error.expected, hint=error.hint) from error
            self._tally.prepared(perf_counter_ns() - begun)
            yield tensor

    def _failed(self, error: BaseException) -> None:
        # What says that nobody should call is no failure of a call; and in a forked child a lock may be held for ever.
        if not isinstance(error, (ClosedError, ForkedRuntimeError)):
            self._tally.failed(error)

    def _is_waited_for(self) -> bool:
        """Whether this thread was interrupted where those need something of it whom it would wait for: an image, a lock."""
        return get_ident() in self._submitting.copy().values() or self._queue.is_held_here()


def _always() -> bool:
    return True


def _check_images(images: Sequence[ImageSource] | NDArray[np.uint8]) -> None:
    """Refuse what is no batch, before anything is decoded."""
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
            raise ImageError(
                f"the batch has shape {images.shape} and dtype {images.dtype}",
                expected="uint8 (batch, height, width, 3), RGB",
                hint="`predict` takes one image",
            )
    elif isinstance(images, (str, bytes, bytearray, memoryview)) or not isinstance(images, Sequence):
        raise ImageError(
            f"the batch is of type `{type(images).__name__}`",
            expected="a list of images, or uint8 (batch, height, width, 3)",
            hint="`predict` takes one image; `list(...)` makes a list of an iterator",
        )
    if not 1 <= len(images) <= MAX_IMAGES:
        raise BatchSizeError(f"the batch holds {len(images)} images", expected=f"1 to {MAX_IMAGES:,}")


def _answers(pipeline: Pipeline, logits: NDArray[np.float32], start: int, images: int) -> list[Prediction]:
    """Return the answers of the images from `start` on; an error names an image by its place among all of them."""
    try:
        return pipeline.post(logits)
    except NotFiniteError as error:
        row = int(np.argmin(np.isfinite(logits).all(axis=1)))
        raise NotFiniteError(
            f"the model answered image {start + row} of {images} with {logits[row].tolist()!s:.200}",
            expected=error.expected,
            hint=error.hint,
        ) from error


def _warm_up(pipeline: Pipeline, *, calls: int | None, seconds: float | None) -> None:
    """Run a pattern that no kernel can skip, alone; once also in the company that `submit` gives it."""
    spec = pipeline.runner.input_spec
    pattern = np.arange(spec.height * spec.width * 3, dtype=np.uint32) * 97 % 251
    image = pattern.astype(np.uint8).reshape(spec.height, spec.width, 3)
    together = pipeline.runner.preferred_batch
    if together > 1:
        pipeline.post(pipeline.infer(np.repeat(pipeline.pre(image), together, axis=0)))
    until = perf_counter() + (seconds or 0.0)
    done = 0
    while done < (calls or 1) or (seconds is not None and perf_counter() < until):
        pipeline.post(pipeline.infer(pipeline.pre(image)))
        done += 1
