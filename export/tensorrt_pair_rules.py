"""What TensorRT's parser asks of QuantizeLinear and DequantizeLinear: one function a rule, with its own docstring as the rule.

Source: tensorrt_jetson.md, section 5.1 (onnx-tensorrt 10.1, `onnxOpImporters.cpp`). Each yields the nodes that break it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edgebert.export.graph_edits import named
from edgebert.export.topology import LINEAR_OPERATORS
from edgebert.export.typed_graph import PAIR, TypedGraph, Violation, violation

_NAMES = TensorProto.DataType


def inputs(graph: TypedGraph) -> Iterator[Violation]:
    """Data and a scale on every Q and DQ."""
    for node in graph.nodes(*PAIR):
        given = sum(1 for name in node.input[:2] if name)
        if given < 2:
            yield violation(node, f"has {given} of them")


def uint8(graph: TypedGraph) -> Iterator[Violation]:
    """No UINT8 data and no UINT8 zero point."""
    for node in graph.pairs():
        if graph.types.get(node.input[0]) == TensorProto.UINT8:
            yield violation(node, "reads UINT8")
        if len(node.input) > 2 and graph.types.get(node.input[2]) == TensorProto.UINT8:
            yield violation(node, "has a zero point of type UINT8")


def symmetric(graph: TypedGraph) -> Iterator[Violation]:
    """Zero points are constants, all zeros."""
    for node in graph.pairs():
        if len(node.input) < 3 or not node.input[2]:
            continue
        zero_point = graph.topology.array(node.input[2])
        if zero_point is None:
            yield violation(node, "computes its zero point")
        elif zero_point.any():
            yield violation(node, f"has the zero point {zero_point.ravel()[np.flatnonzero(zero_point)[0]]}")


def zero_point_size(graph: TypedGraph) -> Iterator[Violation]:
    """As many zero points as scales."""
    for node in graph.pairs():
        if len(node.input) < 3:
            continue
        zero_point, scale = graph.topology.array(node.input[2]), graph.topology.array(node.input[1])
        if zero_point is not None and scale is not None and zero_point.size != scale.size:
            yield violation(node, f"has {zero_point.size} and {scale.size}")


def scale_constant(graph: TypedGraph) -> Iterator[Violation]:
    """Scales are constants: their shape, too, is known."""
    for node in graph.pairs():
        if graph.topology.array(node.input[1]) is None:
            yield violation(node, f"computes its scale `{node.input[1]}`")


def scale_values(graph: TypedGraph) -> Iterator[Violation]:
    """Scales are there, finite and above zero, in FP16 too."""
    for node in graph.pairs():
        scale = graph.topology.floats(node.input[1])
        if scale is None:
            continue
        if scale.size == 0:
            yield violation(node, "has no scale at all")
            continue
        with np.errstate(over="ignore"):
            half = scale.astype(np.float16)
        if not np.isfinite(half).all() or half.min() <= 0:
            yield violation(node, f"has scales from {scale.min():.6g} to {scale.max():.6g}")


def scale_type(graph: TypedGraph) -> Iterator[Violation]:
    """The scale has the type of what its DQ feeds: FP16 in the strongly typed form, float32 in the weakly typed one."""
    for node in graph.pairs():
        kind = graph.types.get(node.input[1], 0)
        half = graph.typing == "strong" and (node.name or node.output[0]) not in graph.float32
        wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        if kind != wanted:
            yield violation(node, f"has scales of type {_NAMES.Name(kind)}, where {_NAMES.Name(wanted)} is due")


def channels(graph: TypedGraph) -> Iterator[Violation]:
    """One scale for the whole tensor, or one for each place of the axis."""
    for node in graph.pairs():
        scale, shape = graph.topology.array(node.input[1]), graph.shapes.get(node.input[0])
        axis = _axis(node)
        if scale is None or scale.ndim != 1 or scale.size == 1 or shape is None or axis is None:
            continue
        if not -len(shape) <= axis < len(shape):
            yield violation(node, f"has the axis {axis} of {len(shape)}")
        elif shape[axis] != scale.size:
            yield violation(node, f"has {scale.size} scales for {shape[axis]} channels")


def axis_written(graph: TypedGraph) -> Iterator[Violation]:
    """The axis is written down wherever there are several scales: absent, ONNX takes 1 and the parser 0."""
    for node in graph.pairs():
        scale = graph.topology.array(node.input[1])
        if scale is not None and scale.ndim and _axis(node) is None:
            yield violation(node, f"has {scale.size} scales and no axis")


def blocks(graph: TypedGraph) -> Iterator[Violation]:
    """No blocked quantisation: it is for INT4 weights, and for one dimension at most."""
    for node in graph.pairs():
        scale = graph.topology.array(node.input[1])
        size = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        if size or (scale is not None and scale.ndim > 1):
            yield violation(node, f"has block_size {size} and scales of rank {0 if scale is None else scale.ndim}")


def output_type(graph: TypedGraph) -> Iterator[Violation]:
    """The zero point is of the type that `output_dtype` says, where it says one."""
    for node in graph.nodes("QuantizeLinear"):
        said = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
        given = graph.types.get(node.input[2], 0) if len(node.input) > 2 else 0
        if said and given and said != given:
            yield violation(node, f"says {_NAMES.Name(said)} and has a zero point of type {_NAMES.Name(given)}")


def int8_only(graph: TypedGraph) -> Iterator[Violation]:
    """INT8 and nothing else: FP8 and FP4 do not run on Orin, INT4 is for weights of another kind of network."""
    for node in graph.pairs():
        kind = graph.types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0], 0)
        # UINT8 and INT32 have rules of their own, which say more.
        if kind not in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32):
            yield violation(node, f"is of type {_NAMES.Name(kind)}")


def bias(graph: TypedGraph) -> Iterator[Violation]:
    """No DQ of INT32: a bias stays a float."""
    for node in graph.nodes("DequantizeLinear"):
        if node.input and graph.types.get(node.input[0]) == TensorProto.INT32:
            yield violation(node, "dequantises INT32")


def per_channel_weights(graph: TypedGraph) -> Iterator[Violation]:
    """Several scales are for weights alone; an activation has one."""
    for node in graph.pairs():
        scale = graph.topology.array(node.input[1])
        if scale is not None and scale.size > 1 and not graph.is_stored(node):
            yield violation(node, f"has {scale.size} scales for an activation")


def adjacent(graph: TypedGraph) -> Iterator[Violation]:
    """Q feeds DQ alone, DQ feeds Conv, Gemm and MatMul alone, and nothing lies between."""
    for node in graph.pairs():
        readers = graph.topology.consumers.get(node.output[0], [])
        wanted = ("DequantizeLinear",) if node.op_type == "QuantizeLinear" else LINEAR_OPERATORS
        if not readers:
            yield violation(node, "feeds nothing")
        for reader in readers:
            if reader.op_type not in wanted or list(reader.input).index(node.output[0]) > 1:
                yield violation(node, f"feeds {named(reader)}")
        maker = graph.topology.producers.get(node.input[0])
        unquantised = maker is None or maker.op_type != "QuantizeLinear"
        if node.op_type == "DequantizeLinear" and unquantised and not graph.is_stored(node):
            yield violation(node, f"reads `{node.input[0]}`, which is no Q and no stored weight")


def both_operands(graph: TypedGraph) -> Iterator[Violation]:
    """Both operands of a Conv, Gemm or MatMul have a DQ, or neither: half of them leaves the product in float."""
    for node in graph.linears():
        first, second = graph.dequantisers(node)
        if (first is None) != (second is None):
            yield violation(node, f"has a DQ at its {'second' if first is None else 'first'} operand alone")


def pair_scale(graph: TypedGraph) -> Iterator[Violation]:
    """A DQ has the scale of the Q it reads."""
    for node in graph.nodes("DequantizeLinear"):
        maker = graph.topology.producers.get(node.input[0]) if len(node.input) > 1 else None
        if maker is None or maker.op_type != "QuantizeLinear" or len(maker.input) < 2:
            continue
        ours, theirs = graph.topology.array(node.input[1]), graph.topology.array(maker.input[1])
        if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
            yield violation(node, f"has another scale than {named(maker)}")


def _axis(node: NodeProto) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
