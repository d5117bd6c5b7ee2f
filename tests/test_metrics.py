"""The metrics, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from edgebert.errors import BadDataError
from edgebert.metrics import (
    ClassRow,
    average_precision,
    best_thresholds,
    confusion_matrix,
    exact_match,
    expected_calibration_error,
    macro_f1,
    mean_average_precision,
    multilabel_f1,
    multilabel_rows,
    per_class,
    top1,
)


def _random_decisions(images: int = 500, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    labels = random.integers(0, classes, images)
    predictions = np.where(random.random(images) < 0.7, labels, random.integers(0, classes, images))
    return labels, predictions


def test_top1_is_the_share_of_right_decisions() -> None:
    assert top1(np.array([0, 1, 2, 2]), np.array([0, 1, 0, 2])) == 0.75


def test_metrics_equal_scikit_learn() -> None:
    labels, predictions = _random_decisions()
    assert top1(labels, predictions) == pytest.approx(reference.accuracy_score(labels, predictions))
    assert macro_f1(labels, predictions, 5) == pytest.approx(reference.f1_score(labels, predictions, average="macro"))
    assert np.array_equal(confusion_matrix(labels, predictions, 5), reference.confusion_matrix(labels, predictions))
    rows = per_class(labels, predictions, "abcde")
    precision, recall, f1, _ = reference.precision_recall_fscore_support(labels, predictions)
    assert [row.precision for row in rows] == pytest.approx(precision)
    assert [row.recall for row in rows] == pytest.approx(recall)
    assert [row.f1 for row in rows] == pytest.approx(f1)
    assert [row.support for row in rows] == np.bincount(labels).tolist()


def test_macro_f1_leaves_out_a_class_that_never_occurs() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert macro_f1(labels, predictions, 10) == pytest.approx(macro_f1(labels, predictions, 2))


def test_macro_f1_counts_a_class_that_is_only_decided() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert macro_f1(labels, predictions, 3) == pytest.approx((2 / 3 + 1.0 + 0.0) / 3)


def test_per_class_gives_zeros_when_nothing_is_there_to_divide_by() -> None:
    rows = per_class(np.array([0, 0]), np.array([0, 0]), ("cat", "dog"))
    assert rows[1] == ClassRow(name="dog", precision=0.0, recall=0.0, f1=0.0, support=0)
    assert rows[0].to_json() == {"name": "cat", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}


@pytest.mark.parametrize(
    ("labels", "predictions"), [([], []), ([0], [0, 1]), ([0, 3], [0, 0]), ([0, 0], [0, -1]), ([[0]], [[0]])]
)
def test_confusion_matrix_refuses_impossible_input(labels: list[int], predictions: list[int]) -> None:
    with pytest.raises(BadDataError):
        confusion_matrix(np.array(labels, np.int64), np.array(predictions, np.int64), 3)


def _random_sets(images: int = 300, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities that know something of them, rounded so that many are equal."""
    random = np.random.default_rng(11)
    labels = random.random((images, classes)) < np.linspace(0.05, 0.6, classes)
    probabilities = np.round(np.clip(0.35 * labels + 0.65 * random.random((images, classes)), 0, 1), 2)
    return labels, probabilities


def test_multilabel_metrics_equal_scikit_learn() -> None:
    labels, probabilities = _random_sets()
    decided = probabilities >= 0.5
    for index in range(labels.shape[1]):
        assert average_precision(labels[:, index], probabilities[:, index]) == pytest.approx(
            reference.average_precision_score(labels[:, index], probabilities[:, index])
        )
    assert mean_average_precision(labels, probabilities) == pytest.approx(
        reference.average_precision_score(labels, probabilities, average="macro")
    )
    micro, macro = multilabel_f1(labels, decided)
    assert micro == pytest.approx(reference.f1_score(labels, decided, average="micro"))
    assert macro == pytest.approx(reference.f1_score(labels, decided, average="macro"))
    assert exact_match(labels, decided) == pytest.approx(reference.accuracy_score(labels, decided))
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, decided)
    rows = multilabel_rows(labels, decided, "abcdef")
    assert [row.precision for row in rows] == pytest.approx(precision)
    assert [row.recall for row in rows] == pytest.approx(recall)
    assert [row.f1 for row in rows] == pytest.approx(f1)
    assert support is not None
    assert [row.support for row in rows] == support.tolist()


