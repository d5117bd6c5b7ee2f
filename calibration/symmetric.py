"""Turn what NNCF wrote into the one symmetric form: int8, zero point 0, Q/DQ directly at the linears.

NNCF places a pair where a range was measured, which may lie above a Reshape, a Transpose or a pooling, on residual
additions, or behind a ReLU as uint8. Engines match pairs that touch the linear (an open TensorRT bug, NVIDIA/TensorRT#4832,
fails where data movement lies between), and TensorRT refuses uint8. The ranges are kept, the pairs are moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from edgebert.calibration.table import ScaleTable
from edgebert.errors import EdgebertError
from edgebert.export.rules import MIN_SCALE, weight_axis
from edgebert.export.topology import LINEAR_OPERATORS, Topology, attribute_of

# They move values, add zeros or pick the largest: quantising before or after them is the same.
_MOVES = (
    "Concat",
    "Flatten",
    "Gather",
    "MaxPool",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


@dataclass(frozen=True, slots=True)
class _Ranges:
    """What NNCF chose for one linear: its input's scale, its weight as int8, one scale per output channel."""

    activation: np.float32
    weight: NDArray[np.generic]
    channels: NDArray[np.float32]


def symmetric_form(model: onnx.ModelProto, quantised: tuple[str, ...]) -> onnx.ModelProto:
    """Return the graph with one symmetric int8 Q/DQ pair at the input of each of the linears named, and no other.

    Args:
        model: what NNCF wrote; not changed.
        quantised: names of the linears to quantise (`edgebert.calibration.placement`).

    Raises:
        EdgebertError: NNCF chose no range for one of them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(model)
    linears = {node.name: node for node in model.graph.node if node.op_type in LINEAR_OPERATORS}
    ranges = {name: _ranges(linears[name], topology) for name in quantised}
    nodes: list[NodeProto] = []
    pairs: dict[tuple[str, float], str] = {}  # one pair serves Q, K and V
    for node in _without_activation_pairs(model, topology):
        if node.name in ranges:
            chosen = ranges[node.name]
            key = (node.input[0], float(chosen.activation))
            if key not in pairs:
                nodes.extend(_pair(result, node, chosen.activation))
                pairs[key] = nodes[-1].output[0]
            nodes.append(_stored_weight(result, node, chosen))
            node.input[0], node.input[1] = pairs[key], nodes[-1].output[0]
        nodes.append(node)
    _set_nodes(result, nodes)
    return result


def table_of_int8_graph(int8: onnx.ModelProto, model: onnx.ModelProto) -> ScaleTable:
    """Return the scales of what `symmetric_form` made, by the names of the FP32 graph it was made from."""
    topology = Topology(int8)
    quantised = {node.name: node for node in int8.graph.node if node.op_type in LINEAR_OPERATORS}
    activations: dict[str, float] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    for node in Topology(model).weighted_linears():
        pairs = [topology.producers.get(name) for name in quantised[node.name].input[:2]]
        scales = [None if pair is None else topology.array(pair.input[1]) for pair in pairs if _is_dequantiser(pair)]
        if len(scales) == 2 and scales[0] is not None and scales[1] is not None:
            activations[node.input[0]] = float(scales[0].ravel()[0])
            weights[node.name] = scales[1].astype(np.float32)
    return ScaleTable(activations=activations, weights=weights)


def _is_dequantiser(node: NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


def _ranges(linear: NodeProto, topology: Topology) -> _Ranges:
    dequantiser = topology.producers.get(linear.input[1])
    weight = None if dequantiser is None else topology.array(dequantiser.input[0])
    scale = None if dequantiser is None else topology.array(dequantiser.input[1])
    if dequantiser is None or weight is None or scale is None or weight.dtype != np.int8:
        raise EdgebertError(f"the weight of {linear.op_type} `{linear.name}` was not quantised to int8")
    axis = weight_axis(linear) % weight.ndim
    if scale.size > 1 and attribute_of(dequantiser, "axis", 1) % weight.ndim != axis:
        raise EdgebertError(f"the weight of {linear.op_type} `{linear.name}` was not quantised per output channel")
    channels = np.broadcast_to(scale.ravel(), (weight.shape[axis],)).astype(np.float32)
    # A channel that died in training has next to no range; FP16 could not hold its scale.
    floor = np.maximum(channels, np.float32(MIN_SCALE))
    shape = [1] * weight.ndim
    shape[axis] = -1
    weight = np.rint(weight.astype(np.float64) * (channels / floor).reshape(shape)).astype(np.int8)
    return _Ranges(max(_activation_scale(linear, topology), np.float32(MIN_SCALE)), weight, floor)


def _activation_scale(linear: NodeProto, topology: Topology) -> np.float32:
    """Walk up from a linear's input through what only moves values, to the pair that NNCF placed."""
    waiting, scales = [linear.input[0]], set()
    while waiting:
        node = topology.producers.get(waiting.pop())
        if node is not None and node.op_type == "DequantizeLinear":
            scales.add(_int8_scale(node, topology))
        elif node is not None and node.op_type in _MOVES:
            waiting.extend(node.input if node.op_type == "Concat" else node.input[:1])
        else:
            scales.add(None)
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None:
        raise EdgebertError(f"no range was measured for the input of {linear.op_type} `{linear.name}`")
    return scale


