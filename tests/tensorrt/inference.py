"""What each expression of our code may be, for one version of TensorRT: an abstract interpreter over the syntax tree.

Values are the kinds of `kinds.py`. Branches on `hasattr`, on `is None` of what `getattr` gave, and on the version are decided by the
table, so that code which a version never reaches is not held against it. What passes between our functions and through our attributes
is followed: `reading.py` repeats its passes until nothing new is learned.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TypeAlias

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
    Nothing,
    OwnClass,
    OwnFunction,
    OwnInstance,
    Place,
    Routine,
    Unknown,
    constant,
    joined,
)
from tests.tensorrt.lookups import Lookups
from tests.tensorrt.program import MODULE_NAMES, Function, Program


class Env:
    """The names of a scope, and the scope around it."""

    def __init__(self, around: Env | None = None, names: dict[str, Kind] | None = None) -> None:
        self.around, self.names = around, {} if names is None else names

    def get(self, name: str) -> Kind | None:
        """Return what a name is, here or around."""
        if name in self.names:
            return self.names[name]
        return self.around.get(name) if self.around is not None else None


Condition: TypeAlias = "bool | None"


class Expressions(Lookups):
    """Kinds of expressions; `Calls` adds calls, `Reading` statements."""

    program: Program
    arguments: dict[tuple[str, str], Kind]
    returns: dict[str, Kind]
    attributes: dict[tuple[str, str], Kind]
    live: set[str]
    function_read: Function | None
    _element: Kind = Unknown("a lambda's parameter")

    # What `reading.py` defines.

    def annotation(self, node: ast.expr | None, *, file: str) -> Kind | None:
        """Return what an annotation says; None where it says nothing."""
        raise NotImplementedError

    # What `calls.py` defines.

    def given_back(self, function: Function) -> Kind:
        """Return what a call of a function of ours gives."""
        raise NotImplementedError

    # Expressions.

    def evaluate(self, node: ast.expr | None, env: Env) -> Kind:
        """Return what an expression may be, and judge what it asks of TensorRT."""
        if node is None:
            return NOTHING
        method: Callable[[ast.expr, Env], Kind] | None = getattr(self, f"_{type(node).__name__}", None)
        if method is not None:
            return method(node, env)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.evaluate(child, env)
        return PLAIN

    def _place(self, node: ast.expr, name: str) -> Place:
        """Return where the last word of an attribute stands."""
        return Place(self.file, node.end_lineno or node.lineno, (node.end_col_offset or 0) - len(name))

    def _Constant(self, node: ast.Constant, env: Env) -> Kind:
        if node.value is None:
            return NOTHING
        if isinstance(node.value, (str, int)):
            return Known(frozenset({Literal(node.value, Place(self.file, node.lineno, node.col_offset + 1))}))
        return PLAIN

    def _Name(self, node: ast.Name, env: Env) -> Kind:
        if node.id in MODULE_NAMES:
            return Module()
        found = env.get(node.id)
        if isinstance(found, OwnFunction):
            self.live.add(found.key)
        return PLAIN if found is None else found

    def _NamedExpr(self, node: ast.NamedExpr, env: Env) -> Kind:
        kind = self.evaluate(node.value, env)
        env.names[node.target.id] = kind
        return kind

    def _Attribute(self, node: ast.Attribute, env: Env) -> Kind:
        receiver = self.evaluate(node.value, env)
        if isinstance(receiver, (Module, ClassObject, Instance)):
            return self.attribute(receiver, node.attr, node, self._place(node, node.attr))
        if isinstance(receiver, (OwnInstance, OwnClass)):
            return self._own_attribute(receiver, node)
        if node.attr in MODULE_NAMES:
            return Module()
        if isinstance(receiver, Unknown):
            asked = ast.unparse(node.value)
            self.find(node, f"`{asked}.{node.attr}`: what `{asked}` is cannot be seen ({receiver.why}): annotate it")
            return receiver
        if node.attr in self.telling_names:
            asked = ast.unparse(node.value)
            self.find(
                node, f"`{asked}.{node.attr}` is a name of TensorRT's, and `{asked}` is not seen to be: annotate it"
            )
        return PLAIN

    def _own_attribute(self, receiver: OwnInstance | OwnClass, node: ast.Attribute) -> Kind:
        """Return an attribute of an instance or a class of ours: declared, assigned, a method, or TensorRT's."""
        name = node.attr
        for key in self.line(receiver.key):
            method = self.program.classes[key].methods.get(name)
            if method is not None:
                return self._method(method, receiver)
            definition = self.program.classes[key]
            declared = self.annotation(definition.declared.get(name), file=definition.file)
            if declared is not None:
                return joined(declared, self.attributes.get((key, name), NOTHING)) if declared == PLAIN else declared
            if (key, name) in self.attributes:
                return self.attributes[key, name]
            if name in definition.declared:
                return Unknown(f"its class declares `{name}`, and does not say as what")
        base = self.base_of(receiver.key)
        if base and name in self.api.classes[base].names():
            return self.attribute(Instance(base), name, node, self._place(node, name))
        return Module() if name in MODULE_NAMES else PLAIN

    def _method(self, key: str, receiver: OwnInstance | OwnClass) -> Kind:
        self.live.add(key)
        function = self.program.functions[key]
        if function.decorators & {"property", "cached_property"}:
            return self.given_back(function)
        plain = "staticmethod" in function.decorators
        bound = not plain and (isinstance(receiver, OwnInstance) or "classmethod" in function.decorators)
        return OwnFunction(key, bound=bound)

    def line(self, key: str) -> list[str]:
        """Return a class of ours and its bases that are ours."""
        found, rest = [], [key]
        while rest:
            found.append(rest.pop(0))
            bases = self.attributes.get((found[-1], "(bases)"), PLAIN)
            rest += [kind.key for kind in getattr(bases, "elements", ()) if isinstance(kind, OwnClass)]
        return found

    def base_of(self, key: str) -> str:
        """Return the class of TensorRT that a class of ours is derived from, "" for none."""
        for own in self.line(key):
            bases = self.attributes.get((own, "(bases)"), PLAIN)
            for kind in getattr(bases, "elements", ()):
                if isinstance(kind, ClassObject):
                    return kind.name
        return ""

    def _Subscript(self, node: ast.Subscript, env: Env) -> Kind:
        receiver, index = self.evaluate(node.value, env), self.evaluate(node.slice, env)
        self.compare_names(index, receiver)
        if isinstance(receiver, Items):
            return receiver if isinstance(node.slice, ast.Slice) else receiver.element
        if isinstance(receiver, Fields):
            position = index.single if isinstance(index, Known) else Known
            if isinstance(position, int) and -len(receiver.elements) <= position < len(receiver.elements):
                return receiver.elements[position]
            return joined(*receiver.elements)
        if isinstance(receiver, Known) and isinstance(receiver.single, (str, tuple)):
            return self._known_slice(receiver, node.slice, index)
        if isinstance(receiver, Instance):
            return PLAIN  # a shape's length
        return receiver if isinstance(receiver, Unknown) else PLAIN

    def _known_slice(self, receiver: Known, written: ast.expr, index: Kind) -> Kind:
        value = receiver.single
        assert isinstance(value, (str, tuple))
        if isinstance(written, ast.Slice):
            bounds = [part.value if isinstance(part, ast.Constant) else part for part in (written.lower, written.upper)]
            if not all(bound is None or isinstance(bound, int) for bound in bounds):
                return PLAIN
            lower, upper = (bound if isinstance(bound, int) else None for bound in bounds)
            return constant(value[lower:upper], receiver.of_version)
        position = index.single if isinstance(index, Known) else Known
        if isinstance(position, int) and -len(value) <= position < len(value):
            return constant(value[position], receiver.of_version)
        return PLAIN

    def _Tuple(self, node: ast.Tuple, env: Env) -> Kind:
        kinds = tuple(self.evaluate(item, env) for item in node.elts)
        known = [kind.single for kind in kinds if isinstance(kind, Known)]
        if any(isinstance(item, ast.Starred) for item in node.elts):
            return Items(joined(*(kind.element if isinstance(kind, Items) else kind for kind in kinds)))
        if len(known) == len(kinds) and known and all(isinstance(value, int) for value in known):
            return constant(tuple(known), False)
        return Fields(kinds)

    def _List(self, node: ast.List | ast.Set, env: Env) -> Kind:
        return Items(joined(*(self.evaluate(item, env) for item in node.elts)))

    _Set = _List

    def _Starred(self, node: ast.Starred, env: Env) -> Kind:
        return self.evaluate(node.value, env)

    def _Dict(self, node: ast.Dict, env: Env) -> Kind:
        keys = [self.evaluate(key, env) for key in node.keys if key is not None]
        values = [self.evaluate(value, env) for value in node.values]
        literals = frozenset(literal for key in keys if isinstance(key, Known) for literal in key.literals)
        return Items(joined(*values), literals)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, env: Env) -> Kind:
        inner = self._generators(node.generators, env)
        element = self.evaluate(node.elt, inner)
        version = self._of_version_parts(node, env)
        return version if version is not None else Items(element)

    _ListComp = _SetComp = _GeneratorExp = _comprehension

    def _of_version_parts(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp, env: Env) -> Kind | None:
        """Compute `int(part) for part in trt.__version__.split(".")[:2]`, which branches are decided by."""
        first = node.generators[0]
        source = self.evaluate(first.iter, env)
        if len(node.generators) > 1 or first.ifs or not isinstance(first.target, ast.Name):
            return None
        if not (isinstance(source, Known) and source.of_version and isinstance(source.single, tuple)):
            return None
        parts = [self.evaluate(node.elt, Env(env, {first.target.id: constant(part, True)})) for part in source.single]
        values = [part.single for part in parts if isinstance(part, Known)]
        return constant(tuple(values), True) if len(values) == len(parts) and Known not in values else None

    def _DictComp(self, node: ast.DictComp, env: Env) -> Kind:
        inner = self._generators(node.generators, env)
        self.evaluate(node.key, inner)
        return Items(self.evaluate(node.value, inner))

    def _generators(self, generators: Sequence[ast.comprehension], env: Env) -> Env:
        inner = Env(env)
        for generator in generators:
            self.bind(generator.target, self.element_of(self.evaluate(generator.iter, inner)), inner)
            for condition in generator.ifs:
                self.condition(condition, inner)
        return inner

    def element_of(self, kind: Kind) -> Kind:
        """Return what iterating gives."""
        if isinstance(kind, Items):
            return kind.element
        if isinstance(kind, Fields):
            return joined(*kind.elements)
        if isinstance(kind, Known) and isinstance(kind.single, tuple):
            return joined(*(constant(part, kind.of_version) for part in kind.single))
        return kind if isinstance(kind, Unknown) else PLAIN

    def _Lambda(self, node: ast.Lambda, env: Env) -> Kind:
        names: dict[str, Kind] = {item.arg: self._element for item in node.args.args}
        self.evaluate(node.body, Env(env, names))
        return PLAIN

    def _IfExp(self, node: ast.IfExp, env: Env) -> Kind:
        truth = self.condition(node.test, env)
        if truth is None:
            return joined(self.evaluate(node.body, env), self.evaluate(node.orelse, env))
        return self.evaluate(node.body if truth else node.orelse, env)

    def _BoolOp(self, node: ast.BoolOp, env: Env) -> Kind:
        """Evaluate as far as the parts before leave it open: `hasattr(x, "y") and x.y`."""
        kinds = []
        for part in node.values:
            kinds.append(self.evaluate(part, env))
            if self._decided(part, env) is isinstance(node.op, ast.Or):
                break
        return joined(*kinds)

    def _BinOp(self, node: ast.BinOp, env: Env) -> Kind:
        left, right = self.evaluate(node.left, env), self.evaluate(node.right, env)
        if isinstance(left, Items) and isinstance(right, Items):
            return joined(left, right)
        return PLAIN

    def _Compare(self, node: ast.Compare, env: Env) -> Kind:
        left = self.evaluate(node.left, env)
        for other in node.comparators:
            right = self.evaluate(other, env)
            self.compare_names(left, right)
            self.compare_names(right, left)
        return PLAIN

    def compare_names(self, name: Kind, other: Kind) -> None:
        """Hold texts that an enum member's name is compared with, or looked up in, against the enum."""
        if not isinstance(name, MemberName):
            return
        if isinstance(other, Known):
            self.member_names(name, other.literals)
        elif isinstance(other, Items):
            listed = isinstance(other.element, Known) and not other.keys
            self.member_names(
                name, other.element.literals if listed and isinstance(other.element, Known) else other.keys
            )
        elif isinstance(other, Fields):
            for element in other.elements:
                self.compare_names(name, element)

    # Conditions.

    def condition(self, node: ast.expr, env: Env) -> Condition:
        """Evaluate a condition, and say whether this version decides it."""
        self.evaluate(node, env)
        return self._decided(node, env)

    def _decided(self, node: ast.expr, env: Env) -> Condition:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._decided(node.operand, env)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            return self._decided_parts(node, env)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._decided_comparison(node, env)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
            receiver, name = self.evaluate(node.args[0], env), self.evaluate(node.args[1], env)
            return self.has(receiver, str(name.single), None) if isinstance(name, Known) else None
        kind = self.evaluate(node, env)
        if isinstance(kind, Nothing):
            return False
        return bool(kind.single) if isinstance(kind, Known) and kind.of_version and kind.single is not Known else None

    def _decided_parts(self, node: ast.BoolOp, env: Env) -> Condition:
        ends = isinstance(node.op, ast.Or)  # the value that decides the whole
        verdict: Condition = not ends
        for part in node.values:
            decided = self._decided(part, env)
            if decided is ends:
                return ends
            verdict = None if decided is None else verdict
        return verdict

    def _decided_comparison(self, node: ast.Compare, env: Env) -> Condition:
        left, right = self.evaluate(node.left, env), self.evaluate(node.comparators[0], env)
        operator = node.ops[0]
        if isinstance(operator, (ast.Is, ast.IsNot)) and isinstance(right, Nothing):
            if isinstance(left, Nothing):
                return isinstance(operator, ast.Is)
            if isinstance(left, (Routine, ClassObject, Module)):
                return isinstance(operator, ast.IsNot)
            return None
        if not (isinstance(left, Known) and isinstance(right, Known) and (left.of_version or right.of_version)):
            return None
        return _compared(left.single, operator, right.single)

    # Targets.

    def grow(self, target: ast.expr, kind: Kind, env: Env) -> None:
        """Learn that a container, a name or an attribute of ours, holds something."""
        if isinstance(target, ast.Name):
            env.names[target.id] = joined(env.get(target.id) or PLAIN, Items(kind))
            return
        receiver = self.evaluate(target.value, env) if isinstance(target, ast.Attribute) else PLAIN
        if isinstance(target, ast.Attribute) and isinstance(receiver, OwnInstance):
            self.learn(self.attributes, (receiver.key, target.attr), Items(kind))
        elif self.carries_names(kind):
            self.find(target, f"an object of TensorRT's passes out of sight in `{ast.unparse(target)}`")

    def learn(self, table: dict[tuple[str, str], Kind], key: tuple[str, str], kind: Kind) -> None:
        table[key] = joined(table[key], kind) if key in table else kind

    def bind(self, target: ast.expr, kind: Kind, env: Env) -> None:
        """Assign to a name, an attribute, an element, or several at once."""
        if isinstance(target, ast.Name):
            env.names[target.id] = kind
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = kind.elements if isinstance(kind, Fields) and len(kind.elements) == len(target.elts) else ()
            for index, item in enumerate(target.elts):
                self.bind(item, parts[index] if parts else self.element_of(kind), env)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, Items(kind), env)
        elif isinstance(target, ast.Subscript):
            self.evaluate(target.slice, env)
            self.grow(target.value, kind, env)
        elif isinstance(target, ast.Attribute):
            self._bind_attribute(target, kind, env)

    def _bind_attribute(self, target: ast.Attribute, kind: Kind, env: Env) -> None:
        receiver = self.evaluate(target.value, env)
        if isinstance(receiver, Instance):
            self.set(receiver, target.attr, target, self._place(target, target.attr))
        elif isinstance(receiver, (OwnInstance, OwnClass)):
            self.learn(self.attributes, (receiver.key, target.attr), kind)
        elif isinstance(receiver, Unknown):
            asked = ast.unparse(target.value)
            self.find(
                target, f"`{asked}.{target.attr}`: what `{asked}` is cannot be seen ({receiver.why}): annotate it"
            )
        elif self.carries_names(kind):
            self.find(target, f"an object of TensorRT's passes out of sight in `{ast.unparse(target)}`")


def _compared(left: object, operator: ast.cmpop, right: object) -> Condition:
    """Compare two constants of a kind, numbers with numbers and tuples with tuples."""
    if not (isinstance(left, int) and isinstance(right, int)) and not (
        isinstance(left, tuple) and isinstance(right, tuple)
    ):
        return left == right if isinstance(operator, ast.Eq) and isinstance(left, str) else None
    results: dict[type[ast.cmpop], bool] = {
        ast.Eq: left == right,
        ast.NotEq: left != right,
        ast.Lt: left < right,  # type: ignore[operator]  # both are numbers, or both tuples
        ast.LtE: left <= right,  # type: ignore[operator]
        ast.Gt: left > right,  # type: ignore[operator]
        ast.GtE: left >= right,  # type: ignore[operator]
    }
    return results.get(type(operator))
