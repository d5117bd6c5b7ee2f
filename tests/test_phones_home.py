"""The short form of `benchmarks/phones_home.py`: its reading of system calls, two commands, and a planted call."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/phones_home.py"


@pytest.fixture
def phones_home(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("phones_home")


@pytest.mark.parametrize(
    ("line", "leaves"),
    [
        ('7 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 0', True),
        ('7 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0', False),
        (
            '[pid 12] connect(3, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2001:db8::1", &a)}, 28 <unfin',
            True,
        ),
        ('7 connect(3, {sa_family=AF_INET6, sin6_port=htons(9), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0', False),
        (
            '7 connect(3, {sa_family=AF_INET6, sin6_port=htons(9), inet_pton(AF_INET6, "::ffff:8.8.8.8", &sin6_addr)}, 28) = 0',
            True,
        ),
        ('7 connect(3, {sa_family=AF_UNIX, sun_path="/run/nscd/socket"}, 110) = -1 ENOENT', False),
        ("7 bind(3, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 0", False),
        ('7 bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0', False),
        (
            '7 sendto(3, ""..., 40, MSG_NOSIGNAL, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 40',
            True,
        ),
    ],
)  # fmt: skip
def test_calls_of_tells_what_leaves_the_computer(line: str, leaves: bool, phones_home: Any) -> None:
    (call,) = phones_home.calls_of([line])
    assert call.leaves is leaves


@pytest.mark.parametrize(
    "line", ["7 socket(AF_INET, SOCK_STREAM, 0) = 3", '7 sendto(3, ""..., 4, 0, NULL, 0) = 4', "nonsense"]
)
def test_calls_of_leaves_out_what_has_no_address(line: str, phones_home: Any) -> None:
    assert phones_home.calls_of([line]) == []


def _watch(result: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = [sys.executable, str(SCRIPT), "--without-offline", "--json", str(result), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if not result.exists():
        pytest.fail(ran.stdout + ran.stderr)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return ran.returncode, found


def test_doctor_and_nncf_phone_nobody(tmp_path: Path) -> None:
    code, found = _watch(tmp_path / "result.json", "--only", "doctor", "--only", "nncf")
    if "Operation not permitted" in str(found):
        pytest.skip("strace may not trace here")
    assert (code, found["left"], found["failed"], found["home"]) == (0, 0, [], [])
    assert found["processes"] >= 2


def test_a_call_that_leaves_the_computer_is_found(tmp_path: Path) -> None:
    code, found = _watch(tmp_path / "result.json", "--only", "none", "--plant")
    assert (code, found["left"]) == (1, 1)
