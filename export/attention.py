"""Where a graph holds attention: queries times keys, whatever lies between, softmax, and softmax times values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from edgebert.export.topology import Topology

# What a value passes between the first product and the softmax, and between the softmax and the second product.
_TO_SOFTMAX = ("Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Sub", "Transpose", "Where")
_FROM_SOFTMAX = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose")


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of a graph.

    Attributes:
        scores: the product of queries (its first input) and keys.
        between: the nodes from there to the softmax, in order.
        softmax: the softmax.
        mixing: the products of the softmax with the values.
    """

    scores: NodeProto
    between: tuple[NodeProto, ...]
    softmax: NodeProto
    mixing: tuple[NodeProto, ...]

    def scalings(self, topology: Topology) -> tuple[NodeProto, ...]:
        """Return the nodes between that multiply by one constant or divide by it."""
        return tuple(node for node in self.between if constant_factor(node, topology) is not None)


def attentions_of_graph(topology: Topology) -> Iterator[Attention]:
    """Yield every attention of a graph, float or quantised, in graph order."""
    for node in topology.activation_products():
        way = _way_to_softmax(topology, node.output[0])
        if way is not None:
            *between, softmax = way
            mixing = tuple(_mixing(topology, softmax.output[0]))
            yield Attention(scores=node, between=tuple(between), softmax=softmax, mixing=mixing)


def constant_factor(node: NodeProto, topology: Topology) -> float | None:
    """Return what a Mul or Div with one constant number multiplies by; None for any other node."""
    operands = (1,) if node.op_type == "Div" else (1, 0) if node.op_type == "Mul" else ()
    for operand in operands:
        values = topology.floats(node.input[operand])
        if values is not None and values.size == 1:
            factor = float(values.ravel()[0])
            return factor if node.op_type == "Mul" else 1.0 / factor if factor else None
    return None


def _way_to_softmax(topology: Topology, value: str) -> list[NodeProto] | None:
    """Return the nodes from a value down to a softmax, the softmax last; None where none is reached."""
    for node in topology.consumers.get(value, []):
        if node.op_type == "Softmax":
            return [node]
        if node.op_type in _TO_SOFTMAX:
            rest = _way_to_softmax(topology, node.output[0])
            if rest is not None:
                return [node, *rest]
    return None


def _mixing(topology: Topology, value: str) -> Iterator[NodeProto]:
    for node in topology.consumers.get(value, []):
        if node.op_type in ("MatMul", "Gemm"):
            yield node
        elif node.op_type in _FROM_SOFTMAX:
            yield from _mixing(topology, node.output[0])
