"""What to know, and to mend, before a measurement: `edgebert doctor --bench`. Nothing is changed.

>>> worst((Check(name="swap", state="pass", found="0 MB", why="", fix=""),))
'pass'
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebert._console import columns
from edgebert.bench.environment.computer import read_ticks
from edgebert.bench.environment.sensors import read_throttle_events
from edgebert.bench.environment.system_files import SystemFiles, affinity, read_cpuinfo, read_hypervisor

State = Literal["pass", "warn", "fail", "unknown"]

_ORDER: tuple[State, ...] = ("fail", "warn", "unknown", "pass")
WATCH_S = 0.5  # long enough for 50 ticks of 10 ms on each processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        state: `fail` where a measurement made now would not be worth its time, `warn` where it may be disturbed or
            differ from one made elsewhere, `unknown` where it could not be read.
        found: the value.
        why: what it does to a measurement; for `unknown`, why it could not be read.
        fix: the command that changes it; empty where nothing needs to change, or no command can.
    """

    name: str
    state: State
    found: str
    why: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Counters of one moment: ticks of all processors (stolen, idle, all), stops, and ticks by process.

    `processes` maps (pid, start) to (name, ticks): a pid that is used again is another process.
    """

    ticks: tuple[int, int, int] | None
    throttle_events: int | None
    processes: Mapping[tuple[int, str], tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the checks look at.

    Attributes:
        files: the computer, or a recorded tree.
        before: when watching began.
        after: when it ended.
        elapsed_s: in between.
        virtualised: whether the processor says that it is a virtual one.
        usable: processors this process may run on.
        environ: environment variables.
        load: average of the last minute, None where there is none.
        temporary: folder for temporary files.
        free_bytes: of its disk.
    """

    files: SystemFiles
    before: Moment
    after: Moment
    elapsed_s: float
    virtualised: bool
    usable: tuple[int, ...]
    environ: Mapping[str, str]
    load: float | None
    temporary: str
    free_bytes: int


def preflight(root: Path = Path("/")) -> tuple[Check, ...]:
    """Watch the computer for half a second and return what was found, the worst first.

    Args:
        root: where `proc` and `sys` lie; another folder serves recorded trees.
    """
    return checks_of(observe(SystemFiles(root)))


def observe(files: SystemFiles, *, watch_s: float = WATCH_S) -> Observation:
    """Read the counters twice, `watch_s` apart, and what else the checks need."""
    before, begun = _moment(files), time.perf_counter()
    time.sleep(watch_s)
    after, elapsed = _moment(files), time.perf_counter() - begun
    temporary = tempfile.gettempdir()
    return Observation(
        files=files,
        before=before,
        after=after,
        elapsed_s=elapsed,
        virtualised=read_hypervisor(files, read_cpuinfo(files)) is not None,
        usable=affinity(),
        environ=dict(os.environ),
        load=_load(files),
        temporary=temporary,
        free_bytes=shutil.disk_usage(temporary).free,
    )


def checks_of(observation: Observation) -> tuple[Check, ...]:
    """Return the checks of an observation, the worst first."""
    from edgebert.bench.environment.jetson.checks import jetson_checks
    from edgebert.bench.environment.preflight_checks import CHECKS

    found = [*(check(observation) for check in CHECKS), *jetson_checks(observation)]
    return tuple(sorted(found, key=lambda check: _ORDER.index(check.state)))


def worst(checks: Sequence[Check]) -> State:
    """Return the worst state; `unknown` is no better and no worse than `pass`, and `pass` is said of both."""
    states = {check.state for check in checks}
    return "fail" if "fail" in states else "warn" if "warn" in states else "pass"


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 where a check failed, else 0: a warning is for the reader to weigh."""
    return 1 if worst(checks) == "fail" else 0


def text_of_checks(checks: Sequence[Check]) -> str:
    """Return a table of what was found, then why each finding matters and the command that mends it."""
    rows = [
        (check.state, check.name, f"- ({check.why})" if check.state == "unknown" else check.found) for check in checks
    ]
    table = columns(("state", "check", "found"), rows)
    notes = []
    for check in checks:
        if check.state in ("fail", "warn"):
            notes.append(f"{check.state} {check.name}: {check.why}" + (f"\n  {check.fix}" if check.fix else ""))
    counts = ", ".join(
        f"{count} {state}" for state in _ORDER if (count := sum(check.state == state for check in checks))
    )
    return "\n\n".join((table, *notes, f"{counts}; nothing was changed"))


def _moment(files: SystemFiles) -> Moment:
    return Moment(ticks=read_ticks(files), throttle_events=read_throttle_events(files), processes=_processes(files))


def _processes(files: SystemFiles) -> dict[tuple[int, str], tuple[str, int]]:
    """Return the processor ticks of every process but this one."""
    found = {}
    for path in files.paths("/proc/[0-9]*/stat"):
        pid = int(path.split("/")[2])
        # The name is in parentheses and may hold any character, these too (proc(5)).
        match = re.fullmatch(r"\d+ \((.*)\) (.*)", files.text(path) or "", re.DOTALL)
        fields = match[2].split() if match else []
        if match and pid != os.getpid() and len(fields) > 19 and fields[11].isdigit() and fields[12].isdigit():
            found[pid, fields[19]] = (match[1], int(fields[11]) + int(fields[12]))
    return found


def _load(files: SystemFiles) -> float | None:
    first = (files.text("/proc/loadavg") or "").partition(" ")[0]
    return float(first) if re.fullmatch(r"\d{1,6}\.\d{1,4}", first) else None
