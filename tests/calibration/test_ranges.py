"""Each estimator against what its definition gives by brute force, and the laws that smoothing relies on."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.calibration.ranges import ESTIMATORS, Estimator, activation_scale, weight_scales
from edgebert.calibration.statistics import CHANNEL_BINS, TENSOR_BINS, ValueStatistics

Values = NDArray[np.float64]  # (elements, channels)


def _statistics(values: Values, *, by_channel: bool = False) -> ValueStatistics:
    """Measure values as `statistics_of_graph` does."""
    rows = np.abs(values if by_channel else values.reshape(-1, 1))
    bins, reach = CHANNEL_BINS if by_channel else TENSOR_BINS, rows.max(axis=0)
    counts = np.stack(
        [np.histogram(rows[:, channel], bins, (0, reach[channel] or 1))[0] for channel in range(rows.shape[1])]
    )
    return ValueStatistics(
        minimum=values.min(axis=0),
        maximum=values.max(axis=0),
        mean=values.mean(axis=0),
        mean_square=np.square(values).mean(axis=0),
        counts=counts.astype(np.int64),
        reach=reach,
        elements=len(values),
    )


def _loss(values: Values, scale: float, importance: Values | float = 1.0) -> float:
    stored = np.clip(np.rint(values / scale), -127, 127) * scale
    return float((np.square(values - stored) * importance).mean())


def _heavy_tailed() -> Values:
    return np.random.default_rng(0).standard_t(3, (20_000, 1))


def test_estimators_are_all_there_are() -> None:
    assert set(ESTIMATORS) == set(get_args(Estimator))


def test_activation_scale_of_minmax_reaches_the_largest_magnitude() -> None:
    values = _heavy_tailed()
    assert activation_scale(_statistics(values), "minmax") == pytest.approx(float(np.abs(values).max()) / 127)


@pytest.mark.parametrize("estimator", ["p99.9", "p99.99"])
def test_activation_scale_of_a_percentile_is_exceeded_by_the_rest(estimator: Estimator) -> None:
    magnitudes = np.linspace(0, 1, 100_001)[:, np.newaxis]
    share = float(estimator[1:]) / 100
    found = 127 * activation_scale(_statistics(magnitudes), estimator)
    assert found == pytest.approx(share, abs=2 / TENSOR_BINS)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_activation_scale_never_exceeds_the_largest_magnitude(estimator: Estimator) -> None:
    values = _heavy_tailed()
    assert activation_scale(_statistics(values), estimator) <= float(np.abs(values).max()) / 127


def test_activation_scale_of_mse_is_near_the_best_there_is() -> None:
    values = _heavy_tailed()
    largest = float(np.abs(values).max())
    best = min(_loss(values, largest * share / 127) for share in np.linspace(0.02, 1, 200))
    assert _loss(values, activation_scale(_statistics(values), "mse")) <= 1.1 * best


def test_activation_scale_of_mse_loses_less_than_minmax_on_a_heavy_tail() -> None:
    values = _heavy_tailed()
    found = {name: _loss(values, activation_scale(_statistics(values), name)) for name in ("mse", "minmax")}
    assert found["mse"] < 0.95 * found["minmax"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_activation_scale_of_a_value_that_is_always_zero_is_one(estimator: Estimator) -> None:
    zeros = np.zeros((10, 3))
    assert activation_scale(_statistics(zeros, by_channel=True), estimator) == 1.0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_activation_scale_with_a_divisor_is_that_of_the_divided_value(estimator: Estimator) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_t(4, (5_000, 4)) * [1, 5, 0.2, 40]
    divisor = np.array([0.5, 2, 0.1, 30])
    divided = activation_scale(_statistics(values, by_channel=True), estimator, divisor=divisor)
    alone = activation_scale(_statistics(values / divisor, by_channel=True), estimator)
    assert divided == pytest.approx(alone, rel=1e-9)


def test_activation_scale_is_not_changed_by_the_unit_of_importance() -> None:
    values = np.random.default_rng(0).standard_t(3, (5_000, 3)) * [1, 2, 10]
    measured, importance = _statistics(values, by_channel=True), np.array([1.0, 0.2, 4.0])
    found = [activation_scale(measured, "mse", importance=importance * unit) for unit in (1.0, 1e6)]
    assert found[0] == found[1]


def test_activation_scale_with_importance_and_divisor_keeps_the_error_of_the_layer() -> None:
    """What a channel is divided by, its weights are multiplied by: its error counts by the square of that."""
    values = np.random.default_rng(0).standard_t(3, (5_000, 3)) * [1, 2, 10]
    divisor, importance = np.array([0.5, 1, 8]), np.array([1.0, 3.0, 0.5])
    together = activation_scale(_statistics(values, by_channel=True), "mse", divisor=divisor, importance=importance)
    alone = activation_scale(_statistics(values / divisor, by_channel=True), "mse", importance=importance * divisor**2)
    assert together == pytest.approx(alone, rel=1e-9)


def test_activation_scale_of_mse_clips_the_channel_that_nobody_reads() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5_000, 2)) * [1, 30]
    measured = _statistics(values, by_channel=True)
    read = activation_scale(measured, "mse", importance=np.array([1.0, 1.0]))
    unread = activation_scale(measured, "mse", importance=np.array([1.0, 0.0]))
    assert unread < 0.3 * read


def test_activation_scale_reads_importance_in_mse_alone() -> None:
    measured = _statistics(_heavy_tailed().reshape(-1, 2), by_channel=True)
    importance = np.array([1.0, 0.0])
    assert activation_scale(measured, "p99.9", importance=importance) == activation_scale(measured, "p99.9")


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_scales_never_lose_more_than_minmax(axis: int) -> None:
    rng = np.random.default_rng(0)
    weight, mean_square = rng.standard_t(3, (40, 40)), rng.exponential(size=40)
    counted = mean_square + 1e-3 * mean_square.mean()
    rows = np.moveaxis(weight, axis, 0)  # (channels, inputs)
    scales = weight_scales(weight, axis=axis, mean_square=mean_square)
    for row, scale in zip(rows, scales, strict=True):
        plain = float(np.abs(row).max()) / 127
        assert _loss(row, float(scale), counted) <= _loss(row, plain, counted) * (1 + 1e-5)
        assert scale <= np.float32(plain)


def test_weight_scales_are_searched_channel_by_channel() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(3, (30, 5))
    alone = [weight_scales(weight[:, [channel]], axis=1)[0] for channel in range(5)]
    assert weight_scales(weight, axis=1).tolist() == alone


def test_weight_scales_clip_what_meets_nothing() -> None:
    weight = np.full((16, 1), 0.5)
    weight[0] = 1.0
    met = np.ones(16)
    met[0] = 0.0
    assert weight_scales(weight, axis=1, mean_square=met)[0] < weight_scales(weight, axis=1)[0]


def test_weight_scales_share_the_input_among_the_places_of_a_kernel() -> None:
    rng = np.random.default_rng(0)
    kernel, mean_square = rng.standard_t(3, (6, 4, 3, 3)), rng.exponential(size=4)
    flat = weight_scales(kernel.reshape(6, 36), axis=0, mean_square=np.repeat(mean_square, 9))
    np.testing.assert_array_equal(weight_scales(kernel, axis=0, mean_square=mean_square), flat)


def test_weight_scales_of_a_dead_channel_are_positive() -> None:
    weight = np.ones((4, 2))
    weight[:, 1] = 0
    assert (weight_scales(weight, axis=1, mean_square=np.ones(4)) > 0).all()
