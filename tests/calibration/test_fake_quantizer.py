"""Rounding in training: what goes forward is what the Q/DQ graph computes, what comes back is LSQ's gradient."""

from __future__ import annotations

import math

import pytest
import torch

from edgebert.calibration.fake_quantizer import FakeQuantizer
from edgebert.export.rules import MIN_SCALE


def test_values_are_rounded_half_to_even_and_clipped_as_quantize_linear_does() -> None:
    quantizer = FakeQuantizer(torch.tensor(0.5))
    values = torch.tensor([0.25, 0.75, -0.25, -0.75, 63.4, 90.0, -90.0])
    assert quantizer(values).tolist() == [0.0, 1.0, 0.0, -1.0, 63.5, 63.5, -64.0]


def test_each_channel_has_its_scale() -> None:
    quantizer = FakeQuantizer(torch.tensor([1.0, 0.25]), lowest=-127, axis=-1)
    assert quantizer(torch.tensor([[0.6, 0.6], [-200.0, -200.0]])).tolist() == [[1.0, 0.5], [-127.0, -31.75]]


def test_gradient_passes_the_rounding_and_stops_where_values_are_clipped() -> None:
    values = torch.tensor([0.3, 200.0, -200.0], requires_grad=True)
    torch.autograd.backward(FakeQuantizer(torch.tensor(1.0))(values).sum())
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 0.0]


def test_gradient_of_a_scale_is_that_of_the_paper() -> None:
    quantizer = FakeQuantizer(torch.tensor(2.0))
    values = torch.tensor([[0.6, 3.2, 1000.0, -1000.0]])  # steps of 0.3, 1.6, and one beyond either end
    torch.autograd.backward(quantizer(values).sum())
    # Esser et al. 2020, equation 3: round(v/s) - v/s inside, the clipping step outside; the logarithm multiplies by the scale.
    expected = 2.0 * ((0 - 0.3) + (2 - 1.6) + 127 - 128) / math.sqrt(4 * 127)
    assert quantizer.growth.grad is not None
    assert float(quantizer.growth.grad) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_channels_is_not_mixed() -> None:
    quantizer = FakeQuantizer(torch.tensor([1.0, 1.0]), axis=0)
    torch.autograd.backward(quantizer(torch.tensor([[0.3, 0.3], [2.0, 2.0]])).sum())
    assert quantizer.growth.grad is not None
    first, second = quantizer.growth.grad.tolist()
    assert first == pytest.approx(-0.6 / math.sqrt(2 * 127), rel=1e-5)
    assert second == 0.0


def test_frozen_scale_has_no_gradient() -> None:
    quantizer = FakeQuantizer(torch.tensor(1.0), learned=False)
    values = torch.tensor([0.3], requires_grad=True)
    torch.autograd.backward(quantizer(values).sum())
    assert quantizer.growth.grad is None


def test_scale_stays_within_what_fp16_holds() -> None:
    quantizer = FakeQuantizer(torch.tensor(1e-30))
    assert float(quantizer.scale().detach()) == MIN_SCALE
