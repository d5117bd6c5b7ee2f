"""From what was measured to scales: five estimators for activations, one search for weights.

>>> rng = np.random.default_rng(0)
>>> weight = rng.normal(size=(64, 8))  # (inputs, outputs)
>>> scales = weight_scales(weight, axis=1, mean_square=np.ones(64))
>>> bool((scales <= np.float32(np.abs(weight).max(axis=0) / 127)).all())
True
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgebert.calibration.statistics import ValueStatistics

Estimator = Literal["minmax", "p99.9", "p99.99", "p99.999", "mse"]
ESTIMATORS: tuple[Estimator, ...] = ("mse", "minmax", "p99.999", "p99.99", "p99.9")

_STEPS = 127
_MERGED_BINS = 4096  # 32 of them to a step of the widest range
# Shares of the largest magnitude that are tried as the range: activations may hold far outliers, weights do not
# (compression.md, section 13, searches weights from 0.8).
_ACTIVATION_SHARES = np.concatenate([np.geomspace(0.02, 0.3, 16, endpoint=False), np.linspace(0.3, 1.0, 57)])
_WEIGHT_SHARES = np.linspace(0.6, 1.0, 33)


def activation_scale(
    statistics: ValueStatistics,
    estimator: Estimator,
    *,
    divisor: NDArray[np.float64] | None = None,
    importance: NDArray[np.float64] | None = None,
) -> float:
    """Return the scale of a value: its range divided by 127.

    Args:
        statistics: of the value as it is in the float graph.
        estimator: `minmax` takes the largest magnitude; `p99.9` the magnitude that so many percent do not exceed; `mse` the
            range of the least mean squared error, clipping and rounding together.
        divisor: float64 (channels,): what smoothing divides each channel by.
        importance: float64 (channels,): by how much the squared error of a channel (before the division) counts, as a rule
            the sum of the squared weights that it meets. Read by `mse` alone, of values counted by channel.
    """
    counts, reach = statistics.counts, statistics.reach
    if divisor is not None:
        reach = reach / divisor
    largest = float(reach.max())
    if largest <= 0:
        return 1.0  # the value is always zero; any scale stores it exactly
    if estimator == "minmax":
        return largest / _STEPS
    bins = counts.shape[1]
    weights = counts.astype(np.float64)
    if estimator == "mse" and importance is not None and len(importance) == len(reach):
        spread = importance if divisor is None else importance * divisor**2
        weights *= (spread / max(float(spread.mean()), np.finfo(np.float64).tiny))[:, np.newaxis]
    middles = (np.arange(bins) + 0.5) / bins * reach[:, np.newaxis]  # (rows, bins)
    places = np.minimum((middles / largest * _MERGED_BINS).astype(np.int64), _MERGED_BINS - 1)
    merged = np.bincount(places.ravel(), weights=weights.ravel(), minlength=_MERGED_BINS).astype(np.float64)
    if estimator == "mse":
        return _least_squares(merged, largest) / _STEPS
    reached = np.cumsum(merged) / merged.sum()
    share = float(estimator[1:]) / 100
    at = int(np.searchsorted(reached, share))
    return min(largest, (at + 1) / _MERGED_BINS * largest) / _STEPS


def weight_scales(
    weight: NDArray[np.floating], *, axis: int, mean_square: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return float32 (channels,): for each output channel the scale of the least error in what the layer answers.

    The squared error of each weight counts as the mean square of the input that it meets: the diagonal of the layer's Hessian
    (as in Optimal Brain Damage, LeCun 1989), so that a weight that meets next to nothing may be clipped.

    Args:
        weight: float, any shape.
        axis: which side counts the output channels.
        mean_square: float64, as long as the weight's inputs are, in the order of its other sides: (inputs,) of MatMul and
            Gemm, (inputs / groups,) of Conv, whose kernel places share it. None: all alike.
    """
    rows = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)  # (channels, inputs)
    largest = np.abs(rows).max(axis=1)
    largest = np.where(largest > 0, largest, 1.0)
    counted = np.ones(rows.shape[1])
    if mean_square is not None and mean_square.size and rows.shape[1] % mean_square.size == 0:
        counted = np.repeat(mean_square, rows.shape[1] // mean_square.size)
        counted = counted + 1e-3 * max(float(counted.mean()), np.finfo(np.float64).tiny)  # nothing is free to clip
    best = np.full(len(rows), np.inf)
    chosen = largest / _STEPS
    for share in _WEIGHT_SHARES[::-1]:  # the widest first: a tie keeps it
        scale = largest * share / _STEPS
        steps = np.clip(np.rint(rows / scale[:, np.newaxis]), -_STEPS, _STEPS)
        error = (np.square(rows - steps * scale[:, np.newaxis]) * counted).sum(axis=1)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scale, chosen)
    return chosen.astype(np.float32)


def _least_squares(merged: NDArray[np.float64], largest: float) -> float:
    """Return the range, at most `largest`, that loses least of the magnitudes counted in equal parts from 0 to it."""
    middles = (np.arange(len(merged)) + 0.5) / len(merged) * largest
    occupied = merged > 0
    middles, weights = middles[occupied], merged[occupied]
    best, chosen = np.inf, largest
    for share in _ACTIVATION_SHARES[::-1]:
        scale = largest * share / _STEPS
        error = middles - np.minimum(np.rint(middles / scale), _STEPS) * scale
        # A magnitude spread evenly over its part of the histogram adds the same to every candidate, but for fine scales.
        loss = float((np.square(error) * weights).sum())
        if loss < best:
            best, chosen = loss, largest * share
    return chosen
