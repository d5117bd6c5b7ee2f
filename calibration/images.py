"""Which images the ranges are measured on: training images, as many of each class, the same on every machine.

Each picture is drawn once, whatever number of files holds it, and none that lies in the test or validation split as well.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert._sources import shortened
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing, RgbImage, load_image

_log = logging.getLogger("edgebert")

FEWEST_IMAGES = 16  # as `QuantizeOptions.images`
FEW_IMAGES = 100  # below, the largest value of an activation still grows with every image that is added

# Medians over 64 images, measured: neighbouring pixels correlate by 0.99 in blood-cell photographs, 0.70 in the 8x8 digits
# and 0.03 in noise (0.02 from 16x16 on).
_MIN_CORRELATION = 0.15
_LOOKED_AT = 64
_BLACK = 3  # of 255: no pixel is brighter in an image of a covered lens that JPEG has rounded
_SOME = 0.05  # of the images looked at


def calibration_slices(
    dataset: Dataset, calibrate: int, select: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Draw two disjoint slices of the training split: ranges are measured on the first, candidates compared on the second.

    Round by round the lowest pixel hash left of each class. A class with few images gives both slices their share of it.

    Args:
        dataset: its training split is drawn from; its other splits are only compared with it, by pixel hash.
        calibrate: images of the first slice.
        select: images of the second; 0 for none. Where there are too few for both, two thirds go to the first.

    Raises:
        BadDataError: fewer than 16 different training images, or all drawn are of one class while there are several, or
            a training image is in the test or validation split as well.
    """
    _check_no_leak(dataset)
    unique = one_per_picture(dataset.train)
    _check_count(dataset, len(unique))
    first_count, second_count = _counts(len(unique), calibrate, select)
    if first_count < calibrate or second_count < select:
        what = "all of them calibrate" if not select else f"{first_count} calibrate and {second_count} choose"
        _log.info("the training split has %s different images: %s", f"{len(unique):,}", what)
    first = spread_over_classes(_first_share(unique, first_count, second_count), first_count)
    taken = {example.pixel_sha256 for example in first}
    second = spread_over_classes([example for example in unique if example.pixel_sha256 not in taken], second_count)
    _check_classes(dataset, first, "the calibration images")
    if second:
        _check_classes(dataset, second, "the images that choose between candidates")
    return first, second


def calibration_examples(dataset: Dataset, count: int) -> tuple[Example, ...]:
    """Draw the images that ranges are measured on where no others choose: the first of `calibration_slices`.

    Args:
        dataset: its training split is drawn from.
        count: how many; all there are where the split is smaller.

    Raises:
        BadDataError: as `calibration_slices`.
    """
    return calibration_slices(dataset, count, 0)[0]


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


