"""The convolution stem: from an image to a grid of tokens in small steps, each halving both edges.

Transformers that start with a few 3x3 convolutions train faster and better than with one large patch (Xiao et al. 2021,
"Early Convolutions Help Transformers See Better", arXiv 2106.14881; compression.md, section 4: +1 to +5 points on small data).
"""

from __future__ import annotations

from torch import nn

_FULL_RESOLUTION_SIDE = 64  # up to this side, one more block runs before the first halving


class StemBlock(nn.Sequential):
    """Convolution 3x3, batch norm, ReLU; stride 2 halves both edges, rounding up. The batch norm folds at export."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )


def stem_channels(image_size: tuple[int, int], hidden_size: int, halvings: int) -> tuple[int, ...]:
    """Return the output channels of each block: doubling up to `hidden_size`, never below 8.

    Small images get one block before the first halving, where a pixel is much of the picture.

    >>> stem_channels((8, 8), 32, 1), stem_channels((224, 224), 256, 5)
    ((16, 32), (16, 32, 64, 128, 256))
    """
    blocks = halvings + (1 if max(image_size) <= _FULL_RESOLUTION_SIDE else 0)
    narrower = (max(8, hidden_size >> (blocks - 1 - index)) for index in range(blocks - 1))
    return (*narrower, hidden_size)


def stem_blocks(channels: tuple[int, ...], halvings: int) -> list[StemBlock]:
    """Return the blocks for RGB images: the last `halvings` of them halve both edges."""
    inputs = (3, *channels)
    first = len(channels) - halvings  # the first block that halves
    return [
        StemBlock(inputs[index], inputs[index + 1], stride=2 if index >= first else 1) for index in range(len(channels))
    ]
