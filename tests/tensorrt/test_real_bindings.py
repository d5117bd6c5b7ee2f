"""Everything that edgebert uses of TensorRT, against the official Python bindings of each supported version.

What these tests prove and what they do not: reference, section 11, methods A and C. A name, an argument or an enum member that a
version lacks is found here; whether an engine is built or runs, and how fast, only a device tells.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt.doubles import double_findings
from tests.tensorrt.mutants import survivors, unmissed
from tests.tensorrt.program import tensorrt_sources
from tests.tensorrt.stubs import complaints
from tests.tensorrt.usage import Usage, usage_of
from tests.tensorrt.wheels import WHEELS, Bindings

ROOT = Path(__file__).parents[2]
needs_code = pytest.mark.skipif(
    not (ROOT / "edgebert" / "runtime" / "tensorrt_api.py").exists(), reason="no code for TensorRT in this checkout"
)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every source of ours in which TensorRT occurs."""
    return tensorrt_sources(ROOT)


@pytest.fixture(scope="module")
def usage(sources: dict[str, str], bindings: dict[str, Bindings]) -> Usage:
    """What they use, over all versions."""
    return usage_of(sources, {version: each.api for version, each in bindings.items()})


# The wheels themselves.


def test_bindings_are_the_version_that_was_asked_for(binding: Bindings) -> None:
    assert binding.api.version == binding.wheel.version


def test_bindings_have_as_many_classes_and_enums_as_the_reference_counts(binding: Bindings) -> None:
    top = [cls for name, cls in binding.api.classes.items() if "." not in name]
    enums = sum(cls.members is not None for cls in top)
    assert (len(top) - enums, enums) == (binding.wheel.classes, binding.wheel.enums)


def test_bindings_have_a_signature_for_every_method_but_those_of_the_wheels_own_python(binding: Bindings) -> None:
    unread = {
        f"{name}.{method}"
        for name, cls in binding.api.classes.items()
        for method, overloads in cls.methods.items()
        if not overloads and not method.startswith("__")
    }
    assert unread == set()


GONE_IN_11 = (
    ("BuilderFlag", "FP16"),
    ("BuilderFlag", "INT8"),
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
    ("Builder", "platform_has_fast_fp16"),
    ("ICudaEngine", "device_memory_size"),
    ("ICudaEngine", "create_execution_context_without_device_memory"),
    ("IBuilderConfig", "int8_calibrator"),
    ("OnnxParser", "supports_model"),
)


@pytest.mark.parametrize(("owner", "name"), GONE_IN_11)
def test_bindings_of_11_lack_what_10_has(bindings: dict[str, Bindings], owner: str, name: str) -> None:
    assert [each.wheel.major for each in bindings.values() if each.api.has(owner, name)] == [10, 10, 10, 10]


def test_bindings_change_integers_between_10_and_11(bindings: dict[str, Bindings]) -> None:
    flags = [each.api.classes["NetworkDefinitionCreationFlag"].members or {} for each in bindings.values()]
    assert [members["STRONGLY_TYPED"] for members in flags] == [1, 1, 1, 1, 0]


NULLPTR = "TypeError: pybind11::init(): factory function returned nullptr"


def test_bindings_behave_over_stub_libraries_as_the_reference_says(binding: Bindings) -> None:
    seen = json.loads(binding.run(Path(__file__).with_name("behaviour.py").read_text(encoding="utf-8")))
    config, attribute = seen.pop("config"), seen.pop("attribute")
    assert config.endswith("No constructor defined!")
    assert attribute.startswith("AttributeError: ")
    constructed = dict.fromkeys(("ILogger", "IProfiler", "IProgressMonitor", "IOutputAllocator"), "'constructs'")
    assert seen == {"builder": NULLPTR, "runtime": NULLPTR, "plugins": "True", "registry": "None", **constructed}


# Our code.


@needs_code
def test_usage_has_nothing_that_a_version_does_not_know(usage: Usage) -> None:
    assert list(map(str, usage.findings)) == []


@needs_code
def test_usage_covers_build_and_run(usage: Usage) -> None:
    calls = {"trt.Builder.create_network", "trt.OnnxParser.parse", "trt.IExecutionContext.execute_async_v3"}
    assert calls <= set(usage.names())


@needs_code
def test_usage_finds_every_name_misspelt_and_every_argument_too_many(
    sources: dict[str, str], usage: Usage, bindings: dict[str, Bindings]
) -> None:
    assert survivors(sources, usage, {version: each.api for version, each in bindings.items()}) == []


@needs_code
@pytest.mark.parametrize(
    "version",
    [pytest.param(wheel.version, marks=() if wheel is WHEELS[0] else pytest.mark.slow) for wheel in WHEELS],
)
def test_usage_misses_every_name_that_a_version_loses(
    sources: dict[str, str], bindings: dict[str, Bindings], version: str
) -> None:
    apis = {version: bindings[version].api}
    assert unmissed(sources, usage_of(sources, apis), apis) == []


