"""The corpus of hostile bundles (tests/hostile_bundles.py), read in a child process under `strace -f -e trace=%file`.

    python benchmarks/hostile_bundles.py
    python benchmarks/hostile_bundles.py --only zip --seconds 5

A minute on two cores; needs `strace`. What must hold, of every bundle: it is refused with a `BundleError`; reading it asks the system
for no file but the bundle's own, neither by name nor through a link; it takes at most `--seconds` of processor time; and the child
never has more than `--mib` of memory. First the two good bundles are read, so that everything Python imports lazily is there, and so
that a reader that refuses everything fails here too. Without `strace` nothing is shown, and 1 is returned.

The time is the processor's, not the clock's: it is not the bundle's fault what else the computer does. `--seconds` is of an untraced
second child, since strace makes every call slower.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hostile_bundles import CORPUS, honest  # a table that tests share

_MARK = "/edgebert-hostile-bundle/"  # names that do not exist: looking for one tells in the trace whose turn it is
_CALL = re.compile(r"^\d+\s+(\w+)\((.*)$")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_IS_UNFOLLOWED = re.compile(r"AT_SYMLINK_NOFOLLOW|O_NOFOLLOW|^lstat|^readlink")


@dataclass(frozen=True, slots=True)
class Answer:
    """What reading one bundle gave."""

    accepted: bool
    error: str
    is_ours: bool
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the corpus, read it, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="bundles whose name begins like this: folder, zip, path")
    parser.add_argument("--seconds", type=float, default=1.0, help="of processor time, for each bundle")
    parser.add_argument("--mib", type=float, default=256.0, help="of memory, for the child")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        return _child(given.child)
    if shutil.which("strace") is None:
        print("FAIL: no strace on this computer, so nothing is shown")
        return 1
    names = [name for name in CORPUS if name.startswith(given.only)]
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        root = Path(folder).resolve()
        paths = {f"good: {form}": path for form, path in honest(root).items()}
        for number, name in enumerate(names):
            scratch = root / str(number)
            scratch.mkdir()
            paths[name] = CORPUS[name](scratch)
        table = root / "table.json"
        table.write_text(json.dumps({name: str(path) for name, path in paths.items()}))
        traced, trace, _ = _read(table, root / "trace")
        untraced, _, mib = _read(table, None)
        touched = _outside(trace, paths)
    return _report(names, traced, untraced, touched, mib, given)


def _read(table: Path, trace: Path | None) -> tuple[Mapping[str, Answer], str, float]:
    """Return what a child says of every bundle, its trace and its memory in MiB."""
    command = [sys.executable, __file__, "--child", str(table)]
    if trace is not None:
        command = ["strace", "-f", "-qq", "-s", "8192", "-e", "trace=%file", "-o", str(trace), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, timeout=1800)
    *answers, last = map(json.loads, ran.stdout.splitlines())
    read = {name: Answer(*values) for name, values in answers}
    return read, "" if trace is None else trace.read_text(encoding="utf-8", errors="replace"), last


def _child(table: Path) -> int:
    """Read every bundle of a table and print what came of it; the last line is the memory that was used, in MiB."""
    from edgebert.bundle import read_bundle
    from edgebert.errors import BundleError

    entries = json.loads(table.read_text())
    answers = []
    for number, (name, written) in enumerate(entries.items()):
        path = Path(written)
        os.path.lexists(f"{_MARK}{number}")
        started = time.process_time()
        answer = Answer(True, "", True, 0.0)
        try:
            read_bundle(path)
        except BaseException as error:  # noqa: BLE001  # whatever else comes out is what this looks for
            answer = Answer(False, f"{type(error).__name__}: {error}"[:300], isinstance(error, BundleError), 0.0)
        seconds = time.process_time() - started
        answers.append((name, (answer.accepted, answer.error, answer.is_ours, seconds)))
    os.path.lexists(f"{_MARK}end")
    for line in answers:
        print(json.dumps(line))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return 0


def _outside(trace: str, paths: Mapping[str, Path]) -> list[str]:
    """Return every file that was asked for while a bundle was read and is not the bundle's, as `bundle: call`."""
    names = list(paths)
    current: str | None = None
    found = []
    calls = 0
    for line in trace.splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        asked = [_unescaped(path) for path in _PATH.findall(call[2])]
        mark = next((path for path in asked if path.startswith(_MARK)), None)
        if mark is not None:
            number = mark.removeprefix(_MARK)
            current = names[int(number)] if number.isdigit() else None
            continue
        if current is None or current.startswith("good: "):
            continue
        calls += 1
        asked = [path for path in asked if path or "AT_EMPTY_PATH" not in line]  # an opened file's own state
        cut = '"...' in line  # a path longer than the system takes
        unfollowed = _IS_UNFOLLOWED.search(call[1] + call[2]) is not None
        found += [
            f"{current}: {line[:200]}"
            for path in asked
            if not _is_inside(path, paths[current], follow=not unfollowed)
            and not (cut and str(paths[current]).startswith(path))
        ]
    assert calls >= len(paths), f"the trace shows {calls} calls"
    return found


def _unescaped(path: str) -> str:
    """Return a path of the trace, where strace writes odd bytes as octal numbers."""
    return os.fsdecode(path.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1"))


def _is_inside(asked: str, bundle: Path, *, follow: bool) -> bool:
    """Say whether a path is the bundle or lies in it; with `follow` also where its links lead."""
    try:
        inside = Path(asked) == bundle or bundle in Path(asked).parents
        if not inside or not follow or Path(asked) == bundle:
            return inside
        real, root = os.path.realpath(asked), os.path.realpath(bundle)
    except ValueError:  # a NUL: no system call takes it
        return False
    return real == root or real.startswith(root + os.sep)


def _report(
    names: Sequence[str],
    traced: Mapping[str, Answer],
    untraced: Mapping[str, Answer],
    touched: Sequence[str],
    mib: float,
    given: argparse.Namespace,
) -> int:
    faults = [
        f"the good bundle was refused: {name}"
        for name in traced
        if name.startswith("good: ") and not traced[name].accepted
    ]
    for name in names:
        answer = traced[name]
        if answer.accepted:
            faults.append(f"accepted: {name}")
        elif not answer.is_ours:
            faults.append(f"no BundleError: {name}: {answer.error}")
        if untraced[name].seconds > given.seconds:
            faults.append(f"{untraced[name].seconds:.2f} s: {name}")
    faults += [f"outside: {call}" for call in touched]
    if mib > given.mib:
        faults.append(f"{mib:.0f} MiB of memory")
    print("\n".join(faults) or "no fault")
    accepted = sum(traced[name].accepted for name in names)
    foreign = sum(not traced[name].is_ours for name in names)
    slowest = max(names, key=lambda name: untraced[name].seconds)
    print(
        f"{len(names)} hostile bundles: {accepted} accepted, {foreign} other errors than BundleError, {len(touched)} file accesses "
        f"outside; the slowest took {untraced[slowest].seconds:.2f} s ({slowest}), memory {mib:.0f} MiB"
    )
    return 1 if faults or not names else 0


if __name__ == "__main__":
    sys.exit(main())
