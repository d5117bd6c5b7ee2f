"""Moves of whole images: exact ones by index, all others through one affine map and one resampling.

A map takes a place in the view to the place in the image where its pixel comes from: float64 (images, 3, 3) on
coordinates (x, y, 1) with x and y in [-1, 1] from edge to edge. Maps are chained with `@`: what is done to the image first
stands first. What is brought in from outside repeats the edge, as a black wedge would be a pattern of its own.

The maps are made in numpy and the grid by plain products and sums: how a batched matrix product rounds, which `affine_grid`
and kornia's `warp_affine` use, may depend on the size of the batch.

>>> import numpy as np
>>> there, back = (shifted(np.array([share]), np.array([0.0])) for share in (0.25, -0.25))
>>> bool((there @ back == identity(1)).all())
True
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert.train.draws import each

Maps = NDArray[np.float64]  # (images, 3, 3)
Numbers = NDArray[np.float64]  # (images,)


def identity(images: int) -> Maps:
    """Return maps that leave everything where it is."""
    return np.tile(np.eye(3), (images, 1, 1))


def shifted(right: Numbers, down: Numbers) -> Maps:
    """Return maps that move images, by shares of their width and height."""
    maps = identity(len(right))
    maps[:, 0, 2], maps[:, 1, 2] = -2.0 * right, -2.0 * down
    return maps


def scaled(wide: Numbers, high: Numbers) -> Maps:
    """Return maps that keep a part about the centre, by shares of width and height; -1 is the mirror image."""
    maps = identity(len(wide))
    maps[:, 0, 0], maps[:, 1, 1] = wide, high
    return maps


def rotated(degrees: Numbers, *, height: int, width: int) -> Maps:
    """Return maps that turn images of this size, in pixels, about their centre, clockwise."""
    cosine = each(lambda angle: math.cos(math.radians(angle)), degrees)
    sine = each(lambda angle: math.sin(math.radians(angle)), degrees)
    maps = identity(len(degrees))
    maps[:, 0, 0], maps[:, 0, 1] = cosine, sine * (height / width)
    maps[:, 1, 0], maps[:, 1, 1] = -sine * (width / height), cosine
    return maps


def sheared(across: Numbers, down: Numbers, *, height: int, width: int) -> Maps:
    """Return maps that move each row by `across` times its distance from the middle, each column likewise by `down`."""
    maps = identity(len(across))
    maps[:, 0, 1], maps[:, 1, 0] = -across * (height / width), -down * (width / height)
    return maps


def cropped(draws: NDArray[np.float64], *, smallest: float) -> Maps:
    """Return maps that stretch a random part of each image over the whole view.

    Area and aspect ratio as Szegedy et al. 2015 (arXiv 1409.4842, section 6) draw them; a part longer than the image is
    cut to it, instead of being drawn again.

    Args:
        draws: float64 (images, 4) in [0, 1).
        smallest: area, as a share of the image's.
    """
    area = smallest + draws[:, 0] * (1.0 - smallest)
    ratio = each(lambda draw: (4.0 / 3.0) ** (2.0 * draw - 1.0), draws[:, 1])  # 3/4 to 4/3, evenly in its logarithm
    wide, high = np.minimum(1.0, np.sqrt(area * ratio)), np.minimum(1.0, np.sqrt(area / ratio))
    # The part's centre may leave that of the image by half of what is left over, either way.
    right, down = (0.5 - draws[:, 2]) * (1.0 - wide), (0.5 - draws[:, 3]) * (1.0 - high)
    return shifted(right, down) @ scaled(wide, high)


def warped(views: Tensor, maps: Maps) -> Tensor:
    """Resample each image once, bilinearly; where no image moves, return `views` itself.

    Images whose map is the identity keep their bits, whatever happens to the others.

    Args:
        views: float32 (batch, 3, height, width).
        maps: float64 (batch, 3, 3), affine.
    """
    moves = np.flatnonzero((maps != np.eye(3)).any(axis=(1, 2)))
    if len(moves) == 0:
        return views
    if len(moves) == len(maps):
        return functional.grid_sample(
            views, _grid(maps, views), mode="bilinear", padding_mode="border", align_corners=False
        )
    chosen = torch.from_numpy(moves).to(views.device)
    return views.index_copy(0, chosen, warped(views[chosen], maps[moves]))


def moved(pixels: Tensor, *, right: NDArray[np.int64], down: NDArray[np.int64], mirror: NDArray[np.bool_]) -> Tensor:
    """Mirror images and move them by whole pixels: every pixel keeps its value.

    Args:
        pixels: uint8 (batch, height, width, 3).
        right: int64 (batch,), pixels; negative is left.
        down: int64 (batch,), pixels.
        mirror: bool (batch, 2): left and right, top and bottom; before the image is moved.
    """
    batch, height, width, _ = pixels.shape
    columns = _sources(right, mirror[:, 0], width)
    rows = _sources(down, mirror[:, 1], height) + np.arange(batch)[:, None] * height
    places = rows[:, :, None] * width + columns[:, None, :]  # (batch, height, width), into all pixels of the batch
    chosen = torch.from_numpy(places.reshape(-1)).to(pixels.device)
    return pixels.reshape(-1, 3)[chosen].view_as(pixels)


def _sources(move: NDArray[np.int64], mirror: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Return where each row or column comes from, int64 (batch, side)."""
    places = np.clip(np.arange(side) - move[:, None], 0, side - 1)
    sources: NDArray[np.int64] = np.where(mirror[:, None], side - 1 - places, places)
    return sources


def _grid(maps: Maps, views: Tensor) -> Tensor:
    """Return float32 (batch, height, width, 2): where each pixel comes from."""
    height, width = views.shape[2:]
    parts = torch.from_numpy(maps[:, :2].astype(np.float32)).to(views.device)[:, None, None]  # (batch, 1, 1, 2, 3)
    across = _centres(width).to(views.device)[:, None]  # (width, 1)
    down = _centres(height).to(views.device)[:, None, None]  # (height, 1, 1)
    return parts[..., 0] * across + (parts[..., 1] * down + parts[..., 2])


def _centres(side: int) -> Tensor:
    return torch.from_numpy(((2 * np.arange(side) + 1) / side - 1.0).astype(np.float32))
