"""Near duplicates: the same picture saved again, scaled or brightened a little, found without comparing all with all.

Of each image 72 bytes are kept: a 64-bit difference hash (which of two neighbours in a 9 x 8 grid is the brighter) and an
8 x 8 thumbnail. Images are compared where one of five groups of 12 or 13 bits of the hash is equal; of those whose hashes
differ in at most 6 bits and whose thumbnails are alike, both images are decoded again and compared pixel by pixel at the
network's size. Brightness and contrast are taken out first: the **distance** is the mean |difference| of grey values, both
images at mean 0 and mean |value| 1.

Measured on training images (2026-11-25; the table is in docs/calibration-audit.md): the closest two are 0.13 apart in 2,810 blood cells
(224 px) and 0.10 in 1,293 digits (8 px); of 54,000 Fashion-MNIST images (28 px) 53 have another within 0.03, 71 within 0.04, and then ever
more without a gap, 982 within 0.08. A blood cell saved again as JPEG of quality 75 is 0.05 from the original (0.09 at the 99th
percentile), scaled to 80 % and back 0.03, with noise of +-2 levels 0.04; in Fashion-MNIST 0.05, 0.20 and 0.01. Hence two thresholds.
The five groups lose at most 1.1 % of the edited pictures within the threshold, and compare one pair in 20 of Fashion-MNIST's 1.5 billion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgebert.preprocess import RgbImage

NEAR = 0.08  # distance of two images that count as one picture
NEAR_SMALL = 0.04  # the same at a network's side of 32 pixels and less, where different pictures come closer
SMALL_SIDE = 32
HASH_BITS_APART = 6  # JPEG at quality 75 turns 5 bits at the 99th percentile

# The right neighbour is brighter by more than a tenth of the contrast, and by more than rounding: flat areas must not hash noise.
_BRIGHTER, _BRIGHTER_LEVELS = 0.1, 1.0
_FLOOR = 2.0  # levels: of an image with less contrast the noise is not stretched
_BANDS = 5
_LONGEST_RUN = 2000  # images of equal bits that one is compared with, so that a still camera's frames take no week
_CHUNK = 1 << 20  # pairs compared at a time


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images by their numbers, and the mean |difference| of their thumbnails, scaled as the distance is."""

    first: int
    second: int
    apart: float


class Sketches:
    """72 bytes for each of a known number of images.

    Args:
        images: how many at most.
    """

    def __init__(self, images: int) -> None:
        self._hashes = np.zeros(images, np.uint64)
        self._thumbnails = np.zeros((images, 64), np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes that the sketches take."""
        return self._hashes.nbytes + self._thumbnails.nbytes

    def add(self, image: RgbImage) -> int:
        """Keep the sketch of uint8 (height, width, 3) at the network's size; return its number, counted from 0."""
        number = self._count
        grey = Image.fromarray(image).convert("L")
        self._hashes[number] = difference_hash(grey)
        self._thumbnails[number] = np.asarray(grey.resize((8, 8), Image.Resampling.BOX)).ravel()  # (64,)
        self._count += 1
        return number

    def pairs(self, near: float) -> list[Pair]:
        """Return the pairs whose thumbnails are at most `near` apart, the closest first.

        Args:
            near: `near_distance` of the network's size.
        """
        thumbnails = _scaled(self._thumbnails[: self._count].astype(np.float32))
        found: dict[tuple[int, int], float] = {}
        for first, second in self._alike():
            for start in range(0, len(first), _CHUNK):
                one, other = first[start : start + _CHUNK], second[start : start + _CHUNK]
                apart = np.abs(thumbnails[one] - thumbnails[other]).mean(axis=1)  # (pairs,)
                for at in np.flatnonzero(apart <= near):
                    numbers = sorted((int(one[at]), int(other[at])))
                    found[numbers[0], numbers[1]] = float(apart[at])
        ordered = sorted((apart, numbers) for numbers, apart in found.items())
        return [Pair(first, second, apart) for apart, (first, second) in ordered]

    def _alike(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield numbers of pairs with equal bits in a band and at most `HASH_BITS_APART` different ones in all."""
        hashes = self._hashes[: self._count]
        for band in range(_BANDS):
            # Every fifth bit: neighbouring ones would make bands of background alone, alike in all images.
            mask = np.uint64(sum(1 << bit for bit in range(band, 64, _BANDS)))
            order = np.lexsort((hashes, hashes & mask))
            ordered = hashes[order]
            keys = ordered & mask
            starts = np.arange(len(order))
            for step in range(1, min(len(order), _LONGEST_RUN + 1)):
                starts = starts[starts + step < len(order)]
                starts = starts[keys[starts] == keys[starts + step]]
                if not len(starts):
                    break
                close = starts[_bits(ordered[starts] ^ ordered[starts + step]) <= HASH_BITS_APART]
                if len(close):
                    yield order[close], order[close + step]


def near_distance(height: int, width: int) -> float:
    """Return how far two images may be apart to count as one picture, at a network's size in pixels."""
    return NEAR_SMALL if min(height, width) <= SMALL_SIDE else NEAR


def difference_hash(grey: Image.Image) -> int:
    """Return 64 bits: of each two neighbours in a row of a 9 x 8 grid, whether the right one is brighter by a margin."""
    width, height = grey.size
    filter_ = Image.Resampling.BOX if min(width, height) >= 9 else Image.Resampling.BILINEAR
    grid = np.asarray(grey.resize((9, 8), filter_), np.float32)
    contrast = float(np.abs(grid - grid.mean()).mean())
    brighter = np.diff(grid, axis=1) > max(_BRIGHTER * contrast, _BRIGHTER_LEVELS)  # (8, 8)
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def distance(first: RgbImage, second: RgbImage) -> float:
    """Return how far apart two uint8 (height, width, 3) images of one size are, as the top of this module says."""
    greys = [np.asarray(Image.fromarray(image).convert("L"), np.float32).reshape(1, -1) for image in (first, second)]
    return float(np.abs(_scaled(greys[0]) - _scaled(greys[1])).mean())


def _scaled(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring each row of float32 (images, pixels) to mean 0 and mean |value| 1."""
    centred = greys - greys.mean(axis=1, keepdims=True)
    contrast = np.maximum(np.abs(centred).mean(axis=1, keepdims=True), np.float32(_FLOOR))
    scaled: NDArray[np.float32] = centred / contrast
    return scaled


_BITS_OF = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


def _bits(words: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return how many bits of each word are set."""
    bits: NDArray[np.intp] = _BITS_OF[words.view(np.uint16).reshape(len(words), 4)].sum(axis=1, dtype=np.intp)
    return bits
