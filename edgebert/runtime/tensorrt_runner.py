"""TensorRT engines on an NVIDIA GPU, through the raw API and libcudart.

* An engine is opened only after `engine.json` was checked (`edgebert.runtime.engine_manifest`): deserialising runs native code.
* A call takes an execution context of its own from a pool, with its stream and buffers: contexts are not thread-safe.
* Input and output are pinned host memory. Where CPU and GPU share memory, as in every Jetson, kernels work on it where it lies;
  elsewhere it is copied to the GPU and back.
* For an engine of one batch size the copies and the kernels are captured once as a CUDA graph, and one launch does all of it.
* Everything is freed in the reverse order: graph, events, context, buffers, stream; at last the engine, then the runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BadDataError, ClosedError, EdgebertError, UnavailableError
from edgebert.fingerprint import computer_facts, gpu_facts
from edgebert.runtime.cuda import CudaRuntime, describe_version, load_cuda
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, check_engine
from edgebert.runtime.lifetime import NativeModel
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_batch, check_device
from edgebert.runtime.tensorrt_api import TWO_WAYS, load_tensorrt, logger_of, new_runtime, recorded
from edgebert.runtime.tensorrt_errors import REBUILD, error_from_texts, explained

if TYPE_CHECKING:
    import tensorrt  # type: ignore[import-not-found, unused-ignore]  # the bindings have no types; tests/tensorrt makes some
    from typing_extensions import Self

_log = logging.getLogger("edgebert")

DEVICE = "GPU"  # the first that this process may use

# Name of a `tensorrt.DataType` -> numpy's; `trt.nptype` knows no bf16 and no fp8, and the enum's integers are nobody's to assume.
_DTYPES = {"UINT8": np.dtype(np.uint8), "FLOAT": np.dtype(np.float32)}


class TensorRtRunner(NativeModel):
    """Runs `engine.plan`, which `engine.json` describes, in TensorRT."""

    input_spec: InputSpec

    def __init__(self, engine: _Engine, spec: InputSpec) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Request] = []  # that no call uses
        self._live = 0  # requests that exist, in use or not
        super().__init__(engine, self._idle)
        self.input_spec = spec
        self.preferred_batch = engine.max_batch

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return `("GPU",)`.

        Raises:
            UnavailableError: TensorRT, the CUDA runtime, the driver or the GPU is not here, or too old; the message names the two
                ways on: `--host USER@HOST`, or the board itself.
        """
        load_tensorrt(facts=gpu_facts())
        try:
            load_cuda().device_count()
        except UnavailableError as error:
            raise UnavailableError(error.what, expected=error.expected, hint=TWO_WAYS) from error
        return (DEVICE,)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Check the engine's manifest, then deserialise the engine; see `Runner.open`.

        Raises:
            RefusedError: the engine is not the one that its manifest describes.
            UnavailableError: it was built on another device or by another TensorRT; or there is none of it here.
            BadDataError: it cannot be read, or takes or gives something else than `source.spec`.
        """
        check_device("tensorrt", options.device)
        if PLAN_FILE not in source.files or ENGINE_FILE not in source.files:
            raise UnavailableError(
                f"a graph cannot run in TensorRT as it is: `{', '.join(source.files)}`",
                expected=f"an engine, `{PLAN_FILE}` with `{ENGINE_FILE}`",
                hint="edgebert compile GRAPH --target jetson -o NAME.edgebert",
            )
        trt = load_tensorrt()
        plan, manifest = source.files[PLAN_FILE], EngineManifest.from_bytes(source.files[ENGINE_FILE])
        facts = replace(computer_facts("tensorrt", with_gpu=True), backend_version=str(trt.__version__))
        check_engine(manifest, plan, facts)
        cuda = load_cuda()
        cuda.use_device(0)
        engine = _deserialised(trt, cuda, manifest, plan, source.spec)
        runner = cls(engine, source.spec)
        try:
            # (1, height, width, 3); also says whether the engine really answers what it declares
            runner.infer(np.zeros((1, source.spec.height, source.spec.width, 3), np.uint8))
        except BaseException:
            runner.close()
            raise
        return runner

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch; see `Runner.infer`. More images than the engine takes at once are run one part after the other."""
        engine: _Engine = self._usable_model()
        images = check_batch(batch, self.input_spec)
        request = self._borrowed(engine)
        try:
            most = engine.max_batch
            parts = [request.answer(images[at : at + most]) for at in range(0, len(images), most)]
        except BaseException:
            self._drop(request)
            raise
        self._give_back(request)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def device_times_ms(self, batch: NDArray[np.uint8], count: int) -> tuple[float, ...]:
        """Return the GPU's own milliseconds of each of `count` runs of a batch that fits the engine, by CUDA events.

        What is timed is what `infer` queues: with copies where they are needed, without what the CPU does before and after.
        """
        engine: _Engine = self._usable_model()
        images = check_batch(batch, self.input_spec)
        if len(images) > engine.max_batch:
            raise BadDataError(f"the batch holds {len(images)} images", expected=f"at most {engine.max_batch}")
        request = self._borrowed(engine)
        try:
            times = request.times_ms(images, count)
        except BaseException:
            self._drop(request)
            raise
        self._give_back(request)
        return times

    def properties(self) -> Mapping[str, str]:
        """Return versions, device, how the engine was built, and how memory and launches are done."""
        engine: _Engine = self._usable_model()
        made = engine.manifest
        return {
            "backend": "tensorrt",
            "version": made.versions.get("tensorrt", "unknown"),
            "cuda": describe_version(engine.cuda.runtime_version()),
            "device": made.fingerprint.gpu or DEVICE,
            "compute_capability": engine.cuda.compute_capability(),
            "multiprocessors": str(engine.cuda.multiprocessors()),
            "precision": made.precision,
            "form": made.label,
            "batch": str(engine.max_batch) if engine.is_static else f"{engine.min_batch} to {engine.max_batch}",
            "memory": "mapped" if engine.is_mapped else "pinned",
            "cuda_graph": engine.graph_refusal or ("on" if engine.is_static else "off: the batch varies"),
        }

    def close(self) -> None:
        """Free the model; see `Runner.close`. The last call that still runs frees the engine."""
        if os.getpid() != self._opened_in:  # a forked child owns nothing of it, and the lock may be held for ever
            return
        with self._lock:
            engine: _Engine | None = self._native[0] if self._native else None  # type: ignore[assignment]  # as __init__ put it
            super().close()
            idle = self._idle[:]
            self._idle.clear()
            self._live -= len(idle)
            last = self._live == 0
        for request in idle:
            request.close()
        if engine is not None and last:
            engine.release()

    def _borrowed(self, engine: _Engine) -> _Request:
        """Return a request that no other call uses; a new one where all are in use."""
        with self._lock:
            if not self._native:
                raise ClosedError("this model was closed", hint="open the artefact again")
            if self._idle:
                return self._idle.pop()
            self._live += 1
        try:
            return _Request(engine, self.input_spec)
        except BaseException:
            self._forget(engine)
            raise

    def _give_back(self, request: _Request) -> None:
        with self._lock:
            if self._native:
                self._idle.append(request)
                return
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        request.close()
        self._forget(request.engine)

    def _forget(self, engine: _Engine) -> None:
        """Count one request less; the last one of a closed runner frees the engine."""
        with self._lock:
            self._live -= 1
            last = self._live == 0 and not self._native
        if last:
            engine.release()


