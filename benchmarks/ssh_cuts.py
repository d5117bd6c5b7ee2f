"""Links cut at every position of `install --host`: the device has the old or the new bundle, whole, and the next call succeeds.

    python benchmarks/ssh_cuts.py
    python benchmarks/ssh_cuts.py --positions 20 --silent 2 --self-test

A device on the loopback (an SSH server that runs the commands in a home folder of its own) gets two bundles in turn, with the device
wheel missing every time, through a proxy that resets the connection after so many bytes of both directions together: from the
first byte of the handshake to the last of the answer. At `--silent` of the positions it hands nothing on any more
instead, as a pulled cable does. A quarter of the positions lies in the handshake, and a quarter in the last two KiB.

After each cut it is checked that the call said so (LinkLostError, exit code 75) or had succeeded, and how soon; that `current` leads to
one of the two bundles, which reads and verifies; that no wheel is kept that is not whole; that nothing of the agent runs after
ten seconds; and that the same call, without a cut, ends with the new bundle and leaves no staging file.

Five minutes on two cores for 200 positions. Prints one summary line, and returns 1 where anything of it did not hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _ssh_device import CuttingProxy, SshDevice, as_host
from _tiny_bundles import linear

from edgebert.bundle import read_bundle
from edgebert.errors import BundleError, LinkLostError
from edgebert.install.installing import InstallOptions
from edgebert.remote.device_wheel import device_wheel
from edgebert.remote.install import install_on
from edgebert.remote.ssh import SshOptions

SSH = SshOptions(connect_seconds=15, silence_seconds=2)
GRACE_SECONDS = 5.0  # over the silence after which a link is lost (reliability.md, G15)
ORPHAN_SECONDS = 10.0
HANDSHAKE_BYTES = 8 << 10  # keys, login and the command
ANSWER_BYTES = 2 << 10  # the end of the bundle, the answer, and the closing


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut and what was seen.

    Attributes:
        after_bytes: where.
        silent: nothing was handed on any more, instead of a reset.
        said: `lost`, or `done` where the answer had come through.
        seconds: until the call ended.
        current: `old` or `new`.
        wrong: what did not hold.
    """

    after_bytes: int
    silent: bool
    said: str
    seconds: float
    current: str
    wrong: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep and return 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--silent", type=int, default=20, help="of the positions, those where the link falls silent")
    parser.add_argument(
        "--self-test", action="store_true", help="run each bundle's self-test as well: three times longer"
    )
    parser.add_argument("--json", type=Path, help="write every cut there")
    given = parser.parse_args(arguments)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it notes every write to a link that was cut
    options = InstallOptions(self_test="now" if given.self_test else "later", allow_downgrade=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        as_host(work / "host")
        bundles = [linear(seed).write(work / f"{seed}.edgebert") for seed in (1, 2)]
        with SshDevice(home=work / "device", host_home=work / "host") as device:
            sweep = _Sweep(work, device, bundles, options)
            whole = sweep.whole()
            every = max(1, given.positions // given.silent) if given.silent else given.positions + 1
            cuts = [
                sweep.cut(after_bytes, silent=number % every == every - 1)
                for number, after_bytes in enumerate(_positions(whole, given.positions))
            ]
    if given.json:
        given.json.write_text(json.dumps([asdict(cut) for cut in cuts], indent=1) + "\n", encoding="utf-8")
    wrong = [cut for cut in cuts if cut.wrong]
    for cut in wrong:
        print(f"cut after {cut.after_bytes:,} bytes: {'; '.join(cut.wrong)}")
    new = sum(cut.current == "new" for cut in cuts)
    print(
        f"{len(cuts)} cuts over {whole:,} bytes ({sum(cut.silent for cut in cuts)} of them silent): {len(wrong)} wrong; "
        f"{len(cuts) - new} left the old bundle, {new} the new one, told after {max(cut.seconds for cut in cuts):.1f} s at most"
    )
    return 1 if wrong else 0


def _positions(whole: int, count: int) -> list[int]:
    """Return where to cut: half of the positions over all bytes, a quarter in the handshake's, a quarter in the last of all."""
    ends = count // 4
    evenly = [1 + whole * number // (count - 2 * ends) for number in range(count - 2 * ends)]
    first = [1 + HANDSHAKE_BYTES * number // ends for number in range(ends)]
    last = [whole - ANSWER_BYTES * number // ends for number in range(ends)]
    return sorted(evenly + first + last)


class _Sweep:
    """Installs two bundles in turn on one device."""

    def __init__(self, work: Path, device: SshDevice, bundles: list[Path], options: InstallOptions) -> None:
        self._known = work / "host/.ssh/known_hosts"
        self._device, self._options = device, options
        self._old, self._new = bundles
        device.trust(self._known)
        self._install(device.port, self._old, SshOptions())

    def whole(self) -> int:
        """Return how many bytes an installation passes in all."""
        with CuttingProxy(self._device.port, None) as proxy:
            self._install_afresh(proxy.port)
            passed = proxy.passed
        self._old, self._new = self._new, self._old
        return passed

    def cut(self, after_bytes: int, *, silent: bool) -> Cut:
        """Cut one installation, look, and repeat it whole."""
        wrong = []
        started = time.monotonic()
        with CuttingProxy(self._device.port, after_bytes, hang=silent) as proxy:
            try:
                self._install_afresh(proxy.port)
                said = "done"
            except LinkLostError:
                said = "lost"
            seconds = time.monotonic() - started
        limit = GRACE_SECONDS + (SSH.connect_seconds if silent else 0)  # a login that falls silent has its own limit
        if seconds > limit:
            wrong.append(f"told after {seconds:.1f} s")
        if not self._ends():
            wrong.append(f"something still runs {ORPHAN_SECONDS:g} s later")
        current = self._current()
        if current not in ("old", "new") or (said == "done" and current != "new"):
            wrong.append(f"`{said}`, and current is {current}")
        wheel = device_wheel().content
        if any(path.read_bytes() != wheel for path in (self._device.home / ".cache").rglob("*.whl")):
            wrong.append("a wheel that is not whole")
        self._install(self._device.port, self._new, SshOptions())
        if self._current() != "new":
            wrong.append("the next call did not install it")
        left = [path.name for path in (self._device.home / "widgets").rglob(".staging-*")]
        if left:
            wrong.append(f"left after the next call: {left}")
        self._old, self._new = self._new, self._old
        return Cut(
            after_bytes=after_bytes, silent=silent, said=said, seconds=seconds, current=current, wrong=tuple(wrong)
        )

    def _install_afresh(self, port: int) -> None:
        shutil.rmtree(self._device.home / ".cache", ignore_errors=True)  # so that the wheel is sent, and cut, as well
        self._known.unlink()
        self._device.trust(self._known)
        self._device.trust(self._known, port=port)
        self._install(port, self._new, SSH)

    def _install(self, port: int, bundle: Path, ssh: SshOptions) -> None:
        install_on(f"pi@127.0.0.1:{port}", bundle, "~/widgets", self._options, ssh=ssh)

    def _current(self) -> str:
        try:
            digest = read_bundle(self._device.home / "widgets/current").digest
        except BundleError as error:
            return f"broken: {error.what}"
        return {read_bundle(self._old).digest: "old", read_bundle(self._new).digest: "new"}.get(digest, digest)

    def _ends(self) -> bool:
        until = time.monotonic() + ORPHAN_SECONDS
        while self._device.running():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


if __name__ == "__main__":
    sys.exit(main())
