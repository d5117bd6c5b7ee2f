"""Writing so that a final name only ever holds a complete artefact.

Write beside, fsync, rename. A staging name is `.NAME.staging-…`; whoever writes NAME next, under its lock, removes what
an interrupted run left. Locks live in the temporary folder and die with their process, so none is ever stale.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgebert._json import parse_json_object
from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, LockedError, UsageError

if sys.platform != "win32":
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


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
        for entry in sorted(path.iterdir()):
            if not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in self.holds):
                return f"holds `{entry.name}`"
        return None


@contextlib.contextmanager
def staged_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`, on any exception it is removed.

    Args:
        path: the final name; missing parent folders are made.
        force: replace an existing file. A folder is never replaced.

    Raises:
        CannotWriteError: `path` exists without `force`, is a folder, or cannot be written.
        LockedError: another process is writing the same output.
    """
    with _writing(path) as parent:
        if path.is_dir():
            raise CannotWriteError(f"`{path}` is a folder", expected="the name of a file to write")
        if path.exists() and not force:
            raise _exists(path)
        staging = parent / f"{_staging_prefix(path)}{os.getpid()}{path.suffix}"
        try:
            yield staging
            _fsync(staging)
            staging.replace(path)
            _fsync(parent)
        finally:
            staging.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: Path, *, force: bool, kind: FolderKind) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; on success it becomes `path`, on any exception it is removed.

    Args:
        path: the final name; missing parent folders are made.
        force: replace an existing folder, but only an empty one or one of this kind that holds nothing else, so that a
            slip of the keyboard never replaces a folder of the user's.
        kind: how a folder that this command made is known.

    Raises:
        CannotWriteError: `path` exists without `force`, is something else, or cannot be written.
        LockedError: another process is writing the same output.
    """
    with _writing(path) as parent:
        check_folder_is_free(path, force=force, kind=kind)
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(path), dir=parent))
        staging.chmod(0o777 & ~_umask())
        try:
            yield staging
            for entry in sorted(staging.rglob("*"), reverse=True):
                if entry.is_file():  # some libraries write files that only their owner can read
                    entry.chmod(0o666 & ~_umask())
                _fsync(entry)
            _fsync(staging)
            if path.exists():
                _exchange(staging, path)
            else:
                staging.rename(path)
            _fsync(parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_file_is_free(path: Path, *, force: bool) -> None:
    """Raise `CannotWriteError` where `staged_file` would, before any long work is done."""
    if path.is_dir():
        raise CannotWriteError(f"`{path}` is a folder", expected="the name of a file to write")
    if path.exists() and not force:
        raise _exists(path)


def check_file_can_be_written(path: Path) -> None:
    """Raise `CannotWriteError` where no file can be made, before any long work is done; nothing is left there.

    A folder that is not there yet is not made: its nearest parent is asked.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
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
    if not path.exists() or not any(path.iterdir()):
        return
    if not force:
        raise _exists(path)
    stranger = kind.stranger_in(path)
    if stranger is not None:
        raise CannotWriteError(
            f"`{path}` {stranger}, so it was not made by this command and is not replaced, `--force` or not",
            hint="choose another name with `-o`",
        )


def check_not_input(output: Path, *inputs: Path | str) -> None:
    """Refuse to write over what is read.

    Raises:
        UsageError: `output` is one of `inputs`.
    """
    for entry in inputs:
        if Path(entry).exists() and Path(entry).resolve() == output.resolve():
            raise UsageError(f"the output `{output}` is an input as well", hint="choose another name with `-o`")


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on output `path`; it dies with the process.

    Raises:
        LockedError: another process holds it.
    """
    if sys.platform == "win32":  # the workbench is Linux; a device only reads
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"edgebert-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace") or "unknown"
            raise LockedError(
                f"`{path}` is being written by another process ({holder})", hint="wait for it, or write to another name"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Make the parent, take the lock, remove what an interrupted run left, and turn OSError into CannotWriteError."""
    parent = path.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            for entry in parent.iterdir():
                if entry.name.startswith(_staging_prefix(path)):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            yield parent
    except OSError as error:
        raise CannotWriteError(f"cannot write `{path}`: {error.strerror or error}") from error


def _staging_prefix(path: Path) -> str:
    return f".{path.name}.staging-"


def _exists(path: Path) -> CannotWriteError:
    return CannotWriteError(f"`{path}` exists", hint="add `--force` to replace it, or choose another name with `-o`")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step (Linux `renameat2`), so that the final name is never missing."""
    if sys.platform == "linux":
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # some C libraries lack it
        arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        if renameat2 is not None and renameat2(*arguments) == 0:
            return
    # A file system without the exchange: two renames, the old one back if the second fails.
    aside = first.with_name(first.name + ".old")
    second.rename(aside)
    try:
        first.rename(second)
    except OSError:
        aside.rename(second)
        raise
    shutil.rmtree(aside, ignore_errors=True)