def test_mean_average_precision_leaves_out_a_class_that_no_image_has() -> None:
    labels, probabilities = _random_sets()
    labels[:, 2] = False
    assert average_precision(labels[:, 2], probabilities[:, 2]) is None
    rest = [index for index in range(6) if index != 2]
    assert mean_average_precision(labels, probabilities) == pytest.approx(
        reference.average_precision_score(labels[:, rest], probabilities[:, rest], average="macro")
    )
    with pytest.raises(BadDataError, match="none of 300 images has any label"):
        mean_average_precision(np.zeros_like(labels), probabilities)


def test_multilabel_f1_leaves_out_a_class_that_neither_occurs_nor_is_said() -> None:
    labels = np.array([[True, False, False], [True, True, False]])
    decided = np.array([[True, True, False], [True, False, False]])
    assert list(multilabel_f1(labels, decided)) == pytest.approx([4 / 6, 0.5])
    nothing = np.zeros((2, 3), np.bool_)
    assert multilabel_f1(nothing, nothing) == (0.0, 0.0)


def test_best_thresholds_reach_the_highest_f1_that_any_threshold_reaches() -> None:
    labels, probabilities = _random_sets()
    chosen = best_thresholds(labels, probabilities)
    for index, threshold in enumerate(chosen):
        truth, scores = labels[:, index], probabilities[:, index]
        best = max(reference.f1_score(truth, scores >= each) for each in np.linspace(0.001, 0.999, 999))
        assert reference.f1_score(truth, scores >= threshold) == pytest.approx(best)
        assert 0 < threshold < 1


def test_best_thresholds_are_halfway_between_two_answers_and_the_nearest_to_one_half() -> None:
    labels = np.array([[False, False, True], [False, True, True], [True, True, True]])
    probabilities = np.array([[0.1, 0.3, 0.0], [0.2, 0.4, 0.0], [0.4, 0.9, 1.0]])
    # Between 0.2 and 0.4; between 0.3 and 0.4; every image has the third, and no threshold above 0 reaches all of them.
    assert list(best_thresholds(labels, probabilities)) == pytest.approx([0.3, 0.35, 0.5])


def test_best_thresholds_are_one_half_for_a_class_that_no_image_has_and_where_one_half_is_as_good() -> None:
    labels = np.array([[False, False], [False, True]])
    assert best_thresholds(labels, np.array([[0.2, 0.1], [0.9, 0.6]])) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("labels", "answers", "what"),
    [
        (np.ones((2, 3), np.bool_), np.ones((2, 2)), r"\(2, 3\) and answers float64 \(2, 2\)"),
        (np.ones((0, 3), np.bool_), np.ones((0, 3)), r"\(0, 3\)"),
        (np.ones((2, 3)), np.ones((2, 3)), "labels float64"),
        (np.ones((1, 1), np.bool_), np.array([[np.nan]]), "NaN"),
    ],
)
def test_multilabel_metrics_refuse_what_cannot_be_compared(labels: np.ndarray, answers: np.ndarray, what: str) -> None:
    for metric in (mean_average_precision, best_thresholds):
        with pytest.raises(BadDataError, match=what):
            metric(labels, answers)


def test_expected_calibration_error_is_the_weighted_gap_of_its_bins() -> None:
    scores = np.array([0.15, 0.25, 0.75, 0.85, 0.95])
    right = np.array([False, True, True, True, False])
    # In two bins: scores 0.2 against 1 of 2 right, and 0.85 against 2 of 3.
    assert expected_calibration_error(scores, right, bins=2) == pytest.approx((2 * 0.3 + 3 * (0.85 - 2 / 3)) / 5)


def test_expected_calibration_error_puts_a_border_into_the_lower_bin() -> None:
    scores, right = np.array([0.5, 0.4, 0.0, 1.0]), np.array([True, False, False, True])
    # Lower: scores 0.9 in sum and one right; upper: 1.0, and it is right.
    assert expected_calibration_error(scores, right, bins=2) == pytest.approx(0.1 / 4)


def test_expected_calibration_error_is_zero_where_scores_are_kept() -> None:
    scores = np.repeat([0.25, 0.75], 400)
    right = np.tile([True, False, False, False], 100).tolist() + np.tile([True, True, True, False], 100).tolist()
    assert expected_calibration_error(scores.astype(np.float32), np.array(right)) == pytest.approx(0)


@pytest.mark.parametrize(
    ("scores", "right", "bins"),
    [
        ([], [], 15),
        ([0.5], [True, False], 15),
        ([0.5], [1], 15),
        ([1.1], [True], 15),
        ([float("nan")], [True], 15),
        ([0.5], [True], 0),
    ],
)
def test_expected_calibration_error_refuses(scores: list[float], right: list[bool], bins: int) -> None:
    with pytest.raises(BadDataError):
        expected_calibration_error(np.array(scores), np.array(right), bins)
