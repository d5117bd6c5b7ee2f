"""What a graph says of itself, in the metadata of the ONNX file: its card and its example images.

    edgebert.schema     `edgebert.graph/1`
    edgebert.card       class names, preprocessing, provenance and seen images, as JSON
    edgebert.examples   a few real images with their class names, as JSON
    edgebert.placements what single targets quantise as well, as JSON (`edgebert.export.placements`); INT8 graphs only

A graph of edgebert's takes `image`, uint8 (batch, height, width, 3) RGB, and gives `logits`, float32 (batch, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from onnx import TensorProto, ValueInfoProto

from edgebert._files import read_input
from edgebert._json import dump_json, parse_json_object
from edgebert.card import ModelCard
from edgebert.errors import BadDataError
from edgebert.examples import ExampleImage, examples_from_json, examples_to_json

GRAPH_SCHEMA = "edgebert.graph/1"
INPUT_NAME, OUTPUT_NAME = "image", "logits"

_SCHEMA_KEY, _CARD_KEY, _EXAMPLES_KEY = "edgebert.schema", "edgebert.card", "edgebert.examples"
PLACEMENTS_KEY = "edgebert.placements"
_MAKE_ONE = "edgebert export CHECKPOINT -o GRAPH.onnx"


def parse_graph(graph: bytes | Path) -> onnx.ModelProto:
    """Parse an ONNX graph, whoever made it.

    Raises:
        InputNotFoundError: the file cannot be read.
        BadDataError: not ONNX, or its weights lie in other files.
    """
    content = read_input(graph, what="the graph") if isinstance(graph, Path) else graph
    what = f"`{graph}`" if isinstance(graph, Path) else "the graph"
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise BadDataError(f"{what} is not an ONNX file", hint=_MAKE_ONE) from error
    if not model.graph.node:
        raise BadDataError(f"{what} is not an ONNX file, or an empty one", hint=_MAKE_ONE)
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    if outside:
        raise BadDataError(
            f"{what} keeps `{outside[0]}` in another file", expected="all weights inside", hint=_MAKE_ONE
        )
    return model


def read_graph_card(graph: bytes | Path) -> ModelCard:
    """Read a graph's card, and check that the graph takes and gives what the card says.

    Raises:
        InputNotFoundError: the file cannot be read.
        BadDataError: no graph of edgebert's, a malformed card, or a card that does not fit the graph.
    """
    return card_of_model(parse_graph(graph), what=f"`{graph}`" if isinstance(graph, Path) else "the graph")


def card_of_model(model: onnx.ModelProto, *, what: str = "the graph") -> ModelCard:
    """Return the card of a parsed graph; see `read_graph_card`."""
    entries = _metadata(model, what=what)
    if entries.get(_SCHEMA_KEY) != GRAPH_SCHEMA or _CARD_KEY not in entries:
        found = f"schema `{entries[_SCHEMA_KEY]:.40}`" if _SCHEMA_KEY in entries else "no metadata of edgebert's"
        raise BadDataError(f"{what} has {found}", expected=f"a graph with schema `{GRAPH_SCHEMA}`", hint=_MAKE_ONE)
    card = ModelCard.from_json(
        parse_json_object(entries[_CARD_KEY], what=f"the card of {what}"), what=f"the card of {what}"
    )
    check_interface(model, card, what=what)
    return card


def read_graph_examples(graph: bytes | Path) -> tuple[ExampleImage, ...]:
    """Read a graph's example images; none where it was made to carry none.

    Raises:
        InputNotFoundError: the file cannot be read.
        BadDataError: malformed.
    """
    return examples_of_model(parse_graph(graph), what=f"`{graph}`" if isinstance(graph, Path) else "the graph")


def examples_of_model(model: onnx.ModelProto, *, what: str = "the graph") -> tuple[ExampleImage, ...]:
    """Return the example images of a parsed graph; see `read_graph_examples`."""
    text = _metadata(model, what=what).get(_EXAMPLES_KEY)
    if text is None:
        return ()
    value = parse_json_object(text, what=f"the examples of {what}")
    return examples_from_json(value.get("examples"), what=f"the examples of {what}")


def with_metadata(
    model: onnx.ModelProto, card: ModelCard, examples: Sequence[ExampleImage], *, placements: str | None = None
) -> onnx.ModelProto:
    """Return a copy that carries this card, these example images and these placements, and no other metadata.

    Raises:
        BadDataError: the graph does not take and give what the card says.
    """
    check_interface(model, card)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    entries = {_SCHEMA_KEY: GRAPH_SCHEMA, _CARD_KEY: dump_json(card.to_json())}
    if examples:
        entries[_EXAMPLES_KEY] = dump_json({"examples": examples_to_json(examples)})
    if placements is not None:
        entries[PLACEMENTS_KEY] = placements
    _set_metadata(copy, entries)
    return copy


def metadata_of_model(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata entries of a parsed graph by key.

    Raises:
        BadDataError: a key appears twice.
    """
    return _metadata(model, what="the graph")


