"""The rules of TensorRT: a graph that keeps them all, and for each rule one that breaks it, by mutation of the good one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.placement import Layout
from edgebert.errors import BadDataError
from edgebert.export.graph_edits import copy_of_model
from edgebert.export.tensorrt_graph import strong_graph, weak_graph
from edgebert.export.tensorrt_rules import RULES, check_tensorrt_graph, findings
from tests.export.tensorrt_networks import float_network, int8_network, maker_of, node_of

Change = Callable[[onnx.ModelProto], None]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def strong() -> onnx.ModelProto:
    """The strongly typed form, with INT8 everywhere it may be but in attention."""
    return strong_graph(int8_network(Layout(stem=True)))


@pytest.fixture(scope="module")
def strong_attention() -> onnx.ModelProto:
    """The strongly typed form with INT8 attention."""
    return strong_graph(int8_network(Layout(attention="full")))


def _constant(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def _set_constant(model: onnx.ModelProto, node: NodeProto, position: int, values: NDArray[np.generic]) -> None:
    """Give one input of one node a constant of its own."""
    name = f"planted.{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    node.input[position] = name


def _insert_before(model: onnx.ModelProto, node: NodeProto, *added: NodeProto) -> None:
    position = next(at for at, each in enumerate(model.graph.node) if each.name == node.name)
    nodes = list(model.graph.node)
    nodes[position:position] = added
    kept = [NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _quantiser(model: onnx.ModelProto, node: str = "query") -> NodeProto:
    return maker_of(model, node, 0, "DequantizeLinear", "QuantizeLinear")


def _dequantiser(model: onnx.ModelProto, node: str = "query") -> NodeProto:
    return maker_of(model, node, 0, "DequantizeLinear")


def _weight(model: onnx.ModelProto, node: str = "query") -> NodeProto:
    return maker_of(model, node, 1, "DequantizeLinear")


def _older_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 17


def _newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def _wrong_inputs(model: onnx.ModelProto) -> None:
    del node_of(model, "softmax").input[:]


def _foreign_domain(model: onnx.ModelProto) -> None:
    node_of(model, "softmax").domain = "com.microsoft"


def _integer_product(model: onnx.ModelProto) -> None:
    node_of(model, "query").op_type = "QLinearMatMul"


def _fused_attention(model: onnx.ModelProto) -> None:
    node_of(model, "softmax").op_type = "Attention"


def _moved_bytes(model: onnx.ModelProto) -> None:
    """The pixels are transposed as bytes and cast behind that, as PyTorch exports it."""
    cast, moved = node_of(model, "image.Cast"), node_of(model, "permuted")
    cast.input[0], cast.output[0] = "permuted", "image.values"
    moved.input[0] = "image"
    node_of(model, "scaled").input[0] = "image.values"
    nodes = [moved, cast, *(node for node in model.graph.node if node.name not in ("image.Cast", "permuted"))]
    kept = [NodeProto.FromString(each.SerializeToString()) for each in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _half_logits(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    node_of(model, "logits.Cast").attribute[0].i = TensorProto.FLOAT16


def _no_scale(model: onnx.ModelProto) -> None:
    del _quantiser(model).input[1:]


def _unsigned(model: onnx.ModelProto) -> None:
    for node in (_quantiser(model), _dequantiser(model)):
        _set_constant(model, node, 2, np.array(0, np.uint8))


def _asymmetric(model: onnx.ModelProto) -> None:
    for node in (_quantiser(model), _dequantiser(model)):
        _set_constant(model, node, 2, np.array(3, np.int8))


def _two_zero_points(model: onnx.ModelProto) -> None:
    _set_constant(model, _quantiser(model), 2, np.zeros(2, np.int8))


def _computed_scale(model: onnx.ModelProto) -> None:
    quantiser = _quantiser(model)
    _insert_before(model, quantiser, helper.make_node("Identity", [quantiser.input[1]], ["computed"], name="computed"))
    _quantiser(model).input[1] = "computed"


def _scale(value: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for node in (_quantiser(model), _dequantiser(model)):
            _set_constant(model, node, 1, np.array(value, np.float16))

    return change


def _no_scales(model: onnx.ModelProto) -> None:
    _set_constant(model, _weight(model), 1, np.zeros(0, np.float16))


def _float32_scales(model: onnx.ModelProto) -> None:
    """The scale of one DQ alone, so that its product gets two types: what opset 17 makes of FP16."""
    node = _weight(model)
    scale = numpy_helper.to_array(_constant(model, node.input[1])).astype(np.float32)
    _set_constant(model, node, 1, scale)


def _missing_channels(model: onnx.ModelProto) -> None:
    _set_constant(model, _weight(model), 1, np.full(5, 0.01, np.float16))
    _set_constant(model, _weight(model), 2, np.zeros(5, np.int8))


def _no_axis(model: onnx.ModelProto) -> None:
    del _weight(model).attribute[:]


def _blocked(model: onnx.ModelProto) -> None:
    _weight(model).attribute.append(helper.make_attribute("block_size", 4))


def _output_type(model: onnx.ModelProto) -> None:
    _quantiser(model).attribute.append(helper.make_attribute("output_dtype", TensorProto.UINT8))


def _eight_bit_floats(model: onnx.ModelProto) -> None:
    for node in (_quantiser(model), _dequantiser(model)):
        name = f"fp8.{node.op_type}"
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, [], b"\x00", raw=True))
        node.input[2] = name


def _integer_bias(model: onnx.ModelProto) -> None:
    """A bias as INT32 with a DQ, as ONNX Runtime's own quantiser writes it."""
    add = node_of(model, "query.biased")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.int32), "bias32"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(8, 0.01, np.float16), "bias32.scale"))
    dequantiser = helper.make_node("DequantizeLinear", ["bias32", "bias32.scale"], ["bias"], name="bias.dq", axis=0)
    _insert_before(model, add, dequantiser)
    node_of(model, "query.biased").input[1] = "bias"


