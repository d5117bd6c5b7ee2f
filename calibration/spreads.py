"""How a measure of images spreads, in a sketch of fixed size, and whether two groups of images differ in it.

>>> dark, bright = Spread("brightness"), Spread("brightness")
>>> for step in range(200):
...     dark.add(40 + step % 50)
...     bright.add(80 + step % 50)
>>> shift_between({0: dark}, {0: bright}).severity
'bad'
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgebert.preprocess import RgbImage

Measure = Literal["brightness", "contrast", "size"]
Severity = Literal["ok", "warning", "bad"]

# Lowest value, highest value and bins. Size is the side of the square of equal area, in octaves: 1 to 65,536 pixels.
_BINS: dict[Measure, tuple[float, float, int]] = {
    "brightness": (0.0, 256.0, 64),
    "contrast": (0.0, 128.0, 64),
    "size": (0.0, 16.0, 128),
}
UNITS: dict[Measure, str] = {
    "brightness": "mean grey value, 0 to 255",
    "contrast": "standard deviation of the grey values",
    "size": "side of the square of equal area, pixels",
}

# A shift counts where it is large and more than chance. Large: standardised differences of means of 0.25, the bound that Stuart 2010
# gives after Rubin 2001 for groups in balance, and of 0.8, Cohen's "large". More than chance: one in 10,000 samples of the same
# images, as twelve such questions are asked of each data set (Smirnov's 2.23 = sqrt(-ln(0.0001 / 2) / 2), and 3.9 standard errors).
_LARGE, _VERY_LARGE = 0.25, 0.8
_LARGE_STEP, _VERY_LARGE_STEP = 0.15, 0.4
_CHANCE_OF_MEAN, _CHANCE_OF_STEP = 3.9, 2.23

# Images of one class, or of one set of labels; all of a group are compared class by class.
Stratum: TypeAlias = "tuple[int, ...] | int | None"


class Spread:
    """Count, mean, variance and a histogram of one measure.

    Args:
        measure: decides the bins.
    """

    __slots__ = ("count", "counts", "measure", "square", "total")

    def __init__(self, measure: Measure) -> None:
        self.measure: Measure = measure
        self.counts = np.zeros(_BINS[measure][2], np.int64)  # (bins,)
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """Count one image."""
        low, high, bins = _BINS[self.measure]
        self.counts[min(max(int((value - low) / (high - low) * bins), 0), bins - 1)] += 1
        self.count += 1
        self.total += value
        self.square += value * value

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Variance over the images."""
        return max(self.square / self.count - self.mean**2, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One measure in two groups of images.

    Attributes:
        measure: what is compared; size in octaves.
        reference_mean: of the reference, each class weighed as the sample holds it.
        sample_mean: of the sample.
        standardised: difference of the means in standard deviations, the sample's minus the reference's.
        step: Kolmogorov and Smirnov's distance of the two distributions, 0 to 1, on the histogram's bins.
        chance: standardised difference that one in 10,000 samples of the same images exceeds.
        chance_of_step: the same of `step`.
        reference: share of the reference in each bin.
        sample: the same of the sample.
    """

    measure: Measure
    reference_mean: float
    sample_mean: float
    standardised: float
    step: float
    chance: float
    chance_of_step: float
    reference: tuple[float, ...]
    sample: tuple[float, ...]

    @property
    def severity(self) -> Severity:
        """`ok` for what may be chance or is small; `bad` for brightness or contrast of another kind of images."""
        difference, step = abs(self.standardised), self.step
        chance, chance_of_step = self.chance, self.chance_of_step
        # Sizes are brought to the network's; they alone spoil no range.
        if self.measure != "size" and (
            difference >= max(_VERY_LARGE, chance) or step >= max(_VERY_LARGE_STEP, chance_of_step)
        ):
            return "bad"
        if difference >= max(_LARGE, chance) or step >= max(_LARGE_STEP, chance_of_step):
            return "warning"
        return "ok"

    @property
    def allowed(self) -> str:
        """What would have been no shift, in words."""
        return (
            f"less than {max(_LARGE, self.chance):.2f} standard deviations,"
            f" distributions less than {max(_LARGE_STEP, self.chance_of_step):.2f} apart"
        )


def measures_of(image: RgbImage, small: RgbImage) -> dict[Measure, float]:
    """Return what is looked at in one image.

    Args:
        image: uint8 (height, width, 3), as decoded: its size counts.
        small: the same at the network's size: its brightness and contrast count.
    """
    grey = np.asarray(Image.fromarray(small).convert("L"), np.float32)  # (height, width)
    height, width = image.shape[:2]
    return {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "size": math.log2(height * width) / 2,
    }


def shift_between(reference: Mapping[Stratum, Spread], sample: Mapping[Stratum, Spread]) -> Shift:
    """Compare two groups of images class by class: another share of the classes alone is no shift.

    Args:
        reference: by class; each class counts as much as in the sample.
        sample: by class; classes that the reference lacks are left out.
    """
    shared = [stratum for stratum in sample if stratum in reference]
    assert shared, "a slice of the training images has its classes"
    measure = sample[shared[0]].measure
    images = sum(sample[stratum].count for stratum in shared)
    weights = np.array([sample[stratum].count / images for stratum in shared])
    ours, theirs = [sample[stratum] for stratum in shared], [reference[stratum] for stratum in shared]
    mean, variance, histogram = _mixture(ours, weights)
    reference_mean, reference_variance, reference_histogram = _mixture(theirs, weights)
    # Kish's effective number of images: a class that counts for more than it holds makes the whole less certain.
    effective = 1 / float((weights**2 / [spread.count for spread in theirs]).sum())
    error = math.sqrt(1 / images + 1 / effective)
    low, high, bins = _BINS[measure]
    grain = ((high - low) / bins) ** 2 / 12  # variance inside a bin: groups of one value each still have a scale
    return Shift(
        measure=measure,
        reference_mean=reference_mean,
        sample_mean=mean,
        standardised=(mean - reference_mean) / math.sqrt(max((variance + reference_variance) / 2, grain)),
        step=float(np.abs(np.cumsum(histogram) - np.cumsum(reference_histogram)).max()),
        chance=_CHANCE_OF_MEAN * error,
        chance_of_step=_CHANCE_OF_STEP * error,
        reference=tuple(map(float, reference_histogram)),
        sample=tuple(map(float, histogram)),
    )


def bin_edges(measure: Measure) -> NDArray[np.float64]:
    """Return the edges of the bins, float64 (bins + 1,); of size, in pixels."""
    low, high, bins = _BINS[measure]
    edges = np.linspace(low, high, bins + 1)
    return 2.0**edges if measure == "size" else edges


def shown_value(measure: Measure, value: float) -> str:
    """Return a mean as people read it."""
    return f"{2**value:.0f} px" if measure == "size" else f"{value:.0f}"


def _mixture(spreads: list[Spread], weights: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """Return mean, variance and histogram of classes that count by `weights`."""
    means = np.array([spread.mean for spread in spreads])
    mean = float(weights @ means)
    variance = float(weights @ (np.array([spread.variance for spread in spreads]) + (means - mean) ** 2))
    histogram = weights @ np.stack([spread.counts / spread.count for spread in spreads])  # (bins,)
    return mean, variance, histogram
