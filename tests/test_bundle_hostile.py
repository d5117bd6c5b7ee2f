"""Every hostile bundle of the corpus is refused with a `BundleError`, and no parser of models or images meets it."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import BundleError, EdgebertError, MemoryExhaustedError, RefusedBundleError, UnreadableBundleError

HERE = Path(__file__).parent


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


hostile = _loaded(HERE / "hostile_bundles.py")


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for: runners, devices, pictures; reading a bundle must leave it empty."""
    asked: list[str] = []
    for name in (
        "edgebert.runtime.choice.open_runner",
        "edgebert.runtime.choice.check_device",
        "edgebert.preprocess.Image.open",
    ):
        monkeypatch.setattr(name, lambda *_, name=name, **__: asked.append(name))
    return asked


def test_the_corpus_is_large_enough() -> None:
    assert len({name.partition(": ")[2] for name in hostile.CORPUS}) >= 150
    assert len(hostile.CORPUS) >= 250


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_the_corpus_is_made_from_is_accepted(form: str, tmp_path: Path) -> None:
    bundle = read_bundle(hostile.honest(tmp_path)[form])
    assert bundle.manifest.name == "single"
    assert bundle.files == read_bundle(hostile.SEED).files


@pytest.mark.parametrize("name", list(hostile.CORPUS))
def test_a_hostile_bundle_is_refused(name: str, tmp_path: Path, parsers: list[str]) -> None:
    path = hostile.CORPUS[name](tmp_path)
    with pytest.raises(BundleError) as caught:
        Classifier(path)
    said = str(caught.value)
    assert len(said) < 10_000
    assert all(char.isprintable() or char == "\n" for char in said.replace(str(path), "")), said
    assert not parsers


def test_nothing_of_a_hostile_bundle_is_written_anywhere(tmp_path: Path) -> None:
    for number, make in enumerate(hostile.CORPUS.values()):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        path = make(scratch)
        before = _names(scratch)
        with pytest.raises(BundleError):
            read_bundle(path)
        assert _names(scratch) == before


def _names(folder: Path) -> list[str]:
    """Return every name below a folder; links are not followed."""
    return sorted(f"{where}/{name}" for where, folders, files in os.walk(folder) for name in (*folders, *files))


# What is not hostile


def test_a_hard_link_with_the_right_content_is_read(tmp_path: Path) -> None:
    path = hostile.honest(tmp_path)["folder"]
    (tmp_path / "elsewhere").hardlink_to(path / "model.onnx")
    assert (path / "model.onnx").stat().st_nlink == 2
    assert read_bundle(path).files["model.onnx"] == (tmp_path / "elsewhere").read_bytes()


def test_a_signature_is_returned_as_it_is(tmp_path: Path) -> None:
    path = hostile.honest(tmp_path)["folder"]
    assert read_bundle(path).signature is None
    (path / "SHA256SUMS.sig").write_bytes(b"signed")
    bundle = read_bundle(path)
    assert bundle.signature == b"signed"
    assert bundle.sums == (path / "SHA256SUMS").read_bytes()
    assert "SHA256SUMS.sig" not in bundle.files
    assert bundle.digest == read_bundle(hostile.SEED).digest


# What the system may say


@pytest.mark.parametrize(
    ("errno_", "kind"),
    [
        ("EACCES", UnreadableBundleError),
        ("EIO", UnreadableBundleError),
        ("EMFILE", UnreadableBundleError),
        ("ENFILE", UnreadableBundleError),
        ("ESTALE", UnreadableBundleError),
        ("ENOMEM", MemoryExhaustedError),
    ],
)
def test_read_bundle_takes_what_the_system_says_for_no_fault_of_the_bundle(
    errno_: str, kind: type[EdgebertError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    paths = hostile.honest(tmp_path)
    code = getattr(errno, errno_)

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    for name in ("os.open", "os.scandir", "os.lstat", "pathlib.Path.stat"):
        for path in paths.values():
            with monkeypatch.context() as patch:
                patch.setattr(name, fail)
                if name in ("os.scandir", "os.lstat") and path.suffix == ".zip":
                    continue
                with pytest.raises(kind, match=os.strerror(code)) as caught:
                    read_bundle(path)
                assert not isinstance(caught.value, RefusedBundleError)


def test_read_bundle_refuses_a_file_that_is_gone_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = hostile.honest(tmp_path)["folder"], os.open

    def gone(name: Path, *arguments: int) -> int:
        if Path(name).name == "manifest.json":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(name, *arguments)

    monkeypatch.setattr("os.open", gone)
    with pytest.raises(RefusedBundleError, match=r"`manifest\.json` cannot be read"):
        read_bundle(path)


def test_read_bundle_says_that_memory_ran_out_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("edgebert.bundle._Folder.read", fail)
    with pytest.raises(MemoryExhaustedError, match="does not fit into this computer's memory") as caught:
        read_bundle(hostile.honest(tmp_path)["folder"])
    assert not isinstance(caught.value, BundleError)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_bundle_error(tmp_path: Path) -> None:
    path = hostile.honest(tmp_path)["folder"]
    tmp_path.chmod(0)
    try:
        with pytest.raises(UnreadableBundleError, match="cannot be read"):
            read_bundle(path)
    finally:
        tmp_path.chmod(0o700)
