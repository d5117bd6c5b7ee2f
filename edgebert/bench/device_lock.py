"""One measurement at a time on a computer: two at once would measure each other (bench.md, section 11.3).

The lock is an advisory `flock`, so it ends with the process that holds it, however that one ends; the file stays and means
nothing. `EDGEBERT_BENCH_LOCK` names another file, for computers whose users share no temporary folder, and for tests.

>>> import os, tempfile
>>> with tempfile.TemporaryDirectory() as folder, device_lock(Path(folder) / "lock") as path:
...     print(path.read_text() == f"pid {os.getpid()}")
True
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edgebert.errors import CannotWriteError, LockedError

if sys.platform != "win32":
    import fcntl

LOCK_VARIABLE = "EDGEBERT_BENCH_LOCK"

_log = logging.getLogger("edgebert")

COMPARE_WAIT_SECONDS = 1800.0  # for forms that took minutes to build
_HOLDER_BYTES = 32  # of `pid N`
_LOOK_SECONDS = 0.2


def device_lock_path() -> Path:
    """Return the file that is locked: what `EDGEBERT_BENCH_LOCK` names, or one of this user in the temporary folder."""
    named = os.environ.get(LOCK_VARIABLE)
    if named:
        return Path(named)
    user = "" if sys.platform == "win32" else f"-{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"edgebert-bench{user}.lock"


@contextlib.contextmanager
def device_lock(path: Path | None = None, *, wait_s: float = 0.0) -> Iterator[Path]:
    """Hold the computer for one measurement, and yield the file that is locked. It cannot be held twice by one process.

    Args:
        path: the file; `device_lock_path()` if not given.
        wait_s: for how long another measurement is waited for, where much would be lost otherwise.

    Raises:
        LockedError: another process measures; it says which one.
        CannotWriteError: the file cannot be opened.
    """
    path = path or device_lock_path()
    if sys.platform == "win32":  # it has no flock, and no workers that would be measured there
        yield path
        return
    try:
        # No link is followed: in a folder that everybody may write to, somebody else could have put one there.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotWriteError(
            f"cannot open the lock of measurements `{path}`: {error.strerror}",
            hint=f"name another file in {LOCK_VARIABLE}",
        ) from error
    try:
        _wait(descriptor, path, wait_s)
        yield path
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, wait_s: float) -> None:
    until, is_said = time.monotonic() + wait_s, False
    while True:
        try:
            _take(descriptor, path)
        except LockedError as error:
            if time.monotonic() >= until:
                raise
            if not is_said:
                _log.warning("%s: waiting for it", error.what)
            is_said = True
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _take(descriptor: int, path: Path) -> None:
    """Lock an open file and write who holds it.

    A holder that was killed leaves its number in the file; it is read only while somebody holds the lock, who wrote a new one.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, _HOLDER_BYTES, 0).decode("ascii", "replace")
        raise LockedError(
            f"another measurement runs on this computer ({holder or 'it has just begun'})",
            expected=f"one at a time; the lock is `{path}`",
            hint="wait for it: two at once would measure each other",
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only its holder stays unnamed
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}".encode(), 0)
