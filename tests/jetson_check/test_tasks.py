"""The tasks as functions, on a Jetson of doubles in this process: what they find, and each thing that may be wrong with the board."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert._json import Fields, JsonObject
from edgebert.bench.protocol import read_message
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError, UnavailableError
from edgebert.jetson_check import bindings, child, engines, memory, sensors
from edgebert.jetson_check.board import board as board_task
from edgebert.jetson_check.reference import read_reference
from edgebert.runtime import tensorrt_runner
from edgebert.runtime.cuda import CudaRuntime, load_cuda
from edgebert.runtime.engine_manifest import ENGINE_FILE, check_engine
from tests.jetson_check.conftest import asked, is_of
from tests.tensorrt.double import VERSIONS
from tests.tensorrt.jetson import Jetson
from tests.tensorrt.wheels import WHEELS

Board = Callable[..., Path]


def facts_of(answer: JsonObject) -> Any:
    return answer["facts"]


def error_of(answer: JsonObject) -> Any:
    return answer.get("error")


# The board


@pytest.mark.parametrize(
    ("name", "found"), [("orin-nano", "Orin Nano developer kit, L4T 36.4.3, JetPack 6.2"), ("agx-thor", "AGX Thor")]
)
def test_board_names_what_it_is(jetson: Jetson, board: Board, name: str, found: str) -> None:
    answer = board_task(asked(root=str(board(name))))
    assert str(answer["found"]).startswith(found)
    assert error_of(answer) is None
    assert facts_of(answer)["gpu"] == "Orin"


@pytest.mark.parametrize(
    ("release", "named"),
    [
        ("R32 (release), REVISION: 7.1", "L4T 32.7.1 (JetPack 4)"),
        ("R35 (release), REVISION: 3.1", "L4T 35.3.1 (JetPack 5)"),
        ("R36 (release), REVISION: 3.0", "L4T 36.3.0 (JetPack 6.0)"),
    ],
)
def test_board_refuses_an_old_jetpack_by_name_and_keeps_its_facts(
    jetson: Jetson, board: Board, release: str, named: str
) -> None:
    answer = board_task(asked(root=str(is_of(board(), release))))
    error = error_of(answer)
    assert error["class"] == "UnavailableError"
    assert error["what"] == f"{named} is older than JetPack 6.1 (L4T 36.4.0), which brings TensorRT 10.3"
    assert "SDK Manager" in error["hint"]
    assert facts_of(answer)["soc"] == "tegra234"


def test_board_refuses_an_old_module_by_name(jetson: Jetson, board: Board) -> None:
    jetson.facts = replace(jetson.facts, compute_capability="7.2")
    assert "Xavier" in error_of(board_task(asked(root=str(board()))))["what"]


def test_board_in_a_container_may_not_know_its_l4t(jetson: Jetson, board: Board) -> None:
    root = board()
    (root / "etc/nv_tegra_release").unlink()
    (root / "var/lib/dpkg/status").unlink(missing_ok=True)
    (root / ".dockerenv").touch()
    answer = board_task(asked(root=str(root)))
    assert "L4T not known" in str(answer["found"])
    assert facts_of(answer)["in a container"] is True
    assert error_of(answer) is None


# Bindings and parser


@pytest.mark.parametrize("version", VERSIONS)
def test_bindings_takes_every_version_that_is_supported(jetson: Jetson, board: Board, version: str) -> None:
    jetson.update(version)
    answer = bindings.bindings(asked(root=str(board())))
    assert facts_of(answer)["tensorrt"] == version
    assert facts_of(answer)["calls checked against it"] is True
    assert facts_of(answer)["builds strongly typed networks only"] is version.startswith("11")


def test_checked_versions_are_those_of_the_wheels() -> None:
    assert tuple(".".join(wheel.version.split(".")[:2]) for wheel in WHEELS) == bindings.CHECKED


def test_bindings_notes_a_version_between_those_that_were_checked(jetson: Jetson, board: Board) -> None:
    jetson.update("10.9.0.34")
    assert "between those that edgebert's calls were checked against" in str(
        bindings.bindings(asked(root=str(board())))["found"]
    )


@pytest.mark.parametrize("version", ["10.1.0", "12.0.0", "11.2.1"])
def test_bindings_refuses_a_version_that_is_not_supported_on_a_jetson(
    jetson: Jetson, board: Board, version: str
) -> None:
    jetson.update(version)
    with pytest.raises(UnavailableError, match=f"TensorRT `{version}` is not supported"):
        bindings.bindings(asked(root=str(board())))


@pytest.mark.parametrize(("version", "graphs"), [("10.3.0", 3), ("11.4.1", 2)])
def test_parse_takes_what_this_tensorrt_builds_from(jetson: Jetson, version: str, graphs: int) -> None:
    jetson.update(version)
    jetson.script.dla_cores = 2
    answer = bindings.parse(asked())
    assert facts_of(answer) == {"graphs": graphs, "dla cores": 2}
    assert len(jetson.script.of("OnnxParser.parse")) == graphs


def test_parse_says_what_the_parser_says(jetson: Jetson) -> None:
    jetson.script.parse_errors = ("Found unsupported input type of UINT8",)
    with pytest.raises(BadDataError, match="unsupported input type of UINT8"):
        bindings.parse(asked())


def test_parse_without_a_gpu_says_so(jetson: Jetson) -> None:
    jetson.script.has_gpu = False
    with pytest.raises(UnavailableError, match="no NVIDIA driver or no GPU"):
        bindings.parse(asked())


# CUDA


@pytest.mark.parametrize("integrated", [0, 1])
def test_cuda_sends_a_megabyte_there_and_back(jetson: Jetson, integrated: int) -> None:
    assert jetson.cudart is not None
    jetson.cudart.set("integrated", integrated)
    facts = facts_of(memory.cuda(asked()))
    assert (facts["runtime"], facts["multiprocessors"]) == ("12.6", 8)
    assert facts["shares memory with the cpu"] is bool(integrated)
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaEventElapsedTime"} <= set(jetson.cudart.calls())


@pytest.mark.parametrize(
    ("function", "code", "kind"),
    [
        ("cudaGetDeviceCount", 35, UnavailableError),
        ("cudaGetDeviceCount", 100, UnavailableError),
        ("cudaHostAlloc", 2, MemoryExhaustedError),
        ("cudaMalloc", 2, MemoryExhaustedError),
        ("cudaMemcpyAsync", 700, EdgebertError),
        ("cudaStreamSynchronize", 719, EdgebertError),
        ("cudaEventElapsedTime", 400, EdgebertError),
    ],
)
def test_cuda_fails_as_its_calls_do_and_frees_what_it_had(
    jetson: Jetson, function: str, code: int, kind: type[EdgebertError]
) -> None:
    assert jetson.cudart is not None
    jetson.cudart.fail(function, code)
    with pytest.raises(kind, match=f"`{function}` failed with error {code}"):
        memory.cuda(asked())
    jetson.cudart.fail("", 0)


def test_cuda_without_its_library_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "load_cuda", lambda: load_cuda(("libcudart-that-nobody-has.so.12",)))
    with pytest.raises(UnavailableError, match="the CUDA runtime cannot be loaded") as caught:
        memory.cuda(asked())
    assert caught.value.exit_code == 69
    assert "libcudart-that-nobody-has.so.12" in str(caught.value.expected)


def test_cuda_finds_bytes_that_come_back_otherwise(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRuntime, "copy_to_host", lambda *_given: None)
    with pytest.raises(EdgebertError, match="came back from the GPU otherwise"):
        memory.cuda(asked())


def test_cuda_finds_events_that_tell_no_time(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaRuntime, "elapsed_ms", lambda *_given: float("nan"))
    with pytest.raises(EdgebertError, match="two copies took nan ms"):
        memory.cuda(asked())


# Engines


@pytest.fixture
def engine(jetson: Jetson, tmp_path: Path) -> Fields:
    """An engine of the FP16 graph, as a task is asked about it."""
    folder = tmp_path / "fp16" / "strong"
    folder.mkdir(parents=True)
    for name, content in jetson.engine(read_reference().engine("fp16").graph(), precision="fp16").items():
        (folder / name).write_bytes(content)
    return asked(folder=str(folder))


def test_run_gives_onnxruntimes_answers(jetson: Jetson, engine: Fields) -> None:
    answer = engines.run(engine)
    reference = read_reference().engine("fp16")
    assert float(np.abs(np.array(answer["logits"]) - reference.logits).max()) <= reference.control
    assert "CUDA graph on" in str(answer["found"])


@pytest.mark.parametrize("said", ["Error Code 1: Cuda Runtime (out of memory)"])
def test_run_says_what_tensorrt_says(jetson: Jetson, engine: Fields, said: str) -> None:
    jetson.script.context_errors = (said,)
    with pytest.raises(MemoryExhaustedError, match="memory ran out"):
        engines.run(engine)


def test_run_refuses_numbers_that_are_none(jetson: Jetson, engine: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = tensorrt_runner.TensorRtRunner.infer
    monkeypatch.setattr(tensorrt_runner.TensorRtRunner, "infer", lambda self, batch: infer(self, batch) * np.nan)
    with pytest.raises(EdgebertError, match="NaN or infinity"):
        engines.run(engine)


def test_run_refuses_an_engine_of_another_board(jetson: Jetson, engine: Fields) -> None:
    jetson.facts = replace(jetson.facts, multiprocessors=16)
    with pytest.raises(UnavailableError, match="does not fit this computer"):
        engines.run(engine)


def test_timing_tells_both_clocks(jetson: Jetson, engine: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_MOST", 25)
    facts = facts_of(engines.timing(engine))
    assert facts["runs"] in range(20, 26)
    assert facts["gpu_p50_ms"] == facts["gpu_p100_ms"] == 0.5
    assert 0 < facts["wall_p0_ms"] <= facts["wall_p50_ms"] <= facts["wall_p100_ms"]


@pytest.mark.parametrize("time_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_timing_refuses_events_that_tell_no_time(
    jetson: Jetson, engine: Fields, monkeypatch: pytest.MonkeyPatch, time_ms: float
) -> None:
    runner = tensorrt_runner.TensorRtRunner
    monkeypatch.setattr(runner, "device_times_ms", lambda _self, _batch, count: (time_ms,) * count)
    monkeypatch.setattr(engines, "_WARM_UP_S", 0.0)
    with pytest.raises(EdgebertError, match="CUDA's events say"):
        engines.timing(engine)


def test_refusal_holds_without_deserialising(jetson: Jetson) -> None:
    answer = engines.refusal(asked())
    assert "made for a GPU with this many multiprocessors: 9, here is 8" in facts_of(answer)["said"]
    assert jetson.script.of("Runtime.deserialize_cuda_engine") == []


def test_refusal_fails_where_the_manifest_is_not_looked_at(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_runner, "check_engine", lambda *_given: None)
    with pytest.raises(EdgebertError, match="an engine that was built on another GPU was deserialised"):
        engines.refusal(asked())


def test_refusal_fails_where_tensorrt_is_the_one_that_refuses(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_runner, "check_engine", lambda *_given: None)
    jetson.script.deserialize_errors = ("Version tag does not match",)
    with pytest.raises(EdgebertError, match="was deserialised"):
        engines.refusal(asked())


def test_refusal_fails_where_a_changed_engine_is_taken(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_engine

    def without_hash(manifest: Any, plan: bytes, facts: Any) -> None:
        if "9" in manifest.fingerprint.to_text().split()[-1]:
            check(manifest, plan, facts)

    monkeypatch.setattr(tensorrt_runner, "check_engine", without_hash)
    with pytest.raises(EdgebertError, match="an engine that was changed was deserialised"):
        engines.refusal(asked())


# Sensors


@pytest.mark.parametrize("name", ["orin-nano", "orin-nx", "agx-orin", "agx-thor"])
def test_sensors_reads_every_board(board: Board, name: str) -> None:
    answer = sensors.sensors(asked(root=str(board(name))))
    facts = facts_of(answer)
    assert error_of(answer) is None, answer
    assert facts["power mode"]
    assert facts["gpu_clock_khz"] > 0
    assert [fact for fact in facts if fact.startswith("temperature_")]
    assert [fact for fact in facts if fact.startswith("power_") and fact.endswith("_uw")]


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("sys/class/devfreq", "GPU clock"),
        ("sys/class/thermal", "temperatures"),
        ("sys/class/hwmon", "power, throttle counters"),
        ("var/lib/nvpmodel", "power mode"),
    ],
)
def test_sensors_names_what_a_board_does_not_tell(board: Board, gone: str, missing: str) -> None:
    root = board("agx-orin")
    for path in sorted((root / gone).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    answer = sensors.sensors(asked(root=str(root)))
    told = error_of(answer)["what"].removeprefix("this board does not tell: ").split(", ")
    assert set(missing.split(", ")) <= set(told) | {"throttle counters"}
    assert missing.split(", ")[0] in told
    assert error_of(answer)["class"] == "UnavailableError"
    assert facts_of(answer)


# The child


def answered(task: str, **content: Any) -> Fields:
    stream = io.BytesIO()
    child.answer(asked(type=task, seq=1, **content), stream)
    answer = read_message(io.BytesIO(stream.getvalue()))
    assert answer is not None
    return answer


def test_child_answers_what_a_task_found(jetson: Jetson) -> None:
    answer = answered("cuda")
    assert answer.value["error"] is None
    assert answer.text("found").startswith("CUDA 12.6, compute capability 8.7")


@pytest.mark.parametrize(
    ("error", "kind"), [(UnavailableError("no"), "UnavailableError"), (MemoryError(), "MemoryExhaustedError")]
)
def test_child_answers_an_error_as_one(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str) -> None:
    def fails(_request: Fields) -> JsonObject:
        raise error

    monkeypatch.setattr(child, "TASKS", {"cuda": fails})
    assert answered("cuda").fields("error").text("class") == kind


def test_child_keeps_the_facts_of_a_task_that_failed(jetson: Jetson, board: Board) -> None:
    answer = answered("board", root=str(is_of(board(), "R35 (release), REVISION: 3.1")))
    assert answer.fields("error").text("class") == "UnavailableError"
    assert answer.fields("facts").text("l4t") == "35.3.1"


def test_engine_json_is_what_the_run_reads(engine: Fields) -> None:
    (Path(engine.text("folder")) / ENGINE_FILE).write_bytes(b"{}")
    with pytest.raises(BadDataError, match="schema"):
        engines.run(engine)


def test_parse_without_a_network_says_so(jetson: Jetson, monkeypatch: pytest.MonkeyPatch) -> None:
    builder: Any = jetson.trt.Builder
    monkeypatch.setattr(builder, "create_network", lambda _self, _flags=0: None)
    with pytest.raises(EdgebertError, match="TensorRT makes no network"):
        bindings.parse(asked())
