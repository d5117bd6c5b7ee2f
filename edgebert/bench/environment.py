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
from dataclasses import dataclass, field
from pathlib import Path

from edgebert.bench.schema import Cgroup, Cpu, Device, OperatingSystem, PowerState

# Flags that decide which INT8 and FP32 kernels a backend picks.
CPU_FLAGS = (
    "avx2",
    "f16c",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)

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


_NO_LIMIT = 1 << 62  # version 1 writes "no limit" as the largest multiple of a page


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Counters that only grow, and loads, at one moment; None where there is no such counter.

    `ticks` are those of all processors: taken by the hypervisor, idle, and all.
    """

    load: tuple[float, ...]
    ticks: tuple[int, int, int] | None
    throttle_events: int | None
    swap_used_bytes: int | None


@dataclass(slots=True)
class _System:
    """A view of /proc and /sys below `root`, which remembers what could not be read."""

    root: Path
    not_available: dict[str, str] = field(default_factory=dict)

    def text(self, path: str) -> str | None:
        """Return a file's text, or None where it is missing, unreadable or no text."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return a file's integer, or None."""
        return _integer(self.text(path))

    def paths(self, pattern: str) -> list[Path]:
        """Return the paths that match, sorted; none where a folder is missing."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def missing(self, name: str, reason: str) -> None:
        """Remember why a field is None."""
        self.not_available[name] = reason


def read_environment(root: Path = Path("/")) -> Environment:
    """Read what can be read of this computer.

    Args:
        root: where `proc` and `sys` lie; another folder serves recorded trees.
    """
    system = _System(root)
    cpuinfo = _cpuinfo(system)
    hypervisor = _hypervisor(system, cpuinfo)
    memory = _memory(system).get("MemTotal")
    if memory is None:
        system.missing("device.memory_bytes", "no /proc/meminfo")
    virtualised = hypervisor is not None if cpuinfo else None
    return Environment(
        device=Device(
            arch=platform.machine() or "unknown",
            model=_board(system),
            cpu=_cpu(system, cpuinfo),
            memory_bytes=memory,
            transport="local",
        ),
        os=OperatingSystem(
            system=platform.system() or "unknown",
            kernel=platform.release() or "unknown",
            distro=_distribution(system),
            container=_container(system),
            hypervisor=hypervisor,
            cgroup=_cgroup(system),
        ),
        power_state=_power_state(system, virtualised=bool(virtualised)),
        software=_software(),
        env={name: value for name, value in sorted(os.environ.items()) if _ENV.search(name)},
        virtualised=virtualised,
        not_available=dict(sorted(system.not_available.items())),
    )


def read_activity(root: Path = Path("/")) -> Activity:
    """Read load, stolen time, throttling and swap of this moment."""
    system = _System(root)
    ticks = [
        int(entry) for entry in (system.text("/proc/stat") or "").partition("\n")[0].split()[1:] if entry.isdigit()
    ]
    memory = _memory(system)
    swap = memory["SwapTotal"] - memory["SwapFree"] if {"SwapTotal", "SwapFree"} <= set(memory) else None
    load: tuple[float, ...] = ()
    with contextlib.suppress(OSError, AttributeError):  # no load average on Windows
        load = tuple(round(value, 2) for value in os.getloadavg())
    return Activity(
        load=load,
        # user nice system idle iowait irq softirq steal; what follows is counted in `user` already (proc(5))
        ticks=(ticks[7], ticks[3] + ticks[4], sum(ticks[:8])) if len(ticks) > 7 else None,
        throttle_events=_throttle_events(system),
        swap_used_bytes=swap,
    )


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