class _Engine:
    """A deserialised engine and what every request needs of it.

    Attributes:
        cuda: the runtime library.
        manifest: what it was built as.
        min_batch, max_batch: of the only profile.
        is_static: whether the engine takes one batch size, so that its work can be captured.
        is_mapped: whether kernels work on pinned host memory where it lies.
        graph_refusal: why no CUDA graph is used although the batch is static, or empty.
    """

    def __init__(
        self,
        engine: tensorrt.ICudaEngine,
        runtime: tensorrt.Runtime,
        logger: Any,
        cuda: CudaRuntime,
        manifest: EngineManifest,
        names: _Names,
    ) -> None:
        self._native: list[Any] = [engine, runtime]
        self._logger = logger
        self.cuda = cuda
        self.manifest = manifest
        self.names = names
        self.min_batch, self.max_batch = names.min_batch, names.max_batch
        self.is_static = names.min_batch == names.max_batch
        self.is_mapped = cuda.shares_host_memory()
        self.graph_refusal = ""

    def new_context(self) -> tensorrt.IExecutionContext:
        """Return a context, which holds the engine's own memory for activations.

        Raises:
            EdgebertError: TensorRT gives none; mostly for lack of memory.
        """
        engine: tensorrt.ICudaEngine = self._native[0]
        with recorded(self._logger) as log:
            context = engine.create_execution_context()
        if context is None:
            raise error_from_texts(log.errors(), doing="the engine has no room to run")
        return context

    def failed(self, doing: str) -> NoReturn:
        """Raise what TensorRT said since the last failure: what it said of that one is no reason for this one."""
        texts = self._logger.collected.errors()
        self._logger.collected.lines.clear()
        raise error_from_texts(texts, doing=doing)

    def release(self) -> None:
        """Destroy the engine, and then the runtime that it came from."""
        while self._native:
            del self._native[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """The two tensors of an engine: their names, and the batch sizes of its profile."""

    image: str
    logits: str
    min_batch: int
    max_batch: int


class _Request:
    """One execution context with its stream, buffers and, for a static engine, its CUDA graph. One thread at a time."""

    def __init__(self, engine: _Engine, spec: InputSpec) -> None:
        self.engine = engine
        self._cuda = cuda = engine.cuda
        self._opened_in = os.getpid()
        self._images = 0  # of the shape that the context has now
        self._graph = 0
        with contextlib.ExitStack() as stack:
            self._stream = cuda.create_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self._image = _Buffer(stack, engine, (engine.max_batch, spec.height, spec.width, 3), np.dtype(np.uint8))
            self._logits = _Buffer(stack, engine, (engine.max_batch, spec.classes), np.dtype(np.float32))
            self._context: list[tensorrt.IExecutionContext] = [engine.new_context()]
            stack.callback(self._context.clear)
            self._events = [_Event(stack, cuda).handle for _ in range(2)]
            self._bind()
            if engine.is_static and not engine.graph_refusal:
                self._capture(stack)
            self._owned = stack.pop_all()

    def answer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (images, classes), owning its memory, of uint8 (images, height, width, 3) of any strides."""
        queued = self._load(images)
        self._queue(queued)
        self._cuda.synchronize(self._stream)
        logits: NDArray[np.float32] = self._logits.array[: len(images)].copy()
        return logits

    def times_ms(self, images: NDArray[np.uint8], count: int) -> tuple[float, ...]:
        """Return the milliseconds on the GPU of each of `count` runs."""
        queued = self._load(images)
        start, end = self._events
        times = []
        for _ in range(count):
            self._cuda.record(start, self._stream)
            self._queue(queued)
            self._cuda.record(end, self._stream)
            times.append(self._cuda.elapsed_ms(start, end))
        return tuple(times)

    def close(self) -> None:
        """Free everything, the newest first; a failure is told and does not stop the rest."""
        if os.getpid() != self._opened_in:
            return
        try:
            self._owned.close()
        except EdgebertError as error:
            _log.warning("while an engine was closed: %s", error.what)

    def __del__(self) -> None:
        # Of a runner that nobody closed. A constructor that failed has freed what it had.
        if hasattr(self, "_owned") and not sys.is_finalizing():
            self.close()

    def _bind(self) -> None:
        """Tell the context where its tensors lie, and its shape where there is only one."""
        (context,), names = self._context, self.engine.names
        for name, buffer in ((names.image, self._image), (names.logits, self._logits)):
            if not context.set_tensor_address(name, buffer.device):
                self.engine.failed(f"TensorRT takes no memory for `{name}`")
        self._shape(self.engine.min_batch)

    def _shape(self, images: int) -> None:
        """Give the context its batch size, and check that it then knows the shape of its answer."""
        (context,), names = self._context, self.engine.names
        if not context.set_input_shape(names.image, (images, *self._image.array.shape[1:])):
            self.engine.failed(f"TensorRT takes no batch of {images}")
        missing = context.infer_shapes()
        found = tuple(context.get_tensor_shape(names.logits))
        if missing or found != (images, self._logits.array.shape[1]):
            raise BadDataError(
                f"the engine answers a batch of {images} with shape {found}",
                expected=f"float32 ({images}, {self._logits.array.shape[1]}): one logit per class name",
            )
        self._images = images

    def _load(self, images: NDArray[np.uint8]) -> int:
        """Copy images to where the GPU reads them, and return how many run: at least what the engine takes."""
        count = max(len(images), self.engine.min_batch)
        self._image.array[: len(images)] = images  # the one copy on the way of an image
        self._image.array[len(images) : count] = 0
        if count != self._images:
            self._shape(count)
        return count

    def _queue(self, images: int) -> None:
        if self._graph:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue(images)

    def _enqueue(self, images: int) -> None:
        (context,) = self._context
        if not self.engine.is_mapped:
            self._image.to_device(images, self._stream)
        if not context.execute_async_v3(self._stream):
            self.engine.failed("the engine failed to run")
        if not self.engine.is_mapped:
            self._logits.to_host(images, self._stream)

    def _capture(self, stack: contextlib.ExitStack) -> None:
        """Make a CUDA graph of one run; where that cannot be, the runs stay as they are and the reason is kept."""
        cuda = self._cuda
        self._enqueue(self._images)  # the first run sets up what may not be captured
        cuda.synchronize(self._stream)
        try:
            cuda.begin_capture(self._stream)
            try:
                self._enqueue(self._images)
            finally:  # the capture ends in any case, or the stream stays useless
                stack.callback(cuda.destroy_graph, graph := cuda.end_capture(self._stream))
            self._graph = cuda.instantiate(graph)
            stack.callback(cuda.destroy_executable, self._graph)
        except EdgebertError as error:
            self._graph = 0
            self.engine.graph_refusal = f"off: {error.what}"
            _log.info("the engine runs without a CUDA graph: %s", error.what)


class _Buffer:
    """Pinned host memory, and the GPU's where it cannot work on that.

    Attributes:
        array: the host memory, of the shape of the largest batch.
        device: the address that kernels are given.
    """

    def __init__(
        self, stack: contextlib.ExitStack, engine: _Engine, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._cuda = engine.cuda
        size = math.prod(shape) * dtype.itemsize
        self._host = engine.cuda.allocate_host(size)
        stack.callback(engine.cuda.free_host, self._host)
        self.device = self._host
        if not engine.is_mapped:
            self.device = engine.cuda.allocate(size)
            stack.callback(engine.cuda.free, self.device)
        memory = memoryview((ctypes.c_uint8 * size).from_address(self._host))
        self.array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
        self._image_bytes = size // shape[0]

    def to_device(self, images: int, stream: int) -> None:
        """Queue the copy of the first images to the GPU."""
        self._cuda.copy_to_device(self.device, self._host, images * self._image_bytes, stream)

    def to_host(self, images: int, stream: int) -> None:
        """Queue the copy of the first answers from the GPU."""
        self._cuda.copy_to_host(self._host, self.device, images * self._image_bytes, stream)


class _Event:
    """A CUDA event that its stack destroys."""

    def __init__(self, stack: contextlib.ExitStack, cuda: CudaRuntime) -> None:
        self.handle = cuda.create_event()
        stack.callback(cuda.destroy_event, self.handle)


def _deserialised(
    trt: ModuleType, cuda: CudaRuntime, manifest: EngineManifest, plan: bytes, spec: InputSpec
) -> _Engine:
    """Return the engine of a plan that was checked."""
    logger = logger_of(trt)
    runtime = new_runtime(trt, logger)
    with recorded(logger) as log:
        engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        found = error_from_texts(log.errors(), doing="TensorRT cannot load the engine", hint=REBUILD)
        # What is not known is a broken file to whoever opened it.
        raise found if type(found) is not EdgebertError else BadDataError(found.what, hint=REBUILD)
    for line in log.lines:
        known = explained(line.text)
        if line.severity == "WARNING" and known is not None:
            _log.warning("%s (%s)", known.means, known.hint)
    return _Engine(engine, runtime, logger, cuda, manifest, _names(trt, engine, spec))


def _names(trt: ModuleType, engine: tensorrt.ICudaEngine, spec: InputSpec) -> _Names:
    """Return the tensors of an engine, or refuse one that does not take uint8 (batch, height, width, 3) and give float32 logits."""
    names: list[str] = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
    kinds = {name: _DTYPES.get(engine.get_tensor_dtype(name).name) for name in names}
    fits = (
        len(inputs) == len(outputs) == 1
        and kinds[inputs[0]] == np.uint8
        and shapes[inputs[0]][1:] == (spec.height, spec.width, 3)
        and kinds[outputs[0]] == np.float32
        and len(shapes[outputs[0]]) == 2
        and shapes[outputs[0]][1] in (spec.classes, -1)
    )
    if not fits:
        said = ", ".join(f"{name} {engine.get_tensor_dtype(name).name} {shapes[name]}" for name in names)
        raise BadDataError(
            f"the engine has the tensors {said}",
            expected=f"uint8 (batch, {spec.height}, {spec.width}, 3) and float32 (batch, {spec.classes})",
        )
    batch = shapes[inputs[0]][0]
    smallest = largest = batch
    if batch == -1:
        low, _, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(inputs[0], 0))
        smallest, largest = low[0], high[0]
    return _Names(image=inputs[0], logits=outputs[0], min_batch=smallest, max_batch=largest)
