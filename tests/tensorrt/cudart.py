"""A stand-in for libcudart behind the real ctypes layer: `cudart.c`, compiled when a test asks for it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_size_t, c_void_p
from pathlib import Path

import pytest

from edgebert.runtime.cuda import CudaRuntime

KINDS = ("device memory", "host memory", "streams", "events", "graphs", "executables")
_CALLBACK = ctypes.CFUNCTYPE(None, c_long)


class CudartDouble:
    """The library, loaded, and what tests ask of it beside the functions of CUDA.

    Attributes:
        runtime: the layer under test, over this library.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.double_set.argtypes = (c_char_p, c_int)
        self._library.double_fail.argtypes = (c_char_p, c_int, c_int)
        self._library.double_live.argtypes, self._library.double_live.restype = (c_int,), c_long
        self._library.double_calls.restype = c_char_p
        self._library.double_seen_by_kernels.argtypes = (c_void_p, c_size_t)
        self._library.double_seen_by_kernels.restype = c_void_p
        self._library.double_launch.argtypes = (c_void_p, _CALLBACK, c_long)
        self._library.double_is_capturing.argtypes = (c_void_p,)
        self._work: list[Callable[[], None]] = []
        self._call = _CALLBACK(self._run)
        self.runtime = CudaRuntime(ctypes.CDLL(str(path)), str(path))

    def set(self, name: str, value: int) -> None:
        """Change the computer: `devices`, `integrated`, `multiprocessors`, `runtime`."""
        self._library.double_set(name.encode(), value)

    def fail(self, function: str, code: int, *, after: int = 0) -> None:
        """Let a function give an error from its next call on, or `after` more; an empty name lets all work again."""
        self._library.double_fail(function.encode(), code, after)

    def live(self) -> dict[str, int]:
        """Return what is allocated and not freed."""
        found = {kind: int(self._library.double_live(place)) for place, kind in enumerate(KINDS)}
        return {kind: count for kind, count in found.items() if count}

    def calls(self) -> list[str]:
        """Return the functions that were called, in order."""
        text: bytes = self._library.double_calls()
        return text.decode().split()

    def forget_calls(self) -> None:
        """Begin the list of calls anew."""
        self._library.double_forget_calls()

    # What the double of TensorRT needs of a GPU.

    def host_address(self, address: int, size: int) -> int | None:
        """Return where a kernel finds an address, or None for one that no kernel may use."""
        found: int | None = self._library.double_seen_by_kernels(address, size)
        return found

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work on a stream; it is done when somebody waits for the stream, and again with each launch of a graph."""
        self._work.append(work)
        assert self._library.double_launch(stream, self._call, len(self._work) - 1) == 0

    def is_capturing(self, stream: int) -> bool:
        """Whether a stream is being recorded."""
        return bool(self._library.double_is_capturing(stream))

    def _run(self, place: int) -> None:
        self._work[place]()


def compiled(folder: Path) -> Path:
    """Compile the library into a folder; skip where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a CUDA runtime with")
    library = folder / "libcudart_double.so"
    source = Path(__file__).with_name("cudart.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return library
