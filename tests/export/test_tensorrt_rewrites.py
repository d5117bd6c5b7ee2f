"""Rewritings that change no answer: each one where it applies, and where it must keep away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgebert.calibration.placement import Layout
from edgebert.export.graph_edits import copy_of_model
from edgebert.export.half_parity import answers_in_float32
from edgebert.export.tensorrt_rewrites import (
    cast_pixels_first,
    drop_idle_gathers,
    drop_idle_masks,
    scale_on_queries,
    whole_norms,
)
from edgebert.export.topology import Topology
from tests.export.tensorrt_networks import WIDTH, float_network, images, int8_network, node_of


def _pooled_by_stride(*, order: str = "straight") -> onnx.ModelProto:
    """Replace the pooled vector by itself, flattened and gathered with indices from the batch size, as PyTorch exports it."""
    model = float_network()
    counts = np.arange(WIDTH, dtype=np.int64)[None, :]
    for name, values in {
        "flat": np.array([-1], np.int64),
        "start": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "width": np.array(WIDTH, np.int64),
        "none": np.array([], np.int64),
        "last_axis": np.array([1], np.int64),
        "counts": counts if order == "straight" else counts[:, ::-1].copy(),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    added = [
        helper.make_node("Shape", ["image"], ["batch.1"], name="batch.1", start=0, end=1),
        helper.make_node("Squeeze", ["batch.1"], ["batch.0"], name="batch.0"),
        helper.make_node("Range", ["start", "batch.0", "step"], ["rows"], name="rows"),
        helper.make_node("Mul", ["rows", "width"], ["starts"], name="starts"),
        helper.make_node("Unsqueeze", ["starts", "last_axis"], ["starts.2"], name="starts.2"),
        helper.make_node("Add", ["starts.2", "counts"], ["indices"], name="indices"),
        helper.make_node("Reshape", ["pooled", "flat"], ["flattened"], name="flattened"),
        helper.make_node("Gather", ["flattened", "indices"], ["strided"], name="strided", axis=0),
    ]
    head = model.graph.node.pop()
    model.graph.node.extend([*added, head])
    node_of(model, "head").input[0] = "strided"
    onnx.checker.check_model(model, full_check=True)
    return model


CASES: dict[str, tuple[Callable[[onnx.ModelProto], int], Callable[[], onnx.ModelProto]]] = {
    "pixels": (cast_pixels_first, float_network),
    "gathers": (drop_idle_gathers, _pooled_by_stride),
    "masks": (drop_idle_masks, lambda: float_network(mask="idle")),
    "norms": (whole_norms, lambda: float_network(norm="pieces")),
    "attention": (scale_on_queries, float_network),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rewriting_changes_the_graph_and_no_answer(case: str) -> None:
    rewrite, network = CASES[case]
    before = network()
    after = copy_of_model(before)
    assert rewrite(after) == 1
    reference = answers_in_float32(before, images())
    np.testing.assert_allclose(
        answers_in_float32(after, images()), reference, rtol=0, atol=3e-6 * np.abs(reference).max()
    )


@pytest.mark.parametrize("case", CASES)
def test_a_rewriting_changes_nothing_the_second_time(case: str) -> None:
    rewrite, network = CASES[case]
    model = network()
    rewrite(model)
    before = model.SerializeToString(deterministic=True)
    assert rewrite(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def test_cast_pixels_first_casts_before_anything_is_moved() -> None:
    model = float_network()
    cast_pixels_first(model)
    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 1


def test_drop_idle_gathers_leaves_no_node_that_asks_for_the_batch_size() -> None:
    model = _pooled_by_stride()
    drop_idle_gathers(model)
    assert not {"Gather", "Range", "Shape"} & {node.op_type for node in model.graph.node}


def test_drop_idle_gathers_keeps_a_gather_that_turns_the_channels_around() -> None:
    assert drop_idle_gathers(_pooled_by_stride(order="reversed")) == 0


def test_drop_idle_masks_keeps_a_mask_that_masks_one_token() -> None:
    assert drop_idle_masks(float_network(mask="lowest")) == 0


def test_whole_norms_takes_scale_bias_and_epsilon_along() -> None:
    model = float_network(norm="pieces")
    whole_norms(model)
    norm = next(node for node in model.graph.node if node.output[0] == "norm2")
    assert (norm.op_type, list(norm.input)) == ("LayerNormalization", ["stream", "ones", "shift"])
    assert {each.name: each.f or each.i for each in norm.attribute} == {
        "axis": -1,
        "epsilon": pytest.approx(1e-6),
        "stash_type": 1,
    }


def test_whole_norms_keeps_a_norm_over_another_axis_in_pieces() -> None:
    model = float_network(norm="pieces")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "tokens_axis"))
    for name in ("norm2.mean", "norm2.variance"):
        node_of(model, name).input[1] = "tokens_axis"
    assert whole_norms(model) == 0


def test_whole_norms_takes_the_inverse_of_a_root() -> None:
    model = float_network(norm="pieces")
    quotient = node_of(model, "norm2.quotient")
    position = next(at for at, node in enumerate(model.graph.node) if node.name == quotient.name)
    quotient.op_type, quotient.input[1] = "Mul", "norm2.inverse"
    model.graph.node.insert(
        position, helper.make_node("Reciprocal", ["norm2.root"], ["norm2.inverse"], name="norm2.inverse")
    )
    assert whole_norms(model) == 1


def test_scale_on_queries_scales_the_pair_of_quantised_queries() -> None:
    model = int8_network(Layout(attention="full"))
    before = Topology(model).floats("query.heads.scale")
    scale_on_queries(model)
    pair = [node for node in model.graph.node if node.name.startswith("scores.queries.") and node.op_type != "Mul"]
    scales = [Topology(model).floats(node.input[1]) for node in pair]
    assert before is not None
    assert [float(scale) for scale in scales if scale is not None] == pytest.approx([float(before) * 0.5] * 2)


def test_scale_on_queries_turns_a_division_into_a_factor() -> None:
    model = float_network()
    node_of(model, "late").op_type = "Div"
    scale_on_queries(model)
    factor = Topology(model).floats(node_of(model, "scores.queries.Mul").input[1])
    assert factor is not None
    assert float(factor) == pytest.approx(2.0)


def test_scale_on_queries_keeps_a_factor_behind_what_is_added() -> None:
    """(scores + mask) * factor is not the product's factor alone."""
    model = float_network(mask="idle")
    node_of(model, "late").input[0], node_of(model, "masked").input[0] = "masked", "scores"
    nodes = {node.name: node for node in model.graph.node}
    order = [name for name in nodes if name != "late"]
    order.insert(order.index("softmax"), "late")
    node_of(model, "softmax").input[0] = "late"
    kept = [onnx.NodeProto.FromString(nodes[name].SerializeToString()) for name in order]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    assert scale_on_queries(model) == 0
