"""How much processor time the control group of this process grants, version 1 or 2.

In a container the group is the root of what the process sees; outside of one it lies below, and the tightest limit
of the group and of all groups above it holds.

>>> quota_cpus("50000 100000")
0.5
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Protocol

GROUPS = "/sys/fs/cgroup"


class Files(Protocol):
    """A view of /proc and /sys; nothing raises."""

    def text(self, path: str) -> str | None:
        """Return a file's text, or None where it is missing or unreadable."""
        ...

    def exists(self, path: str) -> bool:
        """Say whether there is such a file, readable or not."""
        ...


class _Here:
    """The files of this computer."""

    def text(self, path: str) -> str | None:
        try:
            with Path(path).open(encoding="utf-8", errors="replace") as stream:
                return stream.read(1 << 16).strip()
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)


def granted_cpus(files: Files | None = None) -> float | None:
    """Return how many processors the quota of this process grants, such as 1.5; None for no limit.

    Args:
        files: where `/proc` and `/sys` are read; None: of this computer.
    """
    return quota_cpus(read_cpu_max(files or _Here()))


def quota_cpus(cpu_max: str | None) -> float | None:
    """Return how many processors a quota grants, None for no limit.

    >>> quota_cpus("150000 100000"), quota_cpus("max 100000")
    (1.5, None)
    """
    quota, _, period = (cpu_max or "").partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def read_cpu_max(files: Files) -> str | None:
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


def group_folders(files: Files, controller: str) -> list[str]:
    """Return the folders of this process's group and of those above it, innermost first."""
    separate = files.exists(f"{GROUPS}/{controller}")  # version 1 has a hierarchy for each controller
    base = f"{GROUPS}/{controller}" if separate else GROUPS
    place = PurePosixPath(_own_group(files, controller if separate else ""))
    # A container may see the path of its host but not the folders: what it sees as the root is its own.
    if ".." in place.parts or not files.exists(f"{base}{place}"):
        return [base]
    return [f"{base}{folder}".rstrip("/") for folder in (place, *place.parents)]


def _own_group(files: Files, controller: str) -> str:
    """Return the path of this process in the hierarchy of a controller; the empty name is that of version 2."""
    for line in (files.text("/proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(",") and path.startswith("/"):
            return path
    return "/"
