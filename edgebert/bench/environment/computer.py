"""The computer a measurement was made on: processor, limits, clock, system, versions, thread settings.

Read from /proc and /sys, where they exist; what cannot be read is None, and the reason goes to `not_available` by the
path of the field. Nothing is changed, nothing is imported, no program is started.

>>> read_environment().device.cpu.threads > 0
True
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from edgebert.bench.environment.control_group import read_quota_usage
from edgebert.bench.environment.jetson.identity import read_identity
from edgebert.bench.environment.operating_system import read_operating_system
from edgebert.bench.environment.power_state import read_power_state
from edgebert.bench.environment.processor import read_cpu
from edgebert.bench.environment.schema import Pressure, ProcessState, QuotaUsage
from edgebert.bench.environment.sensors import read_throttle_events
from edgebert.bench.environment.system_files import (
    SystemFiles,
    affinity,
    read_cpuinfo,
    read_hypervisor,
    read_memory,
    text_of_cpus,
)
from edgebert.bench.schema import Device, OperatingSystem, PowerState

# Distributions whose version changes a number.
SOFTWARE = (
    "numpy",
    "Pillow",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "onnx",
    "nncf",
    "matplotlib",
)

# Variables that decide how many threads run, and where (bench.md, section 9).
_ENV = re.compile(
    r"^(OMP|MKL|KMP|OPENBLAS|GOMP|TBB|NUMEXPR|VECLIB|BLIS)_|^(MALLOC_ARENA_MAX|LD_PRELOAD|PYTHONMALLOC|CUDA_VISIBLE_DEVICES)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What `read_environment` found."""

    device: Device
    os: OperatingSystem
    power_state: PowerState
    software: Mapping[str, str]
    env: Mapping[str, str]
    virtualised: bool | None
    not_available: Mapping[str, str]
    process: ProcessState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Counters that only grow, and loads, at one moment; None where there is no such counter.

    `ticks` are those of all processors: taken by the hypervisor, idle, and all.
    """

    load: tuple[float, ...]
    ticks: tuple[int, int, int] | None
    throttle_events: int | None
    swap_used_bytes: int | None
    pressure: Pressure | None = None
    quota: QuotaUsage | None = None


def hardware_name() -> str:
    """Return what a short table calls this computer: its processor, or its board where that has no name, as on a Jetson."""
    device = read_environment().device
    return device.cpu.model or device.model or "unknown"


def read_environment(root: Path = Path("/")) -> Environment:
    """Read what can be read of this computer.

    Args:
        root: where `proc` and `sys` lie; another folder serves recorded trees.
    """
    files = SystemFiles(root)
    cpuinfo = read_cpuinfo(files)
    hypervisor = read_hypervisor(files, cpuinfo)
    if hypervisor is None:
        files.missing("os.hypervisor", "none is announced" if cpuinfo else "no /proc/cpuinfo")
    for name, value, reason in (
        ("pressure", read_pressure(files), "the kernel counts no pressure: no /proc/pressure"),
        ("quota", read_quota_usage(files), "the control group counts no stopped periods"),
    ):
        if value is None:
            files.missing(f"interference.{name}_before", reason)
            files.missing(f"interference.{name}_after", reason)
    memory = read_memory(files).get("MemTotal")
    if memory is None:
        files.missing("device.memory_bytes", "no /proc/meminfo")
    environment = Environment(
        device=Device(
            arch=platform.machine() or "unknown",
            model=_board(files),
            cpu=read_cpu(files, cpuinfo),
            memory_bytes=memory,
            transport="local",
            jetson=read_identity(files),
        ),
        os=read_operating_system(files, hypervisor),
        power_state=read_power_state(files, virtualised=hypervisor is not None),
        software=_software(),
        env={name: value for name, value in sorted(os.environ.items()) if _ENV.search(name)},
        virtualised=hypervisor is not None if cpuinfo else None,
        not_available={},
        process=_process_state(),
    )
    for name in ("device", "os", "power_state", "process"):
        _explain(files, name, getattr(environment, name))
    return replace(environment, not_available=dict(sorted(files.not_available.items())))


def read_activity(root: Path = Path("/")) -> Activity:
    """Read load, stolen time, throttling, swap and pressure of this moment."""
    files = SystemFiles(root)
    memory = read_memory(files)
    swap = memory["SwapTotal"] - memory["SwapFree"] if {"SwapTotal", "SwapFree"} <= set(memory) else None
    load: tuple[float, ...] = ()
    with contextlib.suppress(OSError, AttributeError):  # no load average on Windows
        load = tuple(round(value, 2) for value in os.getloadavg())
    return Activity(
        load=load,
        ticks=read_ticks(files),
        throttle_events=read_throttle_events(files),
        swap_used_bytes=swap,
        pressure=read_pressure(files),
        quota=read_quota_usage(files),
    )


def read_ticks(files: SystemFiles) -> tuple[int, int, int] | None:
    """Return the ticks of all processors together: stolen, idle, all; None where they are not counted."""
    line = (files.text("/proc/stat") or "").partition("\n")[0]
    ticks = [int(entry) for entry in line.split()[1:] if entry.isdigit()]
    # user nice system idle iowait irq softirq steal; what follows is counted in `user` already (proc(5))
    return (ticks[7], ticks[3] + ticks[4], sum(ticks[:8])) if len(ticks) > 7 else None


def read_pressure(files: SystemFiles) -> Pressure | None:
    """Return how much was waited for processor, memory and disk in the last ten seconds, None without PSI."""
    shares: dict[str, float | None] = {}
    for name in ("cpu", "memory", "io"):
        found = re.search(r"^some avg10=(\d{1,3}\.\d{1,4})", files.text(f"/proc/pressure/{name}") or "")
        shares[name] = round(min(100.0, float(found[1])) / 100, 6) if found else None
    if not any(share is not None for share in shares.values()):
        return None
    return Pressure(cpu=shares["cpu"], memory=shares["memory"], io=shares["io"])


def steal_ratio(before: Activity, after: Activity) -> float | None:
    """Return the share of processor time that the hypervisor gave to others in between, or None."""
    elapsed = _ticks_between(before, after)
    return None if elapsed is None else min(1.0, max(0.0, elapsed[0] / elapsed[2]))


def other_busy_ratio(before: Activity, after: Activity, own_cpu_s: float) -> float | None:
    """Return the share of processor time that other programs of this computer used in between, or None.

    Args:
        before: at the start.
        after: at the end.
        own_cpu_s: processor seconds in between that were ours.
    """
    elapsed = _ticks_between(before, after)
    if elapsed is None:
        return None
    stolen, idle, everything = elapsed
    busy = everything - idle - stolen - own_cpu_s * os.sysconf("SC_CLK_TCK")
    return min(1.0, max(0.0, busy / everything))


def _ticks_between(before: Activity, after: Activity) -> tuple[int, int, int] | None:
    if before.ticks is None or after.ticks is None or after.ticks[2] <= before.ticks[2]:
        return None
    stolen, idle, everything = (late - early for early, late in zip(before.ticks, after.ticks, strict=True))
    return stolen, idle, everything


def _board(files: SystemFiles) -> str | None:
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        if name := files.text(path):
            return name
    files.missing("device.model", "no device tree and no DMI product name")
    return None


def _explain(files: SystemFiles, name: str, value: object) -> None:
    """Give a reason to every field that is None and has none yet; entries of a list share the path of the list."""
    if value is None and name not in files.not_available:
        files.missing(name, "this computer does not tell")
    elif isinstance(value, tuple):
        for entry in value:
            if is_dataclass(entry):
                _explain(files, name, entry)
    elif is_dataclass(value):
        for entry in fields(value):
            _explain(files, f"{name}.{entry.name}", getattr(value, entry.name))


def _process_state() -> ProcessState:
    policies = {getattr(os, f"SCHED_{name}", None): name.lower() for name in ("OTHER", "BATCH", "IDLE", "FIFO", "RR")}
    nice = os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else None
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    return ProcessState(affinity=text_of_cpus(affinity()), nice=nice, scheduler=policies.get(policy))


def _software() -> dict[str, str]:
    """Return Python's version and that of each installed distribution of `SOFTWARE`; nothing is imported."""
    versions = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    for name in SOFTWARE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
