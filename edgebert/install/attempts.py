"""Openings that have not ended well yet: how a bundle is found that takes its process down.

An opening makes a file `attempts/<digest>.<round>.<pid>-<number>` and holds a lock on it until it is over, well or with an error, and
then removes it. A file that nobody holds a lock on is an opening whose process died: a segmentation fault, the out-of-memory
killer, a watchdog, a power cut. The kernel lets go of a lock with its process, so no clock and no process number decides, and
openings that run side by side are never taken for dead ones.

Openings that began side by side have one round, and an opening that begins after one died has the next. What is counted are rounds,
so that a power cut that takes three workers at once is one crash, and three crashes are three openings in a row.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgebert.install.folder import ATTEMPTS, NOT_A_FILE, Folder, names_in

if sys.platform != "win32":
    import fcntl

MOST_CRASHES = 3  # reliability.md, consequence 3 and fault 26
_PATIENCE_S = 1.0  # for those who register at the same time, a few milliseconds each
_NUMBERED = re.compile(r"[0-9a-f]{64}\.(\d{1,15})\.[^.]+")  # notes of before had no round: `<digest>.<pid>-<number>`


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
                gone += [name for name in _dead(self.folder, self.digest) if name != self.name]
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
            dead = _dead(descriptor, digest)
            number = 1 + max((_round(name) or 0 for name in dead), default=0)
            name = f"{digest}.{number}.{os.getpid()}-{secrets.token_hex(4)}"
            attempt = _noted(descriptor, digest, name)
            with contextlib.suppress(OSError):  # they are counted the same
                _forget_old(descriptor, dead)
    except OSError:
        os.close(descriptor)
        return None
    return attempt


def _noted(descriptor: int, digest: str, name: str) -> Attempt:
    """Make a note and lock it; where that fails none is left, which would count as a crash."""
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=descriptor)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=descriptor)
        os.close(lock)
        raise
    return Attempt(digest, name, descriptor, lock)


def crashes(folder: Folder, digest: str) -> int:
    """Count the rounds of openings of a bundle in which a process died.

    Raises:
        OSError: that cannot be read.
    """
    with folder.inner(ATTEMPTS) as descriptor, _together(descriptor):
        return len({_round(name) or name for name in _dead(descriptor, digest)})


def crashes_known(folder: Folder, digest: str) -> int:
    """Count as `crashes` does; 0 where that cannot be read, since a device has to start."""
    try:
        return crashes(folder, digest)
    except OSError:
        return 0


def forget(folder: Folder, *, all_but: frozenset[str]) -> None:
    """Remove what is remembered of every bundle but these; of one that is being opened nothing.

    Raises:
        OSError: something cannot be looked at, or removed.
    """
    with folder.inner(ATTEMPTS) as descriptor:
        names = [name for name in names_in(descriptor) if name.partition(".")[0] not in all_but]
        if not names:
            return
        with _together(descriptor):
            for name in names:
                if _is_dead(descriptor, name):
                    os.unlink(name, dir_fd=descriptor)
            os.fsync(descriptor)


def _dead(descriptor: int, digest: str) -> list[str]:
    """Return the names of a bundle's openings whose process died."""
    names = sorted(name for name in names_in(descriptor) if name.startswith(f"{digest}."))
    return [name for name in names if _is_dead(descriptor, name)]


def _round(name: str) -> int | None:
    """Return the round of an opening; None of one that has none, which counts for itself."""
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found else None


def _forget_old(descriptor: int, dead: Sequence[str]) -> None:
    """Keep of dead openings one of each round, and no more rounds than decide: the last ones."""
    numbered = {number: name for name in dead if (number := _round(name)) is not None}
    kept = {numbered[number] for number in sorted(numbered)[-MOST_CRASHES:]}
    kept.update([name for name in dead if _round(name) is None][:MOST_CRASHES])
    for name in set(dead) - kept:
        os.unlink(name, dir_fd=descriptor)


def _is_dead(descriptor: int, name: str) -> bool:
    """Say whether nobody holds the lock of an opening; of one that just ended, no.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
    except (FileNotFoundError, PermissionError):  # just gone; or of a user who shows it to nobody
        return False
    except OSError as error:
        if error.errno in NOT_A_FILE:  # nothing of ours
            return False
        raise
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
