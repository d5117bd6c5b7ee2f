"""What two programs of JetPack say, where the files that they read are closed to us. Both only tell: nothing is switched.

>>> mode_of_answer("NV Power Mode: MAXN_SUPER\\n2\\n")
(2, 'MAXN_SUPER')
>>> mode_of_answer("NVPM ERROR: request for bad power mode 2") is None
True
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebert.bench.environment.system_files import SystemFiles

NVPMODEL_QUERY = ("nvpmodel", "-q")
JETSON_CLOCKS_SHOW = ("jetson_clocks", "--show")  # refused to all but root (tensorrt_jetson.md, section 8.4)

_TIMEOUT_S = 5.0
_ANSWER_CHARACTERS = 64_000
_MODE = re.compile(r"^NV Power Mode: (\S{1,60})\s*\n\s*(\d{1,3})\s*$", re.MULTILINE)
_CLOCKS = re.compile(r"^(GPU|EMC|cpu\d{1,3}):? .*$", re.MULTILINE)
_FIELD = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClocks:
    """What `jetson_clocks --show` says of one unit: clocks in Hz (kHz for processors), as printed.

    Attributes:
        lowest: that the settings allow.
        highest: that they allow.
        current: of this moment.
        override: whether the memory clock is held; None for other units.
    """

    lowest: int | None
    highest: int | None
    current: int | None
    override: bool | None

    @property
    def is_held(self) -> bool | None:
        """Whether the clock cannot move; None where a value is missing."""
        if None in (self.lowest, self.highest, self.current):
            return None
        return self.lowest == self.highest == self.current


def mode_of_answer(answer: str) -> tuple[int, str] | None:
    """Return number and name of the power mode that `nvpmodel -q` printed."""
    found = _MODE.search(answer)
    return (int(found[2]), found[1]) if found else None


def shown_clocks(answer: str) -> Mapping[str, ShownClocks]:
    """Return `GPU`, `EMC` and each `cpuN` that `jetson_clocks --show` printed; empty where it refused."""
    found = {}
    for line in _CLOCKS.finditer(answer):
        fields = dict(_FIELD.findall(line[0]))
        numbers = {name: int(value) for name, value in fields.items() if re.fullmatch(r"\d{1,12}", value)}
        override = numbers.get("FreqOverride")
        found[line[1]] = ShownClocks(
            lowest=numbers.get("MinFreq"),
            highest=numbers.get("MaxFreq"),
            current=numbers.get("CurrentFreq"),
            override=None if override is None else override == 1,
        )
    return found


def are_locked(clocks: Mapping[str, ShownClocks]) -> bool | None:
    """Say whether GPU and memory are held at one clock; None where it was not shown (tensorrt_jetson.md, section 8.4)."""
    gpu, emc = clocks.get("GPU"), clocks.get("EMC")
    if gpu is None or gpu.is_held is None or emc is None or emc.override is None:
        return None
    return gpu.is_held and emc.override


def answer_of(files: SystemFiles, command: Sequence[str]) -> str | None:
    """Return what a program printed, or None where it is not there, refuses, or takes too long.

    Args:
        files: this computer; a recorded tree has no programs.
        command: one of the two above.
    """
    if files.root != Path("/") or (command == JETSON_CLOCKS_SHOW and os.geteuid() != 0):
        return None
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[:_ANSWER_CHARACTERS].decode("utf-8", "replace") if done.returncode == 0 else None
