"""Where the wheels for a device come from on the host: a folder that the user names, the cache, or pip; each by its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgebert.errors import CannotWriteError, InputNotFoundError, RefusedError, UnavailableError
from edgebert.remote import wheel_files as module
from edgebert.remote.wheel_files import default_cache, wheel_files
from edgebert.remote.wheel_pins import PinnedWheel

CONTENT = b"a wheel"


def pinned(name: str, content: bytes = CONTENT) -> PinnedWheel:
    return PinnedWheel(
        module="numpy",
        name=name,
        version="1.26.4",
        python="3.10",
        architecture="aarch64",
        file=f"{name}-1.26.4-cp310-cp310-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


WHEEL = pinned("numpy")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What pip was asked for, in place of pip, which brings what was asked for."""
    calls = []

    def pip(wheel: PinnedWheel, staging: Path) -> str:
        calls.append((wheel.file, (staging / "wanted.txt").read_text()))
        (staging / wheel.file).write_bytes(CONTENT)
        return ""

    monkeypatch.setattr(module, "_pip", pip)
    return calls


def test_wheel_files_in_a_folder_are_taken_as_they_are(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    (tmp_path / WHEEL.file).write_bytes(CONTENT)
    assert wheel_files([WHEEL], tmp_path) == [tmp_path / WHEEL.file]
    assert asked == []


def test_wheel_files_refuse_a_folders_file_of_another_hash(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    (tmp_path / WHEEL.file).write_bytes(b"a whee1")
    with pytest.raises(RefusedError, match=hashlib.sha256(b"a whee1").hexdigest()) as caught:
        wheel_files([WHEEL], tmp_path)
    assert WHEEL.sha256 in (caught.value.expected or "")
    assert asked == []


@pytest.mark.parametrize("folder", [".", "no-such-folder"])
def test_wheel_files_name_what_a_folder_lacks_and_the_command(
    folder: str, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    other = pinned("pillow")
    with pytest.raises(InputNotFoundError, match=WHEEL.file) as caught:
        wheel_files([WHEEL, other], tmp_path / folder)
    assert WHEEL.file in (caught.value.expected or "")
    assert other.file in (caught.value.expected or "")
    assert (caught.value.hint or "").count("pip download") == 2
    assert asked == []


def test_wheel_files_are_fetched_once_by_their_hash(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    for _ in range(2):
        assert wheel_files([WHEEL], None, cache=tmp_path) == [tmp_path / WHEEL.file]
    assert asked == [(WHEEL.file, f"numpy==1.26.4 --hash=sha256:{WHEEL.sha256}\n")]
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL.file]


def test_wheel_files_fetch_again_what_was_changed_in_the_cache(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    (tmp_path / WHEEL.file).write_bytes(b"a whee1")
    (found,) = wheel_files([WHEEL], None, cache=tmp_path)
    assert found.read_bytes() == CONTENT
    assert len(asked) == 1


def test_wheel_files_keep_nothing_of_another_hash_than_the_tables(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    with pytest.raises(UnavailableError, match="cannot fetch"):
        wheel_files([pinned("numpy", b"something else")], None, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wheel_files_say_where_the_cache_cannot_be_written(asked: list[tuple[str, str]]) -> None:
    with pytest.raises(CannotWriteError, match="/proc/no"):
        wheel_files([WHEEL], None, cache=Path("/proc/no/cache"))


def test_wheel_files_without_an_index_name_the_folder_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, which is told that there is no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UnavailableError, match=r"No matching distribution found for numpy==1\.26\.4") as caught:
        wheel_files([WHEEL], None, cache=tmp_path)
    assert "--device-wheels FOLDER" in (caught.value.expected or "")
    assert f"{WHEEL.download_command('wheels')}, then add --device-wheels wheels" in (caught.value.hint or "")


@pytest.mark.parametrize(("named", "place"), [("/x", "/x"), ("relative", "/home/me/.cache"), ("", "/home/me/.cache")])
def test_default_cache_follows_the_users_variables(named: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert default_cache() == Path(place) / "edgebert" / "device-wheels"
