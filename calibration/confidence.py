"""The temperature of a quantised model and the score below which it abstains, from logits of validation images.

>>> random = np.random.default_rng(0)
>>> honest = random.normal(0, 2, (4000, 5))
>>> chosen = (honest + random.gumbel(size=honest.shape)).argmax(axis=1)  # as the softmax of `honest` draws it
>>> record = fitted_confidence(3 * honest, np.eye(5, dtype=bool)[chosen], task="single-label")
>>> round(record.temperature, 1)
3.0
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.statistics.formulas import wilson_interval
from edgebert.card import Task
from edgebert.confidence import MAX_TEMPERATURE, MIN_TEMPERATURE, Confidence
from edgebert.decisions import sigmoid, softmax
from edgebert.errors import BadDataError, UsageError
from edgebert.metrics import expected_calibration_error

_log = logging.getLogger("edgebert")

FEWEST_IMAGES = 100  # below, the error of a share of 95 % is ± 4 points and more: nothing is fitted
_FEWEST_KEPT = 30  # answers above a threshold: all of them right is a precision of at least 89 % then (Wilson, 95 %)
_HALVINGS = 50  # of the logarithm of the temperature, which spans 6: to 5e-15

Floats = NDArray[np.float64]
Scored = tuple[Floats, NDArray[np.bool_]]  # of each answer its score, and whether it is right: (answers,)


def check_abstaining(task: Task, wanted_precision: float | None) -> None:
    """Refuse a wanted precision that cannot be meant.

    Raises:
        UsageError: not above 0.5 and below 1, or the model says several labels of an image.
    """
    if wanted_precision is None:
        return
    if not 0.5 < wanted_precision < 1:
        raise UsageError(
            f"abstain_precision `{wanted_precision}`",
            expected="above 0.5 and below 1: the share of right answers among those that do not abstain",
            hint="--abstain-precision 0.99",
        )
    if task == "multi-label":
        raise UsageError(
            f"abstain_precision `{wanted_precision}` for a multi-label model",
            expected="a model that says one class: here each class has a threshold of its own",
            hint="leave out --abstain-precision",
        )


def fitted_confidence(
    logits: NDArray[np.floating],
    labels: NDArray[np.bool_],
    *,
    task: Task,
    wanted_precision: float | None = None,
) -> Confidence:
    """Fit a temperature, and a threshold for abstaining where a precision is wanted. The same arrays give the same record.

    Temperature scaling is Guo et al. 2017 (arXiv 1706.04599, section 4.2): one number by which all logits are divided,
    the one of the lowest negative log-likelihood; it changes no decision. A temperature below 1 makes scores surer, and a model
    that is right on every validation image would get the lowest there is, and a score of 1 for whatever it is shown. So it
    goes below 1 only as far as the mean score stays at most (right answers + 1) / (answers + 2), Laplace's rule of
    succession: what so many images can show, and the target of Platt 1999 for the same reason.

    The threshold is the smallest that reaches the wanted precision on at least 30 images. What is reported of temperature
    and threshold is measured on each half of the images (the even and the odd rows) with what was fitted on the other half.

    With fewer than 100 images nothing is fitted: the temperature stays 1, and that is said.

    Args:
        logits: of validation images, floating (images, classes), in an order that has nothing to do with their classes.
        labels: bool (images, classes): of a single-label model one in each row.
        task: of the model. Of a multi-label model every pair of image and class counts as an answer.
        wanted_precision: share of right answers among those that do not abstain, above 0.5 and below 1.

    Raises:
        UsageError: see `check_abstaining`.
        BadDataError: shapes differ, a logit is not finite, or no threshold reaches the wanted precision.
    """
    check_abstaining(task, wanted_precision)
    answers = _checked(logits, labels, task)
    if len(answers.logits) < FEWEST_IMAGES:
        return _unfitted(answers, wanted_precision)
    temperature = _temperature(answers)
    even, odd = (answers.rows(slice(start, None, 2)) for start in (0, 1))
    of_even, of_odd = _temperature(odd), _temperature(even)  # each from the other half
    halves = (even.scores(of_even), odd.scores(of_odd))
    record = Confidence(
        temperature=temperature,
        ece_before=_ece(answers.scores(1.0)),
        ece_after=_ece(
            (np.concatenate([scores for scores, _ in halves]), np.concatenate([right for _, right in halves]))
        ),
        images=len(answers.logits),
    )
    if temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE):
        _log.warning("the temperature is at its bound, %g: the scores say little of this model", temperature)
    if wanted_precision is None:
        return record
    # A threshold is of scores of one temperature: each half chooses with the one that the other half is measured with.
    kept = (
        _kept(odd.scores(of_even), halves[0], wanted_precision),
        _kept(even.scores(of_odd), halves[1], wanted_precision),
    )
    return _with_threshold(record, answers.scores(temperature), np.concatenate(kept), wanted_precision)


def _with_threshold(record: Confidence, scored: Scored, kept: NDArray[np.bool_], wanted: float) -> Confidence:
    """Return the record with the threshold chosen on all answers.

    Args:
        record: of the temperature.
        scored: all answers at that temperature.
        kept: of each answer above the threshold that the other half chose whether it is right.
        wanted: the precision.
    """
    below = _threshold(scored, wanted, _FEWEST_KEPT)
    if below is None:
        raise _unreached(scored, wanted)
    if not kept.size:
        raise BadDataError(
            f"thresholds for a precision of {wanted:.1%}, chosen on one half of {record.images:,} validation images, "
            "keep none of the other half",
            expected="enough sure answers to choose a threshold and to measure it",
            hint="ask for a lower --abstain-precision, or leave it out",
        )
    precision = float(kept.mean())
    precision_low, precision_high = wilson_interval(int(kept.sum()), kept.size)
    if precision_high < wanted:
        _log.warning(
            "measured on images that did not choose the threshold, the precision is %.1f %%, not the %.1f %% that are wanted: "
            "more validation images make the choice better",
            100 * precision,
            100 * wanted,
        )
    return replace(
        record,
        abstain_below=below,
        wanted_precision=wanted,
        precision=precision,
        precision_low=precision_low,
        coverage=kept.size / record.images,
    )


@dataclass(frozen=True, slots=True)
class _Answers:
    """Logits float64 and labels bool, both (images, classes)."""

    logits: Floats
    labels: NDArray[np.bool_]
    task: Task

    @property
    def probabilities(self) -> Callable[[Floats], Floats]:
        return sigmoid if self.task == "multi-label" else softmax

    def rows(self, chosen: slice) -> _Answers:
        return _Answers(self.logits[chosen], self.labels[chosen], self.task)

    def scores(self, temperature: float) -> Scored:
        """Return the score of each answer and whether it is right: (images,), or (images * classes,) of several labels."""
        scores = self.probabilities(self.logits / temperature)
        if self.task == "multi-label":
            return scores.reshape(-1), self.labels.reshape(-1)
        said = self.logits.argmax(axis=1)
        every = np.arange(len(said))
        return scores[every, said], self.labels[every, said]

    def certainty(self, temperature: float) -> Scored:
        """Return how sure each decision is and whether it is right: of several labels, yes or no from a score of 0.5 on."""
        scores, right = self.scores(temperature)
        if self.task == "single-label":
            return scores, right
        return np.maximum(scores, 1 - scores), (scores >= 0.5) == right


def _checked(logits: NDArray[np.floating], labels: NDArray[np.bool_], task: Task) -> _Answers:
    if logits.ndim != 2 or logits.shape != labels.shape or not logits.size or labels.dtype != np.bool_:
        raise BadDataError(
            f"logits {logits.dtype} {logits.shape} and labels {labels.dtype} {labels.shape}",
            expected="(images, classes) of both, labels as bool, not empty",
        )
    if not np.isfinite(logits).all():
        raise BadDataError("a logit of a validation image is not finite", expected="finite logits")
    if task == "single-label" and (labels.sum(axis=1) != 1).any():
        raise BadDataError("a validation image has no label or several", expected="one label for each image")
    return _Answers(logits.astype(np.float64), labels, task)


def _unfitted(answers: _Answers, wanted_precision: float | None) -> Confidence:
    images = len(answers.logits)
    if wanted_precision is not None:
        raise BadDataError(
            f"{images} validation images for a precision of {wanted_precision:.1%}",
            expected=f"at least {FEWEST_IMAGES} to choose from which score on to abstain",
            hint="leave out --abstain-precision, or give more images",
        )
    _log.warning(
        "only %d validation images, fewer than %d: the scores are not calibrated (temperature 1)", images, FEWEST_IMAGES
    )
    error = _ece(answers.scores(1.0))
    return Confidence(temperature=1.0, ece_before=error, ece_after=error, images=images)


def _temperature(answers: _Answers) -> float:
    """Return the temperature of a model, to four digits; see `fitted_confidence`."""
    likeliest = _likeliest_temperature(answers)
    chosen = likeliest if likeliest >= 1 else max(likeliest, _sharpest_temperature(answers))
    # Four digits: what another processor rounds otherwise does not change the bytes of the graph.
    return float(f"{chosen:.4g}")


def _likeliest_temperature(answers: _Answers) -> float:
    """Return the temperature of the lowest negative log-likelihood, which is convex in b = 1 / temperature.

    Its slope there is sum((p(b z) - label) z), for the softmax and for the sigmoid.
    """
    logits = answers.logits
    if answers.task == "single-label":
        logits = logits - logits.max(axis=1, keepdims=True)  # changes no softmax, and keeps the sums small
    if not logits.any():
        return 1.0  # all logits are equal, and so they stay

    def slope(factor: float) -> float:
        return float(np.sum((answers.probabilities(factor * logits) - answers.labels) * logits))

    return 1 / _zero(slope, 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE)


def _sharpest_temperature(answers: _Answers) -> float:
    """Return the temperature at which the mean certainty is Laplace's estimate of the accuracy, at most 1."""
    right = answers.certainty(1.0)[1]
    limit = (int(right.sum()) + 1) / (right.size + 2)

    def excess(factor: float) -> float:
        return float(answers.certainty(1 / factor)[0].mean()) - limit

    return 1 / _zero(excess, 1.0, 1 / MIN_TEMPERATURE)


