"""A device as it is delivered: Python 3.10 with numpy, Pillow, typer and one backend, and nothing of the workbench.

The environment is kept in pytest's cache; only edgebert's own wheel is installed anew each time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.export.compile import CompileOptions, bundle_from_graph

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[2]
WORKBENCH = ("torch", "transformers", "accelerate", "datasets", "kornia", "onnx", "onnxscript", "nncf", "sklearn")
BACKENDS = {"onnxruntime": "cpu", "openvino": "intel-cpu"}  # backend -> the target whose form it runs


@dataclass(frozen=True)
class Device:
    """An environment with edgebert and one backend."""

    python: Path
    backend: str

    def run(self, code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script in a folder without the checkout, warnings being errors but for those of other packages."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.python), "-W", "error:::edgebert", "-c", code, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=300
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edgebert's wheel, built of a copy so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("edgebert", "export", "calibration"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    output = tmp_path_factory.mktemp("wheel")
    _pip(Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output), str(source))
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module", params=["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def device(request: pytest.FixtureRequest, wheel: Path) -> Device:
    """An environment for one backend, with this checkout's wheel."""
    backend: str = request.param
    interpreter = _python_3_10()
    if interpreter is None:
        pytest.skip("no Python 3.10 on this computer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"][backend]]
    key = hashlib.sha256("\n".join([str(interpreter), *requirements]).encode()).hexdigest()[:12]
    folder = request.config.cache.mkdir(f"device-{backend}-{key}") / "venv"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True, capture_output=True)
        installed = _try_pip(python, "install", *requirements)
        if installed.returncode:
            pytest.skip(f"pip cannot install a device's packages here: {installed.stderr.strip().splitlines()[-1]}")
        complete.touch()
    _pip(python, "install", "--no-deps", "--force-reinstall", str(wheel))
    return Device(python=python, backend=backend)


def _python_3_10() -> str | None:
    """Return an interpreter of Python 3.10 that really starts, or None."""
    managed = sorted((Path.home() / ".pyenv" / "versions").glob("3.10*/bin/python"))
    for candidate in (*map(str, managed), shutil.which("python3.10")):
        if candidate is None:
            continue
        asked = subprocess.run(
            [candidate, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip() == "(3, 10)":
            return candidate
    return None


def _try_pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def _pip(python: Path, *arguments: str) -> None:
    ran = _try_pip(python, *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr


_IMPORT_ALL = f"""
import importlib, importlib.util, json, pkgutil, sys
assert not [name for name in {WORKBENCH!r} if importlib.util.find_spec(name)]
import edgebert
failed = {{}}
workbench = (
    *("edgebert.models", "edgebert.train", "edgebert.export", "edgebert.calibration", "edgebert.runtime.torch_runner"),
    *("edgebert.remote.compile", "edgebert.remote.engine", "edgebert.remote.size"),  # what a host makes for a device
)
names = [
    module.name
    for package in ("", "bench.", "recipes.", "remote.", "runtime.")
    if importlib.util.find_spec(("edgebert." + package).rstrip("."))
    for module in pkgutil.iter_modules(
        importlib.import_module(("edgebert." + package).rstrip(".")).__path__, "edgebert." + package
    )
    if module.name not in workbench and not module.name.endswith("__main__")
]
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps({{"names": names, "failed": failed}}))
"""

_CLASSIFY = """
import json, sys
from edgebert import Classifier
with Classifier(sys.argv[1]) as classifier:
    answers = classifier.predict_batch(sys.argv[2:])
    found = {"target": classifier.target, "backend": classifier.backend, "properties": dict(classifier.properties())}
print(json.dumps({**found, "labels": [a.label for a in answers], "scores": [a.scores for a in answers]}))
"""


def test_every_device_module_imports_on_the_device(device: Device, tmp_path: Path) -> None:
    ran = device.run(_IMPORT_ALL, tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["failed"] == {}
    assert {"edgebert.bundle", "edgebert.runtime.classifier", "edgebert.cli", "edgebert.testing"} <= set(found["names"])


def test_classifier_on_the_device_answers_as_on_the_host(device: Device, int8_graph: bytes, tmp_path: Path) -> None:
    graph = tmp_path / "student.onnx"
    graph.write_bytes(int8_graph)
    bundle = tmp_path / "student.edgebert"
    bundle_from_graph(graph, bundle, CompileOptions(targets=tuple(BACKENDS.values())))
    images = [str(bundle / canary.file) for canary in read_bundle(bundle).manifest.canaries]
    target = BACKENDS[device.backend]
    with Classifier(bundle, target=target) as classifier:
        expected = classifier.predict_batch(images)
    ran = device.run(_CLASSIFY, tmp_path, str(bundle), *images)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["target"], found["backend"]) == (target, device.backend)
    assert found["labels"] == [answer.label for answer in expected]
    for scores, answer in zip(found["scores"], expected, strict=True):
        assert scores == pytest.approx(answer.scores, abs=1e-4)


def test_an_onnxruntime_below_the_security_floor_is_warned_of(
    device: Device, int8_graph: bytes, tmp_path: Path
) -> None:
    if device.backend != "onnxruntime":
        pytest.skip("about ONNX Runtime")
    graph = tmp_path / "student.onnx"
    graph.write_bytes(int8_graph)
    bundle_from_graph(graph, tmp_path / "student.edgebert", CompileOptions())
    code = f"from edgebert import Classifier\nfor _ in range(2):\n    Classifier({str(tmp_path / 'student.edgebert')!r}).close()"
    ran = device.run(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("heap overflow") == 1


def test_a_missing_backend_is_named_with_the_command_that_adds_it(
    device: Device, int8_graph: bytes, tmp_path: Path
) -> None:
    other = next(backend for backend in BACKENDS if backend != device.backend)
    graph = tmp_path / "student.onnx"
    graph.write_bytes(int8_graph)
    bundle_from_graph(graph, tmp_path / "student.edgebert", CompileOptions(targets=(BACKENDS[other],)))
    code = (
        "from edgebert import Classifier, UnavailableError\n"
        f"try:\n    Classifier({str(tmp_path / 'student.edgebert')!r}, target={BACKENDS[other]!r})\n"
        "except UnavailableError as error:\n    print(error)"
    )
    ran = device.run(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert f'pip install "edgebert[{other}]"' in ran.stdout
