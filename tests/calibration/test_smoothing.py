"""Smoothing folded by hand-made graphs of every kind, and on a student with outliers: the answers stay, no operator is added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.calibrate import Calibration, QuantizationRecipe, ScaledGraph, calibrated
from edgebert.calibration.held_out import HeldOut
from edgebert.calibration.placement import Layout
from edgebert.calibration.smoothing import Plan, plans_of_graph, smoothed_graph, smoothing_factors
from edgebert.calibration.statistics import answers_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.data import Dataset
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.export.topology import Topology

_RNG = np.random.default_rng(0)
_IMAGES = _RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
_SIDE = 6  # channels
_CONSTANTS: dict[str, NDArray[np.generic]] = {
    "lift": _RNG.normal(size=(3, _SIDE)).astype(np.float32) / 100,
    "gamma": _RNG.uniform(0.5, 2, _SIDE).astype(np.float32),
    "beta": _RNG.normal(size=_SIDE).astype(np.float32),
    "square": _RNG.normal(size=(_SIDE, _SIDE)).astype(np.float32),
    "turned": _RNG.normal(size=(_SIDE, _SIDE)).astype(np.float32),
    "bias": _RNG.normal(size=_SIDE).astype(np.float32),
    "tokens": np.array([0, 16, _SIDE], np.int64),
    "mixed": np.array([0, _SIDE, 16], np.int64),
    "rows": np.array([-1, _SIDE], np.int64),
    "back": np.array([-1, 16, _SIDE], np.int64),
    "one": np.array([1], np.int64),
}
_ALPHA = 0.5


def _node(operator: str, name: str, inputs: str, output: str) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name)


def _model(nodes: Sequence[NodeProto], last: str) -> onnx.ModelProto:
    """Return a graph whose value `tokens_of_it` is (batch, 16, channels); `last`, of that shape, is averaged to the logits."""
    every = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        _node("MatMul", "lift_it", "floats lift", "lifted"),
        _node("Reshape", "to_tokens", "lifted tokens", "tokens_of_it"),
        *nodes,
        helper.make_node("ReduceMean", [last, "one"], ["logits"], name="mean", keepdims=0),
    ]
    used = {name for node in every for name in node.input}
    graph = helper.make_graph(
        every,
        "smoothed",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _SIDE])],
        [numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


_NORM = _node("LayerNormalization", "norm", "tokens_of_it gamma beta", "x")
_GEMM = helper.make_node("Gemm", ["flat", "turned", "bias"], ["y"], name="linear", transB=1)

_SMOOTHABLE: dict[str, tuple[list[NodeProto], str]] = {
    "matmul": ([_NORM, _node("MatMul", "linear", "x square", "y")], "y"),
    "norm-without-bias": (
        [_node("LayerNormalization", "norm", "tokens_of_it gamma", "x"), _node("MatMul", "linear", "x square", "y")],
        "y",
    ),
    "gemm-transB": (
        [_NORM, _node("Reshape", "flatten", "x rows", "flat"), _GEMM, _node("Reshape", "unflatten", "y back", "z")],
        "z",
    ),
    "two-readers": (
        [
            _NORM,
            _node("MatMul", "linear", "x square", "y1"),
            _node("MatMul", "other", "x turned", "y2"),
            _node("Add", "sum", "y1 y2", "y"),
        ],
        "y",
    ),
    "shared-weights": (
        [
            _NORM,
            _node("MatMul", "linear", "x square", "y1"),
            _node("LayerNormalization", "norm2", "y1 gamma beta", "x2"),
            _node("MatMul", "linear2", "x2 square", "y"),
        ],
        "y",
    ),
}


def _attention(bias: str | None) -> list[NodeProto]:
    """Return one head; `bias` gives the operands of the Add behind the value projection."""
    made = "v" if bias is None else "v_biased"
    added = [] if bias is None else [_node("Add", "v_bias", bias, "v_biased")]
    return [
        _node("MatMul", "query", "tokens_of_it square", "q"),
        helper.make_node("Transpose", ["q"], ["k"], name="turn", perm=[0, 2, 1]),
        _node("MatMul", "qk", "q k", "scores"),
        _node("Softmax", "softmax", "scores", "shares"),
        _node("MatMul", "value", "tokens_of_it turned", "v"),
        *added,
        _node("MatMul", "pv", f"shares {made}", "context"),
        _node("MatMul", "output", "context square", "y"),
    ]


def _factors(plans: Sequence[Plan]) -> Mapping[str, NDArray[np.float64]]:
    rng = np.random.default_rng(1)
    return {plan.maker: np.exp(rng.uniform(-2, 2, plan.channels)) for plan in plans}


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _check_fold(before: onnx.ModelProto, plans: Sequence[Plan], images: NDArray[np.uint8] = _IMAGES) -> None:
    """Check that folding random factors changes constants, and neither operators nor answers."""
    after = smoothed_graph(before, _factors(plans), plans)
    expected, found = answers_of_graph(before, images), answers_of_graph(after, images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))
    assert _operators(after) == _operators(before)
    assert after.SerializeToString(deterministic=True) != before.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", _SMOOTHABLE)
def test_smoothed_graph_answers_as_before(kind: str) -> None:
    before = _model(*_SMOOTHABLE[kind])
    plans = plans_of_graph(before)
    assert [plan.kind for plan in plans] == ["norm"] * (2 if kind == "shared-weights" else 1)
    _check_fold(before, plans)


@pytest.mark.parametrize("bias", [None, "v bias", "bias v"], ids=["none", "right", "left"])
def test_smoothed_graph_answers_as_before_with_values_smoothed(bias: str | None) -> None:
    before = _model(_attention(bias), "y")
    (plan,) = plans_of_graph(before)
    assert (plan.kind, plan.maker, plan.readers) == ("value", "value", ("output",))
    _check_fold(before, (plan,))


def test_smoothed_graph_divides_what_the_linears_read() -> None:
    before = _model(*_SMOOTHABLE["matmul"])
    (plan,) = plans_of_graph(before)
    factor = np.arange(1.0, _SIDE + 1)
    after = smoothed_graph(before, {plan.maker: factor}, (plan,))
    topology, nodes = Topology(after), {node.name: node for node in after.graph.node}
    gamma, square = topology.floats(nodes["norm"].input[1]), topology.floats(nodes["linear"].input[1])
    assert gamma is not None
    assert square is not None
    np.testing.assert_allclose(gamma * factor, _CONSTANTS["gamma"].astype(np.float64), rtol=1e-6)
    np.testing.assert_allclose(square / factor[:, np.newaxis], _CONSTANTS["square"].astype(np.float64), rtol=1e-6)


def test_smoothed_graph_of_the_student_answers_as_before(trained_graph: Path, digits: Dataset) -> None:
    model = parse_graph(trained_graph)
    plans = plans_of_graph(model)
    assert Counter(plan.kind for plan in plans) == {"norm": 4, "value": 2}
    _check_fold(model, plans, np.stack([example.load() for example in digits.train[:16]]))


def test_smoothed_graph_does_not_change_its_input() -> None:
    model = _model(*_SMOOTHABLE["matmul"])
    content = model.SerializeToString(deterministic=True)
    plans = plans_of_graph(model)
    smoothed_graph(model, _factors(plans), plans)
    assert model.SerializeToString(deterministic=True) == content


def test_plans_of_graph_leave_a_norm_alone_that_a_residual_reads() -> None:
    nodes = [_NORM, _node("MatMul", "linear", "x square", "y"), _node("Add", "residual", "y x", "z")]
    assert plans_of_graph(_model(nodes, "z")) == ()


def test_plans_of_graph_leave_a_norm_alone_whose_reader_is_no_linear() -> None:
    nodes = [_NORM, _node("Relu", "relu", "x", "r"), _node("MatMul", "linear", "r square", "y")]
    assert plans_of_graph(_model(nodes, "y")) == ()


def test_plans_of_graph_leave_a_norm_alone_that_is_an_answer() -> None:
    model = _model(*_SMOOTHABLE["matmul"])
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    assert plans_of_graph(model) == ()


def test_plans_of_graph_leave_values_alone_that_something_else_reads() -> None:
    nodes = [*_attention("v bias"), _node("Add", "again", "y v_biased", "z")]
    assert plans_of_graph(_model(nodes, "z")) == ()


def test_calibrated_drops_the_plan_whose_channels_a_reshape_mixes_and_keeps_the_other() -> None:
    nodes = [
        *_SMOOTHABLE["matmul"][0],
        _node("LayerNormalization", "norm2", "y gamma beta", "x2"),
        _node("Reshape", "mix", "x2 mixed", "m1"),
        _node("Reshape", "unmix", "m1 back", "m2"),
        helper.make_node("Transpose", ["m1"], ["m3"], name="turn", perm=[0, 2, 1]),
        _node("MatMul", "linear2", "m3 square", "z"),
    ]
    model = _model([node for node in nodes if node.name != "unmix"], "z")
    assert [plan.maker for plan in plans_of_graph(model)] == ["norm", "norm2"]
    assert [plan.maker for plan in calibrated(model, lambda: iter(_IMAGES), len(_IMAGES)).plans] == ["norm"]


def test_calibrated_drops_a_wrong_plan_however_small_the_answers() -> None:
    nodes = [
        _NORM,
        _node("Reshape", "mix", "x mixed", "m1"),
        helper.make_node("Transpose", ["m1"], ["m2"], name="turn", perm=[0, 2, 1]),
        _node("MatMul", "linear", "m2 square", "y"),
    ]
    model = _model(nodes, "y")
    for tensor in model.graph.initializer:
        if tensor.name == "square":  # as an untrained head
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-5), "square"))
    assert calibrated(model, lambda: iter(_IMAGES), len(_IMAGES)).plans == ()


def test_smoothing_factors_are_smoothquant_s_up_to_one_constant() -> None:
    magnitude = np.array([1.0, 4.0, 100.0])
    weights = [np.array([[1.0, -2.0], [0.5, 0.25], [0.1, 0.1]]), np.array([[0.5], [3.0], [0.2]])]
    reach = np.array([2.0, 3.0, 0.2])  # over both readers
    expected = magnitude**0.25 / reach**0.75
    found = smoothing_factors(magnitude, weights, 0.25)
    np.testing.assert_allclose(found / found[0], expected / expected[0])
    assert np.log(found).mean() == pytest.approx(0)


def test_smoothing_factors_of_full_strength_make_channels_alike() -> None:
    magnitude = np.array([1.0, 4.0, 100.0])
    divided = magnitude / smoothing_factors(magnitude, [np.ones((3, 2)) * [[1], [2], [3]]], 1.0)
    np.testing.assert_allclose(divided, divided[0])


def test_smoothing_factors_leave_dead_channels_alone_and_stay_within_bounds() -> None:
    magnitude = np.array([0.0, 1.0, 1e-30, 1e8])
    found = smoothing_factors(magnitude, [np.array([[1.0], [0.0], [1.0], [1e-30]])], 0.5)
    assert found[:2].tolist() == [1.0, 1.0]
    assert (found >= 1e-4).all()
    assert (found <= 1e4).all()


# --- On a student whose attention and MLP norms have four channels fifty times as large as the others.


@pytest.fixture(scope="module")
def outliers(trained_graph: Path) -> onnx.ModelProto:
    """The trained student with outliers: it answers the same, since the next weights are divided."""
    model = parse_graph(trained_graph)
    factor = np.ones(32)
    factor[[3, 11, 17, 30]] = 1 / 50
    plans = tuple(plan for plan in plans_of_graph(model) if plan.kind == "norm")
    return smoothed_graph(model, {plan.maker: factor for plan in plans}, plans)


@pytest.fixture(scope="module")
def images(digits: Dataset) -> NDArray[np.uint8]:
    """uint8 (384, 8, 8, 3): training digits; the first 256 calibrate, the others compare."""
    return np.stack([example.load() for example in digits.train[:384]])


@pytest.fixture(scope="module")
def measured(outliers: onnx.ModelProto, images: NDArray[np.uint8]) -> Calibration:
    """The student with outliers, measured."""
    return calibrated(outliers, lambda: iter(images[:256]), 256)


@pytest.fixture(scope="module")
def compared(outliers: onnx.ModelProto, images: NDArray[np.uint8]) -> HeldOut:
    """The other digits."""
    return HeldOut(outliers, card_of_model(outliers), lambda: iter(images[256:]), 128)


def test_outliers_answer_as_the_student(
    outliers: onnx.ModelProto, trained_graph: Path, images: NDArray[np.uint8]
) -> None:
    expected = answers_of_graph(parse_graph(trained_graph), images)
    np.testing.assert_allclose(answers_of_graph(outliers, images), expected, atol=1e-3)


def test_smoothing_repairs_what_outliers_cost(measured: Calibration, compared: HeldOut) -> None:
    plain, smooth = (
        compared.score(
            measured.scaled(QuantizationRecipe(alpha=alpha, estimator="minmax")).emitted(measured.places(Layout()))
        )
        for alpha in (None, 0.5)
    )
    assert plain.agreement < 1
    assert smooth.agreement == 1
    assert smooth.divergence < 0.1 * plain.divergence


def test_scaled_graph_has_the_ranges_of_its_own_values(measured: Calibration, images: NDArray[np.uint8]) -> None:
    """What is derived for a smoothed graph must be what measuring it would give, values of attention included."""
    recipe = QuantizationRecipe(alpha=0.5, estimator="minmax", smooth_values=True)
    scaled = measured.scaled(recipe)
    again = calibrated(scaled.model, lambda: iter(images[:256]), 256).scaled(replace(recipe, alpha=None))
    assert scaled.table.activations == pytest.approx(again.table.activations, rel=1e-3)


def test_corrected_biases_bring_the_mean_answer_of_a_layer_back(images: NDArray[np.uint8]) -> None:
    model = _model(
        [
            _NORM,
            _node("MatMul", "linear", "x square", "y"),
            _node("Add", "biased", "y bias", "z"),
            _node("MatMul", "last", "z turned", "w"),
        ],
        "w",
    )
    pictures = _IMAGES
    measured = calibrated(model, lambda: iter(pictures), len(pictures))
    nodes, topology = {node.name: node for node in model.graph.node}, Topology(model)
    assert "linear" in measured.placement.quantised
    scaled = measured.scaled(QuantizationRecipe(correct_biases=True))
    assert set(scaled.corrections) == {"linear"}  # `lift_it` and `last` are stem and head
    coarse = ScaledGraph(
        model=model,
        table=ScaleTable(activations=scaled.table.activations, weights=scaled.table.weights),
        corrections=scaled.corrections,
    )
    emitted = coarse.emitted(("linear",))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in emitted.graph.initializer}
    weight = stored["linear.weight.int8"] * stored["linear.weight.scale"]
    original = topology.floats(nodes["linear"].input[1])
    assert original is not None
    expected = _CONSTANTS["bias"].astype(np.float64) + measured.statistics["x"].mean @ (original - weight)
    np.testing.assert_allclose(stored["linear.bias.corrected"], expected, rtol=1e-4)
