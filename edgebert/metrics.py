"""Accuracy of a classifier, from class numbers alone: top-1, macro-F1, the confusion matrix, a table by class.

>>> labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
>>> top1(labels, predictions)
0.75
>>> confusion_matrix(labels, predictions, 3).tolist()
[[1, 1, 0], [0, 1, 0], [0, 0, 1]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert._json import JsonObject
from edgebert.errors import BadDataError

Classes = NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """How well one class is told from the others; shares lie in [0, 1].

    Attributes:
        name: of the class.
        precision: share of the images called so that are so; 0 where none was called so.
        recall: share of the images of the class that were called so; 0 where there is none.
        f1: harmonic mean of both.
        support: number of images of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "name": self.name,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "support": self.support,
        }


def top1(labels: Classes, predictions: Classes) -> float:
    """Return the share of right decisions, in [0, 1].

    Args:
        labels: true classes, integer (images,).
        predictions: decided classes, integer (images,).

    Raises:
        BadDataError: no image, or arrays of different lengths.
    """
    _check(labels, predictions)
    return float(np.mean(labels == predictions))


def macro_f1(labels: Classes, predictions: Classes, classes: int) -> float:
    """Return the plain mean of the F1 scores of the classes, in [0, 1].

    A class that neither occurs nor is ever decided is left out, as scikit-learn does by default.

    Raises:
        BadDataError: as `confusion_matrix`.
    """
    matrix = confusion_matrix(labels, predictions, classes)
    present = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    return float(np.mean(_scores(matrix)[2][present]))


def confusion_matrix(labels: Classes, predictions: Classes, classes: int) -> NDArray[np.int64]:
    """Count decisions: int64 (classes, classes), rows the true class, columns the decided one.

    Raises:
        BadDataError: no image, arrays of different lengths, or a class outside [0, classes).
    """
    _check(labels, predictions)
    lowest, highest = min(labels.min(), predictions.min()), max(labels.max(), predictions.max())
    if lowest < 0 or highest >= classes:
        raise BadDataError(f"class number {lowest if lowest < 0 else highest}", expected=f"0 to {classes - 1}")
    counts = np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)  # (true, decided)


def per_class(labels: Classes, predictions: Classes, class_names: Sequence[str]) -> tuple[ClassRow, ...]:
    """Return precision, recall, F1 and support of every class, in the order of `class_names`.

    Raises:
        BadDataError: as `confusion_matrix`.
    """
    matrix = confusion_matrix(labels, predictions, len(class_names))
    precision, recall, f1 = _scores(matrix)
    support = matrix.sum(axis=1)
    return tuple(
        ClassRow(
            name=name,
            precision=float(precision[index]),
            recall=float(recall[index]),
            f1=float(f1[index]),
            support=int(support[index]),
        )
        for index, name in enumerate(class_names)
    )


def _check(labels: Classes, predictions: Classes) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape or not labels.size:
        raise BadDataError(
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape}",
            expected="two lists of the same length, not empty",
        )


def _scores(matrix: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and F1 by class; 0 where a denominator is 0."""
    right = np.diag(matrix).astype(np.float64)
    decided, true = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = right / np.maximum(decided, 1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(decided + true, 1)  # = 2 P R / (P + R), without its division by zero
    return precision, recall, f1
