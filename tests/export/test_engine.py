"""Engines built in processes of their own, over the double of TensorRT: what comes back, what survives, and how an end is explained."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebert.bench import out_of_memory
from edgebert.errors import (
    EdgebertError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
    UnreadableError,
    UsageError,
)
from edgebert.export import engine_process
from edgebert.export.engine import (
    EngineCandidate,
    EngineOptions,
    EngineReport,
    MeasuredEngine,
    build_engine,
    engine_files,
    faster_engine,
    workspace_bytes,
)
from edgebert.fingerprint import GpuFacts
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest
from tests.tensorrt.jetson import ORIN_NANO, Jetson

ROOT = Path(__file__).parents[2]
Device = Callable[..., None]

_DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { (void)length; strcpy(name, "Orin"); return device - 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 16 ? 8 : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device - 7;
}
"""


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that knows one GPU, an Orin with 8 multiprocessors."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a driver with")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(_DRIVER)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, driver: Path, tmp_path: Path) -> Device:
    """Return a function that says what the builder processes of this test find."""
    pytest.importorskip("onnx")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "tensorrt" / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts = GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, cuda="12.6")
    monkeypatch.setattr("edgebert.fingerprint.gpu_facts", lambda: facts)
    monkeypatch.setattr("edgebert.fingerprint.installed_version", lambda module: "10.3.0")

    def has(**script: Any) -> None:
        monkeypatch.setenv("EDGEBERT_TEST_TENSORRT", json.dumps(script))

    has()
    return has


def options(tmp_path: Path, **changes: Any) -> EngineOptions:
    return EngineOptions(**{"folder": tmp_path / "engines", "precision": "fp16", **changes})


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2.10"])
def test_auto_builds_both_and_says_all_of_them(device: Device, toy: Any, tmp_path: Path, version: str) -> None:
    device(version=version)
    report = build_engine(toy.graph(), options(tmp_path))
    assert [candidate.typing for candidate in report.built] == ["weak", "strong"]
    for candidate in report.built:
        assert candidate.folder is not None
        plan, manifest = (candidate.folder / PLAN_FILE).read_bytes(), candidate.manifest
        assert manifest == EngineManifest.from_bytes((candidate.folder / ENGINE_FILE).read_bytes())
        assert manifest is not None
        assert manifest.plan_sha256 == hashlib.sha256(plan).hexdigest()
        assert manifest.graph_sha256 == hashlib.sha256(toy.graph()).hexdigest()
        assert manifest.fingerprint.to_text().endswith(
            f"backend_version == {version}, gpu Orin, compute_capability 8.7, cuda == 12.6, multiprocessors 8"
        )
        assert candidate.peak is not None
        assert candidate.peak.resident_mib > 0
    assert [candidate.builder_flags for candidate in report.built] == [("FP16",), ()]
    assert [candidate.timing_cache for candidate in report.built] == ["new", "reused"]
    assert json.loads(json.dumps(report.to_json()))["candidates"][1]["label"] == "strong-fp16"


