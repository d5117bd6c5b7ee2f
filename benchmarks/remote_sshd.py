"""The commands with `--host` against Debian's own sshd: what asyncssh's server cannot show, a foreign implementation does.

    python benchmarks/remote_sshd.py
    python benchmarks/remote_sshd.py --python ~/device/bin/python --cuts 12

Starts /usr/sbin/sshd on a free port of 127.0.0.1 with a configuration, host key and authorised key of its own, all in a temporary
folder; nothing is installed, and the sshd of the computer, if there is one, is not touched. The device is `--python`: an interpreter that
should have numpy, Pillow and one backend and nothing else; this one if it is not given. Without sshd it says so and returns 77, as
automake's tests do for what is skipped.

Runs `compile`, `bench`, `size` (with torch here) and `install` on it, checks what they wrote, and cuts the link of `bench` at `--cuts`
positions. Prints one line for each, and returns 1 where one failed.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import remote_cuts
from _ssh_device import _client_key, processes_of
from _tiny_bundles import linear

from edgebert.bench.comparison.validation import check_result
from edgebert.export.compile import CompileOptions
from edgebert.export.metadata import bytes_of_model, with_metadata
from edgebert.install.installing import InstallOptions
from edgebert.remote.compile import bundle_on
from edgebert.remote.install import install_on
from edgebert.remote.transport import transport_of

SSHD = Path(os.environ.get("SSHD", "/usr/sbin/sshd"))  # Debian's; another one by this variable
SKIPPED = 77


class SshdDevice:
    """An sshd of our own, in the place of `_ssh_device.SshDevice`.

    Args:
        home: home folder of the device; what `python3` is there lies in its `bin`.
        host_home: home folder of the user who connects.
        python: what `python3` is on the device.
    """

    def __init__(self, *, home: Path, host_home: Path, python: Path) -> None:
        self.home, self.port = home, _free_port()
        self._folder = home.with_name("sshd")
        self._client = _client_key(host_home)
        (home / "bin").mkdir(parents=True)
        (home / "tmp").mkdir()
        # Another home folder than the user's: a command of its own stands before each that the client sends.
        wrapper = self._folder / "command"
        self._folder.mkdir()
        wrapper.write_text(
            f'#!/bin/sh\nexport HOME={home} TMPDIR={home}/tmp PATH={home}/bin:/usr/bin:/bin\ncd "$HOME"\n'
            'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        wrapper.chmod(0o755)
        (home / "bin/python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (home / "bin/python3").chmod(0o755)
        key = self._folder / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        self._public = key.with_suffix(".pub").read_text(encoding="ascii").strip()
        (self._folder / "authorized_keys").write_text(f'command="{wrapper}",restrict {self._client}')
        (self._folder / "config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {key}\nAuthorizedKeysFile {self._folder}/authorized_keys\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
            f"PidFile none\nMaxStartups 100\n"
        )

    @contextmanager
    def running(self) -> Iterator[SshdDevice]:
        """Run it."""
        Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd separates its privileges
        log = (self._folder / "log").open("wb")
        command = [str(SSHD), "-D", "-e", "-f", str(self._folder / "config")]
        with log, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                _wait_for(self.port)
                yield self
            finally:
                process.terminate()

    def trust(self, known_hosts: Path, *, port: int = 0) -> None:
        """Add a line for this server to a known-hosts file."""
        known_hosts.parent.mkdir(parents=True, exist_ok=True)
        with known_hosts.open("a", encoding="utf-8") as stream:
            stream.write(f"[127.0.0.1]:{port or self.port} {self._public}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it and return 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the device's Python")
    parser.add_argument("--target", default="cpu", help="that its backend runs")
    parser.add_argument("--cuts", type=int, default=8)
    parser.add_argument("--size", action="store_true", help="with torch: `size` as well")
    given = parser.parse_args(arguments)
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        print("skipped: no /usr/sbin/sshd on this computer (Debian: openssh-server)")
        return SKIPPED
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        work.chmod(0o755)
        os.environ["HOME"] = str(work / "host")
        os.environ.pop("SSH_AUTH_SOCK", None)
        with SshdDevice(home=work / "device", host_home=work / "host", python=given.python).running() as device:
            known = work / "host/.ssh/known_hosts"
            device.trust(known)
            config = f"Host *\n User {getpass.getuser()}\nHost board\n HostName 127.0.0.1\n Port {device.port}\n"
            (known.parent / "config").write_text(config, encoding="utf-8")
            steps: list[tuple[str, Callable[[], str]]] = [
                ("compile", lambda: _compile(work, given.target)),
                ("bench", lambda: _bench(work, given.target)),
                ("install", lambda: _install(work)),
                *([("size", lambda: _size(given.target))] if given.size else []),
                ("nothing is left", lambda: _nothing_left(device)),
            ]
            failed = sum(not _passes(title, step) for title, step in steps)
            if given.cuts:
                failed += not _passes("cuts", lambda: _cuts(work, device, given.cuts))
    return 1 if failed else 0


def _passes(title: str, step: Callable[[], str]) -> bool:
    try:
        print(f"PASS {title}: {step()}", flush=True)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the figure of this line
        print(f"FAIL {title}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def _compile(work: Path, target: str) -> str:
    tiny = linear(1)
    graph = work / "tiny.onnx"
    graph.write_bytes(bytes_of_model(with_metadata(onnx.load_from_string(tiny.graph()), tiny.card, ())))
    options = CompileOptions(targets=(target,), canary="synthetic")
    made = bundle_on(transport_of("board"), graph, work / "tiny.edgebert", options)
    assert made.verified == (target,), made.verified
    return made.to_text()


def _bench(work: Path, target: str) -> str:
    from edgebert.bench.options import BenchOptions
    from edgebert.remote.bench import bench_on

    images = remote_cuts.some_images(work / "images", linear(1).card.class_names)
    options = BenchOptions(
        data=str(images), targets=(target,), launches=2, queries=40, seconds=0.2, max_warmup_seconds=0.0, threads=1
    )
    bench_on(transport_of("board"), [work / "tiny.edgebert"], work / "bench.json", options)
    return check_result(work / "bench.json")[-1]


def _install(work: Path) -> str:
    options = InstallOptions(self_test="now")
    return install_on("board", work / "tiny.edgebert", "~/widgets", options).to_text().splitlines()[0]


def _size(target: str) -> str:
    from edgebert.remote.size import sizes_on
    from edgebert.train.sizing import SizeOptions

    options = SizeOptions(image_size=8, target=target, budget_ms=1000.0, shapes=("d32-l2-h2-r2",), threads=1)
    report = sizes_on(transport_of("board"), "digits", options)
    assert report.proposed is not None
    return f"{report.proposed}, p90 {report.row(report.proposed).latency.p90:.3f} ms"


def _nothing_left(device: SshdDevice) -> str:
    until = time.monotonic() + 10
    while found := processes_of(device.home):
        assert time.monotonic() < until, f"{len(found)} processes"
        time.sleep(0.1)
    objects = [path for path in (device.home / ".cache").rglob("*") if path.is_file() and path.suffix != ".whl"]
    assert not objects, objects
    return "no process, no object"


def _cuts(work: Path, device: SshdDevice, count: int) -> str:
    cuts = remote_cuts.swept(work / "cuts", device, count, count // 4, 4, home=work / "host")
    wrong = [cut for cut in cuts if cut.wrong]
    assert not wrong, json.dumps([cut.wrong for cut in wrong])
    return f"{len(cuts)} positions, {sum(cut.silent for cut in cuts)} of them silent, none wrong"


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            assert time.monotonic() < until, "sshd does not listen"
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
