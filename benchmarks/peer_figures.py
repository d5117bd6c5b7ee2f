"""Checks that the page for those who know another tool names every figure of it: docs/bench-peers.md.

    python benchmarks/peer_figures.py

The figures of benchmark_app are read out of the installed tool's own source, so that a new one is noticed; those of trtexec, which is
not installed here, stand below as its 10.x and 11.x print them. Ends with FAIL where the page leaves one out.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs/bench-peers.md"

BENCHMARK_APP = ("Count", "Duration", "Throughput", "Median", "Average", "Min", "Max")
TRTEXEC = (
    "Throughput",
    "Latency",
    "Enqueue Time",
    "H2D",
    "GPU Compute Time",
    "D2H",
    "Total Host Walltime",
    "Total GPU Compute Time",
    "--warmUp",
    "--iterations",
    "--duration",
    "--useSpinWait",
    "--noDataTransfers",
    "--useCudaGraph",
    "--percentile",
    "--avgRuns",
    "--infStreams",
)


def main() -> int:
    """Print which figures the page names; return 1 where it leaves one out."""
    text = PAGE.read_text(encoding="utf-8")
    said = _said_by_benchmark_app()
    lost = [name for name in BENCHMARK_APP if name not in said]
    missing = [name for name in (*BENCHMARK_APP, *TRTEXEC) if name not in text]
    for name in lost:
        print(f"benchmark_app no longer says `{name}`")
    for name in missing:
        print(f"docs/bench-peers.md does not name `{name}`")
    passed = not missing and not lost
    print(
        f"{'PASS' if passed else 'FAIL'} {len(BENCHMARK_APP)} figures of benchmark_app, {len(TRTEXEC)} of trtexec in docs/bench-peers.md"
    )
    return 0 if passed else 1


def _said_by_benchmark_app() -> str:
    """Return the source of the installed tool, as one text."""
    found = importlib.util.find_spec("openvino")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "tools/benchmark"
    return re.sub(r"\s+", " ", " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))))


if __name__ == "__main__":
    sys.exit(main())
