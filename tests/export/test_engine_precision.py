"""`compile --precision auto` for a Jetson: FP16 and INT8 engines measured against each other, and both kept where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")

from edgebert import Classifier
from edgebert.bench.arms import arms_from_paths
from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.bundle import read_bundle
from edgebert.confidence import Confidence
from edgebert.data import Example
from edgebert.errors import CannotWriteError, EdgebertError, MemoryExhaustedError, UsageError
from edgebert.export import compile as compile_module
from edgebert.export import precision as precision_module
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.engine_choice import Trial
from edgebert.export.forms import form_from_graph
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.export.precision import SourceGraph
from edgebert.export.verdict import verdict_of
from edgebert.export.verdict_measure import verdict_from_forms
from edgebert.manifest import engine_name
from tests.tensorrt.jetson import Jetson, jetson_double

if TYPE_CHECKING:
    from tests.export.conftest import GraphPair


@pytest.fixture(scope="session")
def pair(fp32_graph: bytes, int8_graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The untrained student's FP32 graph, and its INT8 graph with a card that says so."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "fp32.onnx").write_bytes(fp32_graph)
    model = parse_graph(int8_graph)
    card = card_of_model(model)
    source = SourceGraph.of(folder / "fp32.onnx", fp32_graph)
    provenance = replace(card.provenance, stage="quantize", made_from={"graph": source.sha256})
    named = with_metadata(model, replace(card, provenance=provenance), examples_of_model(model))
    (folder / "int8.onnx").write_bytes(bytes_of_model(named))
    return folder / "fp32.onnx", folder / "int8.onnx"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Jetson:
    """A Jetson with TensorRT 10.3 that builds engines in this process."""
    jetson = jetson_double(monkeypatch, tmp_path)
    jetson.builds_here()
    return jetson


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that replaces what was measured by a ratio, with the same decisions."""

    def given(ratio: float) -> None:
        def verdict(*arguments: Any, asked: Any, limits: Any, max_seconds: float) -> Any:
            (found,) = verdict_from_forms(*arguments, asked=asked, limits=limits, max_seconds=max_seconds).measurements
            int8 = replace(found.int8, accuracy=found.fp32.accuracy)
            changes: dict[str, Any] = {
                "ratio": ratio,
                "ratio_ci95": (0.99 * ratio, 1.01 * ratio),
                "agreement": 1.0,
                "int8": int8,
            }
            return verdict_of((replace(found, **changes),), asked, limits)

        monkeypatch.setattr(precision_module, "verdict_from_forms", verdict)

    return given


def compiled(pair: tuple[Path, Path], tmp_path: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "targets": ("jetson",),
        "canary": None,
        "precision": "auto",
        "float_graph": pair[0],
        "data": "digits",
        "max_seconds": 0.1,
        "max_drop": 100.0,
        "min_agreement": 0.0,
        **changes,
    }
    return bundle_from_graph(pair[1], tmp_path / "d.edgebert", CompileOptions(**given))


@pytest.mark.parametrize(("ratio", "precision", "name"), [(0.5, "int8", "INT8"), (1.5, "fp32", "FP16")])
def test_auto_ships_the_faster_engine_and_calls_the_float_one_fp16(
    board: Jetson,
    pair: tuple[Path, Path],
    tmp_path: Path,
    measured_as: Callable[[float], None],
    ratio: float,
    precision: str,
    name: str,
) -> None:
    measured_as(ratio)
    report = compiled(pair, tmp_path)
    manifest = read_bundle(report.path).manifest
    assert report.verdict.startswith(f"{name} ships: ")
    assert "FP32" not in report.verdict
    assert (report.precision, [form.target for form in manifest.forms]) == (precision, ["jetson"])
    figures: Any = manifest.measured["precision_choice"]
    assert figures["targets"]["jetson"]["fp32"]["form"].endswith("-fp16")
    assert "int8" in figures["targets"]["jetson"]["int8"]["form"]
    assert board.script.faults == []


