"""What TensorRT asks of everything but the Q/DQ pairs: operators, norms, attention, types. One function a rule.

Source: tensorrt_jetson.md, sections 0, 4, 5.1 and 5.3. Each yields the nodes that break it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from edgebert.export.attention import attentions_of_graph
from edgebert.export.graph_edits import name_of, named
from edgebert.export.half_precision import half_constants
from edgebert.export.norm_pieces import mean_squares
from edgebert.export.rules import FORBIDDEN_OPERATORS
from edgebert.export.topology import attribute_of
from edgebert.export.typed_graph import TypedGraph, Violation, violation

OPSETS = (19, 20)  # FP16 scales and one LayerNormalization are legal from 19 on; TensorRT 10.3 reads no newer than 20
MAX_INT8_TOKENS = 512  # ModelOpt's rule for INT8 attention; NVIDIA/TensorRT#3724
# Fused attention: of opset 23, and read by TensorRT 10.14 and newer only.
_FUSED_ATTENTION = ("Attention", "MultiHeadAttention", "RotaryEmbedding")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_NAMES = TensorProto.DataType
_STANDARD = ("", "ai.onnx")


def valid(graph: TypedGraph) -> Iterator[Violation]:
    """ONNX understands the graph and infers the type of every value: a rule that reads types would pass over others."""
    if graph.unreadable:
        yield "the graph", f"is not understood: {graph.unreadable}"
        return
    for node in graph.nodes():
        unknown = [name for name in node.output if name and name not in graph.types]
        if unknown:
            yield violation(node, f"gives `{unknown[0]}` of a type that is not known")


def opset(graph: TypedGraph) -> Iterator[Violation]:
    """Opset 19 or 20, of the standard operators alone."""
    versions = [entry.version for entry in graph.model.opset_import if entry.domain in _STANDARD]
    if not versions or versions[0] not in OPSETS:
        yield "the graph", f"has opset {versions[0] if versions else 'none'}"


def domain(graph: TypedGraph) -> Iterator[Violation]:
    """The standard operators alone."""
    for node in graph.nodes():
        if node.domain not in _STANDARD:
            yield violation(node, f"is of the domain `{node.domain}`")


def quantised_operators(graph: TypedGraph) -> Iterator[Violation]:
    """None of the operators that compute in integers themselves: the parser imports none of them."""
    for node in graph.nodes(*FORBIDDEN_OPERATORS):
        yield violation(node, "is one")


def attention_operator(graph: TypedGraph) -> Iterator[Violation]:
    """Attention is written out: the Attention operator is read from TensorRT 10.14 on only."""
    for node in graph.nodes(*_FUSED_ATTENTION):
        yield violation(node, "is fused")


def pixels(graph: TypedGraph) -> Iterator[Violation]:
    """UINT8 is a network's input or output, and nothing but Cast reads or makes it."""
    outside = {value.name for value in (*graph.model.graph.input, *graph.model.graph.output)}
    for node in graph.nodes():
        for name in (*node.input, *node.output):
            if name and graph.types.get(name) == TensorProto.UINT8 and (node.op_type != "Cast" or name not in outside):
                yield violation(node, f"has `{name}` of type UINT8")


def interface(graph: TypedGraph) -> Iterator[Violation]:
    """`image` is UINT8 and `logits` float32, as in every graph of edgebert's."""
    stored = set(graph.topology.initializers)
    sides = (
        ([value for value in graph.model.graph.input if value.name not in stored], TensorProto.UINT8),
        (list(graph.model.graph.output), TensorProto.FLOAT),
    )
    for values, wanted in sides:
        for value in values:
            kind = value.type.tensor_type.elem_type
            if kind != wanted:
                yield f"`{value.name}`", f"is {_NAMES.Name(kind)} and not {_NAMES.Name(wanted)}"


def norm_outputs(graph: TypedGraph) -> Iterator[Violation]:
    """LayerNormalization has its first output alone."""
    for node in graph.nodes("LayerNormalization"):
        if any(node.output[1:]):
            yield violation(node, f"also gives `{next(name for name in node.output[1:] if name)}`")


def norm_whole(graph: TypedGraph) -> Iterator[Violation]:
    """Each layer norm is one LayerNormalization: in pieces its squares overflow in FP16."""
    for node in mean_squares(graph.topology):
        if name_of(node) not in graph.float32:
            yield violation(node, "takes the mean of squares that a root follows")


