"""Does an untrained student take as long as the trained one? `edgebert size` rests on it, and here it is measured.

    python benchmarks/size_twin.py DATA                                  224 px, intel-cpu, 3 ms: about ten minutes on two cores
    python benchmarks/size_twin.py DATA --images 300 --json twin.json

`size` proposes the largest student inside the budget. That student is trained briefly on at most `--images` of the training
images (it need not be good, only no longer random), exported, quantised and compiled by the functions behind the commands of
these names, and measured in one interleaved run beside its untrained twin, in the precision that `size` would ship. Test
images are not read.

Expected: `size` ends in minutes (aim: 5), and both p90 within 10 % of each other. Prints one line for each with PASS or FAIL and
returns 1 where the twins differ by more. `--json` writes the figures with the computer they were measured on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import to_json
from edgebert.bench.environment.computer import Environment
from edgebert.bench.options import BenchOptions
from edgebert.bench.selection import Selection
from edgebert.calibration.images import spread_over_classes
from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.data import Dataset, load_dataset
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.graph import ExportOptions, graph_from_checkpoint
from edgebert.models.checkpoint import load_checkpoint
from edgebert.runtime.runner import physical_cores
from edgebert.target import resolve_target
from edgebert.train import TrainOptions, checkpoint_from_data
from edgebert.train.sizing import SizeOptions, SizeRow, sizes_from_data
from edgebert.train.sizing_measure import Latency, Setting, Workshop, measured_latencies

AIM_MINUTES, WITHIN = 5.0, 0.10
# More queries than `size` takes of each candidate: two arms only, and the question is a difference of a few per cent.
QUERIES, SECONDS, MAX_SECONDS, MAX_WARMUP_SECONDS = 600, 8.0, 30.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """What both measurements came to.

    Attributes:
        shape: the student that `size` proposed.
        precision: that it would ship in.
        sizing_minutes: that `size` took.
        trained: latency of the trained student.
        untrained: of its twin, from the same interleaved run.
        ratio: p90 of the trained over the untrained.
        other_busy: share of the processors that other programs used meanwhile.
        environment: the computer.
    """

    shape: str
    precision: str
    sizing_minutes: float
    trained: Latency
    untrained: Latency
    ratio: float
    other_busy: float | None
    environment: Environment

    @property
    def held(self) -> bool:
        """Whether the twins are within 10 % of each other."""
        return abs(self.ratio - 1) <= WITHIN


def measure_twins(data: str, options: SizeOptions, *, epochs: int, images: int, folder: Path) -> Twins | None:
    """Size, train, and measure both; None where nothing is inside the budget."""
    report = sizes_from_data(data, options)
    print(report.to_text())
    if report.proposed is None:
        return None
    row = report.row(report.proposed)
    small = folder / "data"
    dataset = load_dataset(data)
    write_images(dataset, small, images)
    trained = _trained_bundle(str(small), row, options, epochs, folder)
    untrained = _untrained_bundle(dataset, row, options, folder)
    latencies, other_busy = _measured({"trained": trained, "untrained": untrained}, dataset, options)
    return Twins(
        shape=row.shape,
        precision=row.precision,
        sizing_minutes=report.minutes,
        trained=latencies["trained"],
        untrained=latencies["untrained"],
        ratio=latencies["trained"].p90 / latencies["untrained"].p90,
        other_busy=other_busy,
        environment=report.environment,
    )


def write_images(dataset: Dataset, folder: Path, count: int) -> None:
    """Write `count` training images and a quarter as many validation images, as a folder of folders of PNG files."""
    for split, examples in (("train", dataset.train), ("val", dataset.val)):
        chosen = spread_over_classes(examples, count if split == "train" else max(count // 4, 30))
        for number, example in enumerate(chosen):
            path = folder / split / dataset.class_names[example.label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(example.load()).save(path)


def _trained_bundle(data: str, row: SizeRow, options: SizeOptions, epochs: int, folder: Path) -> Path:
    training = TrainOptions(
        model=row.shape, image_size=options.image_size, resize=options.resize, epochs=epochs, batch_size=32, augment=()
    )
    print(checkpoint_from_data(data, folder / "student", training).to_text())
    graph, int8, bundle = folder / "student.onnx", folder / "student.int8.onnx", folder / "trained.edgebert"
    graph_from_checkpoint(folder / "student", graph, ExportOptions(data=data))
    if row.precision == "int8":
        int8_graph_from_graph(graph, data, int8, QuantizeOptions(images=64))
    bundle_from_graph(int8 if row.precision == "int8" else graph, bundle, CompileOptions(targets=(options.target,)))
    return bundle


def _untrained_bundle(dataset: Dataset, row: SizeRow, options: SizeOptions, folder: Path) -> Path:
    setting = Setting(
        dataset=dataset,
        target=resolve_target(options.target),
        preprocessing=load_checkpoint(folder / "student").card.preprocessing,
        calibration_images=options.calibration_images,
        timed_images=options.timed_images,
        threads=options.threads or physical_cores(),
        seed=options.seed,
    )
    return Workshop(setting, folder).bundle(row.shape, row.precision)


def _measured(
    bundles: dict[str, Path], dataset: Dataset, options: SizeOptions
) -> tuple[dict[str, Latency], float | None]:
    timed = spread_over_classes(dataset.val, options.timed_images)
    order = np.arange(len(dataset.class_names), dtype=np.int64)
    selection = Selection(
        examples=timed,
        class_names=dataset.class_names,
        orders=(order,) * len(bundles),
        excluded=(),
        name=dataset.name,
        skipped=len(dataset.skipped),
    )
    requests = [
        ArmRequest(name=name, path=path, kind="bundle", target=options.target) for name, path in bundles.items()
    ]
    measuring = BenchOptions(
        data=dataset.name,
        queries=QUERIES,
        seconds=SECONDS,
        max_seconds=MAX_SECONDS,
        max_warmup_seconds=MAX_WARMUP_SECONDS,
        images=len(timed),
        threads=options.threads or physical_cores(),
        seed=options.seed,
    )
    return measured_latencies(requests, selection, measuring)


def main() -> int:
    """Print the figures and the verdicts; return 0 where the twins are alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="DATA, as every command takes it; single-label, with validation images")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--target", default="intel-cpu")
    parser.add_argument("--budget-ms", type=float, default=3.0)
    parser.add_argument("--max-minutes", type=float, default=AIM_MINUTES)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=600, help="training images at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("edgebert").setLevel(logging.INFO)
    options = SizeOptions(
        image_size=arguments.image_size,
        target=arguments.target,
        budget_ms=arguments.budget_ms,
        max_minutes=arguments.max_minutes,
    )
    with tempfile.TemporaryDirectory(prefix="edgebert-twins-") as name:
        twins = measure_twins(
            arguments.data, options, epochs=arguments.epochs, images=arguments.images, folder=Path(name)
        )
    if twins is None:
        print("FAIL  nothing inside the budget")
        return 1
    print(
        f"\n{'PASS' if twins.sizing_minutes <= AIM_MINUTES else 'LATE'}  size took {twins.sizing_minutes:.1f} minutes "
        f"(aim: {AIM_MINUTES:g})\n"
        f"{'PASS' if twins.held else 'FAIL'}  {twins.shape}, {twins.precision}: p90 {twins.trained.p90:.3f} ms trained, "
        f"{twins.untrained.p90:.3f} ms untrained, ratio {twins.ratio:.3f} (within {WITHIN:.0%})"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**to_json(twins), "held": twins.held}, indent=1) + "\n", encoding="utf-8")
    return 0 if twins.held else 1


if __name__ == "__main__":
    sys.exit(main())
