"""Views of training images: what is done to them before a network sees them, by torch and kornia, on the device.

View `bank` of an image is a pure function of the view seed, the bank, the image's key and the `ViewSpec`: not of its batch,
the process, the step or the number of threads. On one kind of device it is the same to the last bit; between a CPU and a
GPU, resampling may differ by a rounding, which `network_views` mostly hides.

In order: moves (`crop`, `rotate`, `shift`, flips and those of `randaugment`, all in one resampling), colours (those of
`randaugment`, then `jitter`), `erase`, `mask`; last, images are blended in pairs (`blended`). Flips are exact, and so is
`shift` where nothing else resamples: it is then by whole pixels, the padding and cropping of small-image recipes, and
blurs nothing.

>>> import numpy as np, torch
>>> pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
>>> spec = ViewSpec(height=4, width=4, augment=("flip",))
>>> view = augmented(spec, pixels, seed=0, bank=0, keys=np.array([1], np.uint64))
>>> bool(torch.equal(view, float_views(pixels)) or torch.equal(view, float_views(pixels).flip(3)))
True
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert._json import JsonObject
from edgebert.train import colours, randaugment
from edgebert.train.draws import each, noise_bytes, symmetric_beta, uniforms
from edgebert.train.options import Augmentation
from edgebert.train.warps import Maps, cropped, identity, moved, rotated, scaled, shifted, warped

__all__ = [
    "Blend",
    "ViewSpec",
    "augmented",
    "blend_of",
    "blended",
    "float_views",
    "network_views",
    "uniforms",
]

_VERSION = 1  # of what this module makes; a view of another version is another view

# Zhong et al. 2020 (arXiv 1708.04896) with the areas and aspect ratios of timm's `RandomErasing`, which the recipes of DeiT
# and CCT use.
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), 0.3

_HUE_SHARE = 0.25  # of `jitter`, in turns of the colour circle: SimCLR's 0.2 beside 0.8 (arXiv 2002.05709, appendix A)
_MASKED_PATCHES_A_SIDE = 7  # a token of 224 pixels at the usual stride of 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """All that decides a view besides the image, the seed and the bank.

    Attributes:
        height: of the images that come in and of the views, in pixels.
        width: likewise.
        augment: what is done, each with the field of its name below; the order of the names plays no part.
        shift: the largest, as a share of the side.
        rotation: the largest, in degrees.
        crop_scale: the smallest, as a share of the area.
        jitter: the largest change of brightness, contrast and saturation, as a share; of hue, a quarter, in turns.
        erase: the probability that an image loses a rectangle, which is filled with noise.
        mask: share of patches that are filled with the image's mean colour.
        mask_patch: side of a patch, in pixels; 0 for a seventh of the shorter side.
        mixup: images are blended with shares drawn from Beta(mixup, mixup); 0 for never.
        cutmix: a rectangle of one image is laid over another, shares drawn from Beta(cutmix, cutmix); 0 for never.
        cutmix_share: of the images that get `cutmix` rather than `mixup`, where both are above 0.
    """

    height: int
    width: int
    augment: tuple[Augmentation, ...] = ("shift", "rotate")
    shift: float = 0.125
    rotation: float = 10.0
    crop_scale: float = 0.6
    jitter: float = 0.3
    erase: float = 0.25
    mask: float = 0.3
    mask_patch: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_share: float = 0.5

    def to_json(self) -> JsonObject:
        """Return the identity of the views, for keys of what is made from them."""
        return {**asdict(self), "augment": sorted(self.augment), "version": _VERSION}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blend:
    """How each image of a batch is blended with another one.

    Attributes:
        partners: int64 (batch,), positions in the split; an image may draw itself.
        shares: float32 (batch,) in [0, 1], of the image itself; the partner has the rest.
        boxes: int64 (batch, 4), top, left, bottom, right in pixels, where the partner lies over the image; an empty box
            where the images are mixed. None where all are mixed.
    """

    partners: NDArray[np.int64]
    shares: NDArray[np.float32]
    boxes: NDArray[np.int64] | None


def augmented(spec: ViewSpec, pixels: Tensor, *, seed: int, bank: int, keys: NDArray[np.uint64]) -> Tensor:
    """Return one view of each image, before any is blended: float32 (batch, 3, height, width) in [0, 1].

    Args:
        spec: what is done.
        pixels: uint8 (batch, height, width, 3), on the device.
        seed: of the views.
        bank: which view of each image.
        keys: uint64 (batch,), the images' keys.
    """
    draw = _Draw(seed, bank, keys)
    chosen = randaugment.choose(seed=seed, bank=bank, keys=keys) if "randaugment" in spec.augment else None
    views, maps = _moves(spec, pixels, draw)
    if chosen is not None:
        maps = maps @ chosen.maps(height=spec.height, width=spec.width)
    views = warped(views, maps)
    if chosen is not None:
        views = chosen.coloured(views)
    if "jitter" in spec.augment:
        views = _jittered(spec, views, draw)
    if "erase" in spec.augment:
        views = _erased(spec, views, draw)
    if "mask" in spec.augment:
        views = _masked(spec, views, draw)
    return views


def blend_of(spec: ViewSpec, *, seed: int, bank: int, keys: NDArray[np.uint64], images: int) -> Blend | None:
    """Draw how images are blended; None where `spec` blends none.

    Shares as in Zhang et al. 2018 (arXiv 1710.09412, equation 1), one for each image; boxes as in Yun et al. 2019 (arXiv
    1905.04899, section 3.1): cut to the image, and the share is what they leave of it, exactly.

    Args:
        spec: what is done.
        seed: of the views.
        bank: which view of each image.
        keys: uint64 (batch,), the images' keys.
        images: in the split; partners are drawn evenly from all of them.
    """
    if spec.mixup == 0.0 and spec.cutmix == 0.0:
        return None
    draw = _Draw(seed, bank, keys)
    partners = np.minimum((draw("partner", 1)[:, 0] * images).astype(np.int64), images - 1)
    if spec.cutmix == 0.0:
        mixed = symmetric_beta(spec.mixup, draw("mixup", 2))
        return Blend(partners=partners, shares=mixed.astype(np.float32), boxes=None)
    boxes = _boxes(spec, draw)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    shares = 1.0 - areas / (spec.height * spec.width)
    if spec.mixup > 0.0:
        cut = draw("cutmix or mixup", 1)[:, 0] < spec.cutmix_share
        shares = np.where(cut, shares, symmetric_beta(spec.mixup, draw("mixup", 2)))
        boxes = np.where(cut[:, None], boxes, 0)
    return Blend(partners=partners, shares=shares.astype(np.float32), boxes=boxes)


def blended(views: Tensor, partner_views: Tensor, blend: Blend) -> Tensor:
    """Blend the pixels of images and partners; their targets are blended by `blend.shares`.

    Args:
        views: float32 (batch, 3, height, width) in [0, 1].
        partner_views: of the images at `blend.partners`, likewise.
        blend: how.
    """
    shares = torch.from_numpy(blend.shares).to(views.device)[:, None, None, None]
    if blend.boxes is not None:
        inside = _in_boxes(blend.boxes, views)
        empty = torch.from_numpy((blend.boxes == 0).all(axis=1)).to(views.device)[:, None, None, None]
        shares = torch.where(empty, shares, (~inside).float())  # (batch, 1, height, width)
    return shares * views + (1.0 - shares) * partner_views


def float_views(images: Tensor) -> Tensor:
    """Turn uint8 (batch, height, width, 3) into float32 (batch, 3, height, width) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255.0  # (batch, 3, height, width)


