"""Where one target quantises more than the portable graph does: kept in the graph's metadata, added by `compile`.

The portable INT8 graph is the common subset of all targets. OpenVINO gains by an INT8 stem and INT8 attention, ONNX Runtime
loses by the first and gains nothing by the second, TensorRT takes the first (docs/quantization.md has the figures). So the
scales of the rest travel with the graph, under `edgebert.placements`, and every form is emitted from the one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.calibration.emit import int8_graph
from edgebert.calibration.table import ScaleTable
from edgebert.errors import BadDataError
from edgebert.export.metadata import PLACEMENTS_KEY, metadata_of_model

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
        BadDataError: the placements name operators or values that the graph does not have.
    """
    placements = placements_of_model(model)
    names = placements.added.get(backend, ()) if placements else ()
    if placements is None or not names:
        return model, ()
    nodes = {node.name: node for node in model.graph.node}
    missing = [name for name in names if name not in nodes]
    if missing:
        raise BadDataError(
            f"{_WHAT} name the operator `{missing[0]:.80}`, which is not in it",
            expected="the graph as `edgebert quantize` wrote it",
        )
    return int8_graph(model, placements.table, names), tuple(names)
