"""From float32 to FP16, by rewriting types: constants and Q/DQ scales become FP16, Casts stand where the type changes.

One region: everything from the first operator behind the normalisation of the pixels to the logits is FP16. What stays float32
is the normalisation, because a difference of two pixel values in FP16 would lose up to a sixteenth of one grey level, and what
the caller names. LayerNormalization keeps `stash_type` 1: its sums are float32 within a FP16 graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.errors import BadDataError
from edgebert.export.graph_edits import add_constant, drop_unread, element_types, name_of, named, set_nodes
from edgebert.export.topology import Topology, attribute_of

HALF_MAX = 65504.0  # the largest finite number of FP16
HALF_STEP = 2.0**-24  # the smallest above zero
_STEPS = 127  # the largest int8 magnitude that is used

# What normalises pixels: it moves them, scales them and shifts them.
_NORMALISES = (
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Identity",
    "Mul",
    "Reshape",
    "Slice",
    "Split",
    "Sub",
    "Transpose",
)
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Inputs that stay float32 whatever the operator computes in (the ONNX operator's own type constraint).
_ALWAYS_FLOAT = {("Resize", 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfConstant:
    """A constant that FP16 does not hold.

    Attributes:
        node: name of who reads it.
        operator: who reads it, with its operator, as messages say it.
        constant: its name.
        value: the number in it that is farthest outside.
    """

    node: str
    operator: str
    constant: str
    value: float


def half_graph(model: onnx.ModelProto, *, float32: Collection[str] = ()) -> onnx.ModelProto:
    """Return a graph whose arithmetic is FP16 behind the normalisation of the pixels; inputs and outputs keep their types.

    Args:
        model: a float32 graph, with or without Q/DQ; not changed.
        float32: names of nodes that stay in float32, with Casts around them.

    Raises:
        BadDataError: a constant lies beyond 65,504, or the graph holds FP16 or sub-graphs already.
    """
    _check_source(model, float32)
    types = element_types(model)
    beyond = half_constants(Topology(model), types, float32_names(model, types, float32))
    if beyond:
        first = beyond[0]
        raise BadDataError(
            f"{first.operator} reads the constant `{first.constant}`, which holds {first.value:.6g}"
            + (f", and {len(beyond) - 1} more like it" if len(beyond) > 1 else ""),
            expected=f"constants within {HALF_MAX:.0f}, and no divisor below {HALF_STEP / 2:.1g}: what FP16 holds",
            hint=f"write a mask as -10000, or keep the node in float32: strong_graph(..., float32=({first.node!r},))",
        )
    return _Rewriting(model, float32).result()


def half_constants(topology: Topology, types: Mapping[str, int], wide: Collection[str]) -> tuple[HalfConstant, ...]:
    """Return the float32 constants that FP16 does not hold: beyond 65,504, and divisors that become zero.

    Args:
        topology: of the graph.
        types: of its values (`edgebert.export.graph_edits.element_types`).
        wide: names of the nodes that compute in float32 (`float32_names`).
    """
    found = []
    for node in topology.graph.node:
        if name_of(node) in wide or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for position, name in enumerate(node.input):
            if types.get(name) != _FLOAT or (node.op_type, position) in _ALWAYS_FLOAT:
                continue
            values = topology.floats(name)
            if values is None or values.size == 0:
                continue
            outside = values[~(np.abs(values) <= HALF_MAX)]
            if node.op_type == "Div" and position == 1:
                outside = np.concatenate([outside, values[(np.abs(values) <= HALF_STEP / 2) & (values != 0)]])
            if outside.size:
                worst = float(outside[np.argmax(np.abs(outside))])
                found.append(HalfConstant(node=name_of(node), operator=named(node), constant=name, value=worst))
    return tuple(found)


def float32_names(model: onnx.ModelProto, types: Mapping[str, int], chosen: Collection[str]) -> set[str]:
    """Return the names of the nodes that compute in float32: those that normalise pixels, and those chosen.

    A Q and a DQ are of the type of what their DQ feeds.

    Args:
        model: the graph.
        types: of its values (`edgebert.export.graph_edits.element_types`).
        chosen: names of further nodes.
    """
    topology = Topology(model)
    pixels = {value.name for value in model.graph.input}
    found = set(chosen)
    for node in model.graph.node:
        computed = [name for name in node.input if name and topology.constant(name) is None]
        floats = [name for name in computed if types.get(name) in (_FLOAT, _HALF, TensorProto.UINT8)]
        if node.op_type in _NORMALISES and floats and pixels.issuperset(floats):
            pixels.update(node.output)
            found.add(name_of(node))
    for node in reversed(model.graph.node):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.discard(name_of(node))
            readers = topology.consumers.get(node.output[0], [])
            if readers and all(name_of(reader) in found for reader in readers):
                found.add(name_of(node))
    return found


def half_weight(
    stored: NDArray[np.int8], scale: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return int8 steps and FP16 scales for a stored weight.

    Where FP16 holds a scale to eleven bits the steps stay as they are. A channel of tiny weights has a scale among the
    subnormal numbers of FP16, whose spacing is up to the number itself: its steps are taken again, of the scale that is there.

    Args:
        stored: int8, of any shape.
        scale: float32 (channels,), or ().
        axis: which side of the weight counts the channels.
    """
    half = np.maximum(scale.astype(np.float16), np.float16(HALF_STEP))
    shape = [1] * stored.ndim
    if scale.ndim:
        shape[axis] = -1
    reach = _steps_of(stored, scale, half, shape)
    others = tuple(side for side in range(stored.ndim) if not scale.ndim or side != axis % stored.ndim)
    above = np.abs(reach).max(axis=others, initial=0).reshape(scale.shape) > _STEPS + 0.5
    half = np.where(above, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)
    steps = np.rint(_steps_of(stored, scale, half, shape))
    return np.clip(steps, -_STEPS, _STEPS).astype(np.int8), half


