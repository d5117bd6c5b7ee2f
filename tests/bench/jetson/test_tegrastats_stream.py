from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgebert.bench.environment.jetson.tegrastats import Reading
from edgebert.bench.environment.jetson.tegrastats_child import NOT_STARTED
from edgebert.bench.environment.jetson.tegrastats_stream import TegrastatsStream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tegrastats is a program of Linux")

FAKE = str(Path(__file__).with_name("fake_tegrastats.py"))
PATIENCE_S = 60.0

Start = Callable[..., TegrastatsStream]


@pytest.fixture
def start(tmp_path: Path, lines: dict[str, str]) -> Start:
    """Return a function that starts the stand-in with some lines."""

    def started(content: bytes | None = None, mode: str = "forever", interval_ms: int = 20) -> TegrastatsStream:
        file = tmp_path / "lines"
        file.write_bytes((lines["thor-r39-loaded"] + "\n").encode() if content is None else content)
        command = (sys.executable, FAKE, str(file), str(tmp_path / "pid"), mode)
        return TegrastatsStream(interval_ms=interval_ms, command=command)

    return started


def until(found: Callable[[], object]) -> object:
    ends = time.monotonic() + PATIENCE_S
    while not (value := found()) and time.monotonic() < ends:
        time.sleep(0.02)
    return value


def vin(reading: Reading | None) -> list[int]:
    return [] if reading is None else [rail.now_mw for rail in reading.rails if rail.label == "VIN"]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def test_first_waits_for_a_line(start: Start) -> None:
    stream = start()
    assert vin(stream.first(PATIENCE_S)) == [124486]
    stream.close()


@pytest.mark.parametrize("mode", ["forever", "cut"])
def test_latest_reads_whole_lines_however_they_come(start: Start, lines: dict[str, str], mode: str) -> None:
    both = (lines["thor-r39-loaded"] + "\n" + lines["thor-r39-idle"] + "\n").encode()
    stream = start(both, mode)
    seen: set[int] = set()

    def both_seen() -> bool:
        seen.update(vin(stream.latest()))
        return len(seen) > 1

    assert until(both_seen)
    assert seen == {124486, 28906}
    assert stream.refused == 0
    stream.close()


def test_latest_survives_garbage_between_two_lines(start: Start, lines: dict[str, str]) -> None:
    garbage = b"\xff\xfe\x00garbage\n\n" + b"RAM " * 5_000 + b"\n"
    stream = start(garbage + (lines["thor-r39-idle"] + "\n").encode())
    assert vin(stream.first(PATIENCE_S)) == [28906]
    assert stream.refused >= 2
    stream.close()


def test_latest_does_not_keep_a_line_without_an_end(start: Start) -> None:
    stream = start(b"x" * 400_000)
    until(lambda: stream.latest() or len(stream._unread) > 0)
    for _ in range(20):
        assert stream.latest() is None
        assert len(stream._unread) <= 8_192
        time.sleep(0.02)
    stream.close()


def test_latest_is_none_once_its_line_is_old(start: Start) -> None:
    now = 0.0
    stream = start(mode="once")
    stream._clock = lambda: now
    assert until(stream.latest)
    now = 10.0
    assert stream.latest() is None
    stream.close()


def test_latest_does_not_believe_the_last_line_of_one_that_died(start: Start) -> None:
    stream = start(mode="once")
    until(lambda: stream.latest() and stream.problem)
    assert "ended by itself" in stream.problem
    reading = stream.latest()
    assert reading is None or [rail for rail in reading.rails if rail.now_mw == 77] == []
    stream.close()


def test_stream_says_that_the_program_is_missing() -> None:
    stream = TegrastatsStream(interval_ms=100, command=("no-such-tegrastats",))
    assert stream.first(0.1) is None
    assert stream.problem == "`no-such-tegrastats` is not on PATH"
    stream.close()


@pytest.mark.parametrize("mode", ["forever", "deaf"])
def test_close_ends_the_program(start: Start, tmp_path: Path, mode: str) -> None:
    stream = start(mode=mode)
    assert stream.first(PATIENCE_S)
    pid = int((tmp_path / "pid").read_text(encoding="ascii"))
    assert pid == stream.pid  # the child became the program: there is no process in between
    stream.close()
    assert not is_alive(pid)
    stream.close()


def test_program_is_killed_with_its_parent(tmp_path: Path, lines: dict[str, str]) -> None:
    (tmp_path / "lines").write_text(lines["thor-r39-idle"] + "\n", encoding="utf-8")
    command: Sequence[str] = (sys.executable, FAKE, str(tmp_path / "lines"), str(tmp_path / "pid"), "deaf")
    code = (
        "import sys, time\n"
        "from edgebert.bench.environment.jetson.tegrastats_stream import TegrastatsStream\n"
        "stream = TegrastatsStream(interval_ms=20, command=sys.argv[1:])\n"
        "print(bool(stream.first(60)), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == "True"
        pid = int((tmp_path / "pid").read_text(encoding="ascii"))
        os.kill(parent.pid, signal.SIGKILL)
    assert until(lambda: not is_alive(pid))


def test_child_does_not_become_the_program_of_a_parent_that_is_gone() -> None:
    command = [
        sys.executable,
        "-m",
        "edgebert.bench.environment.jetson.tegrastats_child",
        "1",
        sys.executable,
        "-c",
        "",
    ]
    assert subprocess.run(command, check=False).returncode == NOT_STARTED
