"""A student trained for a few seconds on the digits, and its FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgebert.calibration.table import ScaleTable
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Dataset, load_dataset
from edgebert.examples import example_images
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.rules import weight_axis
from edgebert.export.topology import Topology
from edgebert.models.checkpoint import PixelClassifier, new_model, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch

_STEPS, _BATCH = 250, 64  # about 12 epochs: 95 % of the validation digits, in some five seconds on two cores


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The built-in digits."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def trained_folder(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a `nano` that knows its digits, without distillation or any care."""
    rule = Preprocessing(height=8, width=8)
    model = new_model("nano", preprocessing=rule, class_names=digits.class_names, seed=0)
    classifier = PixelClassifier(model, rule).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for a second one
    images = torch.from_numpy(load_batch([example.load() for example in digits.train], rule))
    labels = torch.tensor([example.label for example in digits.train])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=_STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(images), (_BATCH,), generator=generator)
        loss = torch.nn.functional.cross_entropy(classifier(images[batch]), labels[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    card = ModelCard(
        class_names=digits.class_names,
        preprocessing=rule,
        provenance=Provenance(stage="train", made_from={"data": digits.sha256()}, parameters=parameter_count(model)),
        seen=ImageSet.from_hashes(example.pixel_sha256 for example in digits.val),
    )
    folder = tmp_path_factory.mktemp("trained")
    save_checkpoint(folder, model.train(False), card, example_images(digits.train, digits.class_names, rule))
    return folder


@pytest.fixture(scope="session")
def trained_graph(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained student's FP32 graph."""
    return graph_from_checkpoint(trained_folder, tmp_path_factory.mktemp("fp32") / "student.onnx").path


RunGraph = Callable[..., NDArray[np.float32]]
MinMaxTable = Callable[[onnx.ModelProto, Collection[str], NDArray[np.uint8]], ScaleTable]


def _answers(model: onnx.ModelProto, images: NDArray[np.uint8], output: str | None = None) -> NDArray[np.float32]:
    if output is not None and output not in {value.name for value in model.graph.output}:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
        model = copy
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run([output or model.graph.output[0].name], {"image": images})[0], np.float32)


@pytest.fixture(scope="session")
def run_graph() -> RunGraph:
    """Runs a graph on images in ONNX Runtime and returns its logits, or another value of it by name."""
    return _answers


@pytest.fixture(scope="session")
def minmax_table() -> MinMaxTable:
    """Makes the table of a placement whose scales reach as far as the largest value of the images."""

    def make(model: onnx.ModelProto, places: Collection[str], images: NDArray[np.uint8]) -> ScaleTable:
        topology = Topology(model)
        activations: dict[str, float] = {}
        weights: dict[str, NDArray[np.float32]] = {}
        for node in model.graph.node:
            if node.name not in places:
                continue
            weight = topology.array(node.input[1])
            for value in node.input[: 1 if weight is not None else 2]:
                if value not in activations:
                    activations[value] = float(np.abs(_answers(model, images, value)).max()) / 127
            if weight is not None:
                channels = np.moveaxis(np.abs(weight.astype(np.float32)), weight_axis(node), 0)
                weights[node.name] = np.maximum(channels.reshape(len(channels), -1).max(axis=1) / 127, 1e-6)
        return ScaleTable(activations=activations, weights=weights)

    return make
