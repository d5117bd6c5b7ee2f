"""Boards that are none: trees of files, the doubles of TensorRT and CUDA in this process, and in the child processes of a whole ladder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgebert._json import Fields, JsonObject
from edgebert.jetson_check import board as board_module
from edgebert.jetson_check import engines, memory
from tests.tensorrt.cudart import compiled
from tests.tensorrt.jetson import Jetson, jetson_double

ROOT = Path(__file__).parents[2]
TREES = ROOT / "tests" / "bench" / "jetson" / "jetson_trees.json"

_DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { (void)length; strcpy(name, "Orin"); return device - 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 16 ? 8 : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device - 7;
}
"""


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that lays out a board of `jetson_trees.json`, anew with each call, and returns its root."""

    def lay_out(name: str = "orin-nano") -> Path:
        root = tmp_path_factory.mktemp(name)
        for path, text in json.loads(TREES.read_text(encoding="utf-8"))["trees"][name].items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return root

    return lay_out


def is_of(root: Path, release: str) -> Path:
    """Give a board another L4T, such as `R35 (release), REVISION: 3.1`."""
    (root / "etc/nv_tegra_release").write_text(f"# {release}, GCID: 1, BOARD: generic\n", encoding="utf-8")
    return root


def asked(**content: Any) -> Fields:
    """Return a request to a task."""
    request: JsonObject = content
    return Fields(request, what="a request")


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Jetson]:
    """An Orin Nano with TensorRT 10.3 in this process, for tasks that are called as functions."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = jetson_double(monkeypatch, tmp_path)
    assert made.cudart is not None
    runtime = made.cudart.runtime
    monkeypatch.setattr(memory, "load_cuda", lambda: runtime)
    for module in (engines, board_module):
        monkeypatch.setattr(module, "gpu_facts", lambda *_root: made.facts)
    monkeypatch.setattr(engines, "machine", lambda: "aarch64")
    yield made
    assert made.script.faults == []
    assert made.cudart.live() == {}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that knows one Orin, and with the double of CUDA under the name that edgebert looks for."""
    folder = tmp_path_factory.mktemp("libraries")
    library = compiled(folder)
    (folder / "libcudart.so.12").symlink_to(library)
    (folder / "driver.c").write_text(_DRIVER)
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None  # or `compiled` has skipped
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture(scope="session")
def children(libraries: Path) -> Callable[..., Any]:
    """Return a function that says what child processes find; to be called with a monkeypatch that takes it back."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def find(monkeypatch: pytest.MonkeyPatch, **script: Any) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
        monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "tensorrt" / "site"))
        content = {"cudart": str(libraries / "libcudart_double.so"), **script}
        monkeypatch.setenv("EDGEBERT_TEST_TENSORRT", json.dumps(content))

    return find
