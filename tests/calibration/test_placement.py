"""Placement by structure: what stays float in hand-made graphs of each kind, whatever the nodes are called."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.placement import placement_of_graph


def _graph(
    nodes: list[NodeProto], weights: dict[str, tuple[int, ...]], shapes: dict[str, list[int | str]]
) -> onnx.ModelProto:
    """Return a model from `image` to `logits`; `weights` are constants of these shapes, `shapes` tell of other values."""
    graph = helper.make_graph(
        nodes,
        "placement",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _node(operator: str, name: str, inputs: str, output: str) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name)


def test_transformer_keeps_the_stem_s_chain_attention_and_head_in_float() -> None:
    nodes = [
        _node("Conv", "a", "image w1", "x1"),
        _node("Relu", "b", "x1", "x2"),
        _node("Conv", "c", "x2 w2", "x3"),
        _node("Add", "d", "x3 w3", "x4"),  # positions: still one reader
        _node("Relu", "e", "x4", "x5"),  # the branch of a residual block begins behind it
        _node("MatMul", "f", "x5 w4", "q"),
        _node("MatMul", "g", "x5 w4", "k"),
        _node("MatMul", "h", "q k", "scores"),
        _node("Softmax", "i", "scores", "shares"),
        _node("MatMul", "j", "shares q", "mixed"),
        _node("MatMul", "l", "mixed w4", "projected"),
        _node("Add", "m", "projected x5", "x6"),
        _node("ReduceMean", "n", "x6", "pooled"),
        _node("MatMul", "o", "pooled w4", "logits"),
    ]
    weights = {"w1": (3, 3, 3, 3), "w2": (3, 3, 3, 3), "w3": (8, 8), "w4": (8, 8)}
    placement = placement_of_graph(_graph(nodes, weights, {}))
    assert placement.kept_float == {"a": "stem", "c": "stem", "h": "attention", "j": "attention", "o": "head"}
    assert placement.quantised == ("f", "g", "l")


def test_convolutional_network_keeps_only_its_first_convolution_in_float() -> None:
    nodes = [
        _node("Conv", "first", "image w", "x1"),
        _node("Relu", "r1", "x1", "x2"),
        _node("Conv", "second", "x2 w", "x3"),
        _node("Relu", "r2", "x3", "x4"),
        _node("Conv", "third", "x4 w", "x5"),
        _node("Add", "residual", "x5 x2", "x6"),
        _node("Flatten", "flat", "x6", "x7"),
        _node("Gemm", "last", "x7 h", "logits"),
    ]
    placement = placement_of_graph(_graph(nodes, {"w": (3, 3, 3, 3), "h": (192, 5)}, {}))
    assert placement.kept_float == {"first": "stem", "last": "head"}
    assert placement.quantised == ("second", "third")


def test_linear_on_one_vector_per_image_belongs_to_the_head() -> None:
    nodes = [
        _node("Conv", "first", "image w", "x1"),
        _node("Conv", "body", "x1 w", "x2"),
        _node("GlobalAveragePool", "pool", "x2", "x3"),
        _node("Conv", "squeeze", "x3 s", "x4"),
        _node("Mul", "excite", "x2 x4", "x5"),
        _node("Conv", "body2", "x5 w", "x6"),
        _node("GlobalAveragePool", "pool2", "x6", "x7"),
        _node("Flatten", "flat", "x7", "x8"),
        _node("Gemm", "pooler", "x8 p", "x9"),
        _node("Tanh", "tanh", "x9", "x10"),
        _node("Gemm", "last", "x10 h", "logits"),
    ]
    weights = {"w": (3, 3, 3, 3), "s": (3, 3, 1, 1), "p": (3, 3), "h": (3, 5)}
    placement = placement_of_graph(_graph(nodes, weights, {"x8": ["batch", 3]}))
    assert placement.quantised == ("body", "body2")
    assert placement.kept_float == {"first": "stem", "squeeze": "head", "pooler": "head", "last": "head"}


def test_two_heads_are_both_kept_in_float() -> None:
    """As in DeiT, which averages the logits of a class token and a distillation token."""
    nodes = [
        _node("Conv", "first", "image w", "x1"),
        _node("Conv", "body", "x1 w", "x2"),
        _node("Gemm", "head1", "x2 h", "y1"),
        _node("Gemm", "head2", "x2 h", "y2"),
        _node("Add", "both", "y1 y2", "logits"),
    ]
    placement = placement_of_graph(_graph(nodes, {"w": (3, 3, 3, 3), "h": (8, 5)}, {}))
    assert placement.kept_float == {"first": "stem", "head1": "head", "head2": "head"}


def test_constant_on_the_left_is_no_weight() -> None:
    nodes = [
        _node("Conv", "first", "image w", "x1"),
        _node("MatMul", "mixing", "m x1", "x2"),
        _node("MatMul", "body", "x2 m", "x3"),
        _node("MatMul", "last", "x3 m", "logits"),
    ]
    placement = placement_of_graph(_graph(nodes, {"w": (3, 3, 3, 3), "m": (8, 8)}, {}))
    assert placement.kept_float == {"first": "stem", "mixing": "constant", "last": "head"}
    assert placement.quantised == ("body",)


def test_who_asks_for_the_shape_alone_is_no_branch() -> None:
    nodes = [
        _node("Shape", "s", "image", "shape"),
        _node("Conv", "a", "image w", "x1"),
        _node("Shape", "s1", "x1", "shape1"),
        _node("Conv", "b", "x1 w", "x2"),
        _node("MatMul", "attention", "x2 x2", "x3"),
        _node("MatMul", "body", "x3 m", "x4"),
        _node("MatMul", "last", "x4 m", "logits"),
    ]
    placement = placement_of_graph(_graph(nodes, {"w": (3, 3, 3, 3), "m": (8, 8)}, {}))
    assert placement.kept_float == {"a": "stem", "b": "stem", "attention": "attention", "last": "head"}