def _int8_scale(node: NodeProto, topology: Topology) -> np.float32 | None:
    """Return the scale of a per-tensor pair as symmetric int8: 127 steps must reach as far as uint8's 255 did."""
    scale, zero_point = topology.array(node.input[1]), topology.array(node.input[2])
    if scale is None or zero_point is None or scale.size != 1 or zero_point.any():
        return None
    steps = 255 / 127 if zero_point.dtype == np.uint8 else 1.0
    reach: np.float32 = np.multiply(scale.ravel()[0], steps, dtype=np.float64).astype(np.float32)
    return reach


def _without_activation_pairs(model: onnx.ModelProto, topology: Topology) -> list[NodeProto]:
    """Return copies of the nodes, every reader of a Q/DQ pair connected with what went into the pair."""
    source_of: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in topology.producers:
            source = topology.producers[node.input[0]].input[0]
            source_of[node.output[0]] = source_of.get(source, source)
    kept = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" or source_of.keys() & set(node.output):
            continue
        copy = NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(copy.input):
            copy.input[index] = source_of.get(name, name)
        kept.append(copy)
    return kept


def _pair(model: onnx.ModelProto, linear: NodeProto, scale: np.float32) -> list[NodeProto]:
    """Return a Q and a DQ for the input of `linear`; their scale and zero point become initialisers."""
    name = f"{linear.name}.input"
    parameters = [
        _initializer(model, f"{name}.scale", np.array(scale, np.float32)),
        _initializer(model, f"{name}.zero_point", np.array(0, np.int8)),
    ]
    operators = (
        ("QuantizeLinear", linear.input[0], f"{name}.int8"),
        ("DequantizeLinear", f"{name}.int8", f"{name}.float"),
    )
    return [
        helper.make_node(operator, [source, *parameters], [output], name=f"{output}.{operator}", axis=0)
        for operator, source, output in operators
    ]


def _stored_weight(model: onnx.ModelProto, linear: NodeProto, chosen: _Ranges) -> NodeProto:
    """Store a linear's weight as int8 and return its DQ, the axis written down."""
    name = f"{linear.name}.weight"
    inputs = [
        _initializer(model, f"{name}.int8", chosen.weight),
        _initializer(model, f"{name}.scale", chosen.channels),
        _initializer(model, f"{name}.zero_point", np.zeros(chosen.channels.shape, np.int8)),
    ]
    axis = weight_axis(linear) % chosen.weight.ndim
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], name=f"{name}.DequantizeLinear", axis=axis)


def _initializer(model: onnx.ModelProto, name: str, values: NDArray[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _set_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """Replace the nodes, without those whose outputs nobody reads, and the initialisers that are then unused."""
    used = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if used & set(node.output):
            kept.append(node)
            used.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    del model.graph.value_info[:]  # of values that are gone; ONNX infers the rest where it is wanted