def _cpuinfo(system: _System) -> list[dict[str, str]]:
    """Return one mapping per logical processor."""
    text = system.text("/proc/cpuinfo") or ""
    blocks = [
        {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
        for block in re.split(r"\n\s*\n", text)
    ]
    return [block for block in blocks if "processor" in block]


def _cpu(system: _System, cpuinfo: list[dict[str, str]]) -> Cpu:
    first = cpuinfo[0] if cpuinfo else {}
    known = set((first.get("flags") or first.get("Features") or "").split())
    if not cpuinfo:
        for name in ("model", "vendor", "sockets", "cores", "microcode"):
            system.missing(f"device.cpu.{name}", "no /proc/cpuinfo")
    if "microcode" not in first and cpuinfo:
        system.missing("device.cpu.microcode", "not in /proc/cpuinfo")
    topology = [
        (system.text(f"{path}/topology/physical_package_id"), system.text(f"{path}/topology/core_id"))
        for path in (f"/sys/devices/system/cpu/cpu{block['processor']}" for block in cpuinfo)
    ]
    cores = {entry for entry in topology if None not in entry}
    if cpuinfo and not cores:
        system.missing("device.cpu.cores", "no topology in /sys/devices/system/cpu")
        system.missing("device.cpu.sockets", "no topology in /sys/devices/system/cpu")
    return Cpu(
        model=first.get("model name") or first.get("Hardware") or platform.processor() or None,
        vendor=first.get("vendor_id") or first.get("CPU implementer"),
        sockets=len({package for package, _ in cores}) or None,
        cores=len(cores) or None,
        threads=os.cpu_count() or 1,
        usable_threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        microcode=first.get("microcode"),
        flags=tuple(flag for flag in CPU_FLAGS if flag in known),
        caches=_caches(system),
    )


def _caches(system: _System) -> dict[str, str]:
    """Return size by level and kind of the first processor's caches, such as `{"L1 Data": "48K", "L2": "2048K"}`."""
    found = {}
    for path in system.paths("/sys/devices/system/cpu/cpu0/cache/index*"):
        relative = f"/{path.relative_to(system.root).as_posix()}"
        level, kind, size = (system.text(f"{relative}/{name}") for name in ("level", "type", "size"))
        if level and size:
            found[f"L{level}" if kind in (None, "Unified") else f"L{level} {kind}"] = size
    if not found:
        system.missing("device.cpu.caches", "no caches in /sys/devices/system/cpu")
    return found


def _board(system: _System) -> str | None:
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        if name := system.text(path):
            return name
    system.missing("device.model", "no device tree and no DMI product name")
    return None


def _hypervisor(system: _System, cpuinfo: list[dict[str, str]]) -> str | None:
    """Return the hypervisor's name, `unknown` where only the processor's flag tells, None on bare metal."""
    name = system.text("/sys/hypervisor/type")
    if name:
        return name
    if cpuinfo and "hypervisor" in cpuinfo[0].get("flags", "").split():
        return system.text("/sys/class/dmi/id/sys_vendor") or "unknown"
    system.missing("os.hypervisor", "none is announced" if cpuinfo else "no /proc/cpuinfo")
    return None


def _container(system: _System) -> str | None:
    if (system.root / ".dockerenv").exists():
        return "docker"
    if (system.root / "run/.containerenv").exists():
        return "podman"
    control = system.text("/proc/1/cgroup") or ""
    for name in ("docker", "kubepods", "lxc", "containerd"):
        if name in control:
            return name
    system.missing("os.container", "none is announced")
    return None


def _distribution(system: _System) -> str | None:
    for line in (system.text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    system.missing("os.distro", "no /etc/os-release")
    return None


def _cgroup(system: _System) -> Cgroup:
    """Return the limits of the group that this process sees as the root, version 2 or 1."""
    cpu_max = system.text("/sys/fs/cgroup/cpu.max")
    quota, period = (system.text(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if cpu_max is None and quota and period:
        cpu_max = f"{'max' if quota == '-1' else quota} {period}"
    cpuset = system.text("/sys/fs/cgroup/cpuset.cpus.effective") or system.text("/sys/fs/cgroup/cpuset/cpuset.cpus")
    memory = _integer(system.text("/sys/fs/cgroup/memory.max"))
    if memory is None:
        memory = system.number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    if memory is not None and memory >= _NO_LIMIT:
        memory = None
    for name, value in (("cpu_max", cpu_max), ("cpuset", cpuset), ("memory_max_bytes", memory)):
        if value is None:
            system.missing(f"os.cgroup.{name}", "no limit is visible in /sys/fs/cgroup")
    return Cgroup(cpu_max=cpu_max, cpuset=cpuset, memory_max_bytes=memory)


def _power_state(system: _System, *, virtualised: bool) -> PowerState:
    reason = "a virtual machine does not see the clock" if virtualised else "not in /sys/devices/system/cpu"
    first = "/sys/devices/system/cpu/cpu0/cpufreq"
    governors = {
        system.text(f"/{path.relative_to(system.root)}")
        for path in system.paths("/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    }
    state = PowerState(
        driver=system.text(f"{first}/scaling_driver"),
        governor=tuple(sorted(governor for governor in governors if governor)),
        turbo=_turbo(system),
        epp=system.text(f"{first}/energy_performance_preference"),
        smt=_switch(system.text("/sys/devices/system/cpu/smt/active")),
        ac=_on_mains(system),
    )
    for name, value in (
        ("driver", state.driver),
        ("governor", state.governor or None),
        ("turbo", state.turbo),
        ("epp", state.epp),
    ):
        if value is None:
            system.missing(f"power_state.{name}", reason)
    if state.smt is None:
        system.missing("power_state.smt", "not in /sys/devices/system/cpu/smt")
    if state.ac is None:
        system.missing("power_state.ac", "no mains supply in /sys/class/power_supply")
    return state


def _turbo(system: _System) -> bool | None:
    no_turbo = _switch(system.text("/sys/devices/system/cpu/intel_pstate/no_turbo"))
    return _switch(system.text("/sys/devices/system/cpu/cpufreq/boost")) if no_turbo is None else not no_turbo


def _on_mains(system: _System) -> bool | None:
    states = [
        _switch(system.text(f"/{path.parent.relative_to(system.root)}/online"))
        for path in system.paths("/sys/class/power_supply/*/type")
        if system.text(f"/{path.relative_to(system.root)}") == "Mains"
    ]
    known = [state for state in states if state is not None]
    return any(known) if known else None


def _throttle_events(system: _System) -> int | None:
    """Return the sum of the processor's thermal events and of the control group's stopped periods, or None."""
    counts = [
        system.number(f"/{path.relative_to(system.root)}")
        for path in system.paths("/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
    ]
    stat = system.text("/sys/fs/cgroup/cpu.stat") or system.text("/sys/fs/cgroup/cpu/cpu.stat") or ""
    counts += [_integer(line.split()[1]) for line in stat.splitlines() if line.startswith("nr_throttled ")]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _memory(system: _System) -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", system.text("/proc/meminfo") or "", flags=re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def _software() -> dict[str, str]:
    """Return Python's version and that of each installed distribution of `SOFTWARE`; nothing is imported."""
    versions = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    for name in SOFTWARE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _switch(text: str | None) -> bool | None:
    return {"0": False, "1": True}.get(text or "")


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None
