"""Two quantised graphs on the same images: by how much one is nearer to the FP32 graph, with an interval over the images.

Paired: the same image is hard for both, so the difference is taken image by image and the images are resampled. Two separate
intervals that overlap would say much less.

>>> interval = mean_interval(np.array([0.0, 1.0, 1.0, 0.0] * 25), seed=0)
>>> interval.value, round(interval.low, 2), round(interval.high, 2)
(0.5, 0.4, 0.6)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.decisions import softmax

RESAMPLES = 2_000
_CHUNK = 100  # resamples at a time: 100 x 10,000 picks are 8 MB

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over images and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def kl_by_image(before: NDArray[np.floating], after: NDArray[np.floating]) -> FloatArray:
    """Return KL(p_before || p_after) of every image in nats, float64 (images,), of the softmax of the logits.

    Args:
        before: logits of the FP32 graph, (images, classes).
        after: logits of the INT8 graph, the same shape.
    """
    p = softmax(before)
    logarithms = _log_softmax(before) - _log_softmax(after)  # (images, classes)
    # Below 0 by rounding alone.
    divergence: FloatArray = np.maximum((p * logarithms).sum(axis=1), 0.0)
    return divergence


def agreement_by_image(before: NDArray[np.floating], after: NDArray[np.floating]) -> FloatArray:
    """Return 1.0 for every image that both give the same class and 0.0 for the others, float64 (images,)."""
    return (before.argmax(axis=1) == after.argmax(axis=1)).astype(np.float64)


def mean_interval(values: FloatArray, *, seed: int) -> Interval:
    """Return the mean of the values and its 95 % percentile bootstrap interval over images.

    Args:
        values: one for each image, or the difference of two, float64 (images,).
        seed: of the resampling; the same for every pair of a table.
    """
    generator = np.random.default_rng([seed, 5])
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(_CHUNK, len(values)))].mean(axis=1)  # (chunk,)
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(value=float(values.mean()), low=float(low), high=float(high))


def _log_softmax(logits: NDArray[np.floating]) -> FloatArray:
    wide = logits.astype(np.float64)
    shifted: FloatArray = wide - wide.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
