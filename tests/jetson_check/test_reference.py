"""The graphs and answers that are shipped are those that the script makes, and ONNX Runtime still answers so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgebert._json import Fields
from edgebert.export.half_parity import answers_in_float32
from edgebert.export.tensorrt_rules import findings
from edgebert.jetson_check.engines import difference
from edgebert.jetson_check.reference import CLASSES, IMAGES, SIDE, ReferenceEngine, pictures, read_reference
from tests.jetson_check.make_reference import graphs, reference

pytest.importorskip("onnxruntime")
ENGINES = {engine.name: engine for engine in read_reference().engines}


@pytest.fixture(scope="module")
def forms() -> Mapping[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    """The files as they are made here and now."""
    return graphs()


def test_pictures_are_the_same_everywhere() -> None:
    assert pictures().shape == (IMAGES, SIDE, SIDE, 3)
    assert hashlib.sha256(pictures().tobytes()).hexdigest()[:16] == "66657e284d48442d"


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_onnxruntime_answers_as_the_file_says(engine: ReferenceEngine) -> None:
    found = answers_in_float32(onnx.load_from_string(engine.graph()), pictures())
    assert found.shape == (IMAGES, CLASSES)
    assert float(np.abs(found - engine.logits).max()) <= engine.control


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_the_graph_is_the_one_that_is_made_now(
    engine: ReferenceEngine, forms: Mapping[str, tuple[onnx.ModelProto, onnx.ModelProto]]
) -> None:
    made, shipped = forms[engine.file][0], onnx.load_from_string(engine.graph())
    assert [(node.op_type, node.name) for node in shipped.graph.node] == [
        (node.op_type, node.name) for node in made.graph.node
    ]
    assert [entry.version for entry in shipped.opset_import] == [20]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for tensor in shipped.graph.initializer:
        # Scales are measured by ONNX Runtime, whose sums differ in the last bits between computers.
        np.testing.assert_allclose(
            numpy_helper.to_array(tensor), constants[tensor.name], rtol=2e-3, err_msg=tensor.name
        )


def test_the_answers_are_those_that_are_made_now(
    forms: Mapping[str, tuple[onnx.ModelProto, onnx.ModelProto]],
) -> None:
    for made in Fields(reference(forms), what="it").list_of_fields("engines"):
        engine = ENGINES[made.text("name")]
        named = (made.text("file"), made.text("typing"), made.text("precision"))
        assert named == (engine.file, engine.typing, engine.precision)
        assert float(np.abs(np.array(made.rows_of_numbers("logits")) - engine.logits).max()) <= engine.control
        assert made.number("control") == pytest.approx(engine.control, rel=0.5)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_the_graph_breaks_no_rule_of_the_parser(engine: ReferenceEngine) -> None:
    assert findings(onnx.load_from_string(engine.graph()), typing=engine.typing) == ()


def test_int8_graphs_are_int8_and_the_other_is_not() -> None:
    quantised = {
        name: any(node.op_type == "DequantizeLinear" for node in onnx.load_from_string(engine.graph()).graph.node)
        for name, engine in ENGINES.items()
    }
    assert quantised == {"fp16": False, "int8": True, "int8 weak": True}


def _faults(engine: ReferenceEngine) -> dict[str, onnx.ModelProto]:
    """Name -> the graph with something in it that a wrong engine might do."""
    found = {}
    for fault in ("a weight transposed", "a bias left out", "a norm left out", "colours swapped"):
        model = onnx.load_from_string(engine.graph())
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        if fault == "a weight transposed":
            tensor = next(each for name, each in tensors.items() if "output.weight" in name)
            value = numpy_helper.to_array(tensor).T.copy()
        elif fault == "colours swapped":
            tensor = next(each for name, each in tensors.items() if "stem.weight" in name)
            value = numpy_helper.to_array(tensor)[:, ::-1].copy()
        else:
            part = "head.bias" if fault == "a bias left out" else "norm3.gain"
            tensor = next(each for name, each in tensors.items() if part in name)
            value = np.zeros_like(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        found[fault] = model
    return found


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_difference_finds_an_engine_that_computes_something_else(engine: ReferenceEngine) -> None:
    for fault, model in _faults(engine).items():
        _, _, error = difference(engine, answers_in_float32(model, pictures()))
        assert error is not None, fault


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_difference_finds_images_in_another_order(engine: ReferenceEngine) -> None:
    assert difference(engine, engine.logits[::-1])[2] is not None
    text, facts, error = difference(engine, engine.logits)
    assert error is None
    assert facts["largest_difference"] == 0
    assert text.endswith("; 0 other classes")


def test_difference_does_not_let_nan_pass() -> None:
    engine = ENGINES["fp16"]
    assert difference(engine, np.full_like(engine.logits, np.nan))[2] is not None
