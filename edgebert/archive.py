"""The transport form of a bundle: one `.zip` file, every byte of which follows from the bundle.

Entries lie one behind the other in the order of their names, stored as they are, with fixed dates and modes; the central
directory follows, then its end record, then nothing. `zipfile` and `unzip` read it. What is read must be byte for byte what
`write_archive` would write for the same entries, so that none of the format's other possibilities is ever interpreted: no
compression (a bomb needs one), no encryption, no comment or extra field, no zip64, no second directory, no overlap, no gap,
nothing before or behind. Nothing is extracted to disk: entries are read into memory, as those of a folder are.

>>> content = b"".join(archive_pieces({"a.txt": b"one", "b.txt": b"two"}))
>>> with Archive(io.BytesIO(content), len(content), "`x.zip`") as archive:
...     archive.sizes, archive.read("b.txt", 10)
({'a.txt': 3, 'b.txt': 3}, b'two')
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from edgebert._files import staged_file
from edgebert._json import shown
from edgebert.errors import CannotWriteError, MalformedBundleError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.bundle import Bundle

ARCHIVE_SUFFIX = ".zip"
MAX_ENTRIES = 66  # the files that SHA256SUMS may list, that file itself and its signature
MAX_ARCHIVE_BYTES = (4 << 30) - 1  # the format's limit without zip64

# PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16.
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 10  # of the format: 1.0, stored files
_MADE_ON_UNIX = 3 << 8 | _VERSION
_MODE = (stat.S_IFREG | 0o644) << 16
_TIME, _DATE = 0, 0x21  # 1980-01-01 00:00, the first that the format can say
_MAX_NAME = 300
_MAX_DIRECTORY_BYTES = MAX_ENTRIES * (_CENTRAL.size + _MAX_NAME)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of an archive: where its local header begins, its size and its CRC-32."""

    name: bytes
    offset: int
    size: int
    crc: int

    @property
    def local(self) -> bytes:
        fields = (_VERSION, 0, 0, _TIME, _DATE, self.crc, self.size, self.size, len(self.name), 0)
        return _LOCAL.pack(b"PK\x03\x04", *fields) + self.name

    @property
    def central(self) -> bytes:
        fields = (_VERSION, 0, 0, _TIME, _DATE, self.crc, self.size, self.size, len(self.name), 0, 0, 0, 0, _MODE)
        return _CENTRAL.pack(b"PK\x01\x02", _MADE_ON_UNIX, *fields, self.offset) + self.name

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + _LOCAL.size + len(self.name) + self.size