def network_views(views: Tensor, *, height: int, width: int) -> Tensor:
    """Turn views into what a network takes: uint8 (batch, height, width, 3).

    Views are rounded to the 256 levels of an image, so that training and everything after it use one normalisation,
    the one inside the classifier, and teacher and student see the same bits.

    Args:
        views: float32 (batch, 3, any height, any width) in [0, 1].
        height: of the network's input; views of another size are resized with anti-aliasing.
        width: of the network's input.
    """
    if views.shape[2:] != (height, width):
        views = functional.interpolate(views, (height, width), mode="bilinear", antialias=True)
    levels = torch.round(views * 255.0).clamp(0.0, 255.0).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()  # (batch, height, width, 3)


class _Draw:
    """Draws for the images of a batch."""

    def __init__(self, seed: int, bank: int, keys: NDArray[np.uint64]) -> None:
        self.seed, self.bank, self.keys = seed, bank, keys

    def __call__(self, what: str, count: int) -> NDArray[np.float64]:
        """Return float64 (batch, count) in [0, 1)."""
        return uniforms(self.seed, self.bank, self.keys, what, count)

    def around_zero(self, what: str, count: int) -> NDArray[np.float64]:
        """Return float64 (batch, count) in [-1, 1)."""
        return 2.0 * self(what, count) - 1.0


