"""Which artefacts are measured, by which name, on which target.

>>> [arm.name for arm in named_arms([("a", Path("x.onnx"), "graph"), ("a", Path("a"), "checkpoint")], ())]
['a', 'a-2']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgebert.artefact import Kind, kind_of
from edgebert.bundle import read_bundle
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.target import beside_of, resolve_target

MAX_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRequest:
    """An arm before it is opened.

    Attributes:
        name: unique in the run.
        path: of the artefact.
        kind: what it is.
        target: None where the runtime is to pick.
        control: whether this is the A/A control: the baseline's artefact once more.
    """

    name: str
    path: Path
    kind: Kind
    target: str | None
    control: bool = False


def arms_from_paths(paths: Sequence[str | Path], targets: Sequence[str]) -> list[ArmRequest]:
    """Return one arm per artefact, or per artefact and target where several are given.

    Args:
        paths: bundles, graphs and checkpoints; text may be `NAME=PATH`. None named: the `*.edgebert` in the current
            folder.
        targets: for bundles and graphs; a checkpoint runs in PyTorch whatever they are.

    Raises:
        UsageError: no such target, or a name that is given twice or cannot be one.
        InputNotFoundError: an artefact is not there, or none is named and there is no bundle here.
        BadDataError: no artefact that can be measured.
    """
    for target in targets:
        resolve_target(target)
    chosen = list(paths) or sorted(Path().glob("*.edgebert"))
    if not chosen:
        raise InputNotFoundError(
            "no artefact is named, and there is no bundle in the current folder",
            expected="bundles (NAME.edgebert), graphs (.onnx) or checkpoint folders",
            hint="edgebert bench NAME.edgebert --data DATA",
        )
    return named_arms([_entry(entry) for entry in chosen], targets)


def named_arms(entries: Sequence[tuple[str, Path, Kind]], targets: Sequence[str]) -> list[ArmRequest]:
    """Return the arms of entries (name, path, kind), every name once: the second `a` is `a-2`.

    A bundle that holds a second form beside that of a target, as `compile --keep-both` makes it, has an arm for each.
    """
    arms: list[ArmRequest] = []
    taken: set[str] = set()
    for name, path, kind in entries:
        held = _held(path, kind, targets)
        for target in held or (None,):
            wanted = f"{name}@{target}" if len(held) > 1 and target else name
            unique, count = wanted, 1
            while unique in taken:
                count += 1
                unique = f"{wanted}-{count}"
            taken.add(unique)
            arms.append(ArmRequest(name=unique, path=path, kind=kind, target=target))
    return arms


def control_of(baseline: ArmRequest) -> ArmRequest:
    """Return the A/A control: the same artefact and target under a name of its own."""
    suffix = " (A/A)"
    return replace(baseline, name=f"{baseline.name[: MAX_NAME - len(suffix)]}{suffix}", control=True)


def find_arm(arms: Sequence[str], name: str, *, flag: str) -> int:
    """Return the position of an arm that a flag names.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in arms:
        raise UsageError(f"`--{flag} {name}` names no arm", expected=", ".join(arms))
    return arms.index(name)


def _held(path: Path, kind: Kind, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the targets of one artefact's arms, each once; what its bundle holds beside the form of a target, too."""
    if kind == "checkpoint":
        return ()
    found = []
    for target in map(resolve_target, targets):
        found.append(target.name)
        others = [other.name for other in beside_of(target)]
        if kind == "bundle" and others:
            forms = {form.target for form in read_bundle(path).manifest.forms}
            found += [other for other in others if other in forms]
    return tuple(dict.fromkeys(found))


def _entry(entry: str | Path) -> tuple[str, Path, Kind]:
    name, equals, rest = str(entry).partition("=")
    named = bool(equals) and isinstance(entry, str) and not Path(entry).exists()
    path = Path(rest) if named else Path(entry)
    kind = kind_of(path)
    if kind == "result":
        raise BadDataError(
            f"`{path}` is a result",
            expected="a bundle, a graph or a checkpoint",
            hint=f"edgebert report {path} -o report.html",
        )
    name = name.strip() if named else _default_name(path)
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise UsageError(f"`{name!r:.100}` cannot name an arm", expected=f"1 to {MAX_NAME} printable characters")
    return name, path, kind


def _default_name(path: Path) -> str:
    name = path.resolve().name
    return (name.removesuffix(".edgebert").removesuffix(".onnx") or name)[:MAX_NAME]