def _per_channel_activation(model: onnx.ModelProto) -> None:
    for node in (_quantiser(model), _dequantiser(model)):
        _set_constant(model, node, 1, np.full(8, 0.05, np.float16))
        _set_constant(model, node, 2, np.zeros(8, np.int8))
        node.attribute[0].i = 2


def _another_scale(model: onnx.ModelProto) -> None:
    _set_constant(model, _dequantiser(model), 1, np.array(0.5, np.float16))


def _moved_between(model: onnx.ModelProto) -> None:
    """A Reshape between DQ and product: NVIDIA/TensorRT#4832."""
    product, dequantiser = node_of(model, "output"), _dequantiser(model, "output")
    shape = node_of(model, "joined").input[1]
    moved = helper.make_node("Reshape", [dequantiser.output[0], shape], ["moved"], name="moved")
    _insert_before(model, product, moved)
    node_of(model, "output").input[0] = "moved"


def _moved_between_pair(model: onnx.ModelProto) -> None:
    """A Reshape between Q and DQ."""
    quantiser, dequantiser = _quantiser(model, "output"), _dequantiser(model, "output")
    shape = node_of(model, "joined").input[1]
    moved = helper.make_node("Reshape", [quantiser.output[0], shape], ["moved"], name="moved")
    _insert_before(model, dequantiser, moved)
    _dequantiser(model, "output").input[0] = "moved"


def _quantised_residual(model: onnx.ModelProto) -> None:
    """A pair at an operand of the residual addition, which destroys vision transformers."""
    add, pair = node_of(model, "residual"), (_quantiser(model), _dequantiser(model))
    own = [NodeProto.FromString(node.SerializeToString()) for node in pair]
    for node, source, output in zip(own, (add.input[1], "r.int8"), ("r.int8", "r.float"), strict=True):
        node.input[0], node.output[0], node.name = source, output, output
    _insert_before(model, add, *own)
    node_of(model, "residual").input[1] = "r.float"


def _one_operand(model: onnx.ModelProto) -> None:
    node_of(model, "query").input[0] = _quantiser(model).input[0]


def _mean_of_norm(model: onnx.ModelProto) -> None:
    node_of(model, "norm").output.append("norm.mean")


def _half_sums(model: onnx.ModelProto) -> None:
    stash = next(attribute for attribute in node_of(model, "norm").attribute if attribute.name == "stash_type")
    stash.i = TensorProto.FLOAT16


