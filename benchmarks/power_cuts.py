"""Cut the power while `install` replaces a bundle, and look what a device finds when it starts again.

    python benchmarks/power_cuts.py --cuts 300
    python benchmarks/power_cuts.py --cuts 60 --mutant      the same installer without fsync: must be seen torn

The disk is an ext4 file system in a file, mounted through a loop device. At moments from 1 ms to 10 s after the installer began,
log-spaced and different each time, and right after it said that it was done, the file is copied: what is in the page cache of the
mounted file system and not yet on its disk is not in the copy. The copy is mounted, which replays its journal, and looked at:

* the bundle that is current is whole, and it is the old or the new one; where the installer was done before, the new one;
* `previous`, where it is there, is whole, and the state can be read;
* the next installation succeeds without a manual step, and the new bundle is current after it.

A copy takes a few milliseconds, in which the disk may change. Each is read twice and taken again where the two differ, so that it is the
disk at one moment; where it never holds still the installer is stopped first, as a process stops that has no power. The disk is in
memory and faster than any device's, so the installer pauses up to 40 ms before each fsync, rename, link and removal, which
spreads the states that a cut can meet over about a second; the file system commits its journal every second (`commit=1`), five times as
often as by default, so that more of what was not synced reaches the disk without its content.
Needs root and a loop device. Prints one line, last; returns 1 where a cut left anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from _faults import in_child, scratch
from _install_writers import DEVICE, bundle_in_memory, current_of

from edgebert.bundle import Bundle
from edgebert.install import write_phase

SIZE_BYTES = 24 << 20
FIRST_S, LAST_S = 1e-3, 10.0
PAUSE_S = 0.04
MOMENTS = 10  # of one installation
_EQUAL_READS = 20


def main() -> int:
    """Cut; 0 where every cut left a whole bundle, or with `--mutant` where one was seen torn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--longest", type=float, default=LAST_S, help="seconds after which the last cut may come")
    parser.add_argument("--mutant", action="store_true", help="install without fsync; 0 where that is found")
    given = parser.parse_args()
    reason = why_not_here()
    if reason is not None:
        print(f"power cuts: not run: {reason}")
        return 1
    old, new = bundle_in_memory("old"), bundle_in_memory("new")
    found: Counter[str] = Counter()
    faults: list[str] = []
    with scratch("power-cuts-") as folder:
        disk = Disk(Path(folder), old)
        rng = random.Random(given.seed)
        while found["cuts"] < given.cuts:
            moments = min(MOMENTS, given.cuts - found["cuts"])
            prepare = partial(_slow, random.Random(rng.random()), syncs=not given.mutant)
            _one_installation(disk, (old, new), prepare, _spread(moments, given.longest, rng), found, faults)
            print(f"{found['cuts']} cuts, {len(faults)} faults", file=sys.stderr, flush=True)
    for fault in faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    what = "power cuts of install without fsync (mutant)" if given.mutant else "power cuts of install"
    print(
        f"{what}: {found['cuts']} cuts ({found['before done']} before it was done, {found['after done']} after), "
        f"{found['old']} found the old bundle, {found['new']} the new one, {len(faults)} torn, lost or not healed"
    )
    return int(bool(faults) != given.mutant)


