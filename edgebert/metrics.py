"""Accuracy of a classifier: from class numbers where an image has one label, else from probabilities and what is said.

Of one label: top-1, macro-F1, the confusion matrix, a table by class. Of several: average precision, F1 over all decisions and
over the classes, the share of images whose labels are said exactly, and the thresholds that decide. Of both: how far scores are
from the share of answers that are right.

>>> labels, predictions = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2])
>>> top1(labels, predictions)
0.75
>>> confusion_matrix(labels, predictions, 3).tolist()
[[1, 1, 0], [0, 1, 0], [0, 0, 1]]
>>> several, probabilities = np.array([[True, False], [True, True]]), np.array([[0.9, 0.4], [0.3, 0.6]])
>>> best_thresholds(several, probabilities)
(0.15, 0.5)
>>> exact_match(several, probabilities >= np.array([0.15, 0.5]))
1.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert._json import JsonObject
from edgebert.errors import BadDataError

Classes = NDArray[np.integer]
LabelSets = NDArray[np.bool_]  # (images, classes): whether the image has the label
Probabilities = NDArray[np.floating]  # (images, classes) in [0, 1], of each label by itself


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


def average_precision(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float | None:
    """Return the average precision of one class, in [0, 1]; None where no image has it.

    The sum over thresholds of (R_n - R_{n-1}) P_n, images of equal score taken together, nothing interpolated: what
    scikit-learn's `average_precision_score` defines.

    Args:
        labels: whether each image has the class, bool (images,).
        scores: the higher, the surer; floating (images,).

    Raises:
        BadDataError: no image, arrays of different shapes, or a score that is NaN.
    """
    _check_several(labels[:, np.newaxis], scores[:, np.newaxis])
    positives = int(labels.sum())
    if positives == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(labels[order])  # (images,): right ones among the first n
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last image of each score
    precision, recall = found[last] / (last + 1), found[last] / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mean_average_precision(labels: LabelSets, probabilities: Probabilities) -> float:
    """Return the plain mean of the classes' average precisions (mAP), in [0, 1]; a class that no image has is left out.

    Raises:
        BadDataError: no image has any class, or as `average_precision`.
    """
    _check_several(labels, probabilities)
    each = [average_precision(labels[:, index], probabilities[:, index]) for index in range(labels.shape[1])]
    present = [precision for precision in each if precision is not None]
    if not present:
        raise BadDataError(f"none of {len(labels)} images has any label", expected="at least one image with a label")
    return float(np.mean(present))


def multilabel_f1(labels: LabelSets, decided: LabelSets) -> tuple[float, float]:
    """Return F1 over all decisions together (micro) and the plain mean of the classes' F1 (macro), each in [0, 1].

    A class that neither occurs nor is ever said is left out of the mean, as it is with one label to an image; F1 without
    any label and any decision is 0.

    Args:
        labels: bool (images, classes).
        decided: what is said of each image, bool (images, classes).

    Raises:
        BadDataError: no image, or arrays of different shapes.
    """
    _check_several(labels, decided)
    right, said, true = _counts(labels, decided)
    micro = float(2 * right.sum() / max(1, said.sum() + true.sum()))
    present = (said + true) > 0
    return micro, float(np.mean(_f1(right, said, true)[present])) if present.any() else 0.0


def multilabel_rows(labels: LabelSets, decided: LabelSets, class_names: Sequence[str]) -> tuple[ClassRow, ...]:
    """Return precision, recall, F1 and support of every class, in the order of `class_names`.

    Raises:
        BadDataError: as `multilabel_f1`.
    """
    _check_several(labels, decided)
    right, said, true = _counts(labels, decided)
    precision, recall, f1 = right / np.maximum(said, 1), right / np.maximum(true, 1), _f1(right, said, true)
    return tuple(
        ClassRow(
            name=name,
            precision=float(precision[index]),
            recall=float(recall[index]),
            f1=float(f1[index]),
            support=int(true[index]),
        )
        for index, name in enumerate(class_names)
    )


def exact_match(labels: LabelSets, decided: LabelSets) -> float:
    """Return the share of images of which exactly their labels are said, in [0, 1].

    Raises:
        BadDataError: as `multilabel_f1`.
    """
    _check_several(labels, decided)
    return float(np.mean((labels == decided).all(axis=1)))


def best_thresholds(labels: LabelSets, probabilities: Probabilities) -> tuple[float, ...]:
    """Return for each class the probability from which it is said, in (0, 1): the one of the highest F1.

    Tried are 0.5 and the middle between any two neighbouring probabilities, so that a small change of an answer, as INT8
    makes it, does not change what is said. Of equally good ones the nearest to 0.5 is taken, and 0.5 itself for a class that
    no image has.

    Args:
        labels: of the validation split, bool (images, classes).
        probabilities: (images, classes) in [0, 1].

    Raises:
        BadDataError: no image, arrays of different shapes, or a probability that is NaN.
    """
    _check_several(labels, probabilities)
    return tuple(_best_threshold(labels[:, index], probabilities[:, index]) for index in range(labels.shape[1]))


def expected_calibration_error(scores: Probabilities, right: NDArray[np.bool_], bins: int = 15) -> float:
    """Return how far scores are from the share of right answers among answers of that score, in [0, 1].

    The sum over `bins` equal parts of [0, 1] of |B| / n |accuracy(B) - mean score(B)|, a score on a border belonging to the
    lower part: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3, with their 15. It
    grows as images get fewer (bins of few answers are right by chance or not), so only values of the same images compare.

    Args:
        scores: of each answer, floating (answers,) in [0, 1].
        right: whether it is right, bool (answers,).
        bins: how many parts.

    Raises:
        BadDataError: no answer, arrays of different shapes, no part, or a score outside [0, 1].
    """
    if scores.ndim != 1 or scores.shape != right.shape or not scores.size or right.dtype != np.bool_ or bins < 1:
        raise BadDataError(
            f"scores {scores.dtype} {scores.shape} and right answers {right.dtype} {right.shape} in {bins} bins",
            expected="floating and bool (answers,), not empty, and at least one bin",
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise BadDataError("a score is not in [0, 1]", expected="probabilities")
    wide = scores.astype(np.float64)
    part = np.digitize(wide, np.linspace(0, 1, bins + 1)[1:-1], right=True)  # (answers,): 0 to bins - 1
    gaps = np.bincount(part, right - wide, minlength=bins)  # |B| (accuracy(B) - mean score(B))
    return float(np.abs(gaps).sum() / len(wide))


def roc_auc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float | None:
    """Return the area under the ROC curve of one class, in [0, 1]; None where every image has it, or none.

    The chance that an image of the class scores higher than one of the others, ties counting half: the Mann-Whitney
    statistic over the number of pairs (Hanley and McNeil 1982), what scikit-learn's `roc_auc_score` gives.

    Args:
        labels: whether each image has the class, bool (images,).
        scores: the higher, the surer; floating (images,).

    Raises:
        BadDataError: no image, arrays of different shapes, or a score that is NaN.
    """
    _check_several(labels[:, np.newaxis], scores[:, np.newaxis])
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each distinct score, from 1
    above = float(ranks[place][labels].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def mean_roc_auc(labels: Classes, probabilities: Probabilities) -> float | None:
    """Return the mean over classes of `roc_auc`, one against the rest; of two classes, that of the second.

    Classes that no image has are left out; None where fewer than two occur.

    Args:
        labels: int64 (images,).
        probabilities: floating (images, classes).

    Raises:
        BadDataError: as `roc_auc`.
    """
    classes = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else (1,)
    each = [roc_auc(labels == index, probabilities[:, index]) for index in classes]
    known = [area for area in each if area is not None]
    return float(np.mean(known)) if known else None


def _best_threshold(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Return the best threshold of one class; see `best_thresholds`."""
    order = np.argsort(scores, kind="stable")
    ascending = scores[order].astype(np.float64)
    different = np.unique(ascending)
    tried = np.concatenate([[0.5, different[0] / 2], (different[1:] + different[:-1]) / 2])
    tried = tried[(tried > 0) & (tried < 1)]
    first = np.searchsorted(ascending, tried)  # (thresholds,): the lowest score that reaches it
    right = np.append(np.cumsum(labels[order][::-1])[::-1], 0)[first]
    f1 = _f1(right, len(scores) - first, np.full(len(tried), int(labels.sum())))
    best = tried[f1 == f1.max()]
    # Among two as near to 0.5, the lower: it misses less.
    return float(min(best, key=lambda threshold: (abs(threshold - 0.5), threshold)))


def _check_several(labels: LabelSets, answers: NDArray[np.generic]) -> None:
    if labels.ndim != 2 or labels.shape != answers.shape or not labels.size or labels.dtype != np.bool_:
        raise BadDataError(
            f"labels {labels.dtype} {labels.shape} and answers {answers.dtype} {answers.shape}",
            expected="bool (images, classes) and as many answers, not empty",
        )
    if np.issubdtype(answers.dtype, np.floating) and np.isnan(answers.astype(np.float64)).any():
        raise BadDataError("a probability is NaN", expected="finite ones")


def _counts(labels: LabelSets, decided: LabelSets) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return for each class how often it is rightly said, said, and true: int64 (classes,) each."""
    right, said, true = (each.sum(axis=0, dtype=np.int64) for each in (labels & decided, decided, labels))
    return right, said, true


def _f1(right: NDArray[np.int64], said: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return F1 = 2 right / (said + true), 0 where there is neither."""
    scores: NDArray[np.float64] = 2 * right / np.maximum(said + true, 1)
    return scores


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