def archive_pieces(files: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the bytes of an archive of these files, piece by piece; equal files give equal bytes."""
    offset = 0
    directory = b""
    for name in sorted(files):
        entry = _Entry(name.encode("ascii"), offset, len(files[name]), zlib.crc32(files[name]))
        yield entry.local
        yield files[name]
        directory += entry.central
        offset = entry.end
    yield directory
    yield _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), offset, 0)


def write_archive(bundle: Bundle, path: Path, *, force: bool = False) -> int:
    """Write a bundle as one file and return its size in bytes; its signature goes with it.

    Args:
        bundle: verified, as `edgebert.bundle.read_bundle` returns it.
        path: `NAME.zip`.
        force: replace an existing file.

    Raises:
        UsageError: `path` does not end in `.zip`, or lies in the bundle.
        CannotWriteError: it exists without `force`, cannot be written, or would have 4 GiB and more.
        LockedError: another process is writing the same output.
    """
    if path.suffix != ARCHIVE_SUFFIX:
        raise UsageError(f"`{path}`", expected=f"a name that ends in `{ARCHIVE_SUFFIX}`", hint="-o NAME.zip")
    if bundle.path.absolute() in path.absolute().parents:
        raise UsageError(f"`{path}` lies in the bundle", hint="-o NAME.zip")
    files = bundle.all_files()
    size = sum(_LOCAL.size + _CENTRAL.size + 2 * len(name) + len(files[name]) for name in files) + _END.size
    if size > MAX_ARCHIVE_BYTES:
        raise CannotWriteError(f"`{path}` would have {size:,} bytes", expected=f"at most {MAX_ARCHIVE_BYTES:,}")
    with staged_file(path, force=force) as staging, staging.open("wb") as stream:
        for piece in archive_pieces(files):
            stream.write(piece)
    return size


class Archive:
    """An opened archive whose directory was found to be one of `write_archive`'s.

    Args:
        stream: of the whole file; closed with the archive.
        size: of the file, in bytes.
        what: how messages name it.

    Raises:
        MalformedBundleError: any byte of the directory is another than `write_archive` would write.
        OSError: it cannot be read.
    """

    def __init__(self, stream: BinaryIO, size: int, what: str) -> None:
        self._stream = stream
        self._what = what
        self._entries = {entry.name.decode("ascii"): entry for entry in self._read_directory(size)}
        self.sizes: Mapping[str, int] = {name: entry.size for name, entry in self._entries.items()}

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of an entry.

        Raises:
            MalformedBundleError: its header does not say what the directory says, or its CRC-32 is another.
            OSError: it cannot be read.
        """
        entry = self._entries[name]
        if entry.size > limit:
            raise self._error(f"`{name}` has {entry.size:,} bytes", f"at most {limit:,}")
        if self._bytes_at(entry.offset, len(entry.local)) != entry.local:
            raise self._error(f"the header of `{name}` is not what the directory says", "equal ones")
        content = self._bytes_at(entry.offset + len(entry.local), entry.size)
        if zlib.crc32(content) != entry.crc:
            raise self._error(f"`{name}` was changed", "the CRC-32 in the directory")
        return content

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of an entry's content; raises as `read` does."""
        return hashlib.sha256(self.read(name, self.sizes[name])).hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_directory(self, size: int) -> list[_Entry]:
        if not _END.size < size <= MAX_ARCHIVE_BYTES:
            raise self._error(f"the file has {size:,} bytes", f"{_END.size + 1} to {MAX_ARCHIVE_BYTES:,}")
        end = self._bytes_at(size - _END.size, _END.size)
        _, _, _, _, count, length, start, _ = _END.unpack(end)
        if end != _END.pack(b"PK\x05\x06", 0, 0, count, count, length, start, 0) or start + length + _END.size != size:
            self._refuse_end(end)
        if not 1 <= count <= MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
            raise self._error(f"it holds {count} entries", f"1 to {MAX_ENTRIES}")
        directory = self._bytes_at(start, length)
        entries: list[_Entry] = []
        at = offset = 0
        for _ in range(count):
            entry = self._entry(directory[at:], offset)
            if entries and entry.name <= entries[-1].name:
                raise self._error(f"`{entry.name.decode()}` comes twice or out of order", "the order of the names")
            entries.append(entry)
            at += len(entry.central)
            offset = entry.end
        if at != length or offset != start:
            raise self._error("something lies between its files and its directory, or behind that", "nothing")
        return entries

    def _entry(self, directory: bytes, offset: int) -> _Entry:
        """Read the first entry of the rest of a directory; its file must begin at `offset`."""
        if len(directory) < _CENTRAL.size:
            raise self._error("its directory is cut short", "a whole one")
        fields = _CENTRAL.unpack_from(directory)
        flags, method, crc, size, name_length = fields[3], fields[4], fields[7], fields[9], fields[10]
        name = directory[_CENTRAL.size : _CENTRAL.size + name_length]
        if not 1 <= name_length <= _MAX_NAME or not name.isascii() or not name.decode().isprintable():
            raise self._error(f"an entry is called `{shown(name.decode('latin-1'))}`", "plain names")
        entry = _Entry(name, offset, size, crc)
        if not directory.startswith(entry.central):
            said = name.decode()
            if flags & 1:
                raise self._error(f"`{said}` is encrypted", "files stored as they are")
            if method:
                raise self._error(f"`{said}` is compressed (method {method})", "files stored as they are")
            raise self._error(
                f"the entry `{said}` is not one that edgebert writes", "plain files, stored, without extras"
            )
        return entry

    def _refuse_end(self, end: bytes) -> NoReturn:
        if not end.startswith(b"PK\x05\x06"):
            raise self._error("it does not end as a zip file without a comment does", "a file of `edgebert pack`")
        raise self._error("its end record contradicts the file", "one directory at the end, on one disk, without zip64")

    def _bytes_at(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        content = self._stream.read(size)
        if len(content) != size:
            raise self._error("it is cut short", "a whole file")
        return content

    def _error(self, what: str, expected: str) -> MalformedBundleError:
        return MalformedBundleError(
            f"{self._what} is no archive of a bundle: {what}",
            expected=expected,
            hint="edgebert pack NAME.edgebert -o NAME.zip",
        )


def open_archive(path: Path) -> Archive:
    """Open an archive; its directory is checked, and nothing else is read.

    Raises:
        MalformedBundleError: it is no regular file, or no archive of `write_archive`'s.
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK the open of a FIFO would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(path, flags), "rb", buffering=0)
    try:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MalformedBundleError(f"`{path}` is no regular file", expected="a bundle")
        return Archive(io.BufferedReader(stream), status.st_size, f"`{path}`")
    except BaseException:
        stream.close()
        raise
