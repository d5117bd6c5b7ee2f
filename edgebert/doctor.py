"""What works on this computer: every backend, extra and device, and the command that adds what is missing.

Nothing heavy is imported to find out; only a backend that is installed is asked for its devices.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from edgebert import __version__
from edgebert.bench.environment.jetson.facts import jetson_facts, jetson_refusal
from edgebert.errors import UnavailableError
from edgebert.extras import EXTRAS, FLOORS, below_floor, found_version, install_command, require
from edgebert.fingerprint import gpu_facts, machine
from edgebert.runtime.instructions import cpu_flags, int8_instructions
from edgebert.runtime.runner import check_device
from edgebert.target import TARGETS, Target

# Flags that decide which INT8 kernels a CPU runs (compression.md, sections 5.4 and 6.1).
INT8_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_COMPILED_FOR = tuple(dict.fromkeys(target.backend for target in TARGETS.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageState:
    """One optional or required package: `version` is None where it is missing."""

    extra: str
    module: str
    version: str | None
    floor: str
    state: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetState:
    """One target: `reason` says why it cannot run here, or is empty."""

    name: str
    summary: str
    backend: str
    here: bool
    reason: str


def diagnose() -> list[PackageState]:
    """Return the state of every package edgebert can use, required ones first."""
    rows = [_package_state("required", module) for module in ("numpy", "PIL", "typer")]
    return rows + [_package_state(extra, module) for extra, modules in EXTRAS.items() for module in modules]


def target_states() -> list[TargetState]:
    """Return every target and whether this computer can run it."""
    return [_target_state(target) for target in TARGETS.values()]


def computer() -> dict[str, str]:
    """Return what decides speed and precision here, and which forms fit: system, CPU, its INT8 instructions, GPU, backends."""
    flags, gpu = cpu_flags(), gpu_facts().to_text()
    return {
        "edgebert": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "int8 instructions": " ".join(flag for flag in INT8_FLAGS if flag in flags) or "none known",
        **{
            f"int8 in {backend}": int8_instructions(backend).to_text()
            for backend in ("onnxruntime", "openvino")
            if found_version(backend)
        },
        **({"nvidia": gpu} if gpu else {}),
        **device_facts(),
        # What a form's fingerprint is compared with, in its own words.
        "forms that fit": ", ".join(
            (
                f"os {platform.system().lower()}",
                f"machine {machine()}",
                *(f"{name} {version}" for name in _COMPILED_FOR if (version := found_version(name))),
            )
        ),
    }


def device_facts() -> dict[str, str]:
    """Return what is known of this Jetson, each name beginning with `jetson`; nothing on another computer."""
    return {f"jetson {name}": value for name, value in jetson_facts().items()}


def cpu_model() -> str:
    """Return the CPU's name, or the architecture where none is published."""
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


def _package_state(extra: str, module: str) -> PackageState:
    version = found_version(module)
    if version is None:
        state = "missing"
    elif below_floor(module, version):
        state = "below the floor"
    else:
        state = "ok"
    command = "" if state == "ok" else install_command(extra)
    if extra == "required" and state != "ok":
        command = "pip install --upgrade edgebert"
    return PackageState(extra=extra, module=module, version=version, floor=FLOORS[module], state=state, command=command)


def _target_state(target: Target) -> TargetState:
    reason = _why_not_here(target)
    return TargetState(name=target.name, summary=target.summary, backend=target.backend, here=not reason, reason=reason)


def _why_not_here(target: Target) -> str:
    if target.backend == "tensorrt":  # of the system, and its version alone says little
        return jetson_refusal() or _why_no_tensorrt()
    version = found_version(target.backend)
    if version is None:
        return f"`{target.backend}` is not installed: {install_command(target.backend)}"
    if below_floor(target.backend, version):
        return f"`{target.backend}` {version} is below {FLOORS[target.backend]}: {install_command(target.backend)}"
    if target.backend == "openvino" and target.device not in openvino_devices():
        return f"OpenVINO finds no {target.device} here: {', '.join(openvino_devices()) or 'no device'}"
    return ""


def _why_no_tensorrt() -> str:
    try:
        check_device("tensorrt", "GPU")
    except UnavailableError as error:
        return f"{error.what}: {error.hint}" if error.hint else error.what
    return ""


def openvino_devices() -> list[str]:
    """Return OpenVINO's device kinds on this computer, such as `CPU`, `GPU`."""
    require("openvino")  # which switches its telemetry off first
    import openvino

    return sorted({str(device).partition(".")[0] for device in openvino.Core().available_devices})
