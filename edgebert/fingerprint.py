"""What a compiled form asks of a computer, and whether this one has it; no model and no backend is loaded to find out.

    "fingerprint": {
      "os": "linux",                    platform.system(), in small letters
      "machine": "aarch64",             processor architecture
      "backend_version": "== 10.3.0",   exactly this version, or `>= 2026.4`: this one or newer
      "cpu_flags": ["avx512_vnni"],     all of them, as /proc/cpuinfo names them
      "gpu": "Orin",                    the CUDA driver's name of the first GPU
      "compute_capability": "8.7",
      "multiprocessors": 8,             tells some modules of one chip apart: AGX Orin has 16
      "module": "p3767-0003",           Jetson module; Orin NX and Orin Nano have the same name and number of multiprocessors
      "driver": ">= 540.4",             NVIDIA's kernel module
      "cuda": ">= 12.6",                the newest CUDA that the driver serves
      "l4t": "== 36.4.3"                NVIDIA's Linux for Jetson, which JetPack is numbered by
    }

Every condition may be missing, and then nothing is asked. What is asked and cannot be answered does not fit: a condition
that this version does not know, a version rule that it cannot read, a fact that this computer does not tell.

>>> asked = Fingerprint(machine="aarch64", backend_version="== 10.3.0")
>>> here = ComputerFacts(os="linux", machine="aarch64", backend="tensorrt", backend_version="10.7.0")
>>> misfits(asked, here)
('made with TensorRT 10.3.0, here is 10.7.0',)
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError
from edgebert.extras import installed_version, is_importable
from edgebert.runtime.instructions import cpu_flags

_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "torch": "PyTorch"}
_RULE = re.compile(r"(==|>=) ?(\d{1,9}(?:\.\d{1,9}){0,5}[A-Za-z0-9.+-]{0,40})")
_NONE = "none is installed here"
_MAX_TEXT = 100
_MAX_FLAGS = 32

# The flags that a message shows of a CPU: the families that kernels are written for, not all hundred.
_TELLING_FLAGS = (
    *("sse4_2", "avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve"),
)

# `CUdevice_attribute` of cuda.h: the same numbers in every CUDA.
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76
# SoC in the device tree -> compute capability (tensorrt_jetson.md, sections 1.3 and 8.5).
_TEGRA = {"nvidia,tegra234": "8.7", "nvidia,tegra264": "11.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The conditions of one form; see the top of this module.

    Attributes:
        os: `linux`, `windows` or `darwin`.
        machine: such as `x86_64` or `aarch64`.
        backend_version: `== VERSION` or `>= VERSION` of the form's backend.
        cpu_flags: all must be there.
        gpu: name of the first GPU.
        compute_capability: of the first GPU, such as `8.7`.
        multiprocessors: of the first GPU.
        module: number of the Jetson module, such as `p3767-0003`.
        driver: version rule of NVIDIA's kernel module.
        cuda: version rule of the newest CUDA that the driver serves.
        l4t: version rule of NVIDIA's Linux for Jetson.
        unknown: conditions of a newer version of edgebert, by name; kept as they are, and none of them fits.
    """

    os: str | None = None
    machine: str | None = None
    backend_version: str | None = None
    cpu_flags: tuple[str, ...] = ()
    gpu: str | None = None
    compute_capability: str | None = None
    multiprocessors: int | None = None
    module: str | None = None
    driver: str | None = None
    cuda: str | None = None
    l4t: str | None = None
    unknown: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def asks_of_gpu(self) -> bool:
        """Whether a condition can only be answered by asking NVIDIA's driver and system."""
        asked = (self.gpu, self.compute_capability, self.multiprocessors, self.module, self.driver, self.cuda, self.l4t)
        return any(condition is not None for condition in asked)

    def to_json(self) -> JsonObject:
        """Return the conditions that ask for something as a JSON object."""
        texts: dict[str, JsonValue] = {name: getattr(self, name) for name in _TEXTS}
        texts["multiprocessors"] = self.multiprocessors
        found = {name: value for name, value in texts.items() if value is not None}
        if self.cpu_flags:
            found["cpu_flags"] = list(self.cpu_flags)
        return {**found, **self.unknown}

    @classmethod
    def from_fields(cls, fields: Fields) -> Fingerprint:
        """Read what `to_json` wrote. A condition of another name is kept, and does not fit; null asks for nothing.

        Raises:
            BadDataError: a known condition is of another type, or holds what no terminal should be given.
        """
        given = {name: value for name, value in fields.value.items() if value is not None}
        known = {*_TEXTS, "multiprocessors", "cpu_flags"}
        odd = next((name for name in given if not _is_printable(name)), None)
        if odd is not None:
            raise BadDataError(f"{fields.what} holds the condition {odd!r:.100}", expected="a short printable name")
        flags = fields.texts("cpu_flags") if "cpu_flags" in given else ()
        if len(flags) > _MAX_FLAGS or not all(_is_printable(flag) for flag in flags):
            raise BadDataError(
                f"{fields.what} holds `{flags!r:.80}` as `cpu_flags`", expected=f"at most {_MAX_FLAGS} names"
            )
        return cls(
            os=_printable(fields, "os"),
            machine=_printable(fields, "machine"),
            backend_version=_printable(fields, "backend_version"),
            cpu_flags=flags,
            gpu=_printable(fields, "gpu"),
            compute_capability=_printable(fields, "compute_capability"),
            multiprocessors=fields.integer("multiprocessors") if "multiprocessors" in given else None,
            module=_printable(fields, "module"),
            driver=_printable(fields, "driver"),
            cuda=_printable(fields, "cuda"),
            l4t=_printable(fields, "l4t"),
            unknown={name: value for name, value in given.items() if name not in known},
        )

    def to_text(self) -> str:
        """Return the conditions as one line; `any computer` where there are none.

        >>> Fingerprint(machine="x86_64", backend_version=">= 2026.4").to_text()
        'machine x86_64, backend_version >= 2026.4'
        """
        said = (f"{name} {_said(value)}" for name, value in self.to_json().items())
        return ", ".join(said) or "any computer"


