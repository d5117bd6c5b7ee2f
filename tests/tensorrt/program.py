"""Our own sources as the checker sees them: modules, and the functions and classes in them by a key that lasts from pass to pass."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef
MODULE_NAMES = ("trt", "_trt")  # what the module object is called everywhere; `tensorrt` only where it is imported


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function or method of ours.

    Attributes:
        key: file, line and name.
        file: the source it stands in.
        node: its syntax.
        owner: key of the class whose method it is, "" for none.
        is_nested: whether it stands inside a function, where nobody outside can call it by name.
    """

    key: str
    file: str
    node: AnyFunction
    owner: str
    is_nested: bool

    @property
    def decorators(self) -> frozenset[str]:
        """The last words of its decorators."""
        names = set()
        for decorator in self.node.decorator_list:
            item = decorator.func if isinstance(decorator, ast.Call) else decorator
            names.add(item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", ""))
        return frozenset(names)

    def parameters(self) -> list[ast.arg]:
        """Return its named parameters in order, `self` among them."""
        arguments = self.node.args
        return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


@dataclass(frozen=True, kw_only=True)
class OwnClassDefinition:
    """A class of ours.

    Attributes:
        key: file, line and name.
        file: the source it stands in.
        node: its syntax.
        methods: name -> key of the function.
        declared: attribute -> its annotation.
    """

    key: str
    file: str
    node: ast.ClassDef
    methods: dict[str, str] = field(default_factory=dict)
    declared: dict[str, ast.expr] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Program:
    """All sources that the checker reads together."""

    trees: Mapping[str, ast.Module]
    modules: Mapping[str, str]  # dotted name -> file
    functions: Mapping[str, Function]
    classes: Mapping[str, OwnClassDefinition]
    mentioned: frozenset[str]  # every name that is read somewhere
    blocks: tuple[
        tuple[str, int, int], ...
    ]  # file, line of the statement around it (0 for none), line of its first statement


def program_of(sources: Mapping[str, str]) -> Program:
    """Parse sources: path from the root of the checkout -> text."""
    parsed = {file: _parsed(file, text) for file, text in sources.items()}
    return Program(
        trees={file: each.trees[file] for file, each in parsed.items()},
        modules={dotted(file): file for file in parsed},
        functions={key: function for each in parsed.values() for key, function in each.functions.items()},
        classes={key: definition for each in parsed.values() for key, definition in each.classes.items()},
        mentioned=frozenset(name for each in parsed.values() for name in each.mentioned),
        blocks=tuple(block for each in parsed.values() for block in each.blocks),
    )


@functools.lru_cache(maxsize=64)  # mutants differ in one file of many
def _parsed(file: str, text: str) -> Program:
    tree = ast.parse(text, file)
    functions: dict[str, Function] = {}
    classes: dict[str, OwnClassDefinition] = {}
    _collect(file, tree, "", False, functions, classes)
    for definition in classes.values():
        _declare(definition)
    mentioned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    mentioned |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    blocks = tuple((file, *block) for block in _blocks(tree))
    return Program(
        trees={file: tree},
        modules={},
        functions=functions,
        classes=classes,
        mentioned=frozenset(mentioned),
        blocks=blocks,
    )


def _blocks(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Yield the blocks of a source: line of the statement around, line of the first statement."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield getattr(node, "lineno", 0), block[0].lineno


def _declare(definition: OwnClassDefinition) -> None:
    """Note the attributes that a class declares, in its body or at `self.x: ...` in its methods."""
    for node in ast.walk(definition.node):
        if not isinstance(node, ast.AnnAssign):
            continue
        if isinstance(node.target, ast.Name) and node in definition.node.body:
            definition.declared[node.target.id] = node.annotation
        elif isinstance(node.target, ast.Attribute) and getattr(node.target.value, "id", "") == "self":
            definition.declared[node.target.attr] = node.annotation


def key_of(file: str, node: AnyFunction | ast.ClassDef) -> str:
    """Return the key of a function or class."""
    return f"{file}:{node.lineno}:{node.name}"


def _collect(
    file: str,
    node: ast.AST,
    owner: str,
    is_nested: bool,
    functions: dict[str, Function],
    classes: dict[str, OwnClassDefinition],
) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, AnyFunction):
            key = key_of(file, child)
            functions[key] = Function(key=key, file=file, node=child, owner=owner, is_nested=is_nested)
            if owner:
                classes[owner].methods[child.name] = key
            _collect(file, child, "", True, functions, classes)
        elif isinstance(child, ast.ClassDef):
            key = key_of(file, child)
            classes[key] = OwnClassDefinition(key=key, file=file, node=child)
            _collect(file, child, key, is_nested, functions, classes)
        else:
            _collect(file, child, owner, is_nested, functions, classes)


def dotted(file: str) -> str:
    """Return the name that a file is imported by; `export/` and `calibration/` are shipped inside `edgebert`."""
    parts = list(Path(file).with_suffix("").parts)
    if parts[0] in ("export", "calibration"):
        parts.insert(0, "edgebert")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tensorrt_sources(root: Path) -> dict[str, str]:
    """Return every source of the package in which TensorRT's module occurs, and what imports from those: path from `root` -> text."""
    texts = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("edgebert", "export", "calibration")
        for path in sorted((root / folder).rglob("*.py"))
        if not path.relative_to(root).as_posix().startswith(("edgebert/export/", "edgebert/calibration/"))  # links
    }
    chosen = {file for file, text in texts.items() if _WORDS.search(text) and _mentions_module(ast.parse(text))}
    modules = {dotted(file) for file in chosen}
    last_names = re.compile("|".join(rf"\b{module.rpartition('.')[2]}\b" for module in modules) or "(?!)")
    chosen |= {file for file, text in texts.items() if last_names.search(text) and _imports(ast.parse(text)) & modules}
    return {file: text for file, text in texts.items() if file in chosen}


_WORDS = re.compile(r"\btrt\b|\b_trt\b|\btensorrt\b")


def _imports(tree: ast.Module) -> set[str]:
    """Return the modules that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _mentions_module(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        names = {
            getattr(node, "id", None) if isinstance(node, ast.Name) else None,
            node.arg if isinstance(node, ast.arg) else None,
            node.attr if isinstance(node, ast.Attribute) else None,
        }
        if names & set(MODULE_NAMES):
            return True
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "tensorrt" for alias in node.names):
            return True
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(("trt.", "tensorrt."))
        ):
            return True
    return False
