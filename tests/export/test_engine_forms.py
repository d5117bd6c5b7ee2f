"""Engines as `compile` makes them: both typings built and measured, one of them in the bundle, over the doubles of TensorRT and CUDA."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.export import engine_choice, engine_graphs
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.engine_choice import ChosenEngine, EngineSettings, noise_trial
from edgebert.export.engine_form import EngineAsked, checked_engine
from edgebert.export.forms import HERE, form_from_graph
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
from edgebert.export.place import HERE as HERE_PLACE
from edgebert.export.placements import graph_for_backend
from edgebert.export.reference import reference_place
from edgebert.export.tensorrt_graph import strong_graph, weak_graph
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest
from edgebert.runtime.runner import open_runner
from edgebert.target import resolve_target
from tests.tensorrt.jetson import Jetson, jetson_double

JETSON = resolve_target("jetson")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Jetson:
    """A Jetson with TensorRT 10.3 that builds engines in this process."""
    jetson = jetson_double(monkeypatch, tmp_path)
    jetson.builds_here()
    return jetson


@pytest.fixture
def graph(toy: Any, tmp_path: Path) -> Path:
    path = tmp_path / "toy.onnx"
    path.write_bytes(bytes_of_model(with_metadata(parse_graph(toy.graph()), toy.card, ())))
    return path


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that says how many milliseconds engines take, in the order in which they are timed."""

    def given(*times_ms: float) -> None:
        def timed(infers: Iterable[Any], images: Any, *, max_seconds: float, quiet: Any) -> Any:
            for infer in infers:
                infer(images[:1])
            return [[[np.full(9, round(1e6 * ms))] * 2] for ms in times_ms]

        monkeypatch.setattr(engine_choice, "timed_rounds", timed)

    return given


def compiled(graph: Path, tmp_path: Path, **changes: Any) -> Any:
    options = CompileOptions(**{"targets": ("jetson",), "canary": "synthetic", "max_seconds": 0.1, **changes})
    return bundle_from_graph(graph, tmp_path / "toy.edgebert", options)


def manifest_of(tmp_path: Path) -> EngineManifest:
    return EngineManifest.from_bytes(read_bundle(tmp_path / "toy.edgebert").files[f"forms/jetson/{ENGINE_FILE}"])


def test_compile_makes_an_engine_that_answers_as_the_graph(
    board: Jetson, graph: Path, toy: Any, tmp_path: Path
) -> None:
    report = compiled(graph, tmp_path)
    bundle = read_bundle(report.path)
    (form,) = bundle.manifest.forms
    assert (report.verified, form.files) == (("jetson",), (f"forms/jetson/{ENGINE_FILE}", f"forms/jetson/{PLAN_FILE}"))
    assert form.fingerprint == manifest_of(tmp_path).fingerprint
    assert form.fingerprint is not None
    assert form.fingerprint.to_text() == (
        "os linux, machine aarch64, backend_version == 10.3.0, gpu Orin, compute_capability 8.7, module p3767-0003, cuda == 12.6, "
        "l4t == 36.4.3, multiprocessors 8"
    )
    assert form.versions["tensorrt"] == "10.3.0"
    assert set(bundle.manifest.canaries[0].logits) >= {"onnxruntime", "tensorrt:GPU"}
    images = toy.images(5)
    with Classifier(report.path, target="jetson") as classifier:
        assert [answer.index for answer in classifier.predict_batch(list(images))] == toy.logits(images).argmax(
            axis=1
        ).tolist()
    assert board.script.faults == []


def test_compile_gives_tensorrt_a_graph_without_metadata(board: Jetson, graph: Path, tmp_path: Path) -> None:
    compiled(graph, tmp_path)
    plan = read_bundle(tmp_path / "toy.edgebert").files[f"forms/jetson/{PLAN_FILE}"]
    inside = onnx.ModelProto.FromString(plan.split(b"\n", 2)[2])
    assert list(inside.metadata_props) == []
    assert parse_graph(graph).metadata_props


@pytest.mark.parametrize(("weak", "strong", "expected"), [(1.0, 2.0, "weak"), (2.0, 1.0, "strong")])
def test_compile_ships_the_faster_typing_and_says_why(
    board: Jetson,
    graph: Path,
    tmp_path: Path,
    takes: Callable[..., None],
    weak: float,
    strong: float,
    expected: str,
) -> None:
    takes(weak, strong)
    compiled(graph, tmp_path)
    notes = read_bundle(tmp_path / "toy.edgebert").manifest.forms[0].notes
    assert manifest_of(tmp_path).label == f"{expected}-fp16"
    assert notes[0].startswith(f"{expected}-fp16: {expected} is the faster of those that hold accuracy")
    assert f"weak: 100.00%, {weak:.3f} ms; strong: 100.00%, {strong:.3f} ms" in notes[0]
    assert "the builder held 700 MiB at its peak, 3,000 MiB were left" in notes[1]


