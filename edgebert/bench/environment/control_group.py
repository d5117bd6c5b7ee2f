"""The control group of this process, version 1 or 2: its limits, and how often its quota stopped it.

The quota itself is read by `edgebert._cpu_quota`, as the runtime keeps to it.
"""

from __future__ import annotations

from edgebert._cpu_quota import GROUPS, group_folders
from edgebert.bench.environment.schema import QuotaUsage
from edgebert.bench.environment.system_files import SystemFiles, integer

_NO_LIMIT = 1 << 62  # version 1 writes "no limit" as the largest multiple of a page


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


def group_version(files: SystemFiles) -> int | None:
    if files.exists(f"{GROUPS}/cpu") or files.exists(f"{GROUPS}/cpu,cpuacct"):
        return 1
    return 2 if files.exists(f"{GROUPS}/cgroup.controllers") or files.exists(f"{GROUPS}/cpu.stat") else None
