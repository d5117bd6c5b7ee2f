"""The device wheel: what is in it, that its bytes are always the same, that pip takes it, and that it runs from the file."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import edgebert
import edgebert.export
from edgebert import Classifier
from edgebert.bench.comparison.validation import check_result
from edgebert.bench.options import BenchOptions
from edgebert.bundle import read_bundle
from edgebert.errors import CannotWriteError
from edgebert.remote.bench import bench_on
from edgebert.remote.device_wheel import (
    DATA,
    HOST_ONLY,
    ON_DEVICE,
    REQUIRES,
    DeviceWheel,
    device_wheel,
    is_host_only,
    write_device_wheel,
)
from edgebert.remote.transport import Transport, transport_of

if TYPE_CHECKING:
    from tests.conftest import Toy
    from tests.remote.conftest import DevicePython

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edgebert"

# Host-only modules that a device module names inside a function or as a string, to be loaded only where they are.
REACHED_LATER = {
    ("edgebert.artefact", "edgebert.bench.comparison.validation"),
    ("edgebert.artefact", "edgebert.export.metadata"),
    ("edgebert.artefact", "edgebert.export.rules"),
    ("edgebert.artefact", "edgebert.models.checkpoint"),
    ("edgebert.bench", "edgebert.bench.comparison.compare"),
    ("edgebert.bench", "edgebert.bench.comparison.validation"),
    ("edgebert.bench", "edgebert.bench.report.page"),
    ("edgebert.bench", "edgebert.bench.report.table"),
    ("edgebert.bench.loading", "edgebert.models.checkpoint"),
    ("edgebert.runtime.runner", "edgebert.runtime.torch_runner"),
    # The lazy names of a package of which a device has a part.
    *(("edgebert.export", module) for module in set(edgebert.export._HOME.values()) if is_host_only(module)),
}
# What a device's code may import at its top besides the standard library; a backend is imported by its runner when it opens.
ALLOWED = {"edgebert", "numpy", "PIL"}
TARGETS = {"onnxruntime": "cpu", "openvino": "intel-cpu"}


@pytest.fixture(scope="module")
def wheel() -> DeviceWheel:
    return device_wheel()


@pytest.fixture(scope="module")
def contents(wheel: DeviceWheel) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _modules_on_disk() -> dict[str, Path]:
    """Name -> file of every module that is not host-only."""
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE / "export").rglob("*.py")]  # that one is a link, which no search follows
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: path for name, path in found.items() if not is_host_only(name)}


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module that a file imports or names in a string, and whether importing the file imports it."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), True)]
    while waiting:
        node, at_top = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from edgebert.bench import worker` names a module, `from edgebert.bundle import Bundle` what is in one.
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield (name if _is_module(name) else node.module), at_top
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("edgebert."):
            named = node.value.partition(":")[0]
            if _is_module(named):
                yield named, False
        inside = at_top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        waiting += [(child, inside) for child in ast.iter_child_nodes(node)]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("edgebert.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def test_device_wheel_holds_every_module_but_the_hosts(wheel: DeviceWheel) -> None:
    assert set(wheel.modules) == set(_modules_on_disk())
    assert {
        "edgebert.runtime.classifier",
        "edgebert.bench.worker",
        "edgebert.bench.harness",
        "edgebert.doctor",
        "edgebert.testing",
    } <= set(wheel.modules)


def test_host_only_names_exist() -> None:
    assert [name for name in (*HOST_ONLY, *ON_DEVICE) if not _is_module(name)] == []


def test_device_wheel_builds_engines_and_leaves_the_graphs_to_the_host(wheel: DeviceWheel) -> None:
    assert [name for name in wheel.modules if name.startswith("edgebert.export")] == sorted(ON_DEVICE)


def test_device_wheel_holds_nothing_but_sources_and_its_own_records(contents: dict[str, bytes]) -> None:
    others = {name for name in contents if not name.endswith(".py")}
    records = {name.rpartition("/")[2] for name in others if ".dist-info/" in name}
    assert records == {"METADATA", "WHEEL", "RECORD"}
    assert {name for name in others if ".dist-info/" not in name} == {"edgebert/py.typed", *DATA}


def test_device_modules_import_only_what_a_device_has() -> None:
    standard = set(sys.stdlib_module_names)
    foreign = {
        (name, module)
        for name, path in _modules_on_disk().items()
        for module, at_top in _imports(path)
        if at_top and (module.partition(".")[0] not in standard | ALLOWED or is_host_only(module))
    }
    assert foreign == set()


def test_host_only_modules_are_reached_later_only_where_listed() -> None:
    found = {
        (name, module)
        for name, path in _modules_on_disk().items()
        for module, _ in _imports(path)
        if is_host_only(module)
    }
    assert found == REACHED_LATER


def test_device_modules_ask_for_no_file_beside_them() -> None:
    # In a wheel file there is none. What stays is the parent of the package, which is the wheel file itself: a path entry.
    found = {name for name, path in _modules_on_disk().items() if "__file__" in path.read_text(encoding="utf-8")}
    assert found == {"edgebert.bench.worker_process"}


def test_device_wheel_is_the_same_in_every_process() -> None:
    code = "from edgebert.remote.device_wheel import device_wheel\nprint(device_wheel().sha256)"
    found = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": f"UTC+{seed}"}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd="/"
        )
        found.add(ran.stdout.strip())
    assert found == {device_wheel().sha256}


def test_device_wheel_record_lists_every_file_with_its_hash(contents: dict[str, bytes]) -> None:
    record = next(name for name in contents if name.endswith("/RECORD"))
    listed = [line.split(",") for line in contents[record].decode().splitlines()]
    expected = [
        [
            name,
            f"sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')}",
            str(len(content)),
        ]
        for name, content in contents.items()
        if name != record
    ]
    assert listed == [*expected, [record, "", ""]]


def test_device_wheel_requires_numpy_and_pillow_as_the_project_does(contents: dict[str, bytes]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [requirement for requirement in project["dependencies"] if not requirement.startswith("typer")]
    for backend in ("openvino", "onnxruntime"):
        for requirement in project["optional-dependencies"][backend]:
            name, _, marker = requirement.partition("; ")
            markers = " and ".join(filter(None, (marker, f"extra == '{backend}'")))
            required.append(f"{name}; {markers}")
    metadata = Parser().parsestr(contents[next(name for name in contents if name.endswith("/METADATA"))].decode())
    assert metadata.get_all("Requires-Dist") == list(REQUIRES) == required
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["Version"] == f"{project['version']}+device"
    assert project["version"] == edgebert.__version__


def test_write_device_wheel_replaces_only_with_force(tmp_path: Path, wheel: DeviceWheel) -> None:
    path = write_device_wheel(tmp_path)
    assert path.name == wheel.name
    assert path.read_bytes() == wheel.content
    with pytest.raises(CannotWriteError):
        write_device_wheel(tmp_path)
    write_device_wheel(tmp_path, force=True)


def test_device_wheel_is_one_that_pip_installs(wheel_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    ran = subprocess.run([*command, str(wheel_file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "edgebert" / "runtime" / "classifier.py").is_file()


def test_device_wheel_imports_from_the_file_without_any_package(wheel_file: Path, tmp_path: Path) -> None:
    # `-S -E -s`: no site-packages, so that this is the standard library and the wheel.
    code = (
        f"import sys; sys.path.insert(0, {str(wheel_file)!r}); import edgebert.errors; print(edgebert.errors.__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-E", "-s", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == f"{wheel_file}/edgebert/errors.py", ran.stderr


_IMPORT_ALL = """
import importlib, importlib.util, json, sys
assert importlib.util.find_spec("typer") is None
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps(failed))
"""

_CLASSIFY = """
import json, sys
import edgebert
import edgebert.export
from edgebert import Classifier
with Classifier(sys.argv[1], target=sys.argv[2]) as classifier:
    answers = classifier.predict_batch(sys.argv[3:])
