"""Quantisation of a trained student: the rules hold, both engines agree, and only training images were looked at."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert._files import sha256_of_file
from edgebert.bundle import read_bundle
from edgebert.calibration.comparison import Validation
from edgebert.calibration.images import calibration_examples
from edgebert.calibration.quantize import QuantizeOptions, QuantizeReport, int8_graph_from_graph
from edgebert.data import Dataset
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, InputNotFoundError, UsageError
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.metadata import parse_graph, read_graph_card, read_graph_examples
from edgebert.export.rules import check_int8_graph, qdq_counts
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner


@pytest.fixture(scope="module")
def quantised(trained_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeReport:
    """The trained student as INT8, with every option at its default."""
    return int8_graph_from_graph(trained_graph, "digits", tmp_path_factory.mktemp("int8") / "student.int8.onnx")


def test_int8_graph_keeps_the_rules(quantised: QuantizeReport) -> None:
    model = parse_graph(quantised.path)
    check_int8_graph(model)
    assert quantised.operators == qdq_counts(model) == {"MatMul": 12, "QuantizeLinear": 8, "DequantizeLinear": 20}
    assert quantised.kept_float == {"attention": 4, "head": 1, "stem": 2}


def test_int8_decides_as_fp32_in_both_engines(quantised: QuantizeReport) -> None:
    assert quantised.validation_images == 145
    assert quantised.agreement_onnxruntime >= 0.99
    assert quantised.agreement_openvino >= 0.99
    assert quantised.engines_agree >= 0.99
    assert quantised.top1_before >= 0.9
    assert abs(quantised.top1_after - quantised.top1_before) <= 0.01
    assert abs(quantised.top1_after_openvino - quantised.top1_before) <= 0.01


def test_card_names_graph_data_and_calibration_images(
    quantised: QuantizeReport, trained_graph: Path, digits: Dataset
) -> None:
    card, before = read_graph_card(quantised.path), read_graph_card(trained_graph)
    assert [step.stage for step in card.provenance.chain()] == ["quantize", "export", "train"]
    assert card.provenance.source == before.provenance
    assert card.provenance.made_from["graph"] == sha256_of_file(trained_graph)
    assert card.provenance.made_from["data"] == digits.sha256()
    assert card.provenance.options["images"] == quantised.calibration_images == 512
    assert card.provenance.metrics["val_agreement_openvino"] == quantised.agreement_openvino
    assert all(example.pixel_sha256 in card.seen for example in (*digits.val, *calibration_examples(digits, 512)))
    assert not any(example.pixel_sha256 in card.seen for example in digits.test)
    assert read_graph_examples(quantised.path) == read_graph_examples(trained_graph)


def test_card_has_a_temperature_of_the_validation_images(quantised: QuantizeReport, trained_graph: Path) -> None:
    confidence = read_graph_card(quantised.path).confidence
    assert confidence is not None
    assert confidence.images == quantised.validation_images
    assert confidence.temperature != 1
    assert confidence.abstain_below is None
    assert read_graph_card(trained_graph).confidence is None


def test_wanted_precision_gives_a_threshold_that_reaches_the_bundle(
    trained_graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = QuantizeOptions(images=16, abstain_precision=0.98)
    with caplog.at_level(logging.INFO, logger="edgebert"):
        int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", options)
    card = read_graph_card(tmp_path / "int8.onnx")
    assert card.confidence is not None
    assert card.confidence.wanted_precision == 0.98
    assert f"confidence: {card.confidence.to_text()}" in caplog.text
    bundle_from_graph(tmp_path / "int8.onnx", tmp_path / "digits.edgebert", CompileOptions(targets=("cpu",)))
    assert read_bundle(tmp_path / "digits.edgebert").manifest.card.confidence == card.confidence


def test_a_precision_that_is_not_reached_writes_nothing(trained_graph: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(images=16, abstain_precision=1 - 1e-9)
    turned = tmp_path / "data"
    _write_images(turned, tuple("0123456789"), np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3), count=150)
    with pytest.raises(BadDataError, match="no score separates answers"):
        int8_graph_from_graph(trained_graph, turned, tmp_path / "int8.onnx", options)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_graph_takes_any_batch(quantised: QuantizeReport, engine: str, digits: Dataset) -> None:
    images = np.stack([example.load() for example in digits.val[:5]])
    source = ModelSource(
        spec=InputSpec(height=8, width=8, classes=10), files={"model.onnx": quantised.path.read_bytes()}
    )
    with open_runner(engine, source) as runner:
        together = runner.infer(images)
        alone = np.concatenate([runner.infer(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(together, alone, atol=0.02 * float(np.abs(alone).max()))
    assert (together.argmax(1) == alone.argmax(1)).all()


def test_second_process_writes_the_same_bytes_and_nothing_to_stdout(
    quantised: QuantizeReport, trained_graph: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, pathlib\nfrom edgebert.calibration.quantize import int8_graph_from_graph\n"
        "int8_graph_from_graph(pathlib.Path(sys.argv[1]), 'digits', pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(trained_graph), str(tmp_path / "again.onnx")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert sha256_of_file(tmp_path / "again.onnx") == quantised.sha256 == sha256_of_file(quantised.path)
    assert ran.stdout == ""


def test_checkpoint_is_exported_first(
    quantised: QuantizeReport, trained_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="edgebert"):
        report = int8_graph_from_graph(trained_folder, "digits", tmp_path / "student.int8.onnx")
    assert report.sha256 == quantised.sha256
    assert (
        "int8: 12 MatMul, 8 QuantizeLinear, 20 DequantizeLinear; in float: 4 attention, 1 head, 2 stem" in caplog.text
    )
    assert "on 145 validation images INT8 decides as FP32" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["student.int8.onnx"]


def test_quantised_graph_is_not_quantised_again(quantised: QuantizeReport, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="quantised already"):
        int8_graph_from_graph(quantised.path, "digits", tmp_path / "twice.onnx")


def test_data_of_other_classes_is_refused(trained_graph: Path, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", ("cat", "dog"), np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3))
    with pytest.raises(BadDataError, match="only in the data `cat`, `dog`"):
        int8_graph_from_graph(trained_graph, tmp_path / "data", tmp_path / "int8.onnx")


def test_noise_is_refused(trained_graph: Path, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", tuple("0123456789"), None)
    with pytest.raises(BadDataError, match="look like noise"):
        int8_graph_from_graph(trained_graph, tmp_path / "data", tmp_path / "int8.onnx", QuantizeOptions(images=16))
    assert not (tmp_path / "int8.onnx").exists()


def test_missing_data_and_source_are_named(trained_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no-such-folder"):
        int8_graph_from_graph(trained_graph, tmp_path / "no-such-folder", tmp_path / "int8.onnx")
    with pytest.raises(InputNotFoundError, match=r"missing\.onnx"):
        int8_graph_from_graph(tmp_path / "missing.onnx", "digits", tmp_path / "int8.onnx")


def test_existing_output_is_refused_before_any_work(trained_graph: Path, tmp_path: Path) -> None:
    (tmp_path / "int8.onnx").write_bytes(b"mine")
    with pytest.raises(CannotWriteError):
        int8_graph_from_graph(trained_graph, tmp_path / "no-such-folder", tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").read_bytes() == b"mine"


def test_engines_that_disagree_are_not_believed(
    trained_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Validation.logits

    def turned(self: Validation, engine: str, model: onnx.ModelProto) -> NDArray[np.float32]:
        answer = logits(self, engine, model)
        return -answer if engine == "openvino" else answer

    monkeypatch.setattr(Validation, "logits", turned)
    with pytest.raises(EdgebertError, match=r"decide alike on \d\.\d% of 145 images"):
        int8_graph_from_graph(trained_graph, "digits", tmp_path / "int8.onnx", QuantizeOptions(images=16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", [0.0, 0.5, 1.0, 99.0])
def test_quantize_options_refuse_a_precision_that_cannot_be_meant(precision: float) -> None:
    with pytest.raises(UsageError, match="abstain_precision"):
        QuantizeOptions(abstain_precision=precision)


@pytest.mark.parametrize("images", [0, 15, 100_001])
def test_quantize_options_refuse_what_cannot_be_meant(images: int) -> None:
    with pytest.raises(UsageError, match=str(images)):
        replace(QuantizeOptions(), images=images)


def _write_images(
    folder: Path,
    names: tuple[str, ...],
    picture: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None,
    *,
    count: int = 12,
) -> None:
    """Write some 8 x 8 images of each class: `picture` with a different corner each, or noise."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) if picture is None else picture.astype(np.uint8)
            pixels[0, 0] = rng.integers(0, 256, 3)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