@pytest.mark.parametrize(("fails", "ships"), [("weak", "strong"), ("strong", "weak")])
def test_compile_survives_a_typing_that_cannot_be_built(
    board: Jetson, graph: Path, tmp_path: Path, fails: str, ships: str
) -> None:
    board.script.build_errors = {
        fails: ("Error Code 9: Internal Error (Could not infer output types for operation: 1)",)
    }
    compiled(graph, tmp_path)
    notes = read_bundle(tmp_path / "toy.edgebert").manifest.forms[0].notes
    assert manifest_of(tmp_path).typing == ships
    assert any(note.startswith(f"{fails} failed: ") and "Could not infer output types" in note for note in notes)


def test_compile_writes_nothing_where_no_typing_can_be_built(board: Jetson, graph: Path, tmp_path: Path) -> None:
    board.script.build_errors = {"weak": ("one thing",), "strong": ("another",)}
    with pytest.raises(
        EdgebertError, match=r"no engine could be built and run: weak: .*one thing.*; strong: .*another"
    ):
        compiled(graph, tmp_path)
    assert not (tmp_path / "toy.edgebert").exists()


def test_a_full_folder_for_temporary_files_is_said(
    board: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "model.onnx":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CannotWriteError, match="No space left on device") as caught:
        compiled(graph, tmp_path, typing="strong")
    assert "TMPDIR" in str(caught.value.hint)
    assert not (tmp_path / "toy.edgebert").exists()


def test_compile_says_that_memory_ran_out(board: Jetson, graph: Path, tmp_path: Path) -> None:
    board.script.build_errors = dict.fromkeys(("weak", "strong"), ("Error Code 1: Cuda Runtime (out of memory)",))
    with pytest.raises(MemoryExhaustedError) as caught:
        compiled(graph, tmp_path)
    assert caught.value.exit_code == 75
    assert "--workspace-mb" in str(caught.value.hint)


