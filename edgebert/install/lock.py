"""The lock on an installation: who holds it may change it, and it dies with its process."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import stat
import sys
from collections.abc import Iterator

from edgebert._files import lock_holder
from edgebert.errors import LockedError, RefusedError
from edgebert.install.folder import LOCK, Folder

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def locked_folder(folder: Folder) -> Iterator[None]:
    """Hold the lock; whoever comes second is told at once, and nobody waits.

    Raises:
        LockedError: another process holds it; the message names it and its host.
        RefusedError: the lock is a link or no file.
        OSError: it cannot be made.
    """
    descriptor = _open(folder)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise LockedError(
                f"`{folder.path}` is being changed by another process ({lock_holder(descriptor)})",
                hint="try again when it is done",
            ) from error
        _check_still_there(folder, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {platform.node() or 'this computer'}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # only what a loser is told; what was done under the lock is done
                os.ftruncate(descriptor, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _check_still_there(folder: Folder, descriptor: int) -> None:
    """Refuse a lock whose file was removed in the meantime, with a folder that a failed first installation had made."""
    try:
        same = os.path.samestat(os.fstat(descriptor), os.stat(LOCK, dir_fd=folder.descriptor, follow_symlinks=False))
    except FileNotFoundError:
        same = False
    if not same:
        raise LockedError(f"`{folder.path}` was being removed by another process", hint="try again")


def _open(folder: Folder) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(LOCK, flags, 0o666, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(folder) from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _no_file(folder)


def _no_file(folder: Folder) -> RefusedError:
    path = folder.path / LOCK
    return RefusedError(f"`{path}` is no plain file", expected="the lock of an installation", hint=f"rm {path}")
