"""Teachers: who answers for the views of a batch, at once or out of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from edgebert.card import Task
from edgebert.errors import EdgebertError
from edgebert.models.features import FeatureTap, blocks
from edgebert.models.fusion import is_fusion
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import ImageBatches
from edgebert.train.feed import ViewBatch
from edgebert.train.losses import ensemble_logits
from edgebert.train.texts import blended_embeddings
from edgebert.train.views import network_views

Size = tuple[int, int]  # (height, width), pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a teacher says of a batch.

    Attributes:
        logits: float32 (batch, classes).
        tokens: block number -> float (batch, tokens, width), of the blocks that were asked for.
        grids: block number -> (rows, columns) of its tokens.
    """

    logits: Tensor
    tokens: dict[int, Tensor]
    grids: dict[int, Size]


class Teacher(Protocol):
    """Answers for views."""

    def __call__(self, batch: ViewBatch, /) -> Answers:
        """Return the answers for a batch, without gradients.

        Raises:
            EdgebertError: an answer is no finite number; the message names the images.
        """
        ...


class LiveTeacher:
    """One network or several that answer in every step, their probabilities averaged.

    Args:
        classifiers: with the same classes in the same order; put into evaluation mode.
        sizes: (height, width) of each one's input.
        task: of the data.
        accelerator: of the run; its mixed precision holds for the teachers too.
        images: of the split that is learned from.
        tapped: blocks whose tokens are wanted; of a single teacher only.
    """

    def __init__(
        self,
        classifiers: Sequence[PixelClassifier],
        sizes: Sequence[Size],
        *,
        task: Task,
        accelerator: Accelerator,
        images: ImageBatches,
        tapped: Sequence[int] = (),
    ) -> None:
        assert len(classifiers) == 1 or not tapped
        self.classifiers = [
            classifier.eval().requires_grad_(False).to(accelerator.device) for classifier in classifiers
        ]
        self._sizes, self._accelerator, self._images = sizes, accelerator, images
        self._task: Task = task
        self._tapped = tuple(tapped)

    def __call__(self, batch: ViewBatch) -> Answers:
        with torch.no_grad(), self._accelerator.autocast():
            if self._tapped:
                with FeatureTap(self.classifiers[0].model, self._tapped) as tap:
                    logits = self._logits(self.classifiers[0], self._sizes[0], batch)
                answers = Answers(logits=logits, tokens=dict(tap.features), grids=dict(tap.grid))
            else:
                each = [
                    self._logits(classifier, size, batch)
                    for classifier, size in zip(self.classifiers, self._sizes, strict=True)
                ]
                logits = each[0] if len(each) == 1 else ensemble_logits(each, task=self._task)
                answers = Answers(logits=logits, tokens={}, grids={})
        check_answers(answers.logits, batch, self._images)
        return answers

    def _logits(self, classifier: PixelClassifier, size: Size, batch: ViewBatch) -> Tensor:
        text = blended_embeddings(classifier.model, batch, self._images) if is_fusion(classifier.model) else None
        logits: Tensor = classifier(network_views(batch.views, height=size[0], width=size[1]), text)
        return logits.float()


def check_answers(logits: Tensor, batch: ViewBatch, images: ImageBatches) -> None:
    """Refuse answers that are no finite numbers.

    Raises:
        EdgebertError: with the images of the batch that got one.
    """
    finite = torch.isfinite(logits).all(dim=1).cpu()
    if bool(finite.all()):
        return
    wrong = [images.name_of(int(position)) for position in batch.positions[~finite.numpy()]]
    listed = ", ".join(f"`{name}`" for name in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
    raise EdgebertError(
        f"the teacher answers with NaN or infinity for {len(wrong)} of {len(finite)} images of a batch "
        f"(view {batch.bank}): {listed}",
        expected="finite logits",
        hint="look at the teacher with `edgebert bench TEACHER --data DATA`, or use --mixed-precision no",
    )


def last_block(classifier: PixelClassifier) -> int:
    """Return the number of a network's last block."""
    return len(blocks(classifier.model)) - 1