print(json.dumps({"file": edgebert.__file__, "labels": [a.label for a in answers], "scores": [a.scores for a in answers]}))
"""


def test_every_module_of_the_wheel_imports_on_a_device(
    device_python: DevicePython, wheel: DeviceWheel, tmp_path: Path
) -> None:
    ran = device_python.run(tmp_path, "-c", _IMPORT_ALL, *wheel.modules)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {}


def test_classifier_answers_from_the_wheel_file_as_on_the_host(
    device_python: DevicePython, make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    target = TARGETS[device_python.backend]
    images = [str(bundle / canary.file) for canary in read_bundle(bundle).manifest.canaries]
    with Classifier(bundle, target=target) as classifier:
        expected = classifier.predict_batch(images)
    ran = device_python.run(tmp_path, "-c", _CLASSIFY, str(bundle), target, *images)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["file"] == f"{device_python.wheel}/edgebert/__init__.py"
    assert found["labels"] == [answer.label for answer in expected]
    for scores, answer in zip(found["scores"], expected, strict=True):
        assert scores == pytest.approx(answer.scores, abs=1e-4)


# Over SSH, on a device that has numpy, Pillow and a backend, and nothing else.


@pytest.fixture
def bare_device(device_python: DevicePython, start_device: Callable[..., Any], host_home: Path) -> Iterator[Transport]:
    with start_device(python=device_python.python) as server:
        server.trust(host_home / ".ssh/known_hosts")
        yield transport_of(f"pi@127.0.0.1:{server.port}")


def test_bare_device_answers_and_opens_what_compile_makes_for_it(
    bare_device: Transport, device_python: DevicePython, toy: Toy, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    from edgebert.export.compile import CompileOptions
    from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
    from edgebert.remote.compile import bundle_on

    graph = tmp_path / "toy.onnx"
    graph.write_bytes(bytes_of_model(with_metadata(parse_graph(toy.graph()), toy.card, ())))
    options = CompileOptions(targets=(TARGETS[device_python.backend],), canary="synthetic")
    assert bundle_on(bare_device, graph, tmp_path / "toy.edgebert", options).verified == options.targets


def test_bare_device_measures_what_bench_sends_it(
    bare_device: Transport,
    device_python: DevicePython,
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    generator = np.random.default_rng(0)
    for number, name in enumerate(("bolt", "gear", "nut", "washer") * 6):
        path = tmp_path / "images" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 11, 3), np.uint8)).save(path)
    options = BenchOptions(
        data=str(tmp_path / "images"),
        targets=(TARGETS[device_python.backend],),
        launches=1,
        seconds=0.2,
        queries=40,
        max_warmup_seconds=0.0,
        threads=1,
    )
    result = bench_on(bare_device, [bundle], tmp_path / "result.json", options)
    assert result.arms[0].backend == device_python.backend
    check_result(tmp_path / "result.json")


_CHECK = """
import json, sys
from pathlib import Path
from edgebert.jetson_check.ladder import check_jetson
from edgebert.jetson_check.reference import read_reference
report = check_jetson(root=Path(sys.argv[1]))
graphs = [len(engine.graph()) for engine in read_reference().engines]
print(json.dumps({"report": report.to_json(), "graphs": graphs}))
"""


def test_self_check_of_a_jetson_runs_from_the_wheel_file(device_python: DevicePython, tmp_path: Path) -> None:
    """On a board without TensorRT: what does not need it is checked, and the graphs are in the wheel."""
    trees = json.loads((ROOT / "tests/bench/jetson/jetson_trees.json").read_text(encoding="utf-8"))["trees"]
    for path, text in trees["orin-nano"].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    ran = device_python.run(tmp_path, "-c", _CHECK, str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    rungs = {rung["name"]: rung for rung in found["report"]["rungs"]}
    states = {name: rungs[name]["state"] for name in ("board", "bindings", "parse", "sensors", "cleanup")}
    assert states == {"board": "ok", "bindings": "failed", "parse": "skipped", "sensors": "ok", "cleanup": "ok"}
    assert rungs["bindings"]["exit_code"] == 69
    assert found["graphs"] == [
        (PACKAGE / "jetson_check" / name).stat().st_size for name in ("fp16.onnx", "int8.onnx", "int8-weak.onnx")
    ]