def without_examples(graph: bytes) -> bytes:
    """Return a graph without its example images and placements: what a bundle ships as its portable graph.

    Raises:
        BadDataError: not ONNX.
    """
    model = parse_graph(graph)
    entries = _metadata(model, what="the graph")
    entries.pop(_EXAMPLES_KEY, None)
    entries.pop(PLACEMENTS_KEY, None)  # its forms were made of them
    _set_metadata(model, entries)
    return bytes_of_model(model)


def bytes_of_model(model: onnx.ModelProto) -> bytes:
    """Serialise: equal models give equal bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check_interface(model: onnx.ModelProto, card: ModelCard, *, what: str = "the graph") -> None:
    """Check that a graph takes and gives what its card says.

    Raises:
        BadDataError: another name, type or shape of the input or output; another number of classes.
    """
    height, width = card.preprocessing.height, card.preprocessing.width
    initializers = {tensor.name for tensor in model.graph.initializer}
    sides = (
        (
            "takes",
            [value for value in model.graph.input if value.name not in initializers],
            INPUT_NAME,
            TensorProto.UINT8,
        ),
        ("gives", list(model.graph.output), OUTPUT_NAME, TensorProto.FLOAT),
    )
    for verb, values, name, kind in sides:
        shape = [height, width, 3] if verb == "takes" else [len(card.class_names)]
        if len(values) != 1 or values[0].name != name or not _fits(values[0], kind, shape):
            found = ", ".join(_described(value) for value in values) or "nothing"
            wanted = f"`{name}`: {TensorProto.DataType.Name(kind)} (batch, {', '.join(map(str, shape))})"
            raise BadDataError(f"{what} {verb} {found}", expected=f"{wanted}, as its card says")


def _fits(value: ValueInfoProto, kind: int, shape: list[int]) -> bool:
    """Compare element type and shape; the batch must be symbolic."""
    tensor = value.type.tensor_type
    sides = list(tensor.shape.dim)
    return (
        tensor.elem_type == kind
        and len(sides) == 1 + len(shape)
        and not sides[0].HasField("dim_value")
        and [side.dim_value for side in sides[1:]] == shape
    )


def _described(value: ValueInfoProto) -> str:
    sides = [side.dim_param or str(side.dim_value) for side in value.type.tensor_type.shape.dim]
    kind = value.type.tensor_type.elem_type
    name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
    return f"`{value.name:.40}`: {name} ({', '.join(sides)})"


def _metadata(model: onnx.ModelProto, *, what: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    for entry in model.metadata_props:
        if entry.key in entries:
            raise BadDataError(f"{what} holds the metadata `{entry.key:.40}` twice")
        entries[entry.key] = entry.value
    return entries


def _set_metadata(model: onnx.ModelProto, entries: dict[str, str]) -> None:
    del model.metadata_props[:]
    for key, value in sorted(entries.items()):
        model.metadata_props.add(key=key, value=value)
