"""`quantize` with a promise, with placements and with sensitivities, from the trained student to files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgebert._files import sha256_of_file
from edgebert.calibration import quantize, search
from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.calibration.comparison import Validation
from edgebert.calibration.guard import Judgement
from edgebert.calibration.quantize import QuantizeOptions, QuantizeReport, int8_graph_from_graph
from edgebert.calibration.search import SearchResult
from edgebert.data import Dataset, Example
from edgebert.errors import CannotWriteError, EdgebertError, UsageError
from edgebert.export.metadata import parse_graph, read_graph_card
from edgebert.export.placements import graph_for_backend, placements_of_model
from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts
from edgebert.export.topology import LINEAR_OPERATORS, Topology
from edgebert.preprocess import RgbImage

_FAST = QuantizeOptions(images=32, effort="fast")


def _float_linears(model: onnx.ModelProto) -> set[str]:
    topology = Topology(model)
    makers = {
        node.name: topology.producers.get(node.input[1])
        for node in model.graph.node
        if node.op_type in LINEAR_OPERATORS
    }
    return {name for name, maker in makers.items() if maker is None or maker.op_type != "DequantizeLinear"}


def _of_all_in_int8(monkeypatch: pytest.MonkeyPatch, worst: float, better: float) -> None:
    """Make validation find `worst` agreement, in percent, while 9 and more MatMul are in INT8, and `better` below."""

    def judged(self: Validation, engine: str, model: onnx.ModelProto) -> Judgement:
        many = qdq_counts(model).get("MatMul", 0) >= 9
        return Judgement(drop=0.0, agreement=worst if many else better)

    monkeypatch.setattr(Validation, "judged", judged)


def _gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every wider placement be worth it, whatever it costs on a student that trained for seconds."""
    monkeypatch.setattr(search, "is_as_good", lambda wide, narrow, moved: True)
    monkeypatch.setattr(search, "_WORTH_COUNT", 0)


