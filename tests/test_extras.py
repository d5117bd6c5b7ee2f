"""The table of optional packages agrees with pyproject.toml, and `require` says what to install."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert import extras
from edgebert.errors import UnavailableError
from edgebert.extras import (
    DISTRIBUTIONS,
    EXTRAS,
    FLOORS,
    below_floor,
    found_version,
    install_command,
    installed_version,
    is_importable,
    require,
)

Requirements = dict[str, str]


def declared() -> dict[str, Requirements]:
    """Return extra -> distribution -> floor, as pyproject.toml has them for this Python; "" are the required ones."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    found: dict[str, Requirements] = {}
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        parsed = [requirements.Requirement(line) for line in lines]
        found[extra] = {
            each.name: next(iter(each.specifier)).version
            for each in parsed
            if each.name != "edgebert" and (each.marker is None or each.marker.evaluate())
        }
    return found


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module).replace("_", "-")


def test_floors_are_those_of_pyproject() -> None:
    everything = {name: floor for extra in declared().values() for name, floor in extra.items()}
    for module, floor in FLOORS.items():
        # tensorrt is installed by the system, so pyproject.toml cannot say its floor; tomli is asked for on 3.10 only.
        if module != "tensorrt" and (module != "tomli" or sys.version_info < (3, 11)):
            assert everything[distribution(module)] == floor, module


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_bring_what_pyproject_says(extra: str) -> None:
    wanted = set(declared()[extra])
    modules = {distribution(module) for module in EXTRAS[extra]}
    assert modules == (wanted or {"tensorrt"})


def test_every_optional_module_has_a_floor() -> None:
    assert {module for modules in EXTRAS.values() for module in modules} <= set(FLOORS)


@pytest.mark.parametrize(
    ("version", "below"),
    [("2.12.9", True), ("2.13.0", False), ("2.13", False), ("2.13.0+cpu", False), ("3.0", False), ("1.99", True)],
)
def test_below_floor_compares_numbers(version: str, below: bool) -> None:
    assert FLOORS["torch"] == "2.13"
    assert below_floor("torch", version) is below


def test_installed_version_knows_modules_named_unlike_their_distribution() -> None:
    assert installed_version("PIL")
    assert installed_version("no_such_module") is None


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a module's distributions unknown, as where an archive or a package of the system brought it."""
    version = importlib.metadata.version

    def hide(hidden: str) -> None:
        def told(name: str) -> str:
            if name.startswith(hidden):
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", told)

    return hide


def test_installed_version_knows_the_other_distributions_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(importlib.metadata, "version", told)
    assert installed_version("onnxruntime") == "1.31.1"


def test_found_version_asks_a_module_that_no_distribution_brought(hide: Callable[[str], None]) -> None:
    pytest.importorskip("openvino")
    expected = installed_version("openvino")
    hide("openvino")
    assert str(found_version("openvino")).partition("-")[0] == expected
    assert found_version("no_such_module") is None


def test_require_refuses_what_no_distribution_brought_below_the_floor(
    hide: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("openvino")
    hide("openvino")
    monkeypatch.setattr(module, "__version__", "2024.1.0-1-abc")
    with pytest.raises(UnavailableError, match=r"`openvino` 2024\.1\.0-1-abc is installed"):
        require("openvino")


def test_is_importable_does_not_take_a_folder_for_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_empty_folder").mkdir()
    (tmp_path / "a_module_of_its_own.py").write_text("raise SystemExit")  # it is not imported
    monkeypatch.syspath_prepend(tmp_path)
    assert is_importable("a_module_of_its_own")
    assert not is_importable("an_empty_folder")
    assert not is_importable("no_such_module")


def test_require_imports_what_is_there() -> None:
    pytest.importorskip("safetensors")
    assert require("safetensors").__name__ == "safetensors"


def test_require_says_what_to_install_when_a_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(UnavailableError) as caught:
        require("kornia")
    assert 'hint: pip install "edgebert[train]"' in str(caught.value)


def test_require_refuses_a_version_below_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_version", lambda module: "0.9")
    with pytest.raises(UnavailableError) as caught:
        require("onnx")
    assert "`onnx` 0.9 is installed\nexpected: 1.23 or newer" in str(caught.value)


def test_install_command_of_tensorrt_is_the_systems() -> None:
    assert "apt-get" in install_command("tensorrt")


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ('from .tensorrt import *\n\n__version__ = "10.13.3.9"\n', "10.13.3.9"),
        ("x = 1\n", None),
        ('__version__ = "\x1b[2J"\n', None),
    ],
)
def test_installed_version_reads_what_a_system_package_says_of_itself(
    source: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_version("tensorrt") == version
    assert "tensorrt" not in sys.modules


def test_installed_version_of_a_blocked_module_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert installed_version("tensorrt") is None
