"""How a run went: the training loss and the validation score of each epoch.

>>> Tally().plus(0.5, 1.0, 10).plus(1.5, 0.0, 10)
Tally(images=20.0, loss=20.0, right=10.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch.

    Attributes:
        loss: of training, the mean over the epoch's images, each at the moment it was seen.
        right: share of right decisions on the views, likewise; against the teacher where there are no labels.
        val_score: of the validation split, see `edgebert.train.evaluation.Evaluation`.
        val_loss: of the validation split.
    """

    loss: float
    right: float
    val_score: float
    val_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Sums over the images of an epoch so far."""

    images: float = 0.0
    loss: float = 0.0
    right: float = 0.0

    def plus(self, loss: float, right: float, images: int) -> Tally:
        """Return the sums with a batch's means added."""
        return Tally(images=self.images + images, loss=self.loss + loss * images, right=self.right + right * images)

    def over(self, accelerator: Accelerator) -> Tally:
        """Return the sums over all processes that train together.

        Where an epoch was resumed in its midst, the other processes count from there: only the main one's sums are saved.
        """
        if accelerator.num_processes == 1:
            return self
        sums = torch.tensor([self.images, self.loss, self.right], dtype=torch.float64, device=accelerator.device)
        reduced = accelerator.reduce(sums, reduction="sum")
        assert isinstance(reduced, torch.Tensor)
        images, loss, right = reduced.tolist()
        return Tally(images=images, loss=loss, right=right)
