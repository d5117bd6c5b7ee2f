"""Our sources with one thing wrong: a name misspelt, an argument too many, or all of them taken away.

A checker that lets one of them pass checks nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.tensorrt.api import Api
from tests.tensorrt.lookups import Use
from tests.tensorrt.usage import Usage, usage_of

_TOO_MANY = b", ".join([b"None"] * 16)  # more than any overload takes
_NAMES = ("attribute", "guard", "override")


@dataclass(frozen=True)
class Mutant:
    """What was changed, how, the version that has what was there before, and the changed sources."""

    use: Use
    change: str
    version: str
    sources: Mapping[str, str]

    @property
    def name(self) -> str:
        """Where it is, what it was, and what was done."""
        return f"{self.use.place.file}:{self.use.place.line}: {self.use.what} of {self.use.full_name}: {self.change}"


def mutants(sources: Mapping[str, str], usage: Usage, apis: Mapping[str, Api]) -> Iterator[Mutant]:
    """Yield the mutants of each place where a name of TensorRT's stands, and of each call."""
    seen = set()
    for version in reversed(list(usage.uses)):
        for use in usage.uses[version]:
            key = (use.place, use.name)
            if not use.present or key in seen:
                continue
            seen.add(key)
            if use.what == "call":
                yield from _of_call(sources, use, version, apis[version])
            else:
                yield Mutant(use, "misspelt", version, _misspelt(sources, use))


def survivors(sources: Mapping[str, str], usage: Usage, apis: Mapping[str, Api]) -> list[str]:
    """Return the mutants that the checker does not find; there should be none."""
    before = {version: _texts(usage_of(sources, {version: api})) for version, api in apis.items()}
    return [
        mutant.name
        for mutant in mutants(sources, usage, apis)
        if _texts(usage_of(mutant.sources, {mutant.version: apis[mutant.version]})) <= before[mutant.version]
    ]


def unmissed(sources: Mapping[str, str], usage: Usage, apis: Mapping[str, Api]) -> list[str]:
    """Return the names that a version could lose without the checker finding it; there should be none."""
    kept = []
    for version, uses in usage.uses.items():
        before = _texts(usage_of(sources, {version: apis[version]}))
        for owner, name in sorted({(use.owner, use.name) for use in uses if use.present and use.what in _NAMES}):
            if _texts(usage_of(sources, {version: apis[version].without(owner, name)})) <= before:
                kept.append(f"trt.{owner}.{name} in {version}")
    return kept


def _texts(usage: Usage) -> frozenset[str]:
    """Return the findings; a version alone has some of its own, of code that only others reach."""
    return frozenset(map(str, usage.findings))


def _misspelt(sources: Mapping[str, str], use: Use) -> dict[str, str]:
    start = _offset(sources[use.place.file], use.place.line, use.place.column)
    content, written = sources[use.place.file].encode(), use.name.encode()
    assert content[start:].startswith(written), f"no `{use.name}` at {use.place}"
    return _changed(sources, use, start + len(written), start + len(written), written[-1:])


def _of_call(sources: Mapping[str, str], use: Use, version: str, api: Api) -> Iterator[Mutant]:
    text = sources[use.place.file]
    opened = _offset(text, use.place.line, use.place.column) + 1
    assert text.encode()[opened - 1 : opened] == b"(", f"no call at {use.place}"
    call = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and _end(node.func) == (use.place.line, use.place.column)
    )
    closed = _offset(text, call.end_lineno or 0, call.end_col_offset or 0) - 1
    has_any = bool(call.args or call.keywords)
    more = _changed(sources, use, opened, opened, _TOO_MANY + (b", " if has_any else b""))
    yield Mutant(use, "too many arguments", version, more)
    table = api.classes[use.owner].methods if use.owner else api.functions
    if has_any and not any(shape.accepts(0, ()) for shape in table[use.name]):
        yield Mutant(use, "no arguments", version, _changed(sources, use, opened, closed, b""))


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _changed(sources: Mapping[str, str], use: Use, start: int, end: int, by: bytes) -> dict[str, str]:
    """Return the sources with the bytes from `start` to `end` replaced in the file of a use."""
    content = sources[use.place.file].encode()
    return {**sources, use.place.file: (content[:start] + by + content[end:]).decode()}


def _offset(text: str, line: int, column: int) -> int:
    """Return where a line's column is in the file, in bytes."""
    return sum(len(each.encode()) for each in text.splitlines(keepends=True)[: line - 1]) + column
