"""The three steps from an image to an answer. `Classifier` runs them, and `bench` times these same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.card import ModelCard
from edgebert.errors import EdgebertError
from edgebert.preprocess import ImageSource, load_image
from edgebert.runtime.runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An answer.

    Attributes:
        label: class name.
        score: softmax probability of that class, in [0, 1]; not calibrated.
        index: of the class in `Classifier.class_names`.
        scores: softmax probabilities of all classes, in the order of `Classifier.class_names`.
    """

    label: str
    score: float
    index: int
    scores: tuple[float, ...]


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
        return [self._prediction(row) for row in softmax(logits)]

    def _prediction(self, scores: NDArray[np.float64]) -> Prediction:
        index = int(np.argmax(scores))
        return Prediction(
            label=self.card.class_names[index], score=float(scores[index]), index=index, scores=tuple(scores.tolist())
        )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax over the last axis in float64: exp(x - max) / sum(exp(x - max)), which cannot overflow."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def tensor_sha256(tensor: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a uint8 tensor's bytes: equal for equal preprocessing of the same image."""
    return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()
