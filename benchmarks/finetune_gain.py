"""What fine-tuning gives back of what INT8 costs, on images that neither training nor the choice of the epoch has seen.

    python benchmarks/finetune_gain.py fashion.onnx fashion/ --places all

For one FP32 graph and one placement: INT8 with scales that reach as far as the largest value of 512 training images, then
the same after fine-tuning with the defaults. Both are emitted as Q/DQ graphs and run in ONNX Runtime on the whole validation
and test split. `drop` is top-1 INT8 - FP32 in points, with the half width of its 95 % interval from the paired differences.
`--places linears` is the placement of `edgebert quantize`; `all` rounds the stem, attention and head too, which nobody should
ship: a placement that needs mending. Duration: docs/finetune.md. The numbers say nothing of another model or other ranges.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgebert.calibration.emit import int8_graph
from edgebert.calibration.finetune import FinetuneOptions, finetuned
from edgebert.calibration.images import calibration_examples
from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.data import align_classes, load_dataset
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.export.rules import weight_axis
from edgebert.export.topology import Topology
from edgebert.preprocess import load_batch

_BATCH = 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("data")
    parser.add_argument("--places", choices=("linears", "all"), default="linears")
    parser.add_argument("--train", type=int, default=0, help="learn from the first so many images alone; 0 for all")
    parser.add_argument("--epochs", type=int, default=FinetuneOptions().epochs)
    parser.add_argument("--learning-rate", type=float, default=FinetuneOptions().learning_rate)
    parser.add_argument("--scales", choices=("learned", "frozen"), default="learned")
    arguments = parser.parse_args()
    model = parse_graph(arguments.graph)
    card = card_of_model(model)
    dataset = align_classes(load_dataset(arguments.data), card.class_names)
    placement = placement_of_graph(model)
    places = {*placement.quantised, *(placement.kept_float if arguments.places == "all" else ())}
    chosen = calibration_examples(dataset, 512)
    table = _widest(model, places, load_batch([example.load() for example in chosen], card.preprocessing))
    splits = {}
    for name in ("val", "test"):
        examples = dataset.split(name)
        images = load_batch([example.load() for example in examples], card.preprocessing)
        splits[name] = (images, np.array([example.label for example in examples]), _answers(model, images))
    options = FinetuneOptions(epochs=arguments.epochs, learning_rate=arguments.learning_rate, scales=arguments.scales)
    few = replace(dataset, train=dataset.train[: arguments.train or None])
    result = finetuned(model, table, places, few, card, options)
    print(f"KL divergence by epoch: {', '.join(f'{value:.6f}' for value in result.val_kl)}")
    for title, int8 in (
        ("before", int8_graph(model, table, places)),
        ("after", int8_graph(result.model, result.table, places)),
    ):
        for name, (images, labels, expected) in splits.items():
            print(f"{title:6} {name:4} {_compared(labels, expected, _answers(int8, images))}")


def _compared(labels: NDArray[np.int64], expected: NDArray[np.float32], found: NDArray[np.float32]) -> str:
    before, after = expected.argmax(axis=1) == labels, found.argmax(axis=1) == labels
    difference = after.astype(float) - before.astype(float)
    half = 1.96 * difference.std(ddof=1) / len(labels) ** 0.5
    agreement = (expected.argmax(axis=1) == found.argmax(axis=1)).mean()
    logs = [_log_softmax(logits.astype(np.float64)) for logits in (expected, found)]
    divergence = float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())
    return (
        f"FP32 {before.mean():.2%}, INT8 {after.mean():.2%}, drop {100 * difference.mean():+.2f} ± {100 * half:.2f}, "
        f"agreement {agreement:.2%}, KL {divergence:.6f}"
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _answers(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    batches = np.array_split(images, max(1, len(images) // _BATCH))
    return np.concatenate([np.asarray(session.run(None, {"image": batch})[0], np.float32) for batch in batches])


def _widest(model: onnx.ModelProto, places: Collection[str], images: NDArray[np.uint8]) -> ScaleTable:
    """Return scales that reach as far as the largest value."""
    topology = Topology(model)
    nodes = [node for node in model.graph.node if node.name in places]
    weights, values = {}, []
    for node in nodes:
        weight = topology.array(node.input[1])
        values += node.input[: 1 if weight is not None else 2]
        if weight is not None:
            rows = np.moveaxis(np.abs(weight.astype(np.float32)), weight_axis(node), 0)
            weights[node.name] = np.maximum(rows.reshape(len(rows), -1).max(axis=1) / 127, np.float32(1e-7))
    names = list(dict.fromkeys(values))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    for name in names:
        watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(watched.SerializeToString())
    found = session.run(names, {"image": images})
    return ScaleTable(
        activations={
            name: float(np.abs(np.asarray(value)).max()) / 127 for name, value in zip(names, found, strict=True)
        },
        weights=weights,
    )


if __name__ == "__main__":
    main()
