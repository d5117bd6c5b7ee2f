"""Ctrl-C at any moment of a measurement: it ends soon, leaves no worker, and a result only if it is whole and marked partial."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bench.result import read_result
from edgebert.errors import INTERRUPTED_EXIT_CODE

ScriptArm = Callable[..., Path]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are found in /proc")

_CHILDREN = 4  # the sampler, two arms and the control
_END_SECONDS = 60

# The command line's own last lines, with a worker that is a script.
_BENCH = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell inherits that it is ignored
from edgebert._console import run_command
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
command, arms, data, output = json.loads(sys.argv[1])
options = BenchOptions(data=data, launches=2, seconds=0.6, queries=40, max_warmup_seconds=0.0, threads=1, force=True)
def bench():
    print("begun", flush=True)
    result_from_arms(arms, Path(output), options, worker_command=command)
    return 0
sys.exit(run_command(bench, debug=False, as_json=False))
"""


def children_of(pid: int) -> list[int]:
    """Return the numbers of all processes that a process has started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def running(pid: int) -> bool:
    """Say whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class _Run:
    """One `bench` in a process of its own, in a group of its own as on a terminal."""

    def __init__(self, arguments: list[object]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BENCH, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def interrupt(self) -> list[int]:
        """Send Ctrl-C to the group, and return what the process had started."""
        children = children_of(self.process.pid)
        os.killpg(self.process.pid, signal.SIGINT)
        return children

    def end(self) -> tuple[int, str]:
        """Wait, and return the exit code and stderr."""
        try:
            _, told = self.process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, told


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_bench_interrupted_at_any_moment_ends_and_leaves_a_partial_result_or_none(
    count: int, script_arm: ScriptArm, image_folder: Path, worker_command: list[str], tmp_path: Path
) -> None:
    arms = [str(script_arm("a", latency_ms=0.5)), str(script_arm("b", latency_ms=0.5))]
    output = tmp_path / "out" / "r.json"
    arguments: list[object] = [worker_command, arms, str(image_folder), str(output)]
    started = time.monotonic()
    code, told = _Run(arguments).end()
    assert code == 0, told
    length = time.monotonic() - started
    assert not read_result(output).status.partial
    moments = random.Random(count)
    partial = 0
    for number in range(count):
        for file in output.parent.iterdir():
            file.unlink()
        run = _Run(arguments)
        # The first while the workers are at work, whatever the computer is busy with; the others at any moment.
        wait = moments.uniform(0.0, 0.9 * length) if number else moments.uniform(0.0, 0.5)
        while not number and len(children_of(run.process.pid)) < _CHILDREN:
            time.sleep(0.02)
        time.sleep(wait)
        children = run.interrupt() if run.process.poll() is None else []
        code, told = run.end()
        moment = f"after {wait:.2f} of {length:.2f} s: {told}"
        assert "Traceback" not in told, moment
        assert code in (INTERRUPTED_EXIT_CODE, 0), moment
        until = time.monotonic() + 10
        while any(map(running, children)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(running, children)), moment
        names = {file.name for file in output.parent.iterdir()}
        assert names in (set(), {"r.json", "r.samples.npz"}), moment
        if names:
            status = read_result(output).status
            assert status.partial == (code == INTERRUPTED_EXIT_CODE), moment
            partial += status.partial
        else:
            assert code == INTERRUPTED_EXIT_CODE, moment
    assert partial > 0, "no moment fell into the measurement"
