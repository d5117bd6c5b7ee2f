"""Makes the graphs and the answers of `edgebert/jetson_check`, on a computer with the workbench:

    python -m tests.jetson_check.make_reference

One network with random weights, its INT8 form as `edgebert quantize` places Q/DQ, and of both the forms that TensorRT builds from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert._json import JsonObject, dump_json
from edgebert.calibration.calibrate import QuantizationRecipe, calibrated
from edgebert.calibration.placement import Layout
from edgebert.export.half_parity import answers_in_float32, half_parity
from edgebert.export.tensorrt_graph import strong_graph, weak_graph
from edgebert.jetson_check.reference import CLASSES, REFERENCE_FILE, SCHEMA, SIDE, pictures

FOLDER = Path(__file__).parents[2] / "edgebert" / "jetson_check"

_WIDTH, _HEADS, _PATCH, _INNER = 32, 2, 4, 64
_TOKENS = (SIDE // _PATCH) ** 2
_OF_CONTROL = 10.0  # see `ReferenceEngine.allowed`
_GRID = 64  # of the weights: the files compress to a third, and the network is none the worse

# name, file, typing, precision, of the INT8 graph
_ENGINES = (
    ("fp16", "fp16.onnx", "strong", "fp16"),
    ("int8", "int8.onnx", "strong", "int8"),
    ("int8 weak", "int8-weak.onnx", "weak", "int8"),
)


def float_network() -> onnx.ModelProto:
    """Return `image` uint8 (batch, 32, 32, 3) -> stem, norm, attention, norm, two linears, norm, mean, head -> `logits`."""
    constants = _constants()
    nodes = [
        _node("Transpose", ["image"], "permuted", perm=[0, 3, 1, 2]),
        _node("Cast", ["permuted"], "values", to=TensorProto.FLOAT),
        _node("Div", ["values", "255"], "scaled"),
        _node("Sub", ["scaled", "means"], "normalised"),
        _node("Conv", ["normalised", "stem.weight"], "stem", kernel_shape=[_PATCH] * 2, strides=[_PATCH] * 2),
        _node("Reshape", ["stem", "to_tokens"], "columns"),
        _node("Transpose", ["columns"], "tokens", perm=[0, 2, 1]),
        _norm("tokens", "norm1"),
        *_heads("query", [0, 2, 1, 3]),
        *_heads("key", [0, 2, 3, 1]),
        *_heads("value", [0, 2, 1, 3]),
        _node("Mul", ["query.heads", "factor"], "query.scaled"),
        _node("MatMul", ["query.scaled", "key.heads"], "scores"),
        _node("Softmax", ["scores"], "softmax", axis=-1),
        _node("MatMul", ["softmax", "value.heads"], "mixed"),
        _node("Transpose", ["mixed"], "mixed.tokens", perm=[0, 2, 1, 3]),
        _node("Reshape", ["mixed.tokens", "to_width"], "joined"),
        *_linear("joined", "output"),
        _node("Add", ["tokens", "output.biased"], "residual1"),
        _norm("residual1", "norm2"),
        *_linear("norm2", "inner"),
        _node("Gelu", ["inner.biased"], "gelu"),
        *_linear("gelu", "outer"),
        _node("Add", ["residual1", "outer.biased"], "residual2"),
        _norm("residual2", "norm3"),
        _node("ReduceMean", ["norm3", "over_tokens"], "pooled", keepdims=0),
        _node("Gemm", ["pooled", "head.weight", "head.bias"], "head", "logits", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def graphs() -> Mapping[str, tuple[onnx.ModelProto, onnx.ModelProto]]:
    """Return file name -> the form that TensorRT builds from, and the portable graph that it is a form of."""
    floating, images = float_network(), pictures()
    measured = calibrated(floating, lambda: iter(images), len(images))
    int8 = measured.scaled(QuantizationRecipe()).emitted(measured.places(Layout()))
    return {
        "fp16.onnx": (strong_graph(floating), floating),
        "int8.onnx": (strong_graph(int8), int8),
        "int8-weak.onnx": (weak_graph(int8), int8),
    }


def reference(forms: Mapping[str, tuple[onnx.ModelProto, onnx.ModelProto]]) -> JsonObject:
    """Return the content of `reference.json`."""
    import onnxruntime

    return {
        "schema": SCHEMA,
        "onnxruntime": onnxruntime.__version__,
        "engines": [
            {"name": name, "file": file, "typing": typing, "precision": precision, **_answers(*forms[file])}
            for name, file, typing, precision in _ENGINES
        ],
    }


def main() -> None:
    """Write the files."""
    forms = graphs()
    for name, (form, _) in forms.items():
        (FOLDER / name).write_bytes(form.SerializeToString(deterministic=True))
    (FOLDER / REFERENCE_FILE).write_text(dump_json(reference(forms)), encoding="utf-8")


def _answers(form: onnx.ModelProto, source: onnx.ModelProto) -> JsonObject:
    images = pictures()
    logits = answers_in_float32(form, images)
    control = half_parity(source, strong_graph(source), images).control
    return {
        "logits": [[round(float(value), 6) for value in row] for row in logits],
        "control": float(f"{control:.3g}"),
        "allowed": float(f"{_OF_CONTROL * control:.3g}"),
    }


def _constants() -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(11)

    def drawn(*shape: int, spread: float) -> NDArray[np.float32]:
        return (np.round(rng.normal(size=shape) * spread * _GRID) / _GRID).astype(np.float32)

    constants: dict[str, NDArray[np.generic]] = {
        "255": np.array(255.0, np.float32),
        "means": np.full((1, 3, 1, 1), 0.5, np.float32),
        "stem.weight": drawn(_WIDTH, 3, _PATCH, _PATCH, spread=0.3),
        "factor": np.array((_WIDTH / _HEADS) ** -0.5, np.float32),
        "to_tokens": np.array([0, _WIDTH, _TOKENS], np.int64),
        "to_heads": np.array([0, _TOKENS, _HEADS, _WIDTH // _HEADS], np.int64),
        "to_width": np.array([0, _TOKENS, _WIDTH], np.int64),
        "over_tokens": np.array([1], np.int64),
        "head.weight": drawn(CLASSES, _WIDTH, spread=1.0),
        "head.bias": drawn(CLASSES, spread=0.5),
    }
    for name in ("norm1", "norm2", "norm3"):
        constants[f"{name}.gain"] = 1 + drawn(_WIDTH, spread=0.1)
        constants[f"{name}.shift"] = drawn(_WIDTH, spread=0.2)
    widths = dict.fromkeys(("query", "key", "value", "output"), (_WIDTH, _WIDTH))
    widths |= {"inner": (_WIDTH, _INNER), "outer": (_INNER, _WIDTH)}
    for name, (into, out) in widths.items():
        constants[f"{name}.weight"] = drawn(into, out, spread=into**-0.5)
        constants[f"{name}.bias"] = drawn(out, spread=0.2)
    return constants


def _node(operator: str, inputs: list[str], name: str, output: str = "", **attributes: float | list[int]) -> NodeProto:
    node = helper.make_node(operator, inputs, [output or name], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
    return node


def _norm(value: str, name: str) -> NodeProto:
    inputs = [value, f"{name}.gain", f"{name}.shift"]
    return _node("LayerNormalization", inputs, name, axis=-1, epsilon=1e-6, stash_type=1)


def _linear(value: str, name: str) -> list[NodeProto]:
    return [
        _node("MatMul", [value, f"{name}.weight"], name),
        _node("Add", [name, f"{name}.bias"], f"{name}.biased"),
    ]


def _heads(name: str, perm: list[int]) -> list[NodeProto]:
    return [
        *_linear("norm1", name),
        _node("Reshape", [f"{name}.biased", "to_heads"], f"{name}.split"),
        _node("Transpose", [f"{name}.split"], f"{name}.heads", perm=perm),
    ]


if __name__ == "__main__":
    main()
