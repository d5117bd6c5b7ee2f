"""The folder that ships: `NAME.edgebert/`, read once, hashed, and only then believed.

    SHA256SUMS      every other file: 64 hexadecimal digits, two spaces, the name; sorted; one line each
    SHA256SUMS.sig  optional: a signature of SHA256SUMS, the one file that is not listed (`edgebert.signing`)
    manifest.json   see `edgebert.manifest`
    model.onnx      the portable graph
    forms/<target>/ what was compiled for each target
    canary/*.png    images whose answers are known

The same files travel as one `.zip` (`edgebert.archive`). docs/bundle.md is the format in full.

`read_bundle` looks at names before it reads anything, at hashes before it parses anything, and at the sizes that the manifest
declares before it reads what they are of: SHA256SUMS, names, manifest, sizes, contents. It returns the bytes whose hashes it
checked, and everything later works on those bytes: what happens to the files after that changes nothing (reliability.md,
faults 19 to 23). A hard link is a plain file here: whatever else it is called, its content is read once and hashed. The hashes
prove that nothing was damaged, swapped or left behind; they do not say who made the bundle.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from edgebert._files import FolderKind
from edgebert._json import dump_json, parse_json_object, shown
from edgebert.archive import ARCHIVE_SUFFIX, open_archive
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    MalformedBundleError,
    MemoryExhaustedError,
    NoSuchBundleError,
    RefusedBundleError,
    UnreadableBundleError,
)
from edgebert.manifest import GRAPH_FILE, BundleForm, Manifest, recorded_with

SUMS_FILE = "SHA256SUMS"
SIGNATURE_FILE = "SHA256SUMS.sig"
MANIFEST_FILE = "manifest.json"

# What `--force` may replace.
BUNDLE_FOLDER = FolderKind(
    marker=MANIFEST_FILE,
    schema="edgebert.bundle/",
    holds=(SUMS_FILE, SIGNATURE_FILE, MANIFEST_FILE, GRAPH_FILE, "forms", "canary"),
)

MAX_FILES = 64
MAX_FILE_BYTES = 2 << 30  # the most a graph can have: protobuf's limit
MAX_BUNDLE_BYTES = 4 << 30
MAX_SIGNATURE_BYTES = 64 << 10

# A manifest holds six bytes of every image that was used (8 MB of base64 for a million), and the logits of at most eight canaries
# by engine under their class names: 371,000 values and some 14 MB for the 21,841 classes of ImageNet-21k and two engines. The values
# are limited as well, since a short text can be a large tree: half a million of them take half a second and 60 MB.
MAX_MANIFEST_BYTES = 16 << 20
MAX_MANIFEST_VALUES = 500_000

_MAX_SUMS_BYTES = 64 << 10
_MAX_DEPTH = 3
_MAKE_ONE = "edgebert compile GRAPH --target cpu -o NAME.edgebert"
_MAX_SAID = 2_000  # characters of a message: a hostile manifest chooses some of them
_MAX_LISTED = 4 * MAX_FILES  # names of a folder that are looked at: more than that do not belong to a bundle anyway

# What the system says where the bundle is at fault: a file is gone, or is something else. Whatever else it says (EIO, EACCES, EMFILE, ESTALE,
# …) says nothing against the bundle.
_NOT_A_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})
_CHUNK = 1 << 20

# Names that mean the same on every system: no `..`, no backslash, no drive, no hidden file, no trailing dot, none of the names
# that Windows keeps for devices.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]{1,300})")

SumsCheck = Callable[[bytes, "bytes | None"], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle in memory, verified.

    Attributes:
        path: where it was read from, a folder or a `.zip`.
        manifest: what it says of itself.
        files: name -> content of every file but `SHA256SUMS` and its signature.
        digest: SHA-256 of `SHA256SUMS`: the identity of the whole.
        sums: the content of `SHA256SUMS`.
        signature: the content of `SHA256SUMS.sig`, or None where it has none; nothing here checks it (`edgebert.signing` does).
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    digest: str
    sums: bytes
    signature: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files but `SHA256SUMS` and its signature."""
        return sum(len(content) for content in self.files.values())

    def form_files(self, form: BundleForm) -> dict[str, bytes]:
        """Return a form's files by the names the runners expect: the last part of each."""
        return {name.rpartition("/")[2]: self.files[name] for name in form.files}

    def all_files(self) -> dict[str, bytes]:
        """Return everything that lies in it, `SHA256SUMS` and its signature included."""
        signed = {} if self.signature is None else {SIGNATURE_FILE: self.signature}
        return {**self.files, SUMS_FILE: self.sums, **signed}