@pytest.mark.parametrize(("ratio", "other"), [(0.5, "jetson-fp16"), (1.5, "jetson-int8")])
def test_keep_both_keeps_the_other_engine_under_a_name_of_its_own(
    board: Jetson,
    pair: tuple[Path, Path],
    tmp_path: Path,
    measured_as: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    ratio: float,
    other: str,
) -> None:
    measured_as(ratio)
    # An untrained student decides by a hair: what the two engines say of a canary is not what is asked here.
    monkeypatch.setattr(compile_module, "chosen_canaries", lambda candidates, rows, *_: _agreed(candidates, rows))
    report = compiled(pair, tmp_path, keep_both=True, canary="synthetic")
    manifest = read_bundle(report.path).manifest
    assert [form.target for form in manifest.forms] == ["jetson", other]
    assert report.verified == ("jetson", other)
    key = engine_name("tensorrt", "GPU", beside=other.removeprefix("jetson-"))
    assert {"tensorrt:GPU", key} <= set(manifest.canaries[0].logits)
    with Classifier(report.path) as first, Classifier(report.path, target=other) as second:
        assert (first.target, second.target) == ("jetson", other)
    arms = arms_from_paths([report.path], ("jetson",))
    assert [(arm.name, arm.target) for arm in arms] == [("d@jetson", "jetson"), (f"d@{other}", other)]
    loaded = load_arm(LoadRequest(kind="bundle", path=str(report.path), target=other, threads=1), lambda: None)
    assert loaded.precision == ("fp32" if other == "jetson-fp16" else "int8")
    loaded.pipeline.runner.close()


def _agreed(candidates: Any, rows: Any) -> list[int]:
    return [int(place) for place in np.argsort(rows.max(axis=1) - np.sort(rows, axis=1)[:, -2])[::-1][:3]]