def _norm_in_pieces(model: onnx.ModelProto) -> None:
    """The mean of squares with its root: what overflows of a norm that was exported in pieces."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    norm = node_of(model, "norm2")
    value = norm.input[0]
    pieces = [
        helper.make_node("Mul", [value, value], ["square"], name="square"),
        helper.make_node("ReduceMean", ["square", "last"], ["variance"], name="variance"),
        helper.make_node("Sqrt", ["variance"], ["root"], name="root"),
        helper.make_node("Div", [value, "root"], ["divided"], name="divided"),
    ]
    _insert_before(model, norm, *pieces)
    node_of(model, "norm2").input[0] = "divided"


def _mixed_types(model: onnx.ModelProto) -> None:
    node = node_of(model, "residual")
    _insert_before(model, node, helper.make_node("Cast", [node.input[1]], ["wide"], name="wide", to=TensorProto.FLOAT))
    node_of(model, "residual").input[1] = "wide"


def _float32_island(model: onnx.ModelProto) -> None:
    """A softmax between Casts: legal, and slow."""
    node = node_of(model, "softmax")
    up = helper.make_node("Cast", [node.input[0]], ["wide"], name="up", to=TensorProto.FLOAT)
    down = helper.make_node("Cast", ["wide.softmax"], [node.output[0]], name="down", to=TensorProto.FLOAT16)
    _insert_before(model, node_of(model, "mixed"), down)
    _insert_before(model, node_of(model, "softmax"), up)
    changed = node_of(model, "softmax")
    changed.input[0], changed.output[0] = "wide", "wide.softmax"


def _infinite_constant(model: onnx.ModelProto) -> None:
    node = node_of(model, "residual")
    _set_constant(model, node, 1, np.full(8, -np.inf, np.float16))


def _late_scale(model: onnx.ModelProto) -> None:
    node = node_of(model, "softmax")
    factor = node_of(model, "scores.queries.Mul").input[1]
    _insert_before(model, node, helper.make_node("Mul", [node.input[0], factor], ["late"], name="late"))
    node_of(model, "softmax").input[0] = "late"


# One planted violation of each rule at least: the rule, the change, the node that is named.
PLANTED: list[tuple[str, Change, str]] = [
    ("opset", _older_opset, "the graph"),
    ("opset", _newer_opset, "the graph"),
    ("valid", _wrong_inputs, "the graph"),
    ("valid", _foreign_domain, "the graph"),
    ("domain", _foreign_domain, "Softmax `softmax`"),
    ("quantised-operators", _integer_product, "QLinearMatMul `query`"),
    ("attention-operator", _fused_attention, "Attention `softmax`"),
    ("pixels", _moved_bytes, "Transpose `permuted`"),
    ("interface", _half_logits, "`logits`"),
    ("inputs", _no_scale, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("uint8", _unsigned, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("symmetric", _asymmetric, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("zero-point-size", _two_zero_points, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("scale-constant", _computed_scale, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("scale-values", _scale(0.0), "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("scale-values", _scale(-0.1), "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("scale-values", _scale(np.nan), "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("scale-values", _no_scales, "DequantizeLinear `query.weight.DequantizeLinear`"),
    ("scale-type", _float32_scales, "DequantizeLinear `query.weight.DequantizeLinear`"),
    ("channels", _missing_channels, "DequantizeLinear `query.weight.DequantizeLinear`"),
    ("axis", _no_axis, "DequantizeLinear `query.weight.DequantizeLinear`"),
    ("blocks", _blocked, "DequantizeLinear `query.weight.DequantizeLinear`"),
    ("output-type", _output_type, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("int8-only", _eight_bit_floats, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("bias", _integer_bias, "DequantizeLinear `bias.dq`"),
    ("per-channel", _per_channel_activation, "QuantizeLinear `norm.int8.QuantizeLinear`"),
    ("pair-scale", _another_scale, "DequantizeLinear `norm.float.DequantizeLinear`"),
    ("adjacent", _moved_between, "DequantizeLinear `joined.float.DequantizeLinear`"),
    ("adjacent", _moved_between_pair, "QuantizeLinear `joined.int8.QuantizeLinear`"),
    ("adjacent", _quantised_residual, "DequantizeLinear `r.float`"),
    ("both-operands", _one_operand, "MatMul `query`"),
    ("norm-outputs", _mean_of_norm, "LayerNormalization `norm`"),
    ("norm-whole", _norm_in_pieces, "ReduceMean `variance`"),
    ("norm-sums", _half_sums, "LayerNormalization `norm`"),
    ("one-type", _mixed_types, "Add `residual`"),
    ("half-region", _float32_island, "Softmax `softmax`"),
    ("constants", _infinite_constant, "Add `residual`"),
    ("attention-scale", _late_scale, "Mul `late`"),
]


@pytest.mark.parametrize(
    ("rule", "change", "node"), PLANTED, ids=[f"{rule}-{at}" for at, (rule, _, _) in enumerate(PLANTED)]
)
def test_findings_names_rule_node_and_remedy_when_one_is_broken(
    strong: onnx.ModelProto, rule: str, change: Change, node: str
) -> None:
    model = copy_of_model(strong)
    change(model)
    found = [each for each in findings(model, typing="strong") if each.rule == rule]
    assert [each.node for each in found][:1] == [node]
    assert found[0].remedy == RULES[rule].remedy


def test_every_rule_has_a_planted_violation() -> None:
    by_other_tests = {"attention-int8"}  # of the graph with INT8 attention
    assert {rule for rule, _, _ in PLANTED} | by_other_tests == set(RULES)


@pytest.mark.parametrize("layout", [Layout(), Layout(stem=True), Layout(attention="full"), Layout(head=True)])
def test_findings_finds_nothing_in_the_form_of_an_int8_graph(layout: Layout) -> None:
    assert findings(strong_graph(int8_network(layout)), typing="strong") == ()


def test_findings_accepts_a_float_weight_with_q_and_dq(strong: onnx.ModelProto) -> None:
    """What ModelOpt writes, and the parser reads as well as a stored weight."""
    model = copy_of_model(strong)
    dequantiser = _weight(model)
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float16)
    model.graph.initializer.append(numpy_helper.from_array(weight, "float.weight"))
    inputs = ["float.weight", *dequantiser.input[1:]]
    _insert_before(
        model, dequantiser, helper.make_node("QuantizeLinear", inputs, ["q.weight"], name="q.weight", axis=1)
    )
    _weight(model).input[0] = "q.weight"
    assert findings(model, typing="strong") == ()


def test_findings_finds_nothing_in_the_form_of_a_float_graph() -> None:
    assert findings(strong_graph(float_network()), typing="strong") == ()


def test_findings_names_attention_whose_products_differ_in_precision(strong_attention: onnx.ModelProto) -> None:
    model = copy_of_model(strong_attention)
    product = node_of(model, "mixed")
    for position in (0, 1):
        product.input[position] = maker_of(model, "mixed", position, "DequantizeLinear", "QuantizeLinear").input[0]
    found = [each for each in findings(model, typing="strong") if each.rule == "attention-int8"]
    assert [each.node for each in found] == ["MatMul `scores`"]


def test_findings_names_int8_attention_over_too_many_tokens(
    strong_attention: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.export.tensorrt_operator_rules.MAX_INT8_TOKENS", 15)
    found = [each for each in findings(strong_attention, typing="strong") if each.rule == "attention-int8"]
    assert [each.found for each in found] == ["is int8 over 16 tokens"]


def test_findings_lets_float_attention_have_any_number_of_tokens(
    strong: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.export.tensorrt_operator_rules.MAX_INT8_TOKENS", 15)
    assert findings(strong, typing="strong") == ()


def test_findings_accepts_a_node_that_is_float32_on_purpose(strong: onnx.ModelProto) -> None:
    model = copy_of_model(strong)
    _float32_island(model)
    assert findings(model, typing="strong", float32=("softmax",)) == ()


def test_findings_names_a_graph_that_was_never_made_fp16() -> None:
    found = {each.rule for each in findings(weak_graph(int8_network()), typing="strong")}
    assert found == {"half-region", "scale-type"}


def test_findings_finds_nothing_in_the_weakly_typed_form() -> None:
    assert findings(weak_graph(int8_network(Layout(stem=True))), typing="weak") == ()


def test_findings_names_fp16_scales_of_a_weakly_typed_graph(strong: onnx.ModelProto) -> None:
    assert "scale-type" in {each.rule for each in findings(strong, typing="weak")}


def test_findings_names_a_float32_constant_beyond_fp16_of_a_weakly_typed_graph() -> None:
    found = findings(float_network(mask="lowest"), typing="weak")
    assert "Where `mask`" in [each.node for each in found if each.rule == "constants"]


def test_findings_names_what_the_portable_graph_has_to_lose() -> None:
    found = {each.rule for each in findings(int8_network(), typing="weak")}
    assert found == {"attention-scale", "pixels"}


def test_check_tensorrt_graph_says_rule_node_and_remedy(strong: onnx.ModelProto) -> None:
    model = copy_of_model(strong)
    _half_sums(model)
    with pytest.raises(BadDataError) as caught:
        check_tensorrt_graph(model, typing="strong")
    assert "`norm-sums`: LayerNormalization `norm`" in caught.value.what
    assert caught.value.hint == RULES["norm-sums"].remedy


def test_every_rule_is_in_the_page() -> None:
    page = (ROOT / "docs/tensorrt-graph.md").read_text(encoding="utf-8")
    assert [name for name in RULES if f"| `{name}` |" not in page] == []
