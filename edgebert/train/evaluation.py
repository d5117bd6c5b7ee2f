"""How well a classifier does on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgebert.card import Task
from edgebert.metrics import (
    ClassRow,
    best_thresholds,
    macro_f1,
    mean_average_precision,
    multilabel_f1,
    multilabel_rows,
    per_class,
    top1,
)
from edgebert.models.fusion import is_fusion
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import ImageBatches
from edgebert.train.texts import text_embeddings

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy on the validation split.

    Attributes:
        score_name: `top1`, or `map` (mean average precision) where an image may have several labels; `error` of hidden
            pixels, counted below 0, for pre-training.
        score: what chooses the best epoch, the higher the better; in [0, 1] but for `error`.
        loss: mean over the images, in nats.
        others: further numbers by name.
        rows: the table by class; empty without classes.
        thresholds: for several labels: the probability from which each class is said, chosen on this split; else empty.
    """

    score_name: str
    score: float
    loss: float
    others: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[ClassRow, ...] = ()
    thresholds: tuple[float, ...] = ()

    def metrics(self) -> Mapping[str, float]:
        """Return the numbers as an artefact stores them."""
        numbers = {self.score_name: self.score, "loss": self.loss, **self.others}
        return {f"val_{name}": value for name, value in numbers.items()}

    def better_than(self, other: tuple[float, float] | None) -> bool:
        """Say whether this beats (score, loss): by score, by loss where that is equal. Equal in both is not better."""
        return other is None or (self.score, -self.loss) > (other[0], -other[1])


def evaluated(
    classifier: PixelClassifier, images: ImageBatches, class_names: tuple[str, ...], task: Task = "single-label"
) -> Evaluation:
    """Evaluate in full precision, with dropout off, on the pixels that every later stage makes of the same images."""
    logits = logits_of(classifier, images)
    targets = torch.from_numpy(images.targets(np.arange(len(images))))
    if task == "multi-label":
        return _of_several_labels(logits, targets, class_names)
    predictions = logits.argmax(dim=1).numpy().astype(np.int64)
    return Evaluation(
        score_name="top1",
        score=top1(images.labels, predictions),
        loss=float(functional.cross_entropy(logits.double(), torch.from_numpy(images.labels))),
        others={"macro_f1": macro_f1(images.labels, predictions, len(class_names))},
        rows=per_class(images.labels, predictions, class_names),
    )


@torch.inference_mode()
def logits_of(classifier: PixelClassifier, images: ImageBatches) -> torch.Tensor:
    """Return float32 (images, classes) logits of a split in its order, on the CPU."""
    device = classifier.mean.device
    classifier.eval()
    fusion = is_fusion(classifier.model)
    return torch.cat(
        [
            classifier(
                pixels.to(device), text_embeddings(classifier.model, images, positions) if fusion else None
            ).cpu()
            for positions, pixels in images.in_order(_BATCH_SIZE)
        ]
    )


def _of_several_labels(logits: torch.Tensor, targets: torch.Tensor, class_names: tuple[str, ...]) -> Evaluation:
    labels: NDArray[np.bool_] = targets.numpy() > 0.5
    probabilities = torch.sigmoid(logits.double()).numpy()
    thresholds = best_thresholds(labels, probabilities)
    decided = probabilities >= np.array(thresholds)
    micro, macro = multilabel_f1(labels, decided)
    return Evaluation(
        score_name="map",
        score=mean_average_precision(labels, probabilities),
        loss=float(functional.binary_cross_entropy_with_logits(logits.double(), targets.double())),
        others={"macro_f1": macro, "micro_f1": micro},
        rows=multilabel_rows(labels, decided, class_names),
        thresholds=thresholds,
    )