def _steps_of(
    stored: NDArray[np.int8], scale: NDArray[np.float32], half: NDArray[np.float16], shape: list[int]
) -> NDArray[np.float64]:
    ratio = scale.astype(np.float64) / half.astype(np.float64)
    return stored.astype(np.float64) * ratio.reshape(shape)


class _Rewriting:
    """One pass over the nodes, in order; it holds which type every value has so far."""

    def __init__(self, model: onnx.ModelProto, float32: Collection[str]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        _own_pairs(self._model, float32)
        self._topology = Topology(self._model)
        self._source = element_types(self._model)
        self._wide = float32_names(self._model, self._source, float32)
        self._outputs = {output.name for output in model.graph.output}
        self._types = dict(self._source)  # of the values of the new graph
        self._made: dict[tuple[str, int], str] = {}  # value and type -> its name in that type
        self._nodes: list[NodeProto] = []

    def result(self) -> onnx.ModelProto:
        for source in list(self._model.graph.node):
            node = NodeProto.FromString(source.SerializeToString())
            wanted = _FLOAT if name_of(node) in self._wide else _HALF
            if node.op_type != "Constant":
                self._convert_inputs(node, wanted)
                self._convert_attributes(node, wanted)
            renamed = self._convert_outputs(node, wanted)
            self._nodes.append(node)
            self._nodes.extend(
                helper.make_node("Cast", [half], [name], name=f"{name}.Cast", to=_FLOAT) for name, half in renamed
            )
        set_nodes(self._model, self._nodes)
        del self._model.graph.value_info[:]  # of the old types
        drop_unread(self._model)
        return self._model

    def _convert_inputs(self, node: NodeProto, wanted: int) -> None:
        if node.op_type == "Cast" and self._source.get(node.input[0]) == _FLOAT:
            return  # it reads whatever type there is
        if node.op_type == "DequantizeLinear" and self._topology.constant(node.input[0]) is not None:
            self._convert_weight(node, wanted)
            return
        for position, name in enumerate(node.input):
            if self._source.get(name) != _FLOAT or (node.op_type, position) in _ALWAYS_FLOAT:
                continue
            scale = position == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
            node.input[position] = self._half_scale(name) if scale and wanted == _HALF else self._in_type(name, wanted)

    def _convert_weight(self, node: NodeProto, wanted: int) -> None:
        stored, scale = self._topology.array(node.input[0]), self._topology.array(node.input[1])
        if wanted == _FLOAT or stored is None or scale is None or stored.dtype != np.int8:
            return
        steps, half = half_weight(stored.astype(np.int8), scale.astype(np.float32), attribute_of(node, "axis", 1))
        node.input[1] = add_constant(self._model, f"{node.output[0]}.scale.fp16", half)
        if not np.array_equal(steps, stored):
            node.input[0] = add_constant(self._model, f"{node.output[0]}.int8.fp16", steps)

    def _in_type(self, name: str, wanted: int) -> str:
        """Return the name under which a value is there in a type; a constant is converted, anything else is cast."""
        if self._types.get(name) == wanted:
            return name
        key = (name, wanted)
        if key not in self._made:
            self._made[key] = f"{name}.{'fp16' if wanted == _HALF else 'fp32'}"
            constant = self._topology.array(name)
            if constant is not None:
                add_constant(self._model, self._made[key], constant.astype(_NUMPY[wanted]))
            else:
                self._nodes.append(
                    helper.make_node("Cast", [name], [self._made[key]], name=f"{self._made[key]}.Cast", to=wanted)
                )
        return self._made[key]

    def _half_scale(self, name: str) -> str:
        """Return a scale of an activation in FP16: the nearest number above zero."""
        scale = self._topology.array(name)
        if scale is None:
            return self._in_type(name, _HALF)  # a rule of its own names it
        key = (f"{name}.scale", _HALF)
        if key not in self._made:
            half = np.maximum(scale.astype(np.float16), np.float16(HALF_STEP))
            self._made[key] = add_constant(self._model, f"{name}.scale.fp16", half)
        return self._made[key]

    def _convert_attributes(self, node: NodeProto, wanted: int) -> None:
        """Set what an operator is told of its output's type; ConstantOfShape gives float32 where it is told nothing."""
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = wanted
            elif attribute.name == "value" and node.op_type == "ConstantOfShape" and attribute.t.data_type == _FLOAT:
                values = numpy_helper.to_array(attribute.t)
                attribute.t.CopyFrom(numpy_helper.from_array(values.astype(_NUMPY[wanted]), attribute.t.name))
            elif attribute.name == "dtype" and attribute.i == _FLOAT:
                attribute.i = wanted

    def _convert_outputs(self, node: NodeProto, wanted: int) -> Iterator[tuple[str, str]]:
        """Note the outputs' types; an output of the graph gets a name of its own in FP16, and is cast back."""
        renamed = []
        for position, name in enumerate(node.output):
            if self._source.get(name) != _FLOAT or node.op_type == "Constant":
                continue
            self._types[name] = wanted
            if name in self._outputs and wanted == _HALF:
                node.output[position] = f"{name}.fp16"
                self._made[name, _HALF] = f"{name}.fp16"
                self._types[name] = _FLOAT
                renamed.append((name, f"{name}.fp16"))
        return iter(renamed)


_NUMPY: dict[int, type[np.float32 | np.float16]] = {_FLOAT: np.float32, _HALF: np.float16}


def _own_pairs(model: onnx.ModelProto, float32: Collection[str]) -> None:
    """Give each operator that stays in float32 a Q/DQ pair of its own where it shares one with operators that do not."""
    if not float32:
        return
    topology = Topology(model)
    added: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if name_of(node) not in float32:
            continue
        for position, name in enumerate(node.input):
            dequantiser = topology.producers.get(name)
            if dequantiser is None or dequantiser.op_type != "DequantizeLinear":
                continue
            if all(name_of(reader) in float32 for reader in topology.consumers[name]):
                continue
            quantiser = topology.producers.get(dequantiser.input[0])
            own = [
                NodeProto.FromString(each.SerializeToString()) for each in (quantiser, dequantiser) if each is not None
            ]
            for each in own:
                each.name = f"{name_of(node)}.{position}.{each.op_type}"
                each.output[0] = f"{each.output[0]}.of.{name_of(node)}"
            if len(own) == 2:
                own[1].input[0] = own[0].output[0]
            node.input[position] = own[-1].output[0]
            added.setdefault(node.output[0], []).extend(own)
    if added:
        set_nodes(model, [each for node in model.graph.node for each in (*added.get(node.output[0], ()), node)])


def _check_source(model: onnx.ModelProto, float32: Collection[str]) -> None:
    names = {name_of(node) for node in model.graph.node}
    unknown = sorted(set(float32) - names)
    if unknown:
        raise BadDataError(
            f"the graph has no node `{unknown[0]}`, which was to stay in float32", expected="a node's name"
        )
    for node in model.graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise BadDataError(f"{named(node)} holds a graph of its own", expected="a graph without branches and loops")
    halves = sorted(name for name, kind in element_types(model).items() if kind == _HALF)
    if halves:
        raise BadDataError(
            f"the graph computes `{halves[0]}` in FP16 already",
            expected="the FP32 graph, or the portable INT8 graph",
            hint="edgebert export CHECKPOINT -o GRAPH.onnx",
        )
