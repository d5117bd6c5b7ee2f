"""The timing cache: what TensorRT measured of each kernel, kept for the next build on the same device by the same TensorRT.

A cache is read by native code, so that only one of this user's is taken: its folder and its file belong to the user, nobody else may
write there, and neither is a symbolic link. It is written beside and renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from edgebert.errors import CannotWriteError, RefusedError
from edgebert.fingerprint import GpuFacts

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MAX_CACHE_BYTES = 256 << 20


def default_folder() -> Path:
    """Return where caches lie: `$XDG_CACHE_HOME/edgebert/tensorrt`, by default below `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "edgebert" / "tensorrt"


def cache_name(gpu: GpuFacts, tensorrt: str) -> str:
    """Return the file's name, one for each device and version: kernels' times mean nothing elsewhere.

    >>> cache_name(GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, module="p3767-0003"), "10.3.0")
    'timing-10.3.0-Orin-8.7-8-p3767_0003-none.cache'
    """
    parts = (tensorrt, gpu.name, gpu.compute_capability, gpu.multiprocessors, gpu.module or "none", gpu.l4t or "none")
    return "timing-" + "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", str(part)) for part in parts) + ".cache"


def check_private(path: Path) -> None:
    """Return only if a file or folder is the user's own and nobody else may write to it.

    Raises:
        RefusedError: it belongs to somebody else, others may write to it, or it is a symbolic link or something else.
        FileNotFoundError: it is not there.
    """
    found = os.lstat(path)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise RefusedError(f"`{path}` is a link or a device", expected="a file or folder of your own")
    if found.st_uid != os.getuid():
        raise RefusedError(
            f"`{path}` belongs to user {found.st_uid}",
            expected=f"your own ({os.getuid()}): what lies there is read by native code",
            hint="set XDG_CACHE_HOME to a folder of yours",
        )
    if found.st_mode & _OTHERS_WRITE:
        raise RefusedError(
            f"`{path}` can be written by others (mode {stat.S_IMODE(found.st_mode):o})",
            expected="only you may write there: what lies there is read by native code",
            hint=f"chmod go-w {path}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCache:
    """One file of measured times.

    Attributes:
        path: the file, in a folder of its user's.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path, gpu: GpuFacts, tensorrt: str) -> TimingCache:
        """Return the cache of a device and a version; the folder is made if it is not there.

        Raises:
            RefusedError: the folder is not private.
            CannotWriteError: it cannot be made.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(folder)
        except OSError as error:
            raise CannotWriteError(
                f"cannot keep a timing cache in `{folder}`: {error.strerror}", hint="set XDG_CACHE_HOME"
            ) from error
        return cls(path=folder / cache_name(gpu, tensorrt))

    def read(self) -> bytes:
        """Return what is stored, empty where nothing is.

        Raises:
            RefusedError: the file is not private.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise RefusedError(
                f"the timing cache `{self.path}` cannot be read: {error.strerror}", expected="a file of your own"
            ) from error
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & _OTHERS_WRITE
            if not own or found.st_size > MAX_CACHE_BYTES:
                check_private(self.path)
                raise RefusedError(
                    f"the timing cache `{self.path}` is no file of at most {MAX_CACHE_BYTES:,} bytes",
                    hint=f"rm {self.path}",
                )
            return stream.read()

    def write(self, content: bytes) -> None:
        """Replace what is stored, at once or not at all.

        Raises:
            CannotWriteError: it cannot be written; what was there is there.
        """
        staging = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(descriptor)
            staging.replace(self.path)
        except OSError as error:
            raise CannotWriteError(f"cannot write the timing cache `{self.path}`: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)
