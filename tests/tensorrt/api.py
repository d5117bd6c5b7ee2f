"""The API of one version of TensorRT as a table: read from the lines that `introspect.py` prints, and asked by the checks.

Types are written as Python writes them: `int`, `list[Dims]`, `ILogger.Severity`; `buffer` and `capsule` stand for what pybind11 calls
so. What the bindings name in C++ or leave unsaid is `object`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_PREFIX = re.compile(r"\b(?:tensorrt_bindings\.(?:tensorrt\.)?|nvinfer1::(?:v_\d_\d::)?|nvonnxparser::)")
# What a newer pybind11 writes, and what an older one wrote (reference, section 11.1 step 7).
_SPELLINGS = {
    "typing.SupportsInt": "int",
    "typing.SupportsIndex": "int",
    "typing.SupportsFloat": "float",
    "typing_extensions.Buffer": "buffer",
    "typing_extensions.CapsuleType": "capsule",
    "collections.abc.Sequence": "list",
    "collections.abc.Iterable": "list",
    "Sequence": "list",
    "Iterable": "list",
    "List": "list",
    "Tuple": "tuple",
    "Dict": "dict",
}
_CPP_NAMES = {"IParserError": "ParserError", "IBuilder": "Builder", "IRuntime": "Runtime"}  # classes renamed in Python
_PLAIN = frozenset(
    {"int", "float", "str", "bool", "bytes", "buffer", "capsule", "None", "object", "list", "tuple", "dict"}
)


@dataclass(frozen=True)
class Parameter:
    """One parameter: `name` is "" where it has none and only a position counts."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """What a function takes and returns; of a method without `self`."""

    parameters: tuple[Parameter, ...]
    returns: str

    def accepts(self, positional: int, keywords: tuple[str, ...]) -> bool:
        """Whether a call with so many positional arguments and these keywords fits."""
        rest = self.parameters[positional:]
        named = {parameter.name for parameter in rest if parameter.name}
        if positional > len(self.parameters) or not named.issuperset(keywords):
            return False
        return all(parameter.optional or parameter.name in keywords for parameter in rest)


@dataclass(frozen=True)
class Property:
    """An attribute of the instances of a class."""

    type: str
    settable: bool


@dataclass(frozen=True)
class Class:
    """A class of the module.

    Attributes:
        name: as found in the module, dotted where it lies inside another class.
        type: its own name, another one where the module has a class twice.
        bases: names of its bases inside the module, nearest first.
        members: of an enum, member -> integer; None for others.
        methods: name -> overloads, `__init__` among them where instances can be made.
        overrides: what a subclass written in Python may define -> the names of the parameters after `self`.
        values: constants of the class -> type.
        classes: classes inside it -> their dotted name.
        is_buffer: whether instances have the buffer protocol.
    """

    name: str
    type: str
    bases: tuple[str, ...]
    members: Mapping[str, int] | None
    methods: Mapping[str, tuple[Signature, ...]]
    properties: Mapping[str, Property]
    overrides: Mapping[str, tuple[str, ...]]
    values: Mapping[str, str]
    classes: Mapping[str, str]
    is_buffer: bool

    def names(self) -> frozenset[str]:
        """Return every attribute name of the class and its instances."""
        return frozenset({*(self.members or ()), *self.methods, *self.properties, *self.values, *self.classes})

    def without(self, name: str) -> Class:
        """Return the class as if it had never had a name."""
        return replace(
            self,
            members=None if self.members is None else _without(self.members, name),
            methods=_without(self.methods, name),
            properties=_without(self.properties, name),
            overrides=_without(self.overrides, name),
            values=_without(self.values, name),
            classes=_without(self.classes, name),
        )


@dataclass(frozen=True)
class Api:
    """Everything public of one version: classes by dotted name, functions and values of the module."""

    version: str
    classes: Mapping[str, Class]
    functions: Mapping[str, tuple[Signature, ...]]
    values: Mapping[str, str]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The version as numbers: (10, 13, 3, 9)."""
        return tuple(int(part) for part in self.version.split(".") if part.isdigit())

    def names(self) -> frozenset[str]:
        """Return every name of the module, `__version__` among them."""
        return frozenset(
            {*(name for name in self.classes if "." not in name), *self.functions, *self.values, "__version__"}
        )

    def has(self, owner: str, name: str) -> bool:
        """Whether the class `owner`, or the module where it is "", has a name."""
        if not owner:
            return name in self.names()
        return owner in self.classes and name in self.classes[owner].names()

    def is_subclass(self, name: str, base: str) -> bool:
        """Whether one class is another or is derived from it."""
        return name == base or (name in self.classes and base in self.classes[name].bases)

    def without(self, owner: str, name: str) -> Api:
        """Return the table as if `owner`, or the module where it is "", had never had a name; subclasses lose it too."""
        if owner:
            kept = {key: cls for key, cls in self.classes.items() if key != f"{owner}.{name}"}
            lost = {key: cls.without(name) for key, cls in kept.items() if self.is_subclass(key, owner)}
            return replace(self, classes={**kept, **lost})
        return replace(
            self,
            classes={key: cls for key, cls in self.classes.items() if key.split(".")[0] != name},
            functions=_without(self.functions, name),
            values=_without(self.values, name),
        )


