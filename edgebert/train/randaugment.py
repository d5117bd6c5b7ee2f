"""RandAugment: two operations of one strength for each image, drawn out of fourteen.

Cubuk et al. 2020 (arXiv 1909.13719, section 3): the fourteen operations, N = 2, each drawn evenly and with replacement.
The largest change of each is that of torchvision's `RandAugment`, and the strength its default, 9 of 30. Which way an
operation goes, where it has two, is drawn for each image.

Its moves are maps (`edgebert.train.warps`), chained with all others into one resampling; its colours come after that.

>>> chosen = choose(seed=0, bank=0, keys=np.array([1, 2], np.uint64))
>>> [[OPERATIONS[number] for number in pair] for pair in chosen.operations]
[['shear-y', 'color'], ['contrast', 'identity']]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert.train import colours
from edgebert.train.draws import uniforms
from edgebert.train.warps import Maps, identity, rotated, sheared, shifted

_OPERATIONS = 2
_STRENGTH = 9 / 30

_DEGREES = 30.0 * _STRENGTH
_SHEAR = 0.3 * _STRENGTH
_TRANSLATION = 150.0 / 331.0 * _STRENGTH  # of the side: 150 pixels of AutoAugment's 331
_FACTOR = 0.9 * _STRENGTH  # away from 1
_BITS = 8 - round(4 * _STRENGTH)
_THRESHOLD = 1.0 - _STRENGTH

# Signed strengths to maps.
_MOVES: Mapping[str, Callable[[NDArray[np.float64], int, int], Maps]] = {
    "rotate": lambda signs, height, width: rotated(_DEGREES * signs, height=height, width=width),
    "shear-x": lambda signs, height, width: sheared(_SHEAR * signs, 0.0 * signs, height=height, width=width),
    "shear-y": lambda signs, height, width: sheared(0.0 * signs, _SHEAR * signs, height=height, width=width),
    "translate-x": lambda signs, height, width: shifted(_TRANSLATION * signs, 0.0 * signs),
    "translate-y": lambda signs, height, width: shifted(0.0 * signs, _TRANSLATION * signs),
}
# Images and factors, float32 (batch, 1, 1, 1), to images.
_COLOURS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda views, _: colours.stretched(views),
    "brightness": colours.brightness,
    "color": colours.saturation,
    "contrast": colours.contrast,
    "equalize": lambda views, _: colours.equalized(views),
    "posterize": lambda views, _: colours.posterized(views, bits=_BITS),
    "sharpness": colours.sharpness,
    "solarize": lambda views, _: colours.solarized(views, threshold=_THRESHOLD),
}
OPERATIONS = ("identity", *_MOVES, *_COLOURS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The operations of each image of a batch.

    Attributes:
        operations: int64 (batch, 2), positions in `OPERATIONS`, in the order in which they are done.
        signs: float64 (batch, 2), -1 or 1.
    """

    operations: NDArray[np.int64]
    signs: NDArray[np.float64]

    def maps(self, *, height: int, width: int) -> Maps:
        """Return what the operations move, in images of this size."""
        total = identity(len(self.operations))
        for step in range(self.operations.shape[1]):
            for name, move in _MOVES.items():
                rows = self._rows(step, name)
                total[rows] = total[rows] @ move(self.signs[rows, step], height, width)
        return total

    def coloured(self, views: Tensor) -> Tensor:
        """Return the images with their colours changed; float32 (batch, 3, height, width) in [0, 1]."""
        for step in range(self.operations.shape[1]):
            for name, change in _COLOURS.items():
                rows = self._rows(step, name)
                if len(rows):
                    chosen = torch.from_numpy(rows).to(views.device)
                    factors = torch.from_numpy((1.0 + _FACTOR * self.signs[rows, step]).astype(np.float32))
                    changed = change(views[chosen], factors.to(views.device)[:, None, None, None])
                    views = views.index_copy(0, chosen, changed)
        return views

    def _rows(self, step: int, name: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.operations[:, step] == OPERATIONS.index(name))


def choose(*, seed: int, bank: int, keys: NDArray[np.uint64]) -> Chosen:
    """Draw the operations of each image."""
    draws = uniforms(seed, bank, keys, "randaugment", 2 * _OPERATIONS)
    return Chosen(
        operations=(draws[:, :_OPERATIONS] * len(OPERATIONS)).astype(np.int64),
        signs=np.where(draws[:, _OPERATIONS:] < 0.5, -1.0, 1.0),
    )
