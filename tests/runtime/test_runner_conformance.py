"""One contract for every backend: what a `Runner` takes, gives, refuses and survives."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.card import ModelCard, Provenance
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError, UnavailableError, UsageError
from edgebert.preprocess import Preprocessing
from edgebert.runtime import openvino_runner
from edgebert.runtime.runner import (
    MAX_BATCH,
    RUNNERS,
    InputSpec,
    ModelSource,
    Runner,
    RunnerOptions,
    _runner_class,
    check_device,
    open_runner,
    physical_cores,
)
from edgebert.testing import FakeRunner
from tests.tensorrt.jetson import jetson_double

Batch = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass
class Subject:
    """A backend under test, with the answers it must give."""

    backend: str
    source: ModelSource
    reference: Callable[[Batch], Logits]
    device: str = "CPU"
    opened: list[Runner] = field(default_factory=list)

    def open(self, **options: Any) -> Runner:
        if self.backend == "fake":
            runner: Runner = FakeRunner(self.source.spec, logits=self.reference)
        else:
            runner = open_runner(
                self.backend, self.source, RunnerOptions(**{"threads": 1, "device": self.device, **options})
            )
        self.opened.append(runner)
        return runner

    def images(self, count: int, seed: int = 0) -> Batch:
        shape = (count, self.source.spec.height, self.source.spec.width, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputSpec, Callable[[Batch], Logits]]:
    """A small student with random weights, and its answers computed without our own wrapper around it."""
    torch = pytest.importorskip("torch")
    from edgebert.models.checkpoint import load_checkpoint, new_model, save_checkpoint

    card = ModelCard(
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        provenance=Provenance(stage="train"),
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "student"
    folder.mkdir()
    model = new_model("nano", preprocessing=card.preprocessing, class_names=card.class_names, seed=0)
    save_checkpoint(folder, model, card, ())
    network = load_checkpoint(folder).model

    def reference(batch: Batch) -> Logits:
        values = (batch.transpose(0, 3, 1, 2) / 255 - np.reshape(card.preprocessing.mean, (1, 3, 1, 1))) / np.reshape(
            card.preprocessing.std, (1, 3, 1, 1)
        )  # (batch, 3, height, width)
        with torch.inference_mode():
            logits: Logits = network(pixel_values=torch.from_numpy(values.astype(np.float32))).logits.numpy()
        return logits

    return folder, InputSpec(height=8, width=8, classes=3), reference


@pytest.fixture(params=["onnxruntime", "openvino", "openvino-ir", "tensorrt", "tensorrt-batch", "torch", "fake"])
def subject(
    request: pytest.FixtureRequest, toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Subject]:
    """Each backend in turn; everything it opened is closed afterwards."""
    name: str = request.param
    backend = name.partition("-")[0]
    if backend not in ("fake", "tensorrt"):
        pytest.importorskip(backend)
    if backend == "tensorrt":  # over the doubles of TensorRT and CUDA, which compute in ONNX Runtime
        pytest.importorskip("onnxruntime")
        most = 3 if name == "tensorrt-batch" else 1
        source = jetson_double(monkeypatch, tmp_path).source(toy, opt_batch=most, max_batch=most)
        made = Subject(backend, source, toy.logits, device="GPU")
    elif name == "torch":
        folder, spec, reference = request.getfixturevalue("checkpoint")
        made = Subject(backend, ModelSource(spec=spec, folder=folder), reference)
    elif name == "openvino-ir":
        ir = pytest.importorskip("edgebert.export.ir").ir_from_graph(toy.graph())
        made = Subject(
            backend, ModelSource(spec=toy.spec, files={"model.xml": ir.xml, "model.bin": ir.bin}), toy.logits
        )
    else:
        made = Subject(backend, ModelSource(spec=toy.spec, files={"model.onnx": toy.graph()}), toy.logits)
    yield made
    for runner in made.opened:
        runner.close()


def test_every_backend_is_under_test() -> None:
    assert set(RUNNERS) == {"onnxruntime", "openvino", "tensorrt", "torch"}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_infer_gives_the_reference_answers(subject: Subject, count: int) -> None:
    batch = subject.images(count)
    runner = subject.open()
    logits = runner.infer(batch)
    assert logits.dtype == np.float32
    assert logits.shape == (count, runner.input_spec.classes)
    np.testing.assert_allclose(logits, subject.reference(batch), rtol=1e-4, atol=1e-5)


def test_infer_answers_an_image_alike_alone_and_in_company(subject: Subject) -> None:
    batch = subject.images(5)
    runner = subject.open()
    together = runner.infer(batch)
    alone = np.concatenate([runner.infer(batch[index : index + 1]) for index in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_infer_takes_views_of_any_layout(subject: Subject) -> None:
    batch = subject.images(4)
    runner = subject.open()
    views = [batch[::2], batch[::-1], batch[:, ::-1, ::-1], np.asfortranarray(batch)]
    for view in views:
        np.testing.assert_allclose(runner.infer(view), subject.reference(view.copy()), rtol=1e-4, atol=1e-5)


def test_infer_takes_read_only_arrays(subject: Subject) -> None:
    batch = subject.images(2)
    batch.flags.writeable = False
    np.testing.assert_allclose(subject.open().infer(batch), subject.reference(batch), rtol=1e-4, atol=1e-5)


def test_infer_never_writes_its_input(subject: Subject) -> None:
    first, second = subject.images(2, seed=1), subject.images(2, seed=2)
    copies = first.copy(), second.copy()
    runner = subject.open()
    for batch in (first, second, first):
        runner.infer(batch)
    assert np.array_equal(first, copies[0])
    assert np.array_equal(second, copies[1])


def test_infer_gives_logits_that_nothing_else_holds(subject: Subject) -> None:
    first, second = subject.images(2, seed=1), subject.images(2, seed=2)
    runner = subject.open()
    kept = runner.infer(first)
    expected = kept.copy()
    other = runner.infer(second)
    assert not np.shares_memory(kept, other)
    other[:] = np.nan
    assert np.array_equal(kept, expected)
    kept[:] = np.nan
    np.testing.assert_array_equal(runner.infer(first), expected)
    runner.close()
    assert np.isnan(kept).all()


@pytest.mark.parametrize("broken", ["dtype", "rank", "height", "channels", "empty", "huge"])
def test_infer_refuses_what_the_model_does_not_take(subject: Subject, broken: str) -> None:
    runner = subject.open()
    good = subject.images(1)
    batches: dict[str, NDArray[Any]] = {
        "dtype": good.astype(np.float32),
        "rank": good[0],
        "height": good[:, 1:],
        "channels": good[..., :1],
        "empty": good[:0],
        "huge": np.broadcast_to(good, (MAX_BATCH + 1, *good.shape[1:])),
    }
    with pytest.raises(BadDataError, match="the batch"):
        runner.infer(batches[broken])
    np.testing.assert_allclose(runner.infer(good), subject.reference(good), rtol=1e-4, atol=1e-5)


def test_close_may_be_called_twice_and_ends_use(subject: Subject) -> None:
    with subject.open() as runner:
        runner.close()
        runner.close()
        with pytest.raises(EdgebertError, match="was closed"):
            runner.infer(subject.images(1))
        with pytest.raises(EdgebertError, match="was closed"):
            runner.properties()


def test_two_models_live_side_by_side(subject: Subject) -> None:
    first, second = subject.open(), subject.open()
    batch = subject.images(1)
    first.close()
    np.testing.assert_allclose(second.infer(batch), subject.reference(batch), rtol=1e-4, atol=1e-5)


def test_properties_tell_the_threads_in_effect(subject: Subject) -> None:
    for wanted, expected in ((1, 1), (0, physical_cores())):
        found = subject.open(threads=wanted).properties()
        assert found["backend"] == subject.backend
        assert found["device"] == {"GPU": "Orin"}.get(subject.device, subject.device)
        assert found["version"]
        if subject.backend not in ("fake", "tensorrt"):  # a GPU has no threads of this kind
            assert found["threads"] == str(expected)


def test_properties_tell_the_precision_of_openvino(toy: Any) -> None:
    pytest.importorskip("openvino")
    source = ModelSource(spec=toy.spec, files={"model.onnx": toy.graph()})
    with open_runner("openvino", source) as runner:
        assert runner.properties()["precision"] == "f32"
        assert runner.properties()["streams"] == "1"


@pytest.mark.parametrize("change", [{"classes": 7}, {"height": 9}])
def test_open_refuses_a_model_of_another_shape(subject: Subject, change: dict[str, int]) -> None:
    if subject.backend == "fake":
        pytest.skip("a fake has the shape it is given")
    spec = subject.source.spec
    other = InputSpec(**{"height": spec.height, "width": spec.width, "classes": spec.classes, **change})
    subject.source = ModelSource(spec=other, files=subject.source.files, folder=subject.source.folder)
    with pytest.raises(BadDataError):
        subject.open()


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a" * 50])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_open_refuses_bytes_that_are_no_model(backend: str, content: bytes, toy: Any) -> None:
    pytest.importorskip(backend)
    with pytest.raises(BadDataError):
        open_runner(backend, ModelSource(spec=toy.spec, files={"model.onnx": content}))


def _fails_when_run(spec: InputSpec) -> bytes:
    """Return a graph that loads, and whose Reshape fits no image of `spec`."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    several = spec.height * spec.width * 3 + 1
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=kinds.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["rows"]),
        helper.make_node("Slice", ["rows", "from", "to", "axes"], ["logits"]),
    ]
    constants = {"shape": [-1, several], "from": [0], "to": [spec.classes], "axes": [1]}
    graph = helper.make_graph(
        nodes,
        "fails",
        [helper.make_tensor_value_info("image", kinds.UINT8, ["batch", spec.height, spec.width, 3])],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", spec.classes])],
        [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_open_refuses_a_model_that_cannot_be_run(backend: str, toy: Any) -> None:
    pytest.importorskip(backend)
    with pytest.raises(BadDataError, match="cannot run the model"):
        open_runner(backend, ModelSource(spec=toy.spec, files={"model.onnx": _fails_when_run(toy.spec)}))


@pytest.mark.parametrize(
    "error", [RuntimeError("Exception during loading: std::bad_alloc"), MemoryError("std::bad_alloc")]
)
@pytest.mark.parametrize("step", ["load", "first inference"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_open_does_not_blame_a_model_when_memory_runs_out(
    backend: str, step: str, error: Exception, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)

    def exhausted(*_: object, **__: object) -> None:
        raise error

    if step == "first inference":
        monkeypatch.setattr(_runner_class(backend), "infer", exhausted)
    elif backend == "onnxruntime":
        monkeypatch.setattr("onnxruntime.InferenceSession", exhausted)
    else:
        monkeypatch.setattr(openvino_runner, "_read_model", exhausted)
    with pytest.raises(MemoryExhaustedError, match="std::bad_alloc"):
        open_runner(backend, ModelSource(spec=toy.spec, files={"model.onnx": toy.graph()}))


def test_openvino_is_asked_once_what_a_device_can_be_set_to(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    core, asked = openvino_runner._core(), []

    class Asked:
        """The Core, whose questions are written down."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def get_property(self, device: str, name: str) -> Any:
            asked.append((device, name))
            return core.get_property(device, name)

    monkeypatch.setattr(openvino_runner, "_core", Asked)
    openvino_runner._supported.cache_clear()
    source = ModelSource(spec=toy.spec, files={"model.onnx": toy.graph()})
    for _ in range(2):
        open_runner("openvino", source).close()
    assert asked == [("CPU", "SUPPORTED_PROPERTIES")]


def test_open_refuses_an_ir_with_a_document_type(toy: Any) -> None:
    pytest.importorskip("openvino")
    files = {"model.xml": b'<?xml version="1.0"?><!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>', "model.bin": b""}
    with pytest.raises(BadDataError, match="document type"):
        open_runner("openvino", ModelSource(spec=toy.spec, files=files))


def test_open_refuses_a_device_that_is_not_here(subject: Subject) -> None:
    if subject.backend == "fake":
        pytest.skip("a fake runs on nothing")
    with pytest.raises(UnavailableError, match=r"GPU\.99"):
        subject.open(device="GPU.99")


def test_check_device_tells_unknown_backends_from_missing_ones() -> None:
    with pytest.raises(UsageError, match="no such backend"):
        check_device("abacus", "CPU")
    with pytest.raises(UnavailableError, match="onnxruntime has no device `NPU`"):
        check_device("onnxruntime", "NPU")


# Threads and processes


def _hammer(runner: Runner, subject: Subject, seconds: float) -> tuple[int, int]:
    """Run eight threads on images of their own; return how many answers came, and how many were wrong."""
    batches = [subject.images(1 + seed % 2, seed=seed) for seed in range(8)]
    copies = [batch.copy() for batch in batches]
    # The same engine alone is the reference: exact equality, no tolerance that could hide a mixed-up row.
    expected = [runner.infer(batch) for batch in batches]
    counts, wrong = [0] * 8, [0] * 8
    until = time.monotonic() + seconds

    def work(place: int) -> None:
        while time.monotonic() < until:
            answer = runner.infer(batches[place])
            counts[place] += 1
            wrong[place] += not np.array_equal(answer, expected[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch, copy in zip(batches, copies, strict=True):
        assert np.array_equal(batch, copy)
    assert all(counts)
    return sum(counts), sum(wrong)


def test_infer_answers_rightly_from_eight_threads(subject: Subject) -> None:
    count, wrong = _hammer(subject.open(), subject, 2.0)
    assert wrong == 0, f"{wrong} of {count}"


@pytest.mark.slow
def test_infer_answers_rightly_from_eight_threads_for_half_a_minute(subject: Subject) -> None:
    count, wrong = _hammer(subject.open(threads=2), subject, 30.0)
    assert wrong == 0, f"{wrong} of {count}"


def test_close_during_inference_lets_running_calls_end(subject: Subject) -> None:
    runner = subject.open()
    batch = subject.images(3)
    expected = runner.infer(batch)
    answers: list[Logits] = []
    started = threading.Barrier(5)

    def work() -> None:
        started.wait()
        with contextlib.suppress(EdgebertError):  # what a call after the close gets
            while True:
                answers.append(runner.infer(batch))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(answers) < 20:
        time.sleep(0.001)
    runner.close()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert all(np.array_equal(answer, expected) for answer in answers)


_FORK = """
import os, sys, threading
import numpy as np
from edgebert.errors import ForkedRuntimeError
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
spec = InputSpec(height={height}, width={width}, classes={classes})
source = ModelSource(spec=spec, files={{"model.onnx": open({model!r}, "rb").read()}})
runner = open_runner({backend!r}, source, RunnerOptions(threads=2))
batch = np.zeros((1, spec.height, spec.width, 3), np.uint8)
# Threads that have used the model and are alive at the fork: their requests are inherited as well.
alive, done = threading.Event(), threading.Barrier(4)
def use():
    runner.infer(batch)
    done.wait()
    alive.wait()
threads = [threading.Thread(target=use) for _ in range(3)]
[thread.start() for thread in threads]
done.wait()
child = os.fork()
if child == 0:
    try:
        runner.infer(batch)
    except ForkedRuntimeError:
        runner.close()
        runner = None
        sys.exit(41)  # the whole way through the interpreter's own end, where inherited objects would be destroyed
    sys.exit(1)
_, status = os.waitpid(child, 0)
alive.set()
[thread.join() for thread in threads]
runner.infer(batch)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_forked_child_gets_an_error_and_ends(backend: str, toy: Any, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    model = tmp_path / "model.onnx"
    model.write_bytes(toy.graph())
    spec = toy.spec
    script = _FORK.format(height=spec.height, width=spec.width, classes=spec.classes, model=str(model), backend=backend)
    # -W: forking with threads is what is tested.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 41, ran.stderr


def test_forked_child_is_refused_by_every_backend(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = subject.open()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(EdgebertError, match="forked child"):
        runner.infer(subject.images(1))
    runner.close()
    monkeypatch.undo()
    runner.infer(subject.images(1))  # the child's close left the parent's model alone


_SOCKETS = """
import os, sys
def refuse(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.posix_spawn", "os.fork"):
        print(event, arguments, file=sys.stderr)
        raise SystemExit(9)
sys.addaudithook(refuse)
import numpy as np
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
spec = InputSpec(height={height}, width={width}, classes={classes})
source = ModelSource(spec=spec, files={{"model.onnx": open({model!r}, "rb").read()}})
with open_runner({backend!r}, source, RunnerOptions(threads=1)) as runner:
    runner.infer(np.zeros((1, spec.height, spec.width, 3), np.uint8))
    # Native code opens its sockets unseen by Python, but it needs a thread to do so in the background.
    print(len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1)
"""


@pytest.mark.parametrize(("backend", "most_threads"), [("onnxruntime", 1), ("openvino", 3)])
def test_opening_and_running_phones_nobody(backend: str, most_threads: int, toy: Any, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    model = tmp_path / "model.onnx"
    model.write_bytes(toy.graph())
    spec = toy.spec
    script = _SOCKETS.format(
        height=spec.height, width=spec.width, classes=spec.classes, model=str(model), backend=backend
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own threads
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) <= most_threads