_TEXTS = ("os", "machine", "backend_version", "gpu", "compute_capability", "module", "driver", "cuda", "l4t")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What NVIDIA's driver says of the first GPU; None where it says nothing.

    Attributes:
        name: such as `Orin` or `NVIDIA H100 80GB HBM3`.
        compute_capability: such as `8.7`.
        multiprocessors: how many.
        module: number of the Jetson module that it is on.
        driver: version of the kernel module.
        cuda: the newest CUDA that the driver serves.
        l4t: version of NVIDIA's Linux for Jetson.
    """

    name: str | None = None
    compute_capability: str | None = None
    multiprocessors: int | None = None
    module: str | None = None
    driver: str | None = None
    cuda: str | None = None
    l4t: str | None = None

    def to_text(self) -> str:
        """Return one line, empty where nothing is known."""
        told = (
            ("", self.name),
            ("compute capability ", self.compute_capability),
            ("multiprocessors ", self.multiprocessors),
            ("module ", self.module),
            ("driver ", self.driver),
            ("CUDA ", self.cuda),
            ("L4T ", self.l4t),
        )
        return ", ".join(f"{name}{value}" for name, value in told if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputerFacts:
    """What a computer has that a fingerprint may ask for.

    Attributes:
        os: as `platform.system` says, in small letters.
        machine: processor architecture, by one name on every system.
        backend: whose version is meant.
        backend_version: as installed, or None where it is not, or where nothing tells without importing it.
        backend_found: whether there is such a module, whatever brought it.
        cpu_flags: as Linux names them; empty where none are published.
        gpu: NVIDIA's.
    """

    os: str
    machine: str
    backend: str
    backend_version: str | None
    cpu_flags: Collection[str] = ()
    gpu: GpuFacts = field(default_factory=GpuFacts)
    backend_found: bool = False

    @property
    def has_backend(self) -> bool:
        """Whether the backend is here, in any version."""
        return self.backend_found or self.backend_version is not None


def machine() -> str:
    """Return this computer's processor architecture by one name on every system, such as `x86_64` or `aarch64`."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def computer_facts(backend: str, *, with_gpu: bool = False) -> ComputerFacts:
    """Return the facts of this computer, from the package list and a few small files.

    Args:
        backend: whose installed version is looked up; it is not imported.
        with_gpu: also ask NVIDIA's driver, where there is one. That starts it in this process, so that it is left out for
            backends and forms that need none.
    """
    return ComputerFacts(
        os=platform.system().lower(),
        machine=machine(),
        backend=backend,
        backend_version=installed_version(backend),
        cpu_flags=cpu_flags(),
        gpu=gpu_facts() if with_gpu else GpuFacts(),
        backend_found=is_importable(backend),
    )


