"""Fine-tuning under the rounding: it brings INT8 nearer, never further away, and always the same way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from edgebert.calibration.emit import int8_graph
from edgebert.calibration.finetune import FinetuneOptions, FinetuneResult, finetuned
from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.card import ModelCard
from edgebert.data import Dataset
from edgebert.errors import BadDataError, EdgebertError, InputNotFoundError, UsageError
from edgebert.export.metadata import bytes_of_model, card_of_model, parse_graph
from edgebert.export.rules import check_int8_graph
from edgebert.models.checkpoint import load_checkpoint, save_checkpoint, with_classes

_OPTIONS = FinetuneOptions(epochs=1, learning_rate=1e-4)


@pytest.fixture(scope="module")
def model(trained_graph: Path) -> onnx.ModelProto:
    return parse_graph(trained_graph)


@pytest.fixture(scope="module")
def card(model: onnx.ModelProto) -> ModelCard:
    return card_of_model(model)


@pytest.fixture(scope="module")
def places(model: onnx.ModelProto) -> tuple[str, ...]:
    return placement_of_graph(model).quantised


@pytest.fixture(scope="module")
def tight(
    model: onnx.ModelProto, places: tuple[str, ...], digits: Dataset, minmax_table: Callable[..., ScaleTable]
) -> ScaleTable:
    """Scales that clip what is larger than a third of the largest value."""
    images = np.stack([example.load() for example in digits.train[:64]])
    table = minmax_table(model, places, images)
    return ScaleTable(activations={name: scale / 3 for name, scale in table.activations.items()}, weights=table.weights)


@pytest.fixture(scope="module")
def result(
    model: onnx.ModelProto, tight: ScaleTable, places: tuple[str, ...], digits: Dataset, card: ModelCard
) -> FinetuneResult:
    return finetuned(model, tight, places, digits, card, _OPTIONS)


def _divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    logs = [torch.log_softmax(torch.from_numpy(logits).double(), dim=1) for logits in (expected, found)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(dim=1).mean())


def test_scales_that_clip_are_mended(
    result: FinetuneResult,
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    run_graph: Callable[..., NDArray[np.float32]],
) -> None:
    images = np.stack([example.load() for example in digits.val])
    expected = run_graph(model, images)
    before = _divergence(expected, run_graph(int8_graph(model, tight, places), images))
    after = _divergence(expected, run_graph(int8_graph(result.model, result.table, places), images))
    assert after < 0.7 * before
    # What was measured in torch is what the emitted graph does.
    assert result.kl_before == pytest.approx(before, rel=0.02)
    assert result.kl_after == pytest.approx(after, rel=0.02)


def test_emitted_graph_keeps_the_rules(result: FinetuneResult, places: tuple[str, ...]) -> None:
    int8 = int8_graph(result.model, result.table, places)
    onnx.checker.check_model(int8, full_check=True)
    check_int8_graph(int8)


def test_second_run_gives_the_same_weights_and_scales(
    result: FinetuneResult,
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
) -> None:
    again = finetuned(model, tight, places, digits, card, _OPTIONS)
    assert bytes_of_model(again.model) == bytes_of_model(result.model)
    assert again.table.to_json() == result.table.to_json()
    assert again.val_kl == result.val_kl


def test_frozen_scales_stay(
    model: onnx.ModelProto, tight: ScaleTable, places: tuple[str, ...], digits: Dataset, card: ModelCard
) -> None:
    frozen = finetuned(model, tight, places, digits, card, replace(_OPTIONS, scales="frozen"))
    assert frozen.best_epoch == 1
    assert frozen.table is tight
    assert bytes_of_model(frozen.model) != bytes_of_model(model)


def test_scales_are_learned_at_the_places_alone(
    result: FinetuneResult, tight: ScaleTable, model: onnx.ModelProto, places: tuple[str, ...]
) -> None:
    moved = {name for name, row in tight.weights.items() if (result.table.weights[name] != row).any()}
    assert moved == set(places)


def test_training_that_only_harms_is_undone(
    model: onnx.ModelProto,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
    minmax_table: Callable[..., ScaleTable],
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = np.stack([example.load() for example in digits.train[:64]])
    table = minmax_table(model, places, images)
    harmed = finetuned(model, table, places, digits, card, replace(_OPTIONS, learning_rate=1e-2))
    assert harmed.best_epoch == 0
    assert harmed.val_kl[1] > harmed.val_kl[0] == harmed.kl_after
    assert harmed.table is table
    assert bytes_of_model(harmed.model) == bytes_of_model(model)
    assert "the weights stay as they were" in caplog.text


def test_test_images_are_not_touched(
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
    tmp_path: Path,
) -> None:
    few = replace(digits, train=digits.train[:32], val=digits.val[:16])
    with_broken_test = replace(
        few, test=tuple(replace(example, source=tmp_path / "gone.png") for example in digits.test)
    )
    result = finetuned(model, tight, places, with_broken_test, card, _OPTIONS)
    assert all(example.pixel_sha256 in result.seen for example in (*few.train, *few.val))
    assert not any(example.pixel_sha256 in result.seen for example in digits.test)


def test_provenance_says_how(result: FinetuneResult, digits: Dataset) -> None:
    said = result.provenance()
    assert json.loads(json.dumps(said)) == said
    assert (said["epochs"], said["best_epoch"], said["images"]) == (1, 1, len(digits.train))
    assert (said["scales"], said["reference"], said["learning_rate"]) == ("learned", "fp32", 1e-4)
    assert said["val_kl"] == [result.kl_before, result.kl_after]
    assert result.made_from == {"finetune": digits.sha256()}


def test_teacher_is_answered_as(
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
    trained_folder: Path,
) -> None:
    few = replace(digits, train=digits.train[:64], val=digits.val[:32])
    taught = finetuned(model, tight, places, few, card, replace(_OPTIONS, teacher=str(trained_folder)))
    alone = finetuned(model, tight, places, few, card, _OPTIONS)
    # The checkpoint is the network that the graph was exported from: it gives the same answers.
    assert taught.val_kl == pytest.approx(alone.val_kl, rel=1e-3)
    assert taught.made_from["teacher"] == load_checkpoint(trained_folder).sha256
    assert taught.provenance()["reference"] == "teacher"


def test_teachers_classes_are_put_into_order(
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
    trained_folder: Path,
    tmp_path: Path,
) -> None:
    few = replace(digits, train=digits.train[:32], val=digits.val[:32])
    turned = _with_class_names(trained_folder, tmp_path / "turned", tuple(reversed(card.class_names)))
    taught = finetuned(model, tight, places, few, card, replace(_OPTIONS, teacher=str(turned)))
    alone = finetuned(model, tight, places, few, card, _OPTIONS)
    assert taught.kl_before == pytest.approx(alone.kl_before, rel=1e-3)


def test_teacher_of_other_classes_is_refused(
    model: onnx.ModelProto,
    tight: ScaleTable,
    places: tuple[str, ...],
    digits: Dataset,
    card: ModelCard,
    trained_folder: Path,
    tmp_path: Path,
) -> None:
    other = _with_class_names(trained_folder, tmp_path / "other", ("zero", *card.class_names[1:]))
    with pytest.raises(BadDataError, match="only the graph has `0`, only the teacher has `zero`"):
        finetuned(model, tight, places, digits, card, replace(_OPTIONS, teacher=str(other)))


def test_missing_teacher_is_named(
    model: onnx.ModelProto, tight: ScaleTable, places: tuple[str, ...], digits: Dataset, card: ModelCard
) -> None:
    with pytest.raises(InputNotFoundError, match="no-such-teacher"):
        finetuned(model, tight, places, digits, card, replace(_OPTIONS, teacher="./no-such-teacher"))


def test_answers_that_are_no_numbers_are_refused(
    model: onnx.ModelProto, tight: ScaleTable, places: tuple[str, ...], digits: Dataset, card: ModelCard
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    for tensor in broken.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
    with pytest.raises(EdgebertError, match="the FP32 graph answers with NaN or infinity for 1293 of 1293 images"):
        finetuned(broken, tight, places, digits, card, _OPTIONS)


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_split_is_refused(
    model: onnx.ModelProto, tight: ScaleTable, places: tuple[str, ...], digits: Dataset, card: ModelCard, split: str
) -> None:
    changes: dict[str, Any] = {split: ()}
    with pytest.raises(BadDataError, match="images"):
        finetuned(model, tight, places, replace(digits, **changes), card, _OPTIONS)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 6},
        {"learning_rate": 0.0},
        {"learning_rate": 1.0},
        {"scales": "thawed"},
        {"teacher": " "},
    ],
)
def test_options_refuse_what_cannot_be_meant(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FinetuneOptions(**change)


def _with_class_names(source: Path, folder: Path, class_names: tuple[str, ...]) -> Path:
    checkpoint = load_checkpoint(source)
    folder.mkdir()
    save_checkpoint(
        folder,
        with_classes(checkpoint, class_names),
        replace(checkpoint.card, class_names=class_names),
        checkpoint.examples,
    )
    return folder
