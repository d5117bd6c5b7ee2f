"""The corpus of hostile bundles: a table of makers, each of which writes one bundle that must be refused.

    CORPUS                            name -> maker
    CORPUS[name](scratch)             writes it below `scratch`, returns the path to open

Every change of contents comes in both forms, as a folder and as a `.zip`; what only one form can do comes in that one. `scratch`
gets an `outside/` folder too, which nothing may touch: hostile paths and links lead there. Shared by tests/test_bundle_hostile.py
and benchmarks/hostile_bundles.py; needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SEED = Path(__file__).parent / "bundles" / "0.1.0" / "single.edgebert"

Files = dict[str, bytes]
Maker = Callable[[Path], Path]


def seed_files() -> Files:
    """Return the files of the good bundle that every hostile one is made from."""
    return {file.relative_to(SEED).as_posix(): file.read_bytes() for file in SEED.rglob("*") if file.is_file()}


def rehashed(files: Files) -> Files:
    """Return the files with SHA256SUMS written anew, as somebody would who knows the format."""
    names = sorted(name for name in files if name not in ("SHA256SUMS", "SHA256SUMS.sig"))
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in names]
    return {**files, "SHA256SUMS": "".join(lines).encode()}


def write_folder(files: Files, folder: Path) -> Path:
    """Write files into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def outside(scratch: Path) -> Path:
    """Return a folder beside the bundles, with files that nothing may touch."""
    folder = scratch / "outside"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("secret", "model.onnx", "manifest.json"):
        (folder / name).write_bytes(seed_files().get(name, b"secret"))
    return folder


