"""From the start of a process to its first prediction, against a process that does no more than OpenVINO must.

    python benchmarks/start_time.py                                 makes a bundle of 1 ms
    python benchmarks/start_time.py --bundle a.edgebert --bundle b.edgebert --starts 30 --json start.json

Ours: `Classifier(BUNDLE, target="intel-cpu")` and one `predict` of an array. Bare: `import openvino, numpy`, read and compile the very
same `model.xml` and `model.bin`, and one inference; the event that `import openvino` sends over the network otherwise is kept off on
both sides, which makes the bare one faster. What ours does more: every file of the bundle is read and hashed, not only this form;
the manifest is parsed; every canary is decoded and answered; the class names are there.

Fresh processes, one pair after the other in random order, the files in the page cache. The time ends when the process says that it
has its answer. Must hold: the median of ours is at most 2 times the median of the bare one's. Ends with PASS or FAIL; returns 1 where
a bundle fails. About a second for each start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from _timed_bundles import timed_bundle

from edgebert.bench.statistics.formulas import percentile_interval
from edgebert.bundle import read_bundle

BOUND = 2.0
_RESAMPLES = 2_000
_TIMEOUT_S = 300

_OURS = """
import sys
from edgebert import Classifier
import numpy
classifier = Classifier(sys.argv[1], target="intel-cpu")
spec = classifier.input_spec
answer = classifier.predict(numpy.zeros((spec.height, spec.width, 3), numpy.uint8))
print(answer.index, flush=True)
"""

_BARE = """
import sys
sys.modules["openvino_telemetry"] = None
import openvino, numpy
core = openvino.Core()
model = core.read_model(sys.argv[1] + "/model.xml", sys.argv[1] + "/model.bin")
_, height, width, _ = (side.get_length() if side.is_static else 1 for side in model.inputs[0].partial_shape)
model.reshape([1, height, width, 3])
compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
answer = compiled(numpy.zeros((1, height, width, 3), numpy.uint8))[0]
print(int(answer.argmax()), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What was found for one bundle; seconds of each start.

    Attributes:
        bundle: its name.
        size_bytes: of all its files.
        ours_s: until our first prediction.
        bare_s: until OpenVINO's first answer.
    """

    bundle: str
    size_bytes: int
    ours_s: tuple[float, ...]
    bare_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of ours over median of the bare one."""
        return median(self.ours_s) / median(self.bare_s)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the ratio; pairs are resampled."""
        ours, bare = np.array(self.ours_s), np.array(self.bare_s)
        picks = np.random.default_rng(0).integers(len(ours), size=(_RESAMPLES, len(ours)))
        interval = percentile_interval(np.median(ours[picks], axis=1) / np.median(bare[picks], axis=1))
        return float(interval[0]), float(interval[1])

    def to_text(self) -> str:
        """Return one line."""
        low, high = self.interval
        return (
            f"{self.bundle} ({self.size_bytes / 1e6:.1f} MB): ours {1e3 * median(self.ours_s):.0f} ms, "
            f"bare {1e3 * median(self.bare_s):.0f} ms, ratio {self.ratio:.2f} ({low:.2f} to {high:.2f}), bound {BOUND:g}: "
            f"{'PASS' if self.ratio <= BOUND else 'FAIL'}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Start both for every bundle, print a line for each and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", help="repeatable, with a form for intel-cpu")
    parser.add_argument("--starts", type=int, default=15, help="of each side")
    parser.add_argument("--folder", type=Path, help="where the bundle that is made where none is named is kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="start-time-") as scratch:
        found = []
        for bundle in given.bundle or [timed_bundle(1.2, given.folder or Path(scratch))]:
            found.append(measured(bundle, starts=given.starts))
            print(found[-1].to_text(), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    worst = max(found, key=lambda one: one.ratio)
    passed = worst.ratio <= BOUND
    print(
        f"{'PASS' if passed else 'FAIL'} the first prediction takes at most {worst.ratio:.2f} times what importing, reading and "
        f"compiling take ({worst.bundle}, {len(worst.ours_s)} starts)"
    )
    return 0 if passed else 1


def measured(bundle: Path, *, starts: int) -> Start:
    """Start both sides in turn; the first pair fills the page cache and is not counted."""
    sides: tuple[list[float], list[float]] = [], []
    commands = (
        (sys.executable, "-c", _OURS, str(bundle)),
        (sys.executable, "-c", _BARE, str(bundle / "forms" / "intel-cpu")),
    )
    random = np.random.default_rng(0)
    for pair in range(starts + 1):
        for side in random.permutation(2).tolist():
            seconds = _seconds_to_answer(commands[side])
            if pair:
                sides[side].append(seconds)
    return Start(
        bundle=bundle.stem,
        size_bytes=read_bundle(bundle).size_bytes,
        ours_s=tuple(sides[0]),
        bare_s=tuple(sides[1]),
    )


def _seconds_to_answer(command: Sequence[str]) -> float:
    """Return the seconds from the start of a process to the line that it prints.

    Raises:
        RuntimeError: it printed none.
    """
    # The checkout that runs this, also where the package is installed from elsewhere.
    paths = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        _, said = process.communicate(timeout=_TIMEOUT_S)
    if not line.strip():
        raise RuntimeError(f"no answer: {said.decode(errors='replace')[-2_000:]}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
