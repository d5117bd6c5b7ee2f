"""The temporary folder that images and samples pass through, and what is said when it is full.

>>> import errno
>>> with scratch_folder() as folder:
...     print(folder.is_dir())
True
>>> folder.exists()
False
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgebert.errors import CannotWriteError


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new temporary folder that is gone afterwards.

    Raises:
        CannotWriteError: there is no folder for temporary files, or it is full.
    """
    with writing_to(Path(_temporary())):
        made = tempfile.TemporaryDirectory(prefix="edgebert-bench-", ignore_cleanup_errors=True)
    with made as folder:
        yield Path(folder)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error that names the folder and says what helps.

    Raises:
        CannotWriteError: an `OSError` came up inside.
    """
    try:
        yield
    except OSError as error:
        raise CannotWriteError(
            f"cannot write to `{folder}`: {error.strerror or error}",
            expected="room for the images on their way to the workers, and for the samples",
            hint="free space there, or set TMPDIR to a folder with more",
        ) from error


def _temporary() -> str:
    """Return the folder for temporary files; where none can be written to, the one that was asked for."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise CannotWriteError(
            "no folder for temporary files can be written to",
            expected="free space in TMPDIR or /tmp",
            hint="set TMPDIR to a folder that can be written to",
        ) from error
