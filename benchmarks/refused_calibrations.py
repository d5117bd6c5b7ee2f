"""Calibration data that cannot be right: each kind gets an answer of its own.

    python benchmarks/refused_calibrations.py

Makes six folders of images from the built-in digits and one graph whose activations are NaN, and calls `edgebert quantize`
on each. Prints what was said; returns 1 where a case is let through, or says the same as another. A minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import numpy_helper
from PIL import Image

from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.card import ModelCard, Provenance
from edgebert.data import Dataset, load_dataset
from edgebert.errors import EdgebertError
from edgebert.examples import example_images
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.models.checkpoint import new_model, save_checkpoint
from edgebert.preprocess import Preprocessing, RgbImage

_PLACES = {"train": range(30), "val": range(30, 35), "test": range(35, 40)}  # of each class


def main() -> int:
    """Try every case and print what it is told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        said = cases(Path(folder))
    for name, text in said.items():
        print(f"{name}: {text or 'LET THROUGH'}")
    different = len(set(said.values())) == len(said) and all(said.values())
    print(
        f"{'PASS' if different else 'FAIL'} {sum(map(bool, said.values()))} of {len(said)} refused, each in its own words"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return 0 if different else 1


def cases(folder: Path) -> dict[str, str]:
    """Return for each case what `edgebert quantize` said of it; empty where it went through."""
    digits = load_dataset("digits")
    graph = _graph(digits, folder)
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[RgbImage, int], RgbImage]] = {
        # Each of its own colour: the same pixels in two splits would be refused for that.
        "constant images": lambda image, number: np.broadcast_to(
            np.array([number % 256, number // 256, 99], np.uint8), image.shape
        ).copy(),
        "all-black images": lambda image, number: rng.integers(0, 2, image.shape).astype(np.uint8),  # a covered lens
        "noise": lambda image, number: rng.integers(0, 256, (16, 16, 3), np.uint8),
    }
    told = {name: _told(graph, _folder(digits, folder / name, change)) for name, change in changes.items()}
    told["one class only"] = _told(graph, _folder(digits, folder / "one", lambda image, number: image, classes=1))
    told["ten images"] = _told(graph, _ten(digits, folder / "ten"))
    told["NaN activations"] = _told(_with_nan(graph, folder), "digits")
    return told


def _told(graph: Path, data: Path | str) -> str:
    output = graph.with_name("int8.onnx")
    try:
        int8_graph_from_graph(graph, data, output, QuantizeOptions(images=64, effort="fast"))
    except EdgebertError as error:
        return f"{error.what}" + (f"; expected: {error.expected}" if error.expected else "")
    finally:
        output.unlink(missing_ok=True)
    return ""


def _graph(digits: Dataset, folder: Path) -> Path:
    rule = Preprocessing(height=8, width=8)
    model = new_model("nano", preprocessing=rule, class_names=digits.class_names, seed=0)
    card = ModelCard(class_names=digits.class_names, preprocessing=rule, provenance=Provenance(stage="train"))
    save_checkpoint(
        folder / "student", model.train(False), card, example_images(digits.train, digits.class_names, rule)
    )
    return graph_from_checkpoint(folder / "student", folder / "student.onnx").path


def _folder(
    digits: Dataset, folder: Path, change: Callable[[RgbImage, int], RgbImage], classes: int | None = None
) -> Path:
    """Write a data set; `classes` leaves the training images of so many classes alone."""
    for split, wanted in _PLACES.items():
        counts: dict[int, int] = {}
        for number, example in enumerate(digits.train):
            done = counts.get(example.label, 0)
            counts[example.label] = done + 1
            if done not in wanted or (split == "train" and classes is not None and example.label >= classes):
                continue
            path = folder / split / digits.class_names[example.label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(change(example.load(), number)).save(path)
    return folder


def _ten(digits: Dataset, folder: Path) -> Path:
    """Write one training image of each class, and validation images."""
    met: dict[int, int] = {}
    for number, example in enumerate(digits.train):
        met[example.label] = met.get(example.label, 0) + 1
        if met[example.label] > 4:
            continue
        split = ("train", "val", "test", "test")[met[example.label] - 1]
        path = folder / split / digits.class_names[example.label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(example.load()).save(path)
    return folder


def _with_nan(graph: Path, folder: Path) -> Path:
    """Return a graph one of whose weights is NaN, as training that diverged leaves it."""
    model = parse_graph(graph)
    broken = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("positions"))
    values = numpy_helper.to_array(broken).copy()
    values.flat[0] = np.nan
    broken.CopyFrom(numpy_helper.from_array(values, broken.name))
    path = folder / "nan.onnx"
    path.write_bytes(bytes_of_model(model))
    return path


if __name__ == "__main__":
    sys.exit(main())
