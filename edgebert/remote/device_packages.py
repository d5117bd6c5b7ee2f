"""Numpy and Pillow of this session, where the device's own are missing or too old: unpacked into a folder of the agent's own.

    packages {wheels: [{name, sha256, module, version}]} -> answer {modules}; what was pushed before, see `edgebert.remote.device_store`

Nothing of the device's Python is touched: the folder comes first on `sys.path` of this process and of those that it starts, and goes
with the session. A wheel is unpacked only after its SHA-256 was computed here from the file, in this very session.

The agent has neither numpy nor Pillow when this is imported, so that it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert._json import Fields, JsonObject, parse_json_object
from edgebert.errors import CannotWriteError, RefusedError, UnavailableError
from edgebert.remote.device_store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgebert.remote.device_link import Link
    from edgebert.remote.frames import Frame

MAX_ENTRIES = 5_000  # numpy 1.26 has 915
MAX_UNPACKED_BYTES = 256 << 20  # numpy 1.26 has 65 MB
MAX_NAME = 300
MODULES = ("numpy", "PIL.Image")  # `import PIL` alone would not load its compiled part
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A wheel that was pushed.

    Attributes:
        name: the file's own.
        sha256: of it, and its name among the objects.
        module: that it brings: one of `MODULES`.
        version: of the distribution.
    """

    name: str
    sha256: str
    module: str
    version: str


def packages(_link: Link, store: Store, request: Frame) -> tuple[JsonObject, Mapping[str, bytes]]:
    """Unpack wheels into the session's folder, put them first on the path, and answer with the versions that are imported."""
    listed = packages_of(request.fields)
    return {"modules": put_on_path(store, listed, Path(tempfile.mkdtemp(prefix="packages-")))}, {}


def use_pushed(root: Path, content: str, folder: Path) -> None:
    """The same for a call without a session: of objects that a session before it has left, each hashed again.

    Args:
        root: of the store.
        content: of a `packages` message with the `size` of each, as JSON.
        folder: an empty one of this call's own.

    Raises:
        BadDataError: a wheel is not here any more.
        EdgebertError: as of `put_on_path`.
    """
    fields = Fields(parse_json_object(content, what="the packages"), what="the packages")
    store = Store(root)
    listed = packages_of(fields)
    store.there([(entry.text("sha256"), entry.integer("size")) for entry in fields.list_of_fields("wheels")])
    put_on_path(store, listed, folder)
    for package in listed:
        os.utime(store.path(package.sha256))  # what is used is not tidied away


def packages_of(fields: Fields) -> tuple[Package, ...]:
    """Return the wheels of a message.

    Raises:
        BadDataError: it has none.
        RefusedError: one is for another module than numpy and Pillow.
    """
    found = []
    for entry in fields.list_of_fields("wheels"):
        if entry.text("module") not in MODULES:
            raise RefusedError(
                f"`{entry.text('module'):.80}` is nothing that a host brings", expected=", ".join(MODULES)
            )
        found.append(Package(**{name: entry.text(name) for name in ("name", "sha256", "module", "version")}))
    return tuple(found)


def put_on_path(store: Store, listed: Sequence[Package], folder: Path) -> dict[str, str]:
    """Unpack wheels, put the folder first on the path of this process and its children, and import what they bring.

    Args:
        store: which has them, each with its hash computed in this session.
        listed: the wheels.
        folder: an empty one of this session's own.

    Returns:
        Module -> version as it was imported.

    Raises:
        BadDataError: a wheel is not here.
        RefusedError: a wheel is none, or would write elsewhere.
        CannotWriteError: the disk is full.
        UnavailableError: what was unpacked cannot be imported here.
    """
    for package in listed:
        unpack(store.path(package.sha256), folder)
    sys.path.insert(0, str(folder))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    importlib.invalidate_caches()
    return {package.module.partition(".")[0]: _imported(package, folder) for package in listed}


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack a wheel whose hash is known; nothing is written outside of the folder, and no more than a wheel may have.

    Raises:
        RefusedError: it is no wheel, or an entry is none that a wheel has: a path that leads out, a link, too much.
        CannotWriteError: the disk is full, or the folder cannot be written.
    """
    size = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = _checked_size(archive.infolist())
            for entry in archive.infolist():
                _write(archive, entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"what was sent is no wheel: {error}") from error
    except OSError as error:
        raise CannotWriteError(
            f"cannot unpack into `{folder}`: {error.strerror or error}",
            expected=f"room for {(size >> 20) + 1:,} MiB",
            hint="df -h ~",
        ) from error


def _checked_size(entries: Sequence[zipfile.ZipInfo]) -> int:
    """Refuse, before anything is written, what would not stay inside a folder; return what it unpacks to, in bytes."""
    size = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or size > MAX_UNPACKED_BYTES:
        raise RefusedError(
            f"a wheel has {len(entries):,} files of {size:,} bytes",
            expected=f"at most {MAX_ENTRIES:,} of {MAX_UNPACKED_BYTES:,}",
        )
    seen = set()
    for entry in entries:
        name = entry.orig_filename  # `filename` is cut at a NUL
        parts = name.removesuffix("/").split("/")
        if (
            len(name) > MAX_NAME
            or "\\" in name
            or not name.isprintable()
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise RefusedError(f"a wheel has an entry `{name!a:.80}`", expected="a name below its folder")
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise RefusedError(f"`{name:.80}` in a wheel is a link or a device", expected="files")
        if entry.header_offset < 0:
            raise RefusedError(f"what was sent is no wheel: `{name:.80}` begins before it")
        if name in seen:
            raise RefusedError(f"`{name:.80}` is in a wheel twice", expected="once")
        seen.add(name)
    return size


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Write one entry; `zipfile` compares its checksum, and what it unpacks is counted."""
    path = folder / entry.orig_filename
    if entry.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, path.open("xb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise RefusedError(f"`{entry.orig_filename:.80}` in a wheel is larger than it says")
            file.write(chunk)


def _imported(package: Package, folder: Path) -> str:
    """Import what a wheel brought and return its version; what was imported before, or comes from elsewhere, is not it."""
    hint = "install it into a venv there, and name that with --python"
    try:
        module = importlib.import_module(package.module)
    except ImportError as error:
        raise UnavailableError(
            f"`{package.name}` cannot be imported on the device: {' '.join(str(error).split())[:300]}",
            expected="a Python and a C library that this wheel is for",
            hint=hint,
        ) from error
    place = Path((module.__spec__.origin if module.__spec__ else None) or "/")
    if folder not in place.parents:
        raise UnavailableError(
            f"`{package.module}` comes from `{place}`", expected=f"`{package.name}`, which was sent", hint=hint
        )
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package.name.partition("-")[0])
    return package.version
