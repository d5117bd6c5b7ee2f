"""Accuracy from raw samples: what an arm decides on the test split, how sure it is, and how that differs from a reference.

>>> logits = np.array([[[0.5, 2.0], [1.0, -1.0]]], np.float32)
>>> (logits_of_bits(logit_bits(logits)).reshape(1, 2, 2) == logits).all().item()
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.recorder import NO_CLASS
from edgebert.bench.samples import CONFIDENCE_UNIT, LOGITS, IntArray, Samples
from edgebert.bench.schema import (
    Accuracy,
    Agreement,
    Calibration,
    ClassAccuracy,
    FlippedImage,
    Interval,
    LogitGap,
    MultiLabelAccuracy,
    Share,
)
from edgebert.bench.several import several_of
from edgebert.bench.statistics.formulas import mcnemar_exact, paired_difference_interval, wilson_interval
from edgebert.decisions import softmax
from edgebert.metrics import (
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    mean_average_precision,
    mean_roc_auc,
    multilabel_f1,
    multilabel_rows,
    per_class,
)

_RESAMPLES = 1_000  # of images, for the interval of macro-F1
_TOP = 5


@dataclass(frozen=True, slots=True)
class Reference:
    """The arm that agreement refers to: its index, its name, and the temperature of its logits."""

    arm: int
    name: str


def logit_bits(logits: NDArray[np.float32]) -> IntArray:
    """Return the bits of each float32 as an int64, flattened."""
    return np.ascontiguousarray(logits).reshape(-1).view(np.int32).astype(np.int64)


def logits_of_bits(bits: IntArray) -> NDArray[np.float32]:
    """Return what `logit_bits` was given, flat."""
    return bits.astype(np.int32).view(np.float32)


def ranks_of(logits: NDArray[np.float32], labels: IntArray) -> IntArray:
    """Return int64 (arms, images): how many classes have a higher logit than the true one; -1 where the query failed.

    Args:
        logits: float32 (arms, images, classes); NaN where the query failed.
        labels: int64 (images,).
    """
    true = np.take_along_axis(logits, labels[np.newaxis, :, np.newaxis], axis=2)  # (arms, images, 1)
    ranks: IntArray = np.count_nonzero(logits > true, axis=2).astype(np.int64)
    return np.where(np.isnan(true[:, :, 0]), NO_CLASS, ranks)


def logits_of(samples: Samples, arm: int, classes: int) -> NDArray[np.float32] | None:
    """Return float32 (images, classes) of an arm, or None where logits were not kept."""
    if LOGITS not in samples.columns:
        return None
    images = int(np.count_nonzero(samples["accuracy_arm"] == arm))
    found: NDArray[np.float32] = logits_of_bits(samples[LOGITS]).reshape(-1, images, classes)[arm]
    return found


def accuracy_from_samples(
    samples: Samples,
    arm: int,
    class_names: Sequence[str],
    *,
    reference: Reference | None,
    temperature: float,
    known: Mapping[int, tuple[str, str | None]],
    flipped: int,
    seed: int,
) -> Accuracy:
    """Return the accuracy of one arm; an image that failed counts as wrong, and is not in the tables by class.

    Args:
        samples: of the run.
        arm: index of the arm.
        class_names: of the data set.
        reference: what agreement refers to; None for none.
        temperature: that the arm divides its logits by.
        known: test image number -> its name and thumbnail, of at least the images that `flipped_images` names.
        flipped: how many of them to keep.
        seed: of the bootstrap.
    """
    labels, decisions = samples.accuracy_of(arm)
    answered = decisions != NO_CLASS
    right = labels == decisions
    top1 = share_of(int(np.count_nonzero(right)), len(labels))
    agreement, delta, delta_interval, p_value = None, None, None, None
    if reference is not None:
        _, theirs = samples.accuracy_of(reference.arm)
        same = int(np.count_nonzero((decisions == theirs) & answered))
        agreement = Agreement(reference=reference.name, share=share_of(same, len(labels)))
        gained, lost = (
            int(np.count_nonzero(right & (labels != theirs))),
            int(np.count_nonzero(~right & (labels == theirs))),
        )
        delta = (gained - lost) / len(labels)
        delta_interval = paired_difference_interval(gained, lost, len(labels))
        p_value = mcnemar_exact(lost, gained)
    several, confusion, f1_interval = None, np.zeros((0, 0), np.int64), None
    if "score" in samples.columns and len(samples["score"]):
        truth, said, scores = several_of(samples, arm, len(class_names))
        truth, said, scores = truth[answered], said[answered], scores[answered]
        several = _several_accuracy(top1, truth, said, scores)
        macro, rows = several.macro_f1, multilabel_rows(truth, said, class_names)
    else:
        macro = macro_f1(labels[answered], decisions[answered], len(class_names))
        f1_interval = macro_f1_interval(labels[answered], decisions[answered], len(class_names), seed=seed)
        rows = per_class(labels[answered], decisions[answered], class_names)
        confusion = confusion_matrix(labels[answered], decisions[answered], len(class_names))
    changed = flipped_images(samples, arm, reference.arm) if reference is not None else np.zeros(0, np.int64)
    return Accuracy(
        top1=top1,
        macro_f1=macro,
        agreement=agreement,
        delta_top1=delta,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        per_class=tuple(
            ClassAccuracy(name=row.name, precision=row.precision, recall=row.recall, f1=row.f1, support=row.support)
            for row in rows
        ),
        multi_label=several,
        top5=_top5(samples, arm, len(class_names)) if several is None else None,
        macro_f1_ci95=f1_interval,
        auc=_auc(samples, arm, len(class_names), temperature) if several is None else None,
        calibration=_calibration(samples, arm) if several is None and answered.any() else None,
        delta_top1_ci95=delta_interval,
        mcnemar_p=p_value,
        logit_gap=None if reference is None else _logit_gap(samples, arm, reference.arm, len(class_names)),
        flipped=()
        if reference is None or several is not None
        else tuple(
            _flipped(samples, int(sample), arm, reference.arm, class_names, known) for sample in changed[:flipped]
        ),
        flipped_count=None if reference is None else len(changed),
    )


def flipped_images(samples: Samples, arm: int, reference: int) -> IntArray:
    """Return the numbers of the test images that two arms decide otherwise, those that the first is surest of before others."""
    _, ours = samples.accuracy_of(arm)
    _, theirs = samples.accuracy_of(reference)
    changed = np.flatnonzero((ours != theirs) & (ours != NO_CLASS) & (theirs != NO_CLASS))
    sure = samples["accuracy_confidence"][samples["accuracy_arm"] == arm][changed]
    return changed[np.argsort(-sure, kind="stable")]


def macro_f1_interval(labels: IntArray, decisions: IntArray, classes: int, *, seed: int) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of macro-F1 over images (Efron and Tibshirani 1993, chapter 13).

    Args:
        labels: int64 (images,).
        decisions: int64 (images,).
        classes: how many there are.
        seed: of the resampling.
    """
    if not labels.size:
        return None
    generator = np.random.default_rng([seed, 6])
    cells = labels * classes + decisions
    found = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        picks = generator.integers(cells.size, size=cells.size)
        matrix = np.bincount(cells[picks], minlength=classes * classes).reshape(classes, classes)
        true, said = matrix.sum(axis=1), matrix.sum(axis=0)
        occurring = true + said > 0
        f1 = 2 * np.diag(matrix)[occurring] / (true + said)[occurring]
        found[resample] = f1.sum() / classes
    low, high = np.quantile(found, (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)


def share_of(count: int, total: int) -> Share:
    """Return a share with its Wilson interval."""
    return Share(value=count / total, ci95=wilson_interval(count, total), n=total)


def _several_accuracy(
    exact_match: Share, truth: NDArray[np.bool_], said: NDArray[np.bool_], scores: NDArray[np.float64]
) -> MultiLabelAccuracy:
    micro, macro = multilabel_f1(truth, said)
    return MultiLabelAccuracy(
        exact_match=exact_match,
        micro_f1=micro,
        macro_f1=macro,
        mean_average_precision=mean_average_precision(truth, scores) if truth.any() else None,
    )


def _top5(samples: Samples, arm: int, classes: int) -> Share | None:
    ranks = samples["accuracy_rank"][samples["accuracy_arm"] == arm]
    if classes <= _TOP:
        return None
    return share_of(int(np.count_nonzero((ranks >= 0) & (ranks < _TOP))), len(ranks))


def _auc(samples: Samples, arm: int, classes: int, temperature: float) -> float | None:
    logits = logits_of(samples, arm, classes)
    if logits is None:
        return None
    labels, decisions = samples.accuracy_of(arm)
    answered = decisions != NO_CLASS
    if not answered.any():
        return None
    return mean_roc_auc(labels[answered], softmax(logits[answered].astype(np.float64) / temperature))


def _calibration(samples: Samples, arm: int) -> Calibration:
    labels, decisions = samples.accuracy_of(arm)
    answered = decisions != NO_CLASS
    confidences = samples["accuracy_confidence"][samples["accuracy_arm"] == arm][answered] * CONFIDENCE_UNIT
    confidences = np.minimum(confidences, 1.0)  # 1e9 * 1e-9 is a little more than 1
    return Calibration(
        ece=expected_calibration_error(confidences, (labels == decisions)[answered]),
        mean_confidence=float(confidences.mean()),
    )


def _logit_gap(samples: Samples, arm: int, reference: int, classes: int) -> LogitGap | None:
    ours, theirs = logits_of(samples, arm, classes), logits_of(samples, reference, classes)
    if ours is None or theirs is None:
        return None
    both = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)
    if not both.any():
        return None
    first, second = theirs[both].astype(np.float64), ours[both].astype(np.float64)
    p, log_p, log_q = softmax(first), _log_softmax(first), _log_softmax(second)
    divergence = (p * (log_p - log_q)).sum(axis=1)  # (images,)
    return LogitGap(max_abs=float(np.abs(first - second).max()), kl=max(0.0, float(divergence.mean())))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _flipped(
    samples: Samples,
    sample: int,
    arm: int,
    reference: int,
    class_names: Sequence[str],
    known: Mapping[int, tuple[str, str | None]],
) -> FlippedImage:
    labels, ours = samples.accuracy_of(arm)
    _, theirs = samples.accuracy_of(reference)
    sure = [
        float(samples["accuracy_confidence"][samples["accuracy_arm"] == index][sample]) * CONFIDENCE_UNIT
        for index in (arm, reference)
    ]
    name, thumbnail = known[sample]
    return FlippedImage(
        sample=sample,
        id=name,
        label=class_names[int(labels[sample])],
        decision=class_names[int(ours[sample])],
        confidence=sure[0],
        reference_decision=class_names[int(theirs[sample])],
        reference_confidence=sure[1],
        thumbnail=thumbnail,
    )
