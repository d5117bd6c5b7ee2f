"""What a training step costs: with labels only, with a teacher's cache, and with the teacher itself.

    python benchmarks/cached_step.py SOURCE

SOURCE is a folder with the four gzipped idx files of Fashion-MNIST. The three are trained in turn, round after round, one epoch
each, in one process with one thread; the time of a step is that of its epoch, views included. Expected: a step with the cache
costs at most 1.1 times one with labels only, by the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a second thread waits for a busy neighbour

from _fashion import fashion_data

MOST_RATIO = 1.1


def main() -> int:
    """Print the medians and the ratio; return 0 where it is small enough."""
    from edgebert.train import DistillOptions, TrainOptions, checkpoint_from_data, checkpoint_from_teacher

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four gzipped idx files")
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    common = {
        "epochs": 1,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "image_size": 28,
        "mixup": 0.4,
        "seed": 0,
        "device": "cpu",
        "workers": 1,
        "force": True,
    }
    speeds: dict[str, list[float]] = {"labels": [], "cached": [], "live": []}
    with tempfile.TemporaryDirectory(prefix="cached-step-") as name:
        folder = Path(name)
        data = str(fashion_data(arguments.source, folder / "data", arguments.images))
        teacher = str(folder / "teacher")
        checkpoint_from_data(data, Path(teacher), TrainOptions(model="resnet-mini", **common))
        student = "d64-l2-h2-r2"
        for _ in range(arguments.rounds):
            labels = checkpoint_from_data(data, folder / "labels", TrainOptions(model=student, **common))
            options = DistillOptions(student=student, init="anew", **common)
            live = checkpoint_from_teacher(data, teacher, folder / "live", options)
            kept = DistillOptions(student=student, init="anew", cache=str(folder / "cache"), **common)
            cached = checkpoint_from_teacher(data, teacher, folder / "cached", kept)
            for arm, report in (("labels", labels), ("cached", cached), ("live", live)):
                speeds[arm].append(report.images_per_second)
        shutil.rmtree(folder / "cache")
    ratios = {
        arm: statistics.median(a / b for a, b in zip(speeds["labels"], speeds[arm], strict=True)) for arm in speeds
    }
    passed = ratios["cached"] <= MOST_RATIO
    medians = {arm: 128_000 / statistics.median(speed) for arm, speed in speeds.items()}
    print(
        f"a step of 128 images: labels {medians['labels']:.1f} ms, cached {medians['cached']:.1f} ms, live teacher "
        f"{medians['live']:.1f} ms; cached {ratios['cached']:.3f} times labels, at most {MOST_RATIO}: "
        f"{'PASS' if passed else 'FAIL'} (live: {ratios['live']:.2f} times; {arguments.rounds} rounds)"
    )
    if arguments.json:
        result = {"milliseconds": medians, "ratio": ratios["cached"], "live_ratio": ratios["live"], "passed": passed}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