def _zero(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function of a factor is 0, by halving; the nearer bound where it is not inside."""
    if rising(low) >= 0:
        return low
    if rising(high) <= 0:
        return high
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return math.sqrt(low * high)


def _ece(scored: Scored) -> float:
    return round(expected_calibration_error(*scored), 6)


def _threshold(scored: Scored, wanted: float, fewest: int) -> float | None:
    """Return the smallest threshold of the wanted precision on at least `fewest` answers; 0 where all of them have it."""
    scores, counts, precision = _precisions(scored, fewest)
    reaching = np.flatnonzero(precision >= wanted)
    if not reaching.size:
        return None
    count = int(counts[reaching[-1]])
    return 0.0 if count == len(scores) else _between(float(scores[count]), float(scores[count - 1]))


def _precisions(scored: Scored, fewest: int) -> tuple[Floats, NDArray[np.int64], NDArray[np.float64]]:
    """Return the scores from high to low, each number of answers that a threshold can keep, and their precision."""
    order = np.argsort(-scored[0], kind="stable")
    scores, right = scored[0][order], scored[1][order]
    counts = np.append(np.flatnonzero(np.diff(scores)) + 1, len(scores))  # equal scores stay together
    counts = counts[counts >= fewest]
    return scores, counts, np.cumsum(right)[counts - 1] / counts


def _between(lower: float, upper: float) -> float:
    """Return the shortest decimal above `lower` and at most `upper`, near their middle."""
    for digits in range(2, 16):
        threshold = round((lower + upper) / 2, digits)
        if lower < threshold <= upper:
            return threshold
    return upper


def _kept(chooses: Scored, measures: Scored, wanted: float) -> NDArray[np.bool_]:
    """Return, of each answer of one half that the other half's threshold keeps, whether it is right: bool (kept,)."""
    below = _threshold(chooses, wanted, _FEWEST_KEPT // 2)
    return measures[1][:0] if below is None else measures[1][measures[0] >= below]


def _unreached(scored: Scored, wanted: float) -> BadDataError:
    scores, counts, precision = _precisions(scored, _FEWEST_KEPT)
    best = len(precision) - 1 - int(np.argmax(precision[::-1]))  # the one that keeps most, of equal ones
    lower = math.floor(100 * float(precision[best]) + 1e-9) / 100
    hint = f"--abstain-precision {lower:.2f}, or leave it out" if lower > 0.5 else "leave out --abstain-precision"
    return BadDataError(
        f"no score separates answers with a precision of {wanted:.1%} on {len(scores):,} validation images",
        expected=f"at most {precision[best]:.1%}, reached on {counts[best] / len(scores):.1%} of them "
        f"(a threshold keeps {_FEWEST_KEPT} images at least)",
        hint=hint,
    )
