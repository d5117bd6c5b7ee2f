"""Openings that have not ended well yet: how a bundle is found that takes its process down.

An opening makes a file `attempts/<digest>.<pid>-<number>` and holds a lock on it until it is over, well or with an error, and then
removes it. A file that nobody holds a lock on is an opening whose process died: a segmentation fault, the out-of-memory
killer, a watchdog, a power cut. The kernel lets go of a lock with its process, so no clock and no process number decides, and
openings that run side by side are never taken for dead ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from edgebert.install.folder import ATTEMPTS, Folder, names_in

if sys.platform != "win32":
    import fcntl

MOST_CRASHES = 3  # reliability.md, consequence 3 and fault 26
_PATIENCE_S = 1.0  # for those who register at the same time, a few milliseconds each


@dataclass(frozen=True, slots=True)
class Attempt:
    """One opening that is under way; `folder` and `lock` are descriptors."""

    digest: str
    name: str
    folder: int
    lock: int

    def end(self, *, well: bool) -> None:
        """Forget this opening; one that ended well proves the bundle, so that those before it are forgotten as well."""
        try:
            gone = [self.name]
            if well:
                gone += [
                    name
                    for name in _names(self.folder, self.digest)
                    if name != self.name and _is_dead(self.folder, name)
                ]
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.folder)
            # Not synced, which would cost every start as much as the beginning did. It is on disk some seconds later; a power
            # cut before that counts as a crash, and three in a row so soon after a start (a new model may draw more power
            # than there is) are reason enough to go back.
        except OSError:
            pass  # what cannot be written is not counted on: at worst one opening too many is remembered
        finally:
            os.close(self.lock)
            os.close(self.folder)


def begin(folder: Folder, digest: str) -> Attempt | None:
    """Write down, durably, that a bundle is about to be opened; None where that cannot be written."""
    try:
        descriptor = os.open(ATTEMPTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder.descriptor)
    except OSError:
        return None
    try:
        with _together(descriptor):
            name = f"{digest}.{os.getpid()}-{secrets.token_hex(4)}"
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=descriptor)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.fsync(descriptor)
            _forget_old(descriptor, digest)
    except OSError:
        os.close(descriptor)
        return None
    return Attempt(digest, name, descriptor, lock)


def crashes(folder: Folder, digest: str) -> int:
    """Count the openings of a bundle whose process died; 0 where that cannot be read."""
    try:
        with folder.inner(ATTEMPTS) as descriptor, _together(descriptor):
            return sum(_is_dead(descriptor, name) for name in _names(descriptor, digest))
    except OSError:
        return 0


def forget(folder: Folder, *, all_but: frozenset[str]) -> None:
    """Remove what is remembered of every bundle but these; of one that is being opened nothing."""
    with folder.inner(ATTEMPTS) as descriptor, _together(descriptor):
        for name in names_in(descriptor):
            if name.partition(".")[0] not in all_but and _is_dead(descriptor, name):
                os.unlink(name, dir_fd=descriptor)
        os.fsync(descriptor)


def _names(descriptor: int, digest: str) -> list[str]:
    return sorted(name for name in names_in(descriptor) if name.startswith(f"{digest}."))


def _forget_old(descriptor: int, digest: str) -> None:
    """Keep no more dead openings than decide."""
    dead = [name for name in _names(descriptor, digest) if _is_dead(descriptor, name)]
    for name in dead[MOST_CRASHES:]:
        os.unlink(name, dir_fd=descriptor)


def _is_dead(descriptor: int, name: str) -> bool:
    """Say whether nobody holds the lock of an opening; of one that just ended, no."""
    try:
        lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
    except OSError:  # just gone; or of a user who shows it to nobody
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # without locks, a file that lies there counts
    finally:
        os.close(lock)
    return True


@contextlib.contextmanager
def _together(descriptor: int) -> Iterator[None]:
    """Let one process at a time make and count.

    Raises:
        OSError: the folder cannot be locked, as on some network file systems; or somebody holds it too long.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES) or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