def test_an_engine_that_does_not_open_is_left_out(
    board: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open_runner

    def opens(backend: str, source: Any, options: Any) -> Any:
        if EngineManifest.from_bytes(source.files[ENGINE_FILE]).typing == "weak":
            raise MemoryExhaustedError("the engine has no room to run")
        return real(backend, source, options)

    monkeypatch.setattr(engine_choice, "open_runner", opens)
    compiled(graph, tmp_path)
    notes = read_bundle(tmp_path / "toy.edgebert").manifest.forms[0].notes
    assert manifest_of(tmp_path).typing == "strong"
    assert "weak failed: the engine has no room to run" in notes


def test_engines_that_all_do_not_open_are_an_error(board: Jetson, graph: Path, tmp_path: Path) -> None:
    board.script.context_errors = ("Error Code 1: Cuda Runtime (out of memory)",)
    with pytest.raises(MemoryExhaustedError, match="no room to run"):
        compiled(graph, tmp_path)
    assert not (tmp_path / "toy.edgebert").exists()


@pytest.fixture
def wrong_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the weakly typed graph answer otherwise, as an engine does whose FP16 overflows."""

    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        made = weak_graph(model)
        for tensor in made.graph.initializer:
            if tensor.name == "weight":
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return made

    monkeypatch.setattr(engine_graphs, "weak_graph", wrong)


@pytest.mark.usefixtures("wrong_weak")
def test_compile_ships_the_slower_typing_where_the_faster_one_loses_accuracy(
    board: Jetson, graph: Path, tmp_path: Path, takes: Callable[..., None]
) -> None:
    takes(1.0, 5.0)
    compiled(graph, tmp_path)
    assert manifest_of(tmp_path).typing == "strong"
    assert (
        "strong is the only one that holds accuracy"
        in read_bundle(tmp_path / "toy.edgebert").manifest.forms[0].notes[0]
    )


@pytest.mark.usefixtures("wrong_weak")
def test_compile_refuses_where_no_typing_holds_accuracy(board: Jetson, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgebertError, match=r"no engine holds an accuracy of 100\.00%"):
        compiled(graph, tmp_path, typing="weak")
    assert not (tmp_path / "toy.edgebert").exists()


def test_tensorrt_11_builds_strong_alone(board: Jetson, graph: Path, tmp_path: Path) -> None:
    board.update("11.4.1")
    compiled(graph, tmp_path)
    assert manifest_of(tmp_path).typing == "strong"
    with pytest.raises(UsageError, match="builds strongly typed networks only"):
        compiled(graph, tmp_path, typing="weak", force=True)


def test_options_reach_the_builder(board: Jetson, graph: Path, tmp_path: Path) -> None:
    board.script.dla_cores = 2
    compiled(graph, tmp_path, typing="strong", workspace_mb=64, optimization_level=1, dla_core=1)
    script = board.script
    assert len(script.of("Builder.create_network")) == 1
    assert script.of("IBuilderConfig.set_memory_pool_limit")[0].args == ("WORKSPACE", 64 << 20)
    assert script.of("IBuilderConfig.builder_optimization_level=")[0].args == (1,)
    assert script.of("IBuilderConfig.DLA_core=")[0].args == (1,)
    assert "dla_core=1" in manifest_of(tmp_path).flags


def test_max_batch_reaches_the_builder_the_manifest_and_the_runtime(
    board: Jetson, graph: Path, toy: Any, tmp_path: Path
) -> None:
    report = compiled(graph, tmp_path, typing="strong", max_batch=4)
    (shapes,) = board.script.of("IOptimizationProfile.set_shape")
    assert [shape[0] for shape in shapes.args[1:]] == [1, 4, 4]
    manifest = manifest_of(tmp_path)
    assert (manifest.min_batch, manifest.max_batch) == (1, 4)
    assert "batch=1,4,4" in manifest.flags
    images = toy.images(6)
    board.script.calls.clear()
    with Classifier(report.path, target="jetson") as classifier:
        board.script.calls.clear()
        answers = classifier.predict_batch(list(images))
    assert [answer.index for answer in answers] == toy.logits(images).argmax(axis=1).tolist()
    assert len(board.script.of("IExecutionContext.execute_async_v3")) == 2


def test_engines_take_one_image_by_themselves(board: Jetson, graph: Path, tmp_path: Path) -> None:
    compiled(graph, tmp_path, typing="strong")
    (shapes,) = board.script.of("IOptimizationProfile.set_shape")
    assert [shape[0] for shape in shapes.args[1:]] == [1, 1, 1]


@pytest.mark.parametrize("target", ["jetson-orin-nx", "jetson-agx-thor"])
def test_compile_refuses_to_call_an_engine_after_another_board(
    board: Jetson, graph: Path, tmp_path: Path, target: str
) -> None:
    with pytest.raises(UnavailableError, match=rf"`--target {target}`, and .* `jetson-orin-nano` \(p3767-0003\)"):
        compiled(graph, tmp_path, targets=(target,))
    assert not (tmp_path / "toy.edgebert").exists()


@pytest.mark.parametrize(
    ("target", "module"),
    [("jetson-orin-nano", "p3767-0003"), ("jetson-orin-nano", "p9999-0001"), ("jetson-agx-orin", None)],
)
def test_compile_takes_the_board_that_is_there_and_one_that_nobody_knows(
    board: Jetson, graph: Path, tmp_path: Path, target: str, module: str | None
) -> None:
    board.facts = replace(board.facts, module=module)
    assert compiled(graph, tmp_path, targets=(target,), typing="strong").verified == (target,)


def test_timeout_reaches_the_builder(
    board: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    real = board._run_build

    def spy(*given: Any, timeout_s: float, **named: Any) -> Any:
        seen.append(timeout_s)
        return real(*given, timeout_s=timeout_s, **named)

    monkeypatch.setattr("edgebert.export.engine.run_build", spy)
    compiled(graph, tmp_path, timeout_s=30.0)
    assert seen == [30.0, 30.0]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"typing": "auto"}, "--typing"),
        ({"workspace_mb": 0}, "--workspace-mb"),
        ({"optimization_level": 3}, "--optimization-level"),
        ({"dla_core": 0}, "--dla-core"),
        ({"max_batch": 1}, "--max-batch"),
        ({"timeout_s": 7200.0}, "--timeout"),
        ({"keep_both": True}, "--keep-both"),
    ],
)
def test_options_of_engines_are_refused_where_no_target_takes_one(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"`{flag}`, and no target takes a TensorRT engine: cpu"):
        CompileOptions(targets=("cpu",), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workspace_mb": -1}, "workspace of `-1` MiB"),
        ({"optimization_level": 6}, "optimization level `6`"),
        ({"dla_core": -1}, "DLA core `-1`"),
        ({"max_batch": 0}, "batches of `1`, `0`, `0`"),
        ({"max_batch": 257}, "batches of up to `257`"),
        ({"timeout_s": 0.0}, "timeout is `0.0` seconds"),
        ({"targets": ("jetson-fp16",)}, "may hold beside `jetson`"),
    ],
)
def test_options_of_engines_are_refused_out_of_their_range(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CompileOptions(**{"targets": ("jetson",), **changes})


def test_an_engine_without_images_is_chosen_by_its_time(board: Jetson, graph: Path, takes: Callable[..., None]) -> None:
    takes(3.0, 1.0)
    assert form_from_graph(graph.read_bytes(), JETSON).label == "strong-fp16"


def test_an_engine_that_answers_no_number_does_not_ship_for_its_speed(
    board: Jetson, graph: Path, takes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = strong_graph

    def overflowing(model: onnx.ModelProto, **given: Any) -> onnx.ModelProto:
        made = real(model, **given)
        for tensor in made.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
        return made

    monkeypatch.setattr(engine_graphs, "strong_graph", overflowing)
    takes(3.0)
    form = form_from_graph(graph.read_bytes(), JETSON)
    assert form.label == "weak-fp16"
    assert any(note.startswith("strong failed: ") and "finite" in note for note in form.notes)


# The graphs


def test_values_that_fp16_does_not_hold_stay_in_float32_and_that_is_said(toy: Any) -> None:
    large = replace(toy, weight=toy.weight * np.float32(3e4))
    model = bytes_of_model(with_metadata(parse_graph(large.graph()), toy.card, ()))
    made = engine_graphs.engine_graphs(model, "auto", toy.images(8))
    assert any("stay in float32: FP16 does not hold" in note for note in made.notes)
    assert made.typing == "auto"


def test_a_typing_whose_form_breaks_a_rule_leaves_the_other(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: onnx.ModelProto, **_: Any) -> onnx.ModelProto:
        raise BadDataError("a rule is broken")

    monkeypatch.setattr(engine_graphs, "strong_graph", broken)
    made = engine_graphs.engine_graphs(toy.graph(), "auto", None)
    assert (made.typing, set(made.graphs), made.failures) == ("weak", {"weak"}, {"strong": "a rule is broken"})
    with pytest.raises(BadDataError, match="a rule is broken"):
        engine_graphs.engine_graphs(toy.graph(), "strong", None)


def test_a_form_that_answers_otherwise_is_no_form(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto, **given: Any) -> onnx.ModelProto:
        return strong(parse_graph(replace(toy, weight=-toy.weight).graph()), **given)

    strong = strong_graph
    monkeypatch.setattr(engine_graphs, "strong_graph", wrong)
    with pytest.raises(EdgebertError, match="answers otherwise than the graph it was made of"):
        engine_graphs.engine_graphs(toy.graph(), "strong", toy.images(4))


def test_checks_in_fp16_are_left_out_without_onnxruntime_and_that_is_said(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_graphs, "is_importable", lambda module: False)
    made = engine_graphs.engine_graphs(toy.graph(), "auto", toy.images(4))
    assert made.notes == ("range and answers in FP16 were not checked: that takes onnxruntime",)


def test_an_int8_graph_makes_int8_engines_of_its_placements(int8_graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = graph_for_backend

    def spy(model: onnx.ModelProto, backend: str) -> Any:
        asked.append(backend)
        return real(model, backend)

    monkeypatch.setattr(engine_graphs, "graph_for_backend", spy)
    made = engine_graphs.engine_graphs(int8_graph, "auto", None)
    assert (asked, made.precision, made.typing) == (["tensorrt"], "int8", "auto")


# What a device answers


@pytest.fixture
def answered(board: Jetson, toy: Any) -> tuple[ChosenEngine, dict[Any, bytes], EngineSettings]:
    """An engine as it should be, with what was asked for."""
    graphs: dict[Any, bytes] = {"weak": toy.graph(), "strong": toy.graph()}
    settings = EngineAsked(max_seconds=0.1).settings("auto", "fp16")
    return HERE.engine(graphs, settings, noise_trial(toy.spec)), graphs, settings


def changed(chosen: ChosenEngine, **changes: Any) -> Mapping[str, bytes]:
    manifest = replace(EngineManifest.from_bytes(chosen.files[ENGINE_FILE]), **changes)
    return {**chosen.files, ENGINE_FILE: manifest.to_bytes()}


def test_the_engine_that_was_asked_for_is_taken(answered: Any) -> None:
    chosen, graphs, settings = answered
    manifest = checked_engine(chosen, graphs, settings, machine="aarch64", where="device")
    assert manifest.typing == chosen.account.typing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda chosen: {PLAN_FILE: chosen.files[PLAN_FILE]}, "makes engine.plan"),
        (lambda chosen: {**chosen.files, "../\x1b[2J": b""}, "makes .*x1b"),
        (lambda chosen: {**chosen.files, PLAN_FILE: chosen.files[PLAN_FILE] + b"x"}, "describes another one"),
        (lambda chosen: {**chosen.files, PLAN_FILE: bytes(200 << 20)}, "an engine of 209,715,200 bytes"),
        (lambda chosen: {**chosen.files, ENGINE_FILE: b"{}"}, "holds nothing as `schema`"),
        (lambda chosen: {**chosen.files, ENGINE_FILE: b"\x80" * 99}, "engine.json"),
        (lambda chosen: changed(chosen, graph_sha256="0" * 64), "of another graph"),
        (lambda chosen: changed(chosen, precision="int8"), "of another precision"),
        (lambda chosen: changed(chosen, flags=("typing=weak",)), "built with other flags"),
        (lambda chosen: changed(chosen, max_batch=8), "for other batches"),
        (lambda chosen: changed(chosen, versions={}), "for another TensorRT"),
        (
            lambda chosen: changed(chosen, typing="weak" if chosen.account.typing == "strong" else "strong"),
            "of another typing",
        ),
        (
            lambda chosen: changed(
                chosen,
                fingerprint=replace(EngineManifest.from_bytes(chosen.files[ENGINE_FILE]).fingerprint, machine="x86_64"),
            ),
            "for another system",
        ),
    ],
)
def test_an_engine_that_was_not_asked_for_is_refused(
    answered: Any, change: Callable[[ChosenEngine], Mapping[str, bytes]], said: str
) -> None:
    chosen, graphs, settings = answered
    with pytest.raises(RefusedError, match=said) as caught:
        checked_engine(replace(chosen, files=change(chosen)), graphs, settings, machine="aarch64", where="device")
    assert caught.value.what.isprintable()


def test_compile_ends_with_69_where_there_is_no_tensorrt(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        compiled(graph, tmp_path)
    assert caught.value.exit_code == 69
    assert "--host USER@HOST" in str(caught.value.hint)
    assert not (tmp_path / "toy.edgebert").exists()


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    from edgebert.cli import app

    return CliRunner().invoke(app, ["compile", *arguments])


@pytest.mark.parametrize(
    "flag",
    [
        ("--typing", "strong"),
        ("--workspace-mb", "256"),
        ("--optimization-level", "2"),
        ("--dla-core", "0"),
        ("--max-batch", "8"),
        ("--timeout", "60"),
        ("--keep-both",),
    ],
)
def test_every_flag_that_a_hint_names_is_a_flag_of_compile(graph: Path, tmp_path: Path, flag: tuple[str, ...]) -> None:
    ran = run(str(graph), "-o", str(tmp_path / "x.edgebert"), "--target", "cpu", *flag)
    assert ran.exit_code == 2
    assert f"`{flag[0]}`, and no target takes a TensorRT engine: cpu" in ran.stderr


def test_compile_ends_with_69_on_the_command_line(graph: Path, tmp_path: Path) -> None:
    ran = run(str(graph), "-o", str(tmp_path / "x.edgebert"), "--target", "jetson", "--typing", "auto")
    assert ran.exit_code == 69
    assert "--host USER@HOST" in ran.stderr


@pytest.fixture
def bare() -> Any:
    """The place of a Jetson with nothing but JetPack: no backend there runs a graph as it is."""

    def has(_: object, backend: str) -> None:
        raise UnavailableError(f"`{backend}` is not installed there")

    return type("Bare", (type(HERE_PLACE),), {"has": has})()


def test_the_portable_graph_is_answered_here_where_the_device_has_tensorrt_alone(
    board: Jetson, bare: Any, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = CompileOptions(targets=("jetson",), canary="synthetic", max_seconds=0.1)
    with caplog.at_level("INFO", "edgebert"):
        bundle_from_graph(graph, tmp_path / "toy.edgebert", options, bare)
    logits = read_bundle(tmp_path / "toy.edgebert").manifest.canaries[0].logits
    assert {"onnxruntime", "tensorrt:GPU"} <= set(logits)
    assert "the portable graph is answered on this computer" in caplog.text


def test_no_backend_anywhere_is_an_error(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(HERE_PLACE), "has", type(bare).has)
    with pytest.raises(UnavailableError, match="is not installed there"):
        reference_place(HERE_PLACE)
    with pytest.raises(UnavailableError, match="is not installed there"):
        reference_place(bare)
