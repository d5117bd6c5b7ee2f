"""Multiplications of each operator for one image: what a placement puts into INT8, as a share of them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import NodeProto

from edgebert.export.topology import LINEAR_OPERATORS, attribute_of


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of every Conv, Gemm and MatMul for one image; 0 where shapes are not known.

    Args:
        model: a float graph of edgebert's whose nodes are named.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    batch = fixed.graph.input[0].type.tensor_type.shape.dim[0]
    batch.dim_value = 1
    for value in (*fixed.graph.output, *fixed.graph.value_info):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    del fixed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    shapes = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    return {node.name: _macs(node, shapes) for node in model.graph.node if node.op_type in LINEAR_OPERATORS}


def share_of_macs(macs: Mapping[str, int], places: Collection[str]) -> float:
    """Return the share of all multiply-accumulates that these operators do, in [0, 1]."""
    total = sum(macs.values())
    return sum(macs.get(name, 0) for name in places) / total if total else 0.0


def _macs(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    answer, first = shapes.get(node.output[0], ()), shapes.get(node.input[0], ())
    if not answer or not first or 0 in answer:
        return 0
    if node.op_type == "Conv":
        inner = int(np.prod(shapes.get(node.input[1], (0,))[1:]))
    elif node.op_type == "Gemm":
        inner = first[0 if attribute_of(node, "transA", 0) else 1]
    else:
        inner = first[-1]
    return int(np.prod(answer)) * inner
