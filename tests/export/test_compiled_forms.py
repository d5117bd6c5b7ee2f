"""What `compile` makes of a graph: OpenVINO IR and the form for ONNX Runtime, the same bytes from every process."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import BadDataError, EdgebertError, UnavailableError
from edgebert.export import forms, ort_form
from edgebert.export.forms import FORMS, form_from_graph
from edgebert.export.ir import ir_from_graph
from edgebert.export.metadata import (
    bytes_of_model,
    parse_graph,
    read_graph_card,
    read_graph_examples,
    with_metadata,
    without_examples,
)
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.rules import check_int8_graph
from edgebert.extras import installed_version
from edgebert.preprocess import load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
from edgebert.target import TARGETS, resolve_target

SPEC = InputSpec(height=8, width=8, classes=10)


def _images(graph: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 (images, 8, 8, 3): the digits that travel with the graph."""
    return load_batch([example.png for example in read_graph_examples(graph)], read_graph_card(graph).preprocessing)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_ir_answers_as_the_graph(precision: str, request: pytest.FixtureRequest) -> None:
    graph: bytes = request.getfixturevalue(f"{precision}_graph")
    files = ir_from_graph(graph)
    images = _images(graph)
    with open_runner("openvino", ModelSource(spec=SPEC, files={"model.onnx": graph})) as runner:
        expected = runner.infer(images)
    source = ModelSource(spec=SPEC, files={"model.xml": files.xml, "model.bin": files.bin})
    with open_runner("openvino", source) as runner:
        np.testing.assert_array_equal(runner.infer(images), expected)


def test_ir_keeps_float32_weights(fp32_graph: bytes) -> None:
    files = ir_from_graph(fp32_graph)
    weights = [tensor for tensor in parse_graph(fp32_graph).graph.initializer if tensor.data_type == TensorProto.FLOAT]
    largest = max(weights, key=lambda tensor: int(np.prod(tensor.dims)))
    assert numpy_helper.to_array(largest).tobytes() in files.bin
    assert b'element_type="f16"' not in files.xml


def test_ir_keeps_int8_weights(int8_graph: bytes) -> None:
    files = ir_from_graph(int8_graph)
    weights = [tensor for tensor in parse_graph(int8_graph).graph.initializer if tensor.data_type == TensorProto.INT8]
    largest = max(weights, key=lambda tensor: int(np.prod(tensor.dims)))
    assert numpy_helper.to_array(largest).tobytes() in files.bin


def test_ir_is_the_same_in_a_process_that_did_something_else_before(
    fp32_graph: bytes, int8_graph: bytes, tmp_path: Path
) -> None:
    (tmp_path / "fp32.onnx").write_bytes(fp32_graph)
    (tmp_path / "int8.onnx").write_bytes(int8_graph)
    code = (
        "import hashlib, pathlib\nfrom edgebert.export.ir import ir_from_graph\n"
        "ir_from_graph(pathlib.Path('fp32.onnx').read_bytes())\n"
        "files = ir_from_graph(pathlib.Path('int8.onnx').read_bytes())\n"
        "print(hashlib.sha256(files.xml + files.bin).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    ours = [ir_from_graph(int8_graph) for _ in range(2)]
    assert {hashlib.sha256(files.xml + files.bin).hexdigest() for files in ours} == {ran.stdout.strip()}


def test_ir_refuses_what_openvino_cannot_read() -> None:
    graph = helper.make_graph(
        [helper.make_node("NoSuchOperator", ["image"], ["logits"])],
        "unknown",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
    )
    with pytest.raises(BadDataError, match="OpenVINO cannot read the graph"):
        ir_from_graph(bytes_of_model(helper.make_model(graph)))


def test_ort_form_has_uint8_activations_and_the_same_answers(int8_graph: bytes) -> None:
    form = ort_form_from_graph(int8_graph, machine="x86_64")
    assert form.disabled_optimizers == ("MatMulAddFusion",)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in parse_graph(form.model).graph.initializer}
    for node in parse_graph(form.model).graph.node:
        if node.op_type == "QuantizeLinear":
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.uint8
            assert int(zero_point) == 128
    images = _images(int8_graph)
    with open_runner("onnxruntime", ModelSource(spec=SPEC, files={"model.onnx": int8_graph})) as runner:
        expected = runner.infer(images)
    options = RunnerOptions(disabled_optimizers=form.disabled_optimizers)
    with open_runner("onnxruntime", ModelSource(spec=SPEC, files={"model.onnx": form.model}), options) as runner:
        np.testing.assert_allclose(runner.infer(images), expected, atol=1e-5)
    assert any("bit-equal" in note for note in form.notes)


def test_ort_form_does_not_touch_the_portable_graph(int8_graph: bytes) -> None:
    before = parse_graph(int8_graph)
    ort_form_from_graph(int8_graph, machine="x86_64")
    assert parse_graph(int8_graph) == before
    check_int8_graph(before)


def test_ort_form_leaves_fp32_alone(fp32_graph: bytes) -> None:
    form = ort_form_from_graph(fp32_graph)
    assert (form.model, form.disabled_optimizers) == (without_examples(fp32_graph), ())


