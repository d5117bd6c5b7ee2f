"""What the harness itself adds: the recorder's cost of a query, and how late an open loop issues what it should.

    python benchmarks/harness_cost.py --json harness_cost.json

Measured as in every result (`arms[].harness`): in a worker process of its own, by the very loop that times a model, over a
pipeline that does nothing. Aims: 1 microsecond a query, p99 lateness 1 ms. The medians of the processes are held against them; the
highest of them is printed too, as a shared computer takes the processor away now and then. Ends with FAIL where a median misses
its aim.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

AIM_NS = {"recorder_ns": 1_000, "lateness_p99_ns": 1_000_000}

_CHILD = """
import json, sys
from edgebert.bench.harness_cost import harness_cost
cost = harness_cost()
print(json.dumps({"recorder_ns": cost.recorder_ns, "recorder_p99_ns": cost.recorder_p99_ns,
                  "timer_overhead_ns": cost.timer_overhead_ns, "lateness_p50_ns": cost.lateness.p50,
                  "lateness_p99_ns": cost.lateness.p99, "lateness_max_ns": cost.lateness.max}))
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure in fresh processes, print a line for each figure and the verdict; return 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows = [
        json.loads(subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True).stdout)
        for _ in range(given.processes)
    ]
    middles = {name: median(row[name] for row in rows) for name in rows[0]}
    for name, middle in middles.items():
        aim = f", aim {AIM_NS[name]:,}" if name in AIM_NS else ""
        print(f"{name}: median {middle:,.0f}, highest {max(row[name] for row in rows):,} of {len(rows)} processes{aim}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    passed = all(middles[name] <= aim for name, aim in AIM_NS.items())
    print(
        f"{'PASS' if passed else 'FAIL'} recorder {middles['recorder_ns']:.0f} ns a query, "
        f"lateness p99 {middles['lateness_p99_ns'] / 1e3:.0f} microseconds"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