def misfits(fingerprint: Fingerprint, facts: ComputerFacts) -> tuple[str, ...]:
    """Return why a form does not fit a computer, one reason for each condition, both sides named; empty where it fits."""
    return tuple(_reasons(fingerprint, facts))


def is_for_another_kind(fingerprint: Fingerprint, facts: ComputerFacts) -> bool:
    """Say whether a form was never meant for this computer: another system or architecture, or its backend is not here.

    One that was meant for it and does not fit has grown stale, which its user wants to know.
    """
    return (
        fingerprint.os not in (None, facts.os)
        or fingerprint.machine not in (None, facts.machine)
        or not facts.has_backend
    )


def at_least_release(version: str) -> str:
    """Return the rule for files that later releases of their maker read: its major and minor version, or newer.

    >>> at_least_release("2026.4.1")
    '>= 2026.4'
    """
    numbers, _ = _split(version)
    return f">= {'.'.join(str(number) for number in (*numbers, 0)[:2])}"


@functools.cache
def gpu_facts(root: Path = Path("/"), library: str = "libcuda.so.1") -> GpuFacts:
    """Return what NVIDIA's driver says of the first GPU; asked once.

    Args:
        root: where `proc` and `etc` lie.
        library: the driver's own, which is loaded where it exists; nothing is computed with it.
    """
    asked = _asked_of_cuda(library)
    compatible = _content(root / "proc/device-tree/compatible")
    soc = next((name for name in _TEGRA if name in compatible), "")
    return GpuFacts(
        name=asked.name,
        compute_capability=asked.compute_capability or _TEGRA.get(soc),
        multiprocessors=asked.multiprocessors,
        module=_module(compatible),
        cuda=asked.cuda,
        driver=_first(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", root / "proc/driver/nvidia/version"),
        l4t=l4t_of_release(_content(root / "etc/nv_tegra_release")),
    )


def _reasons(fingerprint: Fingerprint, facts: ComputerFacts) -> Iterator[str]:
    for asked, found in ((fingerprint.os, facts.os), (fingerprint.machine, facts.machine)):
        if asked not in (None, found):
            yield f"made for {asked}, here is {found}"
    backend = _NAMES.get(facts.backend, facts.backend)
    without = "here is one that does not tell its version" if facts.backend_found else _NONE
    yield from _version_reason(backend, fingerprint.backend_version, facts.backend_version, without)
    missing = [flag for flag in fingerprint.cpu_flags if flag not in facts.cpu_flags]
    if missing:
        here = ", ".join(flag for flag in _TELLING_FLAGS if flag in facts.cpu_flags) or "none that is known"
        yield f"needs {', '.join(missing)} of the CPU, here is {here}"
    gpu = facts.gpu
    equal: tuple[tuple[str, object, object], ...] = (
        ("the GPU", fingerprint.gpu, gpu.name),
        ("compute capability", fingerprint.compute_capability, gpu.compute_capability),
        ("a GPU with this many multiprocessors:", fingerprint.multiprocessors, gpu.multiprocessors),
        ("the module", fingerprint.module, gpu.module),
    )
    for what, wanted, there in equal:
        if wanted not in (None, there):
            yield f"made for {what} {wanted}, here is {'none' if there is None else there}"
    yield from _version_reason("NVIDIA's driver", fingerprint.driver, gpu.driver)
    yield from _version_reason("CUDA", fingerprint.cuda, gpu.cuda)
    yield from _version_reason("L4T", fingerprint.l4t, gpu.l4t)
    for name, value in fingerprint.unknown.items():
        yield f"asks for `{name}` {_said(value)}, which this version of edgebert does not know"


def _version_reason(what: str, rule: str | None, found: str | None, without: str = _NONE) -> Iterator[str]:
    if rule is None:
        return
    parts = _RULE.fullmatch(rule)
    if parts is None:
        yield f"asks for {what} `{rule}`, a rule that this version of edgebert cannot read"
        return
    operator, wanted = parts.groups()
    here = without if found is None else f"here is {found}"
    if found is None or not _HOLDS[operator](found, wanted):
        asked = f"made with {what} {wanted}" if operator == "==" else f"needs {what} {wanted} or newer"
        yield f"{asked}, {here}"


def _is_equal(found: str, wanted: str) -> bool:
    return _split(found) == _split(wanted)


def _is_at_least(found: str, wanted: str) -> bool:
    return _split(found)[0] >= _split(wanted)[0]


_HOLDS: dict[str, Callable[[str, str], bool]] = {"==": _is_equal, ">=": _is_at_least}


def _split(version: str) -> tuple[tuple[int, ...], str]:
    """Return the numbers of a version without zeros at the end, and the rest: `10.3.0rc1` -> (10, 3), `rc1`."""
    start = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in start.group().split(".")] if start else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), version[start.end() :] if start else version


