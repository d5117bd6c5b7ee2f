"""What a batch is judged by: its labels, or its labels and a teacher. The loop knows neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgebert.models.pixels import PixelClassifier
from edgebert.train.augment import network_views
from edgebert.train.losses import label_loss, student_loss

Size = tuple[int, int]  # (height, width), pixels


class Objective(Protocol):
    """From views and targets to a loss."""

    def __call__(self, classifier: nn.Module, views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar to minimise, and the classifier's logits, float (batch, classes).

        Args:
            classifier: takes uint8 (batch, height, width, 3).
            views: float32 (batch, 3, height, width) in [0, 1].
            targets: float32 (batch, classes), rows sum to 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelObjective:
    """Cross-entropy against the labels."""

    size: Size

    def __call__(self, classifier: nn.Module, views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier(network_views(views, height=self.size[0], width=self.size[1]))
        return label_loss(logits, targets), logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherObjective:
    """Agreement with a teacher on the same views, and cross-entropy.

    Attributes:
        teacher: in evaluation mode, with as many classes in the same order.
        size: of the student's input.
        teacher_size: of the teacher's input.
        temperature: T.
        alpha: weight of the teacher.
    """

    teacher: PixelClassifier
    size: Size
    teacher_size: Size
    temperature: float
    alpha: float

    def __call__(self, classifier: nn.Module, views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier(network_views(views, height=self.size[0], width=self.size[1]))
        with torch.no_grad():
            answers = self.teacher(network_views(views, height=self.teacher_size[0], width=self.teacher_size[1]))
        loss = student_loss(logits, answers, targets, temperature=self.temperature, alpha=self.alpha)
        return loss, logits
