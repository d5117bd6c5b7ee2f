from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgebert.bench.environment.jetson.nvml import GpuLoad
from edgebert.bench.environment.jetson.sources import GpuClockSource
from edgebert.bench.environment.system_files import SystemFiles

Board = Callable[[str], Path]


class Function:
    """A function of a library: ctypes lets `argtypes` be set on it."""

    def __init__(self, call: Callable[..., int]) -> None:
        self.argtypes: tuple[object, ...] = ()
        self._call = call

    def __call__(self, *arguments: object) -> int:
        return self._call(*arguments)


class Library(SimpleNamespace):
    """Stands in for the management library; `percent` is what it says."""

    def __init__(self, *, percent: int = 42, start: int = 0, devices: int = 1, code: int = 0) -> None:
        self.open = 0
        self.percent = percent

        def begin() -> int:
            self.open += start == 0
            return start

        def end() -> int:
            self.open -= 1
            return 0

        def tell(_: object, found: object) -> int:
            found._obj.gpu = self.percent  # type: ignore[attr-defined]  # of a `byref`
            return code

        super().__init__(
            nvmlInit_v2=Function(begin),
            nvmlShutdown=Function(end),
            nvmlDeviceGetHandleByIndex_v2=Function(lambda *_: 0 if devices else 6),
            nvmlDeviceGetUtilizationRates=Function(tell),
        )


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Library], Library]:
    """Return a function that makes ctypes find a library."""

    def use(library: Library) -> Library:
        monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
        return library

    return use


def test_gpu_load_is_that_of_the_library(given: Callable[[Library], Library]) -> None:
    library = given(Library(percent=87))
    load = GpuLoad()
    assert (load.is_known, load.permille(), library.open) == (True, 870, 1)
    load.close()
    assert (load.permille(), library.open) == (None, 0)


@pytest.mark.parametrize(
    "library", [Library(code=3), Library(percent=4_000_000_000), Library(start=9), Library(devices=0)]
)
def test_gpu_load_is_not_known_where_the_library_refuses(given: Callable[[Library], Library], library: Library) -> None:
    given(library)
    load = GpuLoad()
    assert load.permille() is None
    load.close()
    assert library.open == 0


def test_gpu_load_is_not_known_of_a_library_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not GpuLoad().is_known


def test_gpu_clock_takes_the_load_of_the_library_where_the_folder_has_none(
    board: Board, given: Callable[[Library], Library]
) -> None:
    library = given(Library(percent=87))
    root = board("agx-thor")

    class Here(GpuClockSource):
        pass

    Here.root = root
    source = Here(SystemFiles(root))
    assert dict(zip(source.columns, source.read(), strict=True))["gpu_load_permille"] == 870
    source.close()
    assert library.open == 0


def test_gpu_clock_prefers_the_load_of_the_folder(board: Board, given: Callable[[Library], Library]) -> None:
    library = given(Library())
    root = board("orin-nano")

    class Here(GpuClockSource):
        pass

    Here.root = root
    source = Here(SystemFiles(root))
    assert dict(zip(source.columns, source.read(), strict=True))["gpu_load_permille"] == 12
    assert library.open == 0
