"""An FP32 graph as a torch module: the same operators in the same order, with gradients, and rounding where INT8 rounds.

The graph itself is run, and not the network it was exported from: the places of the rounding are those of the emitted
graph by construction, whatever was folded or smoothed before, and a graph without its checkpoint can be trained.

Trained are the weights and biases of Conv, Gemm and MatMul and the scales and biases of norms. All else stays as it is: the
normalisation of the image, the statistics of a BatchNormalization, positions, tokens, masks and tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from edgebert.calibration.emit import WEIGHT_STEPS
from edgebert.calibration.fake_quantizer import FakeQuantizer
from edgebert.calibration.table import ScaleTable
from edgebert.calibration.torch_operators import OPERATORS, Attributes, Operator, check_operators, tensor_of
from edgebert.errors import EdgebertError
from edgebert.export.rules import weight_axis
from edgebert.export.topology import LINEAR_OPERATORS, Topology

_NORMS = ("BatchNormalization", "LayerNormalization")


@dataclass(frozen=True, slots=True)
class _Step:
    """One node."""

    name: str
    operator: Operator
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rounded: tuple[int, ...]  # positions of the activations that are rounded
    last_used: tuple[str, ...]  # values that no later node reads


class TorchGraph(nn.Module):
    """A graph that can be trained; without a table it computes what the FP32 graph does.

    Args:
        model: an FP32 graph of edgebert's whose nodes are named; not changed.
        table: scales of every value and weight that is rounded.
        places: names of Conv, Gemm and MatMul nodes, as for `edgebert.calibration.emit.int8_graph`.
        learned: whether scales have gradients.

    Raises:
        BadDataError: the graph holds an operator that is not known here.
        EdgebertError: the table has no scale for a place.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        table: ScaleTable | None = None,
        places: Collection[str] = (),
        learned: bool = True,
    ) -> None:
        super().__init__()
        check_operators(model)
        self._model, self._trained = _with_own_initializers(model)
        topology = Topology(self._model)
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        self._learned = nn.ParameterList(nn.Parameter(tensor_of(topology.initializers[name])) for name in self._trained)
        self._constants = {
            name: tensor_of(tensor) for name, tensor in topology.initializers.items() if name not in self._trained
        }
        self._activations: dict[str, FakeQuantizer] = {}
        self._weights: dict[str, FakeQuantizer] = {}
        for node in self._model.graph.node:
            if node.name in places:
                self._round(node, topology, table or ScaleTable(), learned=learned)
        self._quantizers = nn.ModuleList([*self._activations.values(), *self._weights.values()])
        self._steps = list(self._steps_of(topology, places))

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: uint8 (batch, height, width, 3) RGB.

        Returns:
            float32 (batch, classes) logits.
        """
        values = {self._input: images, **self._constants}
        values.update(zip(self._trained, self._learned, strict=True))
        rounded: dict[str, Tensor] = {}  # one rounding serves every reader of a value, such as Q, K and V
        for step in self._steps:
            inputs = [values[name] if name else None for name in step.inputs]
            for position in step.rounded:
                name = step.inputs[position]
                if name not in rounded:
                    rounded[name] = self._activations[name](values[name])
                inputs[position] = rounded[name]
            if step.name in self._weights:
                inputs[1] = self._weights[step.name](inputs[1])
            result = step.operator(inputs, step.attributes)
            results = (result,) if isinstance(result, Tensor) else result
            values.update(zip(step.outputs, results, strict=False))
            for name in step.last_used:
                values.pop(name, None)
                rounded.pop(name, None)
        return values[self._output]

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trained weights, biases and norms with the names of their initialisers."""
        yield from zip(self._trained, self._learned, strict=True)

    def scale_growths(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is learned of each scale, with the name of its value or node."""
        for name, quantizer in (*self._activations.items(), *self._weights.items()):
            yield name, quantizer.growth

    def table(self) -> ScaleTable:
        """Return the scales as they are now, those of the places alone."""
        return ScaleTable(
            activations={name: float(quantizer.scale().detach()) for name, quantizer in self._activations.items()},
            weights={name: _numpy(quantizer.scale()) for name, quantizer in self._weights.items()},
        )

    def model(self) -> onnx.ModelProto:
        """Return the FP32 graph with the weights as they are now; every node keeps its name and its place."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        trained = dict(zip(self._trained, self._learned, strict=True))
        for tensor in model.graph.initializer:
            if tensor.name in trained:
                tensor.CopyFrom(numpy_helper.from_array(_numpy(trained[tensor.name]), tensor.name))
        return model

    def _round(self, node: NodeProto, topology: Topology, table: ScaleTable, *, learned: bool) -> None:
        for position in _rounded_inputs(node, topology):
            value = node.input[position]
            if value not in table.activations:
                raise EdgebertError(f"no range was measured for the value `{value}`")
            if value not in self._activations:
                scale = torch.tensor(table.activations[value], dtype=torch.float32)
                self._activations[value] = FakeQuantizer(scale, highest=WEIGHT_STEPS, learned=learned)
        if topology.is_weight(node.input[1]):
            if node.name not in table.weights:
                raise EdgebertError(f"no scales were chosen for the weight of {node.op_type} `{node.name}`")
            self._weights[node.name] = FakeQuantizer(
                torch.from_numpy(np.array(table.weights[node.name], np.float32)),
                lowest=-WEIGHT_STEPS,
                highest=WEIGHT_STEPS,
                axis=weight_axis(node),
                learned=learned,
            )

    def _steps_of(self, topology: Topology, places: Collection[str]) -> Iterator[_Step]:
        """Yield the nodes that depend on the image or on a weight; compute the others at once."""
        last = {name: node.name for node in self._model.graph.node for name in node.input}
        for node in self._model.graph.node:
            attributes, operator = Attributes.of(node), OPERATORS[node.op_type]
            if all(name in self._constants or not name for name in node.input):
                with torch.no_grad():
                    result = operator([self._constants.get(name) for name in node.input], attributes)
                results = (result,) if isinstance(result, Tensor) else result
                self._constants.update(zip(node.output, results, strict=False))
                continue
            yield _Step(
                name=node.name,
                operator=operator,
                attributes=attributes,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                rounded=_rounded_inputs(node, topology) if node.name in places else (),
                last_used=tuple(name for name in dict.fromkeys(node.input) if last[name] == node.name),
            )


def _rounded_inputs(node: NodeProto, topology: Topology) -> tuple[int, ...]:
    """Return the positions of the activations that a place rounds: both of a product of two, else the first."""
    return (0,) if topology.is_weight(node.input[1]) else (0, 1)


def _with_own_initializers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a copy in which no two nodes train the same tensor by accident, and the initialisers to train.

    Export merges equal initialisers: the biases of an untrained network, all zero, are one tensor, and so may be the ones
    of its norms. Each node gets its own. A matrix that several nodes read is one weight, and stays one, unless all its
    numbers are equal, which tells nothing of where it came from.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(model)
    own: dict[tuple[str, str], str] = {}
    taken = set(topology.initializers) | set(topology.producers)
    for node in result.graph.node:
        for position in _trained_inputs(node, topology):
            name = node.input[position]
            values = topology.array(name)
            assert values is not None
            is_tied = values.ndim > 1 and np.unique(values).size > 1
            key = (name, "" if is_tied else f"{node.name}.{position}")
            if key not in own:
                own[key] = _free_name(f"{node.name}.{position}.trained", taken)
                result.graph.initializer.append(numpy_helper.from_array(values, own[key]))
            node.input[position] = own[key]
    read = {name for node in result.graph.node for name in node.input}
    nodes = [node for node in result.graph.node if node.op_type != "Constant" or node.output[0] in read]
    kept = [
        TensorProto.FromString(tensor.SerializeToString()) for tensor in result.graph.initializer if tensor.name in read
    ]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(copies)
    result.graph.initializer.extend(kept)
    return result, tuple(own.values())


def _trained_inputs(node: NodeProto, topology: Topology) -> tuple[int, ...]:
    """Return the positions of a node's weights, biases and norm parameters."""
    if node.op_type in _NORMS:
        wanted: tuple[int, ...] = (1, 2)
    elif node.op_type == "Add":
        wanted = tuple(at for at in (0, 1) if _is_linear(topology.producers.get(node.input[1 - at]), topology))
    else:
        wanted = (1, 2) if _is_linear(node, topology) else ()
    return tuple(at for at in wanted if at < len(node.input) and _is_float(node.input[at], topology))


def _is_linear(node: NodeProto | None, topology: Topology) -> bool:
    return (
        node is not None
        and node.op_type in LINEAR_OPERATORS
        and topology.constant(node.input[1]) is not None
        and topology.constant(node.input[0]) is None
    )


def _is_float(name: str, topology: Topology) -> bool:
    tensor = topology.constant(name)
    return tensor is not None and tensor.data_type == TensorProto.FLOAT and sum(tensor.dims) > 0


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _numpy(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.detach().cpu().numpy().copy()
    return array
