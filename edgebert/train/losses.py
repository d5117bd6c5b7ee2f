"""The terms of a loss: labels, a teacher's answers, and a teacher's features.

Each is a scalar, the mean over the batch, computed in float32, and finite for logits up to 10,000 either way.

For multi-label data, every class is a question of its own with two answers. What a batch loses is the mean over the classes
and not their sum: it then stays of the size of the other terms and under the same `clip_norm` however many classes there
are. AdamW does not notice the factor, so that learning rates carry over from single-label data.

>>> import torch
>>> logits = torch.tensor([[2.0, -1.0]])
>>> float(distillation_loss(logits, logits, temperature=4.0))
0.0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert.card import Task

ClassWeighting = Literal["none", "inverse", "effective"]

_SHORTEST = 1e-6  # of a vector that is normalised: one of length 0 has no direction, and its gradient stays finite


def label_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    task: Task = "single-label",
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy, for multi-label data the mean over the classes of the binary one, in nats.

    Args:
        logits: float (batch, classes).
        targets: float (batch, classes): the share of each class in each image; rows sum to 1 for single-label data, every
            number is in [0, 1] for multi-label data.
        task: of the data.
        class_weights: float (classes,) that each class's part is multiplied by; the mean over the classes of multi-label
            data is weighted by them. None for the same for all.
        smoothing: share of each target that is spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567,
            section 7), for multi-label data over the two answers.
    """
    if task == "single-label":
        # Not divided by the batch's own weights, so that an image counts the same in any batch.
        return functional.cross_entropy(logits.float(), targets, weight=class_weights, label_smoothing=smoothing)
    softened = (1.0 - smoothing) * targets + 0.5 * smoothing
    terms = functional.binary_cross_entropy_with_logits(logits.float(), softened, reduction="none")
    if class_weights is None:
        return terms.mean()
    return (terms * (class_weights / class_weights.mean())).mean()


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, task: Task = "single-label"
) -> Tensor:
    """Return T^2 * KL(teacher || student) of the softened distributions, in nats.

    The factor T^2 keeps the gradients' size when the temperature changes, as the softened gradients shrink with 1/T^2
    (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2). For multi-label data the
    distributions are those of each class's two answers, and the result is the mean over the classes.

    Args:
        student_logits: float (batch, classes).
        teacher_logits: float (batch, classes); no gradient flows into it.
        temperature: T, above 0.
        task: of the data.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.detach().float() / temperature
    if task == "single-label":
        logs, wanted = functional.log_softmax(student, dim=1), functional.log_softmax(teacher, dim=1)
        return temperature**2 * functional.kl_div(logs, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * (_half_divergence(student, teacher) + _half_divergence(-student, -teacher)).mean()


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor, *, task: Task = "single-label") -> Tensor:
    """Return the `label_loss` against what the teacher decides, in nats.

    Hard-label distillation: Touvron et al. 2021 (DeiT, arXiv 2012.12877, equation 3). For multi-label data the teacher
    decides for the more probable answer of each class.

    Args:
        student_logits: float (batch, classes).
        teacher_logits: float (batch, classes).
        task: of the data.
    """
    if task == "single-label":
        return functional.cross_entropy(student_logits.float(), teacher_logits.argmax(dim=1))
    return label_loss(student_logits, (teacher_logits > 0.0).float(), task=task)


def token_loss(student_tokens: Tensor, teacher_tokens: Tensor) -> Tensor:
    """Return 1 - cosine, the mean over all tokens, in [0, 2].

    Args:
        student_tokens: float (batch, tokens, width), lifted to the teacher's width.
        teacher_tokens: float (batch, tokens, width), on the student's grid; no gradient flows into it.
    """
    return _one_minus_cosine(student_tokens, teacher_tokens)


def pooled_loss(student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Return 1 - cosine, the mean over the batch, in [0, 2].

    Args:
        student_pooled: float (batch, width), lifted to the teacher's width.
        teacher_pooled: float (batch, width); no gradient flows into it.
    """
    return _one_minus_cosine(student_pooled, teacher_pooled)


def relation_loss(student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Return how differently student and teacher see which images of the batch are alike.

    The mean squared difference of the Gram matrices, their rows normalised: Tung, Mori 2019, "Similarity-preserving
    knowledge distillation" (arXiv 1907.09682, equations 2 to 4). A batch of one image gives 0.

    Args:
        student_pooled: float (batch, student's width).
        teacher_pooled: float (batch, teacher's width); no gradient flows into it.
    """
    return (_relations(student_pooled) - _relations(teacher_pooled.detach())).square().mean()


def ensemble_logits(each: Sequence[Tensor], *, task: Task) -> Tensor:
    """Return logits, float32 (batch, classes), whose probabilities are the mean of several networks'.

    Args:
        each: float (batch, classes) of every network, at least one.
        task: of the data.
    """
    logits = torch.stack([answers.float() for answers in each])  # (networks, batch, classes)
    if task == "single-label":
        return functional.log_softmax(logits, dim=2).logsumexp(dim=0) - math.log(len(each))
    # The number of networks divides both probabilities, and so cancels out of their ratio.
    return functional.logsigmoid(logits).logsumexp(dim=0) - functional.logsigmoid(-logits).logsumexp(dim=0)


def class_weights(counts: NDArray[np.int64], kind: ClassWeighting, *, beta: float = 0.999) -> Tensor:
    """Return the weight of each class in the label loss, float32 (classes,), whose mean over all training images is 1.

    Args:
        counts: int (classes,), training images of each class; a class without any is weighed as one with a single image.
        kind: `none` for 1, `inverse` for 1 / count, `effective` for 1 / effective number, (1 - beta^count) / (1 - beta):
            Cui et al. 2019, "Class-balanced loss based on effective number of samples" (arXiv 1901.05555, equation 6).
        beta: for `effective`, in [0, 1): 0 is as `none`, and the nearer to 1, the more it is as `inverse`; 0.999 is one of
            the four values that the paper compares.
    """
    images = np.maximum(counts, 1).astype(np.float64)
    if kind == "none":
        weights = np.ones_like(images)
    elif kind == "inverse":
        weights = 1.0 / images
    else:
        weights = (1.0 - beta) / (1.0 - beta**images)
    weights /= (weights * images).sum() / images.sum()
    return torch.from_numpy(weights.astype(np.float32))


def _half_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return p log(p / q) for p and q the sigmoids of teacher and student."""
    return torch.sigmoid(teacher) * (functional.logsigmoid(teacher) - functional.logsigmoid(student))


def _one_minus_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    lifted, wanted = student.float(), teacher.detach().float()
    directions = (
        functional.normalize(lifted, dim=-1, eps=_SHORTEST),
        functional.normalize(wanted, dim=-1, eps=_SHORTEST),
    )
    return (1.0 - (directions[0] * directions[1]).sum(dim=-1)).mean()


def _relations(pooled: Tensor) -> Tensor:
    with torch.autocast(pooled.device.type, enabled=False):  # a product of matrices would be done in half precision
        return functional.normalize(pooled.float() @ pooled.float().T, dim=1, eps=_SHORTEST)  # (batch, batch)