def read_bundle(path: Path, *, check_sums: SumsCheck | None = None) -> Bundle:
    """Read and verify a bundle; no model parser is called, and the manifest's only on bytes whose hash is right.

    Args:
        path: a folder, or a `.zip` of `edgebert.archive.write_archive`'s.
        check_sums: called with the contents of `SHA256SUMS` and `SHA256SUMS.sig` (None where there is none) before either is
            parsed or another file is read; what it raises is passed on. Signatures are checked here, so that nothing
            unsigned meets a parser.

    Raises:
        NoSuchBundleError: there is nothing at `path`.
        MalformedBundleError: it is no bundle, or its manifest (rightly hashed) is malformed or contradicts itself.
        RefusedBundleError: a file is missing, extra, changed or no plain file; the message names it.
        UnreadableBundleError: the system does not let it be read, which says nothing against it.
        MemoryExhaustedError: it does not fit into memory.
    """
    with _opened(path) as source:
        signature = source.read(SIGNATURE_FILE, MAX_SIGNATURE_BYTES) if SIGNATURE_FILE in source.sizes else None
        sums_bytes = source.read(SUMS_FILE, _MAX_SUMS_BYTES)
        if check_sums is not None:
            check_sums(sums_bytes, signature)
        sums = _parse_sums(path, sums_bytes)
        _check_listed(path, sums, source)
        manifest_bytes = source.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
        _check_hash(path, MANIFEST_FILE, manifest_bytes, sums)
        manifest = _parse_manifest(path, manifest_bytes, set(sums))
        _check_sizes(path, manifest, source.sizes)
        files: dict[str, bytes] = {}
        for name in sums:
            files[name] = manifest_bytes if name == MANIFEST_FILE else source.read(name, manifest.sizes[name])
            _check_hash(path, name, files[name], sums)
            if name != MANIFEST_FILE and len(files[name]) != manifest.sizes[name]:
                raise _contradicted(path, name, manifest.sizes[name], len(files[name]))
    _check_recorded(path, manifest, sums)
    digest = hashlib.sha256(sums_bytes).hexdigest()
    return Bundle(path=path, manifest=manifest, files=files, digest=digest, sums=sums_bytes, signature=signature)


