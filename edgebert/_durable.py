"""Names that change hands at once and for good: synced before, synced after, put back when something fails.

A file system keeps no promise about order but that of fsync: content, then the folder that names it, then the rename, then the
folder again. Several outputs of one command get their names by a journal beside the first: it is the point from which the
next call finishes what a killed one began, instead of undoing it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebert._json import JsonValue, dump_json, parse_json_object
from edgebert.errors import BadDataError, CannotWriteError

ASIDE_SUFFIX = ".old"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_JOURNAL_SCHEMA = "edgebert.journal/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A staged file or folder and the name that it is to have, in the same folder."""

    staging: Path
    final: Path


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder; that a file cannot be synced is an error.
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until everything below a folder, and its name for each, are on the disk."""
    for entry in sorted(path.rglob("*"), reverse=True):  # what is inside before the folder that names it
        if not entry.is_symlink():
            sync(entry)
    sync(path)


def make_folders(path: Path) -> None:
    """Make a folder and its missing parents, each of them for good."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def put_in_place(moves: Sequence[Move], journal: Path) -> None:
    """Give what is staged and synced its final names; durable on return, and all as before on any exception.

    Args:
        moves: the main output first. What a final name held before lies at the staging name afterwards.
        journal: a name beside the main output, used where there are several.

    Raises:
        CannotWriteError: a name could not be given; the message says which.
    """
    begun: list[_Begun] = []
    at = moves[0]
    try:
        if len(moves) > 1:
            for parent in _parents(moves):
                sync(parent)
            _write_journal(journal, moves)
        for at in moves:
            begun.append(_Begun(at, inode=_inode(at.staging), replaces=os.path.lexists(at.final)))
            _put(at)
        for parent in _parents(moves):
            sync(parent)
    except BaseException as error:
        for each in reversed(begun):
            with contextlib.suppress(OSError):
                _put_back(each)
        if isinstance(error, OSError):
            raise CannotWriteError(f"cannot write `{at.final}`: {error.strerror or error}") from error
        raise
    finally:
        if len(moves) > 1:
            for name in (journal, _draft_of(journal)):
                with contextlib.suppress(OSError):
                    name.unlink(missing_ok=True)


def finish(journal: Path, finals: Collection[Path]) -> None:
    """Finish what a killed call had begun to put in place; nothing where it had not begun.

    Args:
        journal: where it would have said so.
        finals: the names that may be touched, whatever the journal says.
    """
    for staging, final, inode in _read_journal(journal):
        if final in finals and _inode(staging) == inode:
            _put(Move(staging=staging, final=final))
            sync(final.parent)
    journal.unlink(missing_ok=True)


def exchange(first: Path, second: Path) -> None:
    """Let two files, or two folders, swap their names, so that the second name is never missing.

    Linux does it in one step. A file system that cannot (NFS, SMB) gets a hard link and a replacement of a file, which is as
    good, but two renames of a folder: `restore` heals a death between them.
    """
    if _exchanged(first, second):
        return
    aside = aside_of(first)
    if first.is_dir() or second.is_dir():
        try:
            second.rename(aside)
            first.rename(second)
        except BaseException:
            if os.path.lexists(aside) and not os.path.lexists(second):
                aside.rename(second)
            raise
    else:
        with contextlib.suppress(OSError):  # without hard links the old file cannot be kept
            os.link(second, aside, follow_symlinks=False)
        first.replace(second)
    if os.path.lexists(aside):
        aside.rename(first)


def aside_of(staging: Path) -> Path:
    """Return where the old content lies while `exchange` works in two steps."""
    return staging.with_name(staging.name + ASIDE_SUFFIX)


def restore(aside: Path, final: Path) -> None:
    """Give a folder back its name where a call died between two renames."""
    if not os.path.lexists(final):
        aside.rename(final)
        sync(final.parent)


def _exchanged(first: Path, second: Path) -> bool:
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # some C libraries lack it
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):  # EPERM: a filter of system calls
        return False
    raise OSError(number, os.strerror(number), str(second))


def staging_prefix(final: Path) -> str:
    """Return what the name of everything that is staged for an output begins with."""
    return f".{final.name}.staging-"


def _put(move: Move) -> None:
    if os.path.lexists(move.final):
        exchange(move.staging, move.final)
    else:
        move.staging.rename(move.final)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A move that was begun: the inode of what was staged, and whether the final name held something."""

    move: Move
    inode: int | None
    replaces: bool


def _put_back(begun: _Begun) -> None:
    """Undo `_put`, however far it came; the final name is left alone where its old content cannot be found."""
    staging, final, aside = begun.move.staging, begun.move.final, aside_of(begun.move.staging)
    if begun.inode is None or _inode(final) != begun.inode:
        return
    if not begun.replaces:
        final.rename(staging)
    elif os.path.lexists(staging):
        exchange(staging, final)
    elif os.path.lexists(aside):
        if final.is_dir():
            final.rename(staging)
        aside.replace(final)


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None


def _parents(moves: Sequence[Move]) -> Iterator[Path]:
    return iter(dict.fromkeys(move.final.parent for move in moves))


def _write_journal(journal: Path, moves: Sequence[Move]) -> None:
    entries: list[JsonValue] = [
        [os.path.relpath(move.final, journal.parent), move.staging.name, _inode(move.staging)] for move in moves
    ]
    draft = _draft_of(journal)
    draft.write_text(dump_json({"schema": _JOURNAL_SCHEMA, "moves": entries}), encoding="utf-8")
    sync(draft)
    draft.replace(journal)
    sync(journal.parent)


def _draft_of(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}-draft")


def _read_journal(journal: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yield staging name, final name and inode of each move; nothing where there is no journal of ours."""
    try:
        content = parse_json_object(journal.read_bytes(), what=f"`{journal}`")
    except (FileNotFoundError, BadDataError):
        return
    moves = content.get("moves")
    for entry in moves if isinstance(moves, list) and content.get("schema") == _JOURNAL_SCHEMA else ():
        match entry:
            case [str(name), str(staging), int(inode)]:
                final = Path(os.path.normpath(journal.parent / name))
                if Path(staging).name == staging and staging.startswith(staging_prefix(final)):
                    yield final.with_name(staging), final, inode
