"""The optional packages: which extra brings each, the lowest version accepted, and one way to import them.

>>> FLOORS["numpy"]
'1.24'
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from edgebert.errors import UnavailableError

# Module name -> distribution name, where they differ.
DISTRIBUTIONS = {
    "PIL": "Pillow",
    "OpenSSL": "pyOpenSSL",
    "sklearn": "scikit-learn",
    "mlperf_loadgen": "mlcommons-loadgen",
}

# Module name -> other distributions of the same module: for other devices, and nightly builds.
_ALTERNATIVES = {
    "onnxruntime": tuple(
        f"onnxruntime-{kind}" for kind in ("gpu", "openvino", "directml", "qnn", "rocm", "migraphx", "cann", "azure")
    ),
    "openvino": ("openvino-nightly",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
}

# Extra -> the modules it brings, in the order `doctor` lists them.
EXTRAS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt",),
    "train": ("torch", "transformers", "accelerate", "safetensors", "datasets", "kornia", "sklearn"),
    "export": ("onnx", "onnxscript"),
    "recipe": ("pydantic",) if sys.version_info >= (3, 11) else ("pydantic", "tomli"),
    "report": ("matplotlib", "jinja2"),
    "remote": ("asyncssh",),
    "tune": ("optuna",),
    "sign": ("model_signing", "OpenSSL"),
    "peers": ("nncf",),
    "loadgen": ("mlperf_loadgen",),
}

# Lowest versions accepted. torch, transformers, onnx, onnxruntime, Pillow and asyncssh: the first without the
# vulnerabilities listed in SECURITY.md. A test compares this table with pyproject.toml.
FLOORS = {
    "numpy": "1.24",
    "PIL": "12.3",
    "typer": "0.15",
    "openvino": "2026.1",
    "onnxruntime": "1.28.3" if sys.version_info >= (3, 11) else "1.23.2",
    "tensorrt": "10.3",
    "torch": "2.13",
    "transformers": "5.3",
    "accelerate": "1.12",
    "safetensors": "0.6",
    "datasets": "4.0",
    "kornia": "0.8",
    "sklearn": "1.5",
    "onnx": "1.23",
    "onnxscript": "0.5",
    "nncf": "3.0",
    "pydantic": "2.11",
    "tomli": "2.0",
    "matplotlib": "3.9",
    "jinja2": "3.1.6",
    "asyncssh": "2.24",
    "optuna": "4.0",
    "model_signing": "1.1",
    "OpenSSL": "24.0",
    "mlperf_loadgen": "6.0.17",
}

# What a system package may bring without the records that pip keeps.
_OF_THE_SYSTEM = ("tensorrt",)

_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}


def install_command(extra: str) -> str:
    """Return the command that adds an extra."""
    if extra == "tensorrt":
        return "on a Jetson: sudo apt-get install python3-libnvinfer"
    return f'pip install "edgebert[{extra}]"'


def installed_version(module: str) -> str | None:
    """Return the installed version of a module, or None; it is not imported.

    Of what no distribution brought, such as OpenVINO from Intel's archive, the version is known once it has been imported.
    """
    for name in (DISTRIBUTIONS.get(module, module), *_ALTERNATIVES.get(module, ())):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    if module in _OF_THE_SYSTEM and (written := _version_in_source(module)) is not None:
        return written
    version = getattr(sys.modules.get(module), "__version__", None)
    return version if isinstance(version, str) else None


def is_importable(module: str) -> bool:
    """Say whether there is a module of this name, whatever brought it; it is not imported."""
    try:
        found = importlib.util.find_spec(module)
    except ValueError:  # one that a program put together itself
        return module in sys.modules
    return found is not None and found.origin is not None  # a folder of this name that is no package has none


def found_version(module: str) -> str | None:
    """Return the version of a module, None where it is not here or does not tell. It is imported where there is no other way."""
    if installed_version(module) is None and is_importable(module):
        with suppress(UnavailableError):
            require(module)
    return installed_version(module)


def below_floor(module: str, version: str) -> bool:
    """Say whether `version` is lower than the lowest accepted one."""
    return _numbers(version) < _numbers(FLOORS[module])


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises:
        UnavailableError: it is not installed, or older than the floor; the message holds the command that adds it.
    """
    package = module.partition(".")[0]
    version = installed_version(package)
    _check_floor(package, version)
    switch_off_telemetry()
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        hint = install_command(_EXTRA_OF[package])
        raise UnavailableError(f"`{module}` is not installed ({error})", hint=hint) from error
    if version is None:  # of what no distribution brought, only the module itself knows it
        _check_floor(package, installed_version(package))
    return imported


def _check_floor(package: str, version: str | None) -> None:
    if version is not None and below_floor(package, version):
        raise UnavailableError(
            f"`{package}` {version} is installed",
            expected=f"{FLOORS[package]} or newer",
            hint=install_command(_EXTRA_OF[package]),
        )


def switch_off_telemetry() -> None:
    """Keep OpenVINO, NNCF and ONNX Runtime from reporting their use: to be called before any of them is imported.

    `import openvino` alone sends an event to Google Analytics, from a child process; only a consent file in the home
    folder or a CI variable stops it. Both it and NNCF fall back to stubs where `openvino_telemetry` cannot be imported.
    `import onnxruntime` (1.29 or newer, not on Windows) starts a thread that sends events to Microsoft, and whose
    remains keep a forked child from ending; the variable is its full opt-out (microsoft/onnxruntime#27379).
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how `import` is told to fail
    os.environ.setdefault("NNCF_CI", "1")  # NNCF's own switch, for a program that imported OpenVINO before us
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _version_in_source(module: str) -> str | None:
    """Return `__version__` as a package's own `__init__.py` writes it, or None; the package is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: it is imported already, and has no spec
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        source = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"""^__version__ = ["'](\d[\w.+-]{0,40})["']""", source, re.MULTILINE)
    return found[1] if found else None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numeric components: `2.13.0+cpu` -> (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
