"""What a sensor source is: the base of every class in `edgebert.bench.environment.sensors.SOURCES`.

>>> MISSING
-1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from edgebert.bench.environment.system_files import FileReader, SystemFiles, read_cpuinfo, read_hypervisor

MISSING = -1  # in a column: no value this time

VIRTUALISED = "virtualised"  # the reason of bench.md, section 12: a virtual machine has no such sensor


class Source(ABC):
    """Some sensors that are read together.

    Args:
        files: the computer, or a recorded tree.
        cpus: processors that are watched, where a sensor belongs to one; none for all.

    Attributes:
        columns: names with units, in the order of `read`; empty where there is nothing to read.
        reasons: column -> why it is not there.
        origins: column -> where it is read.
        every_s: how often reading is worth its cost.
        lowest: the smallest value that is one; a smaller one is a sensor's nonsense, and becomes `MISSING`.
    """

    names: ClassVar[tuple[str, ...]]
    every_s: ClassVar[float] = 0.0
    lowest: ClassVar[int] = MISSING

    def __init__(self, files: SystemFiles, cpus: Collection[int] = ()) -> None:
        self.columns: tuple[str, ...] = ()
        self.reasons: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self._readers: list[FileReader] = []
        self._find(files, frozenset(cpus))
        for name in self._expected(files):
            if name not in self.columns and name not in self.reasons:
                self.reasons[name] = self._why_absent(files)

    @abstractmethod
    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        """Open what there is, and fill `columns`, `origins` and `reasons`."""

    @abstractmethod
    def read(self) -> list[int]:
        """Return one value for each of `columns`, `MISSING` where there is none this time."""

    def _expected(self, files: SystemFiles) -> tuple[str, ...]:
        """Return the columns that need a reason where they are not there."""
        return self.names

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()

    def _open(self, files: SystemFiles, path: str) -> FileReader:
        self._readers.append(files.reader(path))
        return self._readers[-1]

    def _offer(self, name: str, origin: str) -> None:
        self.columns = (*self.columns, name)
        self.origins[name] = origin

    def _why_absent(self, files: SystemFiles) -> str:
        return VIRTUALISED if is_virtual(files) else "no such sensor"


def is_virtual(files: SystemFiles) -> bool:
    """Say whether the processor tells that it is a virtual one."""
    return read_hypervisor(files, read_cpuinfo(files)) is not None
