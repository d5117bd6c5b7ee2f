"""Peak memory of `distill` on 6,000 and on 60,000 images of Fashion-MNIST.

    python benchmarks/distil_memory.py SOURCE

SOURCE is a folder with the four gzipped idx files. Each run is one epoch with a teacher's cache, in a process of its own; its
largest resident set is what the operating system counted, mapped files included. It differs by some ten megabytes from run to run (huge
pages, threads), so each is run three times in turn, and the medians are compared. Expected: at most 1.15 times as much.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _fashion import fashion_data

FEW, MANY, MOST_RATIO, RUNS = 6_000, 60_000, 1.15, 3


def main() -> int:
    """Print both figures and their ratio; return 0 where it is small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four gzipped idx files")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distil-memory-") as name:
        folder = Path(name)
        few, many = (fashion_data(arguments.source, folder / str(images), images) for images in (FEW, MANY))
        common = ["--batch-size", "128", "--image-size", "28", "--device", "cpu", "--epochs", "1"]
        _peak_bytes(["train", str(few), "--model", "cnn", *common, "-o", str(folder / "teacher")])
        command = ["--teacher", str(folder / "teacher"), "--student", "d64-l2-h2-r2", *common, "--mixup", "0.4"]
        command += ["--cache-views", "2"]
        peaks: dict[int, list[int]] = {FEW: [], MANY: []}
        for run in range(RUNS):
            for images, data in ((FEW, few), (MANY, many)):
                output = folder / f"student-{images}-{run}"
                peaks[images].append(_peak_bytes(["distill", str(data), *command, "-o", str(output)]))
    ratio = statistics.median(peaks[MANY]) / statistics.median(peaks[FEW])
    passed = ratio <= MOST_RATIO
    told = ", ".join(
        f"{' / '.join(f'{peak / 2**20:,.0f}' for peak in each)} MiB on {images:,} images"
        for images, each in peaks.items()
    )
    print(
        f"peak memory of distill: {told}: medians {ratio:.3f} times, at most {MOST_RATIO}: {'PASS' if passed else 'FAIL'}"
    )
    if arguments.json:
        result = {"bytes": {str(images): each for images, each in peaks.items()}, "ratio": ratio, "passed": passed}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


def _peak_bytes(command: list[str]) -> int:
    """Run a command of edgebert's and return its largest resident set."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgebert", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(told)
    return usage.ru_maxrss * 1024  # Linux counts in KiB


if __name__ == "__main__":
    sys.exit(main())