def _moves(spec: ViewSpec, pixels: Tensor, draw: _Draw) -> tuple[Tensor, Maps]:
    """Return the images after all exact moves, float32 (batch, 3, height, width), and the maps of the others."""
    chosen, images = set(spec.augment), len(pixels)
    mirror = draw("flips", 2) < (0.5 * ("flip" in chosen), 0.5 * ("vertical-flip" in chosen))
    shift = spec.shift * draw.around_zero("shift", 2) if "shift" in chosen else np.zeros((images, 2))
    largest = spec.shift * min(spec.height, spec.width)  # below a pixel there are no whole ones to move by
    if chosen & {"crop", "rotate"} or ("shift" in chosen and largest < 1.0):
        maps = identity(images)
        if "crop" in chosen:
            maps = maps @ cropped(draw("crop", 4), smallest=spec.crop_scale)
        if "rotate" in chosen:
            degrees = spec.rotation * draw.around_zero("rotation", 1)[:, 0]
            maps = maps @ rotated(degrees, height=spec.height, width=spec.width)
        if "shift" in chosen:
            maps = maps @ shifted(shift[:, 0], shift[:, 1])
        signs = np.where(mirror, -1.0, 1.0)
        return float_views(pixels).contiguous(), maps @ scaled(signs[:, 0], signs[:, 1])
    if chosen & {"flip", "shift", "vertical-flip"}:
        # Every whole number of pixels up to the largest is drawn as often as any other.
        most = np.floor(spec.shift * np.array([spec.width, spec.height]))
        steps = np.floor(draw("shift", 2) * (2.0 * most + 1.0)) - most if "shift" in chosen else shift
        whole = steps.astype(np.int64)
        pixels = moved(pixels, right=whole[:, 0], down=whole[:, 1], mirror=mirror)
    return float_views(pixels), identity(images)


def _jittered(spec: ViewSpec, views: Tensor, draw: _Draw) -> Tensor:
    changes = spec.jitter * draw.around_zero("jitter", 4)  # (batch, 4)
    on_device = torch.from_numpy(changes.astype(np.float32)).to(views.device)
    bright, contrasting, saturated, hue = on_device[:, :, None, None, None].unbind(dim=1)  # each (batch, 1, 1, 1)
    views = colours.brightness(views, 1.0 + bright)
    views = colours.contrast(views, 1.0 + contrasting)
    views = colours.saturation(views, 1.0 + saturated)
    return colours.hue(views, _HUE_SHARE * hue)


def _erased(spec: ViewSpec, views: Tensor, draw: _Draw) -> Tensor:
    draws = draw("erase", 5)
    rows = np.flatnonzero(draws[:, 0] < spec.erase)
    if len(rows) == 0:
        return views
    low, high = _ERASED_AREA
    area = (low + (high - low) * draws[rows, 1]) * (spec.height * spec.width)
    ratio = each(lambda value: _ERASED_ASPECT ** (2.0 * value - 1.0), draws[rows, 2])
    heights = np.clip(np.rint(np.sqrt(area * ratio)), 1, spec.height)
    widths = np.clip(np.rint(np.sqrt(area / ratio)), 1, spec.width)
    top = np.floor(draws[rows, 3] * (spec.height - heights + 1))
    left = np.floor(draws[rows, 4] * (spec.width - widths + 1))
    boxes = np.stack((top, left, top + heights, left + widths), axis=1).astype(np.int64)
    count = spec.height * spec.width * 3
    noise = noise_bytes(draw.seed, draw.bank, draw.keys[rows], "erase noise", count)
    filling = float_views(torch.from_numpy(noise.reshape(-1, spec.height, spec.width, 3)).to(views.device))
    chosen = torch.from_numpy(rows).to(views.device)
    return views.index_copy(0, chosen, torch.where(_in_boxes(boxes, views), filling, views[chosen]))


def _masked(spec: ViewSpec, views: Tensor, draw: _Draw) -> Tensor:
    side = spec.mask_patch or max(1, round(min(spec.height, spec.width) / _MASKED_PATCHES_A_SIDE))
    rows, columns = -(-spec.height // side), -(-spec.width // side)
    # As many in every image; a sort that is stable, so that equal draws have an order.
    ranks = draw("mask", rows * columns).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    patches = np.less(ranks, round(spec.mask * rows * columns)).reshape(-1, 1, rows, columns)
    hidden = patches.repeat(side, axis=2).repeat(side, axis=3)[:, :, : spec.height, : spec.width]
    return torch.where(torch.from_numpy(hidden).to(views.device), colours.means(views), views)


def _boxes(spec: ViewSpec, draw: _Draw) -> NDArray[np.int64]:
    """Return the boxes of `cutmix`, int64 (batch, 4): top, left, bottom, right."""
    kept = symmetric_beta(spec.cutmix, draw("cutmix", 2))
    sides = np.array([spec.height, spec.width])
    lengths = np.floor(np.sqrt(1.0 - kept)[:, None] * sides)  # (batch, 2)
    starts = np.floor(draw("cutmix box", 2) * sides) - np.floor(lengths / 2)
    corners = np.concatenate((np.maximum(starts, 0), np.minimum(starts + lengths, sides)), axis=1).astype(np.int64)
    corners[lengths.min(axis=1) == 0] = 0
    return corners


def _in_boxes(boxes: NDArray[np.int64], views: Tensor) -> Tensor:
    """Return which pixels lie in their image's box, bool (batch, 1, height, width)."""
    height, width = views.shape[2:]
    top, left, bottom, right = (torch.from_numpy(edge).to(views.device)[:, None] for edge in boxes.T.copy())
    rows, columns = torch.arange(height, device=views.device), torch.arange(width, device=views.device)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
