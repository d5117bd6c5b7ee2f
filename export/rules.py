"""What a portable INT8 graph may hold: the common subset of TensorRT, OpenVINO and ONNX Runtime.

int8 only, zero point 0, one scale per activation, one scale per output channel of a weight, Q and DQ directly at the
inputs of Conv, Gemm and MatMul, everything else in float. Sources: the parser's rules in onnx-tensorrt (QuantizeLinear
and DequantizeLinear importers), OpenVINO's int8 kernels, ONNX Runtime's QDQ selectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NoReturn

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from edgebert.errors import BadDataError
from edgebert.export.topology import LINEAR_OPERATORS, Topology, attribute_of

# TensorRT's ONNX parser imports none of these; they are other ways to write a quantised graph.
FORBIDDEN_OPERATORS = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearAdd",
    "QLinearConv",
    "QLinearMatMul",
)
MAX_OPSET = 20  # what TensorRT 10.3 (JetPack 6.1) is known to read
# Largest scale that stays finite, and smallest that stays above zero, in the FP16 copies a strongly typed engine needs.
MAX_SCALE = 65504.0
MIN_SCALE = 2.0**-24

Precision = Literal["fp32", "int8"]


def graph_precision(model: onnx.ModelProto) -> Precision:
    """Return `int8` where the graph holds a quantised operator, else `fp32`."""
    quantised = {"QuantizeLinear", "DequantizeLinear", *FORBIDDEN_OPERATORS}
    return "int8" if any(node.op_type in quantised for node in model.graph.node) else "fp32"


def qdq_counts(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return how many operators of each type have a quantised input and a quantised weight, and how many Q and DQ there are.

    >>> import onnx
    >>> dict(qdq_counts(onnx.ModelProto()))
    {'QuantizeLinear': 0, 'DequantizeLinear': 0}
    """
    topology = Topology(model)
    counts = Counter(node.op_type for node in model.graph.node if _is_quantised(node, topology))
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        counts[op_type] = sum(node.op_type == op_type for node in model.graph.node)
    return dict(counts)


def check_int8_graph(model: onnx.ModelProto) -> None:
    """Prove that a graph is the portable INT8 graph.

    Raises:
        BadDataError: it is not; the message names the rule and the node.
    """
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            _refuse("only the standard operators", f"operator set `{opset.domain}`")
        elif not 19 <= opset.version <= MAX_OPSET:
            _refuse(f"opset 19 to {MAX_OPSET}", f"opset {opset.version}")
    topology = Topology(model)
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        _refuse("at least one quantised operator", "a graph without Q/DQ")
    for node in model.graph.node:
        if node.op_type in FORBIDDEN_OPERATORS or node.domain not in ("", "ai.onnx"):
            _refuse("no quantised operators but QuantizeLinear and DequantizeLinear", _named(node))
    for check, operators in _CHECKS:
        for node in model.graph.node:
            if node.op_type in operators:
                check(node, topology)