def why_not_here() -> str | None:
    """Return why there can be no power cuts on this computer, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory() as folder:
        image, place = Path(folder, "disk"), Path(folder, "mounted")
        place.mkdir()
        try:
            _format(image)
            with _mounted(image, place):
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no ext4 file system can be made and mounted: {error}"


class Disk:
    """A file system in a file, with an installation of the old bundle, as often as wanted.

    Args:
        folder: for its files, in memory where possible.
        old: what is installed on it.
    """

    def __init__(self, folder: Path, old: Bundle) -> None:
        self.image, self.place = folder / "disk", folder / "mounted"
        self.copy, self.copy_place = folder / "copy", folder / "mounted-copy"
        for place in (self.place, self.copy_place):
            place.mkdir()
        _format(self.image)
        with _mounted(self.image, self.place):
            write_phase(old, self.place / DEVICE)
        self._fresh = self.image.read_bytes()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """Yield the installation on a mounted disk with the old bundle."""
        self.image.write_bytes(self._fresh)
        with _mounted(self.image, self.place):
            yield self.place / DEVICE

    def snapshot(self) -> bytes | None:
        """Return what is on the disk at one moment, or None where it did not hold still."""
        for _ in range(_EQUAL_READS):
            content = self.image.read_bytes()
            if self.image.read_bytes() == content:
                return content
        return None

    @contextlib.contextmanager
    def restarted(self, content: bytes) -> Iterator[Path]:
        """Yield the installation as a device finds it that starts with this disk."""
        self.copy.write_bytes(content)
        with _mounted(self.copy, self.copy_place):
            yield self.copy_place / DEVICE


def _one_installation(
    disk: Disk,
    bundles: tuple[Bundle, Bundle],
    prepare: Callable[[], None],
    moments: list[float],
    found: Counter[str],
    faults: list[str],
) -> None:
    """Install once, and cut at each moment, in seconds from the start; once more as soon as it is done."""
    snapshots: list[tuple[str, bool, bytes]] = []
    with disk.mounted() as device:
        started = time.monotonic()
        with _installing(bundles[1], device, prepare) as (pid, done):
            waiting = list(moments)
            told = False
            while waiting:
                at_once = done() and not told
                if not at_once and time.monotonic() - started < waiting[0]:
                    time.sleep(2e-4)
                    continue
                told = told or at_once
                # One of the moments is the first one after "OK".
                moment = waiting.pop() if at_once else waiting.pop(0)
                was_done = done()
                content = disk.snapshot() or _stopped(pid, disk)
                name = "right after it was done" if at_once else f"after {1e3 * moment:.1f} ms"
                snapshots.append((name, was_done, content))
    for name, was_done, content in snapshots:
        found["cuts"] += 1
        found["after done" if was_done else "before done"] += 1
        fault = _fault_after(disk, content, bundles, was_done, found)
        faults += [f"{name}: {fault}"] if fault else []


def _fault_after(
    disk: Disk, content: bytes, bundles: tuple[Bundle, Bundle], was_done: bool, found: Counter[str]
) -> str | None:
    """Start with a disk; return what is wrong with it."""
    old, new = (bundle.digest for bundle in bundles)
    try:
        with disk.restarted(content) as device:
            current = current_of(device)
            if current not in (old, new):
                return str(current)
            found["old" if current == old else "new"] += 1
            if was_done and current != new:
                return "it was done, and the old bundle is current"
            ended = in_child(partial(write_phase, bundles[1], device))
            if ended.code != 0 or current_of(device) != new:
                return f"the next installation ended with {ended.code}: {ended.said}"
            left = [entry.name for entry in device.rglob(".staging*")]
            return f"the next installation left {left}" if left else None
    except subprocess.CalledProcessError as error:
        return f"cannot be mounted: {error}"


@contextlib.contextmanager
def _installing(bundle: Bundle, device: Path, prepare: Callable[[], None]) -> Iterator[tuple[int, Callable[[], bool]]]:
    """Run an installation in a child; yield its process id and a function that says whether it has said OK."""
    reads, says = os.pipe()
    os.set_blocking(reads, False)
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            write_phase(bundle, device)
            os.write(says, b"OK")
        finally:
            os._exit(0)
    os.close(says)
    heard = b""

    def done() -> bool:
        nonlocal heard
        if not heard:
            with contextlib.suppress(BlockingIOError):
                heard = os.read(reads, 2)
        return heard == b"OK"

    try:
        yield pid, done
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reads)


def _slow(rng: random.Random, *, syncs: bool) -> None:
    """Let this process pause before each call that changes a disk; without `syncs` it never syncs: the mutant's fault."""

    def slowed(call: Callable[..., object]) -> Callable[..., object]:
        def slow(*arguments: object, **named: object) -> object:
            time.sleep(rng.uniform(0, PAUSE_S))
            return call(*arguments, **named)

        return slow

    if not syncs:
        os.fsync = lambda descriptor: None  # type: ignore[assignment]  # the fault
    for name in ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir"):
        setattr(os, name, slowed(getattr(os, name)))


def _stopped(pid: int, disk: Disk) -> bytes:
    os.kill(pid, signal.SIGSTOP)
    try:
        while True:
            content = disk.snapshot()
            if content is not None:
                return content
    finally:
        os.kill(pid, signal.SIGCONT)


def _spread(count: int, longest: float, rng: random.Random) -> list[float]:
    """Return log-spaced moments in seconds, shifted by chance."""
    ratio = (longest / FIRST_S) ** (1 / count)
    return sorted(FIRST_S * ratio ** (number + rng.random()) for number in range(count))


def _format(image: Path) -> None:
    with image.open("wb") as stream:
        stream.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)


@contextlib.contextmanager
def _mounted(image: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop,commit=1", str(image), str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


if __name__ == "__main__":
    sys.exit(main())
