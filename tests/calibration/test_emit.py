"""From a float graph and a table to Q/DQ, on small graphs whose answers can be computed by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.emit import int8_graph, stored_weight
from edgebert.calibration.table import ScaleTable
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.rules import MAX_SCALE, MIN_SCALE, check_int8_graph, qdq_counts

Floats = NDArray[np.float32]

_RNG = np.random.default_rng(0)
_WEIGHTS: dict[str, Floats] = {
    "square": _RNG.uniform(-1, 1, (4, 4)).astype(np.float32),
    "narrow": _RNG.uniform(-1, 1, (4, 3)).astype(np.float32),
    "turned": _RNG.uniform(-1, 1, (3, 4)).astype(np.float32),
    "kernel": _RNG.uniform(-1, 1, (5, 4, 1, 1)).astype(np.float32),
    "bias": _RNG.uniform(-1, 1, 3).astype(np.float32),
}


def _node(operator: str, name: str, inputs: str, output: str) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name)


def _model(nodes: list[NodeProto], shape: list[int | str] | None = None) -> onnx.ModelProto:
    """Return a float graph from `image` to `logits`; the initialisers are those of `_WEIGHTS` that it reads."""
    used = {name for node in nodes for name in node.input}
    shape = shape or ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "emitted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(value, name) for name, value in _WEIGHTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, shape: tuple[int, ...] = (6, 4)) -> Floats:
    image = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def _scales(weight: str, axis: int) -> Floats:
    sides = tuple(side for side in range(_WEIGHTS[weight].ndim) if side != axis)
    return np.asarray(np.abs(_WEIGHTS[weight]).max(axis=sides) / 127, np.float32)


def _stored(values: Floats, scale: Floats | float) -> Floats:
    return np.asarray(np.clip(np.rint(values / scale), -127, 127) * scale, np.float32)


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _table(values: tuple[str, ...] = ("image",), **weights: Floats) -> ScaleTable:
    return ScaleTable(activations=dict.fromkeys(values, 1 / 127), weights=weights)


def test_int8_graph_answers_what_its_steps_say() -> None:
    scales = _scales("narrow", 1)
    after = int8_graph(
        _model([_node("MatMul", "product", "image narrow", "logits")]), _table(product=scales), ["product"]
    )
    check_int8_graph(after)
    image = np.random.default_rng(1).uniform(-1, 1, (6, 4)).astype(np.float32)
    expected = _stored(image, 1 / 127) @ _stored(_WEIGHTS["narrow"], scales)
    np.testing.assert_allclose(_run(after), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "weight", "axis", "shape"),
    [
        (
            helper.make_node("Gemm", ["image", "turned", "bias"], ["logits"], name="linear", transB=1),
            "turned",
            0,
            (6, 4),
        ),
        (_node("Gemm", "linear", "image narrow bias", "logits"), "narrow", 1, (6, 4)),
        (_node("MatMul", "linear", "image narrow", "logits"), "narrow", 1, (6, 4)),
        (_node("Conv", "linear", "image kernel", "logits"), "kernel", 0, (6, 4, 2, 2)),
    ],
    ids=["gemm-transB", "gemm", "matmul", "conv"],
)
def test_int8_graph_scales_the_output_channels(node: NodeProto, weight: str, axis: int, shape: tuple[int, ...]) -> None:
    before = _model([node], ["batch", *shape[1:]])
    after = int8_graph(before, _table(linear=_scales(weight, axis)), ["linear"])
    check_int8_graph(after)
    onnx.checker.check_model(after, full_check=True)
    (dequantise,) = [node for node in after.graph.node if node.output[0] == "linear.weight.float"]
    assert [attribute.i for attribute in dequantise.attribute if attribute.name == "axis"] == [axis]
    np.testing.assert_allclose(_run(after, shape), _run(before, shape), atol=0.05)


def test_int8_graph_shares_one_pair_among_queries_keys_and_values() -> None:
    nodes = [_node("MatMul", name, "image square", name) for name in ("query", "key", "value")]
    before = _model([*nodes, _node("Sum", "sum", "query key value", "logits")])
    scales = {name: _scales("square", 1) for name in ("query", "key", "value")}
    after = int8_graph(before, ScaleTable(activations={"image": 1 / 127}, weights=scales), tuple(scales))
    check_int8_graph(after)
    assert qdq_counts(after) == {"MatMul": 3, "QuantizeLinear": 1, "DequantizeLinear": 4}


def test_int8_graph_quantises_both_sides_of_a_product() -> None:
    nodes = [
        _node("Relu", "relu", "image", "x"),
        _node("Transpose", "turn", "x", "y"),
        _node("MatMul", "p", "x y", "logits"),
    ]
    after = int8_graph(_model(nodes), _table(("x", "y")), ["p"])
    product = after.graph.node[-1]
    assert list(product.input) == ["x.float", "y.float"]
    assert qdq_counts(after) == {"MatMul": 1, "QuantizeLinear": 2, "DequantizeLinear": 2}
    image = np.maximum(np.random.default_rng(1).uniform(-1, 1, (6, 4)), 0).astype(np.float32)
    stored = _stored(image, 1 / 127)
    np.testing.assert_allclose(_run(after), stored @ stored.T, atol=1e-5)


def test_int8_graph_gives_a_product_with_itself_one_pair() -> None:
    nodes = [_node("Relu", "relu", "image", "x"), _node("MatMul", "p", "x x", "logits")]
    after = int8_graph(_model(nodes), _table(("x",)), ["p"])
    assert list(after.graph.node[-1].input) == ["x.float", "x.float"]
    assert qdq_counts(after)["QuantizeLinear"] == 1


@pytest.mark.parametrize("first", ["early", "late"])
def test_int8_graph_in_two_steps_is_the_graph_in_one(first: str) -> None:
    nodes = [
        _node("MatMul", "early", "image square", "x1"),
        _node("Relu", "relu", "x1", "x2"),
        _node("MatMul", "late", "image square", "x3"),
        _node("Add", "sum", "x2 x3", "logits"),
    ]
    table = _table(early=_scales("square", 1), late=_scales("square", 1))
    (second,) = {"early", "late"} - {first}
    stepwise = int8_graph(int8_graph(_model(nodes), table, [first]), table, [second])
    onnx.checker.check_model(stepwise, full_check=True)  # the pair stands before both of its readers
    together = int8_graph(_model(nodes), table, ["early", "late"])
    assert qdq_counts(stepwise) == qdq_counts(together) == {"MatMul": 2, "QuantizeLinear": 1, "DequantizeLinear": 3}
    np.testing.assert_array_equal(_run(stepwise), _run(together))


def test_int8_graph_leaves_readers_in_float_on_the_float_value() -> None:
    nodes = [_node("MatMul", "product", "image square", "x"), _node("Add", "residual", "x image", "logits")]
    after = int8_graph(_model(nodes), _table(product=_scales("square", 1)), ["product"])
    assert list(after.graph.node[-1].input) == ["x", "image"]


def test_int8_graph_gives_dead_channels_and_values_a_scale_that_fp16_holds() -> None:
    scales = _scales("narrow", 1)
    scales[0] = 1e-16
    table = ScaleTable(activations={"image": 1e-12}, weights={"product": scales})
    after = int8_graph(_model([_node("MatMul", "product", "image narrow", "logits")]), table, ["product"])
    check_int8_graph(after)
    constants = _constants(after)
    assert constants["image.scale"] == np.float32(MIN_SCALE)
    assert constants["product.weight.scale"][0] == np.float32(MIN_SCALE)
    np.testing.assert_array_equal(constants["product.weight.scale"][1:], scales[1:])


def test_int8_graph_gives_a_huge_value_a_scale_that_fp16_holds() -> None:
    table = ScaleTable(activations={"image": 1e9}, weights={"product": _scales("narrow", 1)})
    after = int8_graph(_model([_node("MatMul", "product", "image narrow", "logits")]), table, ["product"])
    assert _constants(after)["image.scale"] == np.float32(MAX_SCALE)


def test_int8_graph_drops_the_float_weight_and_keeps_one_that_is_still_read() -> None:
    nodes = [
        _node("MatMul", "first", "image square", "x"),
        _node("MatMul", "second", "x narrow", "y"),
        _node("MatMul", "third", "x narrow", "z"),
        _node("Add", "sum", "y z", "logits"),
    ]
    table = _table(("image", "x"), first=_scales("square", 1), second=_scales("narrow", 1))
    constants = _constants(int8_graph(_model(nodes), table, ["first", "second"]))
    assert "square" not in constants
    assert "narrow" in constants


def test_int8_graph_does_not_change_its_input() -> None:
    before = _model([_node("MatMul", "product", "image narrow", "logits")])
    content = before.SerializeToString(deterministic=True)
    int8_graph(before, _table(product=_scales("narrow", 1)), ["product"])
    assert before.SerializeToString(deterministic=True) == content


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ScaleTable(weights={"product": _scales("narrow", 1)}), "no range was measured for the value `image`"),
        (ScaleTable(activations={"image": 0.1}), "no scales were chosen for the weight of MatMul `product`"),
    ],
)
def test_int8_graph_names_the_scale_that_is_missing(table: ScaleTable, message: str) -> None:
    with pytest.raises(EdgebertError, match=message):
        int8_graph(_model([_node("MatMul", "product", "image narrow", "logits")]), table, ["product"])


def test_stored_weight_uses_127_steps_to_each_side() -> None:
    weight = np.array([[1.0, -1.0, 0.5, -5.0]], np.float32)
    stored = stored_weight(weight, np.array([1 / 127], np.float32), 0)
    assert stored.tolist() == [[127, -127, 64, -127]]


def test_scale_table_is_read_back_bit_by_bit() -> None:
    table = ScaleTable(activations={"image": 0.1 / 3}, weights={"product": _scales("narrow", 1)})
    again = ScaleTable.from_json(table.to_json(), what="the table")
    assert again.activations == table.activations
    assert again.weights["product"].tobytes() == table.weights["product"].tobytes()


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-60, 1e60])
def test_scale_table_refuses_scales_that_float32_does_not_hold(scale: float) -> None:
    with pytest.raises(BadDataError, match="`product` that is not above 0"):
        ScaleTable.from_json({"activations": {}, "weights": {"product": [0.1, scale]}}, what="the table")


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_table_refuses_activation_scales_that_are_not_positive(scale: float) -> None:
    with pytest.raises(BadDataError, match="`image` that is not above 0"):
        ScaleTable.from_json({"activations": {"image": scale}, "weights": {}}, what="the table")
