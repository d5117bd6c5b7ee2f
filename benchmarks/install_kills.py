"""Installations that are killed at random moments, and two that start at once: what is left, and who wins.

    python benchmarks/install_kills.py --kills 1000 --races 100

A kill: a process that installs a bundle gets SIGKILL after a random time up to a little more than it needs. Then the bundle
that is current must be whole, and the old or the new one; opening it must work; a second installation must succeed without any
manual step and leave nothing over. A race: two processes that install different bundles begin at the same moment; exactly one must
win, the other must be told who holds the lock (exit code 75) within 2 seconds; and after a killed holder nobody may be blocked.
`--mutant` writes a bundle under its final name at once: the kills must find that, and the script then exits 1.

About 0.1 s for each kill and 0.5 s for each race. The last line has the figures; returns 1 where one is not 0. The writing is that
of `edgebert install --self-test later` (`write_phase`): the self-test writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgebert.bundle import Bundle, read_bundle
from edgebert.errors import EdgebertError
from edgebert.install import installing as installing_module
from edgebert.install import open_installed, status, write_phase
from edgebert.install import switch as switch_module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="any bundle; a second one is made of it")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--races", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutant", action="store_true", help="install without staging; must fail")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    pair = (read_bundle(given.bundle), _twin(read_bundle(given.bundle)))
    if given.mutant:
        installing_module.stage, installing_module.publish = _stage_in_place, lambda *_: None  # type: ignore[assignment]
        installing_module._whole_copy = lambda *_: None  # so that every call writes
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        needs_s = _seconds(pair, Path(folder) / "timed")
        killed, torn = 0, []
        for _ in range(given.kills):
            happened, fault = _kill(pair, Path(folder) / "killed", rng.uniform(0, 1.2 * needs_s))
            killed += happened
            torn += [fault] if fault else []
        unfair = [fault for number in range(given.races) if (fault := _race(pair, Path(folder) / f"race{number}"))]
    for fault in (*torn, *unfair)[:20]:
        print(fault)
    found = {"kills": given.kills, "in_time": killed, "torn": len(torn), "races": given.races, "unfair": len(unfair)}
    if given.json:
        given.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(
        f"{len(torn)} torn of {given.kills} kills ({killed} before the end); "
        f"{len(unfair)} of {given.races} races without exactly one winner"
    )
    return 1 if torn or unfair or (given.kills and not killed) else 0


def _twin(bundle: Bundle) -> Bundle:
    """Return another bundle: the same files under another name."""
    from edgebert._json import dump_json
    from edgebert.bundle import MANIFEST_FILE

    manifest = replace(bundle.manifest, name=f"{bundle.manifest.name}-twin")
    files = {**bundle.files, MANIFEST_FILE: dump_json(manifest.to_json()).encode()}
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()
    digest = hashlib.sha256(sums).hexdigest()
    return replace(bundle, manifest=manifest, files=files, sums=sums, digest=digest, signature=None)


def _seconds(pair: tuple[Bundle, Bundle], path: Path) -> float:
    """Return what one installation takes here."""
    write_phase(pair[0], path)
    started = time.monotonic()
    for bundle in (pair[1], pair[0], pair[1]):
        write_phase(bundle, path)
    return (time.monotonic() - started) / 3


def _kill(pair: tuple[Bundle, Bundle], path: Path, after_s: float) -> tuple[bool, str | None]:
    """Kill one installation; return whether it had not ended, and what is wrong then."""
    if not path.exists():
        write_phase(pair[0], path)
    old = status(path).current
    assert old is not None
    new = pair[1] if old.digest == pair[0].digest else pair[0]
    child = _fork(lambda: write_phase(new, path))
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        opened = open_installed(path, read_bundle).digest
        if opened not in (old.digest, new.digest):
            return killed, f"after {after_s:.4f} s: {opened} is current, neither the old nor the new one"
        if opened != (path / "current").readlink().name:
            return killed, f"after {after_s:.4f} s: `current` did not open"
        write_phase(new, path)
        left = [
            entry.name for folder in (path, path / "bundles") for entry in folder.iterdir() if ".staging" in entry.name
        ]
        if left:
            return killed, f"after {after_s:.4f} s: {left} is left over"
        for entry in (path / "bundles").iterdir():
            if read_bundle(entry).digest != entry.name:
                return killed, f"after {after_s:.4f} s: {entry.name} holds something else"
    except EdgebertError as error:
        return killed, f"after {after_s:.4f} s: {error.what}"
    return killed, None


def _race(pair: tuple[Bundle, Bundle], path: Path) -> str | None:
    """Start two installations at once; return what is wrong, or None."""
    path.mkdir()
    ready, go = os.pipe()
    children = [_fork(lambda bundle=bundle: _slow_install(bundle, path, ready, go)) for bundle in pair]
    os.close(ready)
    os.close(go)  # the pipe's end is what both wait for
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if sorted(codes) != [0, 75]:
        return f"exit codes {codes} instead of one 0 and one 75"
    winner = pair[codes.index(0)]
    current = status(path).current
    return None if current is not None and current.digest == winner.digest else "the winner's bundle is not current"


def _slow_install(bundle: Bundle, path: Path, ready: int, go: int) -> None:
    os.close(go)
    os.read(ready, 1)
    started, stage = time.monotonic(), switch_module.stage

    def slow(*arguments: object) -> str:
        time.sleep(0.3)
        return stage(*arguments)  # type: ignore[arg-type]

    installing_module.stage = slow
    try:
        write_phase(bundle, path)
    except EdgebertError as error:
        told = error.exit_code == 75 and f"pid {os.getpid()}" not in error.what and "pid " in error.what
        os._exit(75 if told and time.monotonic() - started < 2 else 1)


def _stage_in_place(folder: switch_module.Folder, bundle: Bundle) -> str:
    with folder.inner("bundles") as bundles:
        switch_module.remove_tree(bundles, bundle.digest)
        folder.set_link("current", bundle.digest)
        os.mkdir(bundle.digest, dir_fd=bundles)
        switch_module._fill(bundles, bundle.digest, bundle.all_files())
    return bundle.digest


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
