"""The control group of this process, version 1 or 2: its limits, and how often its quota stopped it.

In a container the group is the root of what the process sees; outside of one it lies below, and the tightest limit
of the group and of all groups above it holds.

>>> quota_cpus("50000 100000")
0.5
"""

from __future__ import annotations

from pathlib import PurePosixPath

from edgebert.bench.environment.schema import QuotaUsage
from edgebert.bench.environment.system_files import SystemFiles, integer

_ROOT = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 62  # version 1 writes "no limit" as the largest multiple of a page


def quota_cpus(cpu_max: str | None) -> float | None:
    """Return how many processors a quota grants, None for no limit.

    >>> quota_cpus("150000 100000"), quota_cpus("max 100000")
    (1.5, None)
    """
    quota, _, period = (cpu_max or "").partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def cpu_stat_paths(files: SystemFiles) -> list[str]:
    """Return the statistics of this process's group and of those above it that count stopped periods."""
    return [
        path
        for folder in group_folders(files, "cpu")
        if (path := f"{folder}/cpu.stat") and "nr_throttled " in (files.text(path) or "")
    ]


def read_quota_usage(files: SystemFiles) -> QuotaUsage | None:
    """Return how often the quotas of this group and of those above it stopped its processes; None where none counts."""
    paths = cpu_stat_paths(files)
    if not paths:
        return None
    counts: dict[str, int] = {}
    for path in paths:
        for name, value in read_counts(files.text(path)).items():
            counts[name] = counts.get(name, 0) + value
    return QuotaUsage(
        periods=counts.get("nr_periods"),
        throttled_periods=counts.get("nr_throttled"),
        throttled_us=counts.get("throttled_usec"),
    )


def read_counts(text: str | None) -> dict[str, int]:
    """Return the entries of a `cpu.stat`; version 1 counts the stopped time in ns, here it is µs as in version 2."""
    found: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        count = integer(value)
        if count is not None:
            found["throttled_usec" if name == "throttled_time" else name] = (
                count // 1000 if name == "throttled_time" else count
            )
    return found


def read_cpu_max(files: SystemFiles) -> str | None:
    """Return the tightest quota as `QUOTA PERIOD` in µs, `max PERIOD` where none limits, None where none is visible."""
    found = []
    for folder in group_folders(files, "cpu"):
        text = files.text(f"{folder}/cpu.max")
        quota, period = (files.text(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period"))
        if text is None and quota and period:
            text = f"{'max' if quota == '-1' else quota} {period}"
        if text:
            found.append(text)
    return min(found, key=lambda text: quota_cpus(text) or float("inf"), default=None)


def read_memory_limit(files: SystemFiles) -> int | None:
    """Return the tightest limit of memory in bytes, None where none is visible."""
    limits = [
        limit
        for folder in group_folders(files, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := files.number(f"{folder}/{name}")) is not None and limit < _NO_LIMIT
    ]
    return min(limits, default=None)


def read_cpuset(files: SystemFiles) -> str | None:
    """Return the processors of the group, in the kernel's list format, None where none are visible."""
    names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    return next(
        (
            text
            for folder in group_folders(files, "cpuset")
            for name in names
            if (text := files.text(f"{folder}/{name}"))
        ),
        None,
    )


def group_folders(files: SystemFiles, controller: str) -> list[str]:
    """Return the folders of this process's group and of those above it, innermost first."""
    separate = files.exists(f"{_ROOT}/{controller}")  # version 1 has a hierarchy for each controller
    base = f"{_ROOT}/{controller}" if separate else _ROOT
    place = PurePosixPath(_own_group(files, controller if separate else ""))
    # A container may see the path of its host but not the folders: what it sees as the root is its own.
    if ".." in place.parts or not files.exists(f"{base}{place}"):
        return [base]
    return [f"{base}{folder}".rstrip("/") for folder in (place, *place.parents)]


def _own_group(files: SystemFiles, controller: str) -> str:
    """Return the path of this process in the hierarchy of a controller; the empty name is that of version 2."""
    for line in (files.text("/proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(",") and path.startswith("/"):
            return path
    return "/"


def group_version(files: SystemFiles) -> int | None:
    if files.exists(f"{_ROOT}/cpu") or files.exists(f"{_ROOT}/cpu,cpuacct"):
        return 1
    return 2 if files.exists(f"{_ROOT}/cgroup.controllers") or files.exists(f"{_ROOT}/cpu.stat") else None
