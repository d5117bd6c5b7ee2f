"""How much the GPU works, by NVIDIA's management library: for Thor, whose devfreq folder has no load (tensorrt_jetson.md, section 8.1).

The library comes with the driver and is asked through ctypes; where it is not there, or refuses, nothing is known, and that is not 0.

>>> GpuLoad("libno-such-library.so").permille() is None
True
"""

from __future__ import annotations

import ctypes

LIBRARY = "libnvidia-ml.so.1"

_SUCCESS = 0  # nvmlReturn_t of nvml.h


class _Utilization(ctypes.Structure):
    """`nvmlUtilization_t`: percent of the last sample period in which a kernel ran, and in which memory was read or written."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuLoad:
    """Asks for the load of the first GPU.

    Args:
        library: name or path of the management library.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._device = ctypes.c_void_p()
        self._library = _opened(library, self._device)

    @property
    def is_known(self) -> bool:
        """Whether the library is there and knows a GPU."""
        return self._library is not None

    def permille(self) -> int | None:
        """Return how much of its time the GPU worked, None where it is not told."""
        if self._library is None:
            return None
        found = _Utilization()
        if self._library.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(found)) != _SUCCESS:
            return None
        return 10 * int(found.gpu) if found.gpu <= 100 else None

    def close(self) -> None:
        """Let the library go."""
        library, self._library = self._library, None
        if library is not None:
            library.nvmlShutdown()


def _opened(name: str, device: ctypes.c_void_p) -> ctypes.CDLL | None:
    """Return the library with the first GPU in `device`, None where one of both is missing."""
    try:
        library = ctypes.CDLL(name)
        library.nvmlDeviceGetHandleByIndex_v2.argtypes = (ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p))
        library.nvmlDeviceGetUtilizationRates.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Utilization))
        if library.nvmlInit_v2() != _SUCCESS:
            return None
        if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != _SUCCESS:
            library.nvmlShutdown()
            return None
    except (OSError, AttributeError):  # not there, or something else of that name
        return None
    return library
