"""Run the TensorRT runner's CUDA half on a real GPU: pinned and mapped memory, streams, events, graphs, threads, teardown.

    python benchmarks/cuda_runner.py            # a few seconds; needs an NVIDIA GPU, its driver, libcudart, and CuPy

TensorRT itself is not there: in its place stands an engine whose one kernel, in CUDA C through CuPy, multiplies an image with integer
weights. Its answers are known exactly, it can be captured, and it is launched on the stream and the addresses that the runner gives.
So what the runner does with CUDA is held against the real thing, and nothing of TensorRT is. One line per check, PASS or FAIL.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import cupy  # type: ignore[import-not-found, unused-ignore]  # on computers with an NVIDIA GPU alone
import numpy as np
from numpy.typing import NDArray

from edgebert.errors import EdgebertError, MemoryExhaustedError
from edgebert.fingerprint import gpu_facts
from edgebert.runtime import cuda, tensorrt_runner
from edgebert.runtime.cuda import CudaRuntime, describe_version, load_cuda
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, engine_fingerprint
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions
from edgebert.runtime.tensorrt_runner import TensorRtRunner

VERSION = "11.4.1"
SPEC = InputSpec(height=32, width=24, classes=7)
PIXELS = SPEC.height * SPEC.width * 3
# (classes, pixels), so small that every sum is an integer that float32 holds
WEIGHTS = np.random.default_rng(0).integers(-4, 5, (SPEC.classes, PIXELS)).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 256, (16, SPEC.height, SPEC.width, 3), np.uint8)
EXACT = IMAGES.reshape(len(IMAGES), -1).astype(np.float32) @ WEIGHTS.T  # (images, classes)
PLAN = b"an engine of one kernel"
_KERNEL = cupy.RawKernel(
    """
extern "C" __global__ void logits(const unsigned char* image, const float* weights, float* out, int pixels, int classes) {
    int n = blockIdx.x, c = threadIdx.x;
    float sum = 0;
    for (int p = 0; p < pixels; ++p) sum += weights[c * pixels + p] * image[(long long)n * pixels + p];
    out[n * classes + c] = sum;
}
""",
    "logits",
)


class Context:
    """What the runner uses of `tensorrt.IExecutionContext`."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Keep an address."""
        self._addresses[name] = address
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        """Keep the shape."""
        self._shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        """Return that no shape is missing."""
        return []

    def get_tensor_shape(self, _name: str) -> tuple[int, int]:
        """Return the shape of the logits."""
        return self._shape[0], SPEC.classes

    def execute_async_v3(self, stream: int) -> bool:
        """Launch the kernel."""
        image, logits = (np.uint64(self._addresses[name]) for name in ("image", "logits"))
        with cupy.cuda.ExternalStream(stream):
            _KERNEL(
                (self._shape[0],),
                (SPEC.classes,),
                (image, self._weights, logits, np.int32(PIXELS), np.int32(SPEC.classes)),
            )
        return True


class Engine:
    """What the runner uses of `tensorrt.ICudaEngine`."""

    num_io_tensors = 2

    def __init__(self, batches: tuple[int, int]) -> None:
        self._batches = batches
        self._weights = cupy.asarray(WEIGHTS)

    def get_tensor_name(self, place: int) -> str:
        """Return a name."""
        return ("image", "logits")[place]

    def get_tensor_mode(self, name: str) -> str:
        """Return `INPUT` or `OUTPUT`."""
        return "INPUT" if name == "image" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        """Return the type."""
        return types.SimpleNamespace(name="UINT8" if name == "image" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape, -1 where the batch varies."""
        batch = self._batches[0] if self._batches[0] == self._batches[1] else -1
        return (batch, SPEC.height, SPEC.width, 3) if name == "image" else (batch, SPEC.classes)

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[tuple[int, ...]]:
        """Return the smallest, best and largest shape."""
        low, high = self._batches
        return [(batch, SPEC.height, SPEC.width, 3) for batch in (low, high, high)]

    def create_execution_context(self) -> Context:
        """Return a context."""
        return Context(self._weights)


def stand_in(batches: tuple[int, int]) -> types.ModuleType:
    """Return a module in TensorRT's place, whose engine takes these batches."""
    trt = types.ModuleType("tensorrt")

    class ILogger:
        """A logger that nothing is said to."""

    class Runtime:
        """Gives the one engine."""

        def __init__(self, _logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, _plan: bytes) -> Engine:
            """Return the engine."""
            return Engine(batches)

    vars(trt).update(
        __version__=VERSION,
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=types.SimpleNamespace(INPUT="INPUT"),
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=0),
    )
    return trt


def opened(batches: tuple[int, int] = (1, 1)) -> TensorRtRunner:
    """Open the engine as a bundle's is opened: its manifest is checked, with this computer's real fingerprint."""
    sys.modules["tensorrt"] = stand_in(batches)
    manifest = EngineManifest(
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_bytes=len(PLAN),
        graph_sha256="00" * 32,
        typing="strong",
        precision="int8",
        flags=(),
        min_batch=batches[0],
        max_batch=batches[1],
        fingerprint=engine_fingerprint(gpu_facts(), tensorrt=VERSION, machine=platform.machine()),
        versions={"tensorrt": VERSION},
    )
    source = ModelSource(spec=SPEC, files={PLAN_FILE: PLAN, ENGINE_FILE: manifest.to_bytes()})
    return TensorRtRunner.open(source, RunnerOptions(device="GPU"))


