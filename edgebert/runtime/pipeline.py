"""The three steps from an image to an answer. `Classifier` runs them, and `bench` times these same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.card import ModelCard
from edgebert.decisions import decisions, sigmoid, softmax
from edgebert.errors import EdgebertError
from edgebert.preprocess import ImageSource, load_image
from edgebert.runtime.runner import Runner


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
    """

    label: str
    score: float
    index: int
    scores: tuple[float, ...]
    labels: tuple[str, ...]
    abstained: bool = False


class Pipeline:
    """Preprocessing, model and decision of one opened artefact.

    Args:
        runner: an opened model; the caller closes it.
        card: class names and preprocessing of the artefact.
    """

    def __init__(self, runner: Runner, card: ModelCard) -> None:
        self.runner = runner
        self.card = card

    def pre(self, image: ImageSource) -> NDArray[np.uint8]:
        """Decode and resize one image into uint8 (1, height, width, 3) RGB; see `edgebert.preprocess.load_image`."""
        return load_image(image, self.card.preprocessing)[np.newaxis]

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (batch, classes) logits of uint8 (batch, height, width, 3)."""
        return self.runner.infer(batch)

    def post(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """Return the answer for each row of float32 (batch, classes).

        Raises:
            EdgebertError: a logit is not finite. `numpy.argmax` would call the first NaN the winner.
        """
        if not np.isfinite(logits).all():
            row = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise EdgebertError(
                f"the model answered image {row} with {logits[row].tolist()!s:.200}",
                expected="finite logits",
                hint="edgebert verify BUNDLE",
            )
        if self.card.task == "multi-label":
            said = decisions(logits, self.card.thresholds)
            scores = sigmoid(self._calibrated(logits))
            return [self._several(*row) for row in zip(logits, scores, said, strict=True)]
        return [self._prediction(*row) for row in zip(logits, softmax(self._calibrated(logits)), strict=True)]

    def _calibrated(self, logits: NDArray[np.float32]) -> NDArray[np.floating]:
        # Decisions are made of the logits themselves, so that no temperature can change one.
        confidence = self.card.confidence
        return logits if confidence is None else logits.astype(np.float64) / confidence.temperature

    def _prediction(self, logits: NDArray[np.float32], scores: NDArray[np.float64]) -> Prediction:
        index = int(np.argmax(logits))
        label, score, confidence = self.card.class_names[index], float(scores[index]), self.card.confidence
        return Prediction(
            label=label,
            score=score,
            index=index,
            scores=tuple(scores.tolist()),
            labels=(label,),
            abstained=confidence is not None and confidence.abstains(score),
        )

    def _several(self, logits: NDArray[np.float32], scores: NDArray[np.float64], said: NDArray[np.bool_]) -> Prediction:
        names, order = self.card.class_names, np.argsort(-logits, kind="stable")
        index = int(order[0])
        return Prediction(
            label=names[index],
            score=float(scores[index]),
            index=index,
            scores=tuple(scores.tolist()),
            labels=tuple(names[place] for place in order if said[place]),
        )


def tensor_sha256(tensor: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a uint8 tensor's bytes: equal for equal preprocessing of the same image."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
