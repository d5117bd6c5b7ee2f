"""Finds what our code uses of TensorRT, and holds it against the tables of the supported versions. Nothing of ours is run.

The rules:

* A name that our code asks for exists in each version that reaches it. A branch on `hasattr`, on None of `getattr(..., None)` or on
  `trt.__version__` is reached only by the versions that take it; what `except AttributeError` catches may be missing.
* What is asked for behind such a guard exists in some version: a guard that no version passes is a misspelling.
* A call's arguments fit an overload, by number and by keyword; a class that is called has a constructor; what is set can be set.
* A subclass of a TensorRT class defines what TensorRT calls, with the parameters that it gives.
* What cannot be seen is a finding: an object whose class does not follow from annotations, calls and assignments; one that is given to
  a function which is not ours; a name that is computed; arguments behind `*`; code that no version reaches.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from tests.tensorrt.api import Api
from tests.tensorrt.lookups import Finding, Use
from tests.tensorrt.program import Program, program_of
from tests.tensorrt.reading import read


@dataclass(frozen=True)
class Usage:
    """What sources use, over all versions.

    Attributes:
        uses: version -> the names asked for there.
        findings: what is wrong with it.
        reached: version -> file and line of the statements that it reaches.
        trees: the sources, parsed.
    """

    uses: Mapping[str, tuple[Use, ...]]
    findings: tuple[Finding, ...]
    reached: Mapping[str, frozenset[tuple[str, int]]]
    trees: Mapping[str, ast.Module]

    def names(self) -> dict[str, list[str]]:
        """Return the full names asked for, in order, with the versions that ask: what a reader of a report wants."""
        found: dict[str, list[str]] = {}
        for version, uses in self.uses.items():
            for name in sorted({use.full_name for use in uses if use.what != "call"}):
                found.setdefault(name, []).append(version)
        return dict(sorted(found.items()))

    def reaches(self, version: str, file: str, line: int) -> bool:
        """Whether a version reaches the innermost statement that a line belongs to."""
        around = [
            node
            for node in ast.walk(self.trees[file])
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
        ]
        innermost = max(around, key=lambda node: (node.lineno, -(node.end_lineno or 0)), default=None)
        return innermost is None or (file, innermost.lineno) in self.reached[version]


def usage_of(sources: Mapping[str, str], apis: Mapping[str, Api]) -> Usage:
    """Read sources, path -> text, for each version, version -> table."""
    program = program_of(sources)
    reads = {version: read(program, api) for version, api in apis.items()}
    findings = [finding for result in reads.values() for finding in result.findings]
    uses = {version: result.uses for version, result in reads.items()}
    reached = {version: result.reached for version, result in reads.items()}
    everywhere = f"{', '.join(apis)}"
    findings += _false_guards(uses, everywhere)
    findings += _never_reached(program, frozenset().union(*reached.values()), everywhere)
    findings.sort(key=lambda finding: (finding.file, finding.line, finding.text))
    return Usage(uses, tuple(findings), reached, program.trees)


def _false_guards(uses: Mapping[str, tuple[Use, ...]], everywhere: str) -> list[Finding]:
    """Find names that are asked for behind a guard, and that no version has."""
    asked: dict[tuple[str, int, str], bool] = {}
    for use in (use for found in uses.values() for use in found if use.what == "guard"):
        key = (use.place.file, use.place.line, use.full_name)
        asked[key] = asked.get(key, False) or use.present
    text = "is asked for behind a guard, and exists in none of them"
    return [
        Finding(file, line, everywhere, f"`{name}` {text}") for (file, line, name), real in asked.items() if not real
    ]


def _never_reached(program: Program, reached: frozenset[tuple[str, int]], everywhere: str) -> list[Finding]:
    """Find the first statement of each block that no version reaches."""
    text = "no version reaches this code, so nothing in it is checked"
    return [
        Finding(file, first, everywhere, text)
        for file, around, first in program.blocks
        if (file, first) not in reached and (around == 0 or (file, around) in reached)
    ]
