"""Smoothing: outliers of activation channels moved into the weights that meet them, folded so that no operator is added.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation 4): channel j of an activation is divided by
s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), and row j of the next weights multiplied by it. Here the division goes into what
makes the activation, where that is exact: scale and bias of a LayerNormalization whose readers are all linears, and the value
projection of attention in front of its output projection. Between GELU and the next linear nothing can take it, and no Mul
is put there: OpenVINO was measured to answer such graphs ten times worse than ONNX Runtime (compression.md, section 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from edgebert.export.topology import Topology, attribute_of

ALPHAS = (0.15, 0.25, 0.5, 0.75, 0.95)  # NNCF's own grid (compression.md, section 5.4)

# They move values without mixing channels; whether the channels stay last is checked by comparing answers.
_MOVES = ("Concat", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_ASKS_SHAPE = ("Shape", "Size")
_SMALLEST_FACTOR = 1e-4  # and largest is its inverse: a channel that is nearly dead asks for any factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One place where smoothing can be folded.

    Attributes:
        kind: `norm` for a LayerNormalization, `value` for the value projection of attention.
        maker: name of the node that takes the division.
        values: the values that are divided, as the linears read them.
        readers: names of the linears that take the multiplication.
        channels: how many there are.
        passed: of kind `value`, what attention's product reads of the projection, which is divided as well.
        projected: of kind `value`, the same before it was moved, with its channels last.
    """

    kind: Literal["norm", "value"]
    maker: str
    values: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    passed: str = ""
    projected: str = ""


def plans_of_graph(model: onnx.ModelProto) -> tuple[Plan, ...]:
    """Find every place of a float graph where smoothing can be folded."""
    topology = Topology(model)
    plans = [_norm_plan(node, topology) for node in model.graph.node if node.op_type == "LayerNormalization"]
    plans += [_value_plan(node, topology) for node in topology.activation_products()]
    return tuple(plan for plan in plans if plan is not None)


def smoothing_factors(
    magnitude: NDArray[np.float64], weights: Sequence[NDArray[np.floating]], alpha: float
) -> NDArray[np.float64]:
    """Return float64 (channels,): what each channel is divided by; their geometric mean is 1.

    Args:
        magnitude: largest magnitude of each channel of the activation, float64 (channels,).
        weights: of the readers, (channels, outputs) each.
        alpha: 0 moves nothing away from the weights, 1 makes all activation channels alike.
    """
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    usable = (magnitude > 0) & (reach > 0)
    factors = np.ones(len(magnitude))
    factors[usable] = magnitude[usable] ** alpha / reach[usable] ** (1 - alpha)
    if usable.any():  # only ratios between channels matter
        factors[usable] /= np.exp(np.log(factors[usable]).mean())
    return np.clip(factors, _SMALLEST_FACTOR, 1 / _SMALLEST_FACTOR)


