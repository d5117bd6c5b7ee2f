"""Run in a process of its own, once for each version: print as JSON what the binding wheel on PYTHONPATH has, read from its docstrings.

Nothing is called and nothing is decided here: `api.py` reads the lines. Standard library only, since the process has no other package.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any

MODULE = "tensorrt_bindings"


def described(module: Any) -> dict[str, object]:
    """Return the classes, functions and values of a module, with the docstring lines that hold their signatures."""
    classes: dict[str, object] = {}
    functions: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for name in _public(dir(module)):
        item = getattr(module, name)
        if inspect.isclass(item):
            _describe_class(item, name, classes)
        elif inspect.isfunction(item):
            functions[name] = [f"{name}{_of_python(item)}"]
        elif inspect.isbuiltin(item):
            functions[name] = _lines(item.__doc__)
        elif not inspect.ismodule(item):
            values[name] = _qualified(type(item))
    return {"version": module.__version__, "classes": classes, "functions": functions, "values": values}


def _describe_class(cls: Any, name: str, classes: dict[str, object]) -> None:
    """Add a class and the classes inside it; the first name of several is the one that the type itself has."""
    found: dict[str, Any] = {
        "type": _qualified(cls),
        "bases": [_qualified(base) for base in cls.__mro__[1:] if base.__module__.startswith(MODULE)],
        "members": None,
        "methods": {},
        "properties": {},
        "values": {},
        "classes": {},
        "overridden": re.findall(r"def (\w+\(self.*\))", cls.__doc__ or ""),
        "is_buffer": "buffer protocol" in (cls.__doc__ or ""),
    }
    if hasattr(cls, "__members__"):
        found["members"] = {member: int(value) for member, value in cls.__members__.items()}
    classes[name] = found
    for attribute in dir(cls):
        item = inspect.getattr_static(cls, attribute)
        of_object = hasattr(object, attribute) and (attribute != "__init__" or item is object.__init__)
        if of_object or "pybind11" in attribute or attribute == "__entries":
            continue
        if isinstance(item, property):
            found["properties"][attribute] = [(item.fget.__doc__ if item.fget else None) or "", item.fset is not None]
        elif inspect.isclass(item):
            found["classes"][attribute] = _qualified(item)
            _describe_class(item, _qualified(item), classes)
        elif callable(item) or hasattr(item, "__func__"):
            found["methods"][attribute] = _lines(getattr(cls, attribute).__doc__)
        elif found["members"] is None or attribute not in found["members"]:
            found["values"][attribute] = _qualified(type(item))


def _public(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def _qualified(cls: Any) -> str:
    return str(cls.__qualname__)


def _of_python(function: Any) -> str:
    """Return the signature of a function that the wheel's `__init__` adds in Python."""
    names = ", ".join(f"{name}: object" for name in inspect.signature(function).parameters)
    return f"({names}) -> object"


def _lines(docstring: str | None) -> list[str]:
    """Return the signature of a function, or those of its overloads."""
    lines = [line.strip() for line in (docstring or "").strip().splitlines()]
    if not lines:
        return []
    if len(lines) > 1 and lines[1] == "Overloaded function.":
        return [line.split(". ", 1)[1] for line in lines if re.match(r"\d+\. \w+\(", line)]
    return lines[:1]


if __name__ == "__main__":
    bindings = importlib.import_module(MODULE)
    sys.modules["tensorrt"] = bindings
    json.dump(described(bindings), sys.stdout)
