"""The rewriting of what NNCF wrote, on small graphs whose answers can be computed by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.symmetric import symmetric_form
from edgebert.errors import EdgebertError
from edgebert.export.rules import check_int8_graph, qdq_counts

_CONSTANTS: dict[str, NDArray[np.generic]] = {
    "scale": np.array(1 / 127, np.float32),
    "scale_dead": np.array(1 / 127, np.float32),
    "scale_u8": np.array(1 / 255, np.float32),
    "zero": np.array(0, np.int8),
    "zero_u8": np.array(0, np.uint8),
    "zero_odd": np.array(7, np.int8),
    "scales": np.array([0.01, 0.02, 0.03], np.float32),
    "zeros": np.zeros(3, np.int8),
    "weight": np.arange(-60, 60, 10, dtype=np.int8).reshape(4, 3),
    "row": np.array([-1, 4], np.int64),
    "float_weight": np.ones((4, 3), np.float32),
}
_WEIGHT = helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["weights"], name="wdq", axis=1)


def _pair(value: str, output: str, scale: str = "scale", zero: str = "zero") -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [value, scale, zero], [f"{output}.q"], name=f"{output}.Q", axis=0),
        helper.make_node("DequantizeLinear", [f"{output}.q", scale, zero], [output], name=f"{output}.DQ", axis=0),
    ]


def _model(nodes: list[NodeProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "nncf",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto) -> NDArray[np.float32]:
    image = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def _product(value: str, output: str = "logits", name: str = "product") -> NodeProto:
    return helper.make_node("MatMul", [value, "weights"], [output], name=name)


def test_pair_moves_down_to_the_linear_with_equal_answers() -> None:
    before = _model(
        [*_pair("image", "x1"), helper.make_node("Reshape", ["x1", "row"], ["x2"], name="r"), _WEIGHT, _product("x2")]
    )
    after = symmetric_form(before, ("product",))
    check_int8_graph(after)
    assert [node.op_type for node in after.graph.node] == [
        "Reshape",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "MatMul",
    ]
    np.testing.assert_array_equal(_run(after), _run(before))


def test_pair_is_shared_by_linears_that_read_the_same_value() -> None:
    before = _model(
        [
            *_pair("image", "x1"),
            _WEIGHT,
            _product("x1", "q", "query"),
            _product("x1", "k", "key"),
            helper.make_node("Add", ["q", "k"], ["logits"], name="sum"),
        ]
    )
    after = symmetric_form(before, ("query", "key"))
    check_int8_graph(after)
    assert qdq_counts(after) == {"MatMul": 2, "QuantizeLinear": 1, "DequantizeLinear": 3}
    np.testing.assert_array_equal(_run(after), _run(before))


def test_pair_on_a_residual_addition_is_dropped() -> None:
    before = _model(
        [
            *_pair("image", "x1"),
            *_pair("image", "other"),
            helper.make_node("Add", ["x1", "other"], ["sum"], name="residual"),
            *_pair("sum", "x2"),
            _WEIGHT,
            _product("x2"),
        ]
    )
    after = symmetric_form(before, ("product",))
    check_int8_graph(after)
    assert next(node for node in after.graph.node if node.op_type == "Add").input[0] == "image"
    assert qdq_counts(after)["QuantizeLinear"] == 1


def test_uint8_range_becomes_int8_of_the_same_reach() -> None:
    relu = helper.make_node("Relu", ["image"], ["positive"], name="relu")
    before = _model([relu, *_pair("positive", "x1", "scale_u8", "zero_u8"), _WEIGHT, _product("x1")])
    after = symmetric_form(before, ("product",))
    check_int8_graph(after)
    quantise = next(node for node in after.graph.node if node.op_type == "QuantizeLinear")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    assert constants[quantise.input[1]] == pytest.approx(1 / 127, rel=1e-6)
    assert constants[quantise.input[2]].dtype == np.int8
    largest = float(np.abs(_run(before)).max())
    np.testing.assert_allclose(_run(after), _run(before), atol=0.02 * largest)


def test_dead_channel_and_dead_activation_get_a_scale_that_fp16_holds() -> None:
    nodes = [*_pair("image", "x1", "scale_dead"), _WEIGHT, _product("x1")]
    before = _model(nodes)
    dead = {"scale_dead": np.array(1e-12, np.float32), "scales": np.array([1e-16, 0.02, 0.03], np.float32)}
    for tensor in before.graph.initializer:
        if tensor.name in dead:
            tensor.CopyFrom(numpy_helper.from_array(dead[tensor.name], tensor.name))
    after = symmetric_form(before, ("product",))
    check_int8_graph(after)
    weights = next(
        numpy_helper.to_array(tensor) for tensor in after.graph.initializer if tensor.name.endswith("weight.int8")
    )
    assert not weights[:, 0].any()
    np.testing.assert_array_equal(weights[:, 1:], _CONSTANTS["weight"][:, 1:])


def test_input_is_not_changed() -> None:
    before = _model([*_pair("image", "x1"), _WEIGHT, _product("x1")])
    content = before.SerializeToString(deterministic=True)
    symmetric_form(before, ("product",))
    assert before.SerializeToString(deterministic=True) == content


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([_WEIGHT, _product("image")], "no range was measured for the input of MatMul `product`"),
        ([*_pair("image", "x1", "scale", "zero_odd"), _WEIGHT, _product("x1")], "no range was measured"),
        (
            [*_pair("image", "x1"), helper.make_node("Relu", ["x1"], ["x2"], name="r"), _WEIGHT, _product("x2")],
            "no range was measured",
        ),
        (
            [*_pair("image", "x1"), helper.make_node("MatMul", ["x1", "float_weight"], ["logits"], name="product")],
            "the weight of MatMul `product` was not quantised to int8",
        ),
        (
            [
                *_pair("image", "x1"),
                helper.make_node("Transpose", ["weight"], ["turned"], name="t"),
                helper.make_node("DequantizeLinear", ["turned", "scales", "zeros"], ["weights"], name="wdq", axis=0),
                _product("x1"),
            ],
            "was not quantised to int8",
        ),
    ],
)
def test_symmetric_form_names_the_linear_it_cannot_quantise(nodes: list[NodeProto], message: str) -> None:
    with pytest.raises(EdgebertError, match=message):
        symmetric_form(_model(nodes), ("product",))
