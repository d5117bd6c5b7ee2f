"""Changes of colour, each image by its own factor.

Images are float32 (batch, 3, height, width) in [0, 1] and stay so; factors are float32 (batch, 1, 1, 1).

Two of kornia's operations are replaced by lines of our own: a mean over an image is added up in another order when the
image stands alone and two threads share it (seen on a CPU: 6e-8 apart), and a convolution may be another algorithm for
another batch. What is left gives an image the same bits in any batch: single products and sums, comparisons, and sums of
whole numbers.

>>> import torch
>>> pixels = torch.tensor([0.2, 0.4, 0.6]).reshape(1, 3, 1, 1)
>>> brightness(pixels, torch.full((1, 1, 1, 1), 2.0)).flatten()
tensor([0.4000, 0.8000, 1.0000])
"""

from __future__ import annotations

import math

import torch
from kornia import color, enhance
from torch import Tensor
from torch.nn import functional

_FIXED_POINT = 65536.0  # levels of a mean's terms: a sum of whole numbers has no order


def brightness(views: Tensor, factors: Tensor) -> Tensor:
    """Multiply every pixel; 1 changes nothing, 0 is black."""
    return _clamped(enhance.adjust_brightness_accumulative(views, factors, clip_output=False))


def contrast(views: Tensor, factors: Tensor) -> Tensor:
    """Move every pixel away from the image's mean grey; 1 changes nothing, 0 is that grey."""
    return _clamped(factors * views + (1.0 - factors) * means(color.rgb_to_grayscale(views)))


def saturation(views: Tensor, factors: Tensor) -> Tensor:
    """Move every pixel away from its own grey; 1 changes nothing, 0 is the image in grey."""
    return _clamped(enhance.adjust_saturation_with_gray_subtraction(views, factors))


def hue(views: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour circle; 0 changes nothing, 1 is a whole turn."""
    return _clamped(enhance.adjust_hue(views, turns * (2.0 * math.pi)))


def sharpness(views: Tensor, factors: Tensor) -> Tensor:
    """Move every pixel away from a smoothed one; 1 changes nothing, 0 is smooth. The outermost pixels stay.

    The smoothing is Pillow's `ImageFilter.SMOOTH`: ones around a 5, over 13.
    """
    height, width = views.shape[2:]
    if height < 3 or width < 3:
        return views
    parts = [views[:, :, row : row + height - 2, left : left + width - 2] for row in range(3) for left in range(3)]
    inner = parts[4]
    total = 4.0 * inner
    for part in parts:
        total = total + part
    changed = factors * inner + (1.0 - factors) * (total / 13.0)
    outermost = torch.ones(height, width, dtype=torch.bool, device=views.device)
    outermost[1:-1, 1:-1] = False
    return _clamped(torch.where(outermost, views, functional.pad(changed, (1, 1, 1, 1))))


def stretched(views: Tensor) -> Tensor:
    """Stretch each channel to the whole range (autocontrast); a channel of one value stays."""
    lowest, highest = views.amin(dim=(2, 3), keepdim=True), views.amax(dim=(2, 3), keepdim=True)
    flat = highest == lowest
    return torch.where(flat, views, _clamped((views - lowest) / torch.where(flat, 1.0, highest - lowest)))


def equalized(views: Tensor) -> Tensor:
    """Spread each channel's levels evenly."""
    return _clamped(enhance.equalize(views))


def posterized(views: Tensor, *, bits: int) -> Tensor:
    """Keep the upper bits of the 8 of each channel."""
    step = float(2 ** (8 - bits))
    return torch.floor(torch.round(views * 255.0) / step) * step / 255.0


def solarized(views: Tensor, *, threshold: float) -> Tensor:
    """Invert what is at least as bright as the threshold."""
    inverted: Tensor = enhance.solarize(views, threshold)
    return inverted


def means(values: Tensor) -> Tensor:
    """Return the mean of each channel, float32 (batch, channels, 1, 1), for values in [0, 1]."""
    total = torch.round(values * _FIXED_POINT).to(torch.int64).sum(dim=(2, 3), keepdim=True)
    return (total.double() / (_FIXED_POINT * values.shape[2] * values.shape[3])).float()


def _clamped(views: Tensor) -> Tensor:
    return views.clamp(0.0, 1.0)
