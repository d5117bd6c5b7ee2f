"""What one version of TensorRT answers when our code asks it for a name or calls something: the part of the checker that reads the table.

Every question is recorded as a `Use`, with the place of the name in our source; a wrong one as a `Finding` too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.tensorrt.api import Api, Class, Signature
from tests.tensorrt.kinds import (
    NOTHING,
    PLAIN,
    ClassObject,
    Fields,
    Instance,
    Items,
    Kind,
    Known,
    Literal,
    MemberName,
    Module,
    Place,
    Routine,
    Unknown,
)

_OF_ANY_CLASS = frozenset({"__name__", "__qualname__", "__doc__", "__members__", "__module__", "__class__"})
_OF_ANY_MODULE = frozenset({"__name__", "__file__", "__doc__", "__path__"})
# A subclass may define either: the second is what TensorRT calls where it is there.
_EITHER = {"reallocate_output": "reallocate_output_async", "reallocate_output_async": "reallocate_output"}


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's in our code.

    Attributes:
        place: where the name stands.
        owner: the class that is asked, "" for the module; of a keyword, CLASS.METHOD.
        name: as it is written.
        what: attribute, keyword, guard (asked whether it is there), override, or call, whose place is the opening bracket.
        present: whether the version has it.
    """

    place: Place
    owner: str
    name: str
    what: str
    present: bool

    @property
    def full_name(self) -> str:
        """As our code would write it."""
        return ".".join(part for part in ("trt", self.owner, self.name) if part)


@dataclass(frozen=True)
class Finding:
    """Something that our code says and a version does not know: source, line, version, and a sentence."""

    file: str
    line: int
    version: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: TensorRT {self.version}: {self.text}"


