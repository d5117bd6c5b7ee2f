"""The commands with `--host` on a bare device: `compile`, `bench`, `size` and `install` over a real SSH server on the loopback.

    python benchmarks/remote_loopback.py
    python benchmarks/remote_loopback.py --no-size        # without torch here

The server is asyncssh's, in this process; what it runs is another Python: an environment that has numpy, Pillow and ONNX
Runtime and nothing of edgebert (made once by pip under runs/bare-python, or `--python`). The commands are processes of their own, as
a user starts them. Prints one line for each, and returns 1 where one failed: two minutes on two busy cores.

`benchmarks/remote_sshd.py` does the same with OpenSSH's sshd.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _remote_steps
from _bare_python import bare_python
from _ssh_device import SshDevice


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it and return 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="the device's Python; an environment under runs/ otherwise")
    parser.add_argument("--target", default="cpu", help="that its backend runs")
    parser.add_argument("--no-size", action="store_true", help="leave `size` out, which needs torch")
    given = parser.parse_args(arguments)
    python = given.python or bare_python()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with SshDevice(home=work / "device", host_home=work / "host", python=python) as device:
            held = _remote_steps.passed(work, device, python, target=given.target, size=not given.no_size, cuts=0)
            commands = len(device.commands)
    print(f"{'PASS' if held else 'FAIL'} the commands with --host over asyncssh's server, {commands} sessions")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
