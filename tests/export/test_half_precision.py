"""From float32 to FP16: weights of tiny channels, scales, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import BadDataError
from edgebert.export.graph_edits import element_types
from edgebert.export.half_precision import HALF_STEP, half_graph, half_weight
from edgebert.export.tensorrt_graph import strong_graph
from edgebert.export.topology import Topology
from tests.export.tensorrt_networks import float_network, int8_network, maker_of, node_of


def test_half_weight_keeps_steps_where_fp16_holds_the_scale_to_eleven_bits() -> None:
    stored = np.random.default_rng(0).integers(-127, 128, (64, 8), np.int8)
    scale = np.random.default_rng(1).uniform(1e-4, 1, 8).astype(np.float32)
    steps, half = half_weight(stored, scale, 1)
    np.testing.assert_array_equal(steps, stored)
    np.testing.assert_array_equal(half, scale.astype(np.float16))


@pytest.mark.parametrize("scale", [1e-6, 3.3e-7, 1.2e-7, 6.1e-8])
def test_half_weight_takes_steps_again_where_the_scale_is_subnormal(scale: float) -> None:
    """By plain rounding the whole channel would be off by up to a third."""
    stored = np.arange(-127, 128, dtype=np.int8).reshape(-1, 1)
    steps, half = half_weight(stored, np.array([scale], np.float32), 1)
    weight = stored.astype(np.float64) * scale
    error = np.abs(steps * half.astype(np.float64) - weight).max()
    assert error <= 0.5 * float(half[0]) * 1.0001
    assert np.abs(steps.astype(int)).max() <= 127


def test_half_weight_never_makes_a_scale_zero() -> None:
    _, half = half_weight(np.ones((4, 1), np.int8), np.array([1e-12], np.float32), 1)
    assert float(half[0]) == HALF_STEP


def test_half_graph_keeps_the_scale_of_an_activation_above_zero() -> None:
    source = int8_network()
    quantiser = maker_of(source, "query", 0, "DequantizeLinear", "QuantizeLinear")
    for tensor in source.graph.initializer:
        if tensor.name == quantiser.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(np.array(1e-9, np.float32), tensor.name))
    scale = Topology(strong := strong_graph(source)).floats(maker_of(strong, "query", 0, "DequantizeLinear").input[1])
    assert scale is not None
    assert float(scale) == HALF_STEP


def test_half_graph_keeps_the_sums_of_a_layer_norm_in_float32() -> None:
    strong = strong_graph(float_network())
    stash = [each.i for each in node_of(strong, "norm").attribute if each.name == "stash_type"]
    assert stash == [TensorProto.FLOAT]


def test_half_graph_converts_what_makes_constants_of_a_shape() -> None:
    source = float_network()
    source.graph.initializer.append(numpy_helper.from_array(np.array([8], np.int64), "eight"))
    zeros = helper.make_node("ConstantOfShape", ["eight"], ["zeros"], name="zeros")  # float32 where nothing is said
    position = next(at for at, node in enumerate(source.graph.node) if node.name == "stream")
    source.graph.node.insert(position, zeros)
    source.graph.node.insert(position + 1, helper.make_node("Add", ["residual", "zeros"], ["plus"], name="plus"))
    node_of(source, "stream").input[0] = "plus"
    assert element_types(strong_graph(source))["zeros"] == TensorProto.FLOAT16


def test_half_graph_refuses_a_graph_with_branches() -> None:
    source = float_network()
    body = helper.make_graph([], "body", [], [])
    source.graph.node.append(
        helper.make_node("If", ["allowed"], ["x"], name="branch", then_branch=body, else_branch=body)
    )
    with pytest.raises(BadDataError, match="If `branch` holds a graph of its own"):
        half_graph(source)
