"""The TensorRT runner over doubles of TensorRT and of CUDA: order, addresses, answers, teardown, and what it refuses unopened."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import Classifier
from edgebert._json import dump_json
from edgebert.errors import (
    BadDataError,
    ClosedError,
    EdgebertError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
)
from edgebert.runtime import tensorrt_runner
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE
from edgebert.runtime.runner import ModelSource, RunnerOptions, check_device, open_runner
from edgebert.runtime.tensorrt_runner import TensorRtRunner
from tests.tensorrt.double import OTHER_DEVICE, OTHER_MODULE, VERSION_TAG, VERSIONS
from tests.tensorrt.jetson import ORIN_NANO, Jetson, jetson_double

GPU = RunnerOptions(device="GPU")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Jetson]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = jetson_double(monkeypatch, tmp_path)
    yield made
    assert made.script.faults == []


def opened(jetson: Jetson, source: ModelSource) -> TensorRtRunner:
    runner = open_runner("tensorrt", source, GPU)
    assert isinstance(runner, TensorRtRunner)
    return runner


def cuda(jetson: Jetson) -> Any:
    assert jetson.cudart is not None
    return jetson.cudart


# Answers


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("integrated", [0, 1])
def test_infer_gives_the_graphs_answers(jetson: Jetson, toy: Any, version: str, integrated: int) -> None:
    jetson.update(version)
    cuda(jetson).set("integrated", integrated)
    with opened(jetson, jetson.source(toy)) as runner:
        for seed in range(3):
            batch = toy.images(3, seed)
            np.testing.assert_allclose(runner.infer(batch), toy.logits(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("integrated", [0, 1])
@pytest.mark.parametrize(("low", "best", "high"), [(1, 2, 4), (2, 2, 4), (3, 3, 3)])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_infer_fills_any_profile_with_any_batch(
    jetson: Jetson, toy: Any, low: int, best: int, high: int, count: int, integrated: int
) -> None:
    cuda(jetson).set("integrated", integrated)
    source = jetson.source(toy, min_batch=low, opt_batch=best, max_batch=high)
    batch = toy.images(count)
    with opened(jetson, source) as runner:
        np.testing.assert_allclose(runner.infer(batch), toy.logits(batch), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(runner.infer(batch[:1]), toy.logits(batch[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 4])
def test_preferred_batch_is_the_engines_largest(jetson: Jetson, toy: Any, most: int) -> None:
    with opened(jetson, jetson.source(toy, opt_batch=most, max_batch=most)) as runner:
        assert runner.preferred_batch == most


def test_infer_launches_one_graph_where_the_batch_is_static(jetson: Jetson, toy: Any) -> None:
    with opened(jetson, jetson.source(toy)) as runner:
        cuda(jetson).forget_calls()
        jetson.script.calls.clear()
        runner.infer(toy.images(1))
        assert cuda(jetson).calls() == ["cudaGraphLaunch", "cudaStreamSynchronize"]
        assert jetson.script.calls == []
        assert runner.properties()["cuda_graph"] == "on"


def test_infer_copies_in_runs_and_copies_out_where_the_batch_varies(jetson: Jetson, toy: Any) -> None:
    with opened(jetson, jetson.source(toy, opt_batch=2, max_batch=4)) as runner:
        cuda(jetson).forget_calls()
        jetson.script.calls.clear()
        runner.infer(toy.images(3))
        assert cuda(jetson).calls() == ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"]
        names = ["IExecutionContext.set_input_shape", "IExecutionContext.execute_async_v3"]
        assert jetson.script.names() == names
        assert jetson.script.calls[0].args == ("image", (3, 6, 8, 3))


def test_mapped_memory_is_copied_nowhere(jetson: Jetson, toy: Any) -> None:
    cuda(jetson).set("integrated", 1)
    with opened(jetson, jetson.source(toy)) as runner:
        assert runner.properties()["memory"] == "mapped"
        assert "device memory" not in cuda(jetson).live()
        assert "cudaMemcpyAsync" not in cuda(jetson).calls()


def test_open_goes_the_documented_way(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy)
    jetson.script.calls.clear()
    with opened(jetson, source):
        assert jetson.script.names() == [
            "Runtime",
            "Runtime.deserialize_cuda_engine",
            "ICudaEngine.create_execution_context",
            "IExecutionContext.set_tensor_address",
            "IExecutionContext.set_tensor_address",
            "IExecutionContext.set_input_shape",
            "IExecutionContext.execute_async_v3",
            "IExecutionContext.execute_async_v3",
        ]
        assert [call.args for call in jetson.script.of("IExecutionContext.execute_async_v3")] == [(False,), (True,)]


def test_device_times_are_the_gpus(jetson: Jetson, toy: Any) -> None:
    with opened(jetson, jetson.source(toy)) as runner:
        assert runner.device_times_ms(toy.images(1), 4) == (0.5,) * 4  # what the double's clock says of one kernel
        with pytest.raises(BadDataError, match="at most 1"):
            runner.device_times_ms(toy.images(2), 1)


def test_properties_say_how_it_was_built_and_runs(jetson: Jetson, toy: Any) -> None:
    with opened(jetson, jetson.source(toy, typing="weak", precision="fp16")) as runner:
        assert runner.properties() == {
            "backend": "tensorrt",
            "version": "10.3.0",
            "cuda": "12.6",
            "device": "Orin",
            "compute_capability": "8.7",
            "multiprocessors": "8",
            "precision": "fp16",
            "form": "weak-fp16",
            "batch": "1",
            "memory": "pinned",
            "cuda_graph": "on",
        }


# Threads, processes, and the end


def test_each_thread_has_a_context_of_its_own(jetson: Jetson, toy: Any) -> None:
    runner = opened(jetson, jetson.source(toy))
    batches = [toy.images(1 + seed % 2, seed) for seed in range(6)]
    expected = [runner.infer(batch) for batch in batches]
    wrong: list[int] = []

    def work(place: int) -> None:
        for _ in range(60):
            if not np.array_equal(runner.infer(batches[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    runner.close()
    assert wrong == []
    assert cuda(jetson).live() == {}


def test_close_frees_everything_in_the_reverse_order(jetson: Jetson, toy: Any) -> None:
    runner = opened(jetson, jetson.source(toy))
    cuda(jetson).forget_calls()
    jetson.script.calls.clear()
    runner.close()
    assert cuda(jetson).calls() == [
        "cudaGraphExecDestroy",
        "cudaGraphDestroy",
        "cudaEventDestroy",
        "cudaEventDestroy",
        "cudaFree",
        "cudaFreeHost",
        "cudaFree",
        "cudaFreeHost",
        "cudaStreamDestroy",
    ]
    assert jetson.script.names() == ["del IExecutionContext", "del ICudaEngine", "del Runtime"]
    assert cuda(jetson).live() == {}


def test_the_last_running_call_frees_the_engine(jetson: Jetson, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = opened(jetson, jetson.source(toy))
    inside, go = threading.Event(), threading.Event()
    plain = cuda(jetson).runtime.synchronize

    def waiting(stream: int) -> None:
        inside.set()
        assert go.wait(10)
        plain(stream)

    monkeypatch.setattr(cuda(jetson).runtime, "synchronize", waiting)
    batch = toy.images(1)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(runner.infer(batch)))
    thread.start()
    assert inside.wait(10)
    runner.close()
    assert "del ICudaEngine" not in jetson.script.names()
    go.set()
    thread.join(10)
    np.testing.assert_allclose(answers[0], toy.logits(batch), rtol=1e-4, atol=1e-5)
    assert jetson.script.names()[-3:] == ["del IExecutionContext", "del ICudaEngine", "del Runtime"]
    assert cuda(jetson).live() == {}


def test_a_runner_that_nobody_closed_frees_what_it_has(jetson: Jetson, toy: Any) -> None:
    runner = opened(jetson, jetson.source(toy))
    assert cuda(jetson).live() != {}
    del runner
    assert cuda(jetson).live() == {}


def test_infer_after_close_is_refused(jetson: Jetson, toy: Any) -> None:
    runner = opened(jetson, jetson.source(toy))
    runner.close()
    runner.close()
    with pytest.raises(ClosedError):
        runner.infer(toy.images(1))


_FORK = """
import os, sys, threading
import pytest
from pathlib import Path
from tests.conftest import Toy
from tests.tensorrt.jetson import jetson_double
from edgebert.errors import ForkedRuntimeError
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
import numpy as np
folder = Path(sys.argv[1])
patch = pytest.MonkeyPatch()
jetson = jetson_double(patch, folder)
spec = InputSpec(height=6, width=8, classes=4)
files = jetson.engine((folder / "model.onnx").read_bytes())
runner = open_runner("tensorrt", ModelSource(spec=spec, files=files), RunnerOptions(device="GPU"))
batch = np.zeros((1, 6, 8, 3), np.uint8)
before = runner.infer(batch)
child = os.fork()
if child == 0:
    live = jetson.cudart.live()
    try:
        runner.infer(batch)
    except ForkedRuntimeError:
        runner.close()
        runner = None
        sys.exit(41 if jetson.cudart.live() == live else 1)
    sys.exit(2)
