"""Kernel, distribution and container of a computer, and the settings of the kernel that change a time.

>>> chosen_flags("BOOT_IMAGE=/vmlinuz root=UUID=1 mitigations=off quiet isolcpus=2,3")
('mitigations=off', 'isolcpus=2,3')
"""

from __future__ import annotations

import platform
import re

from edgebert._cpu_quota import read_cpu_max
from edgebert.bench.environment.control_group import group_version, read_cpuset, read_memory_limit
from edgebert.bench.environment.schema import KernelSettings
from edgebert.bench.environment.system_files import SystemFiles, chosen, read_memory
from edgebert.bench.schema import Cgroup, OperatingSystem

CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
ASLR = "/proc/sys/kernel/randomize_va_space"
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"

# Flags of the boot that change a time; the others (disks, names of hosts) are nobody's business.
_BOOT_FLAG = re.compile(
    r"(mitigations|spectre_v[12]|nospectre_v[12]|spec_store_bypass_disable|(no)?pti|mds|tsx(_async_abort)?|l1tf|retbleed"
    r"|srbds|mmio_stale_data|gather_data_sampling|spec_rstack_overflow"
    r"|isolcpus|nohz(_full)?|rcu_nocbs|nosmt|maxcpus|nr_cpus|irqaffinity|threadirqs|preempt|numa_balancing"
    r"|idle|(processor|intel_idle)\.max_cstate|cpuidle\.(off|governor)|(intel|amd)_pstate|cpufreq\.(off|default_governor)"
    r"|clocksource|tsc|hpet|transparent_hugepage|nowatchdog|nmi_watchdog|cgroup_disable"
    r"|systemd\.unified_cgroup_hierarchy|psi|audit)(=.*)?"
)


def read_operating_system(files: SystemFiles, hypervisor: str | None) -> OperatingSystem:
    """Return system, kernel, distribution, container and limits; reasons go below `os`."""
    return OperatingSystem(
        system=platform.system() or "unknown",
        kernel=platform.release() or "unknown",
        distro=_distribution(files),
        container=_container(files),
        hypervisor=hypervisor,
        cgroup=read_cgroup(files),
        settings=read_kernel_settings(files),
    )


def read_cgroup(files: SystemFiles) -> Cgroup:
    """Return the limits that hold for this process; None where there is none, with the reason below `os.cgroup`."""
    found = Cgroup(
        cpu_max=read_cpu_max(files),
        cpuset=read_cpuset(files),
        memory_max_bytes=read_memory_limit(files),
        version=group_version(files),
    )
    for name in ("cpu_max", "cpuset", "memory_max_bytes"):
        if getattr(found, name) is None:
            files.missing(f"os.cgroup.{name}", "no limit is visible in /sys/fs/cgroup")
    if found.version is None:
        files.missing("os.cgroup.version", "no control group of the processor in /sys/fs/cgroup")
    return found


def read_kernel_settings(files: SystemFiles) -> KernelSettings | None:
    """Return the settings of a Linux kernel, None elsewhere; reasons go below `os.settings`."""
    if not files.exists("/proc") or not files.exists("/sys"):
        files.missing("os.settings", "no /proc and /sys")
        return None
    command_line = files.text("/proc/cmdline")
    settings = KernelSettings(
        aslr=files.number(ASLR),
        transparent_hugepages=chosen(files.text(HUGE_PAGES)),
        clock_source=files.text(CLOCK_SOURCE),
        command_line=chosen_flags(command_line or ""),
        vulnerabilities=_vulnerabilities(files),
        swap_bytes=read_memory(files).get("SwapTotal"),
    )
    places = {
        "aslr": (settings.aslr, ASLR),
        "transparent_hugepages": (settings.transparent_hugepages, HUGE_PAGES),
        "clock_source": (settings.clock_source, CLOCK_SOURCE),
        "command_line": (command_line, "/proc/cmdline"),
        "swap_bytes": (settings.swap_bytes, "/proc/meminfo"),
    }
    for name, (value, place) in places.items():
        if value is None:
            files.missing(f"os.settings.{name}", f"not in {place}")
    return settings


def chosen_flags(command_line: str) -> tuple[str, ...]:
    """Return the flags of a kernel's command line that change a time, in its order."""
    given = command_line.partition(" -- ")[0].split()  # what follows is for the first process
    return tuple(flag for flag in given if _BOOT_FLAG.fullmatch(flag))


def _vulnerabilities(files: SystemFiles) -> dict[str, str]:
    found = {
        path.rpartition("/")[2]: files.text(path) or ""
        for path in files.paths("/sys/devices/system/cpu/vulnerabilities/*")
    }
    if not found:
        files.missing("os.settings.vulnerabilities", "not in /sys/devices/system/cpu/vulnerabilities")
    return {name: state for name, state in found.items() if state and state != "Not affected"}


def _container(files: SystemFiles) -> str | None:
    if files.exists("/.dockerenv"):
        return "docker"
    if files.exists("/run/.containerenv"):
        return "podman"
    control = files.text("/proc/1/cgroup") or ""
    for name in ("docker", "kubepods", "lxc", "containerd"):
        if name in control:
            return name
    files.missing("os.container", "none is announced")
    return None


def _distribution(files: SystemFiles) -> str | None:
    for line in (files.text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    files.missing("os.distro", "no /etc/os-release")
    return None
