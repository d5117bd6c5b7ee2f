from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgebert.models.cnn
from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.card import ModelCard, Provenance
from edgebert.data import load_dataset
from edgebert.errors import BadDataError
from edgebert.examples import example_images
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, examples_of_model, parse_graph
from edgebert.export.rules import check_int8_graph, qdq_counts
from edgebert.models.checkpoint import load_checkpoint, new_model, parameter_count, save_checkpoint
from edgebert.models.cnn import CNN_PRESETS, CnnConfig, CnnForImageClassification
from edgebert.preprocess import Preprocessing, load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(edgebert.models.cnn).failed == 0


@pytest.mark.parametrize(("preset", "parameters"), [("cnn", 94_762), ("resnet-mini", 579_482)])
def test_presets_have_the_documented_sizes(preset: str, parameters: int) -> None:
    config = CNN_PRESETS[preset].config((28, 28))
    config.num_labels = 10
    with torch.device("meta"):
        assert parameter_count(CnnForImageClassification(config)) == parameters


def test_cnn_is_three_convolutions_each_pooled() -> None:
    """The baseline as it is written everywhere: convolution, batch norm, ReLU, pooling, three times."""
    config = CNN_PRESETS["cnn"].config((28, 28))
    config.num_labels = 10
    modules = [part for part in CnnForImageClassification(config).modules() if not list(part.children())]
    kinds = [type(part).__name__ for part in modules if not isinstance(part, nn.Sequential)]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3 + ["AdaptiveAvgPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize("preset", sorted(CNN_PRESETS))
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (31, 9), (1, 1), (130, 64)])
def test_forward_answers_for_any_image_size(preset: str, size: tuple[int, int]) -> None:
    rule = Preprocessing(height=size[0], width=size[1])
    model = new_model(preset, preprocessing=rule, class_names=("a", "b", "c"), seed=0)
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        output = model(pixels, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))


def test_large_images_are_halved_until_the_first_stage_is_small() -> None:
    sides = {side: CNN_PRESETS["resnet-mini"].config((side, side)).halvings for side in (8, 28, 48, 49, 96, 224)}
    assert sides == {8: 0, 28: 0, 48: 0, 49: 1, 96: 1, 224: 3}
    assert CNN_PRESETS["cnn"].config((224, 224)).halvings == 0


def test_a_residual_block_adds_to_its_shortcut() -> None:
    model = CnnForImageClassification(CnnConfig(image_size=8, kind="residual", widths=(8,), depths=(2,)))
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    block = model.stages[0].get_submodule("1")
    maps = torch.randn(1, 8, 8, 8)
    norm = block.get_submodule("second.1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.zero_()
        torch.testing.assert_close(block(maps), maps.relu())


@pytest.mark.parametrize("preset", sorted(CNN_PRESETS))
def test_every_weight_is_trained_and_the_loss_falls(preset: str) -> None:
    rule = Preprocessing(height=8, width=8)
    model = new_model(preset, preprocessing=rule, class_names=("a", "b"), seed=0).train()
    pixels, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    pixels[labels == 1, 0] += 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("preset", sorted(CNN_PRESETS))
def test_export_and_int8_answer_as_the_checkpoint(preset: str, tmp_path: Path) -> None:
    digits = load_dataset("digits")
    rule = Preprocessing(height=16, width=16)
    model = new_model(preset, preprocessing=rule, class_names=digits.class_names, seed=0)
    examples = example_images(digits.train, digits.class_names, rule, 16)
    card = ModelCard(class_names=digits.class_names, preprocessing=rule, provenance=Provenance(stage="train"))
    save_checkpoint(tmp_path, model, card, examples)
    assert parameter_count(load_checkpoint(tmp_path).model) == parameter_count(model)
    report = graph_from_checkpoint(tmp_path, tmp_path / "graph.onnx")
    assert report.flips == 0
    graph = parse_graph(report.path)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}

    images = load_batch([example.png for example in examples_of_model(graph)], rule)
    int8 = unsearched_int8_graph(graph, images)
    onnx.checker.check_model(int8, full_check=True)
    check_int8_graph(int8)
    convolutions = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    assert qdq_counts(int8)["Conv"] == convolutions - 1  # the stem stays in float
    spec = InputSpec(height=16, width=16, classes=10)
    answers = []
    for content in (report.path.read_bytes(), bytes_of_model(int8)):
        with open_runner("onnxruntime", ModelSource(spec=spec, files={"model.onnx": content})) as runner:
            answers.append(runner.infer(images))
    error = float(np.abs(answers[1] - answers[0]).max())
    assert 0 < error < 0.1 * max(float(np.abs(answers[0]).max()), float(np.ptp(answers[0])))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"kind": "dense"}, "kind `dense`"),
        ({"widths": ()}, "widths"),
        ({"widths": (8, 0), "depths": (1, 1)}, "widths"),
        ({"depths": (1, 1)}, "3 widths and 2 depths"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_config_refuses_impossible_shapes(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(BadDataError, match=found):
        CnnConfig(**changes)
