"""Augmentation keeps shape and range, follows the seed, and does what its name says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgebert.train.augment import augmentation, float_views, mixed, network_views
from edgebert.train.options import Augmentation, TrainOptions

_EACH: list[tuple[Augmentation, ...]] = [
    ("shift",),
    ("rotate",),
    ("crop",),
    ("flip",),
    ("vertical-flip",),
    ("randaugment",),
    ("randaugment", "crop", "shift", "rotate", "flip"),
]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(16, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def _augmented(names: tuple[Augmentation, ...], images: Tensor, seed: int) -> Tensor:
    options = TrainOptions(model="nano", augment=names)
    module = augmentation(options, height=images.shape[2], width=images.shape[3])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        augmented: Tensor = module(images)
    return augmented


@pytest.mark.parametrize("names", _EACH)
def test_augmentation_keeps_shape_and_range(names: tuple[Augmentation, ...], images: Tensor) -> None:
    augmented = _augmented(names, images, seed=5)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.float32
    assert float(augmented.min()) >= -1e-5
    assert float(augmented.max()) <= 1 + 1e-5


@pytest.mark.parametrize("names", _EACH)
def test_augmentation_follows_the_seed(names: tuple[Augmentation, ...], images: Tensor) -> None:
    first, again, other = (_augmented(names, images, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmentation_leaves_images_alone_when_none_is_chosen(images: Tensor) -> None:
    assert torch.equal(_augmented((), images, seed=5), images)


def test_augmentation_flip_gives_each_image_or_its_mirror(images: Tensor) -> None:
    flipped = _augmented(("flip",), images, seed=5)
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    assert all(one or other for one, other in zip(kept, mirrored, strict=True))
    assert any(kept)
    assert any(mirrored)


def test_augmentation_shift_moves_a_dot_no_further_than_asked() -> None:
    images = torch.zeros(64, 3, 16, 16)
    images[:, :, 8, 8] = 1.0
    moved = _augmented(("shift",), images, seed=5)[:, 0]
    rows, columns = torch.arange(16.0), torch.arange(16.0)
    weight = moved.sum(dim=(1, 2))
    row = (moved.sum(dim=2) * rows).sum(dim=1) / weight
    column = (moved.sum(dim=1) * columns).sum(dim=1) / weight
    offsets = torch.cat((row - 8, column - 8)).abs()
    assert float(offsets.max()) <= 16 * 0.125 + 0.51  # half a pixel for the resampling
    assert float(offsets.max()) > 1.0


def test_float_views_and_network_views_are_inverse() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(network_views(float_views(pixels), height=16, width=16), pixels)


def test_network_views_resizes_when_the_network_is_smaller(images: Tensor) -> None:
    small = network_views(images, height=6, width=10)
    assert small.shape == (16, 6, 10, 3)
    assert small.dtype == torch.uint8
    assert small.is_contiguous()
    assert float(small.float().mean() / 255) == pytest.approx(float(images.mean()), abs=0.01)


def test_mixed_keeps_the_sum_of_targets_and_blends_images(images: Tensor) -> None:
    targets = torch.eye(4).repeat(4, 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        views, blended = mixed(images, targets, strength=1.0)
    assert torch.allclose(blended.sum(dim=1), torch.ones(16))
    assert bool((blended.max(dim=1).values < 0.99).any())
    assert views.shape == images.shape
    assert float(views.min()) >= 0.0
    assert float(views.max()) <= 1.0


def test_mixed_returns_its_input_when_strength_is_0(images: Tensor) -> None:
    targets = torch.eye(16)
    views, same = mixed(images, targets, strength=0.0)
    assert views is images
    assert same is targets
