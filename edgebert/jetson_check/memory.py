"""CUDA by itself, as the runner uses it: the library, the GPU, memory, copies, events."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject
from edgebert.errors import EdgebertError
from edgebert.runtime.cuda import CudaRuntime, describe_version, load_cuda

_BYTES = 1 << 20


def cuda(_request: Fields) -> JsonObject:
    """Ask for the GPU, send a megabyte there and back, and time that with events.

    Raises:
        UnavailableError: no library, no driver, no GPU.
        MemoryExhaustedError: there is no megabyte.
        EdgebertError: a call fails, what comes back is not what was sent, or the events tell no time.
    """
    runtime = load_cuda()
    version, driver = runtime.runtime_version(), runtime.driver_version()
    count = runtime.device_count()
    runtime.use_device(0)
    free, total = runtime.memory()
    milliseconds = _there_and_back(runtime)
    facts: JsonObject = {
        "library": runtime.name,
        "runtime": describe_version(version),
        "driver serves": describe_version(driver),
        "gpus": count,
        "compute capability": runtime.compute_capability(),
        "multiprocessors": runtime.multiprocessors(),
        "shares memory with the cpu": runtime.shares_host_memory(),
        "free_bytes": free,
        "total_bytes": total,
        "there_and_back_ms": milliseconds,
    }
    shared = "shared with the CPU" if runtime.shares_host_memory() else "not shared with the CPU"
    return {
        "found": f"CUDA {describe_version(version)}, compute capability {runtime.compute_capability()}, "
        f"{runtime.multiprocessors()} multiprocessors, {free >> 20:,} of {total >> 20:,} MiB free, {shared}",
        "facts": facts,
    }


def _there_and_back(runtime: CudaRuntime) -> float:
    """Return the GPU's milliseconds for both copies of a megabyte."""
    with contextlib.ExitStack() as stack:
        stream = runtime.create_stream()
        stack.callback(runtime.destroy_stream, stream)
        sent, back = (_host(runtime, stack) for _ in range(2))
        device = runtime.allocate(_BYTES)
        stack.callback(runtime.free, device)
        start, end = (_event(runtime, stack) for _ in range(2))
        sent[1][:] = np.arange(_BYTES // 4, dtype=np.uint32).view(np.uint8)
        back[1][:] = 0
        runtime.record(start, stream)
        runtime.copy_to_device(device, sent[0], _BYTES, stream)
        runtime.copy_to_host(back[0], device, _BYTES, stream)
        runtime.record(end, stream)
        runtime.synchronize(stream)
        milliseconds = runtime.elapsed_ms(start, end)
        wrong = int(np.count_nonzero(sent[1] != back[1]))
    if wrong:
        raise EdgebertError(
            f"{wrong:,} of {_BYTES:,} bytes came back from the GPU otherwise than they were sent",
            expected="the same bytes",
            hint="sudo dmesg | grep -i nvgpu",
        )
    if not 0 <= milliseconds < 10_000:
        raise EdgebertError(
            f"CUDA's events say that two copies took {milliseconds:g} ms", expected="less than 10,000 ms"
        )
    return milliseconds


def _host(runtime: CudaRuntime, stack: contextlib.ExitStack) -> tuple[int, NDArray[np.uint8]]:
    """Return the address of pinned memory, and uint8 (bytes,) over it."""
    address = runtime.allocate_host(_BYTES)
    stack.callback(runtime.free_host, address)
    return address, np.frombuffer(memoryview((ctypes.c_uint8 * _BYTES).from_address(address)), np.uint8)


def _event(runtime: CudaRuntime, stack: contextlib.ExitStack) -> int:
    event = runtime.create_event()
    stack.callback(runtime.destroy_event, event)
    return event
