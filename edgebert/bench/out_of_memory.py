"""How the end of a worker for lack of memory is told from other ends.

The kernel ends a process with SIGKILL, which says nothing; but it counts what it ended: for the control group in
`memory.events` (version 2) or `memory.oom_control` (version 1), for the system in `/proc/vmstat` (Linux 4.13 and newer). A
library that cannot allocate says so in its own words (`edgebert._out_of_memory`).
"""

from __future__ import annotations

import time
from pathlib import Path

from edgebert._out_of_memory import says_out_of_memory
from edgebert.errors import MemoryExhaustedError

_COUNTER_SECONDS = 1.0  # for the kernel to count what it has ended
MORE_MEMORY = "free memory, or take fewer arms at a time, fewer `--images` or fewer `--threads`"


def raise_out_of_memory(error: Exception) -> None:
    """Raise MemoryError for a backend's error of its own kind that says so; return for any other."""
    if says_out_of_memory(str(error)):
        raise MemoryError(str(error)) from error


def memory_exhausted(doing: str, error: Exception) -> MemoryExhaustedError:
    """Return the error that says that memory ran out while a worker did something."""
    return MemoryExhaustedError(
        f"memory ran out during `{doing}`: {str(error) or type(error).__name__}",
        expected="room for the model, the timed images and the samples",
        hint=MORE_MEMORY,
    )


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many processes the kernel has ended for lack of memory, by every counter that can be read, added up.

    Only a difference means something. None where there is no counter.
    """
    found = [count for path, key in _counters(root) if (count := _count(path, key)) is not None]
    return sum(found) if found else None


def counted_since(before: int | None) -> bool:
    """Say whether the kernel has ended a process for lack of memory since `oom_kills` said `before`; it counts a little later."""
    until = time.monotonic() + _COUNTER_SECONDS
    while before is not None:
        if (oom_kills() or 0) > before:
            return True
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return False


def _counters(root: Path) -> list[tuple[Path, str]]:
    """Return the files that hold a line `KEY NUMBER`: the system's, and those of our control group (cgroups(7))."""
    counters = [(root / "proc/vmstat", "oom_kill")]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return counters
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controllers == "":
            counters.append((root / "sys/fs/cgroup" / inside / "memory.events", "oom_kill"))
        elif "memory" in controllers.split(","):
            counters.append((root / "sys/fs/cgroup/memory" / inside / "memory.oom_control", "oom_kill"))
    return counters


def _count(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdecimal():
            return int(value)
    return None
