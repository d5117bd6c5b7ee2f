"""Type stubs of a version of TensorRT, generated from its table, and mypy over our modules with them.

The stubs are made when a test runs, in a temporary folder; nothing of them is kept. Ours are checked as copies in which the module
`trt` is the stubs' module: there a parameter cannot be annotated as one module, so `trt: ModuleType` hides every name from mypy.
"""

from __future__ import annotations

import ast
import keyword
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.tensorrt.api import Api, Class, Signature
from tests.tensorrt.program import MODULE_NAMES, dotted

_HEAD = """\
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, overload
from typing_extensions import Buffer, Never, Self

__version__: str
"""
# Other packages are not looked into, which would take a minute: what follows from that is not held against our code.
_CONFIG = """\
[mypy]
strict = True
python_version = 3.10
explicit_package_bases = True
ignore_missing_imports = True
follow_imports = skip
disallow_subclassing_any = False
disallow_untyped_decorators = False
warn_return_any = False
warn_unused_ignores = False
[mypy-numpy.*,PIL.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
# What gives None where it fails, as the reference has it (section 2.3): our code has to look.
_MAY_FAIL = re.compile(
    r"create_(network|builder_config|timing_cache|execution_context)|build_\w+|deserialize_\w+|serialize"
)
_WRITTEN = {
    "buffer": "Buffer",
    "capsule": "object",
    "object": "Any",
    "list": "list[Any]",
    "tuple": "tuple[Any, ...]",
    "dict": "dict[str, Any]",
}
_OF_ENUMS = """\
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    def __lt__(self, other: Self) -> bool: ...
    def __le__(self, other: Self) -> bool: ...
    def __gt__(self, other: Self) -> bool: ...
    def __ge__(self, other: Self) -> bool: ...
    def __hash__(self) -> int: ...
"""


@dataclass(frozen=True)
class Complaint:
    """An error of mypy's: file, line, text with its code."""

    file: str
    line: int
    text: str


def stub_text(api: Api) -> str:
    """Return the stubs of a version as one module."""
    lines = [_HEAD]
    for name, cls in api.classes.items():
        if "." not in name:
            lines += [*_class(api, cls, ""), ""]
    for name, overloads in api.functions.items():
        lines += _function(name, overloads, "", first="")
    lines += [f"{name}: {_written(text, given=False)}" for name, text in api.values.items() if name != "bool"]
    return "\n".join(lines) + "\n"


def _class(api: Api, cls: Class, indent: str) -> Iterator[str]:
    short = cls.name.rpartition(".")[2]
    if short != cls.type.rpartition(".")[2]:
        yield f"{indent}{short} = {cls.type}"
        return
    base = f"({cls.bases[0]})" if cls.bases and cls.bases[0] in api.classes else ""
    yield f"{indent}class {short}{base}:"
    inner = f"{indent}    "
    known = api.classes[cls.bases[0]].names() if base else frozenset()
    for attribute, inside in cls.classes.items():
        if inside == f"{cls.name}.{attribute}":
            yield from _class(api, api.classes[inside], inner)
        else:
            yield f"{inner}{attribute} = {inside}"
    if cls.members is not None:
        yield from (f"{inner}{member}: ClassVar[{cls.name}]" for member in cls.members if not keyword.iskeyword(member))
        yield from (inner + line.strip() for line in _OF_ENUMS.splitlines())
    yield from (f"{inner}{name}: ClassVar[{_written(text, given=False)}]" for name, text in cls.values.items())
    for name, overloads in cls.methods.items():
        if name not in ("__iter__", "__enter__", "__exit__", "__int__", "__index__", "__eq__", "__ne__", "__hash__"):
            yield from _function(name, _shape(cls, name, overloads), inner, first="self")
    for name, attribute_of in cls.properties.items():
        if name not in known:
            yield from _property(name, attribute_of.type, attribute_of.settable, inner)
    if {"__len__", "__getitem__"} <= set(cls.methods):  # Python iterates over that, type checkers want to be told
        yield f"{inner}def __iter__(self) -> Iterator[{_element(cls)}]: ..."
    if cls.is_buffer:
        yield f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ..."
    yield f"{inner}def __init_subclass__(cls) -> None: ..."


def _shape(cls: Class, name: str, overloads: tuple[Signature, ...]) -> tuple[Signature, ...] | tuple[str, ...]:
    """Return the overloads of a method, or how a subclass defines it where that is another shape."""
    override = cls.overrides.get(name)
    if override is None or not overloads or override == tuple(each.name for each in overloads[0].parameters):
        return overloads
    given = "".join(f", {parameter}: Any" for parameter in override)
    return (f"def {name}(self{given}) -> {_written(overloads[0].returns, given=False)}: ...",)


