"""A small student whose example images are digits, as a checkpoint, an FP32 graph and an INT8 graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import load_dataset
from edgebert.examples import example_images
from edgebert.export.graph import ExportReport, graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.models.checkpoint import new_model, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch
from edgebert.train import TrainOptions, checkpoint_from_data


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained `nano` for 8 x 8 pixels, with four digits as examples."""
    digits = load_dataset("digits")
    rule = Preprocessing(height=8, width=8)
    model = new_model("nano", preprocessing=rule, class_names=digits.class_names, seed=0)
    card = ModelCard(
        class_names=digits.class_names,
        preprocessing=rule,
        provenance=Provenance(stage="train", made_from={"data": digits.sha256()}, parameters=parameter_count(model)),
        seen=ImageSet.from_hashes(example.pixel_sha256 for example in digits.train),
    )
    folder = tmp_path_factory.mktemp("student")
    save_checkpoint(folder, model, card, example_images(digits.train, digits.class_names, rule))
    return folder


@pytest.fixture(scope="session")
def exported(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The student's FP32 graph, and what was said of it."""
    return graph_from_checkpoint(student_folder, tmp_path_factory.mktemp("graph") / "student.onnx")


@pytest.fixture(scope="session")
def fp32_graph(exported: ExportReport) -> bytes:
    """The bytes of the student's FP32 graph."""
    return exported.path.read_bytes()


@pytest.fixture(scope="session")
def int8_graph(fp32_graph: bytes) -> bytes:
    """The student's INT8 graph, calibrated on its own four examples, which is enough for its form."""
    model = parse_graph(fp32_graph)
    card, examples = card_of_model(model), examples_of_model(model)
    images = load_batch([example.png for example in examples], card.preprocessing)
    quantised = unsearched_int8_graph(model, images)
    return bytes_of_model(with_metadata(quantised, card, examples))


@dataclass(frozen=True)
class GraphPair:
    """A student that knows its digits: its FP32 graph, and the INT8 graph made from that."""

    fp32: Path
    int8: Path


@pytest.fixture(scope="session")
def digits_pair(tmp_path_factory: pytest.TempPathFactory) -> GraphPair:
    """A `nano` trained for a few seconds, as `train`, `export` and `quantize` make it."""
    folder = tmp_path_factory.mktemp("pair")
    checkpoint_from_data(
        "digits", folder / "student", TrainOptions(model="nano", epochs=12, batch_size=64, learning_rate=4e-3)
    )
    fp32, int8 = folder / "student.onnx", folder / "student.int8.onnx"
    graph_from_checkpoint(folder / "student", fp32)
    int8_graph_from_graph(fp32, "digits", int8, QuantizeOptions(images=64, effort="fast"))
    return GraphPair(fp32=fp32, int8=int8)
