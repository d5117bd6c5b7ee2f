"""Multiplications, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.calibration.cost import macs_by_node, share_of_macs


def _model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x0"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x0", "kernel"], ["x1"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x1", "depthwise"], ["x2"], name="grouped", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["x2", "rows"], ["x3"], name="rows_of_it"),
        helper.make_node("MatMul", ["x3", "square"], ["x4"], name="matmul"),
        helper.make_node("Transpose", ["x4"], ["x5"], name="turn_again", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x4", "x5"], ["x6"], name="product"),
        helper.make_node("Flatten", ["x6"], ["x7"], name="flat"),
        helper.make_node("Gemm", ["x7", "wide"], ["x8"], name="gemm"),
        helper.make_node("Gemm", ["x8", "turned"], ["logits"], name="turned_gemm", transB=1),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "kernel": np.zeros((4, 3, 3, 3), np.float32),
        "depthwise": np.zeros((4, 1, 3, 3), np.float32),
        "rows": np.array([0, 4, 16], np.int64),
        "square": np.zeros((16, 5), np.float32),
        "wide": np.zeros((16, 7), np.float32),
        "turned": np.zeros((2, 7), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_macs_by_node_are_those_of_one_image_by_hand() -> None:
    assert macs_by_node(_model()) == {
        "conv": 4 * 4 * 4 * (3 * 3 * 3),  # answers (4, 4, 4), each of 27 weights
        "grouped": 4 * 4 * 4 * (3 * 3),
        "matmul": 4 * 5 * 16,
        "product": 4 * 4 * 5,
        "gemm": 7 * 16,
        "turned_gemm": 2 * 7,
    }


def test_macs_by_node_leave_the_graph_as_it_is() -> None:
    model = _model()
    content = model.SerializeToString(deterministic=True)
    macs_by_node(model)
    assert model.SerializeToString(deterministic=True) == content


def test_share_of_macs_is_of_all_of_them() -> None:
    macs = {"a": 30, "b": 60, "c": 10}
    assert share_of_macs(macs, ("a", "c")) == pytest.approx(0.4)
    assert share_of_macs(macs, tuple(macs)) == 1


def test_share_of_macs_is_zero_where_nothing_is_multiplied() -> None:
    assert share_of_macs({}, ("a",)) == 0