def smoothed_graph(
    model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float64]], plans: Iterable[Plan]
) -> onnx.ModelProto:
    """Return the graph with factors folded: it answers the same, its activations are divided.

    Args:
        model: a float graph; not changed.
        factors: maker -> float64 (channels,); a plan whose maker is not there is left alone.
        plans: of this graph.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(result)
    nodes = {node.name: node for node in result.graph.node}
    changed: dict[tuple[str, int], NDArray[np.float64]] = {}  # several plans may meet: V is a reader and a maker

    def current(node: NodeProto, place: int) -> NDArray[np.float64]:
        value = changed.get((node.name, place))
        if value is None:
            value = topology.floats(node.input[place])
            assert value is not None  # plans are made of constants
        return value

    for plan in plans:
        factor = factors.get(plan.maker)
        if factor is None:
            continue
        maker = nodes[plan.maker]
        if plan.kind == "norm":
            for place in range(1, len(maker.input)):
                changed[maker.name, place] = current(maker, place) / factor
        else:
            rows = _turned(maker)
            changed[maker.name, 1] = current(maker, 1) / (factor[:, np.newaxis] if rows else factor)
            bias = bias_of(maker, topology)
            if bias is not None:
                changed[bias[0].name, bias[1]] = current(*bias) / factor
        for name in plan.readers:
            reader = nodes[name]
            changed[name, 1] = current(reader, 1) * (factor if _turned(reader) else factor[:, np.newaxis])
    for (name, place), value in changed.items():
        stored = f"{name}.{place}.smoothed"
        while stored in topology.initializers:  # of a graph that was smoothed before
            stored += ".again"
        result.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), stored))
        nodes[name].input[place] = stored
    drop_unused_initializers(result)
    return result


def bias_of(linear: NodeProto, topology: Topology) -> tuple[NodeProto, int] | None:
    """Return the node and the input at which the constant bias of a Conv, Gemm or MatMul stands; None where it has none.

    MatMul has it in the Add that alone reads its answer.
    """
    if linear.op_type in ("Conv", "Gemm"):
        has = len(linear.input) > 2 and linear.input[2] and topology.array(linear.input[2]) is not None
        return (linear, 2) if has else None
    readers = topology.consumers.get(linear.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    place = 1 if readers[0].input[0] == linear.output[0] else 0
    stored = topology.array(readers[0].input[place])
    return (readers[0], place) if stored is not None and stored.ndim == 1 else None


def input_weight(linear: NodeProto, topology: Topology) -> NDArray[np.float64] | None:
    """Return the constant weight of a MatMul or Gemm as (inputs, outputs); None of anything else."""
    weight = topology.floats(linear.input[1]) if linear.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.ndim != 2 or attribute_of(linear, "transA", 0):
        return None
    return weight.T if _turned(linear) else weight


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove the initialisers that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _turned(linear: NodeProto) -> bool:
    return linear.op_type == "Gemm" and bool(attribute_of(linear, "transB", 0))


def _norm_plan(norm: NodeProto, topology: Topology) -> Plan | None:
    scale = topology.array(norm.input[1])
    constants = [topology.array(name) for name in norm.input[1:]]
    if scale is None or scale.ndim != 1 or any(value is None for value in constants):
        return None
    found = _linear_readers(norm.output[0], topology, len(scale))
    if not found:
        return None
    values, readers = found
    return Plan(kind="norm", maker=norm.name, values=values, readers=readers, channels=len(scale))


def _value_plan(product: NodeProto, topology: Topology) -> Plan | None:
    """Find the linears around softmax times values: the value projection above, the output projection below."""
    above = topology.producers.get(product.input[0])
    while above is not None and above.op_type in _MOVES:
        above = topology.producers.get(above.input[0])
    if above is None or above.op_type != "Softmax":
        return None
    name, projected = product.input[1], ""
    while True:
        node = topology.producers.get(name)
        if node is None or len(_real_readers(name, topology)) != 1:
            return None
        if not projected and node.op_type in ("Add", "Gemm", "MatMul"):
            projected = name
        if node.op_type in ("Gemm", "MatMul"):
            break
        if node.op_type == "Add":
            made = [value for value in node.input if topology.array(value) is None]
            if len(made) != 1:
                return None
            name = made[0]
        elif node.op_type in _MOVES and node.op_type != "Concat":
            name = node.input[0]
        else:
            return None
    weight = input_weight(node, topology)
    if weight is None:
        return None
    found = _linear_readers(product.output[0], topology, weight.shape[1])
    if not found:
        return None
    values, readers = found
    return Plan(
        kind="value",
        maker=node.name,
        values=values,
        readers=readers,
        channels=weight.shape[1],
        passed=product.input[1],
        projected=projected,
    )


def _linear_readers(value: str, topology: Topology, channels: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the values that linears read and the linears, if nothing else reads what becomes of `value`."""
    waiting, values, readers = [value], [], []
    while waiting:
        name = waiting.pop()
        if name in {output.name for output in topology.graph.output}:
            return None
        for node in _real_readers(name, topology):
            weight = input_weight(node, topology) if node.input[0] == name else None
            if weight is not None and weight.shape[0] == channels:
                values.append(name)
                readers.append(node.name)
            elif node.op_type in _MOVES and name in list(node.input)[: None if node.op_type == "Concat" else 1]:
                waiting.extend(node.output)
            else:
                return None
    return (tuple(dict.fromkeys(values)), tuple(dict.fromkeys(readers))) if readers else None


def _real_readers(name: str, topology: Topology) -> list[NodeProto]:
    return [node for node in topology.consumers.get(name, []) if node.op_type not in _ASKS_SHAPE]
