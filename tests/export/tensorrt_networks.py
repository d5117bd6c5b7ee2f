"""One attention block over 16 pixels, written by hand: the names of its nodes say what they are, and every rule has a place in it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.calibration.calibrate import QuantizationRecipe, calibrated
from edgebert.calibration.placement import Layout

Mask = Literal["none", "idle", "lowest"]
WIDTH, HEADS, TOKENS, CLASSES = 8, 2, 16, 5


def images(count: int = 12) -> NDArray[np.uint8]:
    """Return uint8 (count, 4, 4, 3)."""
    return np.random.default_rng(3).integers(0, 256, (count, 4, 4, 3), np.uint8)


def float_network(
    *, mask: Mask = "none", norm: Literal["whole", "pieces"] = "whole", gain: float = 1.0
) -> onnx.ModelProto:
    """Return `image` uint8 (batch, 4, 4, 3) -> stem, norm, attention with a late scale, residual, norm, mean, head -> `logits`.

    Args:
        mask: none; one that masks nothing; or one that forbids the last token with the lowest float32.
        norm: whether the second layer norm is one node.
        gain: factor of the residual stream, which the second norm takes away again.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic]] = {
        "255": np.array(255.0, np.float32),
        "means": np.full((1, 3, 1, 1), 0.5, np.float32),
        "stem.weight": rng.normal(size=(WIDTH, 3, 1, 1)).astype(np.float32),
        "ones": np.ones(WIDTH, np.float32),
        "shift": rng.normal(size=WIDTH).astype(np.float32),
        "factor": np.array((WIDTH / HEADS) ** -0.5, np.float32),
        "gain": np.array(gain, np.float32),
        "to_tokens": np.array([0, WIDTH, TOKENS], np.int64),
        "to_heads": np.array([0, TOKENS, HEADS, WIDTH // HEADS], np.int64),
        "to_width": np.array([0, TOKENS, WIDTH], np.int64),
        "over_tokens": np.array([1], np.int64),
        "head.weight": rng.normal(size=(CLASSES, WIDTH)).astype(np.float32),
        "head.bias": rng.normal(size=CLASSES).astype(np.float32),
    }
    for name in ("query", "key", "value", "output"):
        constants[f"{name}.weight"] = (rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        constants[f"{name}.bias"] = rng.normal(size=WIDTH).astype(np.float32)
    nodes = [
        _node("Transpose", ["image"], "permuted", perm=[0, 3, 1, 2]),
        _node("Cast", ["permuted"], "values", to=TensorProto.FLOAT),
        _node("Div", ["values", "255"], "scaled"),
        _node("Sub", ["scaled", "means"], "normalised"),
        _node("Conv", ["normalised", "stem.weight"], "stem", kernel_shape=[1, 1]),
        _node("Reshape", ["stem", "to_tokens"], "columns"),
        _node("Transpose", ["columns"], "tokens", perm=[0, 2, 1]),
        _node("LayerNormalization", ["tokens", "ones", "shift"], "norm", axis=-1, epsilon=1e-6, stash_type=1),
        *(each for name, perm in _SIDES.items() for each in _projection(name, perm)),
        _node("MatMul", ["query.heads", "key.heads"], "scores"),
        _node("Mul", ["scores", "factor"], "late"),
        *_masked(mask, constants),
        _node("Softmax", ["late" if mask == "none" else "masked"], "softmax", axis=-1),
        _node("MatMul", ["softmax", "value.heads"], "mixed"),
        _node("Transpose", ["mixed"], "mixed.tokens", perm=[0, 2, 1, 3]),
        _node("Reshape", ["mixed.tokens", "to_width"], "joined"),
        _node("MatMul", ["joined", "output.weight"], "output"),
        _node("Add", ["output", "output.bias"], "output.biased"),
        _node("Add", ["tokens", "output.biased"], "residual"),
        _node("Mul", ["residual", "gain"], "stream"),
        *_norm(norm, constants),
        _node("ReduceMean", ["norm2", "over_tokens"], "pooled", keepdims=0),
        _node("Gemm", ["pooled", "head.weight", "head.bias"], "head", "logits", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def int8_network(layout: Layout | None = None, *, gain: float = 1.0) -> onnx.ModelProto:
    """Return the INT8 graph of a layout: as `edgebert quantize` makes it of `float_network`, calibrated on `images`."""
    measured = calibrated(float_network(gain=gain), lambda: iter(images()), len(images()))
    return measured.scaled(QuantizationRecipe()).emitted(measured.places(layout or Layout()))


def node_of(model: onnx.ModelProto, name: str) -> NodeProto:
    """Return the node of this name."""
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def maker_of(model: onnx.ModelProto, node: str, position: int, *operators: str) -> NodeProto:
    """Return who makes an input of a node, and who makes the first input of that, and so on: one step for each operator."""
    current, at = node_of(model, node), position
    for operator in operators:
        current = next(each for each in model.graph.node if current.input[at] in each.output)
        assert current.op_type == operator
        at = 0
    return current


_SIDES = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}


def _node(operator: str, inputs: list[str], name: str, output: str = "", **attributes: float | list[int]) -> NodeProto:
    node = helper.make_node(operator, inputs, [output or name], name=name)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
    return node


def _projection(name: str, perm: list[int]) -> list[NodeProto]:
    return [
        _node("MatMul", ["norm", f"{name}.weight"], name),
        _node("Add", [name, f"{name}.bias"], f"{name}.biased"),
        _node("Reshape", [f"{name}.biased", "to_heads"], f"{name}.split"),
        _node("Transpose", [f"{name}.split"], f"{name}.heads", perm=perm),
    ]


def _masked(mask: Mask, constants: dict[str, NDArray[np.generic]]) -> list[NodeProto]:
    """As transformers writes it: Where(allowed, 0, lowest), added to the scores."""
    if mask == "none":
        return []
    allowed = np.ones((1, 1, TOKENS, TOKENS), np.bool_)
    allowed[..., -1] = mask == "idle"
    lowest = np.array(np.finfo(np.float32).min, np.float32)
    constants.update({"allowed": allowed, "zero": np.array(0, np.float32), "lowest": lowest})
    return [_node("Where", ["allowed", "zero", "lowest"], "mask"), _node("Add", ["late", "mask"], "masked")]


def _norm(norm: Literal["whole", "pieces"], constants: dict[str, NDArray[np.generic]]) -> list[NodeProto]:
    if norm == "whole":
        return [_node("LayerNormalization", ["stream", "ones", "shift"], "norm2", axis=-1, epsilon=1e-6, stash_type=1)]
    constants.update(
        {"last": np.array([-1], np.int64), "two": np.array(2, np.float32), "epsilon": np.array(1e-6, np.float32)}
    )
    return [
        _node("ReduceMean", ["stream", "last"], "norm2.mean", keepdims=1),
        _node("Sub", ["stream", "norm2.mean"], "norm2.deviation"),
        _node("Pow", ["norm2.deviation", "two"], "norm2.square"),
        _node("ReduceMean", ["norm2.square", "last"], "norm2.variance", keepdims=1),
        _node("Add", ["norm2.variance", "epsilon"], "norm2.sum"),
        _node("Sqrt", ["norm2.sum"], "norm2.root"),
        _node("Div", ["norm2.deviation", "norm2.root"], "norm2.quotient"),
        _node("Mul", ["norm2.quotient", "ones"], "norm2.scaled"),
        _node("Add", ["norm2.scaled", "shift"], "norm2"),
    ]