def test_each_typing_takes_a_graph_of_its_own(device: Device, toy: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    other = onnx.load_from_string(toy.graph())
    other.doc_string = "another"
    graphs: dict[Any, bytes] = {"weak": toy.graph(), "strong": other.SerializeToString()}
    report = build_engine(graphs, options(tmp_path))
    found = {each.typing: each.manifest.graph_sha256 for each in report.built if each.manifest}
    assert found == {typing: hashlib.sha256(content).hexdigest() for typing, content in graphs.items()}
    with pytest.raises(UsageError, match="no graph for a strongly typed network"):
        build_engine({"weak": toy.graph()}, options(tmp_path))


@pytest.mark.parametrize("fails", ["strong", "weak"])
def test_auto_survives_the_failure_of_either(device: Device, toy: Any, tmp_path: Path, fails: str) -> None:
    said = "Error Code 9: Internal Error (Could not infer output types for operation: 42: dequantize. No matching rules found)"
    device(build_errors={fails: [said]})
    report = build_engine(toy.graph(), options(tmp_path))
    failed = next(candidate for candidate in report.candidates if candidate.typing == fails)
    assert [candidate.typing for candidate in report.built] == [{"strong": "weak", "weak": "strong"}[fails]]
    assert "Could not infer output types" in failed.failure
    assert "hint: " in failed.failure
    assert not (tmp_path / "engines" / fails / PLAN_FILE).exists()


def test_tensorrt_11_builds_strong_and_says_why_not_weak(device: Device, toy: Any, tmp_path: Path) -> None:
    device(version="11.4.1")
    report = build_engine(toy.graph(), options(tmp_path))
    assert [candidate.typing for candidate in report.built] == ["strong"]
    assert "TensorRT 11.4.1 builds strongly typed networks only" in report.candidates[0].failure
    with pytest.raises(UsageError, match="builds strongly typed networks only"):
        build_engine(toy.graph(), options(tmp_path, typing="weak"))


def test_two_failures_are_one_error_with_both_reasons(device: Device, toy: Any, tmp_path: Path) -> None:
    device(build_errors={"weak": ["Error Code 1: Cuda Runtime (out of memory)"], "strong": ["something new"]})
    with pytest.raises(MemoryExhaustedError) as caught:
        build_engine(toy.graph(), options(tmp_path))
    assert "weak: the engine could not be built: memory ran out" in caught.value.what
    assert "MiB were left on the device" in caught.value.what
    assert "strong: the engine could not be built: `something new`" in caught.value.what


def test_what_fails_alike_twice_is_said_once(device: Device, toy: Any, tmp_path: Path) -> None:
    device(version="10.1.0")
    with pytest.raises(UnavailableError) as caught:
        build_engine(toy.graph(), options(tmp_path))
    assert caught.value.what == "TensorRT `10.1.0` is not supported: it is too old"


# The process


@pytest.mark.parametrize("counted", [True, False])
def test_a_build_that_the_system_killed_is_explained(
    device: Device, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    device(dies="SIGKILL")
    monkeypatch.setattr(engine_process, "oom_kills", lambda: 3)
    monkeypatch.setattr(out_of_memory, "oom_kills", lambda: 4 if counted else 3)
    monkeypatch.setattr(out_of_memory, "_COUNTER_SECONDS", 0.1)
    with pytest.raises(MemoryExhaustedError) as caught:
        build_engine(toy.graph(), options(tmp_path, typing="strong"))
    error = caught.value
    assert error.exit_code == 75
    assert ("the system ended the build because memory ran out" in error.what) is counted
    assert ("it has counted none" in error.what) is not counted
    assert "MiB at its peak" in str(error.expected)
    assert "swap on NVMe" in str(error.hint)
    assert list((tmp_path / "engines" / "strong").iterdir()) == []


def test_a_build_that_crashes_is_explained(device: Device, toy: Any, tmp_path: Path) -> None:
    device(dies="SIGSEGV")
    with pytest.raises(EdgebertError, match=r"ended \(signal 11\) without an answer"):
        build_engine(toy.graph(), options(tmp_path, typing="strong"))
    assert list((tmp_path / "engines" / "strong").iterdir()) == []


def test_a_build_that_hangs_is_ended(device: Device, toy: Any, tmp_path: Path) -> None:
    device(dies="SIGSTOP")
    with pytest.raises(EdgebertError, match="was not built within 3 s"):
        build_engine(toy.graph(), options(tmp_path, typing="strong", timeout_s=3.0))


def test_a_builder_ends_with_its_parent(device: Device, toy: Any, tmp_path: Path) -> None:
    device(dies="SIGSTOP")
    (tmp_path / "model.onnx").write_bytes(toy.graph())
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgebert.export.engine import EngineOptions, build_engine\n"
        "folder = Path(sys.argv[1])\n"
        "build_engine((folder / 'model.onnx').read_bytes(), EngineOptions(folder=folder / 'e', typing='strong', precision='fp16'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    child = _until(lambda: _stopped_child(parent.pid))
    parent.kill()
    parent.wait()
    _until(lambda: not Path(f"/proc/{child}").exists() or _state(child) == "Z")


def test_ctrl_c_ends_the_builder_and_leaves_nothing(device: Device, toy: Any, tmp_path: Path) -> None:
    device(dies="SIGSTOP")
    (tmp_path / "model.onnx").write_bytes(toy.graph())
    (tmp_path / "tmp").mkdir()
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom edgebert.export.engine import EngineOptions, build_engine\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs the tests in the background ignores it
        "folder = Path(sys.argv[1])\n"
        "build_engine((folder / 'model.onnx').read_bytes(), EngineOptions(folder=folder / 'e', typing='strong', precision='fp16'))\n"
    )
    python_path = os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))
    environment = {**os.environ, "PYTHONPATH": python_path, "TMPDIR": str(tmp_path / "tmp")}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.PIPE)
    child = _until(lambda: _stopped_child(parent.pid))
    parent.send_signal(signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert said.strip().endswith(b"KeyboardInterrupt")
    assert not Path(f"/proc/{child}").exists()
    left = [path for path in (tmp_path / "e", tmp_path / "tmp") for path in path.rglob("*") if path.is_file()]
    assert [path for path in left if "locks" not in path.parent.name] == []


def _stopped_child(parent: int) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _parent(int(entry.name)) == parent and _state(int(entry.name)) == "T":
            return int(entry.name)
    return 0


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0"]


def _state(pid: int) -> str:
    return _fields(pid)[0]


def _parent(pid: int) -> int:
    return int(_fields(pid)[1])


def _until(found: Callable[[], Any]) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def test_a_computer_that_does_not_say_which_gpu_it_has_builds_nothing(
    device: Device, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="does not say which GPU this is"):
        build_engine(toy.graph(), options(tmp_path, typing="strong"))


def test_a_build_shows_its_progress_on_stderr(
    device: Device, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgebert._progress._PLAIN_SECONDS", 0.0)
    build_engine(toy.graph(), options(tmp_path, typing="strong"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "build strong 10/100" in err
    assert "Reading Network" in err


def test_engine_files_are_what_was_built(device: Device, toy: Any, tmp_path: Path) -> None:
    built = build_engine(toy.graph(), options(tmp_path, typing="strong")).built[0]
    assert built.folder is not None
    files = engine_files(built)
    assert files == {name: (built.folder / name).read_bytes() for name in (PLAN_FILE, ENGINE_FILE)}
    (built.folder / PLAN_FILE).write_bytes(b"another")
    with pytest.raises(RefusedError, match="was changed since it was built"):
        engine_files(built)


# What is there already


def test_an_engine_that_is_there_is_not_built_again(device: Device, toy: Any, tmp_path: Path) -> None:
    first = build_engine(toy.graph(), options(tmp_path, typing="strong", timing_cache="off"))
    device(build_errors={"strong": ["it was built"]})
    again = build_engine(toy.graph(), options(tmp_path, typing="strong", timing_cache="off"))
    assert [first.built[0].is_reused, again.built[0].is_reused] == [False, True]
    assert again.built[0].manifest == first.built[0].manifest


@pytest.mark.parametrize("change", ["graph", "flags", "device", "plan", "mode", "manifest"])
def test_an_engine_that_is_another_is_built_again(
    device: Device, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    asked = options(tmp_path, typing="strong")
    build_engine(toy.graph(), asked)
    folder, graph = tmp_path / "engines" / "strong", toy.graph()
    if change == "graph":
        graph += b"\x32\x01x"  # a doc_string
    if change == "flags":
        asked = replace(asked, optimization_level=1)
    if change == "device":
        monkeypatch.setattr("edgebert.fingerprint.gpu_facts", lambda: ORIN_NANO)  # with an L4T, and the same GPU
        monkeypatch.setattr("edgebert.fingerprint.installed_version", lambda module: "10.7.0")
    if change == "plan":
        (folder / PLAN_FILE).write_bytes(b"another")
    if change == "mode":
        (folder / PLAN_FILE).chmod(0o666)
    if change == "manifest":
        (folder / ENGINE_FILE).write_bytes(b"{}")
    assert not build_engine(graph, asked).built[0].is_reused


# The options and the decision


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"typing": "loose"}, "typing `loose`"),
        ({"optimization_level": 6}, "optimization level `6`"),
        ({"workspace_mb": -1}, "workspace of `-1` MiB"),
        ({"min_batch": 0}, "batches of `0`"),
        ({"min_batch": 4, "max_batch": 2}, "batches of `4`"),
        ({"opt_batch": 3, "max_batch": 2}, "batches of `1`, `3`, `2`"),
        ({"dla_core": -1}, "DLA core `-1`"),
    ],
)
def test_options_refuse_what_cannot_be_meant(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options(tmp_path, **change)


@pytest.mark.parametrize(
    ("total_mib", "available_mib", "expected_mib"),
    [(7620, 6000, 1024), (7620, 2000, 500), (15000, 14000, 3500), (62000, 60000, 4096), (4000, 300, 75)],
)
def test_workspace_is_a_share_of_free_memory(
    tmp_path: Path, total_mib: int, available_mib: int, expected_mib: int
) -> None:
    (tmp_path / "proc").mkdir()
    lines = f"MemTotal: {total_mib * 1024} kB\nMemFree: 5 kB\nMemAvailable: {available_mib * 1024} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(lines)
    assert workspace_bytes(options(tmp_path), tmp_path) == expected_mib << 20


def test_workspace_of_a_computer_that_does_not_say_is_small(tmp_path: Path) -> None:
    assert workspace_bytes(options(tmp_path), tmp_path) == 1 << 30


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, toy: Any) -> EngineReport:
    pytest.importorskip("onnx")
    jetson = Jetson(monkeypatch, "10.3.0", None)
    found: list[EngineCandidate] = []
    typings: tuple[Any, ...] = ("weak", "strong")
    for typing in typings:
        files = jetson.engine(toy.graph(), typing=typing, precision="fp16")
        found.append(EngineCandidate(typing=typing, manifest=EngineManifest.from_bytes(files[ENGINE_FILE])))
    return EngineReport(candidates=tuple(found))


def measured(weak: tuple[float, float], strong: tuple[float, float]) -> list[MeasuredEngine]:
    return [
        MeasuredEngine(typing="weak", accuracy=weak[0], latency_ms=weak[1]),
        MeasuredEngine(typing="strong", accuracy=strong[0], latency_ms=strong[1]),
    ]


@pytest.mark.parametrize(
    ("weak", "strong", "expected"),
    [
        ((0.90, 2.0), (0.90, 1.5), "strong"),
        ((0.90, 1.2), (0.90, 1.5), "weak"),
        ((0.89, 1.2), (0.90, 1.5), "strong"),  # the faster one loses accuracy
        ((0.90, 2.0), (0.10, 0.5), "weak"),
        ((0.91, 1.5), (0.92, 1.5), "strong"),  # equally fast: the more accurate
        ((0.92, 1.5), (0.92, 1.5), "weak"),  # alike in all: the one that was built first
    ],
)
def test_the_faster_engine_that_holds_accuracy_is_kept(
    both: EngineReport, weak: tuple[float, float], strong: tuple[float, float], expected: str
) -> None:
    choice = faster_engine(both, measured(weak, strong), floor=0.90)
    assert choice.typing == expected
    assert f"weak: {weak[0]:.2%}, {weak[1]:.3f} ms" in choice.reason


def test_a_decision_names_what_was_not_built(both: EngineReport) -> None:
    failed = replace(both.candidates[0], manifest=None, failure="no")
    report = EngineReport(candidates=(failed, both.candidates[1]))
    choice = faster_engine(report, measured((0.0, 9.0), (0.9, 1.0))[1:], floor=0.9)
    assert choice.typing == "strong"
    assert "weak failed" in choice.reason


def test_no_engine_that_holds_accuracy_is_an_error(both: EngineReport) -> None:
    with pytest.raises(EdgebertError, match=r"no engine holds an accuracy of 95\.00% \(weak: 90\.00%"):
        faster_engine(both, measured((0.90, 2.0), (0.91, 1.5)), floor=0.95)


def test_an_engine_that_was_not_measured_cannot_be_judged(both: EngineReport) -> None:
    with pytest.raises(UsageError, match="the weakly typed engine was not measured"):
        faster_engine(both, measured((0.9, 1.0), (0.9, 1.0))[1:], floor=0.5)


@pytest.mark.parametrize(
    ("says", "error", "said"),
    [
        ("sys.exit(3)", EdgebertError, r"crashes where it is first run \(exit code 3\)"),
        ("time.sleep(60)", EdgebertError, "did not answer one image within 1 s"),
        ("print('x', flush=True); time.sleep(60)", EdgebertError, "process of the run broke the protocol"),
        ("write_message(sys.stdout.buffer, 'built', 1, {}); time.sleep(60)", EdgebertError, "says `built`"),
        (
            "import subprocess; subprocess.Popen(['sleep', '60'], stderr=subprocess.DEVNULL); os._exit(3)",
            EdgebertError,
            r"crashes where it is first run \(exit code 3\)",
        ),
        ("os.kill(os.getpid(), 9)", MemoryExhaustedError, "the engine's first run was killed"),
    ],
)
def test_run_once_explains_a_process_that_does_not_answer(
    toy: Any, tmp_path: Path, says: str, error: type[EdgebertError], said: str
) -> None:
    code = f"import os, sys, time\nfrom edgebert.bench.protocol import write_message\nsys.stdin.readline()\n{says}"
    with pytest.raises(error, match=said):
        engine_process.run_once(tmp_path, toy.spec, timeout_s=1.0, command=(sys.executable, "-c", code))


def test_run_once_says_that_an_engine_cannot_be_read(device: Device, toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot read the engine: No such file or directory"):
        engine_process.run_once(tmp_path, toy.spec)
