"""Names that change hands: put back when something fails, finished by the next call when it was killed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgebert import _durable
from edgebert._durable import Move, exchange, finish, make_folders, put_in_place, sync
from edgebert.errors import CannotWriteError


@pytest.fixture(params=[True, False], ids=["exchange", "no exchange"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with and without the exchange of names."""
    if not request.param:
        monkeypatch.setattr(_durable, "_exchanged", lambda first, second: False)


def move(folder: Path, name: str, *, old: str | None = "old") -> Move:
    """Return a staged file beside the old one."""
    staging = folder / f".{name}.staging-1"
    staging.write_text("new")
    if old is not None:
        (folder / name).write_text(old)
    return Move(staging=staging, final=folder / name)


def texts(folder: Path) -> dict[str, str]:
    return {entry.name: entry.read_text() for entry in sorted(folder.iterdir()) if entry.is_file()}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, count: int, error: BaseException) -> None:
    """Let the count-th call of a function of `_durable` raise; the others do what they do."""
    calls, function = 0, getattr(_durable, name)

    def counted(*arguments: Path) -> object:
        nonlocal calls
        calls += 1
        if calls == count:
            raise error
        return function(*arguments)

    monkeypatch.setattr(_durable, name, counted)


@pytest.mark.usefixtures("file_system")
def test_exchange_swaps_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    exchange(tmp_path / "a", tmp_path / "b")
    assert texts(tmp_path) == {"a": "b", "b": "a"}
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    exchange(tmp_path / "c", tmp_path / "d")
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == ["c"]
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["d"]


def test_exchange_without_hard_links_still_replaces_a_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(_durable, "_exchanged", lambda first, second: False)
    monkeypatch.setattr(os, "link", refused)
    one = move(tmp_path, "a")
    exchange(one.staging, one.final)
    assert texts(tmp_path) == {"a": "new"}


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize(
    ("function", "count"), [("_put", 1), ("_put", 2), ("_put", 3), ("sync", 1), ("sync", 2), ("sync", 3), ("sync", 4)]
)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_put_in_place_leaves_all_as_it_was_when_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None, function: str, count: int, error: BaseException
) -> None:
    moves = [move(tmp_path, name, old=old) for name in ("a", "b", "c")]
    before = texts(tmp_path)
    fail_at(monkeypatch, function, count, error)
    with pytest.raises(CannotWriteError if isinstance(error, OSError) else KeyboardInterrupt):
        put_in_place(moves, tmp_path / ".a.staging-journal")
    assert texts(tmp_path) == before


@pytest.mark.usefixtures("file_system")
def test_put_in_place_gives_all_their_names_and_keeps_the_old_ones_aside(tmp_path: Path) -> None:
    moves = [move(tmp_path, "a"), move(tmp_path, "b", old=None)]
    put_in_place(moves, tmp_path / ".a.staging-journal")
    assert texts(tmp_path) == {"a": "new", "b": "new", ".a.staging-1": "old"}


class Died(BaseException):
    """Stands for the death of the process: nothing after it is done."""


def die_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    fail_at(monkeypatch, "_put", count, Died())
    monkeypatch.setattr(_durable, "_put_back", lambda begun: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_finish_completes_what_a_killed_call_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    moves, journal = [move(tmp_path, name) for name in ("a", "b", "c")], tmp_path / ".a.staging-journal"
    with monkeypatch.context() as patch:
        die_at(patch, count)
        with pytest.raises(Died):
            put_in_place(moves, journal)
    finish(journal, [each.final for each in moves])
    assert {name: texts(tmp_path)[name] for name in ("a", "b", "c")} == dict.fromkeys("abc", "new")
    assert not journal.exists()


def test_finish_touches_only_the_names_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves, journal = [move(tmp_path, name) for name in ("a", "b")], tmp_path / ".a.staging-journal"
    with monkeypatch.context() as patch:
        die_at(patch, 1)
        with pytest.raises(Died):
            put_in_place(moves, journal)
    finish(journal, [moves[0].final])
    assert texts(tmp_path) == {".a.staging-1": "old", ".b.staging-1": "new", "a": "new", "b": "old"}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "{}",
        '{"schema": "edgebert.journal/1", "moves": 3}',
        '{"schema": "edgebert.journal/1", "moves": [["a"], "a", 3, ["a", "victim", 1]]}',
        '{"schema": "edgebert.journal/1", "moves": [["a", "../.a.staging-1", 1]]}',
    ],
)
def test_finish_believes_no_journal_that_it_did_not_write(tmp_path: Path, content: str) -> None:
    journal = tmp_path / ".a.staging-journal"
    (tmp_path / "a").write_text("old")
    journal.write_text(content)
    finish(journal, [tmp_path / "a"])
    assert texts(tmp_path) == {"a": "old"}


def test_finish_leaves_a_staged_file_that_is_not_the_one_in_the_journal(tmp_path: Path) -> None:
    one, journal = move(tmp_path, "a"), tmp_path / ".a.staging-journal"
    entries = [["a", one.staging.name, one.staging.stat().st_ino + 1]]
    journal.write_text(json.dumps({"schema": "edgebert.journal/1", "moves": entries}))
    finish(journal, [one.final])
    assert one.final.read_text() == "old"


def test_make_folders_syncs_the_parent_of_each_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(_durable, "sync", synced.append)
    make_folders(tmp_path / "a" / "b")
    make_folders(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]


def test_sync_minds_a_file_that_cannot_be_synced_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", refused)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
