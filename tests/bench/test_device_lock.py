"""One measurement at a time: the lock, who holds it, and that it ends with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgebert.bench.device_lock import LOCK_VARIABLE, device_lock, device_lock_path
from edgebert.errors import CannotWriteError, LockedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no flock")

_HOLDER = """
import sys, time
from pathlib import Path
from edgebert.bench.device_lock import device_lock
with device_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock in another process."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_device_lock_names_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(LockedError, match=rf"\(pid {process.pid}\)") as caught, device_lock(path):
            raise AssertionError("two measurements at once")
        assert caught.value.exit_code == 75


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_device_lock_ends_with_its_process(tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        process.send_signal(end)
        process.wait()
        with device_lock(path):
            assert path.read_text() == f"pid {os.getpid()}"


def test_device_lock_is_not_held_by_what_a_measurement_starts(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with device_lock(path):
        child = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            close_fds=False,
        )
    assert child.stdout is not None
    child.stdout.readline()  # it has begun: what it inherits, it has
    try:
        with device_lock(path):
            pass
    finally:
        child.communicate(b"\n")


def test_device_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ValueError, match="planted"), device_lock(path):
        raise ValueError("planted")
    with device_lock(path):
        pass


def test_device_lock_refuses_a_link_that_somebody_else_put_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(CannotWriteError, match="cannot open the lock") as caught, device_lock(tmp_path / "lock"):
        raise AssertionError("a link was followed")
    assert target.read_text() == "precious"
    assert LOCK_VARIABLE in (caught.value.hint or "")


def test_device_lock_path_is_the_users_own_or_what_the_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_VARIABLE, str(tmp_path / "mine"))
    assert device_lock_path() == tmp_path / "mine"
    monkeypatch.delenv(LOCK_VARIABLE)
    assert device_lock_path().name == f"edgebert-bench-{os.getuid()}.lock"


def test_device_lock_waits_where_it_is_asked_to_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        ender = threading.Timer(0.5, process.kill)
        ender.start()
        with device_lock(path, wait_s=60.0):
            assert path.read_text() == f"pid {os.getpid()}"
        ender.join()
        assert f"(pid {process.pid}): waiting for it" in caplog.text
    with holder(path), pytest.raises(LockedError), device_lock(path, wait_s=0.3):
        raise AssertionError("two measurements at once")