_, status = os.waitpid(child, 0)
assert (runner.infer(batch) == before).all()
runner.close()
assert jetson.cudart.live() == {}
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_forked_child_gets_an_error_and_frees_nothing(toy: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(toy.graph())
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT)
    assert ran.returncode == 41, ran.stderr


# What is refused without deserialising


def not_loaded(jetson: Jetson) -> bool:
    return "Runtime.deserialize_cuda_engine" not in jetson.script.names()


OTHERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"multiprocessors": 16}, "made for a GPU with this many multiprocessors: 8, here is 16"),
    ({"module": "p3767-0000"}, "made for the module p3767-0003, here is p3767-0000"),  # an Orin NX, else alike
    ({"compute_capability": "11.0"}, r"made for compute capability 8\.7, here is 11\.0"),
    ({"name": "NVIDIA Thor"}, "made for the GPU Orin, here is NVIDIA Thor"),
    ({"cuda": "13.0"}, r"made with CUDA 12\.6, here is 13\.0"),
    ({"l4t": "36.5.0"}, r"made with L4T 36\.4\.3, here is 36\.5"),
)


@pytest.mark.parametrize(("change", "reason"), OTHERS)
def test_an_engine_of_another_device_is_refused_unopened(
    jetson: Jetson, toy: Any, change: dict[str, Any], reason: str
) -> None:
    source = jetson.source(toy)
    jetson.facts = replace(ORIN_NANO, **change)
    with pytest.raises(UnavailableError, match=reason) as caught:
        opened(jetson, source)
    assert "edgebert compile" in str(caught.value.hint)
    assert not_loaded(jetson)


