"""Rounding to int8 and back, with gradients for what is rounded and for the scale: LSQ.

Esser et al. 2020, "Learned step size quantization" (arXiv 1902.08153), equations 1 to 3 and section 2.2: gradients pass a
rounding as if it were not there and stop where a value is clipped, and that of a scale is weighed by 1 / sqrt(N Q), N the
number of values and Q the largest step.

>>> quantizer = FakeQuantizer(torch.tensor(0.5), highest=127)
>>> quantizer(torch.tensor([0.3, 100.0])).tolist()
[0.5, 63.5]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from edgebert.export.rules import MAX_SCALE, MIN_SCALE


class FakeQuantizer(nn.Module):
    """Computes what a Q and a DQ of the emitted graph compute.

    What is learned is the logarithm of how much a scale has grown since the start: a scale stays positive, a step of the
    optimiser is a share of it, and before the first step it is the table's to the last bit.

    Args:
        scale: float32 () or (channels,), above 0.
        lowest: step at which values are clipped; -128 for an activation, as QuantizeLinear does, -127 for a weight.
        highest: likewise.
        axis: which side of the values counts the channels; None for one scale.
        learned: whether the scale has a gradient.
    """

    start: Tensor

    def __init__(
        self, scale: Tensor, *, lowest: int = -128, highest: int = 127, axis: int | None = None, learned: bool = True
    ) -> None:
        super().__init__()
        self.register_buffer("start", scale.clamp(MIN_SCALE, MAX_SCALE))
        self.growth = nn.Parameter(torch.zeros_like(scale), requires_grad=learned)  # logarithmic
        self._lowest, self._highest, self._axis = lowest, highest, axis

    def scale(self) -> Tensor:
        """Return the scale as it is now, float32 of the shape it was given in."""
        return (self.start * self.growth.exp()).clamp(MIN_SCALE, MAX_SCALE)

    def forward(self, values: Tensor) -> Tensor:
        """Return float32 values of the same shape, each a whole number of steps."""
        scale = self.scale()
        if self._axis is None:
            count = values.numel() // max(1, len(values)) if values.ndim else 1  # of one image
        else:
            count = values.numel() // len(scale)
            shape = [1] * values.ndim
            shape[self._axis] = -1
            scale = scale.reshape(shape)
        weight = 1.0 / math.sqrt(max(1, count) * self._highest)
        rounded: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]  # torch has no types here
            values, scale, self._lowest, self._highest, weight
        )
        return rounded


class _Rounded(torch.autograd.Function):
    """One pass forward and one back: composed of single operators, it would keep six tensors of the size of the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, lowest: int, highest: int, weight: float) -> Tensor:
        steps = values / scale
        ctx.save_for_backward(steps, scale)
        ctx.lowest, ctx.highest, ctx.weight = lowest, highest, weight
        return steps.round().clamp_(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (gradient,) = gradients
        steps, scale = ctx.saved_tensors
        inside = (steps >= ctx.lowest) & (steps <= ctx.highest)
        passed = gradient * inside
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None, None
        slope = steps.round().clamp_(ctx.lowest, ctx.highest).sub_(steps * inside).mul_(gradient)
        return passed, slope.sum_to_size(scale.shape) * ctx.weight, None, None, None