@pytest.fixture(scope="module")
def mypy_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the stubs are, and where mypy keeps what it knows of Python's own modules from version to version."""
    folder = tmp_path_factory.mktemp("mypy")
    yield folder
    shutil.rmtree(folder)  # the stubs are made of the wheels' text


@needs_code
def test_mypy_agrees_with_our_code(binding: Bindings, sources: dict[str, str], usage: Usage, mypy_folder: Path) -> None:
    found = complaints(binding.api, sources, mypy_folder)
    # mypy does not follow a guard into the function that is called behind it.
    reached = [each for each in found if usage.reaches(binding.wheel.version, each.file, each.line)]
    assert reached == []


@needs_code
def test_double_is_like_the_bindings(binding: Bindings, usage: Usage) -> None:
    double = importlib.import_module("tests.tensorrt.double")
    near = [each for each in double.VERSIONS if each.split(".")[:2] == binding.wheel.version.split(".")[:2]]
    found = [
        f"{version}: {text}"
        for version in near
        for text in double_findings(
            double.tensorrt_double(version, double.Script()), binding.api, usage.uses[binding.wheel.version]
        )
    ]
    assert (len(near), found) == (1, [])


@needs_code
def test_usage_names_everything_that_the_double_is_asked_for(
    usage: Usage, toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The finder reads and the double is run: two ways to the same names."""
    double, jetsons = (importlib.import_module(f"tests.tensorrt.{name}") for name in ("double", "jetson"))
    runners = importlib.import_module("edgebert.runtime.runner")
    jetson = jetsons.jetson_double(monkeypatch, tmp_path)
    for version in double.VERSIONS:
        jetson.update(version)
        with runners.open_runner("tensorrt", jetson.source(toy), runners.RunnerOptions(device="GPU")) as runner:
            runner.infer(toy.images(1))
    asked = {f"trt.{name.rstrip('=')}" for name in jetson.script.names() if not name.startswith("del ")}
    assert "trt.IExecutionContext.execute_async_v3" in asked
    assert asked - set(usage.names()) == set()


_OURS = """
import json, tensorrt
from edgebert.errors import UnavailableError
from edgebert.runtime import tensorrt_api
trt = tensorrt_api.load_tensorrt()
assert trt is tensorrt
logger = tensorrt_api.logger_of(trt)
said = []
for start in (tensorrt_api.new_builder, tensorrt_api.new_runtime):
    try:
        start(trt, logger)
    except UnavailableError as error:
        said.append([error.what, error.__cause__.args[0]])
logger.log(trt.ILogger.Severity.ERROR, "planted")
print(json.dumps({
    "said": said,
    "logged": logger.collected.errors(),
    "flags": tensorrt_api.network_flags(trt, "strong"),
    "strong_only": tensorrt_api.is_strong_only(trt),
}))
"""


@pytest.fixture
def ours(binding: Bindings) -> dict[str, object]:
    """What our own code does with the real bindings, where there is no GPU."""
    found: dict[str, object] = json.loads(binding.run(_OURS, also=(ROOT,)))
    return found


@needs_code
def test_new_builder_and_new_runtime_explain_the_null_pointer_of_the_real_bindings(ours: dict[str, object]) -> None:
    null = NULLPTR.removeprefix("TypeError: ")
    assert ours["said"] == [
        [f"TensorRT's {what} cannot start: TensorRT finds no NVIDIA driver or no GPU: `{null}`", null]
        for what in ("builder", "runtime")
    ]


@needs_code
def test_logger_of_collects_over_the_real_bindings(ours: dict[str, object]) -> None:
    assert ours["logged"] == ["planted"]


@needs_code
def test_network_flags_are_right_over_the_real_bindings(binding: Bindings, ours: dict[str, object]) -> None:
    is_11 = binding.wheel.major == 11
    assert (ours["flags"], ours["strong_only"]) == (0 if is_11 else 2, is_11)


_CALLBACKS = """
import json, io, tensorrt
from edgebert.export import engine_build
monitor = engine_build.monitor_of(tensorrt, lambda done, phase: phase != "last")
monitor.phase_start("whole", None, 2)
made = [isinstance(monitor, tensorrt.IProgressMonitor), monitor.step_complete("whole", 0)]
if hasattr(tensorrt, "IStreamWriter"):
    stream = io.BytesIO()
    writer = engine_build._writer_of(tensorrt, stream)
    made += [isinstance(writer, tensorrt.IStreamWriter), writer.write(b"plan"), stream.getvalue().decode()]
print(json.dumps(made))
"""


@needs_code
def test_callbacks_construct_over_the_real_bindings(binding: Bindings) -> None:
    streams = [True, 4, "plan"] if binding.api.has("", "IStreamWriter") else []
    assert json.loads(binding.run(_CALLBACKS, also=(ROOT,))) == [True, True, *streams]
