"""Start a command twice at the same moment, with the same output: exactly one may work, and a killed one must block nobody.

    python benchmarks/lock_races.py --races 100

Each race forks two processes that begin `compile` or `quantize` (their first checks, a run of 0.3 s, their writing phase) into one
output. One must succeed, the other must exit with 75 within 2 seconds and name the winner's process. Then a third process is killed
while it holds the lock, with a forked worker of its own still alive, and a fourth must succeed at once. Races of `install` are in
`install_kills.py`. Prints one line, last; returns 1 where a race went otherwise.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _faults import Ended, Scenario, in_child, laid, scratch, started
from _scenarios import scenarios_of

from edgebert._files import claimed

RUN_S = 0.3
LOSER_S = 2.0


def main() -> int:
    """Race; 0 where each had one winner and no killed run blocked the next one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=100)
    given = parser.parse_args()
    scenarios = [
        scenario
        for command in ("compile", "quantize")
        for scenario in scenarios_of(command)
        if scenario.name.endswith((", new", ", replaced"))
    ]
    faults: list[str] = []
    slowest = 0.0
    with scratch("lock-races-") as folder:
        for number in range(given.races):
            scenario = scenarios[number % len(scenarios)]
            with laid(scenario, Path(folder)) as place:
                took, fault = _race(scenario, place)
                slowest = max(slowest, took)
                faults += [f"{scenario.name}: {fault}"] if fault else []
            with laid(scenario, Path(folder)) as place:
                fault = _after_a_kill(scenario, place)
                faults += [f"{scenario.name}, after a kill: {fault}"] if fault else []
    for fault in faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    print(
        f"lock races of compile and quantize: {given.races} double starts and {given.races} kills, {len(faults)} without exactly "
        f"one winner or blocked by a killed run, the slowest loser was told after {slowest:.2f} s"
    )
    return 1 if faults else 0


def _run(scenario: Scenario, place: Path) -> Callable[[], None]:
    def run() -> None:
        with claimed(place / scenario.finals[0]):
            time.sleep(RUN_S)
            scenario.write(place)

    return run


def _race(scenario: Scenario, place: Path) -> tuple[float, str | None]:
    """Return after how many seconds the loser was told, and what is wrong."""
    begun = time.monotonic()
    with started(_run(scenario, place)) as first, started(_run(scenario, place)) as second:
        pids = {first.pid, second.pid}
        first.go()
        second.go()
        ends: dict[int, tuple[float, Ended]] = {}
        while pids - ends.keys():
            for child in (first, second):
                if child.pid not in ends and (ended := child.poll()) is not None:
                    ends[child.pid] = time.monotonic() - begun, ended
            time.sleep(0.001)
    codes = sorted(ended.code for _, ended in ends.values())
    if codes != [0, 75]:
        return 0.0, f"ended with {codes}: {[ended.said for _, ended in ends.values()]}"
    (loser,) = (pid for pid, (_, ended) in ends.items() if ended.code == 75)
    (winner,) = pids - {loser}
    took, ended = ends[loser]
    if f"pid {winner}" not in ended.said:
        return took, f"the loser was not told of {winner}: {ended.said}"
    return took, None if took <= LOSER_S else f"the loser was told after {took:.1f} s"


def _after_a_kill(scenario: Scenario, place: Path) -> str | None:
    """Kill a run that holds the lock and has a worker; return what is wrong with the next one."""
    worker = place.parent / "worker"

    def run() -> None:
        with claimed(place / scenario.finals[0]):
            pid = os.fork()
            if pid == 0:
                os.closerange(3, 256)  # the pipes of this script
                time.sleep(60)
                os._exit(0)
            worker.write_text(str(pid))
            time.sleep(60)

    with started(run) as child:
        child.go()
        while not worker.exists() or not worker.read_text():
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        os.kill(int(worker.read_text()), 0)
        child.wait()
    try:
        ended = in_child(lambda: scenario.write(place))
    finally:
        os.kill(int(worker.read_text()), signal.SIGKILL)
        worker.unlink()
    return None if ended.code == 0 else f"the next run ended with {ended.code}: {ended.said}"


if __name__ == "__main__":
    sys.exit(main())
