"""The three steps from an image to an answer. `Classifier` runs them, and `bench` times these same ones."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.card import ModelCard
from edgebert.decisions import decisions, sigmoid, softmax, softmax_of_few
from edgebert.errors import NotFiniteError
from edgebert.preprocess import Decoding, ImageSource, takes_as_is, view_image
from edgebert.runtime.runner import Runner

_UINT8 = np.dtype(np.uint8)
_log = logging.getLogger("edgebert")

# Up to as many classes plain Python is faster than numpy right after a model ran, when nothing of either is in the processor's
# caches: docs/runtime-speed.md.
_FEW_CLASSES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An answer.

    Attributes:
        label: name of the class with the highest probability, also where the answer is abstained from.
        score: its probability, in [0, 1]; calibrated where the bundle's card has a `confidence`, as that of a quantised model.
        index: of that class in `Classifier.class_names`.
        scores: probabilities of all classes, in the order of `Classifier.class_names`: the softmax, or, of a multi-label
            model, the sigmoid of each logit.
        labels: what is said of the image: that one class, or, of a multi-label model, every class whose probability reaches
            its threshold, the surest first; none is an answer too. Thresholds are of probabilities before the calibration, which
            changes no decision.
        abstained: whether the score is below the one from which on the bundle answers; False where it has none.
        digest: of the bundle that answered (`Classifier.digest`), 64 hexadecimal digits; empty where no bundle did.
    """

    label: str
    score: float
    index: int
    scores: tuple[float, ...]
    labels: tuple[str, ...]
    abstained: bool = False
    digest: str = ""


class Pipeline:
    """Preprocessing, model and decision of one opened artefact.

    Args:
        runner: an opened model; the caller closes it.
        card: class names and preprocessing of the artefact.
        digest: what every answer says of the bundle it comes from.
        decoding: `exact`, or `reduced` for JPEG files whose pixels need not be those that accuracy was measured with, which is
            said in a warning of the logger `edgebert`; see `edgebert.preprocess.load_image`.
    """

    def __init__(self, runner: Runner, card: ModelCard, digest: str = "", *, decoding: Decoding = "exact") -> None:
        self.runner = runner
        self.card = card
        self.digest = digest
        self.decoding: Decoding = decoding
        rule = card.preprocessing
        self._ready_shape = (rule.height, rule.width, 3) if takes_as_is(rule) else None
        self._temperature = 1.0 if card.confidence is None else card.confidence.temperature
        self._is_of_few = card.task != "multi-label" and len(card.class_names) <= _FEW_CLASSES
        if decoding == "reduced":
            _log.warning(
                "large JPEG files are decoded at a reduced size: their pixels, and now and then a decision, differ from those "
                "that accuracy was measured with"
            )

    def pre(self, image: ImageSource) -> NDArray[np.uint8]:
        """Decode and resize one image into uint8 (1, height, width, 3) RGB; see `edgebert.preprocess.view_image`.

        An array that needs no resizing is not copied: the result is a view of it, of its strides.
        """
        # Asked first, as a camera's frames pass here: neither copied nor looked at any further.
        if type(image) is np.ndarray and image.shape == self._ready_shape and image.dtype is _UINT8:
            return image[np.newaxis]
        return view_image(image, self.card.preprocessing, self.decoding)[np.newaxis]

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (batch, classes) logits of uint8 (batch, height, width, 3)."""
        return self.runner.infer(batch)

    def post(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """Return the answer for each row of float32 (batch, classes).

        Raises:
            NotFiniteError: a logit is not finite. `numpy.argmax` would call the first NaN the winner.
        """
        rows: list[list[float]] = logits.tolist()
        if self._is_of_few:
            return [self._prediction_of_few(row, number) for number, row in enumerate(rows)]
        for number, row in enumerate(rows):
            _check_finite(row, number)
        if self.card.task == "multi-label":
            return self._several(logits, rows)
        scores: list[list[float]] = softmax(self._calibrated(logits)).tolist()
        return list(map(self._prediction, rows, scores))

    def _calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.floating]:
        # Decisions are made of the logits themselves, so that no temperature can change one.
        return logits if self._temperature == 1 else logits.astype(np.float64) / self._temperature

    def _prediction_of_few(self, logits: list[float], number: int) -> Prediction:
        scores = softmax_of_few(logits, self._temperature)
        answer = self._prediction(logits, scores)
        if not answer.score > 0 or 0.0 in scores:  # of NaN and infinities, and of what is finite and rounds to 0
            _check_finite(logits, number)
        return answer

    def _prediction(self, logits: list[float], scores: list[float]) -> Prediction:
        index = logits.index(max(logits))  # the first of several that are as large
        label, score, confidence = self.card.class_names[index], scores[index], self.card.confidence
        return Prediction(
            label=label,
            score=score,
            index=index,
            scores=tuple(scores),
            labels=(label,),
            abstained=confidence is not None and confidence.abstains(score),
            digest=self.digest,
        )

    def _several(self, logits: NDArray[np.float32], rows: list[list[float]]) -> list[Prediction]:
        names, said = self.card.class_names, decisions(logits, self.card.thresholds).tolist()
        scores: list[list[float]] = sigmoid(self._calibrated(logits)).tolist()
        answers: list[Prediction] = []
        for row, probabilities, yes in zip(rows, scores, said, strict=True):
            order = sorted(
                range(len(row)), key=row.__getitem__, reverse=True
            )  # stable: the first of several comes first
            answers.append(
                Prediction(
                    label=names[order[0]],
                    score=probabilities[order[0]],
                    index=order[0],
                    scores=tuple(probabilities),
                    labels=tuple(names[place] for place in order if yes[place]),
                    digest=self.digest,
                )
            )
        return answers


def _check_finite(logits: list[float], number: int) -> None:
    if not math.isfinite(sum(logits)):  # the sum of what is finite in float32 is finite in float64
        raise NotFiniteError(
            f"the model answered image {number} with {logits!s:.200}",
            expected="finite logits",
            hint="edgebert verify BUNDLE",
        )


def tensor_sha256(tensor: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a uint8 tensor's bytes: equal for equal preprocessing of the same image."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
