"""What importing costs: `import edgebert` and `edgebert --help` load nothing heavy."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import edgebert

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "transformers",
    "datasets",
    "kornia",
    "nncf",
    "matplotlib",
    "pydantic",
)


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ran.stdout.splitlines()[-1].split())


def test_import_edgebert_loads_no_third_party_package() -> None:
    assert not _modules_after("import edgebert") & {*HEAVY, "typer", "numpy", "PIL"}


def test_help_loads_typer_and_the_standard_library_only() -> None:
    # typer brings click, and its own small helpers; what counts is that nothing of the work is loaded.
    code = "from edgebert.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not _modules_after(code) & {*HEAVY, "numpy", "PIL"}


@pytest.mark.parametrize("name", edgebert.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(edgebert, name).__name__ == name


def test_all_is_sorted_and_complete() -> None:
    assert list(edgebert.__all__) == sorted(edgebert.__all__)
    assert set(edgebert.__all__) == set(edgebert._HOME)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Classifer"):
        edgebert.__getattr__("Classifer")


@pytest.mark.parametrize(
    "module",
    [
        "edgebert.bench.worker",
        "edgebert.bundle",
        "edgebert.card",
        "edgebert.confidence",
        "edgebert.data",
        "edgebert.fingerprint",
        "edgebert.preprocess",
        "edgebert.runtime.classifier",
        "edgebert.runtime.instructions",
        "edgebert.target",
        "edgebert.testing",
    ],
)
def test_device_module_imports_where_the_workbench_is_missing(module: str) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    importlib.import_module(module)  # it exists at all
    code = f"import sys\n{blocked}import {module}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
