"""What lies between our `infer` and the plugin's own latency: the call, and what runs between two inferences.

    python benchmarks/infer_region.py digits.onnx fashion.onnx --threads 1

Explains the difference that `against_benchmark_app.py` measures, and judges nothing. The same opened pipeline runs in two ways that
alternate: inference after inference, as benchmark_app does, and with preprocessing and decision in between, as an application and the
harness do. Of each query the time around `infer` and OpenVINO's latency of that request are kept. Expected: the call costs the
same in both, and the plugin itself is slower in the second.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _peers import TARGET, bundle_of, images_of, model_paths, peer_parser

from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline

_QUERIES = 1_000  # of each way and turn
_WAYS = ("inferences only", "with preprocessing and decision")


def main() -> int:
    """Print the medians over turns for each model and way, in µs."""
    arguments = peer_parser(__doc__).parse_args()
    print("| model | between two inferences | around `infer`, µs | in the plugin, µs | the call, µs |")
    print("|---|---|--:|--:|--:|")
    for path in model_paths(arguments):
        with tempfile.TemporaryDirectory(prefix="infer-region-") as name:
            request = LoadRequest(
                path=str(bundle_of(path, Path(name))), kind="bundle", target=TARGET, threads=arguments.threads
            )
            pipeline = load_arm(request, lambda: None).pipeline
        images = images_of(pipeline.card, arguments.data, arguments.images, seed=arguments.seed)
        turns: list[list[tuple[float, float]]] = [[] for _ in _WAYS]
        for turn in range(2 * arguments.launches):
            for way in (0, 1) if turn % 2 else (1, 0):
                turns[way].append(medians(pipeline, images, whole=bool(way)))
        for between, each in zip(_WAYS, turns, strict=True):
            around, inside = (statistics.median(part) / 1e3 for part in zip(*each, strict=True))
            print(f"| {path.stem} | {between} | {around:.1f} | {inside:.1f} | {around - inside:.1f} |")
    return 0


def medians(pipeline: Pipeline, images: Sequence[RgbImage], *, whole: bool) -> tuple[float, float]:
    """Return the median time around `infer` and the median latency in the plugin, ns, of `_QUERIES` queries."""
    runner: Any = pipeline.runner
    batch = pipeline.pre(images[0])
    pipeline.infer(batch)
    request = runner._idle[-1][0]  # the one that every query takes; only here does anyone look into it
    around, inside = np.empty(_QUERIES), np.empty(_QUERIES)
    for query in range(_QUERIES):
        if whole:
            batch = pipeline.pre(images[query % len(images)])
        started = time.perf_counter_ns()
        logits = pipeline.infer(batch)
        around[query] = time.perf_counter_ns() - started
        inside[query] = request.latency * 1e6  # ms
        if whole:
            pipeline.post(logits)
    return float(np.median(around)), float(np.median(inside))


if __name__ == "__main__":
    sys.exit(main())
