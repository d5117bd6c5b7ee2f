"""Dataclasses to JSON and back, checked against their annotations: one rule for the whole result schema.

Reading is strict about what it knows (a missing field, another type, a number that is not finite) and silent about
what it does not: a later version may add fields. A field with a default came with a later version, and may be missing.

>>> @dataclasses.dataclass(frozen=True, kw_only=True)
... class Point:
...     x: int
...     label: str | None
>>> to_json(Point(x=1, label=None))
{'x': 1, 'label': None}
>>> from_json(Point, {"x": 2, "label": "a", "added": 0}, what="a point")
Point(x=2, label='a')
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from edgebert._json import JsonObject, JsonValue
from edgebert.errors import BadDataError

_Record = TypeVar("_Record")


def to_json(record: object) -> JsonObject:
    """Return a dataclass of dataclasses, tuples, mappings and plain values as a JSON object."""
    assert dataclasses.is_dataclass(record)
    return {field.name: _encoded(getattr(record, field.name)) for field in dataclasses.fields(record)}


def from_json(record_class: type[_Record], value: JsonValue, *, what: str) -> _Record:
    """Read what `to_json` wrote.

    Raises:
        BadDataError: a field is missing, of another type, or not finite; the message names it.
    """
    if not isinstance(value, Mapping):
        _refuse(value, what, "an object")
    hints = typing.get_type_hints(record_class)
    decoded: dict[str, object] = {}
    for field in dataclasses.fields(record_class):  # type: ignore[arg-type]  # the type variable stands for a dataclass
        if field.name not in value:
            if field.default is not dataclasses.MISSING:
                continue
            raise BadDataError(f"{what} holds no `{field.name}`", expected=f"the fields of {record_class.__name__}")
        decoded[field.name] = _decoded(hints[field.name], value[field.name], f"{what}, `{field.name}`")
    return record_class(**decoded)


def _encoded(value: object) -> JsonValue:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        assert math.isfinite(value), "a result holds finite numbers only"
        return value
    if isinstance(value, tuple):
        return [_encoded(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _encoded(entry) for key, entry in value.items()}
    return to_json(value)


def _decoded(hint: Any, value: JsonValue, what: str) -> object:
    """Return `value` as the annotation `hint` says; typing.Any because annotations have no common type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only `X | None` is used in the schema
        wanted = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _decoded(wanted, value, what)
    if origin is Literal:
        return value if value in arguments else _refuse(value, what, ", ".join(map(str, arguments)))
    if origin is tuple:
        return _decoded_tuple(arguments, value, what)
    if origin is not None:  # Mapping[str, X]
        if not isinstance(value, Mapping):
            _refuse(value, what, "an object")
        return {key: _decoded(arguments[1], entry, f"{what}, `{key}`") for key, entry in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[object]", hint), value, what=what)
    return _decoded_scalar(hint, value, what)


def _decoded_tuple(arguments: tuple[Any, ...], value: JsonValue, what: str) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        _refuse(value, what, "a list")
    if arguments[-1] is Ellipsis:
        return tuple(_decoded(arguments[0], entry, f"{what}[{index}]") for index, entry in enumerate(value))
    if len(value) != len(arguments):
        _refuse(value, what, f"a list of {len(arguments)}")
    return tuple(_decoded(hint, entry, what) for hint, entry in zip(arguments, value, strict=True))


def _decoded_scalar(hint: type[object], value: JsonValue, what: str) -> object:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            _refuse(value, what, "a number that fits 64 bits")
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 2**63 else _refuse(value, what, "a number that fits 64 bits")
    if hint in (bool, str) and isinstance(value, hint):
        return value
    return _refuse(value, what, {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[hint])


def _refuse(value: JsonValue, what: str, expected: str) -> NoReturn:
    raise BadDataError(f"{what} holds `{value!r:.80}`", expected=expected)
