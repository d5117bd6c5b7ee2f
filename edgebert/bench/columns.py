"""Arrays as bytes, read strictly: what NumPy's own reader believes a header of, or gives up on in seven ways, is looked at first.

`numpy.load` reserves whatever memory a header asks for, and a damaged archive makes it raise errors of zlib, of `tokenize` or of plain
types. Samples come from other people's files and from devices, so that only what NumPy writes of one dtype is read here: a header of
version 1.0 in its one spelling, and exactly as many bytes behind it as its shape needs.

>>> import io
>>> stream = io.BytesIO()
>>> np.lib.format.write_array(stream, np.arange(3), allow_pickle=False)
>>> read_npy(io.BytesIO(stream.getvalue()), len(stream.getvalue()), np.int64).tolist()
[0, 1, 2]
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgebert.errors import BadDataError

MAX_COLUMNS = 10_000  # a round of a comparison has a few hundred, and the samples of a run fewer

_MAGIC = b"\x93NUMPY\x01\x00"
_MAX_DIMENSIONS = 4
_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-z]\d{1,2})', 'fortran_order': (False|True), 'shape': \(([\d, ]{0,80})\), \} *\n"
)
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npy(stream: IO[bytes], size: int, dtype: DTypeLike) -> NDArray[np.generic]:
    """Read one array as `numpy.lib.format.write_array` wrote it.

    Args:
        stream: at the first byte.
        size: of all of it, in bytes; no more memory is taken.
        dtype: that it must have.

    Raises:
        BadDataError: another dtype, another form, or more or fewer bytes than its shape needs.
    """
    wanted = np.dtype(dtype)
    start = stream.read(len(_MAGIC) + 2)
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    found = _HEADER.fullmatch(stream.read(length)) if start[: len(_MAGIC)] == _MAGIC else None
    if found is None:
        raise BadDataError("no array, or one of another form")
    shape = tuple(int(part) for part in found[3].decode("ascii").replace(" ", "").split(",") if part)
    if found[1].decode("ascii") != wanted.str or len(shape) > _MAX_DIMENSIONS:
        raise BadDataError(f"an array of {found[1].decode('ascii')} {shape}", expected=wanted.name)
    if len(start) + length + math.prod(shape) * wanted.itemsize != size:
        raise BadDataError(f"an array of shape {shape} in {size:,} bytes")
    array = np.empty(shape, wanted, "F" if found[2] == b"True" else "C")
    _fill(stream, array)
    return array


def read_npz(file: Path | IO[bytes], *, max_bytes: int) -> dict[str, NDArray[np.int64]]:
    """Read an archive of int64 arrays: name -> array.

    Args:
        file: the archive.
        max_bytes: it may unpack to.

    Raises:
        BadDataError: it is something else, damaged, or more.
    """
    columns: dict[str, NDArray[np.int64]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > max_bytes:
                raise BadDataError(f"it unpacks to {unpacked:,} bytes", expected=f"at most {max_bytes:,}")
            if len(entries) > MAX_COLUMNS:
                raise BadDataError(f"it has {len(entries):,} columns", expected=f"at most {MAX_COLUMNS:,}")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name in columns or entry.compress_type not in _READABLE:
                    raise BadDataError(f"`{entry.filename!r:.80}` is no column", expected="NAME.npy, each once")
                with archive.open(entry) as stream:
                    columns[name] = read_npy(stream, entry.file_size, np.int64).view(np.int64)
    # RuntimeError: an entry that is marked as encrypted, or as of a kind that zipfile does not know.
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadDataError(f"no archive: {error}") from error
    return columns


def _fill(stream: IO[bytes], array: NDArray[np.generic]) -> None:
    """Fill an array with what comes, to the end: an archive's check sum is looked at there."""
    left = array.reshape(-1, order="A").view(np.uint8).data if array.size else memoryview(b"")
    while left:
        piece = stream.read(min(len(left), 1 << 20))
        if not piece:
            raise BadDataError(f"{len(left):,} bytes of an array are missing")
        left[: len(piece)] = piece
        left = left[len(piece) :]
    if stream.read(1):
        raise BadDataError("more bytes than the array has")
