"""Who makes and who uses each value of an ONNX graph: the index that the rules, the placement and the rewrites share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

# Operators that multiply by a weight. Everything quantised is an input of one of these.
LINEAR_OPERATORS = ("Conv", "Gemm", "MatMul")


class Topology:
    """An index of one graph; it holds the graph's own protobuf messages and goes stale when nodes are added.

    Args:
        model: an ONNX model without sub-graphs that matter here (`If` and `Loop` bodies are not entered).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    def constant(self, name: str) -> TensorProto | None:
        """Return the tensor behind a value that never changes: an initialiser or a `Constant` node; else None."""
        stored: TensorProto | None = self.initializers.get(name)
        if stored is not None:
            return stored
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        tensors: list[TensorProto] = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        return tensors[0] if tensors else None

    def array(self, name: str) -> NDArray[np.generic] | None:
        """Return the values of `constant`, or None."""
        tensor = self.constant(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def floats(self, name: str) -> NDArray[np.float64] | None:
        """Return the values of `constant` in float64, or None; float64 holds every float32 and every product of two."""
        values = self.array(name)
        return None if values is None else values.astype(np.float64)

    def is_weight(self, name: str) -> bool:
        """Say whether a value is a constant, or a constant behind a DequantizeLinear."""
        node = self.producers.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            return self.constant(node.input[0]) is not None
        return self.constant(name) is not None

    def weighted_linears(self) -> Iterator[NodeProto]:
        """Yield, in graph order, the Conv, Gemm and MatMul nodes that multiply an activation by a weight."""
        for node in self.graph.node:
            if node.op_type in LINEAR_OPERATORS and self.is_weight(node.input[1]) and not self.is_weight(node.input[0]):
                yield node

    def activation_products(self) -> Iterator[NodeProto]:
        """Yield, in graph order, the Gemm and MatMul nodes that multiply two activations: those of attention."""
        for node in self.graph.node:
            if node.op_type in ("Gemm", "MatMul") and not any(self.is_weight(name) for name in node.input[:2]):
                yield node


def attribute_of(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node, or `default` where it is absent."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
