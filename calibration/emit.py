"""From a float graph and a table of scales to the Q/DQ graph of one placement.

Symmetric int8 everywhere: zero point 0, one scale per activation, one per output channel of a weight, Q and DQ directly at
the inputs of the operator they serve. Engines match pairs that touch the operator; an open TensorRT bug
(NVIDIA/TensorRT#4832) fails where data movement lies between.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from edgebert.calibration.table import ScaleTable
from edgebert.errors import EdgebertError
from edgebert.export.rules import MAX_SCALE, MIN_SCALE, weight_axis
from edgebert.export.topology import Topology

WEIGHT_STEPS = 127  # the largest int8 magnitude that is used, of weights and of activations alike


def int8_graph(model: onnx.ModelProto, table: ScaleTable, places: Collection[str]) -> onnx.ModelProto:
    """Return the graph with Q/DQ pairs at the operators named, and no others.

    Args:
        model: a graph whose nodes are named; not changed. An INT8 one keeps what it has.
        table: scales of every value and weight that the placement quantises.
        places: names of Conv, Gemm and MatMul nodes. One with a weight gets an int8 weight; a product of two activations gets
            a pair at both.

    Raises:
        EdgebertError: the table has no scale for one of them.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(model)
    nodes: list[NodeProto] = []
    # One pair serves every reader of a value, such as Q, K and V; also one that the graph has already, which is moved up to
    # its first reader.
    pairs = {
        quantiser.input[0]: [quantiser, dequantiser]
        for quantiser in result.graph.node
        if quantiser.op_type == "QuantizeLinear"
        for dequantiser in result.graph.node
        if dequantiser.op_type == "DequantizeLinear" and dequantiser.input[0] == quantiser.output[0]
    }
    placed: set[str] = set()  # outputs of the pairs
    for node in result.graph.node:
        if node.output[0] in placed:
            continue
        if node.name in places:
            operands = (0,) if topology.is_weight(node.input[1]) else (0, 1)
            for operand in operands:
                value = node.input[operand]
                pair = pairs.get(value) or _pair(result, value, table)
                pairs[value] = pair
                nodes.extend(each for each in pair if each.output[0] not in placed)
                placed.update(each.output[0] for each in pair)
                node.input[operand] = pair[1].output[0]
            if operands == (0,):
                nodes.append(_stored_weight(result, node, topology, table))
                node.input[1] = nodes[-1].output[0]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            placed.add(node.output[0])
        nodes.append(node)
    _set_nodes(result, [NodeProto.FromString(node.SerializeToString()) for node in nodes])
    return result


def stored_weight(weight: NDArray[np.floating], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Return a weight as int8 in [-127, 127].

    Args:
        weight: the float weight.
        scale: float32 (channels,).
        axis: which side of the weight counts the channels.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    steps = np.rint(weight.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(steps, -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8)


def _pair(model: onnx.ModelProto, value: str, table: ScaleTable) -> list[NodeProto]:
    """Return a Q and a DQ for a value; their scale and zero point become initialisers."""
    scale = table.activations.get(value)
    if scale is None:
        raise EdgebertError(f"no range was measured for the value `{value}`")
    parameters = [
        _initializer(model, f"{value}.scale", np.array(np.clip(scale, MIN_SCALE, MAX_SCALE), np.float32)),
        _initializer(model, f"{value}.zero_point", np.array(0, np.int8)),
    ]
    operators = (
        ("QuantizeLinear", value, f"{value}.int8"),
        ("DequantizeLinear", f"{value}.int8", f"{value}.float"),
    )
    return [
        helper.make_node(operator, [source, *parameters], [output], name=f"{output}.{operator}", axis=0)
        for operator, source, output in operators
    ]


def _stored_weight(model: onnx.ModelProto, linear: NodeProto, topology: Topology, table: ScaleTable) -> NodeProto:
    """Store a linear's weight as int8 and return its DQ, the axis written down."""
    weight, scale = topology.floats(linear.input[1]), table.weights.get(linear.name)
    if weight is None or scale is None:
        raise EdgebertError(f"no scales were chosen for the weight of {linear.op_type} `{linear.name}`")
    axis = weight_axis(linear) % weight.ndim
    # A channel that died in training has next to no range; FP16 could not hold its scale.
    scale = np.clip(scale, np.float32(MIN_SCALE), np.float32(MAX_SCALE))
    name = f"{linear.name}.weight"
    inputs = [
        _initializer(model, f"{name}.int8", stored_weight(weight, scale, axis)),
        _initializer(model, f"{name}.scale", scale),
        _initializer(model, f"{name}.zero_point", np.zeros(scale.shape, np.int8)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], name=f"{name}.DequantizeLinear", axis=axis)


def _initializer(model: onnx.ModelProto, name: str, values: NDArray[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _set_nodes(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """Replace the nodes, and drop the initialisers that nobody reads any more."""
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    del model.graph.value_info[:]  # of values that are gone; ONNX infers the rest where it is wanted
