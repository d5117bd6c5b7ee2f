"""The rules of a portable INT8 graph: one that keeps them all, and one hostile graph for each rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import BadDataError
from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts

Change = Callable[[onnx.ModelProto], None]


def _model() -> onnx.ModelProto:
    """Return `image` (batch, 4) -> Q/DQ -> MatMul `product` with a stored weight (4, 3) -> `logits`."""
    constants: dict[str, NDArray[np.generic]] = {
        "scale": np.array(0.05, np.float32),
        "zero": np.array(0, np.int8),
        "weight": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "scales": np.array([0.1, 0.2, 0.3], np.float32),
        "zeros": np.zeros(3, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["int8"], name="q", axis=0),
        helper.make_node("DequantizeLinear", ["int8", "scale", "zero"], ["float"], name="dq", axis=0),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["weights"], name="wdq", axis=1),
        helper.make_node("MatMul", ["float", "weights"], ["logits"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "rules",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _with_constant(name: str, value: NDArray[np.generic]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return change


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def _with_input(node: str, index: int, name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        _node(model, node).input[index] = name

    return change


def _with_axis(axis: int | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = _node(model, "wdq")
        del node.attribute[:]
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))

    return change


def _with_operator(node: str, operator: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        _node(model, node).op_type = operator

    return change


def _with_opset(version: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def _with_microsoft_operators(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _without_zero_point(model: onnx.ModelProto) -> None:
    del _node(model, "q").input[2:]


def _with_pair_on_addition(model: onnx.ModelProto) -> None:
    model.graph.node.insert(2, helper.make_node("Add", ["float", "float"], ["twice"], name="residual"))


def _with_integer_bias(model: onnx.ModelProto) -> None:
    """A bias as int32 with a DQ, as ONNX Runtime's own quantiser writes it."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int32), "bias32"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.int32), "zeros32"))
    model.graph.node.append(
        helper.make_node("DequantizeLinear", ["bias32", "scales", "zeros32"], ["bias"], name="bdq", axis=0)
    )


def _with_weight_quantised_at_run_time(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32), "float_weight"))
    model.graph.node.insert(
        0, helper.make_node("QuantizeLinear", ["float_weight", "scale", "zero"], ["weight_int8"], name="wq", axis=0)
    )


def _with_quantised_attention(model: onnx.ModelProto) -> None:
    _node(model, "product").input[1] = "float"


def _with_blocks(model: onnx.ModelProto) -> None:
    _node(model, "wdq").attribute.append(helper.make_attribute("block_size", 2))


def _with_q_read_directly(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["int8"], ["cast"], name="cast", to=TensorProto.FLOAT))


def _without_pairs(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Relu", ["image"], ["logits"], name="relu"))


def test_check_int8_graph_accepts_the_portable_form() -> None:
    model = _model()
    onnx.checker.check_model(model, full_check=True)
    check_int8_graph(model)


@pytest.mark.parametrize(
    ("change", "rule", "found"),
    [
        (_with_constant("zero", np.array(0, np.uint8)), "int8 only", "`q` has type uint8"),
        (_with_constant("zero", np.array(3, np.int8)), "zero point 0", "`q` has zero point 3"),
        (_with_constant("zeros", np.array([0, 0, 1], np.int8)), "zero point 0", "`wdq` has zero point 1"),
        (_with_constant("scale", np.array(0, np.float32)), "finite scales", "`q` has scales from 0"),
        (_with_constant("scale", np.array(-0.1, np.float32)), "finite scales", "`q` has scales from -0.1"),
        (_with_constant("scale", np.array(np.nan, np.float32)), "finite scales", "`q` has scales from nan"),
        (_with_constant("scale", np.array(1e-9, np.float32)), "finite scales", "`q` has scales from 1e-09"),
        (_with_constant("scale", np.array(1e6, np.float32)), "finite scales", "`q` has scales from 1e+06"),
        (_with_constant("scale", np.array(0.05, np.float16)), "float32 scales", "`q` has float16"),
        (_with_constant("zeros", np.zeros(2, np.int8)), "as many zero points as scales", "`wdq`"),
        (_with_constant("weight", np.full((4, 3), -128, np.int8)), "weights in [-127, 127]", "`product`"),
        (_with_constant("weight", np.zeros((4, 3), np.int32)), "int8 only", "`wdq` reads INT32"),
        (_with_integer_bias, "int8 only", "`bdq` has type int32"),
        (_with_axis(0), "axis 1", "`wdq` has axis 0"),
        (_with_axis(None), "the axis written down", "`wdq` has none"),
        (_with_blocks, "no blocked quantisation", "`wdq` has block_size 2"),
        (_with_operator("product", "QLinearMatMul"), "no quantised operators but", "QLinearMatMul `product`"),
        (_with_operator("product", "MatMulInteger"), "no quantised operators but", "MatMulInteger `product`"),
        (_with_microsoft_operators, "only the standard operators", "`com.microsoft`"),
        (_with_opset(17), "opset 19 to 20", "opset 17"),
        (_with_opset(21), "opset 19 to 20", "opset 21"),
        (_without_zero_point, "a zero point of type int8", "`q` has none"),
        (_with_input("q", 1, "image"), "constant scales", "`q` computes them"),
        (_with_input("dq", 1, "scales"), "as many zero points as scales", "`dq`"),
        (_with_input("product", 0, "image"), "both the input and the weight quantised", "quantised weight only"),
        (_with_pair_on_addition, "at the inputs of Conv, Gemm and MatMul alone", "`dq` feeds Add `residual`"),
        (_with_weight_quantised_at_run_time, "weights stored as int8", "`wq` quantises the constant `float_weight`"),
        (_with_quantised_attention, "attention in float", "MatMul `product` multiplies two quantised"),
        (_with_q_read_directly, "a Q followed by DQ alone", "`q` feeds Cast `cast`"),
        (_without_pairs, "at least one quantised operator", "a graph without Q/DQ"),
    ],
)
def test_check_int8_graph_names_rule_and_node_when_one_is_broken(change: Change, rule: str, found: str) -> None:
    model = _model()
    change(model)
    with pytest.raises(BadDataError) as caught:
        check_int8_graph(model)
    assert rule in (caught.value.expected or "")
    assert found in caught.value.what


def test_qdq_counts_counts_pairs_and_operators_by_type() -> None:
    assert qdq_counts(_model()) == {"MatMul": 1, "QuantizeLinear": 1, "DequantizeLinear": 2}


def test_graph_precision_tells_int8_from_fp32() -> None:
    assert graph_precision(_model()) == "int8"
    model = _model()
    _without_pairs(model)
    assert graph_precision(model) == "fp32"
