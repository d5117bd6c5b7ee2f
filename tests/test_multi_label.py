"""The whole way with several labels to an image: data, checkpoint, graph, INT8, bundle, runtime, bench, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebert.artefact import describe, predict_files, verify
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.report.page import report_from_results
from edgebert.bench.report.table import markdown_table, text_table
from edgebert.bench.report.words import headline, sentences
from edgebert.bench.result import read_result, samples_path
from edgebert.bench.samples import read_samples
from edgebert.bench.schema import Result
from edgebert.bundle import read_bundle
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.card_io import read_checkpoint_card, read_checkpoint_examples
from edgebert.data import Dataset, load_dataset
from edgebert.errors import BadDataError, UsageError
from edgebert.examples import example_images
from edgebert.manifest import Manifest
from edgebert.metrics import best_thresholds, exact_match, mean_average_precision, multilabel_f1
from edgebert.preprocess import Preprocessing, load_batch
from edgebert.runtime.classifier import Classifier

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from edgebert.calibration.quantize import (
    QuantizeOptions,
    QuantizeReport,
    int8_graph_from_graph,
)
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.graph import ExportOptions, graph_from_checkpoint
from edgebert.export.metadata import (
    bytes_of_model,
    parse_graph,
    read_graph_card,
    read_graph_examples,
    with_metadata,
)
from edgebert.models.checkpoint import (
    PixelClassifier,
    new_model,
    parameter_count,
    save_checkpoint,
)

COLOURS = {"blue": (40, 60, 230), "green": (40, 210, 70), "red": (230, 50, 40)}
SIDE, IMAGES, STEPS, BATCH = 16, 240, 150, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey shades with a square of each colour that the image is labelled with: none, one, two or three of them."""
    root = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    rows = ["file,labels"]
    for index in range(IMAGES):
        shade = np.linspace(60, 150, SIDE)[:, np.newaxis, np.newaxis] + random.uniform(-30, 30)
        pixels = np.broadcast_to(shade, (SIDE, SIDE, 3)) + random.normal(0, 6, (SIDE, SIDE, 3))
        shown = [name for name in COLOURS if random.random() < 0.45]
        corners = random.permutation([(1, 1), (1, 9), (9, 1), (9, 9)])
        for name, (top, left) in zip(shown, corners.tolist(), strict=False):
            pixels[top : top + 6, left : left + 6] = COLOURS[name]
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"{index}.png")
        rows.append(f"{index}.png,{'|'.join(shown)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def squares(folder: Path) -> Dataset:
    return load_dataset(folder)


def _truth(dataset: Dataset, split: str) -> np.ndarray:
    examples = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    truth = np.zeros((len(examples), len(dataset.class_names)), np.bool_)
    for row, example in enumerate(examples):
        truth[row, list(example.labels)] = True
    return truth


@pytest.fixture(scope="module")
def checkpoint(squares: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `nano` that learnt the colours for a few seconds, its thresholds chosen on the validation images."""
    rule = Preprocessing(height=SIDE, width=SIDE)
    model = new_model("nano", preprocessing=rule, class_names=squares.class_names, seed=0)
    classifier = PixelClassifier(model, rule).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for a second one
    images = torch.from_numpy(load_batch([example.load() for example in squares.train], rule))
    targets = torch.from_numpy(_truth(squares, "train").astype(np.float32))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(classifier(images[batch]), targets[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    classifier.eval()
    with torch.inference_mode():
        val = classifier(torch.from_numpy(load_batch([example.load() for example in squares.val], rule)))
    torch.set_num_threads(threads)
    card = ModelCard(
        class_names=squares.class_names,
        preprocessing=rule,
        provenance=Provenance(stage="train", made_from={"data": squares.sha256()}, parameters=parameter_count(model)),
        seen=ImageSet.from_hashes(example.pixel_sha256 for example in (*squares.train, *squares.val)),
        task="multi-label",
        thresholds=best_thresholds(_truth(squares, "val"), torch.sigmoid(val.double()).numpy()),
    )
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, model.train(False), card, example_images(squares.train, squares.class_names, rule, 8))
    return path


@pytest.fixture(scope="module")
def graph(checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("graph") / "squares.onnx"
    report = graph_from_checkpoint(checkpoint, output, ExportOptions(data=str(folder)))
    assert (report.flips, report.images) == (0, 8 + 19)  # examples and validation images
    return output


@pytest.fixture(scope="module")
def quantised(graph: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeReport:
    output = tmp_path_factory.mktemp("int8") / "squares.int8.onnx"
    return int8_graph_from_graph(graph, folder, output, QuantizeOptions(images=64))


@pytest.fixture(scope="module")
def bundle(quantised: QuantizeReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "squares.edgebert"
    bundle_from_graph(quantised.path, output, CompileOptions(targets=("cpu",)))
    return output


@pytest.fixture(scope="module")
def measured(graph: Path, bundle: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    output = tmp_path_factory.mktemp("bench") / "result.json"
    options = BenchOptions(data=str(folder), seconds=0.2, queries=20, max_warmup_seconds=0.0, threads=1)
    return result_from_arms([f"fp32={graph}", f"int8={bundle}"], output, options), output


def test_every_artefact_keeps_task_and_thresholds(
    checkpoint: Path, graph: Path, quantised: QuantizeReport, bundle: Path
) -> None:
    card = read_checkpoint_card(checkpoint)
    assert (card.task, len(card.thresholds)) == ("multi-label", 3)
    cards = [read_graph_card(graph), read_graph_card(quantised.path), read_bundle(bundle).manifest.card]
    assert {(each.task, each.thresholds) for each in cards} == {("multi-label", card.thresholds)}
    assert "multi-label, thresholds 0." in describe(bundle).to_text()


def test_examples_keep_several_labels(checkpoint: Path, graph: Path) -> None:
    examples = read_checkpoint_examples(checkpoint)
    assert len({example.labels for example in examples}) == 8  # all sets of three labels, the empty one too
    assert read_graph_examples(graph) == examples


def test_quantize_compares_what_is_said(quantised: QuantizeReport) -> None:
    assert quantised.agreement_onnxruntime >= 0.9
    assert quantised.top1_before >= 0.8
    metrics = read_graph_card(quantised.path).provenance.metrics
    assert metrics["val_exact_match_int8"] == quantised.top1_after
    assert metrics["val_micro_f1_int8"] >= 0.9
    assert not any("top1" in name for name in metrics)


def test_quantize_refuses_to_abstain_where_there_are_several_labels(graph: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multi-label"):
        int8_graph_from_graph(graph, folder, tmp_path / "int8.onnx", QuantizeOptions(abstain_precision=0.9))


def test_card_says_that_few_images_calibrated_nothing(quantised: QuantizeReport) -> None:
    confidence = read_graph_card(quantised.path).confidence
    assert confidence is not None
    assert (confidence.temperature, confidence.images) == (1, 19)


def test_canaries_hold_what_is_said_of_them(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    said = {canary.labels for canary in manifest.canaries}
    assert len(said) > 2
    assert any(len(labels) > 1 for labels in said)
    assert any("canaries" in line for line in verify(bundle))


def test_classifier_says_every_label_that_reaches_its_threshold(bundle: Path, folder: Path, squares: Dataset) -> None:
    with Classifier(bundle) as classifier:
        answers = classifier.predict_batch([example.load() for example in squares.test])
    thresholds = read_bundle(bundle).manifest.card.thresholds
    for answer in answers:
        reached = {
            name
            for name, score, limit in zip(squares.class_names, answer.scores, thresholds, strict=True)
            if score >= limit
        }
        assert set(answer.labels) == reached
        assert answer.score == max(answer.scores)
        assert answer.label == squares.class_names[answer.index]
        by_name = dict(zip(squares.class_names, answer.scores, strict=True))
        assert list(answer.labels) == sorted(answer.labels, key=lambda name: -by_name[name])
    assert any(not answer.labels for answer in answers)
    said = np.array([[name in answer.labels for name in squares.class_names] for answer in answers])
    assert exact_match(_truth(squares, "test"), said) >= 0.8
    (first,) = predict_files(bundle, [folder / squares.test[0].id])
    assert (first.labels, first.label) == (answers[0].labels, answers[0].label)


def test_manifest_refuses_labels_and_thresholds_that_do_not_fit_the_logits(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert Manifest.from_json(manifest, what="manifest.json").card.task == "multi-label"
    canary = next(entry for entry in manifest["canaries"] if len(entry.get("labels", ())) > 1)
    labels, canary["labels"] = canary["labels"], canary["labels"][:1]
    with pytest.raises(BadDataError, match="but its logits of `onnxruntime` say"):
        Manifest.from_json(manifest, what="manifest.json")
    canary["labels"], manifest["card"]["thresholds"] = labels, [0.999999] * 3
    with pytest.raises(BadDataError, match="say no label"):
        Manifest.from_json(manifest, what="manifest.json")


def test_bench_measures_f1_map_exact_match_and_agreement_of_what_is_said(
    measured: tuple[Result, Path], squares: Dataset, bundle: Path
) -> None:
    result, output = measured
    assert result.status.valid, result.status.reasons
    assert result.dataset is not None
    assert result.dataset.task == "multi-label"
    truth = _truth(squares, "test")
    assert result.dataset.per_class == tuple(truth.sum(axis=0).tolist())
    with Classifier(bundle, threads=1) as classifier:
        answers = [classifier.predict(example.load()) for example in squares.test]
    said = np.array([[name in answer.labels for name in squares.class_names] for answer in answers])
    accuracy = result.arm("int8").accuracy
    several = accuracy.multi_label
    assert several is not None
    assert (several.micro_f1, several.macro_f1) == multilabel_f1(truth, said)
    assert several.exact_match.value == accuracy.top1.value == exact_match(truth, said)
    assert several.mean_average_precision == pytest.approx(
        mean_average_precision(truth, np.array([answer.scores for answer in answers]))
    )
    assert accuracy.confusion == ()
    assert accuracy.agreement is not None
    assert 0.9 <= accuracy.agreement.share.value <= 1
    assert read_result(output) == result
    samples = read_samples(samples_path(output))
    assert len(samples["score"]) == 3 * truth.size  # the A/A control too


def test_table_verdict_and_report_speak_of_several_labels(measured: tuple[Result, Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    result, output = measured
    table = text_table(result)
    assert all(word in table for word in ("F1", "mAP", "exact", "micro %", "intervals of exact match"))
    assert max(map(len, table.splitlines())) <= 100
    assert "| F1 (micro %) |" in markdown_table(result)
    words = " ".join([headline(result), *sentences(result)])
    assert "exact match" in words
    assert "top-1" not in table + words
    page = report_from_results([output], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mAP, %" in page
    assert "top-1" not in page
    assert "Where each arm goes wrong" not in page


def test_bench_refuses_arms_of_different_tasks(graph: Path, folder: Path, tmp_path: Path) -> None:
    card = replace(read_graph_card(graph), task="single-label", thresholds=())
    other = tmp_path / "single.onnx"
    other.write_bytes(bytes_of_model(with_metadata(parse_graph(graph), card, ())))
    with pytest.raises(BadDataError, match="is a single-label model"):
        result_from_arms([graph, other], tmp_path / "result.json", BenchOptions(data=str(folder), threads=1))
    with pytest.raises(BadDataError, match="expected: one label for each image"):
        result_from_arms([other], tmp_path / "result.json", BenchOptions(data=str(folder), threads=1))
