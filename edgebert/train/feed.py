"""Views of a split: what the network under training, its teacher and the teacher's cache all see.

View `bank` of an image is the same pixels whoever makes it and whenever (`edgebert.train.views`): a cached answer is an
answer to exactly what the student sees, and a resumed run or another process sees what the first one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert.train.batches import ImageBatches
from edgebert.train.views import Blend, ViewSpec, augmented, blend_of, blended


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewBatch:
    """Views and what is known of them.

    Attributes:
        bank: which view of each image.
        positions: int64 (batch,) in the split.
        keys: uint64 (batch,) of the images (`ImageBatches.keys`).
        partners: int64 (batch,) images blended in; None where nothing is blended.
        shares: float32 (batch,) of the first image in the blend, on the device; None likewise.
        views: float32 (batch, 3, height, width) in [0, 1], on the device.
        targets: float32 (batch, classes), on the device; blended as the views are.
    """

    bank: int
    positions: NDArray[np.int64]
    keys: NDArray[np.uint64]
    partners: NDArray[np.int64] | None
    shares: Tensor | None
    views: Tensor
    targets: Tensor


class ViewFeed:
    """Makes views batch by batch.

    Args:
        images: of the split.
        spec: what is done to them.
        seed: of the views.
        device: where the pixels are changed.
    """

    def __init__(self, images: ImageBatches, spec: ViewSpec, *, seed: int, device: torch.device) -> None:
        self.images, self.spec, self.seed, self.device = images, spec, seed, device

    def read(self, parts: Sequence[NDArray[np.int64]], bank: int) -> Iterator[ViewBatch]:
        """Yield view `bank` of the images at each array of positions."""
        blends = [self._blend(positions, bank) for positions in parts]
        wanted = [
            positions if blend is None else np.concatenate((positions, blend.partners))
            for positions, blend in zip(parts, blends, strict=True)
        ]
        for positions, blend, pixels in zip(parts, blends, self.images.read(wanted), strict=True):
            yield self._batch(positions, bank, blend, pixels)

    @torch.no_grad()
    def _batch(self, positions: NDArray[np.int64], bank: int, blend: Blend | None, pixels: Tensor) -> ViewBatch:
        count = len(positions)
        views = self._augmented(pixels[:count], positions, bank)
        targets = torch.from_numpy(self.images.targets(positions)).to(self.device)
        if blend is None:
            return plain_batch(self.images, positions, views, targets, bank=bank)
        others = torch.from_numpy(self.images.targets(blend.partners)).to(self.device)
        shares = torch.from_numpy(blend.shares).to(self.device)
        return ViewBatch(
            bank=bank,
            positions=positions,
            keys=self.images.keys[positions],
            partners=blend.partners,
            shares=shares,
            views=blended(views, self._augmented(pixels[count:], blend.partners, bank), blend),
            targets=shares[:, None] * targets + (1.0 - shares[:, None]) * others,
        )

    def _augmented(self, pixels: Tensor, positions: NDArray[np.int64], bank: int) -> Tensor:
        keys = self.images.keys[positions]
        return augmented(self.spec, pixels.to(self.device), seed=self.seed, bank=bank, keys=keys)

    def _blend(self, positions: NDArray[np.int64], bank: int) -> Blend | None:
        keys = self.images.keys[positions]
        return blend_of(self.spec, seed=self.seed, bank=bank, keys=keys, images=len(self.images))


def plain_batch(
    images: ImageBatches, positions: NDArray[np.int64], views: Tensor, targets: Tensor, *, bank: int = 0
) -> ViewBatch:
    """Return a batch in which nothing is blended."""
    return ViewBatch(
        bank=bank,
        positions=positions,
        keys=images.keys[positions],
        partners=None,
        shares=None,
        views=views,
        targets=targets,
    )
