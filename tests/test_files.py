"""Final names only ever hold complete artefacts: staging, force and marker rules, locks, death in between."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgebert import _durable, _files
from edgebert._files import (
    FolderKind,
    Output,
    check_file_is_free,
    check_folder_is_free,
    check_not_input,
    claimed,
    locked,
    read_input,
    sha256_of_file,
    sha256_of_folder,
    sha256_of_path,
    staged_file,
    staged_folder,
    staged_together,
)
from edgebert.errors import CannotWriteError, InputNotFoundError, LockedError, UsageError

MARKER = "manifest.json"
KIND = FolderKind(marker=MARKER, schema="", holds=("*",))


@pytest.fixture(autouse=True)
def own_lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def fill(folder: Path, text: str) -> None:
    (folder / MARKER).write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "weights.bin").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def take_lock(path: Path) -> None:
    with locked(path):
        pass


def written(text: str) -> dict[str, str]:
    return {MARKER: text, "inner/weights.bin": text}


@contextlib.contextmanager
def other_process(body: str) -> Iterator[subprocess.Popen[str]]:
    """Run `body` in another process, yield when it has printed `ready`, and kill it at the end if not before."""
    code = (
        "import time\nfrom pathlib import Path\nfrom edgebert._files import *\nKIND = FolderKind(marker='manifest.json', schema='', holds=('*',))\n"
        + textwrap.dedent(body)
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# One file


def test_staged_file_leaves_exactly_the_file(place: Path) -> None:
    with staged_file(place / "deep" / "a.onnx", force=False) as staging:
        assert staging.suffix == ".onnx"
        assert not (place / "deep" / "a.onnx").exists()
        staging.write_bytes(b"new")
    assert (place / "deep" / "a.onnx").read_bytes() == b"new"
    assert names(place / "deep") == ["a.onnx"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_staged_file_keeps_the_old_one_when_the_work_fails(place: Path, error: type[BaseException]) -> None:
    (place / "a").write_bytes(b"old")

    def work() -> None:
        with staged_file(place / "a", force=True) as staging:
            staging.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        work()
    assert (place / "a").read_bytes() == b"old"
    assert names(place) == ["a"]


def test_staged_file_replaces_only_with_force(place: Path) -> None:
    (place / "a").write_bytes(b"old")
    with pytest.raises(CannotWriteError, match="exists") as caught, staged_file(place / "a", force=False):
        raise AssertionError("the work was started")
    assert caught.value.hint is not None
    assert "--force" in caught.value.hint
    with staged_file(place / "a", force=True) as staging:
        staging.write_bytes(b"new")
    assert (place / "a").read_bytes() == b"new"


def test_staged_file_never_replaces_a_folder(place: Path) -> None:
    (place / "a").mkdir()
    with pytest.raises(CannotWriteError, match="is a folder"), staged_file(place / "a", force=True):
        raise AssertionError("the work was started")


def test_staged_file_fails_when_nothing_was_written(place: Path) -> None:
    with pytest.raises(CannotWriteError), staged_file(place / "a", force=False):
        pass
    assert names(place) == []


@pytest.mark.parametrize("name", ["file/inside", "/proc/edgebert/x", "x" * 300])
def test_staged_file_raises_74_where_nothing_can_be_written(place: Path, name: str) -> None:
    (place / "file").write_bytes(b"")
    with pytest.raises(CannotWriteError) as caught, staged_file(place / name, force=False) as staging:
        staging.write_bytes(b"x")
    assert caught.value.exit_code == 74


def test_staged_file_keeps_the_old_one_when_the_disk_is_full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "a").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWriteError, match="No space left"), staged_file(place / "a", force=True) as staging:
        staging.write_bytes(b"new")
    assert (place / "a").read_bytes() == b"old"
    assert names(place) == ["a"]


def test_staged_file_syncs_content_before_and_folder_after_the_rename(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = Path.rename
    for module in (_files, _durable):
        monkeypatch.setattr(module, "sync", lambda path: steps.append("folder" if path.is_dir() else "file"))

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with staged_file(place / "a", force=False) as staging:
        staging.write_bytes(b"x")
    assert steps == ["file", "rename", "folder"]


# One folder


def test_staged_folder_leaves_exactly_the_folder(place: Path) -> None:
    with staged_folder(place / "deep" / "a", force=False, kind=KIND) as staging:
        fill(staging, "new")
        assert not (place / "deep" / "a").exists()
    assert contents(place / "deep" / "a") == written("new")
    assert names(place / "deep") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_staged_folder_keeps_the_old_one_when_the_work_fails(place: Path, error: type[BaseException]) -> None:
    (place / "a").mkdir()
    fill(place / "a", "old")

    def work() -> None:
        with staged_folder(place / "a", force=True, kind=KIND) as staging:
            fill(staging, "half")
            raise error

    with pytest.raises(error):
        work()
    assert contents(place / "a") == written("old")
    assert names(place) == ["a"]


@pytest.mark.parametrize("exchange", [True, False])
def test_staged_folder_replaces_with_force_what_holds_the_marker(
    place: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("edgebert._durable.ctypes.CDLL", lambda *_, **__: object())  # a C library without renameat2
    (place / "a").mkdir()
    fill(place / "a", "old")
    (place / "a" / "more").write_text("old")
    with staged_folder(place / "a", force=True, kind=KIND) as staging:
        fill(staging, "new")
    assert contents(place / "a") == written("new")
    assert names(place) == ["a"]


def test_staged_folder_fills_an_empty_one_without_force(place: Path) -> None:
    (place / "a").mkdir()
    with staged_folder(place / "a", force=False, kind=KIND) as staging:
        fill(staging, "new")
    assert contents(place / "a") == written("new")


@pytest.mark.parametrize("force", [True, False])
def test_staged_folder_never_replaces_a_folder_of_the_users(place: Path, force: bool) -> None:
    (place / "a").mkdir()
    (place / "a" / "thesis.tex").write_text("years")
    with pytest.raises(CannotWriteError), staged_folder(place / "a", force=force, kind=KIND):
        raise AssertionError("the work was started")
    with pytest.raises(CannotWriteError):
        check_folder_is_free(place / "a", force=force, kind=KIND)
    assert contents(place / "a") == {"thesis.tex": "years"}


def test_staged_folder_refuses_a_file_and_a_link(place: Path) -> None:
    (place / "file").write_text("x")
    (place / "link").symlink_to(place)
    for name in ("file", "link"):
        with pytest.raises(CannotWriteError, match="is not a folder"):
            check_folder_is_free(place / name, force=True, kind=KIND)


def test_check_file_is_free_says_what_staged_file_would(place: Path) -> None:
    (place / "file").write_text("x")
    check_file_is_free(place / "new", force=False)
    check_file_is_free(place / "file", force=True)
    with pytest.raises(CannotWriteError, match="exists"):
        check_file_is_free(place / "file", force=False)
    with pytest.raises(CannotWriteError, match="is a folder"):
        check_file_is_free(place, force=True)


# Locks and death


def test_locked_refuses_a_second_writer_naming_the_first(place: Path) -> None:
    body = f"""
        with staged_folder(Path({str(place / "a")!r}), force=False, kind=KIND):
            print("ready", flush=True)
            time.sleep(60)
    """
    with other_process(body) as other:
        with pytest.raises(LockedError) as caught, staged_file(place / "a", force=False):
            raise AssertionError("both write")
        assert f"pid {other.pid}" in str(caught.value)
        assert caught.value.exit_code == 75
        with staged_file(place / "b", force=False) as staging:  # another name is free
            staging.write_bytes(b"x")
    with locked(place / "a"):  # it died with its process
        assert names(place)[-1] == "b"


def test_locked_is_the_same_lock_under_another_spelling(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with locked(place / "a"), ThreadPoolExecutor(1) as other:
        assert isinstance(other.submit(take_lock, Path("../place/a")).exception(), LockedError)


def test_locked_may_be_taken_again_by_whoever_holds_it(place: Path) -> None:
    with locked(place / "a"), ThreadPoolExecutor(1) as other:
        take_lock(place / "a")
        assert isinstance(other.submit(take_lock, place / "a").exception(), LockedError)  # still held
    take_lock(place / "a")


def test_locked_dies_with_its_process_although_a_forked_child_lives(place: Path) -> None:
    body = f"""
        import os
        with locked(Path({str(place / "a")!r})):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            Path({str(place / "child")!r}).write_text(str(child))
            print("ready", flush=True)
            time.sleep(60)
    """
    with other_process(body):
        pass
    child = int((place / "child").read_text())
    os.kill(child, 0)  # it lives
    try:
        take_lock(place / "a")
    finally:
        os.kill(child, signal.SIGKILL)


def test_locked_raises_74_where_another_user_made_the_lock_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(CannotWriteError, match="somebody else"):
        take_lock(place / "a")


def test_staged_file_survives_a_kill_and_the_next_run_clears_up(place: Path) -> None:
    path = place / "a.onnx"
    path.write_text("old")
    body = f"""
        with staged_file(Path({str(path)!r}), force=True) as staging:
            staging.write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    with other_process(body):
        pass
    assert path.read_text() == "old"
    assert len(names(place)) == 2  # the old one, and what was being written
    with staged_file(path, force=True) as staging:
        staging.write_text("new")
    assert path.read_text() == "new"
    assert names(place) == ["a.onnx"]


