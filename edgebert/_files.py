"""Writing so that a final name only ever holds a complete artefact.

Write beside, fsync, rename (`edgebert._durable`). A staging name is `.NAME.staging-…`; whoever writes NAME next, under its lock,
removes what an interrupted run left. Locks live in the temporary folder and die with their process, so none is ever stale; they keep
apart the processes of one user that share `TMPDIR` on one computer, and nobody else.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from edgebert._durable import (
    ASIDE_SUFFIX,
    Move,
    finish,
    make_folders,
    put_in_place,
    restore,
    staging_prefix,
    sync,
    sync_tree,
)
from edgebert._json import parse_json_object
from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, LockedError, UsageError

if sys.platform != "win32":
    import fcntl

_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())  # locks of this thread's callers
_descriptors: set[int] = set()  # of this process's locks


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_folder(path: Path) -> str:
    """Return one SHA-256 over the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{sha256_of_file(file)}  ".encode() + os.fsencode(file.relative_to(path).as_posix()) + b"\n")
    return digest.hexdigest()


def sha256_of_path(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's names and contents."""
    return sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)


def read_input(path: Path, *, what: str) -> bytes:
    """Read a file that the user named.

    Raises:
        InputNotFoundError: it is not there, is no regular file, or cannot be read.
    """
    try:
        # Without O_NONBLOCK the open of a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputNotFoundError(f"cannot read {what} `{path}`", expected="a regular file")
            return stream.read()
    except OSError as error:
        raise InputNotFoundError(f"cannot read {what} `{path}`: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """How a folder that edgebert made is told from a folder of the user's.

    Attributes:
        marker: a file that every folder of this kind holds.
        schema: what the `schema` of that file, a JSON object, begins with; empty where it has none.
        holds: patterns of all names that such a folder may hold at its top.
    """

    marker: str
    schema: str
    holds: tuple[str, ...]

    def stranger_in(self, path: Path) -> str | None:
        """Return what shows that a folder is not of this kind, or None."""
        try:
            content = (path / self.marker).read_bytes()
        except OSError:
            return f"holds no `{self.marker}`"
        if self.schema:
            try:
                schema = parse_json_object(content, what=self.marker).get("schema")
            except BadDataError:
                schema = None
            if not isinstance(schema, str) or not schema.startswith(self.schema):
                return f"holds a `{self.marker}` of something else"
        for name in names_in(path):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.holds):
                return f"holds `{name}`"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One of several outputs that get their names together.

    Attributes:
        path: the final name.
        force: replace what is there: a file, or a folder of this kind.
        kind: of a folder; None of a file.
    """

    path: Path
    force: bool
    kind: FolderKind | None = None


@contextlib.contextmanager
def staged_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`, on any exception it is removed.

    Args:
        path: the final name; missing parent folders are made.
        force: replace an existing file. A folder is never replaced.

    Raises:
        CannotWriteError: `path` exists without `force`, is a folder, or cannot be written; what was there is there.
        LockedError: another process is writing the same output.
    """
    with staged_together(Output(path=path, force=force)) as (staging,):
        yield staging


@contextlib.contextmanager
def staged_folder(path: Path, *, force: bool, kind: FolderKind) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; on success it becomes `path`, on any exception it is removed.

    Args:
        path: the final name; missing parent folders are made.
        force: replace an existing folder, but only an empty one or one of this kind that holds nothing else, so that a
            slip of the keyboard never replaces a folder of the user's.
        kind: how a folder that this command made is known.

    Raises:
        CannotWriteError: `path` exists without `force`, is something else, or cannot be written; what was there is there.
        LockedError: another process is writing the same output.
    """
    with staged_together(Output(path=path, force=force, kind=kind)) as (staging,):
        yield staging


@contextlib.contextmanager
def staged_together(*outputs: Output) -> Iterator[tuple[Path, ...]]:
    """Yield a path for each of several outputs, the main one first; on success all get their names, on any exception none.

    A call that is killed before they have is undone by the next one of the same main output, or finished where everything
    was written already: call `claimed` with all of them before looking what is there.

    Raises:
        CannotWriteError: as `staged_file` and `staged_folder` do.
        LockedError: another process is writing one of them.
    """
    with contextlib.ExitStack() as stack:
        stagings = tuple(stack.enter_context(_staged(output)) for output in outputs)
        yield stagings
        for output, staging in zip(outputs, stagings, strict=True):
            _sync_staged(output, staging)
        moves = [
            Move(staging=staging, final=staging.with_name(output.path.name))
            for output, staging in zip(outputs, stagings, strict=True)
        ]
        put_in_place(moves, _journal_of(moves[0].final))


@contextlib.contextmanager
def claimed(path: Path, *together: Path) -> Iterator[None]:
    """Hold the locks of a command's outputs for its whole run, and settle what a killed call of it left.

    Args:
        path: the main output, a file or a folder.
        together: what `staged_together` writes with it.

    Raises:
        LockedError: another process is writing one of them.
        CannotWriteError: what was left cannot be cleared away.
    """
    outputs = [_place(each) for each in (path, *together)]
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(locked(output))
        try:
            if any(_left_beside(output) for output in outputs):
                finish(_journal_of(outputs[0]), outputs)
                for output in outputs:
                    _clear(output)
        except OSError as error:
            raise _cannot_write(path, error) from error
        yield


def check_file_is_free(path: Path, *, force: bool) -> None:
    """Raise `CannotWriteError` where `staged_file` would, before any long work is done."""
    if path.is_dir():
        raise CannotWriteError(f"`{path}` is a folder", expected="the name of a file to write")
    if os.path.lexists(path) and not force:  # a link to nowhere is somebody's as well
        raise _exists(path)


def check_can_be_written(path: Path) -> None:
    """Raise `CannotWriteError` where no file or folder of this name can be made, before any long work is done; nothing is left there.

    A folder that is not there yet is not made: its nearest parent is asked.
    """
    folder = path.absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CannotWriteError(f"cannot write `{path}`: {error.strerror or error}") from error


def check_folder_is_free(path: Path, *, force: bool, kind: FolderKind) -> None:
    """Raise `CannotWriteError` where `staged_folder` would, before any long work is done."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise CannotWriteError(f"`{path}` is not a folder", expected="the name of a folder to write")
    if path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise CannotWriteError(
            f"`{path}` is the current folder, or holds it", expected="the name of a folder to write", hint="-o NAME"
        )
    if not path.exists() or not names_in(path):
        return
    if not force:
        raise _exists(path)
    stranger = kind.stranger_in(path)
    if stranger is not None:
        raise CannotWriteError(
            f"`{path}` {stranger}, so it was not made by this command and is not replaced, `--force` or not",
            hint="choose another name with `-o`",
        )


def names_in(path: Path) -> list[str]:
    """Return the names in an output folder, sorted.

    Raises:
        CannotWriteError: it cannot be listed.
    """
    try:
        return sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise _cannot_write(path, error) from error


def check_not_input(output: Path, *inputs: Path | str) -> None:
    """Refuse to write over what is read.

    Raises:
        UsageError: `output` is one of `inputs`.
    """
    for entry in inputs:
        if Path(entry).exists() and Path(entry).resolve() == output.resolve():
            raise UsageError(f"the output `{output}` is an input as well", hint="choose another name with `-o`")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on output `path`; it dies with the process. Whoever holds it may take it again.

    Raises:
        LockedError: another process, or another thread, holds it.
        CannotWriteError: there can be no lock.
    """
    if sys.platform == "win32":  # the workbench is Linux; a device only reads
        yield
        return
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    if name in _held.get():
        yield
        return
    try:
        descriptor = os.open(_lock_folder() / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotWriteError(f"cannot lock `{path}`: {error.strerror or error}", hint="set TMPDIR") from error
    _descriptors.add(descriptor)
    token = _held.set(_held.get() | {name})
    taken = False
    try:
        _lock(descriptor, path)
        taken = True
        yield
    finally:
        _held.reset(token)
        if descriptor in _descriptors:  # else this is a forked child, which never had the lock
            _descriptors.remove(descriptor)
            if taken:
                with contextlib.suppress(OSError):  # only what the next loser is told
                    os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):  # it is closed, whatever it says
                os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(
            f"`{path}` is being written by another process ({lock_holder(descriptor)})",
            hint="wait for it, or write to another name",
        ) from error
    except OSError as error:
        raise CannotWriteError(f"cannot lock `{path}`: {error.strerror or error}", hint="set TMPDIR") from error
    with contextlib.suppress(OSError):  # only what the loser is told
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}".encode(), 0)


def lock_holder(descriptor: int) -> str:
    """Return what the holder of a lock wrote into its file.

    Who took it this moment is about to write that down, over nothing, or over what a killed holder left.
    """
    for _ in range(20):
        time.sleep(0.02)
        holder = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip()
        if holder:
            return holder
    return "an unknown process"


def _lock_folder() -> Path:
    """Return the folder of this user's locks, which nobody else can have made."""
    folder = Path(tempfile.gettempdir()) / f"edgebert-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError(f"`{folder}` belongs to somebody else")
    return folder


def _release_in_child() -> None:
    """Close the locks in a forked child: a worker that outlives its killed parent must not hold them."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.set(frozenset())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def _staged(output: Output) -> Iterator[Path]:
    """Yield where one output is written to; nothing is left of it but what got its name."""
    path = output.path
    with _writing(path) as place:
        if output.kind is None:
            check_file_is_free(path, force=output.force)
            staging = place.with_name(f"{staging_prefix(place)}{os.getpid()}{path.suffix}")
        else:
            check_folder_is_free(path, force=output.force, kind=output.kind)
            staging = place.with_name(f"{staging_prefix(place)}{secrets.token_hex(4)}")
        try:
            if output.kind is not None:
                staging.mkdir()
            yield staging
        finally:
            _remove(staging)


def _sync_staged(output: Output, staging: Path) -> None:
    """Wait until what was staged is on the disk, with the modes that the umask gives."""
    try:
        if output.kind is None:
            sync(staging)
            return
        mode = staging.stat().st_mode & 0o666
        for entry in staging.rglob("*"):
            # Some libraries write files that only their owner can read.
            if entry.is_file() and not entry.is_symlink() and stat.S_IMODE(entry.stat().st_mode) != mode:
                entry.chmod(mode)
        sync_tree(staging)
    except OSError as error:
        raise _cannot_write(output.path, error) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a name's place; make its folder, lock it, remove what a killed call left, turn OSError into CannotWriteError."""
    try:
        place = _place(path)
        make_folders(place.parent)
        with locked(path):
            _clear(place)
            yield place
    except OSError as error:
        raise _cannot_write(path, error) from error


def _place(path: Path) -> Path:
    """Return a name in its real folder; a link at the name itself is the name."""
    return path.parent.resolve() / path.name


def _left_beside(final: Path) -> list[Path]:
    """Return what earlier calls left beside an output."""
    try:
        return [entry for entry in final.parent.iterdir() if entry.name.startswith(staging_prefix(final))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _clear(final: Path) -> None:
    """Remove what an interrupted run left beside an output, or give the old folder its name back."""
    left = _left_beside(final)
    for entry in left:
        if entry.is_dir() and entry.name.endswith(ASIDE_SUFFIX):
            restore(entry, final)
    for entry in left:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _remove(staging: Path) -> None:
    """Remove what is left of a staging name; what cannot be removed is left to the next call."""
    with contextlib.suppress(OSError):
        if staging.is_dir() and not staging.is_symlink():
            shutil.rmtree(staging, ignore_errors=True)
        else:
            staging.unlink(missing_ok=True)


def _journal_of(final: Path) -> Path:
    return final.with_name(f"{staging_prefix(final)}journal")


def _cannot_write(path: Path, error: OSError) -> CannotWriteError:
    return CannotWriteError(f"cannot write `{path}`: {error.strerror or error}")


def _exists(path: Path) -> CannotWriteError:
    return CannotWriteError(f"`{path}` exists", hint="add `--force` to replace it, or choose another name with `-o`")
