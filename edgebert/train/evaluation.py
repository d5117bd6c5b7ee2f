"""How well a classifier does on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from edgebert.metrics import ClassRow, macro_f1, per_class, top1
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import ImageBatches

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Accuracy on the validation split.

    Attributes:
        top1: share of right decisions, in [0, 1].
        macro_f1: mean of the classes' F1 scores, in [0, 1].
        loss: mean cross-entropy, in nats.
        rows: the table by class.
    """

    top1: float
    macro_f1: float
    loss: float
    rows: tuple[ClassRow, ...]

    def metrics(self) -> Mapping[str, float]:
        """Return the numbers as an artefact stores them."""
        return {"val_top1": self.top1, "val_macro_f1": self.macro_f1, "val_loss": self.loss}

    def better_than(self, other: tuple[float, float] | None) -> bool:
        """Say whether this beats (top-1, loss): by top-1, by loss where that is equal. Equal in both is not better."""
        return other is None or (self.top1, -self.loss) > (other[0], -other[1])


@torch.inference_mode()
def evaluated(classifier: PixelClassifier, images: ImageBatches, class_names: tuple[str, ...]) -> Evaluation:
    """Evaluate in full precision, with dropout off, on the pixels that every later stage makes of the same images."""
    device = classifier.mean.device
    classifier.eval()
    logits = torch.cat([classifier(pixels.to(device)).cpu() for pixels, _ in images.in_order(_BATCH_SIZE)])
    predictions = logits.argmax(dim=1).numpy().astype(np.int64)
    return Evaluation(
        top1=top1(images.labels, predictions),
        macro_f1=macro_f1(images.labels, predictions, len(class_names)),
        loss=float(functional.cross_entropy(logits.double(), torch.from_numpy(images.labels))),
        rows=per_class(images.labels, predictions, class_names),
    )
