"""Rewritings for TensorRT that leave every answer as it is, of float and of quantised graphs, before any type changes.

* the pixels are cast first: TensorRT takes UINT8 as a network's input, and nothing but Cast may read it;
* a Gather that gathers everything in order goes: PyTorch's exporter writes a pooled map of one place so, with indices that it
  computes from the batch size at run time;
* a mask that masks nothing goes: transformers' vision models add one, made of the lowest float32, which FP16 does not hold;
* a layer norm in pieces becomes one node, whose sums stay in float32 (`stash_type`): in FP16 its squares overflow
  (85.27 % against 18.96 % top-1 for a ViT-B/16, onnxsim/onnxsim, scripts/nvidia/README.md);
* the scale of attention moves from the scores to the queries, in front of their Q/DQ pair where there is one: NVIDIA's fused
  attention wants it there, and scores that are scaled late overflow earlier.

Each takes a model that it changes, and returns how many places it changed.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgebert.export.attention import Attention, attentions_of_graph, constant_factor
from edgebert.export.graph_edits import (
    Shape,
    add_constant,
    copy_of_model,
    drop_unread,
    element_types,
    name_of,
    read_instead,
    set_nodes,
    shapes,
)
from edgebert.export.norm_pieces import norms_in_pieces
from edgebert.export.topology import Topology, attribute_of

_BATCHES = (1, 2, 5)  # indices are affine in the batch size: two would do
_MOST_FOR_INDICES = 40  # nodes; the exporter writes about ten
_SPREADS = (
    "Expand",
    "Identity",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)  # change no value of a uniform condition


def cast_pixels_first(model: onnx.ModelProto) -> int:
    """Let a Cast be the only reader of each UINT8 input; what was computed of bytes is computed of floats, bit by bit."""
    stored = {tensor.name for tensor in model.graph.initializer}
    pixels = [
        value.name
        for value in model.graph.input
        if value.name not in stored and value.type.tensor_type.elem_type == TensorProto.UINT8
    ]
    nodes = list(model.graph.node)
    changed = 0
    for name in pixels:
        readers = [node for node in nodes if name in node.input]
        if len(readers) == 1 and readers[0].op_type == "Cast":
            continue
        changed += 1
        values = f"{name}.values"
        for node in readers:
            node.input[:] = [values if each == name else each for each in node.input]
        nodes.insert(0, helper.make_node("Cast", [name], [values], name=f"{name}.Cast", to=TensorProto.FLOAT))
    if changed:
        set_nodes(model, nodes)
    drop_idle_casts(model)
    return changed


def drop_idle_casts(model: onnx.ModelProto) -> int:
    """Drop each Cast to the type that its input has already."""
    types = element_types(model)
    outputs = {output.name for output in model.graph.output}
    idle = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and node.output[0] not in outputs and types.get(node.input[0]) == _cast_to(node)
    }
    read_instead(model, idle)
    drop_unread(model)
    return len(idle)


def drop_idle_gathers(model: onnx.ModelProto) -> int:
    """Drop each flattening and gathering of a value that gives the value itself, whatever the batch size."""
    topology, sides = Topology(model), shapes(model)
    idle: dict[str, str] = {}
    for node in model.graph.node:
        flat = topology.producers.get(node.input[0]) if node.op_type == "Gather" else None
        if flat is None or flat.op_type != "Reshape" or attribute_of(node, "axis", 0) != 0:
            continue
        target, shape = topology.array(flat.input[1]), sides.get(flat.input[0])
        if target is None or target.tolist() != [-1] or not shape:
            continue
        if all(_gathers_in_order(model, node.input[1], shape, batch) for batch in _BATCHES):
            idle[node.output[0]] = flat.input[0]
    read_instead(model, idle)
    drop_unread(model)
    return len(idle)


def drop_idle_masks(model: onnx.ModelProto) -> int:
    """Drop each Add of a mask that is zero everywhere, whatever the image: one that masks nothing."""
    topology, sides = Topology(model), shapes(model)
    zeros = {node.output[0] for node in model.graph.node if node.op_type == "Where" and _is_zero(node, topology)}
    outputs = {output.name for output in model.graph.output}
    dropped: dict[str, str] = {}
    for node in model.graph.node:
        added = [name for name in node.input if name in zeros] if node.op_type == "Add" else []
        if len(added) != 1 or node.output[0] in outputs:
            continue
        other = next(name for name in node.input if name != added[0])
        if _keeps_shape(sides.get(other), sides.get(node.output[0]), topology.consumers.get(node.output[0], [])):
            dropped[node.output[0]] = other
    read_instead(model, dropped)
    drop_unread(model)
    return len(dropped)


def whole_norms(model: onnx.ModelProto) -> int:
    """Turn each layer norm that was exported in pieces, over the last axis, into one LayerNormalization."""
    topology, sides = Topology(model), shapes(model)
    found = [norm for norm in norms_in_pieces(topology) if norm.over_last_axis(topology, sides)]
    by_last = {norm.last.output[0]: norm for norm in found}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        norm = by_last.get(node.output[0])
        if norm is None:
            nodes.append(node)
            continue
        width = sides[norm.value][-1]
        assert isinstance(width, int)  # `over_last_axis` looked
        scale = norm.scale or add_constant(model, f"{norm.last.output[0]}.scale", np.ones(width, np.float32))
        inputs = [norm.value, scale, *([norm.bias] if norm.bias else [])]
        nodes.append(
            helper.make_node(
                "LayerNormalization",
                inputs,
                [norm.last.output[0]],
                name=f"{name_of(norm.last)}.LayerNormalization",
                axis=-1,
                epsilon=norm.epsilon,
                stash_type=TensorProto.FLOAT,
            )
        )
    if found:
        set_nodes(model, nodes)
        drop_unread(model)
    return len(found)


def scale_on_queries(model: onnx.ModelProto) -> int:
    """Move constant factors from between scores and softmax to the queries, and into the scale of their Q/DQ pair."""
    topology = Topology(model)
    moved: dict[str, str] = {}
    inserted: dict[str, list[NodeProto]] = {}  # output of a product -> what comes in front of it
    for attention in attentions_of_graph(topology):
        scalings = _movable(attention, topology)
        if not scalings:
            continue
        factor = math.prod(constant_factor(node, topology) or 0.0 for node in scalings)  # none is None
        inserted[attention.scores.output[0]] = _scaled_queries(model, attention.scores, topology, factor)
        for node in scalings:
            kept = next(name for name in node.input if topology.constant(name) is None)
            moved[node.output[0]] = kept
    if not moved:
        return 0
    nodes = [each for node in model.graph.node for each in (*inserted.get(node.output[0], ()), node)]
    set_nodes(model, nodes)
    read_instead(model, moved)
    drop_unread(model)
    return len(inserted)


def _movable(attention: Attention, topology: Topology) -> tuple[NodeProto, ...]:
    """Return the scalings that are met before anything is added: only they belong to the product alone."""
    found: list[NodeProto] = []
    for node in attention.between:
        if constant_factor(node, topology) is not None:
            found.append(node)
        elif node.op_type not in ("Cast", "Identity", "Reshape", "Transpose"):
            break
    only = all(len(topology.consumers.get(node.output[0], [])) == 1 for node in (attention.scores, *attention.between))
    return tuple(found) if only else ()


def _scaled_queries(model: onnx.ModelProto, product: NodeProto, topology: Topology, factor: float) -> list[NodeProto]:
    """Let a product read its first operand multiplied by `factor`, and return the nodes that make it."""
    value = product.input[0]
    dequantiser = topology.producers.get(value)
    quantiser = topology.producers.get(dequantiser.input[0]) if dequantiser is not None else None
    stem = f"{product.output[0]}.queries"
    by = add_constant(model, f"{stem}.factor", np.array(factor, np.float32))
    if dequantiser is None or dequantiser.op_type != "DequantizeLinear" or quantiser is None:
        product.input[0] = f"{stem}.scaled"
        return [helper.make_node("Mul", [value, by], [product.input[0]], name=f"{stem}.Mul")]
    # The same steps: queries times the factor, over their scale times the factor.
    scale = topology.floats(quantiser.input[1])
    assert scale is not None  # the rules want constant scales
    scaled = add_constant(model, f"{stem}.scale", np.asarray(scale * factor, np.float32))
    pair = [NodeProto.FromString(node.SerializeToString()) for node in (quantiser, dequantiser)]
    source = quantiser.input[0]
    for node, (reads, gives) in zip(pair, ((".scaled", ".int8"), (".int8", ".float")), strict=True):
        node.name = f"{stem}.{node.op_type}"
        node.input[0], node.input[1], node.output[0] = f"{stem}{reads}", scaled, f"{stem}{gives}"
    product.input[0] = pair[1].output[0]
    return [helper.make_node("Mul", [source, by], [f"{stem}.scaled"], name=f"{stem}.Mul"), *pair]


def _gathers_in_order(model: onnx.ModelProto, indices: str, shape: Shape, batch: int) -> bool:
    """Say whether indices that follow from the batch size alone count a value of this shape from first to last."""
    if not all(isinstance(side, int) for side in shape[1:]):
        return False
    part = copy_of_model(model)
    del part.graph.output[:], part.metadata_props[:]
    part.graph.output.append(helper.make_tensor_value_info(indices, TensorProto.INT64, None))
    drop_unread(part)
    image = model.graph.input[0]
    sides = [side.dim_value for side in image.type.tensor_type.shape.dim][1:]
    asks = [node for node in part.graph.node if image.name in node.input]
    if any(node.op_type not in ("Cast", "Shape") for node in asks) or len(part.graph.node) > _MOST_FOR_INDICES:
        return False
    image_of_size = np.zeros((batch, *sides), np.uint8)
    found = np.asarray(next(iter(ReferenceEvaluator(part).run(None, {image.name: image_of_size}))))
    wanted = (batch, *shape[1:])
    return np.array_equal(found, np.arange(math.prod(int(side) for side in wanted)).reshape(wanted))


def _is_zero(node: NodeProto, topology: Topology) -> bool:
    """Say whether a Where gives zeros alone, because its condition is one constant and the chosen side is zero."""
    condition = _uniform(node.input[0], topology)
    if condition is None:
        return False
    chosen: NDArray[np.float64] | None = topology.floats(node.input[1 if condition else 2])
    return chosen is not None and not chosen.any()


def _uniform(name: str, topology: Topology) -> bool | None:
    """Return the one truth value that a condition has everywhere, or None."""
    while True:
        values = topology.array(name)
        if values is not None:
            return bool(values.all()) if values.size and values.all() == values.any() else None
        node = topology.producers.get(name)
        if node is None or node.op_type not in _SPREADS:
            return None
        name = node.input[0]


def _keeps_shape(other: Shape | None, result: Shape | None, readers: list[NodeProto]) -> bool:
    """Say whether an Add gives what its other operand is; one with a batch of 1 will do for readers that broadcast."""
    if other is None or result is None or len(other) != len(result) or other[1:] != result[1:]:
        return False
    return other[:1] != (1,) or all(node.op_type == "Add" for node in readers)


def _cast_to(node: NodeProto) -> int:
    return attribute_of(node, "to", TensorProto.UNDEFINED)
