"""Type stubs from a table, and mypy with them, on small sources."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from tests.tensorrt.small_api import small_apis
from tests.tensorrt.stubs import complaints, stub_text, with_module_of_stubs

FILE = "edgebert/sample.py"
API = small_apis()["11.0.0"]

SOURCE = """
from __future__ import annotations
from types import ModuleType
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import tensorrt

def right(trt: ModuleType, logger: tensorrt.ILogger) -> bytes | None:
    builder: tensorrt.Builder = trt.Builder(logger)
    builder.max_threads = 2
    network = builder.create_network(flags=int(trt.Flag.TF32))
    plan = None if network is None else builder.build_plan(network)
    return None if plan is None else bytes(plan)

class Writer:
    def __init__(self, trt: ModuleType) -> None:
        class Keeping(trt.Writer):
            def write(self, data: bytes) -> int:
                return len(data)
        self.kept = Keeping()

def wrong(trt: ModuleType, builder: tensorrt.Builder) -> None:
    trt.Bulider
    trt.Flag.FP16
    builder.creat_network()
    builder.create_network(flag=0)
    builder.create_network("0")
    builder.create_network(0, 1)
    builder.num_cores = 2
    builder.create_network().get_input(0)
    class Own(trt.ILogger):
        def log(self, severity: int, msg: str) -> None: ...
"""
FIRST_WRONG = 1 + SOURCE[: SOURCE.index("    trt.Bulider")].count("\n")


def test_stub_text_is_python() -> None:
    names = {node.name for node in ast.walk(ast.parse(stub_text(API))) if isinstance(node, ast.ClassDef)}
    assert names == {"Severity", *(name for name in API.classes if "." not in name)}


def test_with_module_of_stubs_leaves_lines_where_they_are() -> None:
    source = "def f(trt: object) -> object:\n    return trt.X\n\n\ntrt = f(trt=1)\n"
    assert with_module_of_stubs(source).splitlines()[:5] == [
        "def f(given_trt: object) -> object:",
        "    return trt.X",
        "",
        "",
        "given_trt = f(given_trt=1)",
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """What mypy says of the source: line, counted from the first wrong one, and the error's code."""
    said = complaints(API, {FILE: textwrap.dedent(SOURCE)}, tmp_path_factory.mktemp("mypy"))
    return [(each.line - FIRST_WRONG, each.text.rpartition("[")[2].rstrip("]")) for each in said]


def test_complaints_say_nothing_of_right_code(found: list[tuple[int, str]]) -> None:
    assert [each for each in found if each[0] < 0] == []


def test_complaints_name_each_wrong_line(found: list[tuple[int, str]], tmp_path: Path) -> None:
    assert found == [
        (0, "attr-defined"),
        (1, "attr-defined"),
        (2, "attr-defined"),
        (3, "call-arg"),
        (4, "arg-type"),
        (5, "call-arg"),
        (6, "misc"),
        (7, "union-attr"),
        (9, "override"),
    ]