def weight_axis(node: NodeProto) -> int:
    """Return the axis of a linear operator's weight that counts its output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute_of(node, "transB", 0) else 1
    return -1  # MatMul: the last one; written as a non-negative number in the graph


def _refuse(rule: str, found: str) -> NoReturn:
    raise BadDataError(f"not a portable INT8 graph: {found}", expected=rule, hint="edgebert quantize")


def _named(node: NodeProto) -> str:
    return f"{node.op_type} `{node.name or (node.output[0] if node.output else '')}`"


def _is_quantised(node: NodeProto, topology: Topology) -> bool:
    if node.op_type not in LINEAR_OPERATORS:
        return False
    producers = [topology.producers.get(name) for name in node.input[:2]]
    return all(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def _check_parameters(node: NodeProto, topology: Topology) -> None:
    """Scale: constant float32 within FP16's range. Zero point: constant int8 zeros of the scale's shape."""
    if len(node.input) < 3 or not node.input[2]:
        _refuse("a zero point of type int8 on every Q and DQ", f"{_named(node)} has none")
    scale, zero_point = topology.array(node.input[1]), topology.array(node.input[2])
    if scale is None or zero_point is None:
        _refuse("constant scales and zero points", f"{_named(node)} computes them")
    if scale.dtype != np.float32:
        _refuse("float32 scales", f"{_named(node)} has {scale.dtype}")
    if zero_point.dtype != np.int8:
        _refuse("int8 only", f"{_named(node)} has type {zero_point.dtype}")
    if zero_point.any():
        _refuse("zero point 0", f"{_named(node)} has zero point {zero_point.ravel()[np.flatnonzero(zero_point)[0]]}")
    if zero_point.shape != scale.shape or scale.ndim > 1:
        _refuse("as many zero points as scales", f"{_named(node)} has {zero_point.shape} and {scale.shape}")
    values = scale.astype(np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.min() < MIN_SCALE or values.max() > MAX_SCALE:
        _refuse(
            f"finite scales from {MIN_SCALE:.2g} to {MAX_SCALE:.0f}",
            f"{_named(node)} has scales from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}",
        )
    for attribute in node.attribute:
        if attribute.name == "block_size" and attribute.i:
            _refuse("no blocked quantisation", f"{_named(node)} has block_size {attribute.i}")
        if attribute.name == "output_dtype" and attribute.i not in (0, TensorProto.INT8, TensorProto.FLOAT):
            _refuse("int8 only", f"{_named(node)} has output_dtype {attribute.i}")


def _check_activation(node: NodeProto, topology: Topology) -> None:
    """A QuantizeLinear takes an activation, has one scale, and feeds DequantizeLinear alone."""
    if topology.constant(node.input[0]) is not None:
        _refuse("weights stored as int8", f"{_named(node)} quantises the constant `{node.input[0]}` at run time")
    scale = topology.array(node.input[1])
    if scale is not None and scale.size != 1:
        _refuse("one scale per activation", f"{_named(node)} has {scale.size}")
    for consumer in topology.consumers.get(node.output[0], []):
        if consumer.op_type != "DequantizeLinear":
            _refuse("a Q followed by DQ alone", f"{_named(node)} feeds {_named(consumer)}")


def _check_dequantised(node: NodeProto, topology: Topology) -> None:
    """A DequantizeLinear takes a Q or a stored int8 weight, and feeds Conv, Gemm and MatMul directly."""
    stored = topology.constant(node.input[0])
    producer = topology.producers.get(node.input[0])
    if stored is not None and stored.data_type != TensorProto.INT8:
        _refuse("int8 only", f"{_named(node)} reads {TensorProto.DataType.Name(stored.data_type)}")
    if stored is None and (producer is None or producer.op_type != "QuantizeLinear"):
        _refuse("a DQ that reads a Q or a stored weight", f"{_named(node)} reads `{node.input[0]}`")
    if stored is None and producer is not None and list(producer.input[1:3]) != list(node.input[1:3]):
        ours, theirs = topology.array(node.input[1]), topology.array(producer.input[1])
        if ours is None or theirs is None or not np.array_equal(ours, theirs):
            _refuse("equal scales on a Q and its DQ", _named(node))
    consumers = topology.consumers.get(node.output[0], [])
    if not consumers:
        _refuse("a DQ that feeds an operator", f"{_named(node)} feeds none")
    position = 0 if stored is None else 1
    for consumer in consumers:
        if consumer.op_type not in LINEAR_OPERATORS or list(consumer.input).index(node.output[0]) != position:
            _refuse("Q/DQ at the inputs of Conv, Gemm and MatMul alone", f"{_named(node)} feeds {_named(consumer)}")


def _check_linear(node: NodeProto, topology: Topology) -> None:
    """Both inputs quantised or none; the weight per output channel, in [-127, 127], with its axis written down."""
    producers = [topology.producers.get(name) for name in node.input[:2]]
    quantised = [producer is not None and producer.op_type == "DequantizeLinear" for producer in producers]
    if quantised[0] != quantised[1]:
        which = "input" if quantised[0] else "weight"
        _refuse("both the input and the weight quantised, or neither", f"{_named(node)} has a quantised {which} only")
    dequantiser = producers[1]
    if not quantised[1] or dequantiser is None:
        return
    weight, scale = topology.array(dequantiser.input[0]), topology.array(dequantiser.input[1])
    if weight is None or scale is None:
        _refuse("attention in float", f"{_named(node)} multiplies two quantised activations")
    if weight.size and int(np.abs(weight.astype(np.int16)).max()) > 127:
        _refuse("weights in [-127, 127]", f"{_named(node)} has a weight of -128")
    if scale.ndim == 0:
        return
    axis = weight_axis(node) % weight.ndim
    written = [attribute.i for attribute in dequantiser.attribute if attribute.name == "axis"]
    if not written:  # absent, ONNX means 1 and TensorRT's parser means 0
        _refuse("the axis written down", f"{_named(dequantiser)} has none")
    if written[0] % weight.ndim != axis:
        _refuse(f"axis {axis}, the output channels", f"{_named(dequantiser)} has axis {written[0]}")
    if scale.size != weight.shape[axis]:
        _refuse(f"{weight.shape[axis]} scales, one per output channel", f"{_named(dequantiser)} has {scale.size}")


# In this order: a message about a linear says more than one about the pair that it leaves unread.
_CHECKS: tuple[tuple[Callable[[NodeProto, Topology], None], tuple[str, ...]], ...] = (
    (_check_parameters, ("QuantizeLinear", "DequantizeLinear")),
    (_check_activation, ("QuantizeLinear",)),
    (_check_linear, LINEAR_OPERATORS),
    (_check_dequantised, ("DequantizeLinear",)),
)