def _without(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


def api_from_json(raw: Mapping[str, Any]) -> Api:
    """Read what `introspect.py` printed."""
    known = frozenset(raw["classes"])
    return Api(
        version=raw["version"],
        classes={name: _class(name, entry, known) for name, entry in raw["classes"].items()},
        functions={name: _signatures(lines, known, is_method=False) for name, lines in raw["functions"].items()},
        values={name: normalised(text, known) for name, text in raw["values"].items()},
    )


def _class(name: str, raw: Mapping[str, Any], known: frozenset[str]) -> Class:
    methods = {method: _signatures(lines, known, is_method=True) for method, lines in raw["methods"].items()}
    overrides = {
        method: tuple(parameter.name for parameter in overloads[0].parameters)
        for method, overloads in methods.items()
        if overloads and not method.startswith("__")
    }
    # The class's own example of a subclass decides: `IStreamWriter.write` takes data and size in C++, only `data` in Python.
    shown = {line.split("(")[0]: _signature(line, known, is_method=True) for line in raw["overridden"]}
    overrides.update(
        {method: tuple(parameter.name for parameter in shape.parameters) for method, shape in shown.items() if shape}
    )
    return Class(
        name=name,
        type=raw["type"],
        bases=tuple(raw["bases"]),
        members=raw["members"],
        methods=methods,
        properties={
            key: Property(
                type=normalised(doc.rpartition("-> ")[2].split("\n")[0] or "object", known), settable=settable
            )
            for key, (doc, settable) in raw["properties"].items()
        },
        overrides=_without(overrides, "__init__"),
        values={key: normalised(text, known) for key, text in raw["values"].items()},
        classes=raw["classes"],
        is_buffer=raw["is_buffer"],
    )


def _signatures(lines: list[str], known: frozenset[str], *, is_method: bool) -> tuple[Signature, ...]:
    found = (_signature(line, known, is_method=is_method) for line in lines)
    return tuple(signature for signature in found if signature is not None)


def _signature(line: str, known: frozenset[str], *, is_method: bool) -> Signature | None:
    """Read `name(self: X, arg: type = default) -> type`; None for a line that is no signature."""
    matched = re.match(r"^\w+\((.*)\)(?: -> (.*?))?:?$", line.strip())
    if matched is None:
        return None
    parameters = [_parameter(part, known) for part in _split(matched[1]) if part not in ("*", "/")]
    return Signature(
        parameters=tuple(parameters[1:] if is_method else parameters),
        returns=normalised(matched[2] or "object", known),
    )


def _parameter(text: str, known: frozenset[str]) -> Parameter:
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition(" = ")
    positional = re.fullmatch(r"arg\d+", name.strip()) is not None
    return Parameter(
        name="" if positional else name.partition("=")[0].strip(),
        type=normalised(kind.strip() or "object", known),
        optional=bool(equals) or "=" in name,
    )


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def normalised(text: str, known: frozenset[str]) -> str:
    """Return a type in the one spelling of this module; `known` are the classes of the version."""
    plain = _PREFIX.sub("", text.strip())
    for old, new in _SPELLINGS.items():
        plain = re.sub(rf"(?<![\w.]){re.escape(old)}\b", new, plain)
    union = " | " in plain or plain.startswith("Optional[")
    head, bracket, inner = plain.partition("[")
    if union:
        parts = _split(plain[9:-1]) if plain.startswith("Optional[") else plain.split(" | ")
        found = [normalised(part, known) for part in parts if part != "None"]
        return f"{found[0]} | None" if len(found) == 1 else "object"
    if bracket and inner.endswith("]") and head in ("list", "tuple", "dict"):
        return f"{head}[{', '.join(normalised(part, known) for part in _split(inner[:-1]))}]"
    name = _CPP_NAMES.get(plain, plain)
    return name if name in known or name in _PLAIN else "object"
