"""Kill a writing command at every state-changing system call of its writing phase, and look at what is left.

    python benchmarks/kill_sweep.py                          compile, quantize and install, every call
    python benchmarks/kill_sweep.py --command compile --every 10
    python benchmarks/kill_sweep.py --mutants                writers with a fault: each must be caught

After each kill every final name must hold its old or its new content, bit for bit, and the same command called again must succeed
without a manual step and leave nothing behind. Each scenario is swept three times: killed; killed, and the next call killed as
well; interrupted (SIGINT), where the command must end by itself. Then come `--random` kills at random moments. Needs strace.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _faults import Ended, Sweep, Tally, in_child, laid, scratch, why_not_here
from _proof import commit_of_checkout
from _scenarios import COMMANDS, mutants, scenarios_of


def main() -> int:
    """Sweep; 0 where nothing was torn and every next call succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=COMMANDS, action="append", help="repeatable; default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th call")
    parser.add_argument("--random", type=int, default=1000, help="kills at random moments, over all scenarios")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--keep", type=Path, metavar="JSON", help="finished scenarios: written there, and taken from there"
    )
    parser.add_argument("--mutants", action="store_true", help="sweep the faulty writers; 0 where each is caught")
    given = parser.parse_args()
    reason = why_not_here()
    if reason is not None:
        print(f"kill sweep: not run: {reason}")
        return 1
    with scratch("kill-sweep-") as folder:
        if given.mutants:
            return _mutants(folder, given.every)
        return _commands(folder, given.command or COMMANDS, given.every, given.random, given.seed, given.keep)


def _commands(folder: str, commands: Sequence[str], every: int, randoms: int, seed: int, keep: Path | None) -> int:
    """Sweep every scenario, but those that an interrupted call with the same numbers has kept at this commit."""
    total = Tally()
    scenarios = [scenario for command in commands for scenario in scenarios_of(command)]
    share = -(-randoms // len(scenarios))
    commit = commit_of_checkout()
    kept = json.loads(keep.read_text()) if keep is not None and keep.exists() else {}
    for number, scenario in enumerate(scenarios):
        key = f"{scenario.name}, every {every}, {share} random from {seed + number}, {commit}"
        if key in kept:
            total.add(Tally.from_json(kept[key]))
            continue
        started = time.monotonic()
        sweep = Sweep(scenario, Path(folder))
        points = sweep.points[number % every :: every]
        tally = sweep.kills(points)
        tally.add(sweep.kills(points, twice=True))
        tally.add(sweep.kills(points, signal_name="SIGINT"))
        tally.add(_random_kills(sweep, Path(folder), share, seed + number))
        took = time.monotonic() - started
        print(
            f"{scenario.name}: {len(points)} of {len(sweep.points)} calls, {tally.points} trials, "
            f"ended {dict(tally.ended)}, {tally.missing} missing, {len(tally.faults)} faults, {took:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        for fault in tally.faults[:5]:
            print(f"  {fault}", file=sys.stderr, flush=True)
        total.add(tally)
        if keep is not None:
            kept[key] = tally.to_json()
            keep.write_text(json.dumps(kept))
    print(
        f"kill sweep of {', '.join(commands)}: {total.points} kills and interruptions in {len(scenarios)} scenarios, "
        f"{len(total.torn)} torn or mixed, {len(total.failed_next)} next calls failed, {len(total.wrong_exit)} wrong exit codes"
    )
    return 1 if total.faults else 0


def _mutants(folder: str, every: int) -> int:
    missed, found = [], 0
    for scenario in mutants():
        sweep = Sweep(scenario, Path(folder))
        tally = sweep.kills(sweep.points[::every])
        found += len(tally.faults)
        print(f"{scenario.name}: {len(tally.faults)} of {tally.points}", file=sys.stderr, flush=True)
        missed += [] if tally.faults else [scenario.name]
    print(f"kill sweep of {len(mutants())} mutants: {found} faults found, missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def _random_kills(sweep: Sweep, folder: Path, count: int, seed: int) -> Tally:
    """Kill at random moments of the time that the writer takes."""
    moments, tally = random.Random(seed), Tally()
    with laid(sweep.scenario, folder) as place:
        started = time.monotonic()
        in_child(lambda: sweep.scenario.write(place))
        whole = time.monotonic() - started
    for _ in range(count):
        moment = moments.uniform(0, whole)
        with laid(sweep.scenario, folder) as place:
            ended = _killed(sweep, place, moment)
            sweep.judge(tally, f"killed after {1e3 * moment:.2f} ms", ended, place)
    return tally


def _killed(sweep: Sweep, place: Path, moment: float) -> Ended:
    return in_child(lambda: sweep.scenario.write(place), kill_after=moment)


if __name__ == "__main__":
    sys.exit(main())
