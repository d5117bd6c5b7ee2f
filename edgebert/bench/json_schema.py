"""The JSON Schema of a result, made from the dataclasses that are its definition, so that the two cannot differ.

    python -m edgebert.bench.json_schema --write    write bench.schema.json, which ships beside this module
    python -m edgebert.bench.json_schema --check    fail where it is not what would be written

A field without a default is required; fields that are not known are allowed, as a later minor version may add them
(bench.md, section 11.1); another major version has another value of `schema`, and is refused.

>>> from edgebert.bench.schema import Seeds
>>> schema_of(Seeds)["$defs"]["Seeds"]["required"]
['inputs', 'schedule', 'bootstrap']
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from edgebert._json import JsonObject, JsonValue, dump_json
from edgebert.bench.schema import SCHEMA, Result

PATH = Path(__file__).with_name("bench.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: Mapping[object, str] = {float: "number", str: "string", bool: "boolean"}
_INT64 = "int64"  # the numbers that `edgebert.bench.codec` reads
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*)$")


def schema_of(record_class: type) -> JsonObject:
    """Return the JSON Schema (draft 2020-12) of a dataclass of dataclasses, tuples, mappings and plain values.

    Every dataclass becomes an entry of `$defs`, with the descriptions of its docstring.
    """
    definitions: dict[str, JsonValue] = {_INT64: {"type": "integer", "minimum": 1 - 2**63, "maximum": 2**63 - 1}}
    for found in sorted(_records(record_class), key=lambda record: record.__name__):
        definitions[found.__name__] = _definition(found)
    family, _, major = SCHEMA.partition("/")
    return {
        "$schema": DIALECT,
        "$id": f"urn:edgebert:schema:{family}:{major}",
        "title": SCHEMA,
        "$ref": f"#/$defs/{record_class.__name__}",
        "$defs": definitions,
    }


def _records(record_class: type) -> set[type]:
    """Return a dataclass and every dataclass that it holds."""
    found: set[type] = set()
    waiting = [record_class]
    while waiting:
        record = waiting.pop()
        if record not in found:
            found.add(record)
            waiting += [held for hint in typing.get_type_hints(record).values() for held in _held(hint)]
    return found


def _held(hint: Any) -> Iterator[type]:
    """Yield the dataclasses in an annotation; typing.Any because annotations have no common type."""
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        yield hint
    if get_origin(hint) is not Literal:
        for argument in get_args(hint):
            yield from _held(argument)


def _definition(record_class: type) -> JsonObject:
    text, attributes = _described(record_class)
    hints = typing.get_type_hints(record_class)
    fields = dataclasses.fields(record_class)
    properties: dict[str, JsonValue] = {}
    for field in fields:
        entry = dict(_of_hint(hints[field.name]))
        if (record_class, field.name) == (Result, "schema"):
            entry = {"const": SCHEMA}
        properties[field.name] = {**entry, "description": attributes[field.name]} if field.name in attributes else entry
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {
        "type": "object",
        "description": text,
        "properties": properties,
        "required": required,
        "additionalProperties": True,
    }


def _of_hint(hint: Any) -> JsonObject:
    """Return the schema of an annotation; the mirror of `edgebert.bench.codec._decoded`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only `X | None` is used in the schema
        wanted = next(argument for argument in arguments if argument is not type(None))
        return {"anyOf": [_of_hint(wanted), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        pair = [_of_hint(argument) for argument in arguments]
        return {"type": "array", "prefixItems": pair, "minItems": len(pair), "maxItems": len(pair)}
    if origin is tuple:
        return {"type": "array", "items": _of_hint(arguments[0])}
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if hint is int:
        return {"$ref": f"#/$defs/{_INT64}"}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    assert isinstance(origin, type)
    assert issubclass(origin, Mapping), hint
    return {"type": "object", "additionalProperties": _of_hint(arguments[1])}


def _described(record_class: type) -> tuple[str, dict[str, str]]:
    """Return the text of a dataclass's docstring, and that of each field under its `Attributes:`."""
    before, _, after = inspect.cleandoc(record_class.__doc__ or "").partition("\nAttributes:\n")
    attributes: dict[str, str] = {}
    name = ""
    for line in after.splitlines():
        if found := _ATTRIBUTE.match(line):
            name, attributes[found[1]] = found[1], found[2]
        elif name:
            attributes[name] = f"{attributes[name]} {line.strip()}".strip()
    return " ".join(before.split()), attributes


def main(arguments: Sequence[str]) -> int:
    """Write the file, or say whether it is what would be written."""
    if list(arguments) not in (["--check"], ["--write"]):
        sys.stderr.write("usage: python -m edgebert.bench.json_schema --check|--write\n")
        return 2
    text = dump_json(schema_of(Result))
    if arguments[0] == "--write":
        PATH.write_text(text, encoding="utf-8")
        return 0
    if PATH.is_file() and PATH.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{PATH.name} is not what `edgebert.bench.schema` says; write it with --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
