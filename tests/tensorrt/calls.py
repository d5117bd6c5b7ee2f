"""What calls give, and what they are given: TensorRT's, our own, those of containers, and the few of Python's that matter here."""

from __future__ import annotations

import ast

from tests.tensorrt.inference import Env, Expressions
from tests.tensorrt.kinds import (
    PLAIN,
    ClassObject,
    Fields,
    Instance,
    Items,
    Kind,
    Known,
    Module,
    OwnClass,
    OwnFunction,
    OwnInstance,
    Place,
    Routine,
    Unknown,
    constant,
    joined,
)
from tests.tensorrt.program import Function

# Calls that may be given an object of TensorRT's: they keep none of it, or give it back.
_HARMLESS = frozenset(
    {
        "discard",
        "remove",
        "index",
        "count",
        "bool",
        "bytes",
        "callable",
        "float",
        "format",
        "frozenset",
        "hash",
        "id",
        "int",
        "isinstance",
        "issubclass",
        "len",
        "max",
    }
    | {"memoryview", "print", "range", "repr", "str", "sum", "type", "sha256", "update", "write", "frombuffer"}
)
_ITERATED = frozenset({"iter", "list", "tuple", "sorted", "reversed", "set"})
_TAKEN_OUT = frozenset({"pop", "get", "setdefault", "popleft", "popitem"})
_PUT_IN = frozenset({"append", "add", "appendleft", "put", "insert", "extend"})


