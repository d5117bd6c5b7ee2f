from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebert._files import sha256_of_path
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.result import read_result, read_result_samples, samples_path
from edgebert.bench.schema import Result
from edgebert.bench.worker_process import WorkerProcess, worker_environment
from edgebert.card import ImageSet
from edgebert.data import load_dataset
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, UnavailableError, UsageError

ScriptArm = Callable[..., Path]
Bench = Callable[..., Result]


@pytest.fixture
def bench(tmp_path: Path, quick: BenchOptions, worker_command: list[str]) -> Bench:
    """Return a function that measures scripted arms."""

    def measure(*arms: Path | str, **changes: object) -> Result:
        options = replace(quick, **changes)  # type: ignore[arg-type]  # the fields that a test names
        return result_from_arms(list(arms), tmp_path / "r.json", options, worker_command=worker_command)

    return measure


def test_result_from_arms_sees_a_planted_slowdown(bench: Bench, script_arm: ScriptArm) -> None:
    result = bench(script_arm("fast", latency_ms=1.0), script_arm("slow", latency_ms=3.0), launches=2)
    comparison = result.comparison("slow")
    assert comparison is not None
    assert (comparison.a, comparison.scope, comparison.launches) == ("fast", "within-run only", 2)
    assert comparison.speedup == pytest.approx(1 / comparison.ratio)
    assert 1.5 < comparison.ratio < 6
    for arm, least in zip(result.measured_arms, (1_000_000, 3_000_000), strict=True):
        e2e = arm.scenarios[0].latency.e2e
        assert e2e.p50.value is not None
        assert e2e.min >= least
        assert e2e.p50.value >= least
    assert result.status.valid
    assert result.exit_code == 0


def test_result_from_arms_measures_accuracy_of_the_whole_test_split_by_class_name(
    bench: Bench, script_arm: ScriptArm
) -> None:
    right = script_arm("right")
    turned = script_arm("turned", class_names=("cat", "ant", "bee"))
    wrong = script_arm("wrong", answers=[0, 1, 1] + [0] * 13, source_model="ab" * 32, precision="int8")
    result = bench(right, turned, wrong, launches=2)
    assert [arm.accuracy.top1.value for arm in result.measured_arms] == [1.0, 1.0, pytest.approx(2 / 3)]
    assert result.dataset is not None
    assert result.dataset.n == 36
    assert result.dataset.class_names == ("ant", "bee", "cat")
    assert result.arms[2].accuracy.confusion == ((12, 0, 0), (0, 12, 0), (0, 12, 0))
    assert result.arms[2].accuracy.per_class[2].recall == 0
    assert [arm.consistency.mismatch for arm in result.arms] == [0] * 4
    assert result.arms[3].consistency.rechecked == 36
    agreement = result.arms[2].accuracy.agreement
    assert agreement is not None
    assert agreement.reference == "right"
    assert agreement.share.value == pytest.approx(2 / 3)
    assert result.arms[0].accuracy.agreement is None
    assert "is the reference" in result.not_measured["arms.right.accuracy.agreement"]
    comparison = result.comparison("wrong")
    assert comparison is not None
    assert comparison.accuracy.only_a_right == 12


def test_result_from_arms_has_no_agreement_when_no_arm_shares_the_checkpoint(
    bench: Bench, script_arm: ScriptArm
) -> None:
    arms = script_arm("a", source_model="11" * 32), script_arm("b", source_model=None, answers=[1] * 16)
    result = bench(*arms)
    assert [arm.accuracy.agreement for arm in result.measured_arms] == [None, None]
    assert "--reference" in result.not_measured["arms.b.accuracy.agreement"]
    named = bench(*arms, reference="a", baseline="b").arms
    assert named[1].accuracy.agreement is not None
    assert [(arm.id, arm.role) for arm in named] == [("a", "candidate"), ("b", "baseline"), ("b (A/A)", "aa")]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ({"wrong_from": 36 + 25}, "timed answers differ"),
        ({"fail_at": 36 + 40}, "failed; the first: RuntimeError: the planted failure"),
        ({"fail_at": 5}, "failed; the first"),
        ({"remembers": True, "latency_ms": 2.0}, "answers are remembered"),
        ({"skips_every": 10, "latency_ms": 1.0}, "work is skipped"),
        ({"sleeps_ms": 5.0, "latency_ms": 0.0}, "waits instead of computing"),
        ({"garbage_every": 100}, "timed answers differ"),
    ],
)
def test_result_from_arms_is_invalid_when_an_arm_cheats(
    bench: Bench, script_arm: ScriptArm, script: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "edgebert"):
        result = bench(script_arm("honest"), script_arm("cheat", **script))
    assert not result.status.valid
    assert result.exit_code == 5
    assert any(reason in text and "`cheat`" in text for text in result.status.reasons)
    assert reason in caplog.text


