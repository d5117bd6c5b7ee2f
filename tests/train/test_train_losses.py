"""The losses against formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert.train.losses import distillation_loss, label_loss, student_loss


def _softmax(logits: Tensor) -> NDArray[np.float64]:
    powers = np.exp(logits.numpy() - logits.numpy().max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(8, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    targets = functional.one_hot(torch.arange(8) % 5).double()
    return student, teacher, targets


def test_label_loss_is_cross_entropy(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, targets = logits
    by_hand = -(targets.numpy() * np.log(_softmax(student))).sum(axis=1).mean()
    assert float(label_loss(student, targets.float())) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_distillation_loss_is_scaled_relative_entropy(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, teacher, _ = logits
    p = _softmax(teacher / temperature)
    q = _softmax(student / temperature)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature=temperature)) == pytest.approx(by_hand, rel=1e-4)


def test_distillation_loss_has_the_gradient_of_matched_logits_when_temperature_is_high(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    # Hinton et al. 2015, section 2.1, equation 4: at high T the gradient of T^2 KL tends to (z - v) / N, logits centred.
    student, teacher, _ = logits
    z, v = (values - values.mean(dim=1, keepdim=True) for values in (student, teacher))
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(leaf, v, temperature=500.0), leaf)
    expected = ((z - v) / z.shape[1] / z.shape[0]).numpy()
    np.testing.assert_allclose(gradient.numpy(), expected, atol=2e-3)


def test_distillation_loss_sends_no_gradient_into_the_teacher(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = logits
    loss = distillation_loss(student.requires_grad_(), teacher.requires_grad_(), temperature=2.0)
    towards_student, towards_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert towards_student is not None
    assert towards_teacher is None


def test_student_loss_mixes_both_by_alpha(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, targets = logits
    both = float(student_loss(student, teacher, targets.float(), temperature=4.0, alpha=0.9))
    distilled = float(distillation_loss(student, teacher, temperature=4.0))
    assert both == pytest.approx(0.9 * distilled + 0.1 * float(label_loss(student, targets.float())), rel=1e-6)


def test_student_loss_ignores_the_teacher_when_alpha_is_0(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, targets = logits
    wild = torch.full_like(student, torch.inf)
    loss = student_loss(student, wild, targets.float(), temperature=4.0, alpha=0.0)
    assert float(loss) == float(label_loss(student, targets.float()))


def test_student_loss_ignores_the_labels_when_alpha_is_1(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, targets = logits
    losses = {
        float(student_loss(student, teacher, labels.float(), temperature=4.0, alpha=1.0))
        for labels in (targets, targets.flip(1))
    }
    assert losses == {float(distillation_loss(student, teacher, temperature=4.0))}
