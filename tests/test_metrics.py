"""The metrics, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from edgebert.errors import BadDataError
from edgebert.metrics import ClassRow, confusion_matrix, macro_f1, per_class, top1


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
