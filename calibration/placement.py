"""Which operators may stay in float: the stem, attention and the head, found by the graph's structure and not by names.

* **attention**: products of two activations. Softmax in int8 has 128 levels where a diffuse head over 197 tokens needs
  a step of 1/197, and TensorRT's and OpenVINO's fused float attention stays whole.
* **head**: the last linears before the logits, and every linear that sees one vector per image (a pooler, the squeeze
  of squeeze-and-excitation). A product of one vector with a matrix gains nothing, and OpenVINO and ONNX Runtime were
  measured to disagree at the head by ten times the quantisation error.
* **constant**: a constant on the left of a product is no layer's weight (a fixed interpolation, a mixing matrix).
* **stem**: the first linears after the pixels, under 1 % of the work. In a network with attention, the whole chain of
  convolutions in front of the first branch: a student's stem has two or three.

That is the narrowest placement, the `core`. A `Layout` says what of the rest is quantised as well; the search tries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import onnx
from onnx import NodeProto

from edgebert.export.topology import LINEAR_OPERATORS, Topology

Reason = Literal["attention", "constant", "head", "stem"]
AttentionMode = Literal["float", "qk", "full"]

# What a value passes on its way from a product to its softmax: scaled, masked or biased, and moved.
_TO_SOFTMAX = ("Add", "Div", "Mul", "Reshape", "Sub", "Transpose", "Where")
_FROM_SOFTMAX = ("Cast", "Identity", "Reshape", "Transpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is quantised beside the core.

    Attributes:
        attention: `float` for none of its products; `qk` for queries times keys; `full` for softmax times values as well.
        stem: whether the stem is.
        head: whether the head is.
    """

    attention: AttentionMode = "float"
    stem: bool = False
    head: bool = False

    def to_text(self) -> str:
        """Return it in a few words, such as `attention float, stem int8, head float`."""
        stem, head = ("int8" if inside else "float" for inside in (self.stem, self.head))
        return f"attention {self.attention}, stem {stem}, head {head}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the Q/DQ pairs go.

    Attributes:
        quantised: names of the Conv, Gemm and MatMul nodes whose input and weight become int8, in graph order.
        kept_float: names of the others -> why.
        products: names of attention's products among them -> which of the two it is; others have no name for what they are.
    """

    quantised: tuple[str, ...]
    kept_float: dict[str, Reason]
    products: dict[str, Literal["qk", "pv"]] = field(default_factory=dict)

    def places(self, layout: Layout) -> tuple[str, ...]:
        """Return the names of the operators that a layout quantises: the core, and what it adds."""
        added = {name for name, reason in self.kept_float.items() if reason == "stem" and layout.stem}
        added |= {name for name, reason in self.kept_float.items() if reason == "head" and layout.head}
        if layout.attention != "float":
            modes = ("qk",) if layout.attention == "qk" else ("qk", "pv")
            added |= {name for name, mode in self.products.items() if mode in modes}
        return (*self.quantised, *sorted(added))


def placement_of_graph(model: onnx.ModelProto) -> Placement:
    """Return the placement for a float graph whose nodes are named.

    Args:
        model: an FP32 graph with one image input and one output.
    """
    topology = Topology(model)
    linears = [node.name for node in topology.weighted_linears()]
    products = {node.name for node in topology.activation_products()}
    kept_float: dict[str, Reason] = {
        node.name: "attention" if node.name in products else "constant"
        for node in model.graph.node
        if node.op_type in LINEAR_OPERATORS and node.name not in linears
    }
    vectors = _vector_values(model)
    kept_float.update((node.name, "head") for node in topology.weighted_linears() if node.input[0] in vectors)
    kept_float.update((name, "head") for name in _head(topology) if name in linears)
    kept_float.update((name, "stem") for name in _stem(topology, has_attention=bool(products)) if name in linears)
    return Placement(
        quantised=tuple(name for name in linears if name not in kept_float),
        kept_float=kept_float,
        products=_attention_products(topology),
    )


def _attention_products(topology: Topology) -> dict[str, Literal["qk", "pv"]]:
    """Tell queries times keys, whose answer a softmax takes, from softmax times values."""
    found: dict[str, Literal["qk", "pv"]] = {}
    for node in topology.activation_products():
        if _leads_down_to(topology, node.output[0], "Softmax", _TO_SOFTMAX):
            found[node.name] = "qk"
        elif _leads_up_to(topology, node.input[0], "Softmax", _FROM_SOFTMAX):
            found[node.name] = "pv"
    return found


def _leads_down_to(topology: Topology, value: str, operator: str, through: tuple[str, ...]) -> bool:
    readers = _readers(topology, value)
    return any(
        node.op_type == operator
        or (node.op_type in through and _leads_down_to(topology, node.output[0], operator, through))
        for node in readers
    )


def _leads_up_to(topology: Topology, value: str, operator: str, through: tuple[str, ...]) -> bool:
    node = topology.producers.get(value)
    while node is not None and node.op_type in through:
        node = topology.producers.get(node.input[0])
    return node is not None and node.op_type == operator


def _vector_values(model: onnx.ModelProto) -> set[str]:
    """Return the values of shape (batch, channels) or (batch, channels, 1, 1)."""
    inferred = onnx.shape_inference.infer_shapes(model)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    found = set()
    for value in inferred.graph.value_info:
        sides = value.type.tensor_type.shape.dim
        if len(sides) in (2, 4) and sides[0].dim_param == batch and all(side.dim_value == 1 for side in sides[2:]):
            found.add(value.name)
    return found


def _head(topology: Topology) -> Iterator[str]:
    """Walk up from the outputs and stop at the first linear on every way."""
    waiting = [output.name for output in topology.graph.output]
    seen: set[str] = set()
    while waiting:
        node = topology.producers.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type in LINEAR_OPERATORS:
            yield node.name
        else:
            waiting.extend(node.input)


def _stem(topology: Topology, *, has_attention: bool) -> Iterator[str]:
    """Walk down from the image and stop at the first linear on every way, then follow a chain of convolutions."""
    waiting = [value.name for value in topology.graph.input]
    seen: set[str] = set()
    while waiting:
        for node in _readers(topology, waiting.pop()):
            if node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type not in LINEAR_OPERATORS:
                waiting.extend(node.output)
                continue
            yield node.name
            if has_attention:
                yield from _convolutions_in_chain(topology, node)


def _convolutions_in_chain(topology: Topology, node: NodeProto) -> Iterator[str]:
    """Follow a value as long as one operator alone reads it: the first residual branch ends the stem."""
    readers = _readers(topology, node.output[0])
    while len(readers) == 1:
        if readers[0].op_type == "Conv":
            yield readers[0].name
        elif readers[0].op_type in LINEAR_OPERATORS:
            return
        readers = _readers(topology, readers[0].output[0])


def _readers(topology: Topology, name: str) -> list[NodeProto]:
    """Return who computes with a value; who asks for its shape alone does not."""
    return [node for node in topology.consumers.get(name, []) if node.op_type not in ("Shape", "Size")]