def test_staged_folder_survives_a_kill_and_the_next_run_clears_up(place: Path) -> None:
    path = place / "a"
    path.mkdir()
    fill(path, "old")
    body = f"""
        with staged_folder(Path({str(path)!r}), force=True, kind=KIND) as staging:
            (staging / {MARKER!r}).write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    with other_process(body):
        pass
    assert contents(path) == written("old")
    assert len(names(place)) == 2  # the old one, and what was being written
    with staged_folder(path, force=True, kind=KIND) as staging:
        fill(staging, "new")
    assert contents(path) == written("new")
    assert names(place) == ["a"]


def test_final_name_is_always_complete_however_often_the_writer_is_killed(place: Path) -> None:
    path = place / "a"
    for moment in range(10):
        body = f"""
            print("ready", flush=True)
            for number in range(1_000_000):
                with staged_folder(Path({str(path)!r}), force=True, kind=KIND) as staging:
                    for name in ({MARKER!r}, "weights.bin"):
                        (staging / name).write_text(f"{moment} {{number}}")
        """
        with other_process(body):
            time.sleep(0.02 + 0.013 * moment)
        found = contents(path) if path.exists() else {}
        assert found == {} or (len(found) == 2 and len(set(found.values())) == 1)
    assert path.exists()  # otherwise every kill came before the first replacement, and nothing was shown
    with staged_folder(path, force=True, kind=KIND) as staging:
        fill(staging, "last")
    assert names(place) == ["a"]


# Reading and hashing


def test_read_input_reads_regular_files_only(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    assert read_input(place / "file", what="the graph") == b"content"
    os.mkfifo(place / "fifo")
    for name in ("fifo", "missing", "."):
        with pytest.raises(InputNotFoundError, match="cannot read the graph"):
            read_input(place / name, what="the graph")


def test_sha256_goes_by_names_and_contents(place: Path) -> None:
    fill(place, "x")
    first = sha256_of_folder(place)
    assert sha256_of_file(place / MARKER) == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert sha256_of_path(place) == first
    assert sha256_of_path(place / MARKER) == sha256_of_file(place / MARKER)
    (place / MARKER).rename(place / "other.json")
    assert sha256_of_folder(place) != first
    (place / "other.json").rename(place / MARKER)
    (place / os.fsdecode(b"caf\xe9")).write_text("x")
    assert sha256_of_folder(place) != first


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"other.json": "{}"}, "holds no `manifest.json`"),
        ({MARKER: "{}"}, "of something else"),
        ({MARKER: "not json"}, "of something else"),
        ({MARKER: '{"schema": "web.app/1"}'}, "of something else"),
        ({MARKER: '{"schema": "thing/1"}', "thesis.tex": "years"}, "holds `thesis.tex`"),
    ],
)
def test_staged_folder_leaves_what_another_made(place: Path, files: dict[str, str], said: str) -> None:
    kind = FolderKind(marker=MARKER, schema="thing/", holds=(MARKER, "*.bin"))
    (place / "a").mkdir()
    for name, text in files.items():
        (place / "a" / name).write_text(text)
    with pytest.raises(CannotWriteError, match=said), staged_folder(place / "a", force=True, kind=kind):
        raise AssertionError("the work was started")
    assert contents(place / "a") == files


def test_check_folder_is_free_refuses_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    for name in (".", "..", "/"):
        with pytest.raises(CannotWriteError, match="current folder"):
            check_folder_is_free(Path(name), force=True, kind=KIND)


def test_check_not_input_refuses_to_write_over_what_is_read(place: Path) -> None:
    (place / "a").write_text("x")
    check_not_input(place / "b", place / "a")
    with pytest.raises(UsageError, match="input as well"):
        check_not_input(place / "x" / ".." / "a", place / "a")


def test_staged_folder_gives_what_the_umask_allows(place: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged_folder(place / "a", force=False, kind=KIND) as staging:
            fill(staging, "new")
            (staging / MARKER).chmod(0o600)
    finally:
        os.umask(before)
    assert (place / "a").stat().st_mode & 0o777 == 0o750
    assert (place / "a" / MARKER).stat().st_mode & 0o777 == 0o640


# Several outputs


def outputs(place: Path, *, force: bool = False) -> tuple[Output, Output]:
    return Output(path=place / "a", force=force, kind=KIND), Output(path=place / "a.html", force=force)


def test_staged_together_gives_a_folder_and_a_file_their_names(place: Path) -> None:
    with staged_together(*outputs(place)) as (folder, page):
        fill(folder, "new")
        page.write_text("new")
        assert not (place / "a").exists()
    assert contents(place) == {f"a/{name}": "new" for name in written("new")} | {"a.html": "new"}


def test_staged_together_keeps_everything_old_when_one_is_refused(place: Path) -> None:
    (place / "a.html").write_text("old")
    with pytest.raises(CannotWriteError, match="exists"), staged_together(*outputs(place)):
        raise AssertionError("the work was started")
    assert names(place) == ["a.html"]


def test_staged_together_is_finished_by_the_next_call_when_it_is_killed_between_the_names(place: Path) -> None:
    (place / "a.html").write_text("old")
    body = f"""
        import os
        from edgebert import _durable
        place = Path({str(place)!r})
        put, calls = _durable._put, []
        def second_is_never_done(move):
            calls.append(move)
            if len(calls) == 2:
                print("ready", flush=True)
                time.sleep(60)
            put(move)
        _durable._put = second_is_never_done
        outputs = Output(path=place / "a", force=True, kind=KIND), Output(path=place / "a.html", force=True)
        with claimed(place / "a", place / "a.html"), staged_together(*outputs) as (folder, page):
            (folder / "manifest.json").write_text("new")
            page.write_text("new")
    """
    with other_process(body):
        pass
    assert contents(place)["a/manifest.json"] == "new"
    assert (place / "a.html").read_text() == "old"
    with claimed(place / "a", place / "a.html"):
        assert contents(place) == {"a/manifest.json": "new", "a.html": "new"}


def test_claimed_gives_a_folder_its_name_back_that_was_between_two_renames(place: Path) -> None:
    (place / ".a.staging-0123").mkdir()
    (place / ".a.staging-0123.old").mkdir()
    fill(place / ".a.staging-0123", "new")
    fill(place / ".a.staging-0123.old", "old")
    with claimed(place / "a"):
        assert contents(place / "a") == written("old")
        assert names(place) == ["a"]


def test_claimed_removes_what_a_killed_call_left_without_writing_anything(place: Path) -> None:
    (place / ".a.staging-0123").mkdir()
    (place / ".b.staging-0123").write_text("of another output")
    with claimed(place / "a"):
        assert names(place) == [".b.staging-0123"]


def test_check_file_is_free_counts_a_link_to_nowhere(place: Path) -> None:
    (place / "a").symlink_to("nowhere")
    with pytest.raises(CannotWriteError, match="exists"):
        check_file_is_free(place / "a", force=False)


def test_check_folder_is_free_raises_74_where_a_folder_cannot_be_listed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    (place / "a").mkdir()
    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(CannotWriteError, match="Input/output"):
        check_folder_is_free(place / "a", force=True, kind=KIND)
