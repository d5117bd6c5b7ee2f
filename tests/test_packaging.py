"""The wheel holds only `edgebert/`, and the layout with two linked folders loses no file."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).parents[1]


def _configuration() -> dict[str, dict[str, dict[str, list[str]]]]:
    loaded: dict[str, dict[str, dict[str, list[str]]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def _build(*arguments: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr


def _contents(wheel: Path) -> dict[str, str]:
    """File name -> SHA-256 of everything in a wheel but its RECORD, which lists the same."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith("/RECORD")
        }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked tree, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "edgebert"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-P", str(ROOT / name), str(copy / name)], check=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("wheel")
    _build("--wheel", "--outdir", str(output), str(source))
    return next(output.glob("*.whl"))


def test_packages_equal_the_folders_on_disk() -> None:
    on_disk = {
        ".".join(folder.parent.relative_to(ROOT).parts)
        for folder in (ROOT / "edgebert").rglob("__init__.py")
        if not any(part.is_symlink() for part in folder.parents)
    }
    on_disk |= {f"edgebert.{name}" for name in ("export", "calibration")}
    assert set(_configuration()["tool"]["setuptools"]["packages"]) == on_disk


@pytest.mark.parametrize("name", ["export", "calibration"])
def test_links_are_relative_and_resolve(name: str) -> None:
    link = ROOT / "edgebert" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert (link / "__init__.py").is_file()


def test_wheel_holds_only_edgebert(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in _contents(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgebert"}


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    expected = {
        f"edgebert/{path.relative_to(ROOT / base).as_posix()}"
        for base, folder in ((".", "export"), (".", "calibration"), ("edgebert", "edgebert"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and (
            path.suffix in (".py", ".toml", ".j2", ".onnx")
            or path.name in ("py.typed", "bench.schema.json", "reference.json", "wheel_pins.json")
        )
        and "__pycache__" not in path.parts
        and not any(parent.is_symlink() for parent in path.parents)
    }
    assert expected <= set(_contents(wheel))
    assert not [name for name in _contents(wheel) if name.endswith(".pyc")]


def test_wheel_from_the_sdist_is_identical(source: Path, wheel: Path, tmp_path: Path) -> None:
    _build("--sdist", "--outdir", str(tmp_path), str(source))
    unpacked = tmp_path / "unpacked"
    subprocess.run(
        ["tar", "-xzf", str(next(tmp_path.glob("*.tar.gz"))), "--one-top-level=" + str(unpacked)], check=True
    )
    _build("--wheel", "--outdir", str(tmp_path), str(next(unpacked.iterdir())))
    assert _contents(next(tmp_path.glob("*.whl"))) == _contents(wheel)


@pytest.mark.parametrize("name", ["export", "calibration"])
def test_workbench_folders_are_no_top_level_modules(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    imported = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in imported.stderr


def test_all_extra_composes_the_others() -> None:
    extras = _configuration()["project"]["optional-dependencies"]
    assert set(extras["all"][0].removeprefix("edgebert[").rstrip("]").split(",")) == set(extras) - {
        "all",
        "dev",
        "tensorrt",
        "loadgen",
        "peers",  # what the benchmarks compare with
    }
