"""The finder of TensorRT's names in our code, on small sources: right ones pass, and each kind of wrong one is found."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.tensorrt.mutants import mutants, survivors, unmissed
from tests.tensorrt.program import tensorrt_sources
from tests.tensorrt.small_api import small_apis
from tests.tensorrt.usage import Usage, usage_of

FILE = "edgebert/sample.py"

RIGHT = """
from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt

_DTYPES = {"FLOAT": 4, "HALF": 2}


def load() -> ModuleType:
    trt = importlib.import_module("tensorrt")
    if _numbers(trt.__version__) < (10, 3):
        raise RuntimeError(trt.__version__)
    if not hasattr(trt.Flag, "TF32"):
        raise RuntimeError("no TF32")
    return trt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


@functools.cache
def logger_of(trt: ModuleType) -> Any:
    class Collecting(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.lines.append(msg)

    return Collecting()


def build(trt: ModuleType) -> bytes:
    builder = trt.Builder(logger_of(trt))
    network = builder.create_network(flags=_flags(trt))
    builder.max_threads = 2
    sizes = [_DTYPES[each.dtype.name] for each in network.get_inputs()]
    for name in ("FP16", "TF32"):
        flag = getattr(trt.Flag, name, None)
        if flag is not None:
            sizes.append(int(flag))
    if hasattr(builder, "build_to"):
        return _to_stream(trt, builder)
    plan = builder.build_plan(network)
    if plan is None:
        raise RuntimeError
    return bytes(plan)


def _flags(trt: ModuleType) -> int:
    if int(trt.__version__.split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.Flag.FP16)


def _to_stream(trt: ModuleType, builder: Any) -> bytes:
    class Keeping(trt.Writer):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[bytes] = []

        def write(self, data: bytes) -> int:
            self.parts.append(data)
            return len(data)

    builder.build_to(len(Keeping().parts))
    return b""


class Holder:
    def __init__(self, trt: ModuleType, network: Any) -> None:
        self._trt = trt
        self._held: dict[int, Any] = {}
        self._held[0] = network.get_input(0)

    def size(self) -> bool:
        return self._held[0].dtype == self._trt.DataType.FLOAT and self._held[0].some_shape > 0


def held(trt: ModuleType, network: tensorrt.Network) -> Holder:
    return Holder(trt, network)
"""


def usage(source: str) -> Usage:
    return usage_of({FILE: textwrap.dedent(source)}, small_apis())


def texts(source: str) -> list[str]:
    return [finding.text for finding in usage(source).findings]


def test_usage_of_finds_nothing_wrong_in_a_right_source() -> None:
    assert texts(RIGHT) == []


def test_usage_of_finds_every_mutant_of_a_right_source() -> None:
    assert survivors({FILE: RIGHT}, usage(RIGHT), small_apis()) == []


def test_mutants_touch_every_kind_of_use() -> None:
    found = {(mutant.use.what, mutant.change) for mutant in mutants({FILE: RIGHT}, usage(RIGHT), small_apis())}
    assert found == {
        ("attribute", "misspelt"),
        ("keyword", "misspelt"),
        ("guard", "misspelt"),
        ("override", "misspelt"),
        ("call", "too many arguments"),
        ("call", "no arguments"),
    }


def test_usage_of_misses_every_name_that_a_version_loses() -> None:
    assert unmissed({FILE: RIGHT}, usage(RIGHT), small_apis()) == []


def test_usage_names_lists_what_is_asked_for_with_its_versions() -> None:
    found = usage(RIGHT).names()
    assert (found["trt.Flag.FP16"], found["trt.Builder.build_plan"]) == (["10.9.0", "11.0.0"], ["10.9.0"])


def test_reaches_leaves_out_what_a_version_has_no_way_to() -> None:
    line = 1 + RIGHT[: RIGHT.index("builder.build_to(len")].count("\n")
    assert [usage(RIGHT).reaches(version, FILE, line) for version in small_apis()] == [False, True]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("trt.Flag.FP16", "`trt.Flag.FP16` does not exist"),
        ("builder.build_to(1)", "`trt.Builder.build_to` does not exist"),
        ("builder.create_network(1, 2)", "`Builder.create_network` does not take 2 arguments by position; it takes (flags=)"),
        ("builder.create_network(flag=1)", "`Builder.create_network` does not take 0 arguments by position, `flag`; it takes (flags=)"),
        ("builder.build_plan()", "`Builder.build_plan` does not take 0 arguments by position; it takes (network) or (network, text)"),
        ("builder.create_network(*[1])", "the arguments of `Builder.create_network` cannot be counted: write them out"),
        ("trt.Network()", "`Network` has no constructor"),
        ("builder.num_cores = 2", "`Builder.num_cores` cannot be set"),
        ("setattr(builder, 'num_core', 2)", "`trt.Builder.num_core` does not exist"),
        ("getattr(trt, 'Bulider')", "`trt.Bulider` does not exist"),
        ("getattr(trt.Flag, str(builder), None)", "`getattr(trt.Flag, str(builder), None)`: the name cannot be seen: write it as text"),
        ("kept = {'a': 1}.fromkeys(builder)", "`{'a': 1}.fromkeys(builder)`: an object of TensorRT's passes out of sight"),
        ("hidden.dtype", "`hidden.dtype`: what `hidden` is cannot be seen (the parameter `hidden` is not annotated as TensorRT's): annotate it"),
        ("other.create_network()", "`other.create_network` is a name of TensorRT's, and `other` is not seen to be: annotate it"),
        ("match builder.num_cores:\n            case 1:\n                builder.num_corse", "`trt.Builder.num_corse` does not exist"),
        ("class Own:\n            kept: int = trt.Flag.FP61", "`trt.Flag.FP61` does not exist"),
        ("with builder as held:\n            held.num_corse", "`trt.Builder.num_corse` does not exist"),
        ("for one, other in [(1, builder)]:\n            other.num_corse", "`trt.Builder.num_corse` does not exist"),
        ("kept = []\n        kept.append(builder)\n        kept[0].num_corse", "`trt.Builder.num_corse` does not exist"),
        ("assert (held := builder).num_corse", "`trt.Builder.num_corse` does not exist"),
        ("f'{builder.num_corse}'", "`trt.Builder.num_corse` does not exist"),
        ("sorted([builder], key=lambda each: each.num_corse)", "`trt.Builder.num_corse` does not exist"),
        ("min([builder]).num_corse", "`trt.Builder.num_corse` does not exist"),
        ("kept = lambda each: each.num_cores", "`each.num_cores`: what `each` is cannot be seen (a lambda's parameter): annotate it"),
        ("other.held = builder", "an object of TensorRT's passes out of sight in `other.held`"),
        ("builder.create_network(0).get_input(0).dtyp", "`trt.Tensor.dtyp` does not exist"),
        ("[each.dtyp for each in builder.create_network().get_inputs()]", "`trt.Tensor.dtyp` does not exist"),
    ],
)  # fmt: skip
def test_usage_of_finds_what_a_version_does_not_know(body: str, text: str) -> None:
    source = f"""
    def checked(trt, hidden, other: int, logger: int):
        builder = trt.Builder(logger)
        {body}
    """
    assert text in texts(source)


@pytest.mark.parametrize(
    "guard",
    [
        "if hasattr(trt.Flag, 'PF16'):\n            pass",
        "flag = getattr(trt.Flag, 'PF16', None)",
        "try:\n            trt.Flag.PF16\n        except AttributeError:\n            pass",
        "if trt.float32.name == 'PF16':\n            pass",
        "{'FLOAT': 1, 'PF16': 2}.get(trt.float32.name)",
        "kept: 'trt.PF16 | None' = None",
    ],
)
def test_usage_of_finds_a_guard_that_no_version_passes(guard: str) -> None:
    found = texts(f"def checked(trt):\n        {guard}\n")
    assert [text for text in found if "PF16` is asked for behind a guard, and exists in none of them" in text]


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("def lag(self, severity, msg): ...", "`Own` does not define `log`, which `trt.ILogger` wants"),
        (
            "def log(self, severity): ...",
            "TensorRT calls `ILogger.log(self, severity, msg)`, ours takes 1 arguments after `self`",
        ),
        (
            "def log(self, severity, msg): ...\n        def logs(self): ...",
            "TensorRT never calls `ILogger.logs`: a misspelling, or a method of our own: `_logs`",
        ),
    ],
)
def test_usage_of_finds_a_subclass_that_tensorrt_cannot_call(method: str, text: str) -> None:
    assert text in texts(f"def checked(trt):\n    class Own(trt.ILogger):\n        {method}\n    return Own()\n")


def test_usage_of_lets_a_branch_on_the_version_hold_what_others_lack() -> None:
    source = """
    def checked(trt):
        return trt.Flag.FP16 if tuple(int(part) for part in trt.__version__.split(".")) < (11, 0) else 0
    """
    assert texts(source) == []


def test_usage_of_holds_a_public_function_against_versions_that_its_callers_leave_out() -> None:
    source = """
    def checked(trt):
        if hasattr(trt.Flag, "FP16"):
            return half(trt)
        return 0

    def half(trt):
        return trt.Flag.FP16
    """
    assert texts(source) == ["`trt.Flag.FP16` does not exist"]


def test_usage_of_finds_code_that_no_version_reaches() -> None:
    source = """
    def checked(trt):
        if hasattr(trt, "float32"):
            return 1
        else:
            found = 2
            return found
    """
    assert texts(source) == ["no version reaches this code, so nothing in it is checked"]


def test_usage_of_follows_objects_between_files() -> None:
    sources = {
        "edgebert/one.py": "def made(trt, logger: int):\n    return trt.Builder(logger)\n",
        "export/two.py": "from edgebert.one import made\n\n\ndef used(trt):\n    return made(trt, 1).num_corse\n",
    }
    found = usage_of(sources, small_apis()).findings
    assert {(finding.file, finding.line) for finding in found} == {("export/two.py", 5)}


def test_tensorrt_sources_takes_who_mentions_the_module_and_who_imports_from_those(tmp_path: Path) -> None:
    written = {
        "edgebert/one.py": "def made(trt):\n    return trt.Builder\n",
        "edgebert/two.py": "from edgebert.one import made\n",
        "export/three.py": "from edgebert import one\n",
        "calibration/four.py": "trt_is_only_part_of_a_name = 1\n",
        "edgebert/five.py": "from edgebert.two import made\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(tensorrt_sources(tmp_path)) == ["edgebert/one.py", "edgebert/two.py", "export/three.py"]