# Zip files, with every field open to lies


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a zip file. What is None is what an honest writer would say."""

    name: bytes
    content: bytes = b""
    stored: bytes | None = None  # what lies in the file
    local_name: bytes | None = None
    method: int = 0
    flags: int = 0
    version: int = 10
    made_by: int = 3 << 8 | 10
    date: int = 0x21
    crc: int | None = None
    size: int | None = None
    stored_size: int | None = None
    local_size: int | None = None
    mode: int = 0o100644 << 16
    extra: bytes = b""
    local_extra: bytes = b""
    comment: bytes = b""
    disk: int = 0
    offset: int | None = None
    gap: bytes = b""  # before its local header


@dataclass(frozen=True, slots=True, kw_only=True)
class Zip:
    """A zip file."""

    entries: tuple[Entry, ...]
    prepended: bytes = b""
    between: bytes = b""  # files and directory
    behind_directory: bytes = b""
    appended: bytes = b""
    comment: bytes = b""
    count: int | None = None
    directory_size: int | None = None
    directory_offset: int | None = None
    disk: int = 0
    cut: int | None = None

    def content(self) -> bytes:
        """Return the bytes of the file."""
        body = self.prepended
        directory = b""
        for entry in self.entries:
            body += entry.gap
            stored = entry.content if entry.stored is None else entry.stored
            crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
            size = len(entry.content) if entry.size is None else entry.size
            stored_size = len(stored) if entry.stored_size is None else entry.stored_size
            offset = len(body) if entry.offset is None else entry.offset
            local_name = entry.name if entry.local_name is None else entry.local_name
            local_size = size if entry.local_size is None else entry.local_size
            common = (entry.version, entry.flags, entry.method, 0, entry.date, crc)
            body += struct.pack(
                "<4s5H3L2H", b"PK\x03\x04", *common, stored_size, local_size, len(local_name), len(entry.local_extra)
            )
            body += local_name + entry.local_extra + stored
            directory += struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                entry.made_by,
                *common,
                stored_size,
                size,
                len(entry.name),
                len(entry.extra),
                len(entry.comment),
                entry.disk,
                0,
                entry.mode,
                offset,
            )
            directory += entry.name + entry.extra + entry.comment
        body += self.between
        start = len(body) if self.directory_offset is None else self.directory_offset
        count = len(self.entries) if self.count is None else self.count
        length = len(directory) if self.directory_size is None else self.directory_size
        end = struct.pack(
            "<4s4H2LH",
            b"PK\x05\x06",
            self.disk,
            self.disk,
            count & 0xFFFF,
            count & 0xFFFF,
            length,
            start,
            len(self.comment),
        )
        whole = body + directory + self.behind_directory + end + self.comment + self.appended
        return whole[: self.cut]


def honest_zip(files: Files | None = None) -> Zip:
    """Return the archive that `edgebert pack` writes of these files."""
    chosen = seed_files() if files is None else files
    return Zip(entries=tuple(Entry(name=name.encode(), content=chosen[name]) for name in sorted(chosen)))


def with_entry(name: str, **changes: Any) -> Zip:
    """Return the honest archive with one entry changed."""
    whole = honest_zip()
    entries = [replace(entry, **changes) if entry.name == name.encode() else entry for entry in whole.entries]
    return replace(whole, entries=tuple(entries))


def with_extra_entry(entry: Entry) -> Zip:
    """Return the honest archive with one more entry, in its place."""
    whole = honest_zip()
    return replace(whole, entries=tuple(sorted((*whole.entries, entry), key=lambda each: each.name)))


# The table

CORPUS: dict[str, Maker] = {}


def _add(name: str, maker: Maker) -> None:
    assert name not in CORPUS, name
    CORPUS[name] = maker


def _both(name: str, change: Callable[[Files], Files]) -> None:
    """Add a change of contents in both forms."""

    def folder(scratch: Path) -> Path:
        return write_folder(change(seed_files()), scratch / "hostile.edgebert")

    def archive(scratch: Path) -> Path:
        (scratch / "hostile.zip").write_bytes(honest_zip(change(seed_files())).content())
        return scratch / "hostile.zip"

    _add(f"folder: {name}", folder)
    _add(f"zip: {name}", archive)


def _sums(name: str, change: Callable[[bytes], bytes]) -> None:
    _both(f"sums, {name}", lambda files: {**files, "SHA256SUMS": change(files["SHA256SUMS"])})


def _listed(name: str, entry: str) -> None:
    """Add a bundle whose SHA256SUMS names one file more, in its place."""

    def change(content: bytes) -> bytes:
        lines = [*content.splitlines(keepends=True), b"0" * 64 + b"  " + os.fsencode(entry) + b"\n"]
        ordered: list[bytes] = sorted(lines, key=lambda line: line[66:])
        return b"".join(ordered)

    _sums(f"lists {name}", change)


def _raw(name: str, content: bytes | Callable[[bytes], bytes]) -> None:
    """Add a bundle with another manifest, rightly hashed."""

    def change(files: Files) -> Files:
        manifest = files["manifest.json"]
        return rehashed({**files, "manifest.json": content if isinstance(content, bytes) else content(manifest)})

    _both(f"manifest, {name}", change)


def _manifest(name: str, change: Callable[[Any], object]) -> None:
    """Add a bundle whose parsed manifest was changed, rightly hashed."""

    def edited(content: bytes) -> bytes:
        manifest = json.loads(content)
        change(manifest)
        return json.dumps(manifest).encode()

    _raw(name, edited)


def _zip(name: str, made: Callable[[], Zip]) -> None:
    def maker(scratch: Path) -> Path:
        outside(scratch)
        (scratch / "hostile.zip").write_bytes(made().content())
        return scratch / "hostile.zip"

    _add(f"zip: {name}", maker)


def _folder(name: str, change: Callable[[Path, Path], object]) -> None:
    """Add a folder that `change(bundle, outside)` spoils."""

    def maker(scratch: Path) -> Path:
        bundle = write_folder(seed_files(), scratch / "hostile.edgebert")
        change(bundle, outside(scratch))
        return bundle

    _add(f"folder: {name}", maker)


def _without(files: Files, name: str) -> Files:
    return {each: content for each, content in files.items() if each != name}


# Damage

_both("a changed model", lambda files: {**files, "model.onnx": files["model.onnx"][:-1] + b"\xff"})
_both("a cut model", lambda files: {**files, "model.onnx": files["model.onnx"][:-1]})
_both("a longer model", lambda files: {**files, "model.onnx": files["model.onnx"] + b"\0"})
_both("an empty model", lambda files: {**files, "model.onnx": b""})
_both("weights of another form", lambda files: {**files, "forms/intel-cpu/model.bin": b"\0" * 3132})
_both(
    "swapped canaries",
    lambda files: {**files, "canary/0.png": files["canary/1.png"], "canary/1.png": files["canary/0.png"]},
)
_both("a missing model", lambda files: _without(files, "model.onnx"))
_both("a missing manifest", lambda files: _without(files, "manifest.json"))
_both("a missing SHA256SUMS", lambda files: _without(files, "SHA256SUMS"))
_both("an extra file", lambda files: {**files, "notes.txt": b"x"})
_both("an extra canary", lambda files: {**files, "canary/9.png": files["canary/0.png"]})
_both("an extra library", lambda files: {**files, "forms/cpu/plugin.so": b"\x7fELF"})
_both("an extra file, hashed but not in the manifest", lambda files: rehashed({**files, "plugin.so": b"\x7fELF"}))
_both("a signature of 65 KiB", lambda files: {**files, "SHA256SUMS.sig": b"x" * (65 << 10)})
_both("a signature in a folder", lambda files: {**files, "canary/SHA256SUMS.sig": b"x"})
_both("64 files more", lambda files: rehashed({**files, **{f"canary/x{n}.png": b"" for n in range(64)}}))

# SHA256SUMS

_sums("empty", lambda content: b"")
_sums("one byte", lambda content: b"\n")
_sums("without its last line feed", lambda content: content[:-1])
_sums("with carriage returns", lambda content: content.replace(b"\n", b"\r\n"))
_sums("with capital digits", lambda content: content.replace(content[:64], content[:64].upper()))
_sums("out of order", lambda content: b"".join(reversed(content.splitlines(keepends=True))))
_sums("a line twice", lambda content: content.splitlines(keepends=True)[0] + content)
_sums("binary mode", lambda content: content.replace(b"  ", b" *"))
_sums("with a comment", lambda content: b"# comment\n" + content)
_sums("a megabyte", lambda content: content * 1600)
_sums(
    "without the manifest",
    lambda content: b"".join(line for line in content.splitlines(keepends=True) if b"manifest" not in line),
)
_sums("not ASCII", lambda content: content.replace(b"model.onnx", b"mod\xe9l.onnx"))
_sums("with a NUL", lambda content: content.replace(b"model.onnx", b"model\0onnx"))
for _name, _entry in {
    "a path upwards": "../outside/secret",
    "a path upwards from within": "canary/../../outside/secret",
    "an absolute path": "/etc/passwd",
    "a drive": "C:/secret",
    "a drive without a slash": "C:secret",
    "a backslash": "canary\\secret",
    "a UNC path": "\\\\host\\secret",
    "a dot": "./model.onnx",
    "an empty part": "canary//0.png",
    "a trailing slash": "canary/",
    "a trailing dot": "model.onnx.",
    "a trailing space": "model.onnx ",
    "a leading dash": "-rf",
    "a hidden file": ".bashrc",
    "a device of Windows": "aux.png",
    "a stream of Windows": "model.onnx:stream",
    "a name of 101 characters": "x" * 101,
    "four levels": "a/b/c/d",
    "a name that differs in case only": "MODEL.onnx",
    "a name in other digits": "model\uff0eonnx",
    "a file that is a folder too": "canary",
    "itself": "SHA256SUMS",
    "its signature": "SHA256SUMS.sig",
    "a home": "~/secret",
    "a variable": "$HOME",
}.items():
    _listed(_name, _entry)

# The manifest: JSON

_raw("empty", b"")
_raw("NUL bytes", b"\0" * 100)
_raw("a list", b"[]")
_raw("cut", lambda content: content[:-3])
_raw("two objects", lambda content: content * 2)
_raw("not UTF-8", lambda content: content.replace(b"bolt", b"b\xfflt"))
_raw("UTF-16", lambda content: content.decode().encode("utf-16"))
_raw("a byte order mark", lambda content: b"\xef\xbb\xbf" + content)
_raw("a key twice", lambda content: content.replace(b'{\n "', b'{\n "name": "x",\n "', 1))
_raw("an inner key twice", lambda content: content.replace(b'"resize"', b'"resize": "crop", "resize"', 1))
_raw("NaN", lambda content: content.replace(b'"measured": {}', b'"measured": {"x": NaN}'))
_raw("infinity", lambda content: content.replace(b'"measured": {}', b'"measured": {"x": -Infinity}'))
_raw("1e999", lambda content: content.replace(b'"measured": {}', b'"measured": {"x": 1e999}'))
_raw(
    "an integer of 100,000 digits",
    lambda content: content.replace(b'"measured": {}', b'"measured": {"x": ' + b"9" * 100_000 + b"}"),
)
_raw(
    "a fraction of a million digits",
    lambda content: content.replace(b'"measured": {}', b'"measured": {"x": 0.' + b"7" * 10**6 + b"}"),
)
_raw("a lone surrogate", lambda content: content.replace(b'"bolt"', b'"b\\ud800lt"'))
_raw(
    "17 levels", lambda content: content.replace(b'"measured": {}', b'"measured": ' + b'{"x": ' * 17 + b"1" + b"}" * 17)
)
_raw(
    "a thousand levels",
    lambda content: content.replace(b'"measured": {}', b'"measured": ' + b'{"x": ' * 1000 + b"1" + b"}" * 1000),
)
_raw("a million brackets", b"[" * 10**6)
_raw("a million open objects", b'{"a":' * 10**6)
_raw("15 MB of empty lists", b'{"a": [' + b"[]," * (5 << 20) + b"[]]}")
_raw("15 MB of empty objects", b'{"a": [' + b"{}," * (5 << 20) + b"{}]}")
_raw("17 MB of spaces", lambda content: content + b" " * (17 << 20))
_raw("a comment", lambda content: b"/* */" + content)
_raw("a Python literal", lambda content: content.replace(b'"measured": {}', b'"measured": None'))

# The manifest: what it says


def _canary(number: int, **changes: object) -> Callable[[Any], object]:
    return lambda manifest: manifest["canaries"][number].update(changes)


def _form(**changes: object) -> Callable[[Any], object]:
    return lambda manifest: manifest["forms"][0].update(changes)


def _card(**changes: object) -> Callable[[Any], object]:
    return lambda manifest: manifest["card"].update(changes)


_manifest("a newer schema", lambda manifest: manifest.update(schema="edgebert.bundle/2"))
_manifest("a schema of 400 digits", lambda manifest: manifest.update(schema="edgebert.bundle/" + "9" * 400))
_manifest("a schema in other digits", lambda manifest: manifest.update(schema="edgebert.bundle/\u0661"))
_manifest("an unknown requirement", lambda manifest: manifest.update(requires=["python-hook"]))
_manifest("a negative size", lambda manifest: manifest["sizes"].update({"model.onnx": -1}))
_manifest("a size of 10^39", lambda manifest: manifest["sizes"].update({"model.onnx": 10**39}))
_manifest("a smaller size", lambda manifest: manifest["sizes"].update({"model.onnx": 1}))
_manifest("a size as text", lambda manifest: manifest["sizes"].update({"model.onnx": "4116"}))
_manifest("a size of a path upwards", lambda manifest: manifest["sizes"].update({"../outside/secret": 6}))
_manifest("a canary outside", _canary(0, file="../outside/secret"))
_manifest("an absolute canary", _canary(0, file="/etc/passwd"))
_manifest("a form's file outside", _form(files=["../outside/model.onnx"]))
_manifest("a form's file that is a list", _form(files=[["model.onnx"]]))
_manifest("a shell as backend", _form(backend="shell"))
_manifest("a device with a path", _form(device="/dev/mem"))
_manifest("an optimisation that is code", _form(disabled_optimizers=["__import__('os')"]))
_manifest("an escape sequence in a class", _card(class_names=["\x1b[2J", "gear", "Mutter, groß", "washer"]))
_manifest("a line feed in a note", _form(notes=["fine\nrm -rf /"]))
_manifest("a NUL in its name", lambda manifest: manifest.update(name="a\0b"))
_manifest("text that turns direction", lambda manifest: manifest.update(name="good\u202edab"))
_manifest("a class twice", _card(class_names=["bolt", "bolt", "Mutter, groß", "washer"]))
_manifest("no classes", _card(class_names=[]))
_manifest("200,000 classes", _card(class_names=[str(number) for number in range(200_000)]))
_manifest("seen images that are no base64", _card(seen="***"))
_manifest("a tolerance of 1e300", _canary(0, tolerance={"onnxruntime": 1e300, "openvino": 1e300}))
_manifest("50,000 canaries", lambda manifest: manifest.update(canaries=manifest["canaries"][:1] * 50_000))
_manifest("50,000 forms", lambda manifest: manifest.update(forms=manifest["forms"][:1] * 50_000))
_manifest("a network of a billion pixels", lambda manifest: manifest["card"]["preprocessing"].update(height=10**9))
_manifest(
    "an edge of 10^9", lambda manifest: manifest["card"]["preprocessing"].update(resize="crop", shortest_edge=10**9)
)
_manifest("a rule that was changed", lambda manifest: manifest["card"]["preprocessing"].update(interpolation="nearest"))
_manifest("another filter, and its hash left out", lambda manifest: manifest.pop("preprocessing_sha256"))
_manifest("a message of ten megabytes", lambda manifest: manifest.update(precision="x" * (10 << 20)))
_manifest("trust_remote_code", lambda manifest: manifest.update(forms={"auto_map": "evil.py"}))

# Folders


def _replaced(name: str, made: Callable[[Path, Path], object]) -> Callable[[Path, Path], object]:
    def change(bundle: Path, secret: Path) -> None:
        target = bundle / name
        if target.is_dir():
            target.rename(secret / "moved")
        else:
            target.unlink()
        made(target, secret)

    return change


def _socket(target: Path, secret: Path) -> None:
    here = Path.cwd()
    os.chdir(target.parent)  # a socket's address has at most 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(target.name)
    finally:
        os.chdir(here)


def _sparse(name: str, size: int) -> Callable[[Path, Path], object]:
    return lambda bundle, secret: os.truncate(bundle / name, size)


def _names(count: int) -> Callable[[Path, Path], object]:
    def change(bundle: Path, secret: Path) -> None:
        for number in range(count):
            (bundle / "canary" / f"{number}.txt").touch()

    return change


def _deep(bundle: Path, secret: Path) -> None:
    (bundle / "/".join(["forms", *"abcdefgh"])).mkdir(parents=True)


for _target in ("model.onnx", "manifest.json", "SHA256SUMS", "canary/0.png"):
    _folder(f"a link at {_target}", _replaced(_target, lambda at, secret: at.symlink_to(secret / "secret")))
_folder("a relative link", _replaced("model.onnx", lambda at, secret: at.symlink_to("../outside/model.onnx")))
_folder("a link inside", _replaced("canary/1.png", lambda at, secret: at.symlink_to("0.png")))
_folder("a link to itself", _replaced("model.onnx", lambda at, secret: at.symlink_to("model.onnx")))
_folder("a link to a device", _replaced("model.onnx", lambda at, secret: at.symlink_to("/dev/zero")))
_folder("a link to nothing", _replaced("model.onnx", lambda at, secret: at.symlink_to("nothing")))
_folder("a folder that is a link", _replaced("canary", lambda at, secret: at.symlink_to(secret / "moved")))
_folder("a folder that is a link upwards", _replaced("canary", lambda at, secret: at.symlink_to("..")))
_folder("a FIFO", _replaced("model.onnx", lambda at, secret: os.mkfifo(at)))
_folder("a FIFO at SHA256SUMS", _replaced("SHA256SUMS", lambda at, secret: os.mkfifo(at)))
_folder("a FIFO at the signature", lambda bundle, secret: os.mkfifo(bundle / "SHA256SUMS.sig"))
_folder("a link at the signature", lambda bundle, secret: (bundle / "SHA256SUMS.sig").symlink_to(secret / "secret"))
_folder("a folder at the signature", lambda bundle, secret: (bundle / "SHA256SUMS.sig").mkdir())
_folder("a socket", _replaced("model.onnx", _socket))
_folder("a folder in a file's place", _replaced("model.onnx", lambda at, secret: at.mkdir()))
_folder("a file in a folder's place", _replaced("canary", lambda at, secret: at.write_bytes(b"")))
_folder("a hard link to another file", _replaced("model.onnx", lambda at, secret: at.hardlink_to(secret / "secret")))
_folder("a model of 3 GiB", _sparse("model.onnx", 3 << 30))
_folder("a model of 1 GiB", _sparse("model.onnx", 1 << 30))
_folder("a manifest of 1 GiB", _sparse("manifest.json", 1 << 30))
_folder("SHA256SUMS of 1 GiB", _sparse("SHA256SUMS", 1 << 30))
_folder("a canary of 1 GiB", _sparse("canary/0.png", 1 << 30))
_folder("10,000 names", _names(10_000))
_folder("an empty folder", lambda bundle, secret: (bundle / "hidden").mkdir())
_folder("nine levels", _deep)
_folder("a hidden file", lambda bundle, secret: (bundle / ".hidden").touch())
_folder("a name with a line feed", lambda bundle, secret: (bundle / "a\nb").touch())
_folder("a name with an escape sequence", lambda bundle, secret: (bundle / "\x1b[2J").touch())
_folder("a name that is no UTF-8", lambda bundle, secret: (bundle / os.fsdecode(b"caf\xe9")).touch())
_folder("a name of 255 bytes", lambda bundle, secret: (bundle / ("x" * 255)).touch())
_folder("a name that differs in case only", lambda bundle, secret: (bundle / "Model.onnx").touch())
_folder("a name with a backslash", lambda bundle, secret: (bundle / "..\\secret").touch())
_folder("a name of spaces", lambda bundle, secret: (bundle / "   ").touch())

# Zip files

_PNG = seed_files()["canary/0.png"]


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def _bomb() -> Zip:
    zeros = b"\0" * (64 << 20)
    return with_entry("model.onnx", content=zeros, stored=_deflated(zeros), method=8, version=20)


for _name, _called in {
    "a path upwards": b"../outside/secret",
    "an absolute path": b"/etc/passwd",
    "a drive": b"C:\\secret",
    "a backslash": b"canary\\x.png",
    "a NUL": b"model.onnx\0.png",
    "a dot": b"./x",
    "nothing as its name": b"",
    "a folder": b"canary/",
    "an escape sequence": b"\x1b[2J",
    "UTF-8": "canary/é.png".encode(),
    "no UTF-8": b"caf\xe9",
    "a name of 60,000 bytes": b"x" * 60_000,
    "a name that differs in case only": b"MODEL.onnx",
    "a device of Windows": b"con",
}.items():  # fmt: skip
    _zip(f"an entry called by {_name}", lambda name=_called: with_extra_entry(Entry(name=name, content=b"x")))  # type: ignore[misc]
_zip("an entry twice", lambda: with_extra_entry(Entry(name=b"model.onnx", content=b"x")))
_zip("an entry twice, alike", lambda: with_extra_entry(Entry(name=b"canary/0.png", content=_PNG)))
_zip("a symbolic link", lambda: with_entry("model.onnx", content=b"../outside/model.onnx", mode=0o120777 << 16))
_zip("a device", lambda: with_entry("model.onnx", mode=0o020666 << 16))
_zip("a FIFO", lambda: with_entry("model.onnx", mode=0o010644 << 16))
_zip("setuid", lambda: with_entry("model.onnx", mode=0o104755 << 16))
_zip("a folder's mode", lambda: with_entry("model.onnx", mode=0o040755 << 16 | 16))
_zip("a bomb", _bomb)
_zip(
    "deflate",
    lambda: with_entry("manifest.json", stored=_deflated(seed_files()["manifest.json"]), method=8, version=20),
)
_zip("a stored entry that says deflate", lambda: with_entry("manifest.json", method=8))
_zip("an unknown method", lambda: with_entry("manifest.json", method=99))
_zip("encrypted", lambda: with_entry("model.onnx", flags=1))
_zip("strongly encrypted", lambda: with_entry("model.onnx", flags=0x41))
_zip("a data descriptor", lambda: with_entry("model.onnx", flags=8))
_zip("the UTF-8 flag", lambda: with_entry("model.onnx", flags=0x800))
_zip("an extra field", lambda: with_entry("model.onnx", extra=b"UT\x05\0\x03\0\0\0\0"))
_zip("an extra field before the content", lambda: with_entry("model.onnx", local_extra=b"UT\x05\0\x03\0\0\0\0"))
_zip("a path in an extra field", lambda: with_entry("model.onnx", extra=b"up\x09\0\x01\0\0\0\0../x"))
_zip(
    "zip64 fields",
    lambda: with_entry("model.onnx", size=0xFFFFFFFF, stored_size=0xFFFFFFFF, extra=b"\x01\0\x10\0" + b"\0" * 16),
)
_zip("a comment of an entry", lambda: with_entry("model.onnx", comment=b"hello"))
_zip("another date", lambda: with_entry("model.onnx", date=0x5A21))
_zip("made on another system", lambda: with_entry("model.onnx", made_by=20))
_zip("another name before the content", lambda: with_entry("model.onnx", local_name=b"m0del.onnx"))
_zip("a path upwards before the content", lambda: with_entry("model.onnx", local_name=b"../ outside"))
_zip("another size before the content", lambda: with_entry("model.onnx", local_size=1))
_zip("a wrong CRC", lambda: with_entry("model.onnx", crc=0))
_zip("a size beyond the file", lambda: with_entry("model.onnx", size=1 << 31, stored_size=1 << 31))
_zip("a size that is too small", lambda: with_entry("model.onnx", size=1, stored_size=1))
_zip("an offset beyond the file", lambda: with_entry("model.onnx", offset=1 << 31))
_zip("an entry over another", lambda: with_entry("model.onnx", offset=0))
_zip("on another disk", lambda: with_entry("model.onnx", disk=1))
_zip("a gap between entries", lambda: with_entry("model.onnx", gap=b"MZ" * 100))
_zip("prepended", lambda: replace(honest_zip(), prepended=b"#!/bin/sh\n"))
_zip("prepended, offsets from its end", lambda: replace(honest_zip(), prepended=b"MZ", directory_offset=1))
_zip("appended", lambda: replace(honest_zip(), appended=b"\0"))
_zip("appended, another archive", lambda: replace(honest_zip(), appended=honest_zip({"x": b""}).content()))
_zip("behind the directory", lambda: replace(honest_zip(), behind_directory=b"x"))
_zip("between files and directory", lambda: replace(honest_zip(), between=b"x" * 1000))
_zip("a comment", lambda: replace(honest_zip(), comment=b"hello"))
_zip("a comment with an end record", lambda: replace(honest_zip(), comment=honest_zip({"x": b""}).content()[-22:]))
_zip("fewer entries said", lambda: replace(honest_zip(), count=1))
_zip("more entries said", lambda: replace(honest_zip(), count=60))
_zip("65,535 entries said", lambda: replace(honest_zip(), count=0xFFFF))
_zip("a directory beyond the file", lambda: replace(honest_zip(), directory_offset=1 << 31))
_zip("a directory of 4 GiB", lambda: replace(honest_zip(), directory_size=0xFFFFFFFF))
_zip("several disks", lambda: replace(honest_zip(), disk=1))
_zip("out of order", lambda: replace(honest_zip(), entries=honest_zip().entries[::-1]))
_zip("no entry", lambda: Zip(entries=()))
_zip("20,000 entries", lambda: Zip(entries=tuple(Entry(name=b"%05d" % number) for number in range(20_000))))
_zip(
    "the bundle's folder around it",
    lambda: honest_zip({f"single.edgebert/{name}": seed_files()[name] for name in seed_files()}),
)
for _cut in (0, 1, 21, 22, 100, -1, -22, -23, -400):
    _zip(f"cut at {_cut}", lambda cut=_cut: replace(honest_zip(), cut=cut))  # type: ignore[misc]


def _plain(name: str, content: bytes) -> None:
    def maker(scratch: Path) -> Path:
        (scratch / "hostile.zip").write_bytes(content)
        return scratch / "hostile.zip"

    _add(f"zip: {name}", maker)


_plain("not a zip file", b"hello")
_plain("zeros", b"\0" * (1 << 20))
_plain("end records only", honest_zip({"x": b""}).content()[-22:] * 1000)
_plain("a PNG", _PNG)


def _path(name: str, made: Callable[[Path], Path]) -> None:
    _add(f"path: {name}", made)


def _linked(scratch: Path, name: str, to: str) -> Path:
    (scratch / name).symlink_to(to)
    return scratch / name


def _made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


_path("nothing there", lambda scratch: scratch / "none.edgebert")
_path("below a file", lambda scratch: _made(scratch / "file", Path.touch) / "x.edgebert")
_path("a file", lambda scratch: _made(scratch / "file.edgebert", Path.touch))
_path("an empty folder", lambda scratch: _made(scratch / "empty.edgebert", Path.mkdir))
_path("a FIFO", lambda scratch: _made(scratch / "x.edgebert", os.mkfifo))
_path("a FIFO called zip", lambda scratch: _made(scratch / "x.zip", os.mkfifo))
_path("a link to itself", lambda scratch: _linked(scratch, "loop.edgebert", "loop.edgebert"))
_path("a link to a device", lambda scratch: _linked(scratch, "zero.zip", "/dev/zero"))
_path("a link to nothing", lambda scratch: _linked(scratch, "x.edgebert", "nothing"))
_path("a NUL in it", lambda scratch: scratch / "a\0b.edgebert")
_path("5,000 characters", lambda scratch: scratch / ("x" * 5_000))
_path("half a character", lambda scratch: scratch / "\ud800.edgebert")


def honest(scratch: Path) -> Mapping[str, Path]:
    """Write the good bundle in both forms: what must be accepted, or the corpus shows nothing."""
    (scratch / "good.zip").write_bytes(honest_zip().content())
    return {"folder": write_folder(seed_files(), scratch / "good.edgebert"), "zip": scratch / "good.zip"}