def _asked_of_cuda(library: str) -> GpuFacts:
    """Ask the driver for its newest CUDA and the first GPU it shows to this process."""
    try:
        cuda = ctypes.CDLL(library)
        if cuda.cuInit(0) != 0:  # a driver without a GPU, or one that this process may not use
            return GpuFacts()
        version, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
        if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
            return GpuFacts()
        if cuda.cuDeviceGetName(name, len(name), device) != 0:
            return GpuFacts()
        attribute = functools.partial(_cuda_attribute, cuda, device)
        major, minor = attribute(_CAPABILITY_MAJOR), attribute(_CAPABILITY_MINOR)
        return GpuFacts(
            name=name.value.decode("utf-8", "replace"),
            compute_capability=None if major is None or minor is None else f"{major}.{minor}",
            multiprocessors=attribute(_MULTIPROCESSORS),
            cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",  # 12040 is 12.4
        )
    except (OSError, AttributeError):  # no such library, or one that is something else
        return GpuFacts()


def _cuda_attribute(cuda: ctypes.CDLL, device: ctypes.c_int, number: int) -> int | None:
    value = ctypes.c_int()
    return value.value if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0 else None


def l4t_of_release(release: str) -> str | None:
    """Return `36.4.3` of `# R36 (release), REVISION: 4.3, ...`; the rest of the line differs between releases."""
    found = re.search(r"R(\d+)[^\n]*?REVISION:\s*(\d+(?:\.\d+)*)", release)
    return f"{found[1]}.{found[2]}" if found else None


def _module(compatible: str) -> str | None:
    """Return `p3767-0003` of a device tree's `compatible`; in `p3768-0000+p3767-0003` the first is the carrier board."""
    named = (re.findall(r"p\d{4}-\d{4}", name) for name in compatible.split("\0") if name.startswith("nvidia,"))
    return next((numbers[-1] for numbers in named if numbers), None)


def _first(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, _content(path))
    return found[1] if found else None


def _content(path: Path) -> str:
    """Return the start of a small file, empty where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(4096).decode("utf-8", "replace")
    except OSError:
        return ""


def _printable(fields: Fields, name: str) -> str | None:
    value = fields.optional_text(name)
    if value is not None and not _is_printable(value):
        raise BadDataError(f"{fields.what} holds {value!r:.80} as `{name}`", expected="a short printable text")
    return value


def _is_printable(text: str) -> bool:
    return 0 < len(text) <= _MAX_TEXT and text.isprintable()


def _said(value: JsonValue) -> str:
    if isinstance(value, str):
        return value if _is_printable(value) else repr(value)[:_MAX_TEXT]
    if isinstance(value, (list, tuple)):
        return ", ".join(_said(entry) for entry in value)[:_MAX_TEXT]
    return repr(value)[:_MAX_TEXT]
