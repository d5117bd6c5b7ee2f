"""A view of /proc and /sys below a root folder, so that a recorded tree serves where the computer itself does.

Nothing raises: what is missing or unreadable is None, and the caller says what that means.

>>> SystemFiles(Path("/nowhere")).text("/proc/stat") is None
True
>>> cpu_list("0-2,5"), text_of_cpus({0, 1, 2, 5})
((0, 1, 2, 5), '0-2,5')
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK_BYTES = 64 << 10
_MAX_BYTES = 8 << 20  # /proc/cpuinfo of a thousand processors has 1.5 MB
_MAX_CPU = 1 << 16


@dataclass(slots=True)
class SystemFiles:
    """A view of /proc and /sys below `root`; paths are written as on the computer, such as `/proc/stat`.

    Attributes:
        root: where `proc` and `sys` lie.
        not_available: path of a field of the result -> why it is None.
    """

    root: Path = Path("/")
    not_available: dict[str, str] = field(default_factory=dict)

    def text(self, path: str) -> str | None:
        """Return a file's text, or None where it is missing or unreadable."""
        try:
            descriptor = os.open(self._place(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return None
        try:
            return _text_of(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def number(self, path: str) -> int | None:
        """Return a file's integer, or None."""
        return integer(self.text(path))

    def exists(self, path: str) -> bool:
        """Say whether there is such a file, readable or not."""
        try:
            return self._place(path).exists()
        except OSError:
            return False

    def paths(self, pattern: str) -> list[str]:
        """Return the paths that match, numbers in order of their value; none where a folder is missing."""
        try:
            found = [f"/{path.relative_to(self.root).as_posix()}" for path in self.root.glob(pattern.lstrip("/"))]
        except OSError:
            return []
        return sorted(found, key=_natural)

    def reader(self, path: str) -> FileReader:
        """Return a reader that keeps the file open, for files that are read many times a second."""
        return FileReader(self._place(path))

    def missing(self, name: str, reason: str) -> None:
        """Remember why a field is None."""
        self.not_available[name] = reason

    def _place(self, path: str) -> Path:
        return self.root / path.lstrip("/")


class FileReader:
    """Reads one file of /proc or /sys again and again from its start, without opening it each time.

    A file that cannot be opened, or that vanishes (a processor taken offline), gives None.
    """

    __slots__ = ("_descriptor",)

    def __init__(self, place: Path) -> None:
        try:
            self._descriptor: int | None = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            self._descriptor = None

    def text(self) -> str | None:
        """Return the text of this moment, or None."""
        if self._descriptor is None:
            return None
        try:
            return _text_of(self._descriptor)
        except OSError:
            return None

    def number(self) -> int | None:
        """Return the integer of this moment, or None."""
        return integer(self.text())

    def close(self) -> None:
        """Close the file; later reads give None."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def integer(text: str | None) -> int | None:
    """Return the integer that a text is, or None."""
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,20}", text) else None


def switch(text: str | None) -> bool | None:
    """Return what `0` and `1` mean, None for anything else."""
    return {"0": False, "1": True}.get(text or "")


def chosen(text: str | None) -> str | None:
    """Return the entry in brackets of a list such as `always [madvise] never`, or None."""
    found = re.search(r"\[(\S+)\]", text or "")
    return found[1] if found else None


def cpu_list(text: str | None) -> tuple[int, ...]:
    """Return the processors of the kernel's list format, such as `0-3,8`; none where it is not one."""
    found: set[int] = set()
    for entry in (text or "").split(","):
        span = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", entry)
        if span:
            found.update(range(int(span[1]), min(_MAX_CPU, int(span[2] or span[1])) + 1))
    return tuple(sorted(found))


def text_of_cpus(cpus: Iterable[int]) -> str:
    """Return processors in the kernel's list format."""
    spans: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def affinity() -> tuple[int, ...]:
    """Return the processors this process may run on; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def read_cpuinfo(files: SystemFiles) -> list[Mapping[str, str]]:
    """Return one mapping per logical processor of /proc/cpuinfo."""
    blocks = [
        {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
        for block in re.split(r"\n\s*\n", files.text("/proc/cpuinfo") or "")
    ]
    return [block for block in blocks if "processor" in block]


def read_hypervisor(files: SystemFiles, cpuinfo: list[Mapping[str, str]]) -> str | None:
    """Return the hypervisor's name, `unknown` where only the processor's flag tells, None on bare metal."""
    name = files.text("/sys/hypervisor/type")
    if name:
        return name
    if cpuinfo and "hypervisor" in cpuinfo[0].get("flags", "").split():
        return files.text("/sys/class/dmi/id/sys_vendor") or "unknown"
    return None


def read_memory(files: SystemFiles) -> dict[str, int]:
    """Return the entries of /proc/meminfo in bytes."""
    found = re.findall(r"^(\w+):\s+(\d{1,15}) kB$", files.text("/proc/meminfo") or "", flags=re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def _text_of(descriptor: int) -> str:
    """Return the whole of an open file; files of /proc are given out in pieces."""
    parts: list[bytes] = []
    size = 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    while size < _MAX_BYTES:
        part = os.read(descriptor, _CHUNK_BYTES)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts).decode("utf-8", "replace").strip("\x00\n ")


def _natural(path: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path))
