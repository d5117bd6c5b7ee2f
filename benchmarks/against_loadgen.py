"""Our single-stream scenario against that of MLPerf LoadGen, over the same pipeline object and the same images.

    pip install "edgebert[loadgen]"
    python benchmarks/against_loadgen.py digits.onnx fashion.onnx --data digits --json against_loadgen.json

A MODEL is a bundle with a form for `intel-cpu`, or an `.onnx` graph, which is compiled first. A launch is a fresh process that opens
it once; our recorder and LoadGen (SingleStream, performance mode) then time the same object for preprocessing, inference and decision
in turn, ABBA or BAAB, in segments of half a second or 70 queries, SECONDS each in all. A launch's figure is the median over its
segments.

Must hold for p50 and p90 end to end: the medians over launches differ by at most max(2 %, 20 µs). Known differences: LoadGen's clock
is the wall clock and its callback costs about 2 µs; it draws images with replacement, we go through them in turn; it counts
every query, we leave out the first 10 % of a block (200 ms).

Exit 69 where LoadGen is not installed. Duration: about (6 + 2 * SECONDS) * LAUNCHES seconds for each model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _loadgen import SHARES, Segment
from _peers import TARGET, Bound, Comparison, bundle_of, images_of, model_paths, peer_parser, run_comparison

from edgebert.bench.images import write_images
from edgebert.bench.worker_process import worker_environment
from edgebert.bundle import read_bundle
from edgebert.errors import EdgebertError
from edgebert.extras import require

BOUND = Bound(relative=0.02, absolute_ns=20_000)
PEER = "LoadGen SingleStream"
TIMERS = ("edgebert", "loadgen")

_TIMEOUT_S = 600.0


def main(arguments: argparse.Namespace) -> list[Comparison]:
    """Measure every model and return a comparison for each percentile; prints each launch."""
    require("mlperf_loadgen")
    require("openvino")
    comparisons: list[Comparison] = []
    for path in model_paths(arguments):
        launches = measure(path, arguments)
        for figure in SHARES:
            ours, theirs = (tuple(figure_of_launch(each, timer, figure) for each in launches) for timer in TIMERS)
            comparisons.append(
                Comparison(model=path.stem, figure=f"e2e {figure}", peer=PEER, ours=ours, theirs=theirs, bound=BOUND)
            )
    return comparisons


def measure(path: Path, arguments: argparse.Namespace) -> list[list[Segment]]:
    """Return the segments of each launch."""
    launches = []
    with tempfile.TemporaryDirectory(prefix="against-loadgen-") as name:
        folder = Path(name)
        bundle = bundle_of(path, folder)
        card = read_bundle(bundle).manifest.card
        images = write_images(folder / "images", images_of(card, arguments.data, arguments.images, seed=arguments.seed))
        for number in range(arguments.launches):
            request = {
                "load": {"path": str(bundle), "kind": "bundle", "target": TARGET, "threads": arguments.threads},
                "images": images,
                "seconds": arguments.seconds,
                "seed": arguments.seed + number,
            }
            launches.append(launch(request, folder, threads=arguments.threads))
            print(f"{path.stem}, launch {number}: {_said(launches[-1])}", flush=True)
    return launches


def launch(request: dict[str, object], folder: Path, *, threads: int) -> list[Segment]:
    """Run one launch in a process of its own.

    Raises:
        EdgebertError: it failed; LoadGen ends its process where something is wrong.
    """
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("_loadgen.py")), str(asked), str(answered)]
    environment = dict(worker_environment(threads))
    environment.pop("PYTHONSAFEPATH")  # `_loadgen.py` is a script of this folder
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, errors="replace"
    )
    if done.returncode != 0:
        raise EdgebertError(
            f"the launch with LoadGen ended with {done.returncode}", expected=f"0; it said:\n{done.stderr[-2_000:]}"
        )
    return [Segment(**segment) for segment in json.loads(answered.read_text(encoding="utf-8"))]


def figure_of_launch(segments: Sequence[Segment], timer: str, figure: str) -> float:
    """Return the median over a timer's segments."""
    return statistics.median(float(getattr(segment, figure)) for segment in segments if segment.by == timer)


def _said(segments: Sequence[Segment]) -> str:
    parts = []
    for timer in TIMERS:
        figures = "/".join(f"{figure_of_launch(segments, timer, figure) / 1e3:.1f}" for figure in SHARES)
        queries = sum(segment.queries for segment in segments if segment.by == timer)
        parts.append(f"{timer} {'/'.join(SHARES)} {figures} µs of {queries} queries")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(
        run_comparison(main, peer_parser(__doc__).parse_args(), ("edgebert", "mlperf_loadgen", "openvino", "numpy"))
    )