def test_ort_form_keeps_int8_activations_on_other_processors(int8_graph: bytes) -> None:
    form = ort_form_from_graph(int8_graph, machine="aarch64")
    assert (form.model, form.disabled_optimizers) == (without_examples(int8_graph), ())


def test_ort_form_says_which_product_remained_float(int8_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rewriting, ONNX Runtime's kernels do not take the graph: the check must see it."""
    monkeypatch.setattr(ort_form, "_uint8_activations", lambda model: parse_graph(bytes_of_model(model)))
    with pytest.raises(EdgebertError, match=r"runs \d+ of 12 quantised products in float: MatMul `"):
        ort_form_from_graph(int8_graph, machine="x86_64")


def test_ort_form_is_refused_when_it_answers_differently(int8_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = ort_form._uint8_activations

    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        changed = rewrite(model)
        for tensor in changed.graph.initializer:
            if tensor.name.endswith("zero_point.uint8"):
                tensor.CopyFrom(numpy_helper.from_array(np.array(20, np.uint8), tensor.name))
        return changed

    monkeypatch.setattr(ort_form, "_uint8_activations", wrong)
    with pytest.raises(EdgebertError, match="answers differently"):
        ort_form_from_graph(int8_graph, machine="x86_64")


def test_ort_form_refuses_a_quantised_graph_that_is_not_portable(int8_graph: bytes) -> None:
    model = parse_graph(int8_graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".zero_point") and not tensor.dims:  # of activations
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), tensor.name))
    with pytest.raises(BadDataError, match="not a portable INT8 graph"):
        ort_form_from_graph(bytes_of_model(model))


@pytest.mark.parametrize(("target", "names"), [("cpu", ["model.onnx"]), ("intel-cpu", ["model.bin", "model.xml"])])
def test_form_from_graph_makes_the_target_s_files(int8_graph: bytes, target: str, names: list[str]) -> None:
    form = form_from_graph(int8_graph, resolve_target(target))
    assert sorted(form.files) == names
    assert (form.target.name, form.backend) == (target, TARGETS[target].backend)
    assert list(form.versions) == [form.backend]
    with open_runner(
        form.backend,
        ModelSource(spec=SPEC, files=form.files),
        RunnerOptions(device=form.device, disabled_optimizers=form.disabled_optimizers),
    ) as runner:
        assert runner.infer(_images(int8_graph)).shape == (4, 10)


def test_form_from_graph_says_that_engines_are_built_on_the_device(fp32_graph: bytes) -> None:
    with pytest.raises(UnavailableError, match="TensorRT is not on this computer") as caught:
        form_from_graph(fp32_graph, resolve_target("jetson-orin-nano"))
    assert caught.value.exit_code == 69
    assert "--host USER@HOST" in str(caught.value.hint)


def test_every_target_has_a_form() -> None:
    assert {target.form for target in TARGETS.values()} == set(FORMS)


def test_forms_are_the_same_bytes_for_the_same_graph(int8_graph: bytes) -> None:
    target = resolve_target("cpu")
    assert form_from_graph(int8_graph, target) == form_from_graph(int8_graph, target)


def test_with_metadata_does_not_change_a_form(int8_graph: bytes) -> None:
    """The card's history may differ; the compiled network must not."""
    card = read_graph_card(int8_graph)
    bare = bytes_of_model(with_metadata(parse_graph(int8_graph), card, ()))
    assert ir_from_graph(bare) == ir_from_graph(int8_graph)
    assert ort_form_from_graph(bare).model == ort_form_from_graph(int8_graph).model


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_form_carries_no_example_image(precision: str, target: str, request: pytest.FixtureRequest) -> None:
    """A bundle made with `--canary synthetic` must not ship them inside a compiled file."""
    graph: bytes = request.getfixturevalue(f"{precision}_graph")
    secret = base64.b64encode(read_graph_examples(graph)[0].png)
    assert secret in graph
    assert not any(secret in content for content in form_from_graph(graph, resolve_target(target)).files.values())


@pytest.mark.parametrize(("opset", "ir", "oldest"), [(20, 9, "1.17"), (20, 10, "1.18"), (21, 9, "1.18")])
def test_oldest_onnxruntime_reads_the_opset_and_the_ir_version(opset: int, ir: int, oldest: str) -> None:
    assert forms._oldest_onnxruntime(_empty_model(opset, ir)) == oldest


@pytest.mark.parametrize(("opset", "ir"), [(22, 10), (20, 11)])
def test_oldest_onnxruntime_of_a_file_that_is_newer_than_its_table_is_the_one_here(opset: int, ir: int) -> None:
    assert forms._oldest_onnxruntime(_empty_model(opset, ir)) == installed_version("onnxruntime")


def _empty_model(opset: int, ir: int) -> bytes:
    node = helper.make_node("Identity", ["image"], ["logits"])
    graph = helper.make_graph([node], "empty", [], [])
    return bytes_of_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir))