def test_result_from_arms_keeps_a_slow_query(bench: Bench, script_arm: ScriptArm) -> None:
    # Not in the first fifth of a second, which is warm-up. A block's first query is not counted: where blocks begin is the
    # computer's affair, but of two neighbours only one can be such a first.
    slow = {"queries": [36 + 300, 36 + 301], "ms": 150}
    result = bench(script_arm("spike", latency_ms=2.0, slow_at=slow), seconds=2.0)
    assert result.arms[0].scenarios[0].latency.e2e.max >= 150_000_000


def test_result_from_arms_says_that_p99_is_not_estimable_when_there_are_few_queries(
    bench: Bench, script_arm: ScriptArm
) -> None:
    p99 = bench(script_arm("few", latency_ms=10.0)).arms[0].scenarios[0].latency.e2e.p99
    assert (p99.value, p99.needs) == (None, 299)


def test_result_from_arms_leaves_out_images_that_an_arm_has_seen(
    bench: Bench, script_arm: ScriptArm, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = load_dataset(image_folder).test
    one = ImageSet.from_hashes([test[3].pixel_sha256])
    with pytest.raises(BadDataError, match="1 of 36 test images were used to make a"):  # 2.8 %
        bench(script_arm("a", seen=one))


def test_result_from_arms_refuses_other_classes(bench: Bench, script_arm: ScriptArm) -> None:
    with pytest.raises(BadDataError, match="dog"):
        bench(script_arm("a", class_names=("ant", "bee", "dog"), answers=[0] * 16))
    with pytest.raises(BadDataError, match="arm `b` has other classes"):
        bench(script_arm("a"), script_arm("b", class_names=("ant", "bee", "dog"), answers=[0] * 16))


def test_result_from_arms_writes_what_read_result_reads_and_changes_no_artefact(
    bench: Bench, script_arm: ScriptArm, tmp_path: Path
) -> None:
    arm = script_arm("a")
    before = sha256_of_path(arm)
    result = bench(arm, baseline="a")
    assert sha256_of_path(arm) == before == result.arms[0].artifact.sha256
    assert read_result(tmp_path / "r.json") == result
    samples = read_result_samples(tmp_path / "r.json", result)
    e2e = samples["t_done"] - samples["t_issue"]
    counted = (samples["flags"] == 0) & (samples["arm"] == 0)
    assert result.arms[0].scenarios[0].queries == np.count_nonzero(counted)
    assert result.arms[0].scenarios[0].latency.e2e.p50.value == np.percentile(e2e[counted], 50, method="inverted_cdf")
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()


def test_result_from_arms_refuses_to_overwrite_before_it_measures(
    bench: Bench, script_arm: ScriptArm, tmp_path: Path
) -> None:
    samples_path(tmp_path / "r.json").write_bytes(b"")
    started = time.monotonic()
    with pytest.raises(CannotWriteError, match=r"r\.samples\.npz"):
        bench(script_arm("a"), force=False)
    assert time.monotonic() - started < 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder here in which nobody can write")
def test_result_from_arms_finds_out_before_measuring_that_it_cannot_write(
    script_arm: ScriptArm, quick: BenchOptions
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no worker is started')"]
    with pytest.raises(CannotWriteError, match=r"cannot write `/proc/self/r\.json`"):
        result_from_arms([script_arm("a")], Path("/proc/self/r.json"), quick, worker_command=command)


def test_result_from_arms_finds_out_before_measuring_that_a_target_is_not_here(
    bench: Bench, script_arm: ScriptArm, tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match="arm `b`: the planted device is not here") as caught:
        bench(script_arm("a"), script_arm("b", unavailable=True))
    assert caught.value.exit_code == 69
    assert not (tmp_path / "r.json").exists()


def test_result_from_arms_shows_the_last_words_of_a_worker_that_crashed(
    bench: Bench, script_arm: ScriptArm, tmp_path: Path
) -> None:
    with pytest.raises(EdgebertError, match=r"arm `b` ended \(exit code 9\)") as caught:
        bench(script_arm("a"), script_arm("b", crash_at=36 + 30))
    assert "the planted crash" in str(caught.value)
    assert list(tmp_path.glob("r.*")) == []


def test_result_from_arms_survives_a_library_that_prints(bench: Bench, script_arm: ScriptArm) -> None:
    assert bench(script_arm("noisy", stray_print=True)).status.valid


def test_result_from_arms_refuses_names_of_no_arm(bench: Bench, script_arm: ScriptArm) -> None:
    with pytest.raises(UsageError, match="--reference other"):
        bench(script_arm("a"), reference="other")


def test_result_from_arms_fails_when_an_arm_fails_on_every_image(bench: Bench, script_arm: ScriptArm) -> None:
    with pytest.raises(EdgebertError, match="arm `broken` failed on every image: IndexError"):
        bench(script_arm("broken", answers=[]))


def test_worker_environment_sets_threads_and_finds_this_very_package() -> None:
    environment = worker_environment(3)
    assert {environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    code = "import edgebert, sys; sys.stdout.write(edgebert.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd="/"
    )
    import edgebert

    assert Path(done.stdout).resolve() == Path(edgebert.__file__).resolve()


def test_worker_process_kills_a_worker_that_does_not_answer() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        pytest.raises(EdgebertError, match="did not answer `load` within 0 s"),
        WorkerProcess("a", 1, command) as worker,
    ):
        worker.ask("load", timeout_s=0.2)
    assert not alive(worker.pid)


@pytest.mark.parametrize("line", ["hello", '{"v": 2, "seq": 1, "type": "loaded"}', "[1]", '{"v": 1}', "\\xff"])
def test_worker_process_refuses_what_is_no_answer(line: str) -> None:
    code = f"import sys; sys.stdin.readline(); sys.stdout.write('{line}\\n'); sys.stdout.flush(); sys.stdin.read()"
    with pytest.raises(EdgebertError), WorkerProcess("a", 1, [sys.executable, "-c", code]) as worker:
        worker.ask("load", timeout_s=20)
    assert not alive(worker.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_end_when_their_parent_is_killed(script_arm: ScriptArm, worker_command: list[str]) -> None:
    arm = script_arm("endless", latency_ms=60_000.0)
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, json.dumps(worker_command), str(arm)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    workers = json.loads(parent.stdout.readline())
    assert all(alive(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def test_worker_asks_to_end_with_its_parent_before_it_imports_what_takes_long() -> None:
    """A slow device takes longer to import numpy than a lost link may leave a process behind."""
    from edgebert.bench import worker

    lines = Path(worker.__file__).read_text(encoding="utf-8").splitlines()
    assert lines.index("    die_with_parent()") < lines.index("import numpy as np")


# Starts two workers, of which one is busy in a call of a minute and the other waits for a request.
_PARENT = """
import json, sys, threading, time
import numpy as np
from edgebert.bench.images import write_images
from edgebert.bench.worker_process import WorkerProcess
from pathlib import Path
command, arm = json.loads(sys.argv[1]), sys.argv[2]
workers = [WorkerProcess(name, 1, command) for name in ("busy", "waiting")]
for worker in workers:
    worker.ask("load", {"path": arm, "kind": "graph", "target": None, "threads": 1, "cpus": []}, timeout_s=60)
message = write_images(Path(arm).with_suffix(".pixels"), [np.zeros((8, 8, 3), np.uint8)])
message["answers"] = str(Path(arm).with_suffix(".npz"))
threading.Thread(target=workers[0].ask, args=("classify", message), kwargs={"timeout_s": 600}).start()
time.sleep(0.3)
print(json.dumps([worker.pid for worker in workers]), flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended but was not waited for does not."""
    try:
        os.kill(pid, 0)
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().replace(")", ") ")
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_worker_imports_no_backend_and_no_workbench() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "transformers", "matplotlib", "jinja2", "typer", "sklearn")
    code = f"import sys, edgebert.bench.worker; sys.stdout.write(str([n for n in {heavy} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]"