class Lookups:
    """The questions to one version."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.file = ""
        self.uses: dict[tuple[Place, str], Use] = {}  # of one pass
        self.findings: dict[tuple[str, int, str], Finding] = {}
        self._tolerant = 0
        # Names that nobody but TensorRT gives a method or property: a second net under what the checker does not follow.
        self.telling_names = frozenset(
            name
            for cls in api.classes.values()
            if cls.members is None
            for name in (*cls.methods, *cls.properties)
            if "_" in name.strip("_") and not name.startswith("_")
        )

    @contextmanager
    def tolerance(self, tolerant: bool) -> Iterator[None]:
        """Within it, a name may be missing: an `except AttributeError` catches it."""
        self._tolerant += tolerant
        yield
        self._tolerant -= tolerant

    def find(self, node: ast.AST, text: str) -> None:
        """Record a finding at a node."""
        line = getattr(node, "lineno", 0)
        self.findings.setdefault((self.file, line, text), Finding(self.file, line, self.api.version, text))

    def use(self, place: Place, owner: str, name: str, what: str, present: bool) -> None:
        """Record a name."""
        self.uses.setdefault((place, name), Use(place, owner, name, what, present))

    # Names.

    def attribute(self, receiver: Kind, name: str, node: ast.AST, place: Place) -> Kind:
        """Return what `receiver.name` is; a finding where the version does not have it."""
        owner = owner_of(receiver)
        found = self.member(receiver, name)
        if found is not None and (name.startswith("__") and name != "__init__"):
            return found
        guarded = self._tolerant > 0
        self.use(place, owner, name, "guard" if guarded else "attribute", found is not None)
        if found is None and not guarded:
            self.find(node, f"`{'.'.join(part for part in ('trt', owner, name) if part)}` does not exist")
        return Unknown(f"`{name}` does not exist") if found is None else found

    def member(self, receiver: Kind, name: str) -> Kind | None:
        """Return what a name of the module, a class or an instance is; None where there is none."""
        if isinstance(receiver, Module):
            return self._of_module(name)
        if isinstance(receiver, ClassObject):
            return self._of_class(self.api.classes[receiver.name], name)
        if isinstance(receiver, Instance):
            return self._of_instance(self.api.classes.get(receiver.name), name)
        return None

    def _of_module(self, name: str) -> Kind | None:
        if name == "__version__":
            return Known(frozenset({Literal(self.api.version, None)}), of_version=True)
        if name in _OF_ANY_MODULE:
            return PLAIN
        if name in self.api.classes:
            return ClassObject(name)
        if name in self.api.functions:
            return Routine("", name, self.api.functions[name])
        return self.kind_of(self.api.values[name]) if name in self.api.values else None

    def _of_class(self, cls: Class, name: str) -> Kind | None:
        if cls.members is not None and name in cls.members:
            return Instance(cls.name)
        if name in cls.classes:
            return ClassObject(cls.classes[name])
        if name in cls.methods:
            return Routine(cls.name, name, cls.methods[name], unbound=True)
        if name in cls.values:
            return self.kind_of(cls.values[name])
        return PLAIN if name in cls.properties or name in _OF_ANY_CLASS else None

    def _of_instance(self, cls: Class | None, name: str) -> Kind | None:
        if cls is None:
            return None
        if name in cls.properties:
            if cls.members is not None and name == "name":
                return MemberName(cls.name)
            return self.kind_of(cls.properties[name].type)
        if name in cls.methods:
            return Routine(cls.name, name, cls.methods[name])
        if name in cls.values:
            return self.kind_of(cls.values[name])
        return PLAIN if name in _OF_ANY_CLASS else None

    def kind_of(self, text: str) -> Kind:
        """Return what a type of the table stands for."""
        text = text.removesuffix(" | None")
        if text in self.api.classes:
            return Instance(text)
        if text.startswith(("list[", "tuple[")):
            return Items(self.kind_of(text.partition("[")[2][:-1]))
        if text == "None":
            return NOTHING
        return Unknown("the bindings do not say what type it has") if text == "object" else PLAIN

    def has(self, receiver: Kind, name: str, place: Place | None) -> bool | None:
        """Answer `hasattr`; None where the receiver is nothing of TensorRT's."""
        if not isinstance(receiver, (Module, ClassObject, Instance)):
            return None
        present = self.member(receiver, name) is not None
        if place is not None:
            self.use(place, owner_of(receiver), name, "guard", present)
        return present

    def set(self, receiver: Instance, name: str, node: ast.AST, place: Place) -> None:
        """Judge an assignment to an attribute of an instance."""
        self.attribute(receiver, name, node, place)
        cls = self.api.classes.get(receiver.name)
        if cls is not None and name in cls.names() and not (name in cls.properties and cls.properties[name].settable):
            self.find(node, f"`{receiver.name}.{name}` cannot be set")

    # Calls.

    def call(self, routine: Routine, node: ast.Call) -> Kind:
        """Return what a call gives; a finding where no overload takes these arguments."""
        full = ".".join(part for part in (routine.owner, routine.name) if part)
        if any(isinstance(item, ast.Starred) for item in node.args) or any(key.arg is None for key in node.keywords):
            self.find(node, f"the arguments of `{full}` cannot be counted: write them out")
            return self._returns(routine.overloads)
        end = Place(self.file, node.func.end_lineno or node.lineno, node.func.end_col_offset or 0)
        self.use(end, routine.owner, routine.name, "call", True)
        keywords = tuple(str(key.arg) for key in node.keywords)
        positional = len(node.args) - routine.unbound
        known = {parameter.name for shape in routine.overloads for parameter in shape.parameters}
        for keyword in node.keywords:
            place = Place(self.file, keyword.lineno, keyword.col_offset)
            self.use(place, full, str(keyword.arg), "keyword", keyword.arg in known)
        fitting = tuple(shape for shape in routine.overloads if shape.accepts(positional, keywords))
        if not fitting:
            self.find(
                node, f"`{full}` does not take {_counted(positional, keywords)}; it takes {_shown(routine.overloads)}"
            )
        return self._returns(fitting or routine.overloads)

    def construct(self, cls: ClassObject, node: ast.Call) -> Kind:
        """Return what calling a class gives."""
        overloads = self.api.classes[cls.name].methods.get("__init__", ())
        if not overloads:
            self.find(node, f"`{cls.name}` has no constructor")
        else:
            self.call(Routine(cls.name, "__init__", overloads), node)
        return Instance(cls.name)

    def _returns(self, overloads: tuple[Signature, ...]) -> Kind:
        kinds = {self.kind_of(shape.returns) for shape in overloads}
        return kinds.pop() if len(kinds) == 1 else Unknown("its overloads return different types")

    def carries_names(self, kind: Kind) -> bool:
        """Whether a value has attributes that must not pass out of sight; enum members and shapes are only data."""
        if isinstance(kind, Items):
            return self.carries_names(kind.element)
        if isinstance(kind, Fields):
            return any(map(self.carries_names, kind.elements))
        if isinstance(kind, Instance):
            cls = self.api.classes.get(kind.name)
            return cls is None or (cls.members is None and not self.api.is_subclass(kind.name, "Dims"))
        return isinstance(kind, (Module, ClassObject, Routine))

    # Subclasses.

    def subclass(self, base: str, definition: ast.ClassDef) -> None:
        """Judge a subclass of ours: it defines what TensorRT calls, and takes the arguments that TensorRT gives."""
        overrides = self.api.classes[base].overrides
        methods = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
        for name, parameters in overrides.items():
            method = methods.get(name)
            if method is not None:
                place = Place(self.file, method.lineno, method.col_offset + len("def "))
                self.use(place, base, name, "override", True)
                self._override(base, method, parameters)
            elif _EITHER.get(name) not in methods:
                self.find(definition, f"`{definition.name}` does not define `{name}`, which `trt.{base}` wants")
        for name, method in methods.items():
            if not (name.startswith("_") or name in overrides or method.decorator_list):
                self.find(
                    method, f"TensorRT never calls `{base}.{name}`: a misspelling, or a method of our own: `_{name}`"
                )

    def _override(self, base: str, method: ast.FunctionDef, parameters: tuple[str, ...]) -> None:
        arguments = method.args
        most = len(arguments.posonlyargs) + len(arguments.args) - 1  # without `self`
        least = most - len(arguments.defaults)
        fits = least <= len(parameters) and (len(parameters) <= most or arguments.vararg is not None)
        if not fits or any(default is None for default in arguments.kw_defaults):
            wanted = ", ".join(("self", *parameters))
            self.find(
                method, f"TensorRT calls `{base}.{method.name}({wanted})`, ours takes {most} arguments after `self`"
            )

    def member_names(self, kind: MemberName, literals: frozenset[Literal]) -> None:
        """Record texts that our code compares with the names of an enum's members."""
        members = self.api.classes[kind.enum].members or {}
        for literal in literals:
            if isinstance(literal.value, str) and literal.place is not None:
                self.use(literal.place, kind.enum, literal.value, "guard", literal.value in members)


def owner_of(kind: Kind) -> str:
    """Return the class that a question is asked of, "" for the module."""
    return kind.name if isinstance(kind, (ClassObject, Instance)) else ""


def _counted(positional: int, keywords: tuple[str, ...]) -> str:
    named = "".join(f", `{keyword}`" for keyword in keywords)
    return f"{positional} arguments by position{named}"


def _shown(overloads: tuple[Signature, ...]) -> str:
    shapes = (
        ", ".join(f"{parameter.name or '_'}{'=' * parameter.optional}" for parameter in shape.parameters)
        for shape in overloads
    )
    return " or ".join(f"({shape})" for shape in shapes) or "an unknown number"
