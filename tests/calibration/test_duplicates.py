"""Near duplicates: a picture saved again is found, different pictures are not, and not all are compared with all."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from edgebert.calibration import duplicates
from edgebert.calibration.duplicates import Sketches, difference_hash, distance, near_distance
from edgebert.preprocess import RgbImage


def _scene(seed: int, side: int = 64) -> RgbImage:
    """Return a smooth picture of its own: uint8 (side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _saved_again(image: RgbImage, quality: int = 75) -> RgbImage:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def _brighter(image: RgbImage) -> RgbImage:
    brighter: RgbImage = np.clip(image.astype(np.float32) * 1.05 + 3, 0, 255).astype(np.uint8)
    return brighter


def _scaled_down_and_up(image: RgbImage) -> RgbImage:
    picture = Image.fromarray(image)
    return np.array(picture.resize((50, 50), Image.Resampling.BILINEAR).resize(picture.size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("edit", [_saved_again, _brighter, _scaled_down_and_up])
def test_pairs_finds_a_picture_that_was_edited_a_little(edit: Callable[[RgbImage], RgbImage]) -> None:
    scenes = [_scene(seed) for seed in range(200)]
    sketches = Sketches(201)
    for image in [*scenes, edit(scenes[17])]:
        sketches.add(image)
    pairs = sketches.pairs(near_distance(64, 64))
    assert [(pair.first, pair.second) for pair in pairs] == [(17, 200)]
    assert distance(scenes[17], edit(scenes[17])) <= near_distance(64, 64)


def test_pairs_of_different_pictures_are_none() -> None:
    sketches = Sketches(300)
    for seed in range(300):
        sketches.add(_scene(seed))
    assert sketches.pairs(near_distance(64, 64)) == []


def test_pairs_of_tiny_images_finds_noise_of_a_level() -> None:
    scenes = [_scene(seed, side=8) for seed in range(100)]
    noisy = (scenes[5].astype(np.int16) + np.random.default_rng(0).integers(-1, 2, (8, 8, 3))).clip(0, 255)
    sketches = Sketches(101)
    for image in [*scenes, noisy.astype(np.uint8)]:
        sketches.add(image)
    assert [(pair.first, pair.second) for pair in sketches.pairs(near_distance(8, 8))] == [(5, 100)]


def test_pairs_compares_few_of_all_pairs() -> None:
    sketches = Sketches(2000)
    for seed in range(2000):
        sketches.add(_scene(seed, side=16))
    hashes = sketches._hashes
    compared = 0
    for band in range(duplicates._BANDS):
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, duplicates._BANDS)))
        _, counts = np.unique(hashes & mask, return_counts=True)
        compared += int((counts * (counts - 1) // 2).sum())
    assert compared < 2000 * 1999 // 2 // 20


def test_pairs_of_one_picture_many_times_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_LONGEST_RUN", 3)
    sketches = Sketches(100)
    for _ in range(100):
        sketches.add(_scene(0))
    assert 0 < len(sketches.pairs(near_distance(64, 64))) <= 5 * 3 * 100


def test_sketches_take_72_bytes_an_image() -> None:
    assert Sketches(1000).nbytes == 72_000


def test_difference_hash_of_a_flat_image_has_no_bits_whatever_its_noise() -> None:
    noise = np.random.default_rng(0).integers(127, 129, (64, 64), np.uint8)
    assert difference_hash(Image.fromarray(noise)) == 0


def test_distance_leaves_brightness_and_contrast_out() -> None:
    image = (_scene(3) // 2).astype(np.uint8)
    assert distance(image, image) == 0
    assert distance(image, (image + 40).astype(np.uint8)) < 0.01
    assert distance(image, _scene(4)) > 0.5