def check_whole(path: Path, digest: str) -> None:
    """Check that a folder holds every file of a bundle, unchanged, a piece at a time: it may be larger than memory.

    Raises:
        BundleError: as `read_bundle` does, but of the manifest only the hash is looked at; also where it holds another bundle.
        MemoryExhaustedError: there is no memory for a piece.
    """
    with _opened(path) as source:
        sums_bytes = source.read(SUMS_FILE, _MAX_SUMS_BYTES)
        if hashlib.sha256(sums_bytes).hexdigest() != digest:
            raise _refused(
                path, f"`{SUMS_FILE}` was changed, or is another bundle's", expected=f"the bundle {digest[:12]}"
            )
        sums = _parse_sums(path, sums_bytes)
        _check_listed(path, sums, source)
        for name in sums:
            if source.sha256(name) != sums[name]:
                raise _changed(path, name)


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Write a bundle's files into an empty folder and return its digest.

    Args:
        folder: an existing folder, normally a staging one (`edgebert._files.staged_folder`).
        manifest: its `sizes` must be those of `files`.
        files: everything but `manifest.json` and `SHA256SUMS`.
    """
    assert {name: len(content) for name, content in files.items()} == dict(manifest.sizes)
    everything = {**files, MANIFEST_FILE: dump_json(manifest.to_json()).encode()}
    for name, content in everything.items():
        assert _is_portable(name), name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    sums = _sums_text({name: hashlib.sha256(content).hexdigest() for name, content in everything.items()})
    (folder / SUMS_FILE).write_bytes(sums)
    return hashlib.sha256(sums).hexdigest()


class _Source(Protocol):
    """Where a bundle's files come from: what lies there, and the content of each."""

    sizes: Mapping[str, int]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content, or refuse one of more than `limit` bytes."""
        ...

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's content."""
        ...


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Open a folder or an archive; whatever the system says of it becomes a `BundleError`."""
    mode = _mode_of(path)
    try:
        if stat.S_ISDIR(mode):
            yield _Folder(path)
        elif path.suffix == ARCHIVE_SUFFIX and stat.S_ISREG(mode):
            with open_archive(path) as archive:
                if SUMS_FILE not in archive.sizes:
                    raise MalformedBundleError(
                        f"`{path}` is no bundle", expected=f"`{SUMS_FILE}` in it", hint=_MAKE_ONE
                    )
                yield archive
        else:
            kind = "a file" if stat.S_ISREG(mode) else "no plain file"
            expected = "a bundle: a folder `NAME.edgebert`, or a `.zip` of one"
            raise MalformedBundleError(f"`{path}` is {kind}", expected=expected, hint=_MAKE_ONE)
    except OSError as error:
        raise _unopened(path, error) from error
    except MemoryError as error:
        raise _no_memory(path) from error


def _mode_of(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchBundleError(
            f"no such bundle: `{path}`", expected="a folder `NAME.edgebert`, or a `.zip` of one", hint=_MAKE_ONE
        ) from error
    except OSError as error:
        raise _unopened(path, error) from error
    except ValueError as error:  # a NUL in the name
        raise NoSuchBundleError(f"no such bundle: `{shown(str(path))}` ({error})", hint=_MAKE_ONE) from error


def _is_there(path: Path) -> bool:
    """Say whether a name is there; unlike `lexists` it does not take what cannot be looked at for missing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class _Folder:
    """The files of a folder: only plain ones, and none is read through a link."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sizes: Mapping[str, int] = {}
        found = [name for name in (SUMS_FILE, MANIFEST_FILE) if _is_there(path / name)]
        if not found:
            raise MalformedBundleError(
                f"`{path}` is no bundle",
                expected=f"a folder with `{SUMS_FILE}`",
                hint=_MAKE_ONE,
            )
        if SUMS_FILE not in found:
            raise _refused(path, f"`{SUMS_FILE}` is missing")
        self.sizes = dict(self._walk())

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Yield name and size of every file and empty folder; refuse links, devices and depths that no bundle has."""
        waiting = [""]
        left = _MAX_LISTED
        while waiting:
            prefix = waiting.pop()
            entries = self._entries(prefix, left)
            left -= len(entries)
            if left < 0:
                raise _refused(self._path, f"it holds more than {_MAX_LISTED} names", f"at most {MAX_FILES} files")
            if prefix and not entries:
                yield prefix, 0  # an empty folder: no name of a file ends in a slash, so it is a stranger
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    raise _refused(self._path, f"`{shown(name)}` is a symbolic link", "plain files")
                if entry.is_dir(follow_symlinks=False):
                    if not _is_portable(name) or name.count("/") >= _MAX_DEPTH - 1:
                        raise _stranger(self._path, name)
                    waiting.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield name, entry.stat(follow_symlinks=False).st_size
                else:
                    raise _refused(self._path, f"`{shown(name)}` is no plain file")

    def _entries(self, prefix: str, most: int) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._path / prefix) as entries:
                return sorted(itertools.islice(entries, most + 1), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(self._path, f"`{prefix or self._path}`", error) from error

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content; never follows a link, never waits for a FIFO, never reads more than `limit`."""
        with self._stream(name) as stream:
            # Of a file that grows meanwhile one byte too many is read, and it is refused.
            content = stream.read(min(os.fstat(stream.fileno()).st_size, limit) + 1)
        if len(content) > limit:
            raise _refused(self._path, f"`{name}` is too large", expected=f"at most {limit:,} bytes")
        return content

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's content, of which a piece at a time is in memory."""
        digest, left = hashlib.sha256(), self.sizes[name] + 1  # of a file that grows for ever one byte too many
        with self._stream(name) as stream:
            while left > 0 and (piece := stream.read(min(_CHUNK, left))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()

    @contextmanager
    def _stream(self, name: str) -> Iterator[BinaryIO]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(self._path / name, flags), "rb") as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise _refused(self._path, f"`{name}` is no plain file")
                yield stream
        except OSError as error:
            raise _unreadable(self._path, f"`{name}`", error) from error


def _parse_sums(path: Path, content: bytes) -> dict[str, str]:
    """Return name -> SHA-256, refusing every text but the one `write_bundle` writes for these entries."""
    sums: dict[str, str] = {}
    for line in content.split(b"\n")[:-1]:
        found = _LINE.fullmatch(line)
        if found is None:
            raise _refused(path, f"`{SUMS_FILE}` was changed: it holds the line {line[:100]!r}")
        sums[found[2].decode("ascii", "replace")] = found[1].decode("ascii")
    for name in sums:
        if not _is_portable(name):
            raise _refused(path, f"`{SUMS_FILE}` names `{shown(name)}`", expected="plain relative names")
    folders = {parent for name in sums for parent in _folders_of(name)}
    if folders & set(sums):
        raise _refused(path, f"`{SUMS_FILE}` names `{min(folders & set(sums))}` as a file and as a folder")
    if len({name.casefold() for name in sums}) != len(sums) or _sums_text(sums) != content:
        raise _refused(path, f"`{SUMS_FILE}` was changed: it is not sorted, or names a file twice")
    if len(sums) > MAX_FILES:
        raise _refused(path, f"`{SUMS_FILE}` lists {len(sums)} files", expected=f"at most {MAX_FILES}")
    if MANIFEST_FILE not in sums:
        raise _refused(path, f"`{SUMS_FILE}` does not list `{MANIFEST_FILE}`")
    return sums


def _sums_text(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode("ascii", "replace")


def _is_portable(name: str) -> bool:
    parts = name.split("/")
    plain = all(_NAME.fullmatch(part) and not _DEVICE.fullmatch(part) for part in parts)
    return plain and len(parts) <= _MAX_DEPTH and name not in (SUMS_FILE, SIGNATURE_FILE)


def _folders_of(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _check_listed(path: Path, sums: Mapping[str, str], source: _Source) -> None:
    """Compare what lies there with what is listed, before any of it is read."""
    missing = sorted(set(sums) - set(source.sizes))
    if missing:
        raise _refused(path, f"`{missing[0]}` is missing")
    odd = sorted(set(source.sizes) - set(sums) - {SUMS_FILE, SIGNATURE_FILE})
    if odd:
        raise _stranger(path, odd[0])
    largest = max(sums, key=lambda name: source.sizes[name])
    if sum(source.sizes[name] for name in sums) > MAX_BUNDLE_BYTES or source.sizes[largest] > MAX_FILE_BYTES:
        raise _refused(
            path,
            f"it is too large (`{largest}`: {source.sizes[largest]:,} bytes)",
            expected=f"at most {MAX_FILE_BYTES:,} bytes a file, {MAX_BUNDLE_BYTES:,} in all",
        )


def _check_hash(path: Path, name: str, content: bytes, sums: Mapping[str, str]) -> None:
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise _changed(path, name)


def _parse_manifest(path: Path, content: bytes, listed: set[str]) -> Manifest:
    """Parse a manifest whose hash was found right; its sizes are of exactly the files that are listed."""
    what = f"`{MANIFEST_FILE}` of `{path}`"
    try:
        value = parse_json_object(
            content,
            what=what,
            max_bytes=MAX_MANIFEST_BYTES,
            max_values=MAX_MANIFEST_VALUES,
            only_plain_texts=True,
        )
        manifest = Manifest.from_json(value, what=what)
    except BadDataError as error:
        said = error.what if MANIFEST_FILE in error.what else f"{what}: {error.what}"
        expected = error.expected and error.expected[:_MAX_SAID]
        raise MalformedBundleError(said[:_MAX_SAID], expected=expected, hint=error.hint) from error
    odd = sorted((listed - {MANIFEST_FILE}) ^ set(manifest.sizes))
    if odd:
        raise MalformedBundleError(
            f"{what} and `{SUMS_FILE}`: only one of them names `{shown(odd[0])}`", expected="the same files in both"
        )
    if manifest.card.preprocessing.sha256() != manifest.preprocessing_sha256:
        raise _refused(
            path,
            f"the preprocessing in `{MANIFEST_FILE}` was changed after the canaries were recorded",
            expected=f"the rule with SHA-256 {shown(manifest.preprocessing_sha256, 64)}",
        )
    return manifest


def _check_sizes(path: Path, manifest: Manifest, found: Mapping[str, int]) -> None:
    """Refuse a file that is larger than declared, unread; one that is smaller is left to its hash."""
    for name, size in manifest.sizes.items():
        if found[name] > size:
            raise _refused(
                path,
                f"`{name}` has {found[name]:,} bytes, and `{MANIFEST_FILE}` declares {size:,}",
                expected="the declared size",
            )


def _check_recorded(path: Path, manifest: Manifest, sums: Mapping[str, str]) -> None:
    """Refuse a bundle in which something was changed since its canaries were answered, and everything hashed anew."""
    if not manifest.recorded_with:
        return  # made before manifests said so
    now = recorded_with(manifest.card, {name: sums[name] for name in manifest.sizes})
    odd = sorted(name for name in {*now, *manifest.recorded_with} if now.get(name) != manifest.recorded_with.get(name))
    if odd:
        raise RefusedBundleError(
            f"bundle `{path}` is refused: `{shown(odd[0])}` was changed after the canaries were recorded",
            expected="the class names, rules and files that its self-test was recorded with",
            hint="compile the graph again: a bundle is not edited",
        )


def _contradicted(path: Path, name: str, declared: int, found: int) -> MalformedBundleError:
    return MalformedBundleError(
        f"`{MANIFEST_FILE}` of `{path}` says that `{name}` has {declared:,} bytes", expected=f"{found:,}"
    )


def _changed(path: Path, name: str) -> RefusedBundleError:
    return _refused(path, f"`{name}` was changed: its SHA-256 is not the one in `{SUMS_FILE}`")


def _unopened(path: Path, error: OSError) -> EdgebertError:
    if error.errno in _NOT_A_FILE:
        return NoSuchBundleError(f"bundle `{path}` cannot be read: {error.strerror}", hint=_MAKE_ONE)
    return _unreadable(path, f"bundle `{path}`", error)


def _unreadable(path: Path, what: str, error: OSError) -> EdgebertError:
    """Tell a bundle that is not what it must be from a computer that does not let it be read."""
    if error.errno == errno.ENOMEM:
        return _no_memory(path)
    if error.errno in _NOT_A_FILE:
        return _refused(path, f"{what} cannot be read: {error.strerror}")
    named = what if str(path) in what else f"bundle `{path}`: {what}"
    return UnreadableBundleError(
        f"{named} cannot be read: {error.strerror or error}",
        expected="a bundle that this user may read, on a disk without errors",
        hint=f"ls -l {shlex.quote(str(path))}; dmesg | tail",
    )


def _no_memory(path: Path) -> MemoryExhaustedError:
    return MemoryExhaustedError(
        f"bundle `{path}` does not fit into this computer's memory ({os.strerror(errno.ENOMEM)})",
        expected="as much free memory as it has bytes",
        hint="free some memory, or compile a smaller graph",
    )


def _stranger(path: Path, name: str) -> RefusedBundleError:
    return _refused(path, f"`{shown(name)}` does not belong to it", expected=f"only what `{SUMS_FILE}` lists")


def _refused(path: Path, what: str, expected: str | None = None) -> RefusedBundleError:
    return RefusedBundleError(
        f"bundle `{path}` is refused: {what}", expected=expected, hint="copy it again from where it was made"
    )
