"""The two forms for TensorRT: what they hold, that they answer as their source, and that faults of the rewriting are noticed."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgebert.calibration.placement import Layout
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export import half_precision, norm_pieces, tensorrt_rewrites
from edgebert.export.graph_edits import element_types
from edgebert.export.half_overflow import check_half_range
from edgebert.export.half_parity import answers_in_float32, half_parity
from edgebert.export.metadata import examples_of_model
from edgebert.export.tensorrt_graph import rewritten_graph, strong_graph, weak_graph
from edgebert.export.topology import Topology
from tests.export.tensorrt_networks import float_network, images, int8_network, node_of

ROOT = Path(__file__).parents[2]
FAMILIES = ("nano", "bert", "vit-s", "deit", "swin-t", "resnet")
ATTENTION = ("nano", "bert", "vit-s", "deit", "swin-t")
Subject = Any  # of benchmarks/_tensorrt_subjects.py, which is no package


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Subject]]:
    """Make a small network of a family once: exported, and measured for INT8."""
    made: dict[str, Subject] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module("_tensorrt_subjects")

        def make(name: str) -> Subject:
            if name not in made:
                made[name] = module.subject(name, tmp_path_factory.mktemp(name), full=False, calibrate=6, judge=12)
            return made[name]

        yield make


@pytest.mark.parametrize("name", FAMILIES)
def test_strong_graph_answers_as_the_float_graph(subjects: Callable[[str], Subject], name: str) -> None:
    network = subjects(name)
    parity = half_parity(network.float32, strong_graph(network.float32), network.images)
    assert parity.holds, parity.to_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_strong_graph_answers_as_the_int8_graph(subjects: Callable[[str], Subject], name: str) -> None:
    network = subjects(name)
    source = network.int8(Layout(stem=True))
    parity = half_parity(source, strong_graph(source), network.images)
    assert parity.holds, parity.to_text()


@pytest.mark.parametrize("name", ATTENTION)
def test_strong_graph_answers_as_the_graph_with_int8_attention(subjects: Callable[[str], Subject], name: str) -> None:
    network = subjects(name)
    source = network.int8(Layout(attention="full"))
    parity = half_parity(source, strong_graph(source), network.images)
    assert parity.holds, parity.to_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_weak_graph_answers_as_the_float_graph_to_float32_rounding(
    subjects: Callable[[str], Subject], name: str
) -> None:
    network = subjects(name)
    source = network.float32
    before, after = (answers_in_float32(each, network.images) for each in (source, weak_graph(source)))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * float(np.abs(before).max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_strong_graph_is_valid_and_keeps_input_and_output(subjects: Callable[[str], Subject], name: str) -> None:
    network = subjects(name)
    strong = strong_graph(network.int8())
    onnx.checker.check_model(strong, full_check=True)
    assert list(strong.graph.input) == list(network.float32.graph.input)
    assert list(strong.graph.output) == list(network.float32.graph.output)


@pytest.mark.parametrize("name", FAMILIES)
def test_strong_graph_keeps_every_product_and_every_pair(subjects: Callable[[str], Subject], name: str) -> None:
    kept = ("Conv", "Gemm", "MatMul", "LayerNormalization", "QuantizeLinear", "DequantizeLinear", "Softmax", "Gelu")
    source = subjects(name).int8()
    before, after = (Counter(node.op_type for node in each.graph.node) for each in (source, strong_graph(source)))
    assert {operator: after[operator] for operator in kept} == {operator: before[operator] for operator in kept}


@pytest.mark.parametrize("name", ["vit-s", "deit", "swin-t", "resnet"])
def test_strong_graph_asks_for_the_batch_size_at_most_where_a_token_is_repeated(
    subjects: Callable[[str], Subject], name: str
) -> None:
    operators = Counter(node.op_type for node in strong_graph(subjects(name).float32).graph.node)
    assert operators["Range"] == operators["Where"] == 0
    assert operators["Shape"] <= operators["Expand"]  # of class and distillation tokens


def test_strong_graph_takes_the_placements_that_quantize_wrote(int8_graph: bytes) -> None:
    model = onnx.ModelProto.FromString(int8_graph)
    assert examples_of_model(strong_graph(model)) == examples_of_model(model)  # metadata stay with the graph


def test_strong_graph_leaves_its_source_as_it_is() -> None:
    source = int8_network(Layout(attention="full", stem=True))
    before = source.SerializeToString(deterministic=True)
    strong_graph(source)
    assert source.SerializeToString(deterministic=True) == before


def test_strong_graph_gives_the_same_bytes_twice() -> None:
    first, second = (strong_graph(int8_network()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_strong_graph_computes_in_fp16_behind_the_normalisation_of_pixels() -> None:
    strong = strong_graph(float_network())
    types = element_types(strong)
    wide = [
        node.name
        for node in strong.graph.node
        if any(types[name] == TensorProto.FLOAT for name in node.output) and node.op_type != "Cast"
    ]
    assert wide == ["permuted", "scaled", "normalised"]


def test_strong_graph_has_fp16_scales_at_every_pair() -> None:
    strong = strong_graph(int8_network(Layout(attention="full", stem=True)))
    topology = Topology(strong)
    pairs = [node for node in strong.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {str(scale.dtype) for node in pairs if (scale := topology.array(node.input[1])) is not None} == {"float16"}


def test_strong_graph_keeps_float32_where_it_is_told_to() -> None:
    strong = strong_graph(int8_network(), float32=("output",))
    types = element_types(strong)
    assert {types[name] for name in node_of(strong, "output").input} == {TensorProto.FLOAT}
    assert types["output.biased"] == TensorProto.FLOAT16


def test_strong_graph_gives_a_float32_product_a_pair_of_its_own_where_it_shared_one() -> None:
    strong = strong_graph(int8_network(), float32=("query",))
    types = element_types(strong)
    assert types[node_of(strong, "query").input[0]] == TensorProto.FLOAT
    assert types[node_of(strong, "key").input[0]] == TensorProto.FLOAT16


def test_strong_graph_answers_alike_with_a_product_in_float32() -> None:
    source = int8_network()
    names = ("query", "output")
    parity = half_parity(source, strong_graph(source, float32=names), images(64), float32=names)
    assert parity.holds, parity.to_text()


def test_strong_graph_refuses_a_name_that_is_no_node() -> None:
    with pytest.raises(BadDataError, match="no node `fc9`"):
        strong_graph(float_network(), float32=("fc9",))


def test_strong_graph_names_node_and_remedy_of_a_constant_beyond_fp16() -> None:
    with pytest.raises(BadDataError) as caught:
        strong_graph(float_network(mask="lowest"))
    assert "Where `mask` reads the constant `lowest`, which holds -3.40282e+38" in caught.value.what
    assert "float32=('mask',)" in (caught.value.hint or "")


def test_strong_graph_refuses_a_divisor_that_becomes_zero() -> None:
    source = float_network()
    source.graph.initializer.append(numpy_helper.from_array(np.array(1e-9, np.float32), "tiny"))
    node = node_of(source, "stream")
    node.op_type, node.input[1] = "Div", "tiny"
    with pytest.raises(BadDataError, match=r"Div `stream` reads the constant `tiny`, which holds 1e-09"):
        strong_graph(source)


def test_strong_graph_refuses_its_own_result() -> None:
    with pytest.raises(BadDataError, match="in FP16 already"):
        strong_graph(strong_graph(float_network()))


def test_strong_graph_refuses_an_opset_without_fp16_scales() -> None:
    source = float_network()
    source.opset_import[0].version = 17
    with pytest.raises(BadDataError, match="opset 17"):
        strong_graph(source)


def test_strong_graph_refuses_what_breaks_a_rule() -> None:
    source = int8_network()
    del node_of(source, "query.weight.DequantizeLinear").attribute[:]
    with pytest.raises(BadDataError, match=r"rule `axis`: DequantizeLinear `query\.weight\.DequantizeLinear`"):
        strong_graph(source)


def test_a_network_that_fp16_does_not_hold_is_named_kept_in_float32_and_answers() -> None:
    source = float_network(gain=1e5)
    with pytest.raises(BadDataError) as caught:
        check_half_range(source, images())
    assert caught.value.what.startswith("Mul `stream` gives ")
    assert "float32=('norm2', 'stream',)" in (caught.value.hint or "")
    names = ("norm2", "stream")
    parity = half_parity(source, strong_graph(source, float32=names), images(64), float32=names)
    assert parity.holds, parity.to_text()


def test_half_parity_does_not_hold_for_a_network_that_overflows() -> None:
    source = float_network(gain=6e4)  # a constant that FP16 holds, products that it does not
    assert not half_parity(source, strong_graph(source), images()).holds


# Faults of the rewriting: the place in the code, what stands there instead, the graph that shows it.
def _forgets_factor(model: Any, product: Any, topology: Any, factor: float) -> list[onnx.NodeProto]:
    return []


_scaled = tensorrt_rewrites._scaled_queries
_half_weight = half_precision.half_weight
_followed = norm_pieces._followed
_quantised_attention = int8_network(Layout(attention="full"))


def _applies_factor_twice(model: Any, product: Any, topology: Any, factor: float) -> list[onnx.NodeProto]:
    return _scaled(model, product, topology, factor * factor)


def _scales_pair_but_not_queries(model: Any, product: Any, topology: Any, factor: float) -> list[onnx.NodeProto]:
    nodes = _scaled(model, product, topology, factor)
    nodes[1].input[0] = nodes[0].input[0]
    return nodes[1:]


def _scales_queries_but_not_pair(model: Any, product: Any, topology: Any, factor: float) -> list[onnx.NodeProto]:
    nodes = _scaled(model, product, topology, factor)
    nodes[1].input[1], nodes[2].input[1] = (nodes[1].input[1], "norm.scale")
    return nodes


def _loses_bias(node: Any, operator: str, topology: Any) -> tuple[str, Any]:
    name, last = _followed(node, operator, topology)
    return ("" if operator == "Add" else name), last


def _plain_scale(self: Any, name: str) -> str:
    return name


def _halves_steps(stored: Any, scale: Any, axis: int) -> Any:
    steps, half = _half_weight(stored, scale, axis)
    return steps, half * np.float16(0.5)


def _another_channel(stored: Any, scale: Any, axis: int) -> Any:
    steps, half = _half_weight(stored, scale, axis)
    return steps, np.roll(half, 1)


MUTANTS: dict[str, tuple[str, object, Callable[[], onnx.ModelProto]]] = {
    "attention's factor is forgotten": ("tensorrt_rewrites._scaled_queries", _forgets_factor, float_network),
    "attention's factor is applied twice": ("tensorrt_rewrites._scaled_queries", _applies_factor_twice, float_network),
    "queries are not scaled, their pair is": (
        "tensorrt_rewrites._scaled_queries",
        _scales_pair_but_not_queries,
        lambda: _quantised_attention,
    ),
    "the DQ of scaled queries keeps another scale": (
        "tensorrt_rewrites._scaled_queries",
        _scales_queries_but_not_pair,
        lambda: _quantised_attention,
    ),
    "attention's factor stays where it is": ("tensorrt_graph.scale_on_queries", lambda model: 0, float_network),
    "a mask that masks is dropped": (
        "tensorrt_rewrites._uniform",
        lambda name, topology: True,
        lambda: float_network(mask="lowest"),
    ),
    "pixels are cast late": ("tensorrt_graph.cast_pixels_first", lambda model: 0, float_network),
    "a norm stays in pieces": ("tensorrt_graph.whole_norms", lambda model: 0, lambda: float_network(norm="pieces")),
    "a norm loses its bias": (
        "norm_pieces._followed",
        _loses_bias,
        lambda: float_network(norm="pieces"),
    ),
    "scales of activations stay float32": ("half_precision._Rewriting._half_scale", _plain_scale, int8_network),
    "scales of weights are halved": ("half_precision.half_weight", _halves_steps, int8_network),
    "scales of weights go to other channels": ("half_precision.half_weight", _another_channel, int8_network),
    "nothing is cast": ("tensorrt_graph.half_graph", lambda model, float32: model, int8_network),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_of_the_rewriting_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, fault, network = MUTANTS[mutant]
    source = network()
    monkeypatch.setattr(f"edgebert.export.{place}", fault)
    assert _is_caught(source)


def test_the_rewriting_without_a_fault_is_not_caught() -> None:
    sources = (float_network(), float_network(norm="pieces"), int8_network(), _quantised_attention)
    assert [_is_caught(source) for source in sources] == [False] * len(sources)


def _is_caught(source: onnx.ModelProto) -> bool:
    """Say whether a rule or the parity check refuses what is made of a graph."""
    try:
        strong = strong_graph(source)
        onnx.checker.check_model(strong, full_check=True)
        return not half_parity(source, strong, images(32)).holds
    except (EdgebertError, onnx.checker.ValidationError):
        return True


def test_rewritten_graph_answers_bit_by_bit_where_attention_has_no_late_factor(fp32_graph: bytes) -> None:
    model = onnx.ModelProto.FromString(fp32_graph)  # of a student, which scales its queries itself
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    before, after = (answers_in_float32(each, noise) for each in (model, rewritten_graph(model)))
    np.testing.assert_array_equal(after, before)
