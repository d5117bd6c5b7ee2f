"""Nothing phones home: neither OpenVINO nor NNCF opens a socket or starts a process when edgebert uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# `import openvino` reports to Google Analytics from a child process; here both ways out are watched. A home folder that exists is
# part of the trap: without one the sender gives up. CI variables would switch it off, so the test removes them.
_WATCH = """
import multiprocessing, socket, sys, threading, time
seen = []
multiprocessing.Process.start = lambda self: seen.append(("process", self._target))
socket.socket.connect = lambda self, address: seen.append(("socket", address))
socket.getaddrinfo = lambda *arguments, **options: seen.append(("name", arguments)) or []
"""
_END = """
time.sleep(0.3)
print(seen, sorted(name for name in sys.modules if name.startswith("openvino_telemetry.")))
"""


_OPENVINO = """
from edgebert.runtime.openvino_runner import OpenVinoRunner
OpenVinoRunner.devices()
"""
_NNCF = """
from edgebert.extras import require
require("nncf")
require("openvino")
from nncf.telemetry import telemetry
telemetry.start_session("edgebert")
telemetry.send_event("a", "b", "c", force_send=True)
"""


@pytest.mark.parametrize("code", [_OPENVINO, _NNCF], ids=["openvino", "nncf"])
def test_use_of_openvino_and_nncf_is_not_reported(code: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    script = f"{_WATCH}\n{code}\n{_END}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.splitlines()[-1] == "[] []"
    assert list(tmp_path.iterdir()) == []


def test_the_trap_would_notice_a_report(tmp_path: Path) -> None:
    """Without edgebert's switch the same watch sees OpenVINO's event; if this fails, OpenVINO has mended it."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    script = f"{_WATCH}\nimport openvino\n{_END}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert "process" in ran.stdout.splitlines()[-1]
