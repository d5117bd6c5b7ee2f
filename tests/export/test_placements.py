"""What single targets quantise as well: carried by the graph, added by `compile`, and refused where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgebert._json import JsonValue
from edgebert.bundle import read_bundle
from edgebert.calibration.calibrate import Calibration, QuantizationRecipe, calibrated
from edgebert.calibration.placement import Layout
from edgebert.calibration.table import ScaleTable
from edgebert.errors import BadDataError
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.forms import form_from_graph
from edgebert.export.metadata import (
    PLACEMENTS_KEY,
    bytes_of_model,
    card_of_model,
    examples_of_model,
    metadata_of_model,
    parse_graph,
    with_metadata,
    without_examples,
)
from edgebert.export.placements import Placements, graph_for_backend, placements_of_model, placements_text
from edgebert.export.rules import check_int8_graph, qdq_counts
from edgebert.preprocess import load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner
from edgebert.target import resolve_target

_WIDE = Layout(attention="full", stem=True)
# Everything that a recipe can change about what is emitted.
_RECIPE = QuantizationRecipe(alpha=0.5, smooth_values=True, correct_biases=True)

Change = Callable[[dict[str, JsonValue]], object]


@pytest.fixture(scope="module")
def images(fp32_graph: bytes) -> NDArray[np.uint8]:
    """uint8 (4, 8, 8, 3): the digits that travel with the graph."""
    model = parse_graph(fp32_graph)
    return load_batch([example.png for example in examples_of_model(model)], card_of_model(model).preprocessing)


@pytest.fixture(scope="module")
def measured(fp32_graph: bytes, images: NDArray[np.uint8]) -> Calibration:
    """The student, measured on them; its stem has the biases that training would give it."""
    model = parse_graph(fp32_graph)
    rng = np.random.default_rng(0)
    for node in model.graph.node:
        if node.op_type == "Conv":
            (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
            bias = rng.uniform(0.5, 1, kernel.dims[0]).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(bias, f"{node.name}.given_bias"))
            del node.input[2:]
            node.input.append(f"{node.name}.given_bias")
    return calibrated(model, lambda: iter(images), len(images))


@pytest.fixture(scope="module")
def placements(measured: Calibration) -> Placements:
    """Stem and attention for OpenVINO."""
    core = measured.places(Layout())
    added = tuple(name for name in measured.places(_WIDE) if name not in core)
    table = measured.scaled(_RECIPE).table
    read = {node.name: node.input[:2] for node in measured.model.graph.node}
    values = {value for name in added for value in read[name] if value in table.activations}
    return Placements(
        table=ScaleTable(
            activations={value: table.activations[value] for value in values},
            weights={name: table.weights[name] for name in added if name in table.weights},
        ),
        added={"openvino": added},
    )


@pytest.fixture(scope="module")
def portable(measured: Calibration, placements: Placements, fp32_graph: bytes) -> onnx.ModelProto:
    """The portable INT8 graph that carries them."""
    before = parse_graph(fp32_graph)
    emitted = measured.scaled(_RECIPE).emitted(measured.places(Layout()))
    text = placements_text(placements)
    return with_metadata(emitted, card_of_model(before), examples_of_model(before), placements=text)


@pytest.fixture(scope="module")
def wide(measured: Calibration) -> onnx.ModelProto:
    """What the search measured for OpenVINO."""
    return measured.scaled(_RECIPE).emitted(measured.places(_WIDE))


def _answers(files: dict[str, bytes], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    source = ModelSource(spec=InputSpec(height=8, width=8, classes=10), files=files)
    with open_runner("openvino", source) as runner:
        return runner.infer(images)


def _changed(portable: onnx.ModelProto, change: Change) -> onnx.ModelProto:
    """Return the graph with its placements changed, as a stranger could."""
    model = onnx.ModelProto()
    model.CopyFrom(portable)
    for entry in model.metadata_props:
        if entry.key == PLACEMENTS_KEY:
            value = json.loads(entry.value)
            change(value)
            entry.value = json.dumps(value)
    return model


def test_placements_are_read_back_as_they_were_written(portable: onnx.ModelProto, placements: Placements) -> None:
    again = placements_of_model(portable)
    assert again is not None
    assert again.added == placements.added
    assert placements_text(again) == placements_text(placements)


def test_placements_of_model_are_none_where_it_carries_none(int8_graph: bytes) -> None:
    assert placements_of_model(parse_graph(int8_graph)) is None


def test_graph_for_backend_adds_the_pairs(portable: onnx.ModelProto, placements: Placements) -> None:
    graph, added = graph_for_backend(portable, "openvino")
    assert added == placements.added["openvino"]
    onnx.checker.check_model(graph, full_check=True)
    assert qdq_counts(graph)["Conv"] == 2
    assert qdq_counts(graph)["MatMul"] == qdq_counts(portable)["MatMul"] + 4


def test_graph_for_backend_is_what_the_search_measured(
    portable: onnx.ModelProto, wide: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    graph, _ = graph_for_backend(portable, "openvino")
    assert qdq_counts(graph) == qdq_counts(wide)
    found, expected = (_answers({"model.onnx": bytes_of_model(model)}, images) for model in (graph, wide))
    np.testing.assert_array_equal(found, expected)


def test_graph_for_backend_leaves_the_portable_graph_as_it_is(portable: onnx.ModelProto) -> None:
    content = bytes_of_model(portable)
    graph_for_backend(portable, "openvino")
    assert bytes_of_model(portable) == content
    check_int8_graph(portable)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "nobody"])
def test_graph_for_backend_adds_nothing_for_others(portable: onnx.ModelProto, backend: str) -> None:
    graph, added = graph_for_backend(portable, backend)
    assert added == ()
    assert graph is portable


def test_graph_for_backend_adds_nothing_to_a_graph_without_placements(int8_graph: bytes) -> None:
    assert graph_for_backend(parse_graph(int8_graph), "openvino")[1] == ()


def test_ir_form_answers_as_the_graph_that_was_measured(
    portable: onnx.ModelProto, wide: onnx.ModelProto, images: NDArray[np.uint8]
) -> None:
    form = form_from_graph(bytes_of_model(portable), resolve_target("intel-cpu"))
    assert form.notes == ("6 operators in int8 beyond the portable graph's",)
    expected = _answers({"model.onnx": bytes_of_model(wide)}, images)
    np.testing.assert_array_equal(_answers(dict(form.files), images), expected)


def test_ir_form_for_a_gpu_is_the_portable_graph_s(portable: onnx.ModelProto) -> None:
    gpu = form_from_graph(bytes_of_model(portable), resolve_target("intel-gpu"))
    bare = form_from_graph(without_examples(bytes_of_model(portable)), resolve_target("intel-cpu"))
    assert gpu.notes == ()
    assert gpu.files == bare.files


def test_ort_form_takes_no_placements(portable: onnx.ModelProto) -> None:
    graph = bytes_of_model(portable)
    bare = without_examples(graph)
    assert form_from_graph(graph, resolve_target("cpu")).files == form_from_graph(bare, resolve_target("cpu")).files


def test_bundle_s_portable_graph_carries_no_placements(portable: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(bytes_of_model(portable))
    bundle_from_graph(
        tmp_path / "graph.onnx", tmp_path / "x.edgebert", CompileOptions(targets=("intel-cpu",), canary="synthetic")
    )
    bundle = read_bundle(tmp_path / "x.edgebert")
    shipped = parse_graph(bundle.files["model.onnx"])
    assert PLACEMENTS_KEY not in metadata_of_model(shipped)
    assert shipped.graph == portable.graph
    (form,) = bundle.manifest.forms
    assert form.notes == ("6 operators in int8 beyond the portable graph's",)


def _first(value: dict[str, JsonValue], kind: str) -> tuple[dict[str, JsonValue], str]:
    """Return the table's activations or weights, and a name that is there."""
    table = value["table"]
    assert isinstance(table, dict)
    entries = table[kind]
    assert isinstance(entries, dict)
    return entries, min(entries)


