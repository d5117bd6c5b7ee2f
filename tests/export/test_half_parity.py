"""The parity check itself: ONNX Runtime keeps float32 between FP16 operators, and the rounded graph does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import EdgebertError
from edgebert.export.half_parity import (
    HalfParity,
    answers_in_float32,
    check_half_parity,
    control_graph,
    half_parity,
    rounded_graph,
)
from edgebert.export.tensorrt_graph import strong_graph
from tests.export.tensorrt_networks import float_network, images, int8_network, node_of

GOOD = HalfParity(
    images=8,
    scale=1.0,
    control=0.01,
    typed_difference=0.01,
    rounded_difference=0.02,
    flips=0,
    decided=8,
    decided_flips=0,
)


def _squares() -> onnx.ModelProto:
    """A strongly typed graph: the square of a pixel's value, which FP16 does not hold above 255, and a thousandth of that."""
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], name="half", to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "two"], ["double"], name="double"),
        helper.make_node("Mul", ["double", "double"], ["square"], name="square"),
        helper.make_node("Mul", ["square", "thousandth"], ["small"], name="small"),
        helper.make_node("Cast", ["small"], ["logits"], name="logits", to=TensorProto.FLOAT),
    ]
    constants = {"two": 2.0, "thousandth": 0.001}
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 1, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value, np.float16), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _pixels(value: int) -> NDArray[np.uint8]:
    return np.full((1, 1, 1, 3), value, np.uint8)


def test_onnxruntime_keeps_float32_between_operators_that_are_fp16() -> None:
    """Why its answers prove nothing of FP16: it is the reason that `rounded_graph` exists."""
    assert np.isfinite(answers_in_float32(_squares(), _pixels(200))).all()


def test_rounded_graph_overflows_where_fp16_does() -> None:
    assert np.isinf(answers_in_float32(rounded_graph(_squares()), _pixels(200))).all()


def test_rounded_graph_rounds_each_result_to_fp16() -> None:
    found = answers_in_float32(rounded_graph(_squares()), _pixels(100))
    expected = np.float16(np.float16(200.0) * np.float16(200.0)) * np.float16(0.001)
    np.testing.assert_array_equal(found, np.full((1, 1, 1, 3), np.float32(expected)))


def test_control_graph_differs_from_its_source_by_rounding_alone() -> None:
    source = float_network()
    reference, control = (answers_in_float32(each, images()) for each in (source, control_graph(source, grid=1.37)))
    difference = np.abs(control - reference).max() / np.abs(reference).max()
    assert 1e-5 < difference < 1e-2


def test_control_graph_leaves_the_normalisation_of_pixels_as_it_is() -> None:
    control = control_graph(float_network(), grid=1.37)
    assert [node_of(control, name).output[0] for name in ("scaled", "normalised")] == ["scaled", "normalised"]


def test_half_parity_counts_what_no_rounding_can_turn() -> None:
    source = int8_network()
    parity = half_parity(source, strong_graph(source), images(64))
    assert (parity.images, parity.decided_flips) == (64, 0)
    assert parity.decided > 32  # else the comparison of decisions would say little


def test_half_parity_takes_the_thresholds_of_a_multi_label_model() -> None:
    source = float_network()
    parity = half_parity(source, strong_graph(source), images(), thresholds=(0.5,) * 5)
    assert parity.holds


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, rounded_difference=0.1),
        replace(GOOD, typed_difference=0.1),
        replace(GOOD, rounded_difference=float("nan")),
        replace(GOOD, control=float("nan")),
        replace(GOOD, decided_flips=1),
    ],
)
def test_check_half_parity_refuses_what_rounding_does_not_explain(bad: HalfParity) -> None:
    with pytest.raises(EdgebertError, match="answers otherwise"):
        check_half_parity(bad)


def test_check_half_parity_accepts_what_rounding_explains() -> None:
    check_half_parity(GOOD)
