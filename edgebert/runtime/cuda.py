"""The CUDA runtime through ctypes: memory, streams, events and graphs for the TensorRT runner, without pycuda or cuda-python.

JetPack brings `libcudart.so.12` (6) or `libcudart.so.13` (7) and no Python package for it. Every function used here is exported
by both under its plain name, and every one has its argument and result types set: a pointer that ctypes takes for an int is cut
to 32 bits. `cudaGetDeviceProperties` is never called, since its structure differs between 12 and 13 (tensorrt_jetson.md, 2.4).

Handles and addresses are plain ints. A call that fails raises; nothing returns a status.

>>> describe_version(12060), describe_version(13000)
('12.6', '13.0')
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

from edgebert.errors import EdgebertError, MemoryExhaustedError, UnavailableError

# The soname first; JetPack 7.2 puts CUDA on no path by default, so then the folder where every JetPack has it.
LIBRARIES = (
    "libcudart.so.12",
    "libcudart.so.13",
    "/usr/local/cuda/lib64/libcudart.so.12",
    "/usr/local/cuda/lib64/libcudart.so.13",
)

# driver_types.h and cuda_runtime_api.h: the same numbers in CUDA 12 and 13.
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_HOST_ALLOC_MAPPED = 2
_STREAM_NON_BLOCKING = 1
_EVENT_DEFAULT = 0  # with times; 2 would switch them off
_CAPTURE_THREAD_LOCAL = 1
_MULTIPROCESSORS, _INTEGRATED, _CAN_MAP_HOST, _UNIFIED_ADDRESSING = 16, 18, 19, 41
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_OUT_OF_MEMORY, _DRIVER_TOO_OLD, _NO_DEVICE = 2, 35, 100

# Name -> argument types; all but the two that give texts return `cudaError_t`, an int.
FUNCTIONS: dict[str, tuple[object, ...]] = {
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiate": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}
_TEXTS = ("cudaGetErrorName", "cudaGetErrorString")


class CudaRuntime:
    """The functions of one libcudart, with errors as exceptions.

    Args:
        library: as `ctypes.CDLL` gives it.
        name: what it was loaded as, for messages.

    Raises:
        UnavailableError: the library lacks a function, so it is no libcudart that this version knows.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self._library = library
        try:
            for function, types in FUNCTIONS.items():
                bound = getattr(library, function)
                bound.argtypes, bound.restype = types, c_int
            for function in _TEXTS:
                bound = getattr(library, function)
                bound.argtypes, bound.restype = (c_int,), c_char_p
        except AttributeError as error:
            raise UnavailableError(
                f"`{name}` is no CUDA runtime that this version knows ({error})", expected="libcudart of CUDA 12 or 13"
            ) from error

    def runtime_version(self) -> int:
        """Return the version of the library, such as 12060."""
        return self._int("cudaRuntimeGetVersion")

    def driver_version(self) -> int:
        """Return the newest CUDA that the driver serves, such as 12060; 0 where there is no driver."""
        return self._int("cudaDriverGetVersion")

    def device_count(self) -> int:
        """Return how many GPUs this process may use.

        Raises:
            UnavailableError: no driver, one that is too old, or no GPU.
        """
        return self._int("cudaGetDeviceCount")

    def use_device(self, index: int) -> None:
        """Let this thread use a GPU."""
        self._call("cudaSetDevice", index)

    def compute_capability(self, device: int = 0) -> str:
        """Return the GPU's compute capability, such as `8.7`."""
        return f"{self._attribute(_CAPABILITY_MAJOR, device)}.{self._attribute(_CAPABILITY_MINOR, device)}"

    def multiprocessors(self, device: int = 0) -> int:
        """Return how many multiprocessors the GPU has."""
        return self._attribute(_MULTIPROCESSORS, device)

    def shares_host_memory(self, device: int = 0) -> bool:
        """Say whether kernels can work on pinned host memory where it lies, and lose nothing by it: an integrated GPU, as in a Jetson.

        One address must name the memory for the CPU and the GPU alike, which unified addressing promises of what
        `cudaHostAlloc` maps.
        """
        asked = (_INTEGRATED, _CAN_MAP_HOST, _UNIFIED_ADDRESSING)
        return all(self._attribute(attribute, device) for attribute in asked)

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of the GPU's memory."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", free, total)
        return free.value, total.value

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory on the GPU; free it with `free`."""
        return self._handle("cudaMalloc", size_bytes)

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._call("cudaFree", address)

    def allocate_host(self, size_bytes: int) -> int:
        """Return the address of pinned host memory, mapped for the GPU; free it with `free_host`."""
        return self._handle("cudaHostAlloc", size_bytes, _HOST_ALLOC_MAPPED)

    def free_host(self, address: int) -> None:
        """Free what `allocate_host` gave."""
        self._call("cudaFreeHost", address)

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from pinned host memory to the GPU."""
        self._call("cudaMemcpyAsync", device, host, size_bytes, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from the GPU to pinned host memory."""
        self._call("cudaMemcpyAsync", host, device, size_bytes, _DEVICE_TO_HOST, stream)

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default one."""
        return self._handle("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until everything queued on a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def create_event(self) -> int:
        """Return a new event that takes the time."""
        return self._handle("cudaEventCreateWithFlags", _EVENT_DEFAULT)

    def record(self, event: int, stream: int) -> None:
        """Queue an event on a stream."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Wait for the second event and return the milliseconds between the two, as the GPU's own clock has them."""
        self._call("cudaEventSynchronize", end)
        found = c_float()
        self._call("cudaEventElapsedTime", found, start, end)
        return found.value

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues on a stream from now on, instead of doing it; other threads go on as they were."""
        self._call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return the graph of what was recorded; free it with `destroy_graph`."""
        graph = c_void_p()
        self._call("cudaStreamEndCapture", stream, graph)
        if not graph.value:
            raise EdgebertError("`cudaStreamEndCapture` gave no graph", expected="a capture that nothing has broken")
        return graph.value

    def instantiate(self, graph: int) -> int:
        """Return a graph that can be launched; free it with `destroy_executable`."""
        return self._handle("cudaGraphInstantiate", graph, 0)

    def launch(self, executable: int, stream: int) -> None:
        """Queue a whole graph on a stream."""
        self._call("cudaGraphLaunch", executable, stream)

    def destroy_executable(self, executable: int) -> None:
        """Destroy what `instantiate` gave."""
        self._call("cudaGraphExecDestroy", executable)

    def destroy_graph(self, graph: int) -> None:
        """Destroy what `end_capture` gave."""
        self._call("cudaGraphDestroy", graph)

    def _attribute(self, number: int, device: int) -> int:
        return self._int("cudaDeviceGetAttribute", number, device)

    def _int(self, function: str, *arguments: int) -> int:
        found = c_int()
        self._call(function, found, *arguments)
        return found.value

    def _handle(self, function: str, *arguments: int) -> int:
        found = c_void_p()
        self._call(function, found, *arguments)
        return found.value or 0

    def _call(self, function: str, *arguments: object) -> None:
        # Where a pointer is asked for, ctypes passes an instance of what it points to by reference.
        code = getattr(self._library, function)(*arguments)
        if code:
            raise self._error(function, code)

    def _error(self, function: str, code: int) -> EdgebertError:
        name, text = (getattr(self._library, of)(code) or b"unknown" for of in _TEXTS)
        what = f"`{function}` failed with error {code}, {name.decode()}: {text.decode('utf-8', 'replace')}"
        if code == _OUT_OF_MEMORY:
            return MemoryExhaustedError(
                what, expected="free GPU memory, which on a Jetson is the computer's own", hint="close other programs"
            )
        if code == _DRIVER_TOO_OLD:
            return UnavailableError(
                what, expected=f"an NVIDIA driver that serves CUDA {describe_version(self.runtime_version())}"
            )
        if code == _NO_DEVICE:
            return UnavailableError(what, expected="an NVIDIA GPU that this process may use")
        return EdgebertError(what)


@functools.cache
def load_cuda(names: Sequence[str] = LIBRARIES) -> CudaRuntime:
    """Load the first libcudart of a list; one is shared by the whole process.

    Raises:
        UnavailableError: none can be loaded, or it is not a known one.
    """
    reasons = []
    for name in names:
        try:
            return CudaRuntime(ctypes.CDLL(name), name)
        except OSError as error:
            reasons.append(str(error))
    raise UnavailableError(
        f"the CUDA runtime cannot be loaded: {reasons[0]}",
        expected=f"one of {', '.join(names)}",
        hint="on a Jetson: sudo apt-get install nvidia-jetpack",
    )


def describe_version(version: int) -> str:
    """Return a version as people write it: 12060 is 12.6."""
    return f"{version // 1000}.{version % 1000 // 10}"
