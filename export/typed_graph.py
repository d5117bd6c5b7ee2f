"""A graph with what a rule asks of it: who makes what, of which type and shape, and which nodes may be float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import onnx
from onnx import NodeProto

from edgebert.errors import BadDataError
from edgebert.export.graph_edits import Shape, element_types, named, shapes
from edgebert.export.half_precision import float32_names
from edgebert.export.topology import LINEAR_OPERATORS, Topology

Typing = Literal["strong", "weak"]
Violation = tuple[str, str]  # the node (operator and name), and what is wrong with it
PAIR = ("QuantizeLinear", "DequantizeLinear")


class TypedGraph:
    """An index of one graph for one typing; it goes stale when the graph changes.

    Args:
        model: the graph.
        typing: how TensorRT is to read it.
        float32: names of nodes that are float32 on purpose.
    """

    def __init__(self, model: onnx.ModelProto, typing: Typing, float32: Collection[str]) -> None:
        self.model = model
        self.typing = typing
        self.topology = Topology(model)
        self.unreadable = ""  # why ONNX cannot infer types: rules that need none still say what they find
        self.types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self.shapes: dict[str, Shape] = {}
        try:
            self.types, self.shapes = element_types(model), shapes(model)
        except BadDataError as error:
            self.unreadable = error.what
        self.float32 = float32_names(model, self.types, float32)

    def nodes(self, *operators: str) -> Iterator[NodeProto]:
        """Yield, in graph order, the nodes of these operators; all where none is named."""
        for node in self.model.graph.node:
            if not operators or node.op_type in operators:
                yield node

    def pairs(self) -> Iterator[NodeProto]:
        """Yield each Q and DQ that has data and a scale; one without breaks a rule of its own."""
        for node in self.nodes(*PAIR):
            if len(node.input) >= 2 and all(node.input[:2]):
                yield node

    def is_stored(self, node: NodeProto) -> bool:
        """Say whether a Q or DQ serves a weight: its data, or the data of its Q, never change."""
        data = node.input[0]
        maker = self.topology.producers.get(data)
        if maker is not None and maker.op_type == "QuantizeLinear" and maker.input:
            data = maker.input[0]
        return self.topology.constant(data) is not None

    def linears(self) -> Iterator[NodeProto]:
        """Yield the nodes that multiply two operands."""
        for node in self.nodes(*LINEAR_OPERATORS):
            if len(node.input) >= 2:
                yield node

    def dequantisers(self, node: NodeProto) -> tuple[NodeProto | None, NodeProto | None]:
        """Return the DQ at each of the two operands of a linear, or None."""
        makers = [self.topology.producers.get(name) for name in node.input[:2]]
        first, second = (
            maker if maker is not None and maker.op_type == "DequantizeLinear" else None for maker in makers
        )
        return first, second


def violation(node: NodeProto, found: str) -> Violation:
    """Return what a check reports."""
    return named(node), found
