"""Views are a pure function of image, seed and bank, keep their range, and do what their names say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor

from edgebert.data import Dataset
from edgebert.preprocess import Preprocessing, load_image
from edgebert.train import colours, randaugment
from edgebert.train.options import Augmentation
from edgebert.train.views import (
    Blend,
    ViewSpec,
    augmented,
    blend_of,
    blended,
    float_views,
    network_views,
    uniforms,
)
from edgebert.train.warps import cropped, identity, rotated, scaled, sheared, shifted, warped

_EACH: list[tuple[Augmentation, ...]] = [(name,) for name in get_args(Augmentation)]
_SETS: list[tuple[Augmentation, ...]] = [*_EACH, ("shift", "flip"), get_args(Augmentation)]

# Odd sides, so that an image ends in the middle of a vector register, and enough images for two threads to share.
_HEIGHT, _WIDTH, _IMAGES = 37, 29, 48


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (_IMAGES, _HEIGHT, _WIDTH, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def keys() -> NDArray[np.uint64]:
    return np.random.default_rng(0).integers(0, 2**64, _IMAGES, dtype=np.uint64)


@pytest.fixture(scope="module")
def many_keys() -> NDArray[np.uint64]:
    return np.random.default_rng(1).integers(0, 2**64, 4000, dtype=np.uint64)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _spec(*names: Augmentation, **fields: float) -> ViewSpec:
    return replace(ViewSpec(height=_HEIGHT, width=_WIDTH, augment=names, erase=0.5), **fields)  # type: ignore[arg-type]  # numbers only


def _views(spec: ViewSpec, pixels: Tensor, keys: NDArray[np.uint64], *, seed: int = 3, bank: int = 1) -> Tensor:
    return augmented(spec, pixels, seed=seed, bank=bank, keys=keys)


@pytest.mark.parametrize("names", _SETS)
def test_augmented_keeps_shape_and_range(
    names: tuple[Augmentation, ...], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    views = _views(_spec(*names), pixels, keys)
    assert views.shape == (_IMAGES, 3, _HEIGHT, _WIDTH)
    assert views.dtype == torch.float32
    assert float(views.min()) >= 0.0
    assert float(views.max()) <= 1.0


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("names", _SETS)
def test_augmented_gives_an_image_the_same_bits_in_any_batch(
    names: tuple[Augmentation, ...], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    spec = _spec(*names)
    together = _views(spec, pixels, keys)
    order = np.random.default_rng(2).permutation(_IMAGES)
    assert torch.equal(_views(spec, pixels[order], keys[order]), together[order])
    for position in range(0, _IMAGES, 5):
        alone = _views(spec, pixels[position : position + 1], keys[position : position + 1])
        assert torch.equal(alone[0], together[position])


@pytest.mark.parametrize("names", _SETS)
def test_augmented_gives_the_same_bits_with_any_number_of_threads(
    names: tuple[Augmentation, ...], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    before = torch.get_num_threads()
    answers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        answers.append(_views(_spec(*names), pixels, keys))
    torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1])


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", randaugment.OPERATIONS[1:])
def test_randaugment_gives_each_operation_the_same_bits_in_any_batch(name: str, pixels: Tensor) -> None:
    signs = np.where(np.arange(_IMAGES) % 2 == 0, -1.0, 1.0)
    operations = np.array([randaugment.OPERATIONS.index(name), 0])

    def changed(chosen: NDArray[np.int64]) -> Tensor:
        drawn = randaugment.Chosen(
            operations=np.tile(operations, (len(chosen), 1)), signs=np.stack((signs[chosen],) * 2, axis=1)
        )
        views = warped(float_views(pixels[chosen]), drawn.maps(height=_HEIGHT, width=_WIDTH))
        return drawn.coloured(views)

    together = changed(np.arange(_IMAGES))
    assert not torch.equal(together, float_views(pixels))
    for position in range(0, _IMAGES, 5):
        assert torch.equal(changed(np.array([position]))[0], together[position])


def test_augmented_gives_the_same_bits_when_threads_share_a_single_image(keys: NDArray[np.uint64]) -> None:
    # Above 32,768 pixels torch adds up one number by several threads, and many numbers by one thread each.
    generator = torch.Generator().manual_seed(2)
    large = torch.randint(0, 256, (3, 190, 200, 3), dtype=torch.uint8, generator=generator)
    spec = ViewSpec(height=190, width=200, augment=get_args(Augmentation), erase=1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    together = _views(spec, large, keys[:3])
    alone = [_views(spec, large[position : position + 1], keys[position : position + 1])[0] for position in range(3)]
    torch.set_num_threads(before)
    assert torch.equal(torch.stack(alone), together)


def test_augmented_gives_real_images_the_same_bits_in_any_batch(small_digits: Dataset) -> None:
    preprocessing = Preprocessing(height=24, width=20, resize="stretch")
    examples = small_digits.train[:12]
    images = torch.from_numpy(np.stack([load_image(example.load(), preprocessing) for example in examples]))
    keys = np.array([int(example.pixel_sha256[:16], 16) for example in examples], np.uint64)
    spec = ViewSpec(height=24, width=20, augment=get_args(Augmentation))
    together = _views(spec, images, keys)
    for position in range(len(examples)):
        assert torch.equal(
            _views(spec, images[position : position + 1], keys[position : position + 1])[0], together[position]
        )


@pytest.mark.parametrize("names", _EACH)
def test_augmented_follows_seed_bank_and_key(
    names: tuple[Augmentation, ...], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    spec = _spec(*names)
    first = _views(spec, pixels, keys)
    assert torch.equal(_views(spec, pixels, keys), first)
    assert not torch.equal(_views(spec, pixels, keys, seed=4), first)
    assert not torch.equal(_views(spec, pixels, keys, bank=2), first)
    assert not torch.equal(_views(spec, pixels, keys + np.uint64(1)), first)


@pytest.mark.parametrize("names", _SETS)
def test_augmented_leaves_the_global_generators_alone(
    names: tuple[Augmentation, ...], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # the legacy state is a tuple
    _views(_spec(*names), pixels, keys)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # likewise


def test_augmented_leaves_images_alone_when_none_is_chosen(pixels: Tensor, keys: NDArray[np.uint64]) -> None:
    before = pixels.clone()
    assert torch.equal(_views(_spec(), pixels, keys), float_views(before))
    _views(_spec(*get_args(Augmentation)), pixels, keys)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(("name", "axis"), [("flip", 3), ("vertical-flip", 2)])
def test_augmented_flips_half_of_the_images_exactly(
    name: Augmentation, axis: int, pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    plain = float_views(pixels)
    flipped = 0
    for view, image, mirror in zip(_views(_spec(name), pixels, keys), plain, plain.flip(axis), strict=True):
        assert torch.equal(view, image) or torch.equal(view, mirror)
        flipped += torch.equal(view, mirror)
    assert _IMAGES / 4 < flipped < _IMAGES * 3 / 4


def test_augmented_shifts_alone_by_every_whole_number_of_pixels_alike(many_keys: NDArray[np.uint64]) -> None:
    dot = torch.zeros(1, 11, 21, 3, dtype=torch.uint8)
    dot[0, 5, 10] = 255
    spec = ViewSpec(height=11, width=21, augment=("shift",), shift=0.1)
    views = _views(spec, dot.expand(len(many_keys), -1, -1, -1), many_keys)
    image, row, column = torch.nonzero(views[:, 0] == 1.0, as_tuple=True)
    assert image.tolist() == list(range(len(many_keys)))
    places = (3 * (column - 10 + 2) + (row - 5 + 1)).numpy()  # 2 pixels across, 1 down
    assert stats.chisquare(np.bincount(places, minlength=15)).pvalue > 0.001


def test_augmented_shifts_repeat_the_edge() -> None:
    image = torch.arange(10, dtype=torch.uint8)[None, None, :, None].repeat(1, 10, 1, 3)
    spec = ViewSpec(height=10, width=10, augment=("shift",), shift=0.5)
    for key in range(8):
        row = _views(spec, image, np.array([key], np.uint64))[0, 0, 0] * 255.0
        assert set(row.round().diff().tolist()) <= {0.0, 1.0}


def test_augmented_shift_below_a_pixel_is_resampled(keys: NDArray[np.uint64]) -> None:
    ramp = torch.arange(0, 200, 20, dtype=torch.uint8)[None, None, :, None].repeat(_IMAGES, 10, 1, 3)
    spec = ViewSpec(height=10, width=10, augment=("shift",), shift=0.05)
    moves = (_views(spec, ramp, keys)[:, 0, 5, 5] * 255.0 - 100.0) / 20.0  # pixels
    assert 0.3 < float(moves.abs().max()) <= 0.5001


def test_augmented_rotates_by_every_angle_up_to_the_largest(many_keys: NDArray[np.uint64]) -> None:
    # The map of a turn has the same corner for both signs; the ramp's slope across gives the angle.
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8)[None, None, :, None].repeat(400, 16, 1, 3)
    spec = ViewSpec(height=16, width=16, augment=("rotate",), rotation=30.0)
    views = _views(spec, ramp, many_keys[:400])[:, 0] * 255.0
    across, down = views[:, 8, 9] - views[:, 8, 6], views[:, 9, 8] - views[:, 6, 8]
    degrees = np.degrees(np.arctan2(down.numpy(), across.numpy()))
    assert stats.kstest(degrees, stats.uniform(-30, 60).cdf).pvalue > 0.001


def test_cropped_parts_lie_inside_and_have_the_areas_asked_for(many_keys: NDArray[np.uint64]) -> None:
    maps = cropped(uniforms(0, 0, many_keys, "crop", 4), smallest=0.2)
    sides, centres = maps[:, [0, 1], [0, 1]], maps[:, :2, 2]
    assert float((np.abs(centres) + sides).max()) <= 1.0 + 1e-12
    areas = sides.prod(axis=1)
    assert float(areas.min()) >= 0.2 * 0.9  # one side may be cut to the image's
    assert abs(float(np.mean(areas)) - 0.6) < 0.03
    ratio = sides[:, 0] / sides[:, 1]
    assert float(ratio.min()) >= 3 / 4 - 1e-9
    assert float(ratio.max()) <= 4 / 3 + 1e-9
    free = (1.0 - sides[:, 0]) > 0.01
    assert stats.kstest(centres[free, 0] / (1.0 - sides[free, 0]), stats.uniform(-1, 2).cdf).pvalue > 0.001


def test_warped_chains_moves_in_the_order_in_which_they_are_done() -> None:
    views = torch.zeros(1, 3, 8, 16)
    views[0, :, 1, 2] = 1.0  # a dot 2.5 pixels above the middle and 5.5 left of it
    right, quarter, mirror = np.array([4 / 16]), np.array([90.0]), np.array([-1.0])
    down, still = np.array([0.0]), np.array([1.0])
    turned = shifted(right, down) @ rotated(quarter, height=8, width=16)
    dot = warped(views, turned)[0, 0]  # moved to 1.5 left, turned clockwise: 1.5 up and 2.5 right
    assert torch.nonzero(dot > 0.9).tolist() == [[2, 10]]
    dot = warped(views, turned @ scaled(mirror, still))[0, 0]
    assert torch.nonzero(dot > 0.9).tolist() == [[2, 5]]


def test_sheared_moves_rows_and_columns_by_their_distance_from_the_middle() -> None:
    views = torch.zeros(2, 3, 9, 17)
    views[:, :, 0, 8] = 1.0  # 4 pixels above the middle
    views[:, :, 4, 4] = 1.0  # 4 pixels left of the middle
    across, down = np.array([0.5, 0.0]), np.array([0.0, 0.5])
    dots = warped(views, sheared(across, down, height=9, width=17))[:, 0]
    assert torch.nonzero(dots[0] > 0.9).tolist() == [[0, 6], [4, 4]]
    assert torch.nonzero(dots[1] > 0.9).tolist() == [[0, 8], [2, 4]]


def test_warped_keeps_the_bits_of_images_that_do_not_move(pixels: Tensor) -> None:
    views = float_views(pixels)
    maps = identity(_IMAGES)
    assert warped(views, maps) is views
    maps[3] = shifted(np.array([0.25]), np.array([0.0]))[0]
    some = warped(views, maps)
    kept = [position for position in range(_IMAGES) if torch.equal(some[position], views[position])]
    assert kept == [position for position in range(_IMAGES) if position != 3]


@pytest.fixture
def photo() -> Image.Image:
    rows, columns = np.mgrid[0:24, 0:32]
    noise = np.random.default_rng(4).integers(0, 40, (24, 32, 3))
    return Image.fromarray((np.stack((columns * 6, rows * 7, columns + rows), axis=2) + noise + 10).astype(np.uint8))


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "pillow"),
    [
        (colours.brightness, ImageEnhance.Brightness),
        (colours.contrast, ImageEnhance.Contrast),
        (colours.saturation, ImageEnhance.Color),
        (colours.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_colours_do_as_pillow_does(ours, pillow, factor: float, photo: Image.Image) -> None:  # type: ignore[no-untyped-def]  # four functions, four classes without a common type
    views = float_views(torch.from_numpy(np.array(photo))[None])
    changed = ours(views, torch.full((1, 1, 1, 1), factor))[0].permute(1, 2, 0).numpy() * 255.0
    expected = np.asarray(pillow(photo).enhance(factor), np.float64)
    assert np.abs(changed - expected).max() <= 1.5  # Pillow rounds its greys and its results


def test_colours_without_a_factor_do_as_pillow_does(photo: Image.Image) -> None:
    views = float_views(torch.from_numpy(np.array(photo))[None])
    for ours, pillow in (
        (colours.stretched(views), ImageOps.autocontrast(photo)),
        (colours.equalized(views), ImageOps.equalize(photo)),
        (colours.posterized(views, bits=5), ImageOps.posterize(photo, 5)),
        (colours.solarized(views, threshold=128 / 255), ImageOps.solarize(photo, 128)),
    ):
        changed = ours[0].permute(1, 2, 0).numpy() * 255.0
        assert np.abs(changed - np.asarray(pillow, np.float64)).max() <= 1.5


def test_hue_turns_red_into_green_in_a_third_of_a_turn() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    green = colours.hue(red, torch.full((1, 1, 1, 1), 1 / 3))
    assert green.flatten().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)


def test_colours_leave_images_of_one_colour_finite() -> None:
    flat = torch.full((2, 3, 5, 5), 0.5)
    flat[1] = 0.0
    factors = torch.full((2, 1, 1, 1), 1.3)
    for changed in (colours.stretched(flat), colours.equalized(flat), colours.hue(flat, factors)):
        assert torch.allclose(changed, flat, atol=0.5 / 255)
    assert torch.equal(colours.sharpness(flat[:, :, :2], factors), flat[:, :, :2])


def test_randaugment_draws_two_of_all_operations_alike(many_keys: NDArray[np.uint64]) -> None:
    chosen = randaugment.choose(seed=0, bank=0, keys=many_keys)
    assert len(randaugment.OPERATIONS) == 14
    assert chosen.operations.shape == (len(many_keys), 2)
    pairs = chosen.operations[:, 0] * 14 + chosen.operations[:, 1]
    assert stats.chisquare(np.bincount(pairs, minlength=196)).pvalue > 0.001
    assert stats.chisquare(np.bincount((chosen.signs > 0).ravel())).pvalue > 0.001


def test_randaugment_does_its_colours_in_the_order_drawn(pixels: Tensor) -> None:
    names = ("brightness", "solarize")
    first, second = (randaugment.OPERATIONS.index(name) for name in names)
    views = float_views(pixels[:2])
    drawn = randaugment.Chosen(operations=np.array([[first, second], [second, first]]), signs=np.ones((2, 2)))
    factor = torch.full((1, 1, 1, 1), 1.27)
    changed = drawn.coloured(views)
    one = colours.solarized(colours.brightness(views[:1], factor), threshold=0.7)
    other = colours.brightness(colours.solarized(views[1:], threshold=0.7), factor)
    assert torch.allclose(changed, torch.cat((one, other)), atol=1e-6)


def test_augmented_jitter_changes_no_more_than_asked(many_keys: NDArray[np.uint64]) -> None:
    grey = torch.full((400, 4, 4, 3), 100, dtype=torch.uint8)  # brightness is all that changes a plain grey
    spec = ViewSpec(height=4, width=4, augment=("jitter",), jitter=0.3)
    factors = _views(spec, grey, many_keys[:400])[:, 0, 0, 0].numpy() * 255.0 / 100.0
    assert stats.kstest(factors, stats.uniform(0.7, 0.6).cdf).pvalue > 0.001


def test_augmented_erases_one_rectangle_of_the_share_asked_for(many_keys: NDArray[np.uint64]) -> None:
    black = torch.zeros(400, 30, 40, 3, dtype=torch.uint8)
    spec = ViewSpec(height=30, width=40, augment=("erase",), erase=0.25)
    noisy = _views(spec, black, many_keys[:400]).sum(dim=1) > 0.0  # (batch, height, width)
    erased = noisy.flatten(1).any(dim=1)
    assert 0.17 < float(erased.float().mean()) < 0.33
    for image in noisy[erased]:
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert 0.01 < high * wide / 1200 < 0.36
        # Noise of three channels is black in one of 16 million pixels.
        assert bool(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def test_augmented_fills_with_another_noise_for_each_image(many_keys: NDArray[np.uint64]) -> None:
    black = torch.zeros(40, 12, 12, 3, dtype=torch.uint8)
    spec = ViewSpec(height=12, width=12, augment=("erase",), erase=1.0)
    views = _views(spec, black, many_keys[:40])
    values = views[views > 0.0]
    assert abs(float(values.mean()) - 0.502) < 0.03
    assert len({tuple(view[view > 0.0][:2].tolist()) for view in views}) == 40


def test_augmented_masks_as_many_patches_of_every_image(pixels: Tensor, keys: NDArray[np.uint64]) -> None:
    spec = _spec("mask", mask=0.3)
    changed = (_views(spec, pixels, keys) != float_views(pixels)).any(dim=1)  # (batch, height, width)
    side, rows, columns = 4, 10, 8  # a seventh of 29, and what is left over at the edge
    cells = torch.zeros(_IMAGES, rows * side, columns * side, dtype=torch.bool)
    cells[:, :_HEIGHT, :_WIDTH] = changed
    patches = cells.reshape(_IMAGES, rows, side, columns, side).any(dim=4).any(dim=2)
    assert patches.flatten(1).sum(dim=1).tolist() == [24] * _IMAGES


def test_augmented_masks_with_the_image_s_mean_colour(pixels: Tensor, keys: NDArray[np.uint64]) -> None:
    views = _views(_spec("mask", mask=1.0, mask_patch=5), pixels, keys)
    expected = float_views(pixels).mean(dim=(2, 3), keepdim=True).expand_as(views)
    assert torch.allclose(views, expected, atol=1e-5)


def test_blend_of_is_none_when_nothing_is_blended(keys: NDArray[np.uint64]) -> None:
    assert blend_of(_spec(), seed=0, bank=0, keys=keys, images=100) is None


def _blend(spec: ViewSpec, keys: NDArray[np.uint64], *, bank: int = 0) -> Blend:
    blend = blend_of(spec, seed=0, bank=bank, keys=keys, images=50)
    assert blend is not None
    return blend


def test_blend_of_is_the_same_for_an_image_in_any_batch(many_keys: NDArray[np.uint64]) -> None:
    spec = _spec(mixup=0.8, cutmix=1.0)
    together, some = _blend(spec, many_keys), _blend(spec, many_keys[7:9])
    assert together.boxes is not None
    assert some.boxes is not None
    np.testing.assert_array_equal(some.partners, together.partners[7:9])
    np.testing.assert_array_equal(some.shares, together.shares[7:9])
    np.testing.assert_array_equal(some.boxes, together.boxes[7:9])
    assert not np.array_equal(_blend(spec, many_keys, bank=1).partners, together.partners)


def test_blend_of_draws_partners_alike_from_the_whole_split(many_keys: NDArray[np.uint64]) -> None:
    counts = np.bincount(_blend(_spec(mixup=1.0), many_keys).partners, minlength=50)
    assert len(counts) == 50
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("strength", [0.2, 0.8, 1.0])
def test_blend_of_draws_shares_from_beta(strength: float, many_keys: NDArray[np.uint64]) -> None:
    blend = _blend(_spec(mixup=strength), many_keys)
    assert blend.boxes is None
    assert blend.shares.dtype == np.float32
    assert stats.kstest(blend.shares, stats.beta(strength, strength).cdf).pvalue > 0.001


def test_blend_of_cutmix_shares_are_what_the_boxes_leave(many_keys: NDArray[np.uint64]) -> None:
    blend = _blend(_spec(cutmix=1.0), many_keys)
    assert blend.boxes is not None
    top, left, bottom, right = blend.boxes.T
    assert bool(((top >= 0) & (left >= 0) & (bottom <= _HEIGHT) & (right <= _WIDTH)).all())
    assert bool(((bottom >= top) & (right >= left)).all())
    areas = (bottom - top) * (right - left)
    np.testing.assert_array_equal(blend.shares, (1.0 - areas / (_HEIGHT * _WIDTH)).astype(np.float32))
    pasted = blended(torch.zeros(4000, 3, _HEIGHT, _WIDTH), torch.ones(1, 3, 1, 1), blend)
    np.testing.assert_array_equal(pasted[:, 0].sum(dim=(1, 2)).numpy(), areas)


def test_blend_of_cutmix_boxes_have_the_mean_area_of_boxes_cut_to_the_image(many_keys: NDArray[np.uint64]) -> None:
    # For Beta(1, 1) the area before the cut, s^2, is uniform; an edge cuts s^2 / 8 off a side s on average, either end:
    # the mean of (s - s^2 / 4)^2 is 1/2 - 1/5 + 1/48.
    blend = _blend(ViewSpec(height=500, width=700, cutmix=1.0), many_keys)
    assert float(blend.shares.mean()) == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.02)


def test_blend_of_gives_each_image_one_of_both(many_keys: NDArray[np.uint64]) -> None:
    both = _blend(_spec(mixup=0.8, cutmix=1.0, cutmix_share=0.3), many_keys)
    mixup, cutmix = _blend(_spec(mixup=0.8), many_keys), _blend(_spec(cutmix=1.0), many_keys)
    assert both.boxes is not None
    assert cutmix.boxes is not None
    cut = (both.boxes != 0).any(axis=1)
    np.testing.assert_array_equal(both.shares[cut], cutmix.shares[cut])
    np.testing.assert_array_equal(both.boxes[cut], cutmix.boxes[cut])
    mixed = both.shares == mixup.shares
    assert bool((cut | mixed | (both.shares == 1.0)).all())
    assert 0.26 < float(cut.mean()) < 0.34


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("fields", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_blended_gives_an_image_the_same_bits_in_any_batch(
    fields: dict[str, float], pixels: Tensor, keys: NDArray[np.uint64]
) -> None:
    spec = _spec("shift", **fields)

    def made(chosen: NDArray[np.int64]) -> Tensor:
        blend = blend_of(spec, seed=0, bank=2, keys=keys[chosen], images=_IMAGES)
        assert blend is not None
        views, partners = (_views(spec, pixels[at], keys[at], bank=2) for at in (chosen, blend.partners))
        return blended(views, partners, blend)

    together = made(np.arange(_IMAGES))
    assert float(together.min()) >= 0.0
    assert float(together.max()) <= 1.0
    for position in range(0, _IMAGES, 5):
        assert torch.equal(made(np.array([position]))[0], together[position])


def test_blended_mixes_by_share_and_pastes_by_box() -> None:
    views, partners = torch.full((3, 3, 4, 4), 0.25), torch.full((3, 3, 4, 4), 0.75)
    blend = Blend(
        partners=np.zeros(3, np.int64),
        shares=np.array([0.5, 0.75, 1.0], np.float32),
        boxes=np.array([[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]),
    )
    pasted = torch.full((4, 4), 0.25)
    pasted[1:3, 2:4] = 0.75
    expected = torch.stack((torch.full((4, 4), 0.5), pasted, torch.full((4, 4), 0.25)))
    for channel in range(3):
        assert torch.equal(blended(views, partners, blend)[:, channel], expected)


def test_spec_to_json_names_everything_that_decides_a_view() -> None:
    spec = _spec("shift", "flip", mixup=0.8)
    stored = spec.to_json()
    assert json.loads(json.dumps(stored)) == stored
    assert stored["version"] == 1
    assert set(ViewSpec.__dataclass_fields__) < set(stored)
    assert stored == replace(spec, augment=("flip", "shift")).to_json()
    assert stored != replace(spec, cutmix=0.1).to_json()


def test_float_views_and_network_views_are_inverse() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(network_views(float_views(pixels), height=16, width=16), pixels)


@pytest.mark.usefixtures("_threads")
def test_network_views_resizes_each_image_alike_in_any_batch(pixels: Tensor) -> None:
    views = float_views(pixels)
    small = network_views(views, height=13, width=11)
    assert small.shape == (_IMAGES, 13, 11, 3)
    assert small.dtype == torch.uint8
    assert small.is_contiguous()
    assert float(small.float().mean() / 255) == pytest.approx(float(views.mean()), abs=0.01)
    for position in range(0, _IMAGES, 5):
        assert torch.equal(network_views(views[position : position + 1], height=13, width=11)[0], small[position])