def _function(
    name: str, overloads: tuple[Signature, ...] | tuple[str, ...], indent: str, *, first: str
) -> Iterator[str]:
    if not overloads and name == "__init__":
        yield f"{indent}def __init__(self, no_constructor_is_defined: Never) -> None: ..."
    elif not overloads:
        yield f"{indent}def {name}({first}, *arguments: Any) -> Any: ..."
    for shape in overloads:
        if len(overloads) > 1:
            yield f"{indent}@overload"
        yield indent + (shape if isinstance(shape, str) else _definition(name, shape, first))


def _definition(name: str, shape: Signature, first: str) -> str:
    parts = [first] if first else []
    for index, parameter in enumerate(shape.parameters):
        written = parameter.name if parameter.name and not keyword.iskeyword(parameter.name) else f"__{index}"
        # pybind11 allows a default before a parameter without one, Python does not.
        default = " = ..." if all(each.optional for each in shape.parameters[index:]) else ""
        parts.append(f"{written}: {_written(parameter.type, given=True)}{default}")
    back = "None" if name == "__init__" else _written(shape.returns, given=False)
    return f"def {name}({', '.join(parts)}) -> {back}{' | None' if _MAY_FAIL.fullmatch(name) else ''}: ..."


def _element(cls: Class) -> str:
    return _written(cls.methods["__getitem__"][0].returns, given=False)


def _property(name: str, text: str, settable: bool, indent: str) -> Iterator[str]:
    yield f"{indent}@property"
    yield f"{indent}def {name}(self) -> {_written(text, given=False)}: ..."
    if settable:
        yield f"{indent}@{name}.setter"
        yield f"{indent}def {name}(self, value: {_written(text, given=True)} | None) -> None: ..."


def _written(text: str, *, given: bool) -> str:
    """Return a type of the table as stubs write it; what is `given` to TensorRT may be more than what it gives."""
    inner = text.removesuffix(" | None")
    suffix = " | None" if inner != text else ""
    head, bracket, rest = inner.partition("[")
    if bracket:
        parts = [_written(part.strip(), given=given) for part in rest[:-1].split(", ")] if "[" not in rest else ["Any"]
        return f"{'Sequence' if given and head == 'list' else head}[{', '.join(parts)}]{suffix}"
    if inner == "Dims" and given:
        return f"Dims | Sequence[int]{suffix}"
    return _WRITTEN.get(inner, inner) + suffix


def with_module_of_stubs(text: str) -> str:
    """Return a source in which `trt` is the stubs' module everywhere; lines stay where they are."""
    lines = text.splitlines()
    renamed = [place for node in ast.walk(ast.parse(text)) for place in _bound(node)]
    for line, column, name in sorted(renamed, reverse=True):
        row = lines[line - 1].encode()
        lines[line - 1] = (row[:column] + b"given_" + row[column:]).decode()
        assert row[column:].startswith(name.encode()), (line, column, name)
    return "\n".join((*lines, *(f"import tensorrt as {name}" for name in MODULE_NAMES), ""))


def _bound(node: ast.AST) -> Iterator[tuple[int, int, str]]:
    """Yield the places where a source binds the module to a name of its own."""
    if isinstance(node, (ast.arg, ast.keyword)) and node.arg in MODULE_NAMES:
        yield node.lineno, node.col_offset, str(node.arg)
    elif isinstance(node, ast.Name) and node.id in MODULE_NAMES and isinstance(node.ctx, ast.Store):
        yield node.lineno, node.col_offset, node.id


def complaints(api: Api, sources: Mapping[str, str], folder: Path) -> list[Complaint]:
    """Run mypy, strict, over sources with the stubs of a version.

    Args:
        api: the version.
        sources: path -> text. They see each other and the stubs; what else they import is `Any` here, since `make check` has it.
        folder: where stubs, copies and mypy's cache go; one folder for all versions saves time.
    """
    checked, stubs = folder / f"checked-{api.version}", folder / f"stubs-{api.version}"
    (stubs / "tensorrt").mkdir(parents=True)
    (stubs / "tensorrt" / "__init__.pyi").write_text(stub_text(api), encoding="utf-8")
    names = {f"{dotted(file).replace('.', '/')}.py": file for file in sources}
    for name, file in names.items():
        (checked / name).parent.mkdir(parents=True, exist_ok=True)
        (checked / name).write_text(with_module_of_stubs(sources[file]), encoding="utf-8")
    config = folder / "mypy.ini"
    config.write_text(_CONFIG, encoding="ascii")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(folder / "cache")]
    command += ["--no-error-summary", "--hide-error-context", "--no-pretty", *names]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join((str(stubs), str(checked)))}
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=checked, env=environment, timeout=600
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", ran.stdout, re.MULTILINE)
    assert ran.returncode == 0 or found, ran.stdout
    return [Complaint(names[file], int(line), text) for file, line, text in found if file in names]