def _without_a_scale(kind: str) -> Change:
    def change(value: dict[str, JsonValue]) -> None:
        entries, name = _first(value, kind)
        del entries[name]

    return change


def _with_a_scale(kind: str, scale: JsonValue) -> Change:
    def change(value: dict[str, JsonValue]) -> None:
        entries, name = _first(value, kind)
        entries[name] = scale

    return change


def _adding(name: str) -> Change:
    return lambda value: value.update(added={"openvino": [name]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_adding("no_such_node"), "`no_such_node`, which is not in it"),
        (_adding(""), "which is not in it"),
        (_adding("node_softmax"), "which is a Softmax"),
        (_adding("layer_norm.int8.QuantizeLinear"), "which is a QuantizeLinear"),
        (_adding("node_MatMul_33"), "which is quantised already"),
        (_without_a_scale("activations"), "but no scale of its input"),
        (_without_a_scale("weights"), "but not 16 scales of its weight"),
        (_with_a_scale("weights", [0.1, 0.1]), "but not 16 scales of its weight"),
        (_with_a_scale("weights", [0.0] * 16), "not above 0"),
        (_with_a_scale("weights", [1e300] * 16), "not above 0"),
        (_with_a_scale("weights", []), "not above 0"),
        (_with_a_scale("weights", 0.1), "a list of numbers"),
        (_with_a_scale("activations", 0.0), "not above 0"),
        (_with_a_scale("activations", -1.0), "not above 0"),
        (_with_a_scale("activations", "0.1"), "a finite number"),
        (lambda value: value.pop("table"), "a JSON object"),
        (lambda value: value.pop("added"), "an object"),
        (lambda value: value.update(added={"openvino": "node_softmax"}), "a list of strings"),
    ],
)
def test_hostile_placements_are_refused(portable: onnx.ModelProto, change: Change, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        graph_for_backend(_changed(portable, change), "openvino")


def test_placements_that_name_the_head_without_its_scales_are_refused(portable: onnx.ModelProto) -> None:
    head = next(node.name for node in portable.graph.node if node.op_type == "Gemm")
    with pytest.raises(BadDataError, match=f"`{head}`, but no scale of its input"):
        graph_for_backend(_changed(portable, _adding(head)), "openvino")


def test_placements_that_are_no_json_are_refused(portable: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(portable)
    next(entry for entry in model.metadata_props if entry.key == PLACEMENTS_KEY).value = "{"
    with pytest.raises(BadDataError, match="the graph's placements is not valid JSON"):
        placements_of_model(model)


def test_placements_of_a_graph_that_is_not_portable_are_refused(portable: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(portable)
    quantise = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    quantise.output[0] = "nobody.reads.this"
    with pytest.raises(BadDataError, match="not a portable INT8 graph"):
        graph_for_backend(model, "openvino")


@pytest.mark.parametrize("target", ["intel-cpu"])
def test_compile_refuses_hostile_placements(portable: onnx.ModelProto, target: str) -> None:
    hostile = bytes_of_model(_changed(portable, _adding("no_such_node")))
    with pytest.raises(BadDataError, match="which is not in it"):
        form_from_graph(hostile, resolve_target(target))
