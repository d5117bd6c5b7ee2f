"""What each layer costs alone: figures, files and the share of the time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from edgebert.calibration.calibrate import QuantizationRecipe, calibrated
from edgebert.calibration.cost import macs_by_node
from edgebert.calibration.held_out import HeldOut
from edgebert.calibration.placement import Layout
from edgebert.calibration.sensitivity import LayerSensitivity, latency_shares, sensitivities
from edgebert.calibration.sensitivity_chart import SENSITIVITY_SCHEMA, sensitivity_svg, write_sensitivity
from edgebert.data import Dataset
from edgebert.errors import CannotWriteError
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.export.topology import LINEAR_OPERATORS

_EVERY = Layout(attention="full", stem=True, head=True)


@pytest.fixture(scope="module")
def model(trained_graph: Path) -> onnx.ModelProto:
    """The trained student."""
    return parse_graph(trained_graph)


@pytest.fixture(scope="module")
def layers(model: onnx.ModelProto, digits: Dataset) -> tuple[LayerSensitivity, ...]:
    """Each of its layers alone, on 32 digits."""
    images = np.stack([example.load() for example in digits.train[:96]])
    measured = calibrated(model, lambda: iter(images[:64]), 64)
    compared = HeldOut(model, card_of_model(model), lambda: iter(images[64:]), 32)
    scaled = measured.scaled(QuantizationRecipe(alpha=0.5))
    return sensitivities(measured, scaled, compared, macs_by_node(model), measured.places(_EVERY))


def test_sensitivities_are_of_every_layer_in_graph_order(
    layers: tuple[LayerSensitivity, ...], model: onnx.ModelProto
) -> None:
    expected = [(node.name, node.op_type) for node in model.graph.node if node.op_type in LINEAR_OPERATORS]
    assert [(layer.name, layer.operator) for layer in layers] == expected
    assert Counter(layer.part for layer in layers) == {"core": 12, "attention": 4, "stem": 2, "head": 1}


def test_sensitivities_are_of_one_layer_each(layers: tuple[LayerSensitivity, ...]) -> None:
    assert all(0 < layer.score.divergence < 0.1 for layer in layers)
    assert len({layer.score.divergence for layer in layers}) == len(layers)


def test_sensitivities_know_weights_but_of_products(layers: tuple[LayerSensitivity, ...]) -> None:
    for layer in layers:
        if layer.part == "attention":
            assert (layer.weight_min, layer.weight_max) == (None, None)
        else:
            assert layer.weight_min is not None
            assert layer.weight_max is not None
            assert layer.weight_min < 0 < layer.weight_max
        assert layer.input_range > 0


def test_sensitivities_share_all_multiplications(layers: tuple[LayerSensitivity, ...]) -> None:
    assert sum(layer.macs_share for layer in layers) == pytest.approx(1)


def test_latency_shares_are_of_the_whole_and_name_the_linears(model: onnx.ModelProto) -> None:
    shares = latency_shares(model)
    assert 0 < sum(shares.values()) <= 1 + 1e-9
    assert all(share >= 0 for share in shares.values())
    linears = {node.name for node in model.graph.node if node.op_type in LINEAR_OPERATORS}
    assert linears <= set(shares)


def test_write_sensitivity_writes_json_and_a_chart(layers: tuple[LayerSensitivity, ...], tmp_path: Path) -> None:
    path, chart = write_sensitivity(layers, tmp_path / "layers.json", force=False)
    assert sorted(tmp_path.iterdir()) == [path, chart] == [tmp_path / "layers.json", tmp_path / "layers.svg"]
    value = json.loads(path.read_text())
    assert value["schema"] == SENSITIVITY_SCHEMA == "edgebert.sensitivity/1"
    assert [row["name"] for row in value["layers"]] == [layer.name for layer in layers]
    assert set(value["layers"][0]) == {
        *("name", "operator", "part", "kl", "kl_uncertainty", "agreement", "macs_share", "latency_share"),
        *("weight_min", "weight_max", "input_range"),
    }
    assert ElementTree.fromstring(chart.read_text()).tag == "{http://www.w3.org/2000/svg}svg"


def test_sensitivity_svg_is_the_same_every_time(layers: tuple[LayerSensitivity, ...]) -> None:
    assert sensitivity_svg(layers) == sensitivity_svg(layers)


def test_sensitivity_svg_names_every_layer(layers: tuple[LayerSensitivity, ...]) -> None:
    drawing = sensitivity_svg(layers)
    assert all(f"<!-- {layer.name} ({layer.operator}) -->" in drawing for layer in layers)


@pytest.mark.parametrize("there", ["layers.json", "layers.svg"])
def test_write_sensitivity_refuses_to_replace_either_file(
    layers: tuple[LayerSensitivity, ...], tmp_path: Path, there: str
) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(CannotWriteError):
        write_sensitivity(layers, tmp_path / "layers.json", force=False)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "mine"


def test_write_sensitivity_replaces_with_force(layers: tuple[LayerSensitivity, ...], tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text("old")
    write_sensitivity(layers, tmp_path / "layers.json", force=True)
    assert json.loads((tmp_path / "layers.json").read_text())["schema"] == SENSITIVITY_SCHEMA