def one_per_picture(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Return one example of each pixel hash, in the order of the hashes; of several labels the lowest."""
    found: dict[str, Example] = {}
    for example in sorted(examples, key=lambda example: (example.pixel_sha256, example.labels, example.id)):
        found.setdefault(example.pixel_sha256, example)
    return tuple(found.values())


def leaked_pairs(dataset: Dataset) -> tuple[tuple[Example, Example], ...]:
    """Return the training images whose pixels are in test or val as well, each with one that it equals.

    Only equal pixels count; near duplicates are for the audit to find.
    """
    others = {example.pixel_sha256: example for example in (*dataset.val, *dataset.test)}
    return tuple((example, others[example.pixel_sha256]) for example in dataset.train if example.pixel_sha256 in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look at the first images shows.

    Attributes:
        images: how many were looked at; those of one row or column of pixels are not.
        one_colour: of them, images whose pixels are all equal or next to it.
        black: of these, images without any pixel above 3 of 255.
        correlation: median correlation of neighbouring pixels in the others; None where there are none.
    """

    images: int
    one_colour: int
    black: int
    correlation: float | None

    def fault(self, name: str) -> BadDataError | None:
        """Return why nothing can be measured on these images, or None."""
        real = "real images of the kind the model was trained on"
        if self.images and self.black == self.images:
            return BadDataError(
                f"the {self.images} calibration images of `{name}` that were looked at are black", expected=real
            )
        if self.images and self.one_colour == self.images:
            return BadDataError(
                f"the {self.images} calibration images of `{name}` that were looked at are of one colour each",
                expected=real,
            )
        if 2 * self.one_colour > self.images:
            return BadDataError(
                f"{self.one_colour} of {self.images} calibration images of `{name}` are of one colour", expected=real
            )
        if self.correlation is not None and self.correlation < _MIN_CORRELATION:
            return BadDataError(
                f"the calibration images of `{name}` look like noise: neighbouring pixels correlate by"
                f" {self.correlation:.2f}",
                expected=f"{real}, which correlate by more than {_MIN_CORRELATION}",
            )
        return None

    def doubt(self) -> str | None:
        """Return what a warning says of these images, or None."""
        if self.one_colour == 0 or self.one_colour < _SOME * self.images:
            return None
        return f"{self.one_colour} of {self.images} calibration images are of one colour, {self.black} of them black"


def look_at_images(images: Iterable[RgbImage]) -> Look:
    """Look at the first 64 images, one at a time.

    Args:
        images: uint8 (height, width, 3) each, as decoded, before any resizing.
    """
    seen = one_colour = black = 0
    correlations: list[float] = []
    for image in itertools.islice(images, _LOOKED_AT):
        if image.shape[0] < 2 or image.shape[1] < 2:
            continue
        seen += 1
        correlation = _neighbour_correlation(image)
        if correlation is None:
            one_colour += 1
            black += int(image.max() <= _BLACK)
        else:
            correlations.append(correlation)
    median = float(np.median(correlations)) if correlations else None
    return Look(images=seen, one_colour=one_colour, black=black, correlation=median)


def check_images_are_real(images: Iterable[RgbImage], *, name: str) -> None:
    """Refuse constant images and noise: ranges measured on them are worth nothing. Warn where some are of one colour.

    Args:
        images: uint8 (height, width, 3) each, as decoded, before any resizing; the first 64 are looked at.
        name: of the data, for the message.

    Raises:
        BadDataError: all of the images are black, or all or most are of one colour each, or neighbouring pixels have
            nothing to do with each other.
    """
    look = look_at_images(images)
    fault, doubt = look.fault(name), look.doubt()
    if fault is not None:
        raise fault
    if doubt is not None:
        _log.warning("%s; ranges are measured on what the others show", doubt)


def _check_no_leak(dataset: Dataset) -> None:
    leaks = leaked_pairs(dataset)
    if leaks:
        train, other = leaks[0]
        split = "val" if any(other is example for example in dataset.val) else "test"
        raise BadDataError(
            f"{len(leaks):,} training image(s) of `{dataset.name}` are in test or val as well, the first is"
            f" `{train.id}` = `{other.id}` ({split})",
            expected="no training image among those that INT8 is judged on",
            hint="remove them from the training split",
        )


def _check_count(dataset: Dataset, images: int) -> None:
    if not images:
        raise BadDataError(
            f"`{dataset.name}` has no training images",
            expected="a training split: ranges are never measured on test images",
        )
    if images < FEWEST_IMAGES:
        raise BadDataError(
            f"`{dataset.name}` has {images} different training image(s)",
            expected=f"at least {FEWEST_IMAGES} to measure ranges on, better {FEW_IMAGES} and more",
            hint="add training images",
        )
    if images < FEW_IMAGES:
        _log.warning(
            "`%s` has only %d different training images: ranges of fewer than %d are uncertain",
            dataset.name,
            images,
            FEW_IMAGES,
        )


def _counts(images: int, calibrate: int, select: int) -> tuple[int, int]:
    """Return how many images each slice gets; two thirds for the first where there are too few for both."""
    if images >= calibrate + select:
        return calibrate, select
    first = min(calibrate, -(-2 * images // 3)) if select else min(calibrate, images)
    second = min(select, images - first)
    return min(calibrate, images - second), second


def _first_share(unique: Sequence[Example], first: int, second: int) -> list[Example]:
    """Return what the first slice is drawn from: of each class its share, rounded up, in the order of the hashes.

    Without it a class of twenty images would lie in the first slice altogether, and nothing of it in the second.
    """
    sizes: dict[tuple[int, ...], int] = {}
    for example in unique:
        sizes[example.labels] = sizes.get(example.labels, 0) + 1
    whole = max(first + second, 1)
    left = {labels: -(-size * first // whole) for labels, size in sizes.items()}
    share = []
    for example in unique:
        if left[example.labels]:
            left[example.labels] -= 1
            share.append(example)
    return share


def _check_classes(dataset: Dataset, drawn: Sequence[Example], what: str) -> None:
    """Refuse images of one class where there are several, and warn of classes that none shows."""
    if dataset.task == "unlabelled" or len(dataset.class_names) < 2:
        return
    shown = {label for example in drawn for label in example.labels}
    if len(shown) < 2:
        names = shortened([dataset.class_names[label] for label in shown]) or "no class"
        raise BadDataError(
            f"{what} of `{dataset.name}` all show {names}",
            expected=f"images of all {len(dataset.class_names)} classes",
            hint="add training images of the others",
        )
    missing = [name for number, name in enumerate(dataset.class_names) if number not in shown]
    if missing:
        _log.warning("%s show nothing of class %s", what, shortened(missing))


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
