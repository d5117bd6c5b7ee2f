"""The power mode of the board: which one is on, which there are, and which of them is the highest. It is never switched.

>>> highest({0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"})
2
>>> highest({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"})
0
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgebert.bench.environment.jetson.programs import NVPMODEL_QUERY, answer_of, mode_of_answer
from edgebert.bench.environment.schema import PowerMode
from edgebert.bench.environment.system_files import SystemFiles

DEFINITIONS = "/etc/nvpmodel.conf"
STATUS = "/var/lib/nvpmodel/status"  # readable by all where `nvpmodel -q` may ask for root

_DEFINITION = re.compile(r"<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=(\S{1,60})\s*>")
_CHOSEN = re.compile(r"\bpmode:(\d{1,6})\b")
_WATTS = re.compile(r"(\d{1,4})W")


def read_power_mode(files: SystemFiles) -> PowerMode | None:
    """Return the mode that is on, or None where neither the file nor `nvpmodel -q` tells."""
    modes = defined_modes(files)
    chosen = _CHOSEN.search(files.text(STATUS) or "")
    if chosen:
        return PowerMode(id=int(chosen[1]), name=modes.get(int(chosen[1])))
    asked = mode_of_answer(answer_of(files, NVPMODEL_QUERY) or "")
    return None if asked is None else PowerMode(id=asked[0], name=asked[1])


def defined_modes(files: SystemFiles) -> dict[int, str]:
    """Return number -> name of the modes that this board has; the numbers mean other modes on other boards."""
    return {int(number): name for number, name in _DEFINITION.findall(files.text(DEFINITIONS) or "")}


def highest(modes: Mapping[int, str]) -> int | None:
    """Return the number of the mode with the most power, by its name; None where no name tells.

    `MAXN_SUPER` is above `MAXN`, and both are above every number of watts. Mode 0 is the highest on some boards only.
    """
    ranks = {number: rank for number, name in modes.items() if (rank := _rank(name)) is not None}
    return max(ranks, key=lambda number: ranks[number], default=None)


def _rank(name: str) -> tuple[int, int] | None:
    if "MAXN" in name:
        return (2 if "SUPER" in name else 1, 0)
    watts = _WATTS.search(name)
    return (0, int(watts[1])) if watts else None
