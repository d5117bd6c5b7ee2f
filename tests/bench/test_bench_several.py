"""Arms that say any number of labels: columns, numbers of sets, statistics, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.recorder import NO_CLASS
from edgebert.bench.report.table import notes_of
from edgebert.bench.result import read_result, samples_path, write_result
from edgebert.bench.samples import Samples, read_samples, write_columns
from edgebert.bench.schema import Result
from edgebert.bench.selection import common_task, select_images
from edgebert.bench.several import answer_code, answer_columns, code_of_names, several_columns, several_of, truth_of
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Prediction

Synthetic = Callable[..., tuple[Result, Samples]]

NAMES = ("ant", "bee", "cat")
CARD = ModelCard(
    class_names=NAMES,
    preprocessing=Preprocessing(height=8, width=8),
    provenance=Provenance(stage="export"),
    task="multi-label",
    thresholds=(0.6, 0.6, 0.6),
)


def prediction(*labels: str, scores: tuple[float, ...] = (0.1, 0.2, 0.3)) -> Prediction:
    return Prediction(label="cat", score=0.3, index=2, scores=scores, labels=labels)


def test_answer_code_is_the_class_of_one_label_and_the_same_for_a_set_in_any_order() -> None:
    single = answer_code(replace(CARD, task="single-label", thresholds=()))
    assert single(prediction("cat")) == 2
    several = answer_code(CARD)
    codes = [several(prediction(*labels)) for labels in (("ant", "bee"), ("bee", "ant"), ("ant",), ())]
    assert codes[0] == codes[1] == code_of_names(("ant", "bee"))
    assert len(set(codes)) == 3
    assert all(0 <= code < 2**63 for code in codes)


def test_answer_columns_are_exact_and_leave_a_failed_query_empty() -> None:
    scores = (1e-300, 1 - 2**-53, 0.1 + 0.2)
    columns = answer_columns([prediction("cat", "ant", scores=scores), None], CARD)
    assert columns["said"].tolist() == [1, 0, 1, 0, 0, 0]
    assert columns["score"].view(np.float64).tolist() == [*scores, 0.0, 0.0, 0.0]


def test_several_columns_give_back_what_went_in(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth, said = random.random((5, 3)) < 0.5, random.random((2, 5, 3)) < 0.5
    scores = random.random((2, 5, 3))
    columns = several_columns(truth, said, scores)
    columns["accuracy_arm"] = np.repeat(np.arange(2), 5)
    for arm in range(2):
        found = several_of(Samples(columns), arm, 3)
        assert all(
            np.array_equal(one, other) for one, other in zip(found, (truth, said[arm], scores[arm]), strict=True)
        )
    assert truth_of([(0, 2), ()], 3).tolist() == [[True, False, True], [False, False, False]]


def test_read_samples_refuses_incomplete_columns_of_several_labels(tmp_path: Path, synthetic: Synthetic) -> None:
    _, samples = synthetic()
    empty = np.zeros(0, np.int64)
    nothing = np.zeros((1, 1), np.bool_)
    whole = {**samples.columns, **several_columns(nothing, nothing[np.newaxis], np.zeros((1, 1, 1)))}
    write_columns(tmp_path / "whole.npz", whole)
    assert "truth_class" in read_samples(tmp_path / "whole.npz").columns
    write_columns(tmp_path / "cut.npz", {name: column for name, column in whole.items() if name != "said_class"})
    with pytest.raises(BadDataError, match="no column `said_class`"):
        read_samples(tmp_path / "cut.npz")
    write_columns(tmp_path / "odd.npz", {**whole, "truth_class": np.zeros(3, np.int64), "truth_sample": empty})
    with pytest.raises(BadDataError, match="different lengths"):
        read_samples(tmp_path / "odd.npz")


# Selecting images


def several_dataset(*labels: tuple[int, ...]) -> Dataset:
    test = tuple(
        Example(
            id=f"{index}.png", labels=each, pixel_sha256=f"{index:064x}"[::-1], source=np.zeros((2, 2, 3), np.uint8)
        )
        for index, each in enumerate(labels)
    )
    return Dataset(name="zoo", class_names=NAMES, train=(), val=(), test=test, skipped=(), task="multi-label")


def test_select_images_keeps_images_of_any_labels_and_counts_each_label() -> None:
    selection = select_images(several_dataset((0, 1), (), (1,)), ["a"], [CARD])
    record = selection.record(timed=2)
    assert (record.task, record.n, record.per_class) == ("multi-label", 3, (1, 2, 0))
    others = select_images(several_dataset((0, 1), (), (0,)), ["a"], [CARD]).record(timed=2)
    assert others.sha256 != record.sha256


def test_select_images_refuses_to_lose_the_last_image_of_a_label() -> None:
    dataset = several_dataset(*[(0,), (1,)] * 100, (1, 2))
    seen = replace(CARD, seen=ImageSet.from_hashes([dataset.test[-1].pixel_sha256]))
    with pytest.raises(BadDataError, match="class `cat` has no other test image"):
        select_images(dataset, ["a"], [seen])
    seen = replace(CARD, seen=ImageSet.from_hashes([dataset.test[0].pixel_sha256]))
    assert len(select_images(dataset, ["a"], [seen]).excluded) == 1


def test_common_task_refuses_arms_of_two_tasks() -> None:
    single = replace(CARD, task="single-label", thresholds=())
    assert common_task(["a", "b"], [CARD, CARD]) == "multi-label"
    with pytest.raises(BadDataError, match="arm `b` is a single-label model"):
        common_task(["a", "b"], [CARD, single])


# A whole run


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Test images whose first red value is their number modulo 4: those of remainder 3 show nothing, 2 shows two animals."""
    random = np.random.default_rng(1)
    folder, rows = tmp_path / "zoo", ["file,labels,split"]
    folder.mkdir()
    for split, count in (("train", 8), ("val", 8), ("test", 24)):
        for index in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            pixels[0, 0, 0] = index % 4
            Image.fromarray(pixels).save(folder / f"{split}{index}.png")
            rows.append(f"{split}{index}.png,{('ant', 'bee', 'bee|cat', '')[index % 4]},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def script(path: Path, card: ModelCard, **more: object) -> Path:
    """Write an arm whose logit 1 for one class reaches the threshold, and whose zeros do not: it says one animal always."""
    order = [card.class_names.index(name) for name in ("ant", "bee", "bee", "ant")]
    content = {"card": card.to_json(), "answers": order * 4, "latency_ms": 0.2, "source_model": "ab" * 32, **more}
    path.write_text(json.dumps(content))
    return path


def test_result_from_arms_measures_sets_whatever_order_an_arm_has(
    zoo: Path, tmp_path: Path, worker_command: list[str]
) -> None:
    turned = replace(CARD, class_names=NAMES[::-1])
    arms = [script(tmp_path / "one.onnx", CARD), script(tmp_path / "two.onnx", turned)]
    options = BenchOptions(
        data=str(zoo), launches=1, seconds=0.2, queries=20, max_warmup_seconds=0.0, threads=1, reference="one"
    )
    result = result_from_arms(arms, tmp_path / "result.json", options, worker_command=worker_command)
    assert result.status.valid, result.status.reasons
    assert [arm.consistency.mismatch for arm in result.arms] == [0, 0, 0]
    for arm in result.measured_arms:
        accuracy, several = arm.accuracy, arm.accuracy.multi_label
        assert several is not None
        # Of four kinds of images: `ant` and `bee` right, `bee|cat` without its cat, and an `ant` where there is nothing.
        assert accuracy.top1.value == several.exact_match.value == 0.5
        assert several.micro_f1 == pytest.approx(2 * 18 / (24 + 24))
        assert [row.f1 for row in accuracy.per_class] == pytest.approx([2 * 6 / (6 + 12), 1.0, 0.0])
        assert several.macro_f1 == accuracy.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
        assert several.mean_average_precision == pytest.approx((0.5 + 1.0 + 0.25) / 3)
        assert accuracy.confusion == ()
    agreement = result.arms[1].accuracy.agreement
    assert agreement is not None
    assert agreement.share.value == 1.0
    comparison = result.comparison("two")
    assert comparison is not None
    assert comparison.accuracy.mcnemar_p == 1.0
    again = read_result(tmp_path / "result.json")
    assert again == result
    assert again.dataset is not None
    assert again.dataset.per_class == (6, 12, 6)
    columns = read_samples(samples_path(tmp_path / "result.json"))
    assert len(columns["truth_class"]) == 24
    assert not any("mAP is of the other" in note for note in notes_of(result))


def test_result_from_arms_counts_a_failed_query_as_wrong_and_not_in_f1(
    zoo: Path, tmp_path: Path, worker_command: list[str]
) -> None:
    arm = script(tmp_path / "one.onnx", CARD, fail_at=1)
    options = BenchOptions(data=str(zoo), launches=1, seconds=0.2, queries=20, max_warmup_seconds=0.0, threads=1)
    result = result_from_arms([arm], tmp_path / "result.json", options, worker_command=worker_command)
    assert not result.status.valid
    accuracy = result.arms[0].accuracy
    samples = read_samples(samples_path(tmp_path / "result.json"))
    (failed,) = np.flatnonzero((samples["accuracy_pred"] == NO_CLASS) & (samples["accuracy_arm"] == 0))
    lost = int(np.count_nonzero(samples["truth_sample"] == failed))
    assert accuracy.top1.n == 24
    assert sum(row.support for row in accuracy.per_class) == 24 - lost


def test_read_result_refuses_an_accuracy_of_another_task(tmp_path: Path, synthetic: Synthetic) -> None:
    result, samples = synthetic()
    assert result.dataset is not None
    wrong = replace(result, dataset=replace(result.dataset, task="multi-label"))
    write_result(tmp_path / "result.json", wrong, samples, force=False)
    with pytest.raises(BadDataError, match="not that of a multi-label data set"):
        read_result(tmp_path / "result.json")


def test_notes_name_labels_that_no_test_image_has(synthetic: Synthetic) -> None:
    result, _ = synthetic()
    assert result.dataset is not None
    dataset = replace(result.dataset, task="multi-label", per_class=(15, 0, 15))
    assert "No test image has bee: mAP is of the other classes." in notes_of(replace(result, dataset=dataset))
