"""Holds a double of the module `tensorrt` against the table of a version: it may know less than the real one, never more or otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType

from tests.tensorrt.api import Api, Class, Parameter, Signature
from tests.tensorrt.lookups import Use


def double_findings(double: ModuleType, api: Api, uses: Iterable[Use] = ()) -> list[str]:
    """Return what a double says that the version does not, and what it lacks that our code asks the version for.

    Args:
        double: the module.
        api: the version that it stands for.
        uses: what our code asks of that version, as `usage_of` finds it.
    """
    found = []
    for name in (name for name in vars(double) if not name.startswith("_")):
        item = getattr(double, name)
        if not api.has("", name):
            found.append(f"`{name}` does not exist")
        elif inspect.isclass(item) and name in api.classes:
            found += _class_findings(item, api.classes[name], api)
    return found + sorted(set(_lacking(double, api, uses)))


def _class_findings(cls: type, real: Class, api: Api) -> Iterator[str]:
    members = getattr(cls, "__members__", None)
    if members is not None:
        yield from _enum_findings(members, real)
        return
    if real.members is not None:
        yield f"`{real.name}` is an enum"
    for name, item in _own_attributes(cls).items():
        full = f"`{real.name}.{name}`"
        if name == "__init__":
            if real.methods.get(name):  # else only TensorRT makes them, and the double as it likes
                yield from _signature_findings(full, item, real, name)
        elif name not in real.names():
            yield f"{full} does not exist"
        elif inspect.isclass(item):
            yield from _class_findings(item, api.classes[real.classes[name]], api) if name in real.classes else ()
        elif inspect.isfunction(item):
            if name not in real.methods:
                yield f"{full} is no method"
            else:
                yield from _signature_findings(full, item, real, name)
        elif isinstance(item, property) or inspect.ismemberdescriptor(item):
            yield from _property_findings(full, item, real, name)


def _enum_findings(members: dict[str, object], real: Class) -> Iterator[str]:
    for name, member in members.items():
        number = (real.members or {}).get(name)
        if number is None:
            yield f"`{real.name}.{name}` does not exist"
        elif int(member) != number:  # type: ignore[call-overload]  # members of enums turn into integers
            yield f"`{real.name}.{name}` is {number}"


def _own_attributes(cls: type) -> dict[str, object]:
    """Return what a class and its bases define, those of Python itself left out."""
    found: dict[str, object] = {}
    for part in reversed(cls.__mro__):
        if part.__module__ not in ("builtins", "collections.abc", "typing"):
            found.update(
                {name: item for name, item in vars(part).items() if not name.startswith("_") or name == "__init__"}
            )
    return found


def _property_findings(full: str, item: object, real: Class, name: str) -> Iterator[str]:
    if name not in real.properties:
        yield f"{full} is no property"
    elif isinstance(item, property) and item.fset is not None and not real.properties[name].settable:
        yield f"{full} cannot be set"


def _signature_findings(full: str, item: object, real: Class, name: str) -> Iterator[str]:
    assert callable(item)
    parameters = list(inspect.signature(item).parameters.values())[1:]
    shapes = [*real.methods[name]]
    override = real.overrides.get(name)
    if override is not None and override != tuple(each.name for each in shapes[0].parameters):
        # How a program's own class defines it, which is not how it is bound.
        shapes.append(Signature(tuple(Parameter(each, "object", optional=False) for each in override), "object"))
    if not any(_is_like(parameters, shape) for shape in shapes):
        wanted = " or ".join(f"({', '.join(each.name or '_' for each in shape.parameters)})" for shape in shapes)
        yield f"{full} takes {wanted}, not ({', '.join(each.name for each in parameters)})"


def _is_like(parameters: list[inspect.Parameter], shape: Signature) -> bool:
    """Whether a double's parameters are the first of a real overload, by name, and what it leaves out may be left out."""
    given, left_out = shape.parameters[: len(parameters)], shape.parameters[len(parameters) :]
    if len(given) < len(parameters) or not all(each.optional for each in left_out):
        return False
    for ours, real in zip(parameters, given, strict=True):
        optional = ours.default is not inspect.Parameter.empty
        if (real.name and ours.name != real.name) or (optional and not real.optional):
            return False
    return True


def _lacking(double: ModuleType, api: Api, uses: Iterable[Use]) -> Iterator[str]:
    """Yield what our code asks a version for, and the double does not have."""
    for use in uses:
        if not use.present or use.what not in ("attribute", "guard", "override") or use.name.startswith("__"):
            continue
        owner: object = double
        for part in use.owner.split(".") if use.owner else ():
            owner = getattr(owner, part, None)
        if owner is None or not (hasattr(owner, use.name) or _has_property(api, use)):
            yield f"our code asks for `{use.full_name}` ({use.place.file}:{use.place.line}), which the double lacks"


def _has_property(api: Api, use: Use) -> bool:
    """Whether a name is the `name` or `value` of an enum's members, which a class of Python's does not show."""
    cls = api.classes.get(use.owner)
    return cls is not None and cls.members is not None and use.name in ("name", "value")