def test_an_engine_of_another_tensorrt_is_refused_unopened(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy)
    jetson.update("10.7.0")
    with pytest.raises(UnavailableError, match=r"made with TensorRT 10\.3\.0, here is 10\.7\.0"):
        opened(jetson, source)
    assert not_loaded(jetson)


def test_an_engine_that_was_changed_is_refused_unopened(jetson: Jetson, toy: Any) -> None:
    files = jetson.engine(toy.graph())
    plan = bytearray(files[PLAN_FILE])
    plan[-1] ^= 1
    with pytest.raises(RefusedError, match=r"engine\.plan"):
        opened(jetson, jetson.source(toy, {**files, PLAN_FILE: bytes(plan)}))
    assert not_loaded(jetson)


@pytest.mark.parametrize("missing", ["gpu", "compute_capability", "multiprocessors", "backend_version"])
def test_a_manifest_that_would_fit_anywhere_is_refused(jetson: Jetson, toy: Any, missing: str) -> None:
    files = jetson.engine(toy.graph())
    manifest = json.loads(files[ENGINE_FILE])
    del manifest["fingerprint"][missing]
    with pytest.raises(BadDataError, match=f"fingerprint without `{missing}`"):
        opened(jetson, jetson.source(toy, {**files, ENGINE_FILE: dump_json(manifest).encode()}))
    assert not_loaded(jetson)


@pytest.mark.parametrize("files", [{"model.onnx": b""}, {PLAN_FILE: b""}])
def test_an_engine_without_its_manifest_is_refused(jetson: Jetson, toy: Any, files: dict[str, bytes]) -> None:
    with pytest.raises(UnavailableError, match="cannot run in TensorRT as it is"):
        opened(jetson, jetson.source(toy, files))


# From a bundle


def with_engine(folder: Path, files: dict[str, bytes]) -> None:
    """Add an engine to a bundle, as its first form."""
    inside = {f"forms/jetson/{name}": content for name, content in files.items()}
    for name, content in inside.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    fingerprint = json.loads(files[ENGINE_FILE])["fingerprint"]
    form: dict[str, Any] = {
        "target": "jetson",
        "backend": "tensorrt",
        "device": "GPU",
        "files": sorted(inside),
        "machine": "aarch64",
    }
    form |= {"disabled_optimizers": [], "versions": {}, "notes": [], "fingerprint": fingerprint}
    manifest["forms"].insert(0, form)
    manifest["sizes"].update({name: len(content) for name, content in inside.items()})
    for canary in manifest["canaries"]:
        for entry in ("logits", "tolerance"):
            canary[entry]["tensorrt:GPU"] = canary[entry]["onnxruntime"]
    (folder / "manifest.json").write_text(dump_json(manifest), encoding="utf-8")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")


