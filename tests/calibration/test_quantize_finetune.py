"""`quantize --finetune`: from the options to what the card of the INT8 graph says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgebert.calibration.finetune import FinetuneOptions
from edgebert.calibration.quantize import QuantizeOptions, QuantizeReport, int8_graph_from_graph
from edgebert.cli import app
from edgebert.data import Dataset
from edgebert.errors import UsageError
from edgebert.export.metadata import parse_graph, read_graph_card
from edgebert.export.rules import check_int8_graph


@pytest.fixture(scope="module")
def quantised(trained_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeReport:
    options = QuantizeOptions(images=64, finetune="digits", finetune_epochs=1, finetune_learning_rate=3e-5)
    return int8_graph_from_graph(trained_graph, "digits", tmp_path_factory.mktemp("tuned") / "student.onnx", options)


def test_finetuned_graph_keeps_the_rules_and_decides_as_fp32(quantised: QuantizeReport) -> None:
    check_int8_graph(parse_graph(quantised.path))
    assert quantised.agreement_onnxruntime >= 0.99
    assert quantised.agreement_openvino >= 0.99


def test_card_says_how_it_was_finetuned_and_what_it_saw(quantised: QuantizeReport, digits: Dataset) -> None:
    card = read_graph_card(quantised.path)
    said = card.provenance.options["finetune"]
    assert isinstance(said, dict)
    assert (said["epochs"], said["learning_rate"], said["scales"]) == (1, 3e-5, "learned")
    assert card.provenance.made_from["finetune"] == digits.sha256()
    assert "torch" in card.provenance.versions
    assert all(example.pixel_sha256 in card.seen for example in digits.train)
    assert not any(example.pixel_sha256 in card.seen for example in digits.test)


def test_defaults_are_those_of_finetuning() -> None:
    quantize, finetune = QuantizeOptions(), FinetuneOptions()
    assert quantize.finetune_epochs == finetune.epochs
    assert quantize.finetune_scales == finetune.scales
    assert quantize.finetune_learning_rate == finetune.learning_rate


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "teacher/"}, "teacher `teacher/` without data"),
        ({"finetune_epochs": 6}, "finetune_epochs `6`"),
        ({"finetune_scales": "thawed"}, "finetune_scales `thawed`"),
        ({"finetune_learning_rate": 0.1}, r"finetune_learning_rate `0\.1`"),
    ],
)
def test_options_refuse_what_cannot_be_meant(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        QuantizeOptions(**changes)  # type: ignore[arg-type]  # wrong on purpose


def test_command_refuses_a_teacher_without_data(tmp_path: Path) -> None:
    arguments = ["quantize", "student.onnx", "--calibration", "digits", "-o", str(tmp_path / "int8.onnx")]
    ran = CliRunner().invoke(app, [*arguments, "--teacher", "teacher/"])
    assert ran.exit_code == 2
    assert "hint: --finetune DATA --teacher teacher/" in ran.stderr
