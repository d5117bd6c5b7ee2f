"""Layer norms that were exported in pieces: mean, deviation, mean square, root, quotient, and what follows of scale and bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto, numpy_helper

from edgebert.export.graph_edits import Shape
from edgebert.export.topology import Topology, attribute_of


@dataclass(frozen=True, slots=True)
class NormInPieces:
    """One layer norm that is not one node.

    Attributes:
        value: what is normalised.
        means: the two ReduceMean: of the value, and of its squared deviation.
        root: the Sqrt.
        last: the node whose answer the whole has.
        epsilon: added to the variance.
        scale: name of a constant; empty for none.
        bias: name of a constant; empty for none.
    """

    value: str
    means: tuple[NodeProto, NodeProto]
    root: NodeProto
    last: NodeProto
    epsilon: float
    scale: str = ""
    bias: str = ""

    def over_last_axis(self, topology: Topology, sides: Mapping[str, Shape]) -> bool:
        """Say whether it normalises over the last axis alone, of a known width, with a scale and a bias of that width."""
        shape = sides.get(self.value)
        if not shape or not isinstance(shape[-1], int):
            return False
        last = (-1, len(shape) - 1)
        axes = all(
            (found := reduced_axes(mean, topology)) is not None and len(found) == 1 and found[0] in last
            for mean in self.means
        )
        fitting = all(tuple(sides.get(name, ())) == shape[-1:] for name in (self.scale, self.bias) if name)
        return axes and fitting and all(attribute_of(mean, "keepdims", 1) == 1 for mean in self.means)


def norms_in_pieces(topology: Topology) -> Iterator[NormInPieces]:
    """Yield the layer norms of a graph that are not one node, in graph order."""
    for node in topology.graph.node:
        if node.op_type == "Sqrt":
            found = _norm(node, topology)
            if found is not None:
                yield found


def mean_squares(topology: Topology) -> Iterator[NodeProto]:
    """Yield each ReduceMean of squares that a Sqrt follows, at once or behind an Add: what overflows of a norm in pieces."""
    for node in topology.graph.node:
        if node.op_type != "ReduceMean" or _squared(topology.producers.get(node.input[0]), topology) is None:
            continue
        readers = list(topology.consumers.get(node.output[0], []))
        readers += [
            each
            for reader in readers
            if reader.op_type == "Add"
            for each in topology.consumers.get(reader.output[0], [])
        ]
        if any(reader.op_type == "Sqrt" for reader in readers):
            yield node


def reduced_axes(node: NodeProto, topology: Topology) -> tuple[int, ...] | None:
    """Return the axes of a ReduceMean, from its attribute (below opset 18) or its input; None where they are computed."""
    for attribute in node.attribute:
        if attribute.name == "axes":
            return tuple(attribute.ints)
    if len(node.input) < 2 or not node.input[1]:
        return ()
    tensor = topology.constant(node.input[1])
    return None if tensor is None else tuple(int(axis) for axis in numpy_helper.to_array(tensor).ravel())


def _norm(root: NodeProto, topology: Topology) -> NormInPieces | None:
    """Walk up from the Sqrt to the value, then down from it to the last node."""
    sum_ = topology.producers.get(root.input[0])
    if sum_ is None or sum_.op_type != "Add":
        return None
    epsilon, variance = _constant_and_maker(sum_, topology)
    if epsilon is None or variance is None or variance.op_type != "ReduceMean":
        return None
    deviation = _squared(topology.producers.get(variance.input[0]), topology)
    maker = topology.producers.get(deviation or "")
    if deviation is None or maker is None or maker.op_type != "Sub":
        return None
    mean = topology.producers.get(maker.input[1])
    if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != maker.input[0]:
        return None
    last = _quotient(root, deviation, topology)
    if last is None:
        return None
    scale, last = _followed(last, "Mul", topology)
    bias, last = _followed(last, "Add", topology)
    return NormInPieces(maker.input[0], (mean, variance), root, last, epsilon, scale, bias)


def _constant_and_maker(node: NodeProto, topology: Topology) -> tuple[float | None, NodeProto | None]:
    """Return the one number that a node adds, and who makes the other operand."""
    for constant, other in ((1, 0), (0, 1)):
        values = topology.floats(node.input[constant])
        if values is not None and values.size == 1:
            return float(values.ravel()[0]), topology.producers.get(node.input[other])
    return None, None


def _squared(node: NodeProto | None, topology: Topology) -> str | None:
    """Return what a node squares."""
    if node is None:
        return None
    exponent = topology.floats(node.input[1]) if node.op_type == "Pow" else None
    by_itself = node.op_type == "Mul" and node.input[0] == node.input[1]
    to_two = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    return str(node.input[0]) if by_itself or to_two else None


def _quotient(root: NodeProto, deviation: str, topology: Topology) -> NodeProto | None:
    """Return the node that divides the deviation by the root, or multiplies it by the root's inverse."""
    for node in topology.consumers.get(root.output[0], []):
        if node.op_type == "Div" and list(node.input) == [deviation, root.output[0]]:
            return node
        if node.op_type == "Reciprocal":
            for product in topology.consumers.get(node.output[0], []):
                if product.op_type == "Mul" and set(product.input) == {deviation, node.output[0]}:
                    return product
    return None


def _followed(node: NodeProto, operator: str, topology: Topology) -> tuple[str, NodeProto]:
    """Return the constant that the only reader of a node takes in by `operator`, and that reader; else nothing and the node."""
    readers = topology.consumers.get(node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != operator:
        return "", node
    constants = [name for name in readers[0].input if topology.constant(name) is not None]
    return (constants[0], readers[0]) if len(constants) == 1 else ("", node)
