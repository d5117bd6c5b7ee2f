"""Let every write of a command fail, and look whether the old artefact is still there.

    python benchmarks/disk_full.py                          compile, quantize and install
    python benchmarks/disk_full.py --command install --every 5
    python benchmarks/disk_full.py --mutants                writers with a fault: each must be caught

Each state-changing call of the writing phase fails once with each of ENOSPC, EDQUOT, EIO and EROFS (strace); then files may not grow
beyond sizes from 0 to the largest (RLIMIT_FSIZE); then the disk, a tmpfs, is too small by steps of 4 KiB, if this process may
mount one. The command must exit 74 with a message that names its output and with the old content at every final name, or exit 0 with
the new content; called again with room it must succeed and leave nothing behind. Needs strace.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _faults import Scenario, Sweep, Tally, in_child, laid, scratch, why_not_here
from _scenarios import COMMANDS, mutants, scenarios_of

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "EROFS")
PAGE = 4096


def main() -> int:
    """Sweep; 0 where every trial ended as it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=COMMANDS, action="append", help="repeatable; default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th call and size")
    parser.add_argument("--mutants", action="store_true", help="sweep the faulty writers; 0 where each is caught")
    given = parser.parse_args()
    reason = why_not_here()
    if reason is not None:
        print(f"disk full: not run: {reason}")
        return 1
    with scratch("disk-full-") as folder:
        if given.mutants:
            return _mutants(Path(folder), given.every)
        return _commands(Path(folder), given.command or COMMANDS, given.every)


def _commands(folder: Path, commands: tuple[str, ...], every: int) -> int:
    total, sizes = Tally(), 0
    scenarios = [scenario for command in commands for scenario in scenarios_of(command)]
    for number, scenario in enumerate(scenarios):
        started = time.monotonic()
        sweep = Sweep(scenario, folder)
        tally = Tally()
        for shift, error in enumerate(ERRORS):
            tally.add(sweep.errors(sweep.points[(number + shift) % every :: every], error))
        tally.add(sweep.limits(range(0, _largest(scenario, folder) + PAGE, PAGE * every)))
        small = _small_disks(sweep, folder, every)
        sizes += small.points
        tally.add(small)
        took = time.monotonic() - started
        print(
            f"{scenario.name}: {tally.points} trials, ended {dict(tally.ended)}, {len(tally.faults)} faults, {took:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        for fault in tally.faults[:5]:
            print(f"  {fault}", file=sys.stderr, flush=True)
        total.add(tally)
    print(
        f"disk full of {', '.join(commands)}: {total.points} failures in {len(scenarios)} scenarios ({sizes} on disks too "
        f"small), exits {dict(sorted(total.ended.items()))}, {len(total.torn) + len(total.wrong_exit)} with another exit or "
        f"without the old artefact, {len(total.failed_next)} next calls failed"
    )
    return 1 if total.faults else 0


def _mutants(folder: Path, every: int) -> int:
    missed, found = [], 0
    for scenario in mutants():
        sweep = Sweep(scenario, folder)
        tally = sweep.errors(sweep.points[::every], "ENOSPC")
        tally.add(_small_disks(sweep, folder, 4 * every))
        found += len(tally.faults)
        print(f"{scenario.name}: {len(tally.faults)} of {tally.points}", file=sys.stderr, flush=True)
        missed += [] if tally.faults else [scenario.name]
    print(f"disk full of {len(mutants())} mutants: {found} faults found, missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def _largest(scenario: Scenario, folder: Path) -> int:
    with laid(scenario, folder) as place:
        in_child(lambda: scenario.write(place))
        return max(entry.stat().st_size for entry in place.rglob("*") if entry.is_file())


def _small_disks(sweep: Sweep, folder: Path, every: int) -> Tally:
    """Run the writer on disks from the size of what lies there to what it needs."""
    tally = Tally()
    if os.geteuid() != 0:
        return tally
    with laid(sweep.scenario, folder) as place:
        first = _pages(place)
        in_child(lambda: sweep.scenario.write(place))
        last = first + _pages(place) + 16  # the old one and the new one side by side
    for pages in range(first + 1, last, every):
        with _disk(folder / "place", pages) as mounted:
            if not mounted:
                return tally
            with laid(sweep.scenario, folder, inside=folder / "place" / "in") as place:
                ended = in_child(lambda place=place: sweep.scenario.write(place))
                subprocess.run(["mount", "-o", "remount,size=64m", str(folder / "place")], check=True)
                sweep.judge(tally, f"a disk of {pages} pages", ended, place)
    return tally


@contextmanager
def _disk(at: Path, pages: int) -> Iterator[bool]:
    """Mount a tmpfs of as many pages; yield whether that was possible."""
    at.mkdir()
    options = f"size={pages * PAGE},nr_inodes=0"
    ran = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(at)], capture_output=True, check=False)
    try:
        yield ran.returncode == 0
    finally:
        if ran.returncode == 0:
            subprocess.run(["umount", "-l", str(at)], check=True)
        at.rmdir()


def _pages(place: Path) -> int:
    entries = [place, *place.rglob("*")]
    return sum(-(-entry.stat().st_size // PAGE) if entry.is_file() else 1 for entry in entries)


if __name__ == "__main__":
    sys.exit(main())
