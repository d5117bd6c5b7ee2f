"""The process that watches the sensors while others are timed: `python -m edgebert.bench.environment.sampler SAMPLES …`.

It appends one row of int64 to the file SAMPLES at each tick: the time, then one value for each column, -1 where it is
missing. On stdout it writes one line when it begins (columns, reasons) and one when it ends (its cost). It ends when
its stdin closes and, on Linux, at once when its parent dies; what it wrote until then can be read.

It yields to all other processes (nice 10), and stays off the processors named by `--avoid` as far as there are others.
Only the standard library is imported: it starts quickly and stays small.

>>> next_tick(due_ns=100, now_ns=130, interval_ns=100), next_tick(due_ns=100, now_ns=330, interval_ns=100)
(200, 400)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import struct
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from edgebert.bench.child import die_with_parent
from edgebert.bench.environment.sensors import merged_reasons, open_sources
from edgebert.bench.environment.source import MISSING, Source
from edgebert.bench.environment.system_files import SystemFiles, affinity, cpu_list, text_of_cpus

NICENESS = 10  # bench.md, section 12
_MOST = (1 << 63) - 1


class Sampling:
    """Reads the sources at each tick, those that are slow less often, and writes rows.

    Args:
        sources: opened.
        write: takes the bytes of a row.
    """

    def __init__(self, sources: Sequence[Source], write: Callable[[bytes], object]) -> None:
        self._sources = sources
        self._write = write
        self._values = [[MISSING] * len(source.columns) for source in sources]
        self._due_ns = [0] * len(sources)
        self.columns = tuple(name for source in sources for name in source.columns)
        self._row = struct.Struct(f"<{1 + len(self.columns)}q")
        self.rows = 0

    def sample(self, now_ns: int) -> None:
        """Write one row; a source that is not due gives the value it had."""
        for index, source in enumerate(self._sources):
            if now_ns >= self._due_ns[index]:
                self._values[index] = source.read()
                self._due_ns[index] = now_ns + int(source.every_s * 1e9)
        values = [
            value if source.lowest <= value <= _MOST else MISSING
            for source, entry in zip(self._sources, self._values, strict=True)
            for value in entry
        ]
        self._write(self._row.pack(now_ns, *values))
        self.rows += 1


def next_tick(*, due_ns: int, now_ns: int, interval_ns: int) -> int:
    """Return when the next sample is due: on the grid of the first, and ticks that were missed are left out."""
    return due_ns + interval_ns * max(1, -(-(now_ns - due_ns) // interval_ns))


def run_sampler(arguments: Sequence[str] | None = None) -> int:
    """Sample until stdin closes."""
    options = _parser().parse_args(arguments)
    die_with_parent()
    own = yield_processors(cpu_list(options.avoid))
    sources = open_sources(SystemFiles(options.root), cpu_list(options.watch))
    with Path(options.samples).open("wb", buffering=0) as file:
        sampling = Sampling(sources, file.write)
        _tell(
            {
                "columns": list(sampling.columns),
                "reasons": merged_reasons(sources),
                "origins": {name: origin for source in sources for name, origin in source.origins.items()},
                "cpus": text_of_cpus(own),
                "clock": time.get_clock_info("perf_counter").implementation,
            }
        )
        begun_s = time.process_time()
        try:
            _sample_until_closed(sampling, int(options.interval_s * 1e9))
        finally:
            for source in sources:
                source.close()  # one of them may be a program
        cost_cpu_s = time.process_time() - begun_s
    _tell({"rows": sampling.rows, "cost_cpu_s": cost_cpu_s})
    return 0


def yield_processors(avoid: Collection[int]) -> tuple[int, ...]:
    """Lower the priority of this process, keep it off `avoid` where others are left, and return where it may run."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(max(0, NICENESS - os.nice(0)))
    others = set(affinity()) - set(avoid)
    if avoid and others and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, others)
    return affinity()


def _sample_until_closed(sampling: Sampling, interval_ns: int) -> None:
    due_ns = time.perf_counter_ns()
    while True:
        sampling.sample(time.perf_counter_ns())
        due_ns = next_tick(due_ns=due_ns, now_ns=time.perf_counter_ns(), interval_ns=interval_ns)
        # Waiting for stdin is the pause: its end wakes us at once.
        readable, _, _ = select.select([0], [], [], max(0.0, (due_ns - time.perf_counter_ns()) / 1e9))
        if readable and not os.read(0, 4096):
            sampling.sample(time.perf_counter_ns())  # counters right after the last block
            return


def _tell(content: object) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edgebert.bench.environment.sampler")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--interval-s", type=float, default=0.1)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--watch", default="", help="processors whose clock is watched; all by default")
    parser.add_argument("--avoid", default="", help="processors of the workers")
    return parser


if __name__ == "__main__":
    sys.exit(run_sampler())
