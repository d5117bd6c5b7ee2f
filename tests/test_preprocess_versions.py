"""Resizing gives the same pixels with every version of Pillow: a bundle made with one is opened with another."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.preprocess import Interpolation, Preprocessing, Resize, resize_image

SHAPES = ((15, 21), (40, 8), (17, 13), (3, 5), (64, 9), (90, 70), (200, 301), (2, 900), (900, 2))
EDGES: dict[Resize, int | None] = {"stretch": None, "crop": 9, "stretch-crop": 11}


def _pixels(rows: int, columns: int) -> NDArray[np.uint8]:
    """Return uint8 (rows, columns, 3) that no version of a random generator could change."""
    places = np.arange(rows * columns * 3, dtype=np.uint64).reshape(rows, columns, 3)
    mixed: NDArray[np.uint64] = places * np.uint64(2654435761) >> np.uint64(7)
    pixels: NDArray[np.uint8] = (mixed % np.uint64(256)).astype(np.uint8)
    return pixels


def test_resize_image_gives_the_pixels_of_pillow_12_3_and_13_0() -> None:
    """The hash was computed with both. Left to itself, Pillow 13.0 takes the columns of some shapes first."""
    digest = hashlib.sha256()
    for shape in SHAPES:
        for interpolation in get_args(Interpolation):
            for resize, edge in EDGES.items():
                rule = Preprocessing(height=6, width=8, resize=resize, shortest_edge=edge, interpolation=interpolation)
                digest.update(resize_image(_pixels(*shape), rule).tobytes())
    assert digest.hexdigest() == "fb5d6b8de787918680aeff0dabebfd07aaec235b98699c0fbfcdda4428b968fd"


@pytest.mark.parametrize("shape", [(17, 13), (64, 9), (13, 17)])
@pytest.mark.parametrize("name", ["BILINEAR", "BICUBIC", "LANCZOS"])
def test_resize_image_takes_the_rows_first(shape: tuple[int, int], name: str) -> None:
    image, filter_ = _pixels(*shape), Image.Resampling[name]
    wide = np.asarray(Image.fromarray(image).resize((8, shape[0]), filter_))
    expected = np.asarray(Image.fromarray(wide).resize((8, 6), filter_))
    rule = Preprocessing(height=6, width=8, interpolation=name.lower())  # type: ignore[arg-type]  # one of its names
    assert np.array_equal(resize_image(image, rule), expected)
