"""Reads the card in a graph's metadata without a model parser: a device that benches a graph may not have `onnx`.

An ONNX file is one protobuf message (onnx.proto, `ModelProto`): its top level is walked, everything but the field
`metadata_props` is skipped unread. `edgebert.export.metadata` writes these entries, and a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgebert._json import parse_json_object
from edgebert.card import ModelCard
from edgebert.errors import BadDataError

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2  # field numbers of ModelProto and StringStringEntryProto
_SCHEMA_KEY, _CARD_KEY = "edgebert.schema", "edgebert.card"
_GRAPH_SCHEMA = "edgebert.graph/1"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types; groups (3, 4) do not occur in ONNX
_MAX_VARINT_BYTES = 10


def graph_card(graph: bytes, *, what: str) -> ModelCard:
    """Return the card of an ONNX graph that edgebert made.

    Args:
        graph: the file's bytes.
        what: the file, for messages.

    Raises:
        BadDataError: not an ONNX file, not one of edgebert's, or a malformed card.
    """
    hint = "edgebert export CHECKPOINT -o GRAPH.onnx"
    try:
        entries = {}
        for number, content in _fields(graph):
            if number == _METADATA_PROPS:
                parts = dict(_fields(content))
                entries[parts.get(_KEY, b"").decode()] = parts.get(_VALUE, b"")
    except (IndexError, ValueError) as error:
        raise BadDataError(f"{what} is not an ONNX file: {error}", hint=hint) from error
    if entries.get(_SCHEMA_KEY) != _GRAPH_SCHEMA.encode() or _CARD_KEY not in entries:
        raise BadDataError(f"{what} holds no card", expected=f"a graph with schema `{_GRAPH_SCHEMA}`", hint=hint)
    return ModelCard.from_json(
        parse_json_object(entries[_CARD_KEY], what=f"the card of {what}"), what=f"the card of {what}"
    )


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each length-delimited field.

    Raises:
        IndexError: the message ends too early.
        ValueError: no protobuf.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        if kind not in (_FIXED64, _BYTES, _FIXED32):
            raise ValueError(f"wire type {kind} at byte {at}")
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if length is None:
            length, at = _varint(message, at)
        if at + length > len(message):
            raise IndexError(f"it ends {at + length - len(message)} bytes too early")
        if kind == _BYTES and tag >> 3 in (_METADATA_PROPS, _KEY, _VALUE):
            yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a base-128 number and the position behind it."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than {_MAX_VARINT_BYTES} bytes at byte {at}")
