"""A trained student's graph as a module: the same answers, rounded where the Q/DQ graph rounds, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.calibration.emit import int8_graph
from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.calibration.torch_graph import TorchGraph
from edgebert.data import Dataset
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.metadata import parse_graph

RunGraph = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module")
def model(trained_graph: Path) -> onnx.ModelProto:
    return parse_graph(trained_graph)


@pytest.fixture(scope="module")
def places(model: onnx.ModelProto) -> frozenset[str]:
    """The linears and the products of attention."""
    placement = placement_of_graph(model)
    return frozenset(placement.quantised) | {name for name, why in placement.kept_float.items() if why == "attention"}


@pytest.fixture(scope="module")
def images(digits: Dataset) -> NDArray[np.uint8]:
    return np.stack([example.load() for example in digits.train[:64]])


@pytest.fixture(scope="module")
def table(
    model: onnx.ModelProto, places: frozenset[str], images: NDArray[np.uint8], minmax_table: Callable[..., ScaleTable]
) -> ScaleTable:
    return minmax_table(model, places, images)


def _logits(graph: TorchGraph, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        answer: NDArray[np.float32] = graph(torch.from_numpy(images)).numpy()
    return answer


def test_float_graph_answers_as_onnx_runtime(
    model: onnx.ModelProto, images: NDArray[np.uint8], run_graph: RunGraph
) -> None:
    np.testing.assert_allclose(_logits(TorchGraph(model), images), run_graph(model, images), atol=1e-4)


def test_rounded_graph_answers_as_the_emitted_one(
    model: onnx.ModelProto,
    table: ScaleTable,
    places: frozenset[str],
    images: NDArray[np.uint8],
    run_graph: RunGraph,
) -> None:
    expected, before = run_graph(int8_graph(model, table, places), images), run_graph(model, images)
    difference = np.abs(_logits(TorchGraph(model, table=table, places=places), images) - expected).max(axis=1)
    assert float(np.median(difference)) < 1e-4  # most images have no value on the border of two steps
    assert float(difference.max()) < float(np.abs(expected - before).max())


def test_model_and_table_come_back_as_they_were(
    model: onnx.ModelProto,
    table: ScaleTable,
    places: frozenset[str],
    images: NDArray[np.uint8],
    run_graph: RunGraph,
) -> None:
    graph = TorchGraph(model, table=table, places=places)
    onnx.checker.check_model(graph.model(), full_check=True)
    np.testing.assert_array_equal(run_graph(graph.model(), images), run_graph(model, images))
    assert graph.table().activations == pytest.approx(table.activations, rel=1e-7)
    assert all((graph.table().weights[name] == row).all() for name, row in table.weights.items())


def test_gradients_reach_every_weight_and_every_scale(
    model: onnx.ModelProto, table: ScaleTable, places: frozenset[str], images: NDArray[np.uint8]
) -> None:
    graph = TorchGraph(model, table=table, places=places)
    torch.autograd.backward(graph(torch.from_numpy(images)).square().sum())
    # A bias of the keys shifts all of a row's scores alike, which softmax does not see; its gradient is a rounding.
    without = [name for name, parameter in (*graph.weights(), *graph.scale_growths()) if parameter.grad is None]
    assert without == []
    assert all(
        bool(parameter.grad.abs().sum() > 0) for _, parameter in graph.scale_growths() if parameter.grad is not None
    )


def test_node_names_and_values_stay(model: onnx.ModelProto) -> None:
    nodes = [(node.name, list(node.output)) for node in model.graph.node if node.op_type != "Constant"]
    trained = TorchGraph(model).model()
    assert [(node.name, list(node.output)) for node in trained.graph.node if node.op_type != "Constant"] == nodes


def test_missing_scale_is_named(model: onnx.ModelProto, places: frozenset[str]) -> None:
    with pytest.raises(EdgebertError, match="no range was measured for the value"):
        TorchGraph(model, table=ScaleTable(), places=places)


def test_unknown_operator_is_refused(model: onnx.ModelProto) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[5].op_type = "Einsum"
    with pytest.raises(BadDataError, match="does not know the operator `Einsum`"):
        TorchGraph(changed)


_SHARED = np.arange(1, 10, dtype=np.float32).reshape(3, 3)


def _two_layers() -> onnx.ModelProto:
    """(image - 1) W + b, normed, times the same W + the same b, plus a row that is no bias; `b` and the norm's are one."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"], name="normalise"),
        helper.make_node("MatMul", ["centred", "W"], ["first"], name="one"),
        helper.make_node("Add", ["first", "b"], ["biased"], name="one_bias"),
        helper.make_node("LayerNormalization", ["biased", "g", "b"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "W"], ["second"], name="two"),
        helper.make_node("Add", ["b", "second"], ["third"], name="two_bias"),
        helper.make_node("Add", ["third", "mean"], ["tokens"], name="position"),
        helper.make_node("ReduceMean", ["tokens", "axes"], ["logits"], name="pool", keepdims=0),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "mean": np.ones(3, np.float32),
        "W": _SHARED,
        "b": np.zeros(3, np.float32),
        "g": np.ones(3, np.float32),
        "axes": np.array([1, 2], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_merged_biases_are_trained_apart_and_a_tied_matrix_as_one() -> None:
    graph = TorchGraph(_two_layers())
    shapes = sorted(tuple(parameter.shape) for _, parameter in graph.weights())
    assert shapes == [(3,), (3,), (3,), (3,), (3, 3)]  # two biases, the norm's two, and one matrix


def test_normalisation_and_positions_are_not_trained() -> None:
    graph = TorchGraph(_two_layers())
    with torch.no_grad():
        for _, parameter in graph.weights():
            parameter.add_(1.0)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.model().graph.initializer}
    np.testing.assert_array_equal(stored["mean"], np.ones(3, np.float32))
    changed = [values for name, values in stored.items() if values.shape == (3, 3)]
    np.testing.assert_array_equal(changed[0], _SHARED + 1.0)
