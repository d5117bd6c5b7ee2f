"""The device wheel: the part of edgebert that runs on a device, as one pure Python file made of the running installation.

    PYTHONPATH=edgebert-0.1.0+device-py3-none-any.whl python3 -m edgebert.agent --help

It needs numpy, Pillow and one backend. It runs straight from the file, where nothing may be installed, and pip takes it as well: it
has the name of the full package and the local version `+device`, so that pip never lays the two into one folder but
replaces one by the other, and `pip install "edgebert[openvino]"` on a device with the device wheel only adds OpenVINO.

The same installation gives the same bytes, so that the SHA-256 of the file names what runs on a device.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert import __version__
from edgebert._files import staged_file

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where Python 3.10 to 3.13 all have it for a type checker

# What stays on the host: the workbench, the command line (typer), and what is made of a measurement afterwards.
HOST_ONLY = (
    "edgebert.__main__",
    "edgebert._flags",
    "edgebert.bench.comparison",
    "edgebert.bench.json_schema",
    "edgebert.bench.report",
    "edgebert.calibration",
    "edgebert.cli",
    "edgebert.export",
    "edgebert.models",
    "edgebert.recipe",
    "edgebert.recipes",
    "edgebert.remote.agent",
    "edgebert.remote.bench",
    "edgebert.remote.bootstrap",
    "edgebert.remote.compile",
    "edgebert.remote.device_wheel",
    "edgebert.remote.devices",
    "edgebert.remote.engine",
    "edgebert.remote.fleet",
    "edgebert.remote.install",
    "edgebert.remote.installation",
    "edgebert.remote.jetson_check",
    "edgebert.remote.objects",
    "edgebert.remote.packages",
    "edgebert.remote.run_folder",
    "edgebert.remote.session",
    "edgebert.remote.size",
    "edgebert.remote.ssh",
    "edgebert.remote.transport",
    "edgebert.remote.wheel_files",
    "edgebert.remote.wheel_pins",
    "edgebert.runtime.torch_runner",
    "edgebert.stages",
    "edgebert.train",
)

# What a device needs of a package that stays on the host: engines are built on the board.
ON_DEVICE = (
    "edgebert.export",
    "edgebert.export.engine",
    "edgebert.export.engine_build",
    "edgebert.export.engine_cache",
    "edgebert.export.engine_child",
    "edgebert.export.engine_choice",
    "edgebert.export.engine_process",
)

# Files that are no source: the small graphs of the self-check, and ONNX Runtime's answers to them.
DATA = (
    "edgebert/jetson_check/fp16.onnx",
    "edgebert/jetson_check/int8-weak.onnx",
    "edgebert/jetson_check/int8.onnx",
    "edgebert/jetson_check/reference.json",
)

# A test compares these with pyproject.toml.
REQUIRES = (
    "numpy>=1.24",
    "Pillow>=12.3",
    "openvino>=2026.1; extra == 'openvino'",
    "onnxruntime>=1.28.3; python_version >= '3.11' and extra == 'onnxruntime'",
    "onnxruntime>=1.23.2; python_version < '3.11' and extra == 'onnxruntime'",
)
_EXTRAS = ("openvino", "onnxruntime", "tensorrt")
_REQUIRES_PYTHON = ">=3.10"
_VERSION = f"{__version__}+device"
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # what a zip file can say of a time: the same in every build


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWheel:
    """A wheel in memory.

    Attributes:
        name: its file name; pip refuses it under another.
        content: the file.
        modules: the modules in it, sorted.
    """

    name: str
    content: bytes
    modules: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the content: 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


def device_wheel() -> DeviceWheel:
    """Build the device wheel of the running edgebert; nothing is written and nothing else is imported."""
    sources = dict(sorted(_sources(files("edgebert"), "edgebert")))
    info = f"edgebert-{_VERSION}.dist-info"
    entries = {
        **sources,
        f"{info}/METADATA": _metadata().encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: edgebert\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    entries[f"{info}/RECORD"] = _record(entries, f"{info}/RECORD")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries.items():
            # Fixed times and rights, and a fixed system (3 is Unix): nothing of this computer gets into the bytes.
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, compresslevel=9)
    return DeviceWheel(
        name=f"edgebert-{_VERSION}-py3-none-any.whl",
        content=stream.getvalue(),
        modules=tuple(sorted(_module(name) for name in sources if name.endswith(".py"))),
    )


def write_device_wheel(folder: Path, *, force: bool = False) -> Path:
    """Write the device wheel into a folder, under its own name, and return its path.

    Raises:
        CannotWriteError: it exists without `force`, or cannot be written.
    """
    wheel = device_wheel()
    path = folder / wheel.name
    with staged_file(path, force=force) as staging:
        staging.write_bytes(wheel.content)
    return path


def is_host_only(module: str) -> bool:
    """Say whether a module of edgebert stays on the host.

    >>> is_host_only("edgebert.train.loop"), is_host_only("edgebert.runtime.classifier")
    (True, False)
    >>> is_host_only("edgebert.export.graph"), is_host_only("edgebert.export.engine")
    (True, False)
    """
    if module.removesuffix(".__init__") in ON_DEVICE:
        return False
    return any(module == name or module.startswith(f"{name}.") for name in HOST_ONLY)


def _sources(folder: Traversable, package: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the device part below a package, read from wherever it was imported."""
    for entry in folder.iterdir():
        module = f"{package}.{entry.name.removesuffix('.py')}"
        path = f"{package.replace('.', '/')}/{entry.name}"
        if is_host_only(module):
            continue
        if entry.is_dir() and entry.joinpath("__init__.py").is_file():
            yield from _sources(entry, module)
        elif entry.name.endswith(".py") or entry.name == "py.typed" or path in DATA:
            yield path, entry.read_bytes()


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.4",
        "Name: edgebert",
        f"Version: {_VERSION}",
        "Summary: The part of edgebert that runs on a device: the runtime, the agent and the measuring",
        "License-Expression: Apache-2.0",
        f"Requires-Python: {_REQUIRES_PYTHON}",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
        *(f"Provides-Extra: {extra}" for extra in _EXTRAS),
    ]
    return "\n".join(lines) + "\n"


def _record(entries: dict[str, bytes], own_name: str) -> bytes:
    """Return the list of all files with hash and size that pip checks; of itself it has only the name."""
    lines = [f"{name},sha256={_url_safe_sha256(content)},{len(content)}" for name, content in entries.items()]
    return "\n".join([*lines, f"{own_name},,", ""]).encode()


def _url_safe_sha256(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
