"""The two losses: cross-entropy against labels, and distillation against a teacher's logits.

>>> import torch
>>> logits = torch.tensor([[2.0, -1.0]])
>>> float(distillation_loss(logits, logits, temperature=4.0))
0.0
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats.

    Args:
        logits: float (batch, classes).
        targets: float (batch, classes), the share of each class in each image; rows sum to 1.
    """
    return functional.cross_entropy(logits.float(), targets)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened distributions, the mean over the batch, in nats.

    The factor T^2 keeps the gradients' size when the temperature changes, as the softened gradients shrink with 1/T^2
    (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2).

    Args:
        student_logits: float (batch, classes).
        teacher_logits: float (batch, classes); no gradient flows into it.
        temperature: T, above 0.
    """
    student = functional.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def student_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """Return alpha * `distillation_loss` + (1 - alpha) * `label_loss`.

    Args:
        student_logits: float (batch, classes).
        teacher_logits: float (batch, classes), of the same views.
        targets: float (batch, classes), rows sum to 1.
        temperature: T, above 0.
        alpha: weight of the teacher, in [0, 1]; at 1 the labels play no part.
    """
    # A term of weight 0 is left out instead of multiplied, so that an infinity in it cannot turn the sum into NaN.
    if alpha == 0.0:
        return label_loss(student_logits, targets)
    distilled = distillation_loss(student_logits, teacher_logits, temperature=temperature)
    return distilled if alpha == 1.0 else alpha * distilled + (1.0 - alpha) * label_loss(student_logits, targets)
