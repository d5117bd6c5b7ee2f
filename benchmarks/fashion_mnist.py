"""Distillation on Fashion-MNIST: a teacher, a student on labels only, and the same student distilled, for several seeds.

    python benchmarks/fashion_mnist.py SOURCE                    on a CPU: 15 epochs for the students
    python benchmarks/fashion_mnist.py SOURCE --device cuda      on a GPU: 120 epochs

SOURCE is a folder with the four gzipped idx files. For each seed: a small residual network is trained on the labels; a student
of at most 0.11 M parameters is trained on the labels; the same student, from the same initial weights, on the same views, for
the same epochs, is distilled from that network. All choices are made on a validation split of the training images; the 10,000
test images are looked at once, at the end, with PyTorch in full precision.

Expected on two CPU cores: the distilled student has >= 91.8 % on average, and >= 0.5 points more than the student on labels. What is
made already under --output is kept, so an interrupted sweep goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from _fashion import fashion_data

LEAST_TOP1, LEAST_GAIN, MOST_PARAMETERS = 0.918, 0.005, 110_000

STUDENT, TEACHER = "d64-l2-h2-r3", "resnet-mini"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Epochs of one run of the benchmark; the rest of the options is the same on every device."""

    student_epochs: int
    teacher_epochs: int
    cache_views: int
    precision: str


SHORT = Schedule(student_epochs=15, teacher_epochs=10, cache_views=15, precision="auto")
LONG = Schedule(student_epochs=120, teacher_epochs=60, cache_views=0, precision="auto")


@dataclass(frozen=True, slots=True)
class Row:
    """What one seed came to; shares in [0, 1], minutes of training."""

    seed: int
    teacher: float
    labels: float
    distilled: float
    parameters: int
    teacher_minutes: float
    labels_minutes: float
    distilled_minutes: float


