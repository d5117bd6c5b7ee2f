"""The folder of timing caches: whose it is, who may write there, and that a name holds a whole file or the old one."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.errors import CannotWriteError, RefusedError
from edgebert.export import engine_cache
from edgebert.export.engine_cache import TimingCache, cache_name, check_private, default_folder
from edgebert.fingerprint import GpuFacts

ORIN = GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, module="p3767-0003", l4t="36.4.3")


@pytest.fixture
def cache(tmp_path: Path) -> TimingCache:
    return TimingCache.of(tmp_path / "cache", ORIN, "10.3.0")


def test_write_then_read_gives_the_same(cache: TimingCache) -> None:
    assert cache.read() == b""
    cache.write(b"first")
    cache.write(b"second")
    assert cache.read() == b"second"
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


def test_folder_and_file_are_the_users_alone(cache: TimingCache) -> None:
    cache.write(b"times")
    assert stat.S_IMODE(cache.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("change", "tensorrt"),
    [
        ({"multiprocessors": 16}, "10.3.0"),
        ({"module": "p3767-0000"}, "10.3.0"),  # an Orin NX, else alike
        ({"l4t": "36.5.0"}, "10.3.0"),
        ({"name": "Thor"}, "10.3.0"),
        ({}, "10.7.0"),
    ],
)
def test_every_device_and_version_has_a_file_of_its_own(change: dict[str, object], tensorrt: str) -> None:
    assert cache_name(replace(ORIN, **change), tensorrt) != cache_name(ORIN, "10.3.0")  # type: ignore[arg-type]


def test_a_name_of_a_gpu_cannot_leave_the_folder() -> None:
    assert "/" not in cache_name(replace(ORIN, name="../../etc/x y"), "10.3.0")


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(RefusedError, match="can be written by others") as caught:
        TimingCache.of(tmp_path / "cache", ORIN, "10.3.0")
    assert str(caught.value.hint).startswith("chmod go-w")


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_that_others_may_write_to_is_refused(cache: TimingCache, mode: int) -> None:
    cache.write(b"times")
    cache.path.chmod(mode)
    with pytest.raises(RefusedError, match="can be written by others"):
        cache.read()


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    with pytest.raises(RefusedError, match="is a link or a device"):
        TimingCache.of(tmp_path / "cache", ORIN, "10.3.0")


def test_a_link_in_place_of_the_file_is_refused(cache: TimingCache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"times")
    cache.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="cannot be read"):
        cache.read()


def test_a_fifo_in_place_of_the_file_is_refused_and_not_waited_for(cache: TimingCache) -> None:
    os.mkfifo(cache.path, 0o600)
    with pytest.raises(RefusedError):
        cache.read()


def test_somebody_elses_file_is_refused(cache: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(b"times")
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    with pytest.raises(RefusedError, match="belongs to user"):
        cache.read()
    with pytest.raises(RefusedError, match="belongs to user"):
        check_private(cache.path.parent)


def test_a_file_too_large_to_be_one_is_refused(cache: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(b"times")
    monkeypatch.setattr(engine_cache, "MAX_CACHE_BYTES", 4)
    with pytest.raises(RefusedError, match="at most 4 bytes"):
        cache.read()


def test_a_write_that_fails_leaves_what_was_there(cache: TimingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        cache.write(b"new")
    assert cache.read() == b"old"
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


def test_a_folder_that_cannot_be_made_is_an_error_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotWriteError, match="cannot keep a timing cache"):
        TimingCache.of(tmp_path / "file" / "cache", ORIN, "10.3.0")


def test_default_folder_follows_the_users_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "edgebert" / "tensorrt"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "edgebert" / "tensorrt"