class Calls(Expressions):
    """Kinds of calls."""

    def _Call(self, node: ast.Call, env: Env) -> Kind:
        special = self._special(node, env)
        if special is not None:
            return special
        callee = self.evaluate(node.func, env)
        kinds, named = self._given(node, env)
        known = self._of_builtins(node, kinds)
        if known is not None:
            return known
        if isinstance(callee, Routine):
            return self.call(callee, node)
        if isinstance(callee, ClassObject):
            return self.construct(callee, node)
        if isinstance(callee, OwnFunction):
            return self._call_own(callee, kinds, named)
        if isinstance(callee, OwnClass):
            return self._construct_own(callee, kinds, named)
        return self._call_other(node, callee, [*kinds, *named.values()], env)

    def _special(self, node: ast.Call, env: Env) -> Kind | None:
        """Answer the calls whose meaning the checker knows; None for others."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        if name == "super" and self.function_read is not None and self.function_read.owner:
            base = self.base_of(self.function_read.owner)
            return Instance(base) if base else PLAIN
        if name in ("getattr", "hasattr", "setattr") and len(node.args) >= 2:
            return self._by_text(name, node, env)
        if last == "cast" and len(node.args) == 2:
            inner = self.evaluate(node.args[1], env)
            return self.annotation(node.args[0], file=self.file) or inner
        if last == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
            return Module() if node.args[0].value in ("tensorrt", "tensorrt_bindings") else PLAIN
        return None

    def _given(self, node: ast.Call, env: Env) -> tuple[list[Kind], dict[str, Kind]]:
        """Return what a call is given; a lambda there is taken to be given elements of the rest: `min(found, key=lambda ...)`."""
        written = [*node.args, *(keyword.value for keyword in node.keywords)]
        outer = self._element
        if any(isinstance(item, ast.Lambda) for item in written):
            receiver = self.evaluate(node.func.value, env) if isinstance(node.func, ast.Attribute) else PLAIN
            rest = [receiver, *(self.evaluate(item, env) for item in written if not isinstance(item, ast.Lambda))]
            self._element = joined(*(self.element_of(kind) for kind in rest))
        kinds = [self.evaluate(item, env) for item in node.args]
        named = {key.arg or "**": self.evaluate(key.value, env) for key in node.keywords}
        self._element = outer
        return kinds, named

    def _of_builtins(self, node: ast.Call, kinds: list[Kind]) -> Kind | None:
        """Answer calls of Python's own functions that hand on what they are given; None for others."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        if name == "zip":
            return Items(Fields(tuple(map(self.element_of, kinds))))
        if not kinds:
            return None
        source = kinds[0]
        is_version = isinstance(source, Known) and source.of_version
        if name in _ITERATED:
            return source if is_version or isinstance(source, (Items, Fields)) else Items(self.element_of(source))
        if name in ("min", "max", "next"):
            return joined(self.element_of(source), *kinds[1:])
        if name == "filter":
            return kinds[-1]
        if name == "enumerate":
            return Items(Fields((PLAIN, self.element_of(source))))
        if name == "int":
            value = source.single if isinstance(source, Known) and is_version else None
            return constant(int(value), True) if isinstance(value, (str, int)) and str(value).isdigit() else PLAIN
        return source if last == "enter_context" else None

    def _by_text(self, function: str, node: ast.Call, env: Env) -> Kind:
        """Answer `getattr`, `hasattr` and `setattr`: the name is a constant, or one of several."""
        receiver, name = self.evaluate(node.args[0], env), self.evaluate(node.args[1], env)
        rest = [self.evaluate(item, env) for item in node.args[2:]]
        if isinstance(receiver, Unknown):
            asked = ast.unparse(node.args[0])
            self.find(node, f"`{ast.unparse(node)}`: what `{asked}` is cannot be seen ({receiver.why}): annotate it")
        if isinstance(receiver, (OwnInstance, OwnClass)) and function == "getattr":
            return Unknown("it is asked for by text")
        if not isinstance(receiver, (Module, ClassObject, Instance)):
            return PLAIN
        if not isinstance(name, Known):
            self.find(node, f"`{ast.unparse(node)}`: the name cannot be seen: write it as text")
            return PLAIN
        found = []
        for literal in sorted(name.literals, key=lambda literal: str(literal.value)):
            text, place = str(literal.value), literal.place or Place(self.file, node.lineno, node.col_offset)
            if function == "setattr" and isinstance(receiver, Instance):
                self.set(receiver, text, node, place)
            elif function == "hasattr" or (function == "getattr" and rest):
                present = self.has(receiver, text, place)
                member = self.member(receiver, text)
                if function == "getattr":
                    found.append(member if present and member is not None else rest[0])
            else:
                found.append(self.attribute(receiver, text, node, place))
        return joined(*found) if function == "getattr" else PLAIN

    def _call_own(self, callee: OwnFunction, kinds: list[Kind], named: dict[str, Kind]) -> Kind:
        function = self.program.functions[callee.key]
        self.live.add(callee.key)
        parameters = [item.arg for item in function.parameters()][1 if callee.bound else 0 :]
        for name, kind in [*zip(parameters, kinds, strict=False), *named.items()]:
            self.learn(self.arguments, (callee.key, name), kind)
        return self.given_back(function)

    def given_back(self, function: Function) -> Kind:
        """Return what a call of a function of ours gives."""
        declared = self.annotation(function.node.returns, file=function.file)
        learned = self.returns.get(function.key)
        if declared is None:
            return Unknown(f"what `{function.node.name}` returns is not said") if learned is None else learned
        if declared == PLAIN and isinstance(learned, Known) and learned.of_version:
            return learned
        return declared

    def _construct_own(self, callee: OwnClass, kinds: list[Kind], named: dict[str, Kind]) -> Kind:
        base = self.base_of(callee.key)
        for key in self.line(callee.key):
            definition = self.program.classes[key]
            if "__init__" in definition.methods:
                self._call_own(OwnFunction(definition.methods["__init__"], bound=True), kinds, named)
                break
            fields = list(definition.declared)
            for name, kind in [*zip(fields, kinds, strict=False), *named.items()]:
                if name in fields:
                    self.learn(self.attributes, (key, name), kind)
        return OwnInstance(callee.key, base)

    def _call_other(self, node: ast.Call, callee: Kind, kinds: list[Kind], env: Env) -> Kind:
        """Answer a call of what is neither ours nor TensorRT's: methods of containers are followed, nothing else may be given an object."""
        last = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        receiver = self.evaluate(node.func.value, env) if isinstance(node.func, ast.Attribute) else PLAIN
        if isinstance(receiver, Items):
            if last in _TAKEN_OUT:
                self.compare_names(kinds[0] if kinds else PLAIN, receiver)
                return joined(receiver.element, *kinds[1:])
            if last in _PUT_IN and isinstance(node.func, ast.Attribute):
                self.grow(node.func.value, kinds[-1] if kinds else PLAIN, env)
                return PLAIN
            if last in ("items", "values", "copy"):
                return Items(Fields((PLAIN, receiver.element))) if last == "items" else receiver
        if isinstance(receiver, Known) and receiver.of_version and last == "split":
            value, separator = receiver.single, kinds[0].single if kinds and isinstance(kinds[0], Known) else "."
            return constant(tuple(str(value).split(str(separator))), True)
        if last not in _HARMLESS and any(map(self.carries_names, kinds)):
            self.find(node, f"`{ast.unparse(node)}`: an object of TensorRT's passes out of sight")
        return callee if isinstance(callee, Unknown) else PLAIN
