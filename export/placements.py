"""Where one target quantises more than the portable graph does: kept in the graph's metadata, added by `compile`.

The portable INT8 graph is the common subset of all targets. OpenVINO gains by an INT8 stem and INT8 attention, ONNX Runtime
loses by the first and gains nothing by the second, TensorRT takes the first (docs/quantization.md has the figures). So the
scales of the rest travel with the graph, under `edgebert.placements`, and every form is emitted from the one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.calibration.emit import int8_graph
from edgebert.calibration.table import ScaleTable
from edgebert.errors import BadDataError
from edgebert.export.metadata import PLACEMENTS_KEY, metadata_of_model
from edgebert.export.rules import check_int8_graph, weight_axis
from edgebert.export.topology import LINEAR_OPERATORS, Topology

_WHAT = "the graph's placements"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placements:
    """What `compile` may add to a portable INT8 graph.

    Attributes:
        table: scales of what is added, and of nothing else.
        added: backend -> names of the operators that it quantises as well.
    """

    table: ScaleTable
    added: Mapping[str, tuple[str, ...]]

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        added: JsonObject = {backend: list(names) for backend, names in sorted(self.added.items())}
        return {"table": self.table.to_json(), "added": added}

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str = _WHAT) -> Placements:
        """Read what `to_json` wrote.

        Raises:
            BadDataError: a field is missing or of another type.
        """
        fields = Fields(value, what=what)
        added = fields.fields("added")
        return cls(
            table=ScaleTable.from_json(fields.value.get("table"), what=f"{what}, `table`"),
            added={backend: added.texts(backend) for backend in added.value},
        )


def placements_of_model(model: onnx.ModelProto) -> Placements | None:
    """Return what a graph carries of placements; None where it carries nothing.

    Raises:
        BadDataError: malformed.
    """
    text = metadata_of_model(model).get(PLACEMENTS_KEY)
    return None if text is None else Placements.from_json(parse_json_object(text, what=_WHAT))


def placements_text(placements: Placements) -> str:
    """Return what goes into the metadata."""
    return dump_json(placements.to_json())


def without_placements(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph that carries no placements."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != PLACEMENTS_KEY]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    return copy


def graph_for_backend(model: onnx.ModelProto, backend: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return an INT8 graph with what one backend quantises as well, and the names of that.

    Args:
        model: a portable graph; not changed.
        backend: a key of `Placements.added`; another one adds nothing.

    Raises:
        BadDataError: the placements do not fit the graph, or it is not a portable INT8 graph.
    """
    placements = placements_of_model(model)
    names = placements.added.get(backend, ()) if placements else ()
    if placements is None or not names:
        return model, ()
    check_int8_graph(model)
    nodes = {node.name: node for node in model.graph.node}
    topology = Topology(model)
    for name in names:
        fault = _fault(name, nodes.get(name), topology, placements.table)
        if fault:
            raise BadDataError(
                f"{_WHAT} name the operator `{name:.80}`, {fault}", expected="the graph as `edgebert quantize` wrote it"
            )
    return int8_graph(model, placements.table, names), tuple(names)


def _fault(name: str, node: NodeProto | None, topology: Topology, table: ScaleTable) -> str:
    """Return why an operator cannot be quantised, in words; empty where it can. Metadata may hold anything."""
    if node is None:
        return "which is not in it"
    if node.op_type not in LINEAR_OPERATORS or len(node.input) < 2:
        return f"which is a {node.op_type}"
    weight = topology.floats(node.input[1])
    values = node.input[:2] if weight is None else node.input[:1]
    makers = [topology.producers.get(value) for value in node.input[:2]]
    if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
        return "which is quantised already"
    unknown = [value for value in values if value not in table.activations]
    if unknown:
        return f"but no scale of its input `{unknown[0]:.80}`"
    if weight is None:
        return ""
    channels = weight.shape[weight_axis(node)] if weight.ndim >= 2 else 0
    scales = table.weights.get(name)
    if scales is None or scales.shape != (channels,):
        return f"but not {channels} scales of its weight"
    return ""
