"""Makes the bundles of this version that later versions must still read: `tests/bundles/VERSION/NAME.edgebert`.

    python tests/bundles/make.py            for the version of this checkout
    python tests/bundles/make.py FOLDER     somewhere else

Run it once for each released version, at its commit, and check in what it writes; those of 0.1.0 were made at commit 68d9481, in a
worktree of that commit. `single` is a linear classifier of 8 x 8 pixels into four classes, `multi` says any number of them; each has
forms for ONNX Runtime and OpenVINO. Some 30 KB each; the same call gives the same bytes on one computer.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import edgebert
from edgebert.card import ModelCard, Provenance
from edgebert.decisions import decisions, said_names
from edgebert.examples import ExampleImage, example_png
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.metadata import with_metadata
from edgebert.preprocess import Preprocessing, resize_image

RULE = Preprocessing(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SINGLE = ModelCard(
    class_names=("bolt", "gear", "Mutter, groß", "washer"), preprocessing=RULE, provenance=Provenance(stage="export")
)
CARDS = {"single": SINGLE, "multi": replace(SINGLE, task="multi-label", thresholds=(0.4, 0.5, 0.6, 0.5))}


def main() -> None:
    """Write every bundle of this version."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / edgebert.__version__
    for name, card in CARDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            graph = Path(scratch) / "graph.onnx"
            graph.write_bytes(_graph(card).SerializeToString(deterministic=True))
            report = bundle_from_graph(
                graph, folder / f"{name}.edgebert", CompileOptions(targets=("cpu", "intel-cpu"), force=True)
            )
        print(report.to_text())  # noqa: T201  # a script


def _graph(card: ModelCard) -> onnx.ModelProto:
    """Return (image / 255 - mean) / std, flattened, times a weight, plus a bias."""
    rng = np.random.default_rng(7)
    classes = len(card.class_names)
    weight = rng.normal(0, 0.2, (RULE.height * RULE.width * 3, classes)).astype(np.float32)
    constants = {
        "white": np.float32(255),
        "mean": np.array(RULE.mean, np.float32),
        "std": np.array(RULE.std, np.float32),
        "flat": np.array([-1, len(weight)], np.int64),
        "weight": weight,
        "bias": rng.normal(0, 0.2, classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "weight"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", RULE.height, RULE.width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return with_metadata(model, card, _examples(card, constants))


def _examples(card: ModelCard, constants: dict[str, NDArray[np.generic]]) -> tuple[ExampleImage, ...]:
    """Return four coloured images that are larger than the input, with what the graph says of them."""
    rng = np.random.default_rng(11)
    images = rng.integers(0, 256, (40, 13, 15, 3), np.uint8)
    tensors = np.stack([resize_image(image, RULE) for image in images])
    scaled = (tensors / 255 - np.array(RULE.mean)) / np.array(RULE.std)
    logits = scaled.reshape(len(images), -1) @ np.asarray(constants["weight"], np.float64) + np.asarray(
        constants["bias"], np.float64
    )
    clear = np.argsort(-np.abs(logits).min(axis=1))[:4]
    said = [said_names(row, card.class_names) for row in decisions(logits[clear], card.thresholds)]
    return tuple(
        ExampleImage(names, example_png(images[place], RULE)) for names, place in zip(said, clear, strict=True)
    )


if __name__ == "__main__":
    main()
