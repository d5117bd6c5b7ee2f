"""Our sources read for one version of TensorRT: statements, scopes, annotations, and the passes until nothing new is learned."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from tests.tensorrt.api import Api
from tests.tensorrt.calls import Calls
from tests.tensorrt.inference import Env
from tests.tensorrt.kinds import (
    NOTHING,
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
    Unknown,
    joined,
)
from tests.tensorrt.lookups import Finding, Use
from tests.tensorrt.program import MODULE_NAMES, AnyFunction, Function, Program, key_of

_UNSAID = frozenset({"Any", "ModuleType", "object", "Self"})
_CONTAINERS = frozenset(
    {"list", "List", "set", "frozenset", "deque", "Sequence", "Iterable", "Iterator", "Generator", "Collection"}
    | {"tuple", "Tuple", "dict", "Dict", "Mapping", "MutableMapping"}
)
_MOST_PASSES = 12


@dataclass(frozen=True)
class Read:
    """What one version has to say to our sources: names asked for, findings, and the lines of the statements it reaches."""

    uses: tuple[Use, ...]
    findings: tuple[Finding, ...]
    reached: frozenset[tuple[str, int]]


def read(program: Program, api: Api) -> Read:
    """Read sources for one version, until a pass learns nothing."""
    reading = Reading(program, api)
    for _ in range(_MOST_PASSES):
        before = reading.learned()
        reading.one_pass()
        if reading.learned() == before:
            return Read(tuple(reading.uses.values()), tuple(reading.findings.values()), frozenset(reading.reached))
    raise AssertionError(f"the checker learns something new in each of {_MOST_PASSES} passes")


class Reading(Calls):
    """One version's reading of a program."""

    def __init__(self, program: Program, api: Api) -> None:
        super().__init__(api)
        self.program = program
        self.arguments = {}
        self.returns = {}
        self.attributes = {}
        self.live = set()
        self.function_read: Function | None = None
        self.reached: set[tuple[str, int]] = set()
        self._modules: dict[str, Env] = {file: Env() for file in program.trees}
        self._pending: list[tuple[Function, Env]] = []
        self._jumps: list[list[dict[str, Kind]]] = []

    def learned(self) -> tuple[object, ...]:
        """Return a copy of all that passes hand on."""
        tops = {file: dict(env.names) for file, env in self._modules.items()}
        return dict(self.arguments), dict(self.returns), dict(self.attributes), set(self.live), tops

    def one_pass(self) -> None:
        """Read every module, and every function that this version reaches."""
        self.uses, self.findings, self.reached = {}, {}, set()
        for file, tree in self.program.trees.items():
            self.file = file
            self.block(tree.body, self._modules[file])
        while self._pending:
            function, env = self._pending.pop()
            if self._is_live(function):
                self._function(function, env)

    def _is_live(self, function: Function) -> bool:
        """Whether anybody may call a function: private ones only by what this version reaches."""
        name = function.node.name
        private = name.startswith("_") and not name.startswith("__")
        closed = private or (function.is_nested and not function.owner)
        return function.key in self.live or not closed or name not in self.program.mentioned

    def _function(self, function: Function, around: Env) -> None:
        self.file, self.function_read = function.file, function
        env = Env(around, {})
        for item in function.parameters():
            env.names[item.arg] = self._parameter(function, item)
        arguments = function.node.args
        for extra in (arguments.vararg, arguments.kwarg):
            if extra is not None:
                env.names[extra.arg] = Items(self.annotation(extra.annotation, file=self.file) or PLAIN)
        self.block(function.node.body, env)
        self.function_read = None

    def _parameter(self, function: Function, item: ast.arg) -> Kind:
        """Return what a parameter is: as annotated, or what the calls that are seen give it."""
        first = function.owner and item is function.parameters()[0] and "staticmethod" not in function.decorators
        if first:
            own = OwnClass(function.owner)
            return own if "classmethod" in function.decorators else OwnInstance(own.key, self.base_of(own.key))
        if item.arg in MODULE_NAMES:
            return Module()
        default = self._default(function, item)
        given = self.arguments.get((function.key, item.arg))
        learned = given if default is None else default if given is None else joined(given, default)
        declared = self.annotation(item.annotation, file=function.file)
        if declared is None:
            return Unknown(f"the parameter `{item.arg}` is not annotated as TensorRT's") if learned is None else learned
        return learned if declared == PLAIN and isinstance(learned, Known) else declared

    def _default(self, function: Function, item: ast.arg) -> Kind | None:
        arguments = function.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = dict(zip(reversed([each.arg for each in positional]), reversed(arguments.defaults), strict=False))
        defaults |= {
            each.arg: value
            for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if value is not None
        }
        return self.evaluate(defaults[item.arg], Env()) if item.arg in defaults else None

    # Annotations.

    def annotation(self, node: ast.expr | None, *, file: str) -> Kind | None:
        """Return what an annotation says; None where it says nothing (`Any`, `object`, missing)."""
        if node is None:
            return None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            inner = ast.parse(node.value, mode="eval").body
            for child in ast.walk(inner):  # so that names in it stand where they stand in the file
                if isinstance(child, ast.expr):
                    child.lineno, child.end_lineno = node.lineno, node.lineno
                    child.col_offset += node.col_offset + 1
                    child.end_col_offset = (child.end_col_offset or 0) + node.col_offset + 1
            return self.annotation(inner, file=file)
        if isinstance(node, ast.Constant):
            return NOTHING if node.value is None else PLAIN
        if isinstance(node, ast.BinOp):
            return self._either([node.left, node.right], file)
        if isinstance(node, ast.Subscript):
            return self._subscripted(node, file)
        if isinstance(node, ast.Attribute):
            return self._named_class(node, file)
        return self._named(node.id, file) if isinstance(node, ast.Name) else PLAIN

    def _either(self, nodes: list[ast.expr], file: str) -> Kind | None:
        kinds = [self.annotation(node, file=file) for node in nodes]
        said = [kind for kind in kinds if kind is not None]
        return joined(*said) if len(said) == len(kinds) else None

    def _subscripted(self, node: ast.Subscript, file: str) -> Kind | None:
        head = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head in ("Optional", "Final", "ClassVar", "Annotated"):
            return self.annotation(inside[0], file=file)
        if head == "Union":
            return self._either(inside, file)
        if head in ("type", "Type"):
            kind = self.annotation(inside[0], file=file)
            return ClassObject(kind.name) if isinstance(kind, Instance) else PLAIN
        if head in ("tuple", "Tuple") and not any(
            isinstance(part, ast.Constant) and part.value is ... for part in inside
        ):
            kinds = [self.annotation(part, file=file) for part in inside]
            return PLAIN if all(kind == PLAIN for kind in kinds) else Fields(tuple(kind or PLAIN for kind in kinds))
        if head in _CONTAINERS:
            chosen = inside[-1] if "ict" in head or "Mapping" in head else inside[0]
            kind = self.annotation(chosen, file=file)
            if kind is None:
                return None
            return PLAIN if kind == PLAIN else Items(kind)
        return PLAIN

    def _named_class(self, node: ast.Attribute, file: str) -> Kind | None:
        """Read `trt.X` or `trt.X.Y`; a version may lack it, since annotations are not run."""
        words = ast.unparse(node).split(".")
        if words[0] not in MODULE_NAMES and not isinstance(self._modules[file].get(words[0]), Module):
            return None if words[-1] in _UNSAID else PLAIN
        name = ".".join(words[1:])
        owner, _, last = name.rpartition(".")
        present = name in self.api.classes
        column = (node.end_col_offset or 0) - len(last)
        self.use(Place(file, node.lineno, column), owner, last, "guard", present)
        return Instance(name) if present else Unknown(f"`trt.{name}` does not exist")

    def _named(self, name: str, file: str) -> Kind | None:
        if name in _UNSAID:
            return None
        found = self._modules[file].get(name)
        return OwnInstance(found.key, self.base_of(found.key)) if isinstance(found, OwnClass) else PLAIN

    # Statements: each says whether the next one is reached.

    def block(self, body: list[ast.stmt], env: Env) -> bool:
        """Read statements one after the other, as far as they are reached."""
        for statement in body:
            self.reached.add((self.file, statement.lineno))
            method = getattr(self, f"_{type(statement).__name__}_statement", None)
            if method is None:
                for child in ast.iter_child_nodes(statement):
                    if isinstance(child, ast.expr):
                        self.evaluate(child, env)
            elif method(statement, env) is False:
                return False
        return True

    def _FunctionDef_statement(self, node: AnyFunction, env: Env) -> None:
        key = key_of(self.file, node)
        function = self.program.functions[key]
        for decorator in node.decorator_list:
            self.evaluate(decorator, env)
        if not function.owner:
            env.names[node.name] = OwnFunction(key)
        self._pending.append((function, env))

    _AsyncFunctionDef_statement = _FunctionDef_statement

    def _ClassDef_statement(self, node: ast.ClassDef, env: Env) -> None:
        key = key_of(self.file, node)
        bases = tuple(self.evaluate(base, env) for base in node.bases)
        self.attributes[key, "(bases)"] = Fields(
            tuple(base for base in bases if isinstance(base, (OwnClass, ClassObject)))
        )
        env.names[node.name] = OwnClass(key)
        base = self.base_of(key)
        if base and any(isinstance(kind, ClassObject) for kind in bases):
            self.subclass(base, node)
        self.reached |= {(self.file, part.lineno) for part in node.body}
        inner = Env(env)
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                self.evaluate(part.value, inner)
        self.block([part for part in node.body if not isinstance(part, ast.AnnAssign)], inner)

    def _Return_statement(self, node: ast.Return, env: Env) -> bool:
        self._give_back(self.evaluate(node.value, env))
        return False

    def _give_back(self, kind: Kind) -> None:
        if self.function_read is not None:
            key = self.function_read.key
            self.returns[key] = joined(self.returns[key], kind) if key in self.returns else kind

    def _Expr_statement(self, node: ast.Expr, env: Env) -> None:
        self.evaluate(node.value, env)
        if isinstance(node.value, ast.Yield):
            self._give_back(Items(self.evaluate(node.value.value, env)))

    def _Raise_statement(self, node: ast.Raise, env: Env) -> bool:
        self.evaluate(node.exc, env)
        self.evaluate(node.cause, env)
        return False

    def _Break_statement(self, node: ast.stmt, env: Env) -> bool:
        if self._jumps:
            self._jumps[-1].append(dict(env.names))
        return False

    _Continue_statement = _Break_statement

    def _Assign_statement(self, node: ast.Assign, env: Env) -> None:
        kind = self.evaluate(node.value, env)
        for target in node.targets:
            self.bind(target, kind, env)

    def _AnnAssign_statement(self, node: ast.AnnAssign, env: Env) -> None:
        declared = self.annotation(node.annotation, file=self.file)
        if node.value is None:
            self.bind(node.target, declared or PLAIN, env)
            return
        kind = self.evaluate(node.value, env)
        if declared in (None, PLAIN):
            self.bind(node.target, kind, env)
        else:
            self.bind(node.target, declared, env)

    def _AugAssign_statement(self, node: ast.AugAssign, env: Env) -> None:
        self.evaluate(node.value, env)
        if isinstance(node.target, ast.Name):
            env.names[node.target.id] = PLAIN
            return
        before = self.evaluate(node.target, env)
        self.bind(node.target, PLAIN if isinstance(before, Known) else before, env)

    def _If_statement(self, node: ast.If, env: Env) -> bool:
        truth = self.condition(node.test, env)
        if truth is not None:
            left_out = node.orelse if truth else node.body
            if len(left_out) == 1 and isinstance(
                left_out[0], ast.Raise
            ):  # what refuses other versions is read all the same
                self.block(left_out, Env(env))
            return self.block(node.body if truth else node.orelse, env)
        one, other = Env(env.around, dict(env.names)), Env(env.around, dict(env.names))
        ends = [(self.block(node.body, one), one), (self.block(node.orelse, other), other)]
        return self._meet(env, [branch.names for falls, branch in ends if falls])

    def _meet(self, env: Env, branches: list[dict[str, Kind]]) -> bool:
        """Join what branches left behind; False where none goes on."""
        if not branches:
            return False
        names = dict.fromkeys(name for branch in branches for name in branch)
        env.names = {name: joined(*(branch[name] for branch in branches if name in branch)) for name in names}
        return True

    def _For_statement(self, node: ast.For | ast.AsyncFor, env: Env) -> bool:
        element = self.element_of(self.evaluate(node.iter, env))
        return self._loop(env, node.body, node.orelse, lambda: self.bind(node.target, element, env))

    _AsyncFor_statement = _For_statement

    def _While_statement(self, node: ast.While, env: Env) -> bool:
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        falls = self._loop(env, node.body, node.orelse, lambda: self.condition(node.test, env))
        return falls and (not endless or any(isinstance(child, ast.Break) for child in ast.walk(node)))

    def _loop(self, env: Env, body: list[ast.stmt], otherwise: list[ast.stmt], start: object) -> bool:
        """Read a loop's body twice, so that what one round leaves is seen by the next."""
        assert callable(start)
        for _ in range(2):
            before = dict(env.names)
            start()
            self._jumps.append([])
            falls = self.block(body, env)
            jumped = self._jumps.pop()
            self._meet(env, [before, *jumped, *([env.names] if falls else [])])
        return self.block(otherwise, env) or True

    def _Match_statement(self, node: ast.Match, env: Env) -> bool:
        self.evaluate(node.subject, env)
        branches, is_whole = [], False
        for case in node.cases:
            branch = Env(env.around, dict(env.names))
            for pattern in ast.walk(case.pattern):
                if isinstance(pattern, (ast.MatchAs, ast.MatchStar)) and pattern.name:
                    branch.names[pattern.name] = Unknown("a name in a pattern")
                elif isinstance(pattern, ast.MatchValue):
                    self.evaluate(pattern.value, env)
            if case.guard is not None:
                self.evaluate(case.guard, branch)
            if self.block(case.body, branch):
                branches.append(branch.names)
            is_whole |= isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None
        return self._meet(env, branches if is_whole else [*branches, dict(env.names)])

    def _With_statement(self, node: ast.With | ast.AsyncWith, env: Env) -> bool:
        for item in node.items:
            kind = self.evaluate(item.context_expr, env)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, self._entered(item.context_expr, kind, env), env)
        return self.block(node.body, env)

    _AsyncWith_statement = _With_statement

    def _entered(self, written: ast.expr, kind: Kind, env: Env) -> Kind:
        """Return what `as` gives: an object itself, or what a function with `yield` gives."""
        callee = self.evaluate(written.func, env) if isinstance(written, ast.Call) else PLAIN
        if isinstance(callee, OwnFunction) and "contextmanager" in self.program.functions[callee.key].decorators:
            return self.element_of(kind)
        return kind

    def _Try_statement(self, node: ast.Try, env: Env) -> bool:
        before = dict(env.names)
        caught = {word for part in node.handlers for word in (ast.unparse(part.type) if part.type else "").split(", ")}
        with self.tolerance(any("AttributeError" in word for word in caught)):
            falls = self.block(node.body, env)
        after = dict(env.names)
        falls = falls and self.block(node.orelse, env)
        ends = [dict(env.names)] if falls else []
        for part in node.handlers:
            inner = Env(env.around, {})
            self._meet(inner, [before, after])
            if part.name:
                inner.names[part.name] = PLAIN
            if self.block(part.body, inner):
                ends.append(inner.names)
        goes_on = self._meet(env, ends)
        return self.block(node.finalbody, env) and goes_on

    def _Import_statement(self, node: ast.Import, env: Env) -> None:
        for alias in node.names:
            is_tensorrt = alias.name.split(".")[0] in ("tensorrt", "tensorrt_bindings")
            env.names[alias.asname or alias.name.split(".")[0]] = Module() if is_tensorrt else PLAIN

    def _ImportFrom_statement(self, node: ast.ImportFrom, env: Env) -> None:
        for alias in node.names:
            if node.module == "tensorrt":
                place = Place(self.file, alias.lineno, alias.col_offset)
                env.names[alias.asname or alias.name] = self.attribute(Module(), alias.name, node, place)
                continue
            file = self.program.modules.get(node.module or "")
            found = self._modules[file].get(alias.name) if file is not None else None
            if isinstance(found, OwnFunction):
                self.live.add(found.key)
            env.names[alias.asname or alias.name] = PLAIN if found is None else found
