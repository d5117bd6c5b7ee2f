"""The folder that ships: `NAME.edgebert/`, read once, hashed, and only then believed.

    SHA256SUMS      every other file: 64 hexadecimal digits, two spaces, the name; sorted; one line each
    manifest.json   see `edgebert.manifest`
    model.onnx      the portable graph
    forms/<target>/ what was compiled for each target
    canary/*.png    images whose answers are known

`read_bundle` returns the bytes whose hashes it checked, and everything later works on those bytes: what happens to the
folder after that changes nothing (reliability.md, faults 19 to 23). The hashes prove that nothing was damaged, swapped
or left behind; they do not say who made the bundle.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert._files import FolderKind
from edgebert._json import dump_json, parse_json_object
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError
from edgebert.manifest import GRAPH_FILE, BundleForm, Manifest

SUMS_FILE = "SHA256SUMS"
MANIFEST_FILE = "manifest.json"

# What `--force` may replace.
BUNDLE_FOLDER = FolderKind(
    marker=MANIFEST_FILE,
    schema="edgebert.bundle/",
    holds=(SUMS_FILE, MANIFEST_FILE, GRAPH_FILE, "forms", "canary"),
)

MAX_FILES = 64
MAX_FILE_BYTES = 2 << 30  # the most a graph can have: protobuf's limit
MAX_BUNDLE_BYTES = 4 << 30
_MAX_SUMS_BYTES = 64 << 10
_MAX_DEPTH = 3

# Names that mean the same on every system: no `..`, no backslash, no drive, no hidden file, no trailing dot.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]{1,300})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle in memory, verified.

    Attributes:
        path: where it was read from.
        manifest: what it says of itself.
        files: name -> content of every file but `SHA256SUMS`.
        digest: SHA-256 of `SHA256SUMS`: the identity of the whole.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all files but `SHA256SUMS`."""
        return sum(len(content) for content in self.files.values())

    def form_files(self, form: BundleForm) -> dict[str, bytes]:
        """Return a form's files by the names the runners expect: the last part of each."""
        return {name.rpartition("/")[2]: self.files[name] for name in form.files}


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle; no model parser is called.

    Raises:
        InputNotFoundError: there is nothing at `path`.
        BadDataError: it is no bundle, or its manifest (rightly hashed) is malformed or contradicts itself.
        RefusedError: a file is missing, extra, changed or no plain file; the message names it.
    """
    _check_is_bundle(path)
    sums_bytes = _read_plain_file(path, SUMS_FILE, _MAX_SUMS_BYTES)
    sums = _parse_sums(path, sums_bytes)
    _check_names(path, set(sums))
    files: dict[str, bytes] = {}
    left = MAX_BUNDLE_BYTES
    for name, expected in sums.items():
        files[name] = _read_plain_file(path, name, min(left, MAX_FILE_BYTES))
        left -= len(files[name])
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise _refused(path, f"`{name}` was changed: its SHA-256 is not the one in `{SUMS_FILE}`")
    manifest = _parse_manifest(path, files)
    return Bundle(path=path, manifest=manifest, files=files, digest=hashlib.sha256(sums_bytes).hexdigest())


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


def _check_is_bundle(path: Path) -> None:
    hint = "edgebert compile GRAPH --target cpu -o NAME.edgebert"
    if not path.exists():
        raise InputNotFoundError(f"no such bundle: `{path}`", expected="a folder `NAME.edgebert`", hint=hint)
    if not path.is_dir():
        raise BadDataError(f"`{path}` is a file", expected="a bundle: a folder `NAME.edgebert`", hint=hint)
    found = [name for name in (SUMS_FILE, MANIFEST_FILE) if os.path.lexists(path / name)]
    if not found:
        raise BadDataError(f"`{path}` is no bundle", expected=f"a folder with `{SUMS_FILE}`", hint=hint)
    if SUMS_FILE not in found:
        raise _refused(path, f"`{SUMS_FILE}` is missing")


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
            raise _refused(path, f"`{SUMS_FILE}` names `{name:.100}`", expected="plain relative names")
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
    return len(parts) <= _MAX_DEPTH and all(_NAME.fullmatch(part) for part in parts) and name != SUMS_FILE


def _check_names(path: Path, listed: set[str]) -> None:
    """Compare what lies in the folder with what is listed; folders count, so that none can hide anything."""
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents} - {"."}
    found: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(path, prefix):
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                raise _refused(path, f"`{name}` is a symbolic link", expected="plain files")
            if entry.is_dir(follow_symlinks=False) and name in folders:
                waiting.append(f"{name}/")
            elif name in listed and entry.is_file(follow_symlinks=False):
                found.add(name)
            elif name != SUMS_FILE:
                raise _refused(path, f"`{name}` does not belong to it", expected=f"only what `{SUMS_FILE}` lists")
    missing = sorted(listed - found)
    if missing:
        raise _refused(path, f"`{missing[0]}` is missing")


def _entries(path: Path, prefix: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path / prefix) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _refused(path, f"`{prefix or path}` cannot be listed: {error.strerror}") from error


def _read_plain_file(path: Path, name: str, limit: int) -> bytes:
    """Return a file's content; never follows a link, never waits for a FIFO, never reads more than `limit`."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path / name, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _refused(path, f"`{name}` is no plain file")
            content = stream.read(limit + 1) if status.st_size <= limit else None
    except OSError as error:
        raise _refused(path, f"`{name}` cannot be read: {error.strerror}") from error
    if content is None or len(content) > limit:
        raise _refused(path, f"`{name}` is too large", expected=f"at most {limit:,} bytes")
    return content


def _parse_manifest(path: Path, files: Mapping[str, bytes]) -> Manifest:
    what = f"`{MANIFEST_FILE}` of `{path}`"
    try:
        manifest = Manifest.from_json(parse_json_object(files[MANIFEST_FILE], what=what), what=what)
    except BadDataError as error:
        if MANIFEST_FILE in error.what:
            raise
        raise BadDataError(f"{what}: {error.what}", expected=error.expected, hint=error.hint) from error
    sizes = {name: len(content) for name, content in files.items() if name != MANIFEST_FILE}
    for name in sorted(set(sizes) | set(manifest.sizes)):
        if sizes.get(name) != manifest.sizes.get(name):
            raise BadDataError(
                f"{what} says that `{name:.100}` has {manifest.sizes.get(name)} bytes", expected=str(sizes.get(name))
            )
    assert GRAPH_FILE in sizes  # the manifest counts it among its files
    if manifest.card.preprocessing.sha256() != manifest.preprocessing_sha256:
        raise _refused(
            path,
            f"the preprocessing in `{MANIFEST_FILE}` was changed after the canaries were recorded",
            expected=f"the rule with SHA-256 {manifest.preprocessing_sha256:.64}",
        )
    return manifest


def _refused(path: Path, what: str, expected: str | None = None) -> RefusedError:
    return RefusedError(
        f"bundle `{path}` is refused: {what}", expected=expected, hint="copy it again from where it was made"
    )
