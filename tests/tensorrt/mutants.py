"""Our sources with one thing wrong: a name misspelt, or an argument too many. A checker that lets one pass checks nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.tensorrt.api import Api
from tests.tensorrt.lookups import Use
from tests.tensorrt.usage import Usage, usage_of


@dataclass(frozen=True)
class Mutant:
    """What was changed, the version that has what was there before, and the changed sources."""

    use: Use
    version: str
    sources: Mapping[str, str]

    @property
    def name(self) -> str:
        """Where it is and what it was."""
        return f"{self.use.place.file}:{self.use.place.line}: {self.use.what} of {self.use.full_name}"


def mutants(sources: Mapping[str, str], usage: Usage) -> Iterator[Mutant]:
    """Yield one mutant of each place where a name of TensorRT's stands, and of each call."""
    seen = set()
    for version in reversed(list(usage.uses)):
        for use in usage.uses[version]:
            key = (use.place, use.name)
            if use.present and key not in seen:
                seen.add(key)
                yield Mutant(use, version, _changed(sources, use))


def _changed(sources: Mapping[str, str], use: Use) -> dict[str, str]:
    lines = sources[use.place.file].splitlines(keepends=True)
    line = lines[use.place.line - 1].encode()
    before, after = line[: use.place.column], line[use.place.column :]
    if use.what == "call":
        assert after.startswith(b"("), f"no call at {use.place}"
        closed = after[1:].lstrip().startswith(b")")
        changed = before + (b"(" + _TOO_MANY + (b"" if closed else b", ")) + after[1:]
    else:
        written = use.name.encode()
        assert after.startswith(written), f"no `{use.name}` at {use.place}"
        changed = before + written + written[-1:] + after[len(written) :]
    lines[use.place.line - 1] = changed.decode()
    return {**sources, use.place.file: "".join(lines)}


def survivors(sources: Mapping[str, str], usage: Usage, apis: Mapping[str, Api]) -> list[str]:
    """Return the mutants that the checker does not find; there should be none."""
    before = {version: _texts(usage_of(sources, {version: api})) for version, api in apis.items()}
    return [
        mutant.name
        for mutant in mutants(sources, usage)
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


_TOO_MANY = b", ".join([b"None"] * 16)  # more than any overload takes
_NAMES = ("attribute", "guard", "override")
