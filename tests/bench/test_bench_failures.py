"""Workers that crash, hang or run out of memory, and disks that are full: each its own message and exit code, never a hang."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebert._out_of_memory import says_out_of_memory
from edgebert.bench import accuracy_pass, out_of_memory, session, worker_process
from edgebert.bench.harness import result_from_arms
from edgebert.bench.images import write_images
from edgebert.bench.options import BenchOptions
from edgebert.bench.out_of_memory import oom_kills
from edgebert.bench.result import read_result
from edgebert.bench.schema import Result
from edgebert.bench.scratch import scratch_folder, writing_to
from edgebert.bench.worker_process import WorkerProcess
from edgebert.errors import CannotWriteError, EdgebertError, MemoryExhaustedError

ScriptArm = Callable[..., Path]
Bench = Callable[..., Result]
WARM = 36 + 40  # a query after the accuracy pass of the 36 test images, in the warm-up or the blocks
IN_ACCURACY = 5


@pytest.fixture
def bench(tmp_path: Path, quick: BenchOptions, worker_command: list[str]) -> Bench:
    """Return a function that measures scripted arms."""

    def measure(*arms: Path | str, **changes: object) -> Result:
        options = replace(quick, **changes)  # type: ignore[arg-type]  # the fields that a test names
        return result_from_arms(list(arms), tmp_path / "r.json", options, worker_command=worker_command)

    return measure


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hang be noticed within a second."""
    monkeypatch.setattr(session, "_ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(accuracy_pass, "_ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(accuracy_pass, "_FIRST_TIMEOUT_S", 5.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("query", "doing"), [(IN_ACCURACY, "classify"), (WARM, "(warm|block)")])
def test_result_from_arms_ends_a_backend_that_hangs(
    bench: Bench, script_arm: ScriptArm, query: int, doing: str
) -> None:
    started = time.monotonic()
    with pytest.raises(EdgebertError, match=rf"arm `stuck` did not answer `{doing}` within .* s: it hangs") as caught:
        bench(script_arm("stuck", hang_at=query))
    assert caught.value.exit_code == 1
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("query", [IN_ACCURACY, WARM])
def test_result_from_arms_says_when_memory_ran_out_in_a_worker(bench: Bench, script_arm: ScriptArm, query: int) -> None:
    with pytest.raises(MemoryExhaustedError, match=r"arm `a`: memory ran out.*the planted shortage") as caught:
        bench(script_arm("a", memory_error_at=query))
    assert caught.value.exit_code == 75
    assert "--images" in (caught.value.hint or "")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_result_from_arms_says_when_a_worker_met_its_limit_of_memory(bench: Bench, script_arm: ScriptArm) -> None:
    with pytest.raises(MemoryExhaustedError, match="memory ran out"):
        bench(script_arm("a", oom_at=WARM))


def test_result_from_arms_names_a_kill_for_lack_of_memory_where_the_kernel_counted_one(
    bench: Bench, script_arm: ScriptArm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "oom_kills", lambda: 0)
    monkeypatch.setattr(out_of_memory, "oom_kills", lambda: 1)
    with pytest.raises(MemoryExhaustedError, match=r"arm `a` ended \(signal 9\).*memory ran out") as caught:
        bench(script_arm("a", killed_at=IN_ACCURACY))
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("kills", [0, None])
def test_result_from_arms_does_not_blame_memory_where_nothing_was_counted(
    bench: Bench, script_arm: ScriptArm, monkeypatch: pytest.MonkeyPatch, kills: int | None
) -> None:
    monkeypatch.setattr(worker_process, "oom_kills", lambda: kills)
    monkeypatch.setattr(out_of_memory, "oom_kills", lambda: kills)
    with pytest.raises(EdgebertError, match=r"ended \(signal 9\).*when memory is short") as caught:
        bench(script_arm("a", killed_at=IN_ACCURACY))
    assert caught.value.exit_code == 1


def test_result_from_arms_leaves_no_result_of_a_crash_in_the_first_launch(
    bench: Bench, script_arm: ScriptArm, tmp_path: Path
) -> None:
    with pytest.raises(EdgebertError, match=r"arm `a` ended \(exit code 9\)"):
        bench(script_arm("a", crash_at=WARM))
    assert list(tmp_path.glob("r.*")) == []
    assert not list(tmp_path.glob(".r.*"))


def test_result_from_arms_survives_a_library_that_babbles_on_stderr(bench: Bench, script_arm: ScriptArm) -> None:
    assert bench(script_arm("a", babbles=True), launches=1).status.partial is False


def test_worker_process_ends_a_worker_that_does_not_read_a_long_request() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = time.monotonic()
    with (
        pytest.raises(EdgebertError, match="did not answer `images` within 1 s: it hangs"),
        WorkerProcess("a", 1, command) as worker,
    ):
        worker.ask("images", {"text": "x" * (4 << 20)}, timeout_s=1.0)
    assert time.monotonic() - started < 30


def test_worker_process_ends_what_its_worker_started_and_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child of the worker holds its pipes open; a harness that waits for their end would wait for ever."""
    monkeypatch.setattr(worker_process, "_END_SECONDS", 0.5)
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']); sys.exit(3)"
    started = time.monotonic()
    with (
        pytest.raises(EdgebertError, match=r"ended \(exit code 3\)"),
        WorkerProcess("a", 1, [sys.executable, "-c", code]) as worker,
    ):
        worker.ask("load", {"text": "x" * (1 << 20)}, timeout_s=20.0)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "line",
    [
        '{"v": 1, "seq": 7, "type": "loaded"}',
        "x" * (9 << 20),
    ],
    ids=["wrong seq", "endless line"],
)
def test_worker_process_refuses_a_wrong_number_and_an_endless_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "line"
    file.write_text(line + "\n")
    code = (
        f"import sys; sys.stdin.readline(); sys.stdout.write(open({str(file)!r}).read()); sys.stdout.flush(); input()"
    )
    with pytest.raises(EdgebertError), WorkerProcess("a", 1, [sys.executable, "-c", code]) as worker:
        worker.ask("load", timeout_s=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MemoryError", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("the planted crash", False),
        ("", False),
    ],
)
def test_says_out_of_memory_knows_the_words_of_the_libraries(text: str, expected: bool) -> None:
    assert says_out_of_memory(text) is expected


def test_oom_kills_reads_the_counters_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    for path, text in {
        "proc/vmstat": "nr_free_pages 1\noom_kill 2\n",
        "proc/self/cgroup": "4:cpu,memory:/a/b\n0::/c\n",
        "sys/fs/cgroup/memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "sys/fs/cgroup/c/memory.events": "low 0\noom 9\noom_kill 5\noom_group_kill 100\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert oom_kills(tmp_path) == 10
    (tmp_path / "proc/vmstat").write_text("oom_kill many\n")
    assert oom_kills(tmp_path) == 8


def test_writing_to_names_the_folder_and_what_helps(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="No space left on device") as caught, writing_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 74
    assert str(tmp_path) in caught.value.what
    assert "TMPDIR" in (caught.value.hint or "")


def test_write_images_on_a_full_device_names_the_folder() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(CannotWriteError, match="cannot write to `/dev`: No space left"):
        write_images(Path("/dev/full"), [np.zeros((64, 64, 3), np.uint8)])


def test_scratch_folder_is_gone_after_an_error() -> None:
    seen: list[Path] = []

    def work(folder: Path) -> None:
        (folder / "file").write_bytes(b"x")
        seen.append(folder)
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), scratch_folder() as folder:
        work(folder)
    assert not seen[0].exists()


# What a full disk does, at a size of our choosing: no file of this process or its children grows beyond the limit.
_SMALL_DISK = """
import json, resource, sys
from pathlib import Path
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.errors import EdgebertError
command, arm, data, output, limit = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
options = BenchOptions(data=data, launches=1, seconds=0.2, queries=40, max_warmup_seconds=0.0, threads=1)
try:
    result_from_arms([arm], Path(output), options, worker_command=command)
except EdgebertError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("limit", [100, 5_000, 12_000, 20_000, 40_000])
def test_result_from_arms_on_a_full_disk_leaves_nothing_half_written(
    script_arm: ScriptArm, image_folder: Path, worker_command: list[str], tmp_path: Path, limit: int
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    arguments = [worker_command, str(script_arm("a")), str(image_folder), str(folder / "r.json"), limit]
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_DISK, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 74), done.stdout + done.stderr
    if done.returncode == 0:
        assert not read_result(folder / "r.json").status.partial
    else:
        assert "cannot write" in done.stdout
        assert list(folder.iterdir()) == []
    assert limit > 5_000 or done.returncode == 74
