"""Export: the promises of a graph, parity with PyTorch, and the same bytes from every process."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgebert._files import sha256_of_file
from edgebert.card_io import checkpoint_sha256, read_checkpoint_card
from edgebert.errors import CannotWriteError, EdgebertError, InputNotFoundError, UsageError
from edgebert.export.graph import ExportOptions, ExportReport, graph_from_checkpoint
from edgebert.export.metadata import read_graph_card, read_graph_examples
from edgebert.models.checkpoint import Checkpoint, PixelClassifier, load_checkpoint, save_checkpoint
from edgebert.preprocess import load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner


def test_graph_takes_uint8_images_and_gives_float32_logits(exported: ExportReport) -> None:
    model = onnx.load(exported.path)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert [side.dim_param or side.dim_value for side in image.type.tensor_type.shape.dim] == ["batch", 8, 8, 3]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert [side.dim_param or side.dim_value for side in logits.type.tensor_type.shape.dim] == ["batch", 10]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


def test_layer_norm_and_gelu_are_single_operators_and_batch_norm_is_folded(
    exported: ExportReport, student_folder: Path
) -> None:
    operators = [node.op_type for node in onnx.load(exported.path).graph.node]
    modules = list(load_checkpoint(student_folder).model.modules())
    assert (
        operators.count("LayerNormalization") == sum(isinstance(module, torch.nn.LayerNorm) for module in modules) > 0
    )
    assert operators.count("Gelu") == 2
    assert not {"Erf", "Pow", "BatchNormalization", "Where", "IsNaN"} & set(operators)


def test_graph_tells_nothing_of_the_computer_that_made_it(exported: ExportReport) -> None:
    model = onnx.load(exported.path)
    described = (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer)
    assert not any(entry.doc_string or entry.metadata_props for entry in described)
    assert {entry.key for entry in model.metadata_props} == {"edgebert.schema", "edgebert.card", "edgebert.examples"}
    content = exported.path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content


def test_card_names_the_checkpoint_and_keeps_its_history(exported: ExportReport, student_folder: Path) -> None:
    card, before = read_graph_card(exported.path), read_checkpoint_card(student_folder)
    assert [step.stage for step in card.provenance.chain()] == ["export", "train"]
    assert card.provenance.made_from == {"checkpoint": checkpoint_sha256(student_folder)}
    assert card.provenance.source == before.provenance
    assert (card.class_names, card.preprocessing, card.seen) == (before.class_names, before.preprocessing, before.seen)
    assert read_graph_examples(exported.path) == load_checkpoint(student_folder).examples


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_answers_as_pytorch_for_every_batch_size(
    exported: ExportReport, student_folder: Path, batch: int
) -> None:
    loaded = load_checkpoint(student_folder)
    images = load_batch([example.png for example in loaded.examples] * 2, loaded.card.preprocessing)[:batch]
    spec = InputSpec(height=8, width=8, classes=10)
    with open_runner("onnxruntime", ModelSource(spec=spec, files={"model.onnx": exported.path.read_bytes()})) as runner:
        theirs = runner.infer(images)
    with torch.inference_mode():
        ours = PixelClassifier(loaded.model, loaded.card.preprocessing).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_report_holds_the_measured_parity(exported: ExportReport) -> None:
    assert exported.images == 4
    assert exported.flips == 0
    assert 0 <= exported.max_logit_difference < 1e-4 < exported.logit_scale
    assert exported.sha256 == sha256_of_file(exported.path)
    assert exported.size_bytes == exported.path.stat().st_size


def test_second_process_writes_the_same_bytes(exported: ExportReport, student_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom edgebert.export.graph import graph_from_checkpoint\n"
        "graph_from_checkpoint(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(student_folder), str(tmp_path / "again.onnx")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert hashlib.sha256((tmp_path / "again.onnx").read_bytes()).hexdigest() == exported.sha256
    assert ran.stdout == ""


def test_validation_images_join_the_comparison_when_data_is_named(
    student_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, exported: ExportReport
) -> None:
    with caplog.at_level(logging.INFO, logger="edgebert"):
        report = graph_from_checkpoint(student_folder, tmp_path / "graph.onnx", ExportOptions(data="digits"))
    assert report.images > 100
    assert "0 decisions differ" in caplog.text
    assert report.sha256 == exported.sha256


def _saved_without_examples(student_folder: Path, folder: Path) -> Path:
    loaded = load_checkpoint(student_folder)
    folder.mkdir()
    save_checkpoint(folder, loaded.model, loaded.card, ())
    return folder


def test_no_real_image_is_refused_with_the_flag_that_helps(student_folder: Path, tmp_path: Path) -> None:
    checkpoint = _saved_without_examples(student_folder, tmp_path / "bare")
    with pytest.raises(UsageError, match="no real image") as caught:
        graph_from_checkpoint(checkpoint, tmp_path / "graph.onnx")
    assert "--data" in (caught.value.hint or "")
    assert not (tmp_path / "graph.onnx").exists()


def _answering_otherwise(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """Export a model whose head's bias was moved, and compare with the one that was not."""
    import edgebert.export.graph as room

    exported = room._exported

    def moved(checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
        head = [module for module in checkpoint.model.modules() if isinstance(module, torch.nn.Linear)][-1]
        with torch.no_grad():
            head.bias[0] += offset
            model = exported(checkpoint, options)
            head.bias[0] -= offset
        return model

    monkeypatch.setattr(room, "_exported", moved)


def test_graph_is_not_written_when_logits_differ(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering_otherwise(monkeypatch, 0.01)
    with pytest.raises(EdgebertError, match=r"logits differ from PyTorch's by 0\.01") as caught:
        graph_from_checkpoint(student_folder, tmp_path / "graph.onnx")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_graph_is_not_written_when_decisions_flip(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering_otherwise(monkeypatch, 0.9)
    with pytest.raises(EdgebertError, match=r"gives \d of 4 images another class"):
        graph_from_checkpoint(student_folder, tmp_path / "graph.onnx", ExportOptions(max_logit_difference=0.99))
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_before_any_work(student_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "graph.onnx"
    output.write_bytes(b"mine")
    with pytest.raises(CannotWriteError):
        graph_from_checkpoint(student_folder / "missing", output)
    with pytest.raises(InputNotFoundError):
        graph_from_checkpoint(student_folder / "missing", output, ExportOptions(force=True))
    assert output.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: ExportOptions(opset=17), "17"),
        (lambda: ExportOptions(opset=21), "21"),
        (lambda: ExportOptions(max_logit_difference=0.0), r"0\.0"),
        (lambda: ExportOptions(max_logit_difference=1.0), r"1\.0"),
        (lambda: ExportOptions(max_flips=-1), "-1"),
    ],
)
def test_export_options_refuse_what_cannot_be_meant(make: Callable[[], ExportOptions], value: str) -> None:
    with pytest.raises(UsageError, match=value):
        make()
