"""What INT8 costs the Fashion-MNIST student on its 10,000 test images: as quantised, and after fine-tuning.

    python benchmarks/int8_drop.py FOLDER                      FOLDER holds fashion_mnist/
    python benchmarks/int8_drop.py FOLDER --graph student.onnx

`edgebert quantize` with its defaults, and once more with `--finetune`, both compiled for `cpu` (ONNX Runtime) and `intel-cpu`
(OpenVINO); the compiled forms answer the test images, which neither ranges, choices nor weights have seen. Lost is top-1 of
FP32 minus that of INT8 in points, with a 95 % bootstrap interval over images.

Holds: as quantised at most 0.10 points lost and at least 99.5 % decided alike, in both engines; after fine-tuning nothing lost
within the interval. About a quarter of an hour on two cores with a ready student, most of it fine-tuning; half an hour without.
What the numbers do not mean: other data and other students lose otherwise, and 10,000 images carry 0.06 points of chance.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _graphs import subject
from _paired import Interval, agreement_by_image, kl_by_image, mean_interval
from numpy.typing import NDArray

from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.card import ModelCard
from edgebert.data import align_classes, load_dataset
from edgebert.export.forms import form_from_graph
from edgebert.export.metadata import read_graph_card
from edgebert.preprocess import load_image
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
from edgebert.target import resolve_target

TARGETS = ("cpu", "intel-cpu")
MOST_LOST = 0.0010
LEAST_AGREEMENT = 0.995
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One INT8 graph in one engine.

    Attributes:
        how: `as quantised` or `fine-tuned`.
        target: what it was compiled for.
        top1_before, top1: shares, FP32 and INT8.
        lost: top-1 of FP32 minus INT8, a share.
        agreement: share of equal decisions.
        kl: mean KL(FP32 || INT8) in nats.
    """

    how: str
    target: str
    top1_before: float
    top1: float
    lost: Interval
    agreement: Interval
    kl: Interval

    @property
    def holds(self) -> bool:
        """Whether what is promised of it holds."""
        if self.how == "fine-tuned":
            return self.lost.low <= 0
        return self.lost.value <= MOST_LOST + 1e-9 and self.agreement.value >= LEAST_AGREEMENT - 1e-9

    def to_text(self) -> str:
        """Return one line."""
        return (
            f"{'PASS' if self.holds else 'FAIL'} {self.how}, {self.target}: top-1 {100 * self.top1_before:.2f} -> "
            f"{100 * self.top1:.2f} %, lost {_points(self.lost)} points, alike {_points(self.agreement)} %, KL {self.kl.value:.2e}"
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="holds fashion_mnist/")
    parser.add_argument("--graph", type=Path, metavar="FILE", help="a ready FP32 graph")
    parser.add_argument("--output", type=Path, default=Path("runs/quantisation"))
    parser.add_argument("--epochs", type=int, default=QuantizeOptions().finetune_epochs, help="of fine-tuning")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    rows = run(arguments.source, arguments.output, ready=arguments.graph, epochs=arguments.epochs)
    for row in rows:
        print(row.to_text())
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.holds for row in rows) else 1


def run(source: Path, output: Path, *, ready: Path | None = None, epochs: int = 2) -> list[Row]:
    """Quantise the student both ways and look at the test images.

    Args:
        source: the folder of `fashion_mnist/`.
        output: the folder to keep data and student in, as `quantisation.py` keeps them.
        ready: an FP32 graph of the student instead of training one.
        epochs: of fine-tuning.
    """
    made = subject("fashion", source, output, graph=ready)
    card = read_graph_card(made.graph)
    dataset = align_classes(load_dataset(made.data), card.class_names)
    images = np.stack([load_image(example.load(), card.preprocessing) for example in dataset.test])
    labels = np.array([example.label for example in dataset.test])
    ways = {
        "as quantised": QuantizeOptions(),
        "fine-tuned": QuantizeOptions(finetune=made.data, finetune_epochs=epochs),
    }
    rows = []
    before = {target: _answers(made.graph.read_bytes(), target, card, images) for target in TARGETS}
    for how, options in ways.items():
        with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
            path = Path(folder) / "student.int8.onnx"
            int8_graph_from_graph(made.graph, made.data, path, options)
            graph = path.read_bytes()
        for target in TARGETS:
            rows.append(_row(how, target, before[target], _answers(graph, target, card, images), labels))
    return rows


def _answers(graph: bytes, target: str, card: ModelCard, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes): what the form that ships for a target answers."""
    form = form_from_graph(graph, resolve_target(target))
    spec = InputSpec(height=images.shape[1], width=images.shape[2], classes=len(card.class_names))
    options = RunnerOptions(device=form.device, disabled_optimizers=form.disabled_optimizers)
    with open_runner(form.backend, ModelSource(spec=spec, files=form.files), options) as runner:
        return np.concatenate([runner.infer(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)])


def _row(
    how: str, target: str, before: NDArray[np.float32], after: NDArray[np.float32], labels: NDArray[np.int64]
) -> Row:
    right_before, right = ((logits.argmax(axis=1) == labels).astype(np.float64) for logits in (before, after))
    return Row(
        how=how,
        target=target,
        top1_before=float(right_before.mean()),
        top1=float(right.mean()),
        lost=mean_interval(right_before - right, seed=0),
        agreement=mean_interval(agreement_by_image(before, after), seed=0),
        kl=mean_interval(kl_by_image(before, after), seed=0),
    )


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
