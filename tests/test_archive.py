"""The transport form: every byte follows from the bundle, and no other byte is accepted."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgebert import Classifier
from edgebert.archive import Archive, archive_pieces, open_archive, write_archive
from edgebert.artefact import describe, verify
from edgebert.bundle import read_bundle
from edgebert.cli import app
from edgebert.errors import BundleError, CannotWriteError, MalformedBundleError, UsageError

SEED = Path(__file__).parent / "bundles" / "0.1.0" / "single.edgebert"
FILES = {"SHA256SUMS": b"sums", "canary/0.png": b"", "model.onnx": b"model" * 100}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SEED, tmp_path / "single.edgebert"))


@pytest.fixture
def packed(bundle: Path, tmp_path: Path) -> Path:
    write_archive(read_bundle(bundle), tmp_path / "single.zip")
    return tmp_path / "single.zip"


def _open(content: bytes) -> Archive:
    return Archive(io.BytesIO(content), len(content), "`x.zip`")


# What is written


def test_an_archive_reads_as_its_folder(bundle: Path, packed: Path) -> None:
    folder, archive = read_bundle(bundle), read_bundle(packed)
    assert archive.path == packed
    assert archive.manifest == folder.manifest
    assert (archive.files, archive.sums, archive.digest) == (folder.files, folder.sums, folder.digest)


def test_an_archive_carries_the_signature(bundle: Path, tmp_path: Path) -> None:
    (bundle / "SHA256SUMS.sig").write_bytes(b"signed")
    write_archive(read_bundle(bundle), tmp_path / "signed.zip")
    assert read_bundle(tmp_path / "signed.zip").signature == b"signed"


def test_equal_bundles_give_equal_archives(bundle: Path, packed: Path, tmp_path: Path) -> None:
    size = write_archive(read_bundle(packed), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert size == packed.stat().st_size


def test_other_programs_read_an_archive(bundle: Path, packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked.edgebert")
    assert read_bundle(tmp_path / "unpacked.edgebert").digest == read_bundle(bundle).digest


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_an_archive_is_served(packed: Path, target: str) -> None:
    with Classifier(packed, target=target) as classifier:
        assert classifier.predict(SEED / "canary" / "0.png").label


def test_describe_and_verify_take_an_archive(packed: Path) -> None:
    description = describe(packed)
    assert (description.kind, description.size_bytes) == ("bundle", packed.stat().st_size)
    assert any("canaries" in line for line in verify(packed))


def test_write_archive_keeps_what_is_there(bundle: Path, packed: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(CannotWriteError, match="--force"):
        write_archive(read_bundle(bundle), packed)
    assert packed.read_bytes() == before
    write_archive(read_bundle(bundle), packed, force=True)


@pytest.mark.parametrize("name", ["single.tar", "single", "single.edgebert/x.zip"])
def test_write_archive_refuses_a_name_that_is_none(bundle: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=name):
        write_archive(read_bundle(bundle), tmp_path / name)


def test_write_archive_refuses_four_gibibytes(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.archive.MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(CannotWriteError, match="at most 1,000"):
        write_archive(read_bundle(bundle), tmp_path / "single.zip")


def test_pack_says_what_it_wrote(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "single.zip"
    ran = CliRunner().invoke(app, ["pack", str(bundle), "-o", str(output), "--json"])
    assert ran.exit_code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["digest"] == read_bundle(output).digest
    assert (said["signed"], said["size_bytes"]) == (False, output.stat().st_size)


def test_pack_refuses_a_changed_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"x")
    ran = CliRunner().invoke(app, ["pack", str(bundle), "-o", str(tmp_path / "x.zip")])
    assert ran.exit_code == 77
    assert not (tmp_path / "x.zip").exists()


# What is read


def test_archive_reads_what_was_written() -> None:
    with _open(b"".join(archive_pieces(FILES))) as archive:
        assert archive.sizes == {name: len(content) for name, content in FILES.items()}
        assert {name: archive.read(name, 1000) for name in FILES} == FILES


def test_archive_refuses_an_entry_above_the_limit_unread() -> None:
    with _open(b"".join(archive_pieces(FILES))) as archive, pytest.raises(MalformedBundleError, match="at most 499"):
        archive.read("model.onnx", 499)


def test_archive_refuses_every_flipped_bit() -> None:
    """All bits of a small archive: headers, names, contents, directory and end record."""
    whole = b"".join(archive_pieces({"a": b"one", "b": b"", "c.txt": b"three"}))
    accepted = []
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        try:
            with _open(bytes(damaged)) as archive:
                contents = [archive.read(name, 100) for name in archive.sizes]
        except MalformedBundleError:
            continue
        accepted.append((place, contents))
    assert not accepted


@pytest.mark.parametrize("seed", range(3))
def test_archive_refuses_every_cut_and_every_byte_more(seed: int) -> None:
    whole = b"".join(archive_pieces(FILES))
    rng = np.random.default_rng(seed)
    for place in range(len(whole)):
        with pytest.raises(MalformedBundleError), _open(whole[:place]) as archive:
            archive.read("model.onnx", 1000)
        more = whole[:place] + bytes([int(rng.integers(256))]) + whole[place:]
        with pytest.raises(MalformedBundleError), _open(more) as archive:
            [archive.read(name, 1000) for name in FILES]


def test_archive_is_what_zipfile_would_not_write_otherwise(tmp_path: Path) -> None:
    """A zip of the same files by another program is refused, and the message names the command that writes one."""
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    with pytest.raises(MalformedBundleError, match="edgebert pack"):
        open_archive(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(packed: Path) -> None:
    with open_archive(packed) as archive:
        with packed.open("r+b") as stream:
            stream.truncate(100)
        with pytest.raises(BundleError):
            archive.read("model.onnx", 1 << 20)
