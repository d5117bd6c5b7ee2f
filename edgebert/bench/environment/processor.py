"""The processor of a computer: model, cores, kinds of cores, caches, and between which its clock may move.

>>> read_cpu(SystemFiles(), cpuinfo=[]).threads > 0
True
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from edgebert.bench.environment.schema import ClockLimits, CoreType, CpuTopology
from edgebert.bench.environment.system_files import SystemFiles, affinity, cpu_list, text_of_cpus
from edgebert.bench.schema import Cpu

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

_CPUS = "/sys/devices/system/cpu"

# The kernel names the kinds of an Intel hybrid processor by their performance counters.
_INTEL_KINDS = {"performance": "/sys/devices/cpu_core/cpus", "efficient": "/sys/devices/cpu_atom/cpus"}


def read_cpu(files: SystemFiles, cpuinfo: list[Mapping[str, str]]) -> Cpu:
    """Return the processor; what is None has its reason in `files.not_available` below `device.cpu`.

    Args:
        files: the computer, or a recorded tree.
        cpuinfo: of `read_cpuinfo`.
    """
    first = cpuinfo[0] if cpuinfo else {}
    known = set((first.get("flags") or first.get("Features") or "").split())
    if not cpuinfo:
        for name in ("model", "vendor", "sockets", "cores", "microcode"):
            files.missing(f"device.cpu.{name}", "no /proc/cpuinfo")
    if "microcode" not in first and cpuinfo:
        files.missing("device.cpu.microcode", "not in /proc/cpuinfo")
    cores = _cores(files, cpuinfo)
    if cpuinfo and not cores:
        files.missing("device.cpu.cores", f"no topology in {_CPUS}")
        files.missing("device.cpu.sockets", f"no topology in {_CPUS}")
    return Cpu(
        model=first.get("model name") or first.get("Hardware") or platform.processor() or None,
        vendor=first.get("vendor_id") or first.get("CPU implementer"),
        sockets=len({package for package, _ in cores}) or None,
        cores=len(cores) or None,
        threads=os.cpu_count() or 1,
        usable_threads=len(affinity()),
        microcode=first.get("microcode"),
        flags=tuple(flag for flag in CPU_FLAGS if flag in known),
        caches=_caches(files),
        topology=read_topology(files),
    )


def read_topology(files: SystemFiles) -> CpuTopology:
    """Return the kinds of cores, which processors share a core, and the memory nodes."""
    where = "device.cpu.topology"
    siblings = {files.text(path) for path in files.paths(f"{_CPUS}/cpu[0-9]*/topology/thread_siblings_list")}
    nodes = {
        path.split("/")[-2]: cpus
        for path in files.paths("/sys/devices/system/node/node[0-9]*/cpulist")
        if (cpus := files.text(path))
    }
    online, isolated = files.text(f"{_CPUS}/online"), files.text(f"{_CPUS}/isolated")
    kinds = _core_types(files)
    absent = {"siblings": siblings, "core_types": kinds, "online": online}
    for name, value in absent.items():
        if not value:
            files.missing(f"{where}.{name}", f"not in {_CPUS}")
    if isolated is None:
        files.missing(f"{where}.isolated", f"not in {_CPUS}")
    if not nodes:
        files.missing(f"{where}.numa_nodes", "no /sys/devices/system/node")
    return CpuTopology(
        core_types=kinds,
        siblings=tuple(sorted(filter(None, siblings), key=cpu_list)),
        numa_nodes=nodes,
        online=online,
        isolated=isolated,
    )


def read_clock_limits(files: SystemFiles, reason: str) -> ClockLimits | None:
    """Return the limits of the clock over all processors, or None with `reason` where there is no cpufreq."""
    found = {
        name: [value for path in files.paths(f"{_CPUS}/cpu[0-9]*/cpufreq/{name}") if (value := files.number(path))]
        for name in ("cpuinfo_min_freq", "cpuinfo_max_freq", "scaling_min_freq", "scaling_max_freq")
    }
    if not any(found.values()):
        files.missing("power_state.clock", reason)
        return None
    return ClockLimits(
        hardware_min_khz=min(found["cpuinfo_min_freq"], default=None),
        hardware_max_khz=max(found["cpuinfo_max_freq"], default=None),
        min_khz=min(found["scaling_min_freq"], default=None),
        max_khz=max(found["scaling_max_freq"], default=None),
    )


def _cores(files: SystemFiles, cpuinfo: list[Mapping[str, str]]) -> set[tuple[str, str]]:
    """Return (package, core) of every core; its number alone repeats in the next package."""
    found = set()
    for block in cpuinfo:
        topology = f"{_CPUS}/cpu{block['processor']}/topology"
        package, core = files.text(f"{topology}/physical_package_id"), files.text(f"{topology}/core_id")
        if package is not None and core is not None:
            found.add((package, core))
    return found


def _core_types(files: SystemFiles) -> tuple[CoreType, ...]:
    """Return the kinds of cores: as Intel's kernel driver names them, else by Arm's capacity, else one kind."""
    kinds = {name: cpus for name, path in _INTEL_KINDS.items() if (cpus := cpu_list(files.text(path)))}
    if not kinds:
        kinds = _by_capacity(files)
    clocks = {
        int(path.split("/")[5][3:]): files.number(path)
        for path in files.paths(f"{_CPUS}/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    }
    return tuple(
        CoreType(
            name=name,
            cpus=text_of_cpus(cpus),
            max_khz=max((clock for cpu in cpus if (clock := clocks.get(cpu))), default=None),
        )
        for name, cpus in kinds.items()
    )


def _by_capacity(files: SystemFiles) -> dict[str, tuple[int, ...]]:
    capacities: dict[int | None, list[int]] = {}
    for path in files.paths(f"{_CPUS}/cpu[0-9]*/topology/core_id"):
        cpu = path.split("/")[5]
        capacities.setdefault(files.number(f"{_CPUS}/{cpu}/cpu_capacity"), []).append(int(cpu[3:]))
    if len(capacities) < 2:
        alike = tuple(cpu for cpus in capacities.values() for cpu in cpus)
        return {"uniform": alike} if alike else {}
    return {
        f"capacity {capacity}": tuple(cpus)
        for capacity, cpus in sorted(capacities.items(), key=lambda entry: -(entry[0] or 0))
    }


def _caches(files: SystemFiles) -> dict[str, str]:
    """Return size by level and kind of the first processor's caches, such as `{"L1 Data": "48K", "L2": "2048K"}`."""
    found = {}
    for path in files.paths(f"{_CPUS}/cpu0/cache/index*"):
        level, kind, size = (files.text(f"{path}/{name}") for name in ("level", "type", "size"))
        if level and size:
            found[f"L{level}" if kind in (None, "Unified") else f"L{level} {kind}"] = size
    if not found:
        files.missing("device.cpu.caches", f"no caches in {_CPUS}")
    return found