def test_classifier_answers_from_the_engine_of_a_bundle(
    jetson: Jetson, toy: Any, make_toy_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.fingerprint.installed_version", lambda module: "10.3.0")
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    with_engine(bundle, jetson.engine(toy.graph()))
    image = toy.images(1)[0]
    with Classifier(bundle) as classifier:
        assert (classifier.target, classifier.backend) == ("jetson", "tensorrt")
        expected = toy.card.class_names[int(np.argmax(toy.logits(image[np.newaxis])))]
        assert classifier.predict(image).label == expected
    assert cuda(jetson).live() == {}


def test_an_engine_in_a_bundle_of_another_device_is_not_loaded(
    jetson: Jetson, toy: Any, make_toy_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.fingerprint.installed_version", lambda module: "10.3.0")
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    with_engine(bundle, jetson.engine(toy.graph()))
    jetson.facts = replace(ORIN_NANO, multiprocessors=16)
    with pytest.raises(UnavailableError, match="this many multiprocessors: 8, here is 16"):
        Classifier(bundle, target="jetson")
    assert not_loaded(jetson)


# What TensorRT says when it fails


def resigned(files: dict[str, bytes], plan: bytes) -> dict[str, bytes]:
    """Return the files with another engine that its manifest describes."""
    manifest = json.loads(files[ENGINE_FILE])
    manifest.update(plan_sha256=hashlib.sha256(plan).hexdigest(), plan_bytes=len(plan))
    return {PLAN_FILE: plan, ENGINE_FILE: dump_json(manifest).encode()}


def test_bytes_that_are_no_engine_are_bad_data(jetson: Jetson, toy: Any) -> None:
    files = resigned(jetson.engine(toy.graph()), b"no engine")
    with pytest.raises(BadDataError, match="Magic tag does not match"):
        opened(jetson, jetson.source(toy, files))


@pytest.mark.parametrize(
    ("said", "kind", "means"),
    [
        (VERSION_TAG, UnavailableError, "built by another version of TensorRT"),
        (OTHER_DEVICE.format(here="7.5", there="8.6"), UnavailableError, "another compute capability"),
        ("Error Code 1: Cuda Runtime (out of memory)", MemoryExhaustedError, "memory ran out"),
    ],
)
def test_what_the_logger_says_of_an_engine_is_in_the_error(
    jetson: Jetson, toy: Any, said: str, kind: type[EdgebertError], means: str
) -> None:
    source = jetson.source(toy)
    jetson.script.deserialize_errors = (said,)
    with pytest.raises(kind, match=means) as caught:
        opened(jetson, source)
    assert said[:60] in str(caught.value)
    assert caught.value.hint


def test_a_warning_about_the_module_is_told(jetson: Jetson, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = jetson.source(toy)
    jetson.script.multiprocessors = 16  # the plan says 8; the fingerprint was checked before
    with caplog.at_level(logging.WARNING, "edgebert"):
        opened(jetson, source).close()
    assert "built on another module" in caplog.text
    assert OTHER_MODULE not in caplog.text


def test_no_room_for_a_context_frees_all_and_says_so(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy)
    jetson.script.context_errors = ("Requested amount of GPU memory (272573440 bytes) could not be allocated.",)
    with pytest.raises(MemoryExhaustedError, match="272573440"):
        opened(jetson, source)
    assert cuda(jetson).live() == {}
    assert jetson.script.names()[-2:] == ["del ICudaEngine", "del Runtime"]


def test_a_run_that_fails_says_what_tensorrt_said(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy, opt_batch=2, max_batch=2)
    runner = opened(jetson, source)
    jetson.script.execute_errors = ("[genericReformat.cu] Cuda failure: invalid argument",)
    with pytest.raises(EdgebertError, match="genericReformat"):
        runner.infer(toy.images(1))
    jetson.script.execute_errors = ()
    np.testing.assert_allclose(runner.infer(toy.images(2)), toy.logits(toy.images(2)), rtol=1e-4, atol=1e-5)
    runner.close()
    assert cuda(jetson).live() == {}


def test_a_run_that_fails_is_not_blamed_on_what_an_earlier_one_said(jetson: Jetson, toy: Any) -> None:
    runner = opened(jetson, jetson.source(toy, opt_batch=2, max_batch=2))
    jetson.script.execute_errors = ("Error Code 1: Cuda Runtime (out of memory)",)
    with pytest.raises(MemoryExhaustedError):
        runner.infer(toy.images(1))
    jetson.script.execute_errors = ("[genericReformat.cu] Cuda failure: invalid argument",)
    with pytest.raises(EdgebertError, match="genericReformat") as caught:
        runner.infer(toy.images(1))
    assert type(caught.value) is EdgebertError
    runner.close()


def test_a_call_that_gets_no_context_after_close_frees_the_engine(
    jetson: Jetson, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(jetson, jetson.source(toy))
    runner._idle.pop().close()  # as another call has it
    runner._live = 0

    def closed_meanwhile(*_: object) -> Any:
        runner.close()
        raise MemoryExhaustedError("the engine has no room to run")

    monkeypatch.setattr(tensorrt_runner, "_Request", closed_meanwhile)
    with pytest.raises(MemoryExhaustedError) as caught:  # whose traceback holds the engine
        runner.infer(toy.images(1))
    assert caught.tb is not None
    assert jetson.script.names()[-2:] == ["del ICudaEngine", "del Runtime"]
    assert jetson.script.names().count("del ICudaEngine") == 1


def test_a_capture_that_fails_leaves_plain_runs(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy)
    jetson.script.capture_fails = True
    with opened(jetson, source) as runner:
        assert "not permitted when stream is capturing" in runner.properties()["cuda_graph"]
        batch = toy.images(2)
        np.testing.assert_allclose(runner.infer(batch), toy.logits(batch), rtol=1e-4, atol=1e-5)
    assert cuda(jetson).live() == {}


@pytest.mark.parametrize(
    "function",
    [
        *("cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc", "cudaEventCreateWithFlags"),
        *("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaSetDevice"),
    ],
)
def test_open_frees_all_when_cuda_fails(jetson: Jetson, toy: Any, function: str) -> None:
    source = jetson.source(toy)
    cuda(jetson).fail(function, 2)
    with pytest.raises(MemoryExhaustedError, match=rf"`{function}` failed with error 2, cudaErrorMemoryAllocation"):
        opened(jetson, source)
    cuda(jetson).fail("", 0)
    assert cuda(jetson).live() == {}


@pytest.mark.parametrize("function", ["cudaGraphInstantiate", "cudaStreamEndCapture", "cudaStreamBeginCapture"])
def test_open_goes_on_without_a_graph_when_cuda_makes_none(jetson: Jetson, toy: Any, function: str) -> None:
    source = jetson.source(toy)
    cuda(jetson).fail(function, 1)
    with opened(jetson, source) as runner:
        assert runner.properties()["cuda_graph"].startswith(f"off: `{function}` failed")


def test_close_tells_what_cuda_would_not_free(jetson: Jetson, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    runner = opened(jetson, jetson.source(toy))
    cuda(jetson).fail("cudaEventDestroy", 700)
    with caplog.at_level(logging.WARNING, "edgebert"):
        runner.close()
    assert "cudaEventDestroy" in caplog.text
    assert cuda(jetson).live() == {"events": 2}


# Computers without it


def test_check_device_names_the_two_ways_on_where_there_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError) as caught:
        check_device("tensorrt", "GPU")
    assert caught.value.exit_code == 69
    assert "TensorRT is not on this computer" in str(caught.value)
    assert "--host USER@HOST" in str(caught.value.hint)
    assert "on the board itself" in str(caught.value.hint)


@pytest.mark.parametrize(("code", "name"), [(100, "cudaErrorNoDevice"), (35, "cudaErrorInsufficientDriver")])
def test_check_device_names_the_two_ways_on_where_there_is_no_gpu(jetson: Jetson, code: int, name: str) -> None:
    cuda(jetson).fail("cudaGetDeviceCount", code)
    with pytest.raises(UnavailableError, match=name) as caught:
        check_device("tensorrt", "GPU")
    assert "--host USER@HOST" in str(caught.value.hint)


def test_open_explains_a_runtime_that_cannot_start(jetson: Jetson, toy: Any) -> None:
    source = jetson.source(toy)
    jetson.script.has_gpu = False
    with pytest.raises(UnavailableError, match="factory function returned nullptr") as caught:
        opened(jetson, source)
    assert "driver" in str(caught.value.expected)


def test_devices_are_one_gpu(jetson: Jetson) -> None:
    assert tensorrt_runner.TensorRtRunner.devices() == ("GPU",)