def norm_sums(graph: TypedGraph) -> Iterator[Violation]:
    """LayerNormalization adds up in float32: `stash_type` is 1."""
    for node in graph.nodes("LayerNormalization"):
        stash = attribute_of(node, "stash_type", TensorProto.FLOAT)
        if stash != TensorProto.FLOAT:
            yield violation(node, f"has stash_type {stash}")


def one_type(graph: TypedGraph) -> Iterator[Violation]:
    """The inputs of a node that ONNX gives one type have one type: nothing is promoted."""
    version = next((entry.version for entry in graph.model.opset_import if entry.domain in _STANDARD), 0)
    for node in graph.nodes():
        if node.domain in _STANDARD:
            yield from (violation(node, found) for found in _mixed_types(node, graph, version))


def half_region(graph: TypedGraph) -> Iterator[Violation]:
    """Behind the normalisation of the pixels every float is FP16, up to the Cast to `logits`."""
    if graph.typing == "weak":
        return
    for node in graph.nodes():
        if node.op_type in ("Cast", "Constant") or name_of(node) in graph.float32:
            continue
        kinds = [graph.types.get(name, TensorProto.UNDEFINED) for name in node.output if name]
        wide = [kind for kind in kinds if kind in _FLOATS and kind != TensorProto.FLOAT16]
        if wide:
            yield violation(node, f"computes in {_NAMES.Name(wide[0])}")


def constants(graph: TypedGraph) -> Iterator[Violation]:
    """Constants that FP16 arithmetic reads lie within 65,504."""
    for beyond in half_constants(graph.topology, graph.types, graph.float32):
        yield beyond.operator, f"reads `{beyond.constant}`, which holds {beyond.value:.6g}"
    for node in graph.nodes():
        for name in node.input:
            tensor = graph.topology.constant(name)
            if tensor is None or tensor.data_type != TensorProto.FLOAT16:
                continue
            values = numpy_helper.to_array(tensor)
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") and not np.isfinite(values).all():
                yield violation(node, f"reads `{name}`, which holds {values[~np.isfinite(values)].ravel()[0]}")


def attention_scale(graph: TypedGraph) -> Iterator[Violation]:
    """The scale of attention is on the queries, in front of the first product."""
    for attention in attentions_of_graph(graph.topology):
        for node in attention.scalings(graph.topology):
            yield violation(node, f"scales the scores of {named(attention.scores)}")


def attention_int8(graph: TypedGraph) -> Iterator[Violation]:
    """Both products of an attention are INT8, or neither; and INT8 is for 512 tokens at most."""
    for attention in attentions_of_graph(graph.topology):
        first = all(graph.dequantisers(attention.scores))
        others = [all(graph.dequantisers(node)) for node in attention.mixing]
        if any(other != first for other in others):
            yield violation(attention.scores, f"is {_kind(first)}, and its softmax times values {_kind(not first)}")
        shape = graph.shapes.get(attention.scores.output[0])
        tokens = shape[-1] if shape else None
        if (first or any(others)) and isinstance(tokens, int) and tokens > MAX_INT8_TOKENS:
            yield violation(attention.scores, f"is int8 over {tokens} tokens")


def _mixed_types(node: NodeProto, graph: TypedGraph, version: int) -> Iterator[str]:
    """Compare a node's inputs with the schema of its operator."""
    try:
        formal = onnx.defs.get_schema(node.op_type, version, "").inputs
    except onnx.defs.SchemaError:
        yield f"is no operator of opset {version}"
        return
    seen: dict[str, tuple[str, int]] = {}
    for position, name in enumerate(node.input):
        if not name or not formal or name not in graph.types:
            continue
        wanted, kind = formal[min(position, len(formal) - 1)].type_str, graph.types[name]
        if wanted.startswith("tensor("):
            if wanted != f"tensor({_ONNX_NAMES.get(kind, '')})":
                yield f"has `{name}` of type {_NAMES.Name(kind)}, where {wanted} is due"
            continue
        first, its_kind = seen.setdefault(wanted, (name, kind))
        if kind != its_kind:
            yield f"has `{first}` of type {_NAMES.Name(its_kind)} and `{name}` of type {_NAMES.Name(kind)}"


def _kind(quantised: bool) -> str:
    return "int8" if quantised else "float"


# How ONNX's schemas write a type, where one is written and not a variable.
_ONNX_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "double",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
