"""The process of a task: its answer, and every bad end of it, with a child that is a line of Python."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgebert.bench import out_of_memory
from edgebert.errors import EdgebertError, MemoryExhaustedError
from edgebert.jetson_check import process
from edgebert.jetson_check.process import answer_of


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal, sys, time\n{code}")


def asked(code: str, timeout_s: float = 60.0) -> EdgebertError:
    """Return how a child is explained that does not answer."""
    with pytest.raises(EdgebertError) as caught:
        answer_of("run", {}, timeout_s=timeout_s, command=child(code))
    return caught.value


def test_answer_of_gives_the_request_and_returns_the_answer() -> None:
    answer = answer_of("run", {"folder": "x"}, timeout_s=60, command=child("print(sys.stdin.readline(), end='')"))
    assert (answer.text("type"), answer.text("folder")) == ("run", "x")


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11, SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "signal 6, SIGABRT"),
        ("sys.exit(7)", "exit code 7"),
        ("print('no message')", "exit code 0"),
        ("pass", "exit code 0"),
    ],
)
def test_answer_of_explains_a_crash(code: str, ending: str) -> None:
    error = asked(f"sys.stderr.write('terminate called\\nin nvinfer\\n'); sys.stderr.flush()\n{code}")
    assert error.what == f"the process of `run` crashed ({ending})"
    assert "terminate called / in nvinfer" in str(error.expected)
    assert "dmesg" in str(error.hint)


@pytest.mark.parametrize("counted", [True, False])
def test_answer_of_explains_a_kill_by_the_system(monkeypatch: pytest.MonkeyPatch, counted: bool) -> None:
    monkeypatch.setattr(process, "oom_kills", lambda: 3)
    monkeypatch.setattr(out_of_memory, "oom_kills", lambda: 4 if counted else 3)
    error = asked("os.kill(os.getpid(), signal.SIGKILL)")
    assert isinstance(error, MemoryExhaustedError)
    assert ("it has counted none" in error.what) is not counted


def test_answer_of_reads_in_its_last_words_that_memory_ran_out() -> None:
    error = asked("sys.stderr.write('std::bad_alloc'); sys.stderr.flush(); os.abort()")
    assert isinstance(error, MemoryExhaustedError)


def test_answer_of_ends_what_hangs_and_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess\n"
        f"other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid))\n"
        "time.sleep(600)"
    )
    error = asked(code, timeout_s=10)
    assert error.what == "`run` did not end within 10 s: it hangs, and was ended"
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < until:  # a kill is not done when it is sent
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
