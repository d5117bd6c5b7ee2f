"""Peak memory of `quantize` with 500 and with 10,000 calibration images of Fashion-MNIST, and of NNCF alone beside it.

    python benchmarks/calibration_memory.py FOLDER                       FOLDER holds fashion_mnist/
    python benchmarks/calibration_memory.py FOLDER --graph student.onnx  a ready FP32 student instead of training one

Each run is a process of its own; its largest resident set is what the operating system counted, mapped files included. It
differs by some megabytes from run to run, so each is run three times in turn, and the medians are compared. NNCF alone is
`nncf.quantize` with `model_type=TRANSFORMER` on the same data set and images, which it reads one after the other: evidence, not
judged.

Expected: edgebert's grows by at most a tenth. Returns 1 where it grows by more. Both figures hold what reading a data set of 70,000
images takes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edgebert.bench.codec import to_json

FEW, MANY, MOST_RATIO, RUNS = 500, 10_000, 1.10, 3
QUANTISERS = ("edgebert", "nncf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The runs of one quantiser with so many images: bytes of the largest resident set, and seconds."""

    quantiser: str
    images: int
    peak_bytes: tuple[int, ...]
    seconds: tuple[float, ...]

    def to_text(self) -> str:
        """Return one line for a terminal."""
        peaks = " / ".join(f"{peak / 2**20:,.0f}" for peak in self.peak_bytes)
        return f"{self.quantiser}, {self.images:,} images: {peaks} MiB, {statistics.median(self.seconds):.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What `run` found, and by how much the median peak of each quantiser grows from few to many images."""

    measured: tuple[Measured, ...]

    def ratio(self, quantiser: str) -> float:
        """Return the median peak with many images over that with few."""
        medians = {
            each.images: statistics.median(each.peak_bytes) for each in self.measured if each.quantiser == quantiser
        }
        return medians[max(medians)] / medians[min(medians)]

    @property
    def passed(self) -> bool:
        """Whether edgebert's grows by little."""
        return self.ratio("edgebert") <= MOST_RATIO

    def to_text(self) -> str:
        """Return one line for each row and the verdict."""
        counts = sorted({each.images for each in self.measured})
        lines = [each.to_text() for each in self.measured]
        lines.append(
            f"{'PASS' if self.passed else 'FAIL'} peak memory of quantize with {counts[-1]:,} calibration images over "
            f"{counts[0]:,}: {self.ratio('edgebert'):.3f}, at most {MOST_RATIO:.2f} (NNCF alone: {self.ratio('nncf'):.3f})"
        )
        return "\n".join(lines)


def run(graph: Path, data: str) -> Memory:
    """Measure both quantisers with few and many images, in turn.

    Args:
        graph: an FP32 graph of edgebert's.
        data: DATA with enough training images.
    """
    found: dict[tuple[str, int], list[tuple[int, float]]] = {
        (quantiser, images): [] for quantiser in QUANTISERS for images in (FEW, MANY)
    }
    with tempfile.TemporaryDirectory(prefix="calibration-memory-") as folder:
        for number in range(RUNS):
            for (quantiser, images), each in found.items():
                output = Path(folder) / f"{quantiser}-{images}-{number}.onnx"
                command = ["-m", "edgebert", "quantize", str(graph), "--calibration", data, "-o", str(output)]
                command += ["--images", str(images)]
                if quantiser == "nncf":
                    command = [__file__, data, "--graph", str(graph), "--nncf", str(images)]
                each.append(_measured(command))
    return Memory(
        measured=tuple(
            Measured(
                quantiser=quantiser,
                images=images,
                peak_bytes=tuple(peak for peak, _ in each),
                seconds=tuple(seconds for _, seconds in each),
            )
            for (quantiser, images), each in found.items()
        )
    )


def _measured(command: list[str]) -> tuple[int, float]:
    """Run a command of Python's and return its largest resident set in bytes, and its seconds.

    The operating system counts this process's own set as the child's until the child starts its program, so nothing heavy may be
    imported here.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=told,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise SystemExit(told.read().decode())
    return usage.ru_maxrss * 1024, time.monotonic() - started  # Linux counts in KiB


def quantise_by_nncf(graph: Path, data: str, images: int) -> None:
    """Let NNCF quantise; it reads the images one after the other, and what it makes is thrown away."""
    from edgebert.extras import require

    require("nncf")  # switches its telemetry off before the import
    import nncf
    import numpy as np
    from numpy.typing import NDArray

    from edgebert.calibration.images import calibration_examples
    from edgebert.data import Example, load_dataset
    from edgebert.export.metadata import card_of_model, parse_graph
    from edgebert.preprocess import load_image

    model = parse_graph(graph)
    rule = card_of_model(model).preprocessing
    del model.metadata_props[:]

    def feed(example: Example) -> dict[str, NDArray[np.uint8]]:
        return {"image": load_image(example.load(), rule)[np.newaxis]}  # (1, height, width, 3)

    chosen = calibration_examples(load_dataset(data), images)
    nncf.quantize(model, nncf.Dataset(chosen, feed), subset_size=images, model_type=nncf.ModelType.TRANSFORMER)


def student(source: Path, output: Path, ready: Path | None) -> tuple[Path, str]:
    """Return the Fashion-MNIST student that `quantisation.py` uses, and its data, made by a process of its own."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from _graphs import subject;"
        "paths = [Path(each) for each in sys.argv[2:]];"
        "made = subject('fashion', *paths[:2], graph=paths[2] if paths[2:] else None); print(made.graph); print(made.data)"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(source), str(output)]
    command += [] if ready is None else [str(ready)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    graph, data = ran.stdout.splitlines()[-2:]
    return Path(graph), data


def main() -> int:
    """Print the figures and the verdict; return 0 where it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="holds fashion_mnist/; with --nncf, DATA")
    parser.add_argument("--graph", type=Path, metavar="FILE", help="a ready FP32 graph")
    parser.add_argument("--output", type=Path, default=Path("runs/quantisation"))
    parser.add_argument("--nncf", type=int, metavar="IMAGES", help="only let NNCF quantise, in this process")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if arguments.nncf is not None:
        quantise_by_nncf(arguments.graph, str(arguments.source), arguments.nncf)
        return 0
    graph, data = student(arguments.source, arguments.output, arguments.graph)
    found = run(graph, data)
    print(found.to_text())
    if arguments.json:
        text = json.dumps({**to_json(found), "ratio": found.ratio("edgebert"), "passed": found.passed}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