def answers_are_exact(batches: tuple[int, int], sizes: tuple[int, ...], *, mapped: bool = False) -> str:
    """Run batches of these sizes and hold every answer against the exact one."""
    real = CudaRuntime.shares_host_memory
    if mapped:  # as on a Jetson; under unified addressing the kernel reaches mapped memory here as well
        CudaRuntime.shares_host_memory = lambda _self, _device=0: True  # type: ignore[method-assign]
    try:
        with opened(batches) as runner:
            told = runner.properties()
            for size in sizes:
                if not np.array_equal(runner.infer(IMAGES[:size]), EXACT[:size]):
                    raise EdgebertError(f"wrong answers for a batch of {size}")
    finally:
        CudaRuntime.shares_host_memory = real  # type: ignore[method-assign]
    expected = "on" if batches[0] == batches[1] else "off: the batch varies"
    if (told["memory"], told["cuda_graph"]) != ("mapped" if mapped else "pinned", expected):
        raise EdgebertError(f"memory `{told['memory']}`, CUDA graph `{told['cuda_graph']}`")
    return f"memory {told['memory']}, CUDA graph {told['cuda_graph']}, batches of {sizes} exact"


def threads_do_not_mix(count: int = 8, rounds: int = 500) -> str:
    """Let threads ask at once; each must get its own image's answer."""
    wrong: list[int] = []
    with opened() as runner:

        def ask(first: int) -> None:
            for at in range(rounds):
                place = (first + at) % len(IMAGES)
                if not np.array_equal(runner.infer(IMAGES[place : place + 1])[0], EXACT[place]):
                    wrong.append(place)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if wrong:
        raise EdgebertError(f"{len(wrong)} of {count * rounds} answers are wrong")
    return f"0 of {count * rounds:,} answers of {count} threads wrong"


def device_times() -> str:
    """Time the kernel by events."""
    with opened() as runner:
        times = runner.device_times_ms(IMAGES[:1], 200)
    if len(times) != 200 or not all(0 < each < 1000 for each in times):
        raise EdgebertError(f"times of {min(times)} to {max(times)} ms")
    return f"200 runs, median {float(np.median(times)) * 1000:.0f} us on the GPU's clock"


def nothing_stays(rounds: int = 200) -> str:
    """Open, ask from two threads and close; the GPU's free memory must come back."""

    def once() -> None:
        with opened() as runner:
            threads = [threading.Thread(target=runner.infer, args=(IMAGES[:1],)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    for _ in range(20):
        once()
    cupy.get_default_memory_pool().free_all_blocks()
    before = load_cuda().memory()[0]
    for _ in range(rounds):
        once()
    cupy.get_default_memory_pool().free_all_blocks()
    lost = before - load_cuda().memory()[0]
    if lost > 0:
        raise EdgebertError(f"{lost:,} bytes of the GPU's memory lost over {rounds} openings")
    return f"{rounds} openings, {max(lost, 0)} bytes lost"


def many_runs(count: int = 100_000) -> str:
    """Ask about one image very often."""
    with opened() as runner:
        before = load_cuda().memory()[0]
        wrong = sum(not np.array_equal(runner.infer(IMAGES[:1]), EXACT[:1]) for _ in range(count))
        lost = before - load_cuda().memory()[0]
    if wrong or lost > 0:
        raise EdgebertError(f"{wrong} wrong answers, {lost:,} bytes lost")
    return f"{count:,} runs, 0 wrong, 0 bytes lost"


def errors_are_typed() -> str:
    """Ask for too much memory and for a GPU that is not there, and go on."""
    found: list[str] = []
    for asked in (lambda: load_cuda().allocate(1 << 50), lambda: load_cuda().use_device(77)):
        try:
            asked()
        except MemoryExhaustedError:
            found.append("memory")
        except EdgebertError as error:
            found.append(error.what.split(",")[0])
    if found[0] != "memory" or len(found) != 2:
        raise EdgebertError(f"errors {found}")
    copied = answers_are_exact((1, 1), (1,))
    return f"{found}; afterwards {copied}"


def _images_stay(images: NDArray[np.uint8] = IMAGES) -> str:
    before = images.copy()
    with opened((1, 16)) as runner:
        answers = runner.infer(images)
        runner.infer(images[::-1])
    if not np.array_equal(images, before) or not np.array_equal(answers, EXACT):
        raise EdgebertError("an array of the caller's was written, or an answer aliases the runner's memory")
    return "no array written, no answer aliased, strides taken"


CHECKS: dict[str, Callable[[], str]] = {
    "fixed batch of 1": lambda: answers_are_exact((1, 1), (1, 5, 16)),
    "fixed batch of 4": lambda: answers_are_exact((4, 4), (1, 4, 7)),
    "open batch": lambda: answers_are_exact((1, 8), (1, 3, 8, 16)),
    "mapped memory": lambda: answers_are_exact((1, 1), (1, 5), mapped=True),
    "mapped memory, open batch": lambda: answers_are_exact((1, 8), (8, 2), mapped=True),
    "arrays": _images_stay,
    "threads": threads_do_not_mix,
    "device times": device_times,
    "teardown": nothing_stays,
    "many runs": many_runs,
    "errors": errors_are_typed,
}


def main() -> int:
    """Print a line for each check; return 1 where one fails."""
    runtime = load_cuda()
    facts = gpu_facts()
    print(
        f"{facts.name}, compute capability {facts.compute_capability}, driver {facts.driver}, {runtime.name} of CUDA "
        f"{describe_version(runtime.runtime_version())}; {cuda.__name__}, {tensorrt_runner.__name__}"
    )
    failed = 0
    for name, check in CHECKS.items():
        try:
            print(f"PASS {name}: {check()}", flush=True)
        except EdgebertError as error:
            failed += 1
            print(f"FAIL {name}: {error}", flush=True)
    print(
        f"{'FAIL' if failed else 'PASS'} {len(CHECKS) - failed} of {len(CHECKS)} checks; TensorRT itself was not there"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
