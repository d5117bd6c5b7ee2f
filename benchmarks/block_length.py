"""How long a block should be before the arms take turns: the spread of A/A contrasts over launches, for several lengths.

    python benchmarks/block_length.py FOLDER --graph student.onnx            FOLDER holds fashion_mnist/

A graph runs against itself with one thread, as `edgebert bench` does it, once for each length. A launch gives one number, the
logarithm of the ratio of two copies of the same thing; its standard deviation over launches is what hides a difference. It varies
from run to run itself, as what disturbs a shared computer comes and goes: take orders of magnitude from it. About a minute each.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _fashion import fashion_data
from _graphs import subject

from edgebert.bench import BenchOptions, result_from_arms, schedule
from edgebert.bench.analysis import block_medians, single_stream_launches
from edgebert.bench.result import read_result_samples

LENGTHS_MS = (200, 60, 20, 10)


def main(arguments: list[str] | None = None) -> int:
    """Measure each length and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="holds fashion_mnist/")
    parser.add_argument("--graph", type=Path, help="a ready FP32 student instead of training one")
    parser.add_argument("--output", type=Path, default=Path("runs/aa"), help="where student and data are kept")
    parser.add_argument("--launches", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0, help="timed per arm, in all launches")
    given = parser.parse_args(arguments)
    logging.getLogger("edgebert").setLevel(logging.ERROR)
    graph = given.graph or subject("fashion", given.source, given.output).graph
    data = str(fashion_data(given.source / "fashion_mnist", given.output / "aa-data", images=1_800))
    print("block ms  rounds  sd of d %  median |d| %  seconds")
    for length_ms in LENGTHS_MS:
        schedule.BLOCK_NS = length_ms * 1_000_000  # the plan is made in this process
        started = time.monotonic()
        contrasts, rounds = _contrasts(graph, data, launches=given.launches, seconds=given.seconds)
        print(
            f"{length_ms:8d}  {rounds:6d}  {100 * contrasts.std(ddof=1):9.2f}  {100 * np.median(np.abs(contrasts)):12.2f}  "
            f"{time.monotonic() - started:7.0f}",
            flush=True,
        )
    return 0


def _contrasts(graph: Path, data: str, *, launches: int, seconds: float) -> tuple[np.ndarray, int]:
    """Return d of each launch, float64 (launches,), and the rounds of a launch."""
    options = BenchOptions(
        data=data, launches=launches, seconds=seconds, max_warmup_seconds=0.3, threads=1, queries=1, force=True
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "r.json"
        result = result_from_arms([f"a={graph}"], output, options)
        samples = read_result_samples(output, result)
    found, rounds = [], 0
    for launch in single_stream_launches(samples):
        first, second = (np.log(block_medians(samples, arm, launch)).mean(axis=1) for arm in (0, 1))
        found.append(float(np.median(second - first)))
        rounds = len(first)
    return np.array(found), rounds


if __name__ == "__main__":
    sys.exit(main())
