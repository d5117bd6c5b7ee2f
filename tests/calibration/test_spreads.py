"""A shift is told from chance, and from another share of the classes."""

from __future__ import annotations

import numpy as np
import pytest

from edgebert.calibration.spreads import Measure, Spread, Stratum, measures_of, shift_between


def _spread(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], measure: Measure = "brightness") -> Spread:
    spread = Spread(measure)
    for value in values:
        spread.add(float(value))
    return spread


def _normal(seed: int, mean: float, images: int, measure: Measure = "brightness") -> Spread:
    return _spread(np.random.default_rng(seed).normal(mean, 20, images), measure)


def test_shift_between_samples_of_the_same_images_is_ok() -> None:
    found = [shift_between({0: _normal(0, 100, 2000)}, {0: _normal(seed, 100, 150)}) for seed in range(1, 100)]
    assert {shift.severity for shift in found} == {"ok"}


@pytest.mark.parametrize(("shifted", "severity"), [(2, "ok"), (10, "warning"), (30, "bad")])
def test_shift_between_grows_with_the_difference(shifted: float, severity: str) -> None:
    shift = shift_between({0: _normal(0, 100, 2000)}, {0: _normal(1, 100 + shifted, 800)})
    assert shift.severity == severity
    assert shift.standardised == pytest.approx(shifted / 20, abs=0.15)


def test_shift_between_a_handful_of_images_is_chance() -> None:
    assert shift_between({0: _normal(0, 100, 2000)}, {0: _normal(1, 112, 12)}).severity == "ok"


def test_shift_between_other_shares_of_the_classes_is_none() -> None:
    dark, bright = _normal(0, 60, 2000), _normal(1, 180, 200)
    sample: dict[Stratum, Spread] = {0: _normal(2, 60, 300), 1: _normal(3, 180, 300)}
    shift = shift_between({0: dark, 1: bright}, sample)
    assert shift.severity == "ok"
    assert shift.reference_mean == pytest.approx(120, abs=3)


def test_shift_between_finds_another_distribution_of_the_same_mean() -> None:
    two = np.concatenate([np.full(400, 60.0), np.full(400, 140.0)])
    shift = shift_between({0: _spread(np.full(2000, 100.0))}, {0: _spread(two)})
    assert shift.standardised == pytest.approx(0, abs=0.01)
    assert shift.step == pytest.approx(0.5)
    assert shift.severity == "bad"


def test_shift_between_groups_of_one_size_each_is_a_number_and_never_bad() -> None:
    octaves = {side: _spread(np.full(500, np.log2(side)), "size") for side in (28, 64)}
    shift = shift_between({0: octaves[28]}, {0: octaves[64]})
    assert shift.severity == "warning"
    assert np.isfinite(shift.standardised)


def test_spread_counts_values_outside_its_bins_at_the_ends() -> None:
    spread = _spread(np.array([-5.0, 300.0]))
    assert spread.counts[0] == spread.counts[-1] == 1
    assert spread.mean == 147.5


def test_measures_of_an_image() -> None:
    small = np.zeros((4, 4, 3), np.uint8)
    small[:2] = 100
    measured = measures_of(np.zeros((16, 64, 3), np.uint8), small)
    assert measured == {"brightness": 50, "contrast": 50, "size": 5}