def main() -> int:
    """Print the table and the verdicts; return 0 where all hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four gzipped idx files")
    parser.add_argument("--output", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--jobs", type=int, default=2, help="seeds at a time on a CPU, each with its share of the cores"
    )
    parser.add_argument("--seed", type=int, help="run this seed alone, and print its row as JSON")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = arguments.output / arguments.device
    data = fashion_data(arguments.source, arguments.output / "data")
    if arguments.seed is not None:
        print(json.dumps(asdict(run_seed(arguments.seed, data, folder / str(arguments.seed), arguments.device))))
        return 0
    started = time.monotonic()
    rows = run_seeds(arguments)
    print(table(rows))
    top1, gain = (
        statistics.mean(row.distilled for row in rows),
        statistics.mean(row.distilled - row.labels for row in rows),
    )
    verdicts = {
        f"distilled {100 * top1:.2f} % on average, at least {100 * LEAST_TOP1:.1f} %": top1 >= LEAST_TOP1,
        f"gain {100 * gain:+.2f} points on average, at least {100 * LEAST_GAIN:+.1f}": gain >= LEAST_GAIN,
        f"{rows[0].parameters:,} parameters, at most {MOST_PARAMETERS:,}": rows[0].parameters <= MOST_PARAMETERS,
    }
    for verdict, holds in verdicts.items():
        print(f"{'PASS' if holds else 'FAIL'}: {verdict}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in this call")
    if arguments.json:
        result = {"rows": [asdict(row) for row in rows], "top1": top1, "gain": gain, "passed": all(verdicts.values())}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(verdicts.values()) else 1


def run_seeds(arguments: argparse.Namespace) -> list[Row]:
    """Run each seed in a process of its own, as many at a time as `--jobs` says."""
    jobs = arguments.jobs if arguments.device == "cpu" else 1
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting, running, rows = list(range(arguments.seeds)), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs:
            seed = waiting.pop(0)
            command = [sys.executable, __file__, str(arguments.source), "--output", str(arguments.output)]
            command += ["--device", arguments.device, "--seed", str(seed)]
            running[seed] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        seed, process = next(
            ((seed, entry) for seed, entry in running.items() if entry.poll() is not None), (None, None)
        )
        if seed is None or process is None:
            time.sleep(0.5)
            continue
        del running[seed]
        answer = process.communicate()[0]
        if process.returncode:
            for other in running.values():
                other.terminate()
            raise SystemExit(f"seed {seed} ended with {process.returncode}")
        rows[seed] = Row(**json.loads(answer.strip().splitlines()[-1]))
    return [rows[seed] for seed in sorted(rows)]


def run_seed(seed: int, data: Path, folder: Path, device: str) -> Row:
    """Train the three networks of one seed and look at the test images once."""
    from edgebert.train import DistillOptions, TrainOptions, checkpoint_from_data, checkpoint_from_teacher

    schedule = SHORT if device == "cpu" else LONG
    student = {
        "epochs": schedule.student_epochs,
        "batch_size": 128,
        "learning_rate": 3e-3,
        "augment": ("shift", "flip"),
        "shift": 2 / 28,
        "ema": 0.997,
        "mixed_precision": "bf16",
        "image_size": 28,
        "seed": seed,
        "device": device,
        "resume": True,
    }
    teacher = {**student, "epochs": schedule.teacher_epochs, "augment": ("shift", "flip", "erase"), "mixup": 0.2}
    minutes: dict[str, float] = {}
    made = {
        "teacher": lambda path: checkpoint_from_data(str(data), path, TrainOptions(model=TEACHER, **teacher)),
        "labels": lambda path: checkpoint_from_data(str(data), path, TrainOptions(model=STUDENT, **student)),
        "distilled": lambda path: checkpoint_from_teacher(
            str(data),
            str(folder / "teacher"),
            path,
            DistillOptions(student=STUDENT, init="anew", cache_views=schedule.cache_views, mixup=0.4, **student),
        ),
    }
    top1: dict[str, float] = {}
    parameters = 0
    for name, make in made.items():
        path, record = folder / name, folder / f"{name}.json"
        if not record.exists():
            report = make(path)
            measured = {"top1": test_top1(path, data), "minutes": report.seconds / 60, "parameters": report.parameters}
            record.write_text(json.dumps({**measured, "val": report.score}) + "\n", encoding="utf-8")
        kept = json.loads(record.read_text(encoding="utf-8"))
        top1[name], minutes[name], parameters = kept["top1"], kept["minutes"], kept["parameters"]
    return Row(
        seed=seed,
        teacher=top1["teacher"],
        labels=top1["labels"],
        distilled=top1["distilled"],
        parameters=parameters,
        teacher_minutes=minutes["teacher"],
        labels_minutes=minutes["labels"],
        distilled_minutes=minutes["distilled"],
    )


def test_top1(checkpoint: Path, data: Path) -> float:
    """Return the share of right decisions on the test images."""
    from edgebert.data import load_dataset
    from edgebert.models.checkpoint import PixelClassifier, load_checkpoint
    from edgebert.train.batches import ImageBatches
    from edgebert.train.evaluation import evaluated

    loaded, dataset = load_checkpoint(checkpoint), load_dataset(str(data))
    assert loaded.card.class_names == dataset.class_names
    images = ImageBatches(dataset.test, loaded.card.preprocessing, classes=len(dataset.class_names), what="decode test")
    return evaluated(PixelClassifier(loaded.model, loaded.card.preprocessing), images, dataset.class_names).score


def table(rows: list[Row]) -> str:
    """Return the rows and their means as a Markdown table."""
    lines = [
        "| seed | teacher % | student, labels only % | student, distilled % | gain | minutes: teacher, labels, distilled |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.seed} | {100 * row.teacher:.2f} | {100 * row.labels:.2f} | {100 * row.distilled:.2f} "
            f"| {100 * (row.distilled - row.labels):+.2f} "
            f"| {row.teacher_minutes:.1f}, {row.labels_minutes:.1f}, {row.distilled_minutes:.1f} |"
        )
    means = [statistics.mean(getattr(row, name) for row in rows) for name in ("teacher", "labels", "distilled")]
    lines.append(
        f"| mean | {100 * means[0]:.2f} | {100 * means[1]:.2f} | {100 * means[2]:.2f} "
        f"| {100 * (means[2] - means[1]):+.2f} | |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
