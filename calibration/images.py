"""Which images the ranges are measured on: training images, as many of each class, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing, RgbImage, load_image

# Medians over 64 images, measured: neighbouring pixels correlate by 0.99 in blood-cell photographs, 0.70 in the 8x8 digits
# and 0.03 in noise (0.02 from 16x16 on).
_MIN_CORRELATION = 0.15
_LOOKED_AT = 64


def calibration_examples(dataset: Dataset, count: int) -> tuple[Example, ...]:
    """Choose images of the training split: round by round the lowest pixel hash left of each class.

    Args:
        dataset: only its training split is looked at.
        count: how many; all there are where the split is smaller.

    Raises:
        BadDataError: the training split is empty.
    """
    if not dataset.train:
        raise BadDataError(
            f"`{dataset.name}` has no training images",
            expected="a training split: ranges are never measured on test images",
        )
    return spread_over_classes(dataset.train, count)


def calibration_slices(
    dataset: Dataset, calibrate: int, select: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return two disjoint slices of the training split (temporary: the audit branch has the real one)."""
    drawn = spread_over_classes(dataset.train, calibrate + select)
    count = calibrate if len(drawn) >= calibrate + select else len(drawn) * 2 // 3
    return drawn[:count], drawn[count:]


def images_of(examples: Sequence[Example], rule: Preprocessing) -> Callable[[], Iterator[RgbImage]]:
    """Return a function that gives the images as often as it is called: uint8 (height, width, 3), one at a time."""
    return lambda: (load_image(example.load(), rule) for example in examples)


def spread_over_classes(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Return `count` of the examples, or all, as many of each class as there are, chosen by pixel hash.

    Where images have several labels, the same labels together count as a class.
    """
    ranks: dict[tuple[int, ...], int] = {}
    rounds = []
    for example in sorted(examples, key=lambda example: (example.pixel_sha256, example.labels)):
        rank = ranks.get(example.labels, 0)
        ranks[example.labels] = rank + 1
        rounds.append((rank, example.pixel_sha256, example.labels, example))
    rounds.sort(key=lambda entry: entry[:3])
    return tuple(example for _, _, _, example in rounds[:count])


def check_images_are_real(images: Sequence[RgbImage], *, name: str) -> None:
    """Refuse constant images and noise: ranges measured on them are worth nothing.

    Args:
        images: uint8 (height, width, 3) each, as decoded, before any resizing.
        name: of the data, for the message.

    Raises:
        BadDataError: more than half of the images are of one colour, or neighbouring pixels have nothing to do with each other.
    """
    looked_at = [image for image in images[:_LOOKED_AT] if image.shape[0] > 1 and image.shape[1] > 1]
    correlations = [_neighbour_correlation(image) for image in looked_at]
    real = [value for value in correlations if value is not None]
    if 2 * len(real) < len(correlations):
        raise BadDataError(
            f"{len(correlations) - len(real)} of {len(correlations)} calibration images of `{name}` are of one colour",
            expected="real images of the kind the model was trained on",
        )
    if real and float(np.median(real)) < _MIN_CORRELATION:
        raise BadDataError(
            f"the calibration images of `{name}` look like noise: neighbouring pixels correlate by {np.median(real):.2f}",
            expected=f"real images of the kind the model was trained on, which correlate by more than {_MIN_CORRELATION}",
        )


def _neighbour_correlation(image: RgbImage) -> float | None:
    """Return the correlation of each pixel with the next ones below and to the right; None for an image of one colour."""
    grey: NDArray[np.float64] = image.mean(axis=2)  # (height, width)
    centred = grey - grey.mean()
    variance = float((centred**2).mean())
    if variance < 0.25:  # less than half a step of 255
        return None
    below = float((centred[1:] * centred[:-1]).mean())
    right = float((centred[:, 1:] * centred[:, :-1]).mean())
    return max(below, right) / variance