def test_an_engine_that_decides_a_canary_otherwise_is_not_kept(
    board: Jetson,
    pair: tuple[Path, Path],
    tmp_path: Path,
    measured_as: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured_as(0.5)
    real = compile_module._with_form

    def refuses(manifest: Any, files: Any, form: Any, *rest: Any) -> Any:
        if form.target.beside:
            raise EdgebertError("engines disagree on `canary/0.png`")
        return real(manifest, files, form, *rest)

    monkeypatch.setattr(compile_module, "_with_form", refuses)
    report = compiled(pair, tmp_path, keep_both=True)
    assert [form.target for form in report.forms] == ["jetson"]
    assert "`jetson-fp16` is not kept: engines disagree" in caplog.text


def test_fp16_ships_where_no_int8_engine_can_be_built_and_that_is_said(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = form_from_graph

    def fails(graph: bytes, *rest: Any) -> Any:
        if b"DequantizeLinear" in graph:
            raise MemoryExhaustedError("no engine could be built: memory ran out")
        return real(graph, *rest)

    monkeypatch.setattr(precision_module, "form_from_graph", fails)
    report = compiled(pair, tmp_path)
    assert (report.precision, report.verdict) == ("fp32", "")
    assert any("INT8 could not be compiled: no engine could be built" in note for note in report.forms[0].notes)
    with pytest.raises(MemoryExhaustedError):
        compiled(pair, tmp_path, precision="int8", force=True)


def test_int8_ships_where_no_float_engine_can_be_built_and_that_is_said(
    board: Jetson,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = form_from_graph

    def fails(graph: bytes, *rest: Any) -> Any:
        if b"DequantizeLinear" not in graph:
            raise EdgebertError("no engine could be built: a layer has no FP16 kernel")
        return real(graph, *rest)

    monkeypatch.setattr(precision_module, "form_from_graph", fails)
    report = compiled(pair, tmp_path, max_drop=100.0, keep_both=True)
    assert (report.precision, report.verdict) == ("int8", "")
    assert "`--keep-both`: one precision could be compiled, and is kept" in caplog.text
    assert any(
        "not held against the float graph, which has no engine that can ship: no engine" in note
        for note in report.forms[0].notes
    )
    with pytest.raises(EdgebertError, match="a layer has no FP16 kernel"):
        compiled(pair, tmp_path, precision="fp32", force=True)


@pytest.mark.parametrize("fails", ["int8", "fp32"])
def test_nothing_ships_unmeasured_for_a_processor_that_runs_both_graphs(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    real = form_from_graph

    def failing(graph: bytes, target: Any, *rest: Any) -> Any:
        if target.form == "engine" and (b"DequantizeLinear" in graph) == (fails == "int8"):
            raise EdgebertError("no engine could be built")
        return real(graph, target, *rest)

    monkeypatch.setattr(precision_module, "form_from_graph", failing)
    with pytest.raises(EdgebertError, match="no engine could be built"):
        compiled(pair, tmp_path, targets=("cpu", "jetson"))


def test_a_disk_that_is_full_says_nothing_of_a_graph(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(graph: bytes, *rest: Any) -> Any:
        raise CannotWriteError("cannot write the engine: No space left on device")

    monkeypatch.setattr(precision_module, "form_from_graph", full)
    with pytest.raises(CannotWriteError):
        compiled(pair, tmp_path)


def test_int8_without_a_float_engine_must_hold_what_the_float_graph_is_worth(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floors: list[float] = []

    def fails(graph: bytes, target: Any, builder: Any, asked: Any) -> Any:
        if b"DequantizeLinear" not in graph:
            floors.append(asked.trial.floor)
            raise EdgebertError("no engine could be built: a layer has no FP16 kernel")
        floors.append(asked.trial.floor)
        raise EdgebertError("no engine holds an accuracy")

    monkeypatch.setattr(precision_module, "form_from_graph", fails)
    with pytest.raises(EdgebertError, match="no engine holds an accuracy"):
        compiled(pair, tmp_path, max_drop=0.0)
    assert floors[0] == floors[1] > 0


def test_fp16_that_ships_for_want_of_an_int8_engine_abstains_as_int8_would(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parse_graph(pair[1].read_bytes())
    confidence = Confidence(temperature=3.0, ece_before=0.1, ece_after=0.1, images=300)
    asked = tmp_path / "confident.onnx"
    asked.write_bytes(
        bytes_of_model(
            with_metadata(model, replace(card_of_model(model), confidence=confidence), examples_of_model(model))
        )
    )
    real = form_from_graph

    def fails(graph: bytes, *rest: Any) -> Any:
        if b"DequantizeLinear" in graph:
            raise MemoryExhaustedError("no engine could be built: memory ran out")
        return real(graph, *rest)

    monkeypatch.setattr(precision_module, "form_from_graph", fails)
    found = read_bundle(compiled((pair[0], asked), tmp_path).path).manifest.card.confidence
    assert found is not None
    assert found.temperature != confidence.temperature  # fitted to the float engine's answers
    assert found.images > 100


def test_data_alone_measure_the_typings_of_the_graph_that_was_given(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Trial] = []
    real = CompileOptions.engine_asked

    def spy(options: CompileOptions, trial: Trial | None) -> Any:
        trials.extend([] if trial is None else [trial])
        return real(options, trial)

    monkeypatch.setattr(CompileOptions, "engine_asked", spy)
    compiled(pair, tmp_path, precision="as-given", float_graph=None, max_drop=3.0)
    (trial,) = trials
    assert len(trial.tensors) > 100
    assert trial.expected.sum(axis=1).tolist() == [1] * len(trial.tensors)
    assert trial.max_drop == pytest.approx(0.03)


def test_no_test_image_is_read_for_an_engine(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgebert.data import load_dataset

    seen: set[str] = set()
    load = Example.load

    def spy(example: Example) -> Any:
        seen.add(example.pixel_sha256)
        return load(example)

    monkeypatch.setattr(Example, "load", spy)
    compiled(pair, tmp_path, precision="as-given", float_graph=None, max_drop=100.0)
    assert seen <= {example.pixel_sha256 for example in load_dataset("digits").val}


@pytest.mark.parametrize(
    "changes", [{"data": None, "float_graph": None, "precision": "as-given"}, {"data": None, "precision": "int8"}]
)
def test_keep_both_needs_two_precisions(
    board: Jetson, pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="`--keep-both`, and there is one precision"):
        compiled(pair, tmp_path, keep_both=True, **changes)


@pytest.mark.slow
def test_a_trained_student_keeps_both_engines(board: Jetson, digits_pair: GraphPair, tmp_path: Path) -> None:
    report = compiled((digits_pair.fp32, digits_pair.int8), tmp_path, keep_both=True, max_seconds=2.0)
    assert len(report.forms) == 2
