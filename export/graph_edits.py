"""Small edits that rewriting a graph is made of: replace nodes, read another value, drop what nobody reads.

All of them change the model they are given; who rewrites takes a copy first (`copy_of_model`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from edgebert.errors import BadDataError

Shape = tuple[int | str, ...]


def copy_of_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a deep copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def set_nodes(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Replace the nodes of a model, by these in this order."""
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def read_instead(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Let every node that reads a key read its value; chains are followed."""
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            while name in values:
                name = values[name]
            node.input[position] = name


def drop_unread(model: onnx.ModelProto) -> None:
    """Drop nodes whose answers nobody reads, and then initialisers that nobody reads."""
    wanted = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    if len(kept) < len(model.graph.node):
        set_nodes(model, reversed(kept))
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    if len(initializers) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(initializers)


def add_constant(model: onnx.ModelProto, name: str, values: NDArray[np.generic]) -> str:
    """Add an initialiser and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value, as ONNX infers it: a number of `TensorProto.DataType`.

    Raises:
        BadDataError: ONNX cannot infer them: an operator has the wrong inputs, or there is no such operator.
    """
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    inferred = _inferred(model)
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.elem_type:
            types[value.name] = value.type.tensor_type.elem_type
    return types


def shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shape of every value whose rank ONNX infers; a side that is not known is a name, or empty.

    Raises:
        BadDataError: as `element_types` has it.
    """
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inferred = _inferred(model)
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            sides = value.type.tensor_type.shape.dim
            found[value.name] = tuple(
                side.dim_value if side.HasField("dim_value") else side.dim_param for side in sides
            )
    return found


def name_of(node: NodeProto) -> str:
    """Return a node's name; where it has none, its first output's."""
    return node.name or (node.output[0] if node.output else "")


def named(node: NodeProto) -> str:
    """Return a node's operator and name, as messages say it."""
    return f"{node.op_type} `{name_of(node)}`"


_LARGE = 1024  # numbers: no shape or axis that inference reads has as many


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(_without_values(model), data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise BadDataError(
            f"ONNX does not understand the graph: {str(error).strip().splitlines()[-1]}",
            expected="a valid ONNX graph",
            hint="edgebert export CHECKPOINT -o GRAPH.onnx",
        ) from error


def _without_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model for inference, without the weights' values: they decide neither types nor shapes, and are most of it."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) > _LARGE:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            light.graph.initializer.append(tensor)
    return light
