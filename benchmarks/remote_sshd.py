"""The commands with `--host` against Debian's own sshd: what asyncssh's server cannot show, a foreign implementation does.

    python benchmarks/remote_sshd.py
    python benchmarks/remote_sshd.py --python ~/device/bin/python --cuts 12
    SSHD=/opt/openssh/sbin/sshd python benchmarks/remote_sshd.py

Starts /usr/sbin/sshd on a free port of 127.0.0.1 with a configuration, host key and authorised key of its own, all in a temporary
folder; the sshd of the computer, if one runs, is not touched. The device is a Python that has numpy, Pillow and ONNX Runtime and
nothing of edgebert (made once by pip under runs/bare-python, or `--python`). Without sshd it says so and returns 77, as automake's
tests do for what is skipped.

Runs `compile`, `bench`, `size` and `install` on it as a user starts them, checks what they wrote, and cuts the link of `bench` at
`--cuts` positions. Prints one line for each, and returns 1 where one failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import _remote_steps
from _bare_python import bare_python
from _ssh_device import _client_key

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
    parser.add_argument("--python", type=Path, help="the device's Python; an environment under runs/ otherwise")
    parser.add_argument("--target", default="cpu", help="that its backend runs")
    parser.add_argument("--cuts", type=int, default=8)
    parser.add_argument("--no-size", action="store_true", help="leave `size` out, which needs torch")
    given = parser.parse_args(arguments)
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        print(f"skipped: no {SSHD} on this computer (Debian and Ubuntu: sudo apt-get install openssh-server)")
        return SKIPPED
    python = given.python or bare_python()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        work.chmod(0o755)
        with SshdDevice(home=work / "device", host_home=work / "host", python=python).running() as device:
            held = _remote_steps.passed(
                work, device, python, target=given.target, size=not given.no_size, cuts=given.cuts
            )
    print(f"{'PASS' if held else 'FAIL'} the commands with --host over {_version()}")
    return 0 if held else 1


def _version() -> str:
    """Return what sshd calls itself; an option that it does not know makes it say so."""
    said = subprocess.run(
        [str(SSHD), "-V"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stderr
    return next((line for line in said.splitlines() if line.startswith("OpenSSH")), "sshd")


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
