"""What a host has sent to this device, by content: `~/.cache/edgebert/objects/<sha256>`, and `<sha256>.part` while it comes.

A push that was interrupted goes on where it ended, and what is here is never sent again. Nothing gets its final name before its hash
was computed from the file, and nothing is used whose hash was not computed in this very session.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgebert._files import sha256_of_file
from edgebert.errors import BadDataError, CannotWriteError, LockedError

if sys.platform != "win32":
    import fcntl

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SESSION = "session-"
_CHUNK = 64 << 10


def default_root() -> Path:
    """Return the folder of everything that edgebert keeps on a device."""
    return Path.home() / ".cache" / "edgebert"


class Store:
    """The objects of one session, which holds the store alone.

    Args:
        root: of the store; made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects, self._lock_file = root / "objects", root / "lock"
        self._whole: set[str] = set()  # hashed in this session

    @contextlib.contextmanager
    def held(self) -> Iterator[Path]:
        """Hold the store, and yield a folder for this session that is gone afterwards; what killed sessions left goes first.

        Raises:
            LockedError: another session uses this device.
            CannotWriteError: the home folder cannot be written.
        """
        descriptor = self._locked()
        try:
            for left in self.root.glob(f"{_SESSION}*"):
                shutil.rmtree(left, ignore_errors=True)
            try:
                folder = Path(tempfile.mkdtemp(prefix=_SESSION, dir=self.root))
            except OSError as error:
                raise CannotWriteError(f"cannot write `{self.root}`: {error.strerror or error}") from error
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)

    def there(self, wanted: Sequence[tuple[str, int]]) -> list[int]:
        """Return how many bytes of each object are here: all of them where it is whole, which is checked by its hash.

        Args:
            wanted: SHA-256 and size of each.
        """
        return [self._there(sha256, size) for sha256, size in wanted]

    def receive(self, sha256: str, size: int, offset: int, pieces: Iterator[bytes]) -> bool:
        """Append what comes to an object; False where it is complete and its hash is another: nothing of it is kept then.

        Args:
            sha256: of the whole object.
            size: of the whole, in bytes.
            offset: how many bytes of it are here, as `there` said.
            pieces: the rest.

        Raises:
            CannotWriteError: the disk is full, or the folder cannot be written.
        """
        part = self._part(sha256)
        try:
            with part.open("r+b" if offset else "wb") as file:
                file.truncate(offset)
                file.seek(offset)
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            if part.stat().st_size != size or sha256_of_file(part) != sha256:
                part.unlink()
                return False
            part.replace(self._objects / sha256)
        except OSError as error:
            raise CannotWriteError(
                f"cannot write `{self._objects}`: {error.strerror or error}",
                expected=f"room for {size - offset:,} bytes more",
            ) from error
        self._whole.add(sha256)
        return True

    def keep(self, content: bytes) -> None:
        """Store what was made here, so that the host need not send it.

        Raises:
            CannotWriteError: the disk is full, or the folder cannot be written.
        """
        self.receive(hashlib.sha256(content).hexdigest(), len(content), 0, iter((content,)))

    def path(self, sha256: str) -> Path:
        """Return the file of an object that was pushed.

        Raises:
            BadDataError: it is not here, or is not what its name says.
        """
        path = self._objects / _checked(sha256)
        if sha256 not in self._whole:
            raise BadDataError(f"object `{sha256:.12}…` is not here", expected="a push before it is used")
        return path

    def lay_out(self, folder: Path, files: Sequence[tuple[str, str]]) -> None:
        """Put objects into a folder under their names, which may have folders of their own.

        Args:
            folder: made here.
            files: name and SHA-256 of each.

        Raises:
            BadDataError: a name leads out of the folder, or an object is not here.
        """
        for name, sha256 in files:
            parts = name.split("/")
            if not all(part and part not in (".", "..") and "\0" not in part for part in parts):
                raise BadDataError(f"`{name:.80}` names no file of an artefact", expected="a name below its folder")
            place = folder.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path(sha256), place)

    def forget(self) -> None:
        """Remove every object, and the folders where nothing else is left in them."""
        shutil.rmtree(self._objects, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove what this session has made, where nothing was here before it."""
        with contextlib.suppress(OSError):
            self._objects.rmdir()
            self._lock_file.unlink()

    def _locked(self) -> int:
        """Return the descriptor of the lock's file, which is held; one that lost its name meanwhile holds nobody off."""
        while True:
            try:
                self._objects.mkdir(parents=True, exist_ok=True, mode=0o700)
                descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise CannotWriteError(f"cannot write `{self.root}`: {error.strerror or error}") from error
            try:
                self._lock(descriptor)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), self._lock_file.stat()):
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(
                "another session uses this device", expected="one at a time", hint="wait for it to end, and try again"
            ) from error

    def _there(self, sha256: str, size: int) -> int:
        whole, part = self._objects / _checked(sha256), self._part(sha256)
        if sha256 in self._whole:
            return size
        with contextlib.suppress(OSError):
            if whole.stat().st_size == size and sha256_of_file(whole) == sha256:
                self._whole.add(sha256)
                return size
        whole.unlink(missing_ok=True)
        try:
            length = part.stat().st_size
        except OSError:
            return 0
        return length if length < size else 0

    def _part(self, sha256: str) -> Path:
        return self._objects / f"{_checked(sha256)}.part"


def pieces_of(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """Yield what `read` gives until `size` bytes came.

    Raises:
        EOFError: it ended before.
    """
    left = size
    while left:
        piece = read(min(left, _CHUNK))
        if not piece:
            raise EOFError(f"{left:,} bytes are missing")
        left -= len(piece)
        yield piece


def _checked(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise BadDataError(f"`{sha256:.80}` names no object", expected="64 hexadecimal digits")
    return sha256
