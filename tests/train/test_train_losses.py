"""The losses against formulas written out in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert.card import Task
from edgebert.train.losses import (
    ClassWeighting,
    class_weights,
    distillation_loss,
    ensemble_logits,
    hard_label_loss,
    label_loss,
    pooled_loss,
    relation_loss,
    token_loss,
)

_TASKS: tuple[Task, ...] = ("single-label", "multi-label")


def _softmax(logits: Tensor) -> NDArray[np.float64]:
    powers = np.exp(logits.numpy() - logits.numpy().max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _sigmoid(logits: Tensor) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits.numpy()))
    return shares


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(8, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    targets = functional.one_hot(torch.arange(8) % 5).double()
    return student, teacher, targets


@pytest.fixture
def many_labels() -> Tensor:
    return (torch.rand(8, 5, generator=torch.Generator().manual_seed(4)) < 0.4).double()


def test_label_loss_is_cross_entropy(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, targets = logits
    by_hand = -(targets.numpy() * np.log(_softmax(student))).sum(axis=1).mean()
    assert float(label_loss(student, targets.float())) == pytest.approx(by_hand, rel=1e-5)


def test_label_loss_is_the_mean_over_classes_of_binary_cross_entropy_when_multi_label(
    logits: tuple[Tensor, Tensor, Tensor], many_labels: Tensor
) -> None:
    p, t = _sigmoid(logits[0]), many_labels.numpy()
    by_hand = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert float(label_loss(logits[0], many_labels.float(), task="multi-label")) == pytest.approx(by_hand, rel=1e-5)


def test_label_loss_weighs_each_image_by_its_class(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, _, targets = logits
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    each = -(targets.numpy() * np.log(_softmax(student))).sum(axis=1) * weights.numpy()[targets.numpy().argmax(axis=1)]
    weighed = label_loss(student, targets.float(), class_weights=weights)
    assert float(weighed) == pytest.approx(each.mean(), rel=1e-5)


def test_label_loss_keeps_its_size_when_multi_label_classes_are_weighed(
    logits: tuple[Tensor, Tensor, Tensor], many_labels: Tensor
) -> None:
    student, targets = logits[0], many_labels.float()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    p, t, w = _sigmoid(student), many_labels.numpy(), weights.numpy()
    by_hand = np.average(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axis=0), weights=w)
    weighed = label_loss(student, targets, task="multi-label", class_weights=weights)
    assert float(weighed) == pytest.approx(by_hand, rel=1e-5)
    doubled = label_loss(student, targets, task="multi-label", class_weights=2 * weights)
    assert float(doubled) == pytest.approx(float(weighed), rel=1e-6)


@pytest.mark.parametrize(("task", "others"), [("single-label", 0.04), ("multi-label", 0.1)])
def test_label_loss_spreads_its_smoothing_evenly(
    logits: tuple[Tensor, Tensor, Tensor], task: Task, others: float
) -> None:
    student, _, targets = logits
    by_hand = 0.8 * targets.float() + others
    smooth = label_loss(student, targets.float(), task=task, smoothing=0.2)
    assert float(smooth) == pytest.approx(float(label_loss(student, by_hand, task=task)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_distillation_loss_is_scaled_relative_entropy(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, teacher, _ = logits
    p = _softmax(teacher / temperature)
    q = _softmax(student / temperature)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature=temperature)) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_distillation_loss_compares_each_class_when_multi_label(
    logits: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, teacher, _ = logits
    p, q = _sigmoid(teacher / temperature), _sigmoid(student / temperature)
    by_hand = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    loss = distillation_loss(student, teacher, temperature=temperature, task="multi-label")
    assert float(loss) == pytest.approx(by_hand, rel=1e-4)


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


@pytest.mark.parametrize("task", _TASKS)
def test_distillation_loss_sends_no_gradient_into_the_teacher(
    logits: tuple[Tensor, Tensor, Tensor], task: Task
) -> None:
    student, teacher, _ = logits
    loss = distillation_loss(student.requires_grad_(), teacher.requires_grad_(), temperature=2.0, task=task)
    towards_student, towards_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert towards_student is not None
    assert towards_teacher is None


def test_hard_label_loss_takes_the_teacher_s_class(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, _ = logits
    decided = teacher.numpy().argmax(axis=1)
    by_hand = -np.log(_softmax(student)[np.arange(8), decided]).mean()
    assert float(hard_label_loss(student, teacher)) == pytest.approx(by_hand, rel=1e-5)


def test_hard_label_loss_takes_the_teacher_s_answer_for_each_class_when_multi_label(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    student, teacher, _ = logits
    p = _sigmoid(student)
    by_hand = -np.log(np.where(_sigmoid(teacher) > 0.5, p, 1 - p)).mean()
    assert float(hard_label_loss(student, teacher, task="multi-label")) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(("loss", "shape"), [(token_loss, (3, 7, 6)), (pooled_loss, (3, 6))])
def test_cosine_losses_are_the_mean_of_one_minus_cosine(
    loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    a, b = student.numpy(), teacher.numpy()
    cosine = (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert float(loss(student, teacher)) == pytest.approx(1 - cosine.mean(), rel=1e-5)
    assert float(loss(student, 3 * student)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(student, -student)) == pytest.approx(2.0, rel=1e-6)


def test_relation_loss_compares_which_images_are_alike() -> None:
    generator = torch.Generator().manual_seed(6)
    student, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 9, generator=generator)
    grams = [values.numpy() @ values.numpy().T for values in (student, teacher)]
    a, b = (gram / np.linalg.norm(gram, axis=1, keepdims=True) for gram in grams)
    assert float(relation_loss(student, teacher)) == pytest.approx(((a - b) ** 2).sum() / 25, rel=1e-4)
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    assert float(relation_loss(student @ turned, student)) == pytest.approx(0.0, abs=1e-6)


def test_relation_loss_is_0_when_the_batch_is_one_image() -> None:
    assert float(relation_loss(torch.ones(1, 4), -torch.ones(1, 2))) == pytest.approx(0.0, abs=1e-7)


def test_relation_loss_is_in_full_precision_when_the_rest_is_not() -> None:
    generator = torch.Generator().manual_seed(7)
    student, teacher = torch.randn(5, 64, generator=generator), torch.randn(5, 64, generator=generator)
    expected = relation_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relation_loss(student, teacher), expected)


def test_ensemble_logits_have_the_mean_probabilities(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    first, second, _ = logits
    together = ensemble_logits([first, second], task="single-label").double()
    np.testing.assert_allclose(_softmax(together), (_softmax(first) + _softmax(second)) / 2, atol=1e-6)


def test_ensemble_logits_have_the_mean_probabilities_when_multi_label(
    logits: tuple[Tensor, Tensor, Tensor],
) -> None:
    first, second, _ = logits
    together = ensemble_logits([first, second, second], task="multi-label").double()
    np.testing.assert_allclose(_sigmoid(together), (_sigmoid(first) + 2 * _sigmoid(second)) / 3, atol=1e-6)


@pytest.mark.parametrize("task", _TASKS)
def test_ensemble_logits_of_one_network_answer_as_it_does(logits: tuple[Tensor, Tensor, Tensor], task: Task) -> None:
    alone = ensemble_logits([logits[0]], task=task).double()
    answers = _softmax if task == "single-label" else _sigmoid
    np.testing.assert_allclose(answers(alone), answers(logits[0]), atol=1e-6)


@pytest.mark.parametrize("task", _TASKS)
def test_losses_and_their_gradients_are_finite_when_logits_are_huge(task: Task) -> None:
    huge = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]])
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for temperature in (1.0, 4.0):
        student = (-huge.flip(1)).requires_grad_()
        terms = [
            label_loss(student, targets, task=task, smoothing=0.1),
            distillation_loss(student, huge, temperature=temperature, task=task),
            hard_label_loss(student, huge, task=task),
            pooled_loss(student, torch.zeros(3, 3)),
            relation_loss(student, huge),
        ]
        (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), student)
        assert all(bool(torch.isfinite(term)) for term in terms)
        assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(ensemble_logits([huge, -huge], task=task)).all())


def test_pooled_loss_has_a_finite_gradient_when_an_image_has_no_features() -> None:
    nothing = torch.zeros(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(pooled_loss(nothing, torch.ones(2, 4)), nothing)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("kind", ["none", "inverse", "effective"])
def test_class_weights_have_mean_1_over_the_images(kind: ClassWeighting) -> None:
    counts = np.array([9_000, 400, 3])
    weights = class_weights(counts, kind).double().numpy()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0, rel=1e-5)


def test_class_weights_follow_their_formulas() -> None:
    counts = np.array([200, 50])
    assert class_weights(counts, "none").tolist() == [1.0, 1.0]
    few_over_many = [
        float(weights[1] / weights[0])
        for weights in (
            class_weights(counts, "inverse"),
            class_weights(counts, "effective", beta=0.99),
            class_weights(counts, "effective", beta=0.0),
        )
    ]
    assert few_over_many == pytest.approx([4.0, (1 - 0.99**200) / (1 - 0.99**50), 1.0], rel=1e-5)


def test_class_weights_are_finite_when_a_class_has_no_images() -> None:
    weights = class_weights(np.array([10, 0]), "inverse")
    assert bool(torch.isfinite(weights).all())
