"""Which wheels of numpy and Pillow a host may bring to a device: the table, and which lines of it a device needs.

What a device says of itself picks lines of `wheel_pins.json` and nothing else: versions, file names, sizes and SHA-256 are the table's
own, made by `benchmarks/wheel_pins.py`. Numpy is 1.26 for Python 3.10 to 3.12, whatever the device's backends were compiled with:
the bindings and wheels of JetPack 6 know no numpy 2 (docs/remote.md).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from edgebert._console import printable
from edgebert._json import Fields
from edgebert.errors import UnavailableError
from edgebert.extras import DISTRIBUTIONS, FLOORS, below_floor

if TYPE_CHECKING:
    from edgebert.remote.agent import Device

TABLE = "wheel_pins.json"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHITECTURES = ("aarch64", "x86_64")

# Module -> what is imported of it to see that it works; `import PIL` alone would not load its compiled part.
IMPORTED = {"numpy": "numpy", "PIL": "PIL.Image"}

# What the device's Python loads compiled modules of: `.cpython-310-aarch64-linux-gnu.so`. A free-threaded or debug build, PyPy, musl and
# a 32-bit Python on a 64-bit kernel all say something else.
_SUFFIX = re.compile(r"\.cpython-3(\d{1,2})-(aarch64|x86_64)-linux-gnu\.so")
_GLIBC = re.compile(r"glibc (\d{1,3})\.(\d{1,3})")
_TAG = re.compile(r"manylinux_(\d+)_(\d+)_")


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One line of the table.

    Attributes:
        module: that it brings: `numpy` or `PIL`.
        name: of the distribution.
        version: of it.
        python: for which it is, such as `3.10`.
        architecture: `aarch64` or `x86_64`.
        file: its name.
        size: in bytes.
        sha256: 64 hexadecimal digits.
    """

    module: str
    name: str
    version: str
    python: str
    architecture: str
    file: str
    size: int
    sha256: str

    @property
    def platforms(self) -> tuple[str, ...]:
        """Its platform tags, as `pip download --platform` takes them."""
        return tuple(self.file.removesuffix(".whl").rpartition("-")[2].split("."))

    @property
    def glibc(self) -> tuple[int, int]:
        """The oldest C library that it runs with."""
        return min((int(major), int(minor)) for major, minor in _TAG.findall(self.file))

    def download_command(self, folder: str) -> str:
        """Return what a user types on a computer with internet to have it in a folder."""
        platforms = " ".join(f"--platform {platform}" for platform in self.platforms)
        return (
            f"pip download --no-deps --only-binary=:all: --python-version {self.python} {platforms} "
            f"{self.name}=={self.version} -d {folder}"
        )


@functools.cache
def pinned_wheels() -> tuple[PinnedWheel, ...]:
    """Return the table."""
    table = Fields(json.loads(files("edgebert.remote").joinpath(TABLE).read_text("ascii")), what=f"`{TABLE}`")
    modules = {DISTRIBUTIONS.get(module, module): module for module in IMPORTED}
    return tuple(
        PinnedWheel(
            module=modules[line.text("name")],
            size=line.integer("size"),
            **{name: line.text(name) for name in ("name", "version", "python", "architecture", "file", "sha256")},
        )
        for line in table.list_of_fields("wheels")
    )


def lacking(modules: Mapping[str, str]) -> dict[str, str]:
    """Return which of numpy and Pillow are missing or below the floor, and what of it is there.

    Args:
        modules: module -> version of what a device has, "" where that is not known.

    >>> lacking({"numpy": "1.21.5", "PIL": "12.3.0"})
    {'numpy': '1.21.5'}
    >>> lacking({"numpy": "1.26.4"})
    {'PIL': ''}
    """
    return {
        module: modules.get(module, "")
        for module in IMPORTED
        if module not in modules or (modules[module] and below_floor(module, modules[module]))
    }


def wheels_for(device: Device) -> tuple[PinnedWheel, ...]:
    """Return the wheels that a device needs; none where its own numpy and Pillow are good enough.

    Raises:
        UnavailableError: there are none for its Python, processor or C library.
    """
    wanted = lacking(device.modules)
    if not wanted:
        return ()
    matched, libc = _SUFFIX.fullmatch(device.suffix), _GLIBC.fullmatch(device.libc)
    python = f"3.{matched[1]}" if matched else ""
    if matched is None or libc is None or python not in PYTHONS:
        raise _refused(device, wanted, _described(device))
    found = tuple(
        wheel
        for wheel in pinned_wheels()
        if wheel.module in wanted and wheel.python == python and wheel.architecture == matched[2]
    )
    newer = [wheel for wheel in found if wheel.glibc > (int(libc[1]), int(libc[2]))]
    if newer:
        raise _refused(
            device,
            wanted,
            f"glibc {libc[1]}.{libc[2]}, and `{newer[0].file}` needs {newer[0].glibc[0]}.{newer[0].glibc[1]}",
        )
    return found


def words_for(wanted: Mapping[str, str]) -> str:
    """Return in words what a device lacks.

    >>> words_for({"numpy": "1.21.5", "PIL": ""})
    'numpy 1.21.5, older than 1.24, and no Pillow'
    """
    return " and ".join(
        f"{DISTRIBUTIONS.get(module, module)} {version}, older than {FLOORS[module]},"
        if version
        else f"no {DISTRIBUTIONS.get(module, module)}"
        for module, version in wanted.items()
    ).removesuffix(",")


def _described(device: Device) -> str:
    libc = device.libc or "a C library that is not glibc"
    return f"Python {'.'.join(map(str, device.python))} ({device.suffix or 'of an unknown kind'}, {device.machine}, {libc})"


def _refused(device: Device, wanted: Mapping[str, str], what: str) -> UnavailableError:
    names = " ".join(DISTRIBUTIONS.get(module, module) for module in wanted)
    return UnavailableError(
        f"`{device.name}` has {words_for(wanted)}, and edgebert brings none for {printable(what)}",
        expected=f"CPython {PYTHONS[0]} to {PYTHONS[-1]} on {' or '.join(ARCHITECTURES)} with glibc",
        hint=f"install {names} into a venv there, and name it with `--python`, such as `--python '~/edgebert/bin/python'`",
    )