@pytest.fixture(scope="module")
def wide(trained_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeReport:
    """The student whose wider placements are all worth it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _gains(monkeypatch)
        options = QuantizeOptions(images=64)
        return int8_graph_from_graph(trained_graph, "digits", tmp_path_factory.mktemp("wide") / "int8.onnx", options)


def test_quantize_writes_placements_where_wider_is_worth_it(wide: QuantizeReport) -> None:
    model = parse_graph(wide.path)
    placements = placements_of_model(model)
    assert placements is not None
    assert set(placements.added) == set(wide.wider) == {"openvino", "tensorrt"}
    assert wide.wider["openvino"].startswith("attention full, stem int8, head float: ")
    check_int8_graph(model)
    graph, added = graph_for_backend(model, "openvino")
    assert len(added) == 6
    onnx.checker.check_model(graph, full_check=True)


def test_quantize_keeps_every_candidate_in_the_provenance(wide: QuantizeReport) -> None:
    options = read_graph_card(wide.path).provenance.options
    assert options["search"] == json.loads(json.dumps(wide.search.to_json()))
    assert options["kept_float"] == {"attention": 4, "head": 1, "stem": 2}
    assert options["macs_int8"] == wide.macs_int8
    assert options["guard"] is None


def test_quantize_reads_training_images_alone_to_choose(
    trained_graph: Path, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    load, searched = Example.load, search.searched
    seen_by_the_search: set[str] = set()

    def spied(self: Example) -> RgbImage:
        read.add(self.pixel_sha256)
        return load(self)

    def watched(*arguments: object) -> SearchResult:
        before = set(read)
        read.clear()
        result = searched(*arguments)  # type: ignore[arg-type]  # passed on as they come
        seen_by_the_search.update(read)
        read.update(before)
        return result

    def without_validation(*arguments: object) -> None:
        """Stop where the first validation image would be read."""
        raise KeyboardInterrupt

    monkeypatch.setattr(Example, "load", spied)
    monkeypatch.setattr(quantize, "searched", watched)
    int8_graph_from_graph(trained_graph, "digits", tmp_path / "a.onnx", _FAST)
    assert seen_by_the_search <= {example.pixel_sha256 for example in digits.train}
    assert not read & {example.pixel_sha256 for example in digits.test}
    read.clear()
    monkeypatch.setattr(quantize, "Validation", without_validation)
    with pytest.raises(KeyboardInterrupt):
        int8_graph_from_graph(trained_graph, "digits", tmp_path / "b.onnx", _FAST)
    assert read
    assert read <= {example.pixel_sha256 for example in digits.train}


def test_quantize_chooses_the_same_whatever_the_validation_images(
    trained_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = int8_graph_from_graph(trained_graph, "digits", tmp_path / "a.onnx", _FAST)
    monkeypatch.setattr(quantize, "_VALIDATION_IMAGES", 50)
    second = int8_graph_from_graph(trained_graph, "digits", tmp_path / "b.onnx", _FAST)
    assert (first.validation_images, second.validation_images) == (145, 50)
    assert parse_graph(first.path).graph == parse_graph(second.path).graph


def test_quantize_with_a_promise_that_holds_at_once_reverts_nothing(trained_graph: Path, tmp_path: Path) -> None:
    options = replace(_FAST, max_drop=50, min_agreement=50)
    report = int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", options)
    assert report.guard is not None
    assert report.guard.held
    assert report.guard.reverted == ()
    assert "guard" not in report.kept_float
    plain = int8_graph_from_graph(trained_graph, "digits", tmp_path / "plain.onnx", _FAST)
    assert parse_graph(report.path).graph == parse_graph(plain.path).graph


def test_quantize_keeps_a_promise_by_layers_in_float(
    trained_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_all_in_int8(monkeypatch, 98.0, 100.0)
    report = int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", replace(_FAST, min_agreement=99.5))
    assert report.guard is not None
    assert len(report.guard.reverted) == 4
    assert report.kept_float["guard"] == 4
    model = parse_graph(report.path)
    check_int8_graph(model)
    assert set(report.guard.reverted) <= _float_linears(model)
    assert qdq_counts(model)["MatMul"] == 8
    stored = read_graph_card(report.path).provenance.options["guard"]
    assert stored == report.guard.to_json()
    worst = sorted(report.sensitivity, key=lambda layer: -layer.score.divergence)
    core = [layer.name for layer in worst if layer.part == "core"]
    assert list(report.guard.reverted) == core[:4]
    assert list(tmp_path.iterdir()) == [report.path]


def test_quantize_that_cannot_keep_its_promise_keeps_the_best_aside(
    trained_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_all_in_int8(monkeypatch, 97.0, 98.0)
    with pytest.raises(EdgebertError, match=r"the promise cannot be kept: agreement 98.00 % is below 99.5 %") as caught:
        int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", replace(_FAST, min_agreement=99.5))
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["int8.guard-failed.onnx"]
    aside = parse_graph(tmp_path / "int8.guard-failed.onnx")
    check_int8_graph(aside)
    assert read_graph_card(tmp_path / "int8.guard-failed.onnx").provenance.stage == "quantize"
    assert "int8.guard-failed.onnx" in str(caught.value)


def test_quantize_holds_the_promise_for_wider_placements_too(
    trained_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gains(monkeypatch)

    def judged(self: Validation, engine: str, model: onnx.ModelProto) -> Judgement:
        return Judgement(drop=0.0, agreement=90.0 if "Conv" in qdq_counts(model) else 100.0)  # INT8 stems break it

    monkeypatch.setattr(Validation, "judged", judged)
    options = QuantizeOptions(images=64, min_agreement=99.5)
    report = int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", options)
    assert report.search.wider.keys() == {"openvino", "tensorrt"}
    assert report.wider == {}
    assert placements_of_model(parse_graph(report.path)) is None


@pytest.mark.parametrize("promised", [True, False])
def test_quantize_refuses_a_file_aside_that_would_be_in_the_way(
    trained_graph: Path, tmp_path: Path, promised: bool
) -> None:
    (tmp_path / "int8.guard-failed.onnx").write_bytes(b"mine")
    if promised:
        with pytest.raises(CannotWriteError):
            int8_graph_from_graph(trained_graph, "nowhere", tmp_path / "int8.onnx", replace(_FAST, max_drop=1))
    else:
        int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", _FAST)
    assert (tmp_path / "int8.guard-failed.onnx").read_bytes() == b"mine"


def test_quantize_writes_sensitivities_beside_the_graph_and_the_same_graph(trained_graph: Path, tmp_path: Path) -> None:
    plain = int8_graph_from_graph(trained_graph, "digits", tmp_path / "plain.onnx", _FAST)
    options = replace(_FAST, sensitivity=str(tmp_path / "layers.json"))
    report = int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", options)
    rows = json.loads((tmp_path / "layers.json").read_text())["layers"]
    assert [row["name"] for row in rows] == [layer.name for layer in report.sensitivity]
    assert len(rows) == 19
    assert (tmp_path / "layers.svg").is_file()
    assert sha256_of_file(plain.path) == sha256_of_file(report.path)


@pytest.mark.parametrize("there", ["layers.json", "layers.svg"])
def test_quantize_refuses_existing_sensitivities_before_any_work(
    trained_graph: Path, tmp_path: Path, there: str
) -> None:
    (tmp_path / there).write_text("mine")
    options = replace(_FAST, sensitivity=str(tmp_path / "layers.json"))
    with pytest.raises(CannotWriteError, match=there):
        int8_graph_from_graph(trained_graph, "nowhere", tmp_path / "int8.onnx", options)


@pytest.mark.parametrize(
    "options",
    [
        {"effort": "most"},
        {"sensitivity": "layers.svg"},
        {"max_drop": -1.0},
        {"min_agreement": 100.5},
        {"min_int8_share": 0.0},
    ],
)
def test_quantize_options_refuse_a_choice_that_is_not_there(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        replace(QuantizeOptions(), **options)  # type: ignore[arg-type]  # wrong on purpose


def test_unsearched_int8_graph_is_the_plainest_portable_graph(trained_graph: Path, digits: Dataset) -> None:
    model = parse_graph(trained_graph)
    int8 = unsearched_int8_graph(model, np.stack([example.load() for example in digits.train[:16]]))
    check_int8_graph(int8)
    assert graph_precision(int8) == "int8"
    assert qdq_counts(int8) == {"MatMul": 12, "QuantizeLinear": 8, "DequantizeLinear": 20}
