from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from edgebert.bench.statistics.decision import VERDICT_EXIT_CODES, Verdict, verdict_of, verdict_of_contrast
from edgebert.bench.statistics.formulas import Interval
from edgebert.bench.statistics.launches import LaunchContrast, launch_contrast


@pytest.mark.parametrize(
    ("ci", "verdict", "exit_code"),
    [
        ((0.90, 0.98), "faster", 0),
        ((0.90, 0.99), "inconclusive", 4),  # a bound on the margin claims nothing
        ((1.02, 1.05), "slower", 3),
        ((1.01, 1.05), "inconclusive", 4),
        ((0.995, 1.005), "equivalent", 0),
        ((1.001, 1.009), "equivalent", 0),  # different from 1, but by less than matters
        ((0.99, 1.005), "inconclusive", 4),
        ((0.97, 1.03), "inconclusive", 4),
        (None, "inconclusive", 4),
    ],
)
def test_verdict_of_is_the_table_of_the_reference(ci: Interval | None, verdict: Verdict, exit_code: int) -> None:
    assert verdict_of(ci, margin=0.01, noise_floor=None) == (verdict, 0.01)
    assert VERDICT_EXIT_CODES[verdict] == exit_code


@pytest.mark.parametrize(
    ("floor", "delta", "verdict"),
    [
        ((0.998, 1.003), 0.01, "slower"),
        ((0.998, 1.0625), 0.0625, "inconclusive"),
        (
            (0.875, 1.003),
            0.125,
            "inconclusive",
        ),  # "no difference above 12 %" would be news of a noisy run, not of the arms
        ((1.03125, 1.0625), 0.0625, "inconclusive"),  # an A/A interval that misses 1 counts in full
    ],
)
def test_verdict_of_claims_only_beyond_what_two_copies_differ_by(floor: Interval, delta: float, verdict: str) -> None:
    assert verdict_of((1.05, 1.07), margin=0.01, noise_floor=floor) == (verdict, delta)


def test_verdict_of_looks_at_obstacles_first() -> None:
    found, _ = verdict_of((2.0, 2.1), margin=0.01, noise_floor=None, obstacles=["data set"])
    assert found == "not comparable"
    assert VERDICT_EXIT_CODES["not comparable"] == 5


def test_verdict_exit_codes_have_every_verdict() -> None:
    assert set(VERDICT_EXIT_CODES) == set(get_args(Verdict))


def _contrast(launches: int, ratio: float) -> LaunchContrast:
    blocks = np.random.default_rng(0).normal(1, 0.001, (launches, 8, 2))
    return launch_contrast(list(blocks), list(ratio * blocks), seed=0)


def test_verdict_of_contrast_claims_nothing_from_a_single_launch() -> None:
    assert verdict_of_contrast(_contrast(1, 1.5), control=None, margin=0.01) == ("inconclusive", 0.01)
    assert verdict_of_contrast(_contrast(1, 1.0), control=_contrast(1, 1.0), margin=0.01)[0] == "inconclusive"


def test_verdict_of_contrast_is_that_of_its_interval_from_two_launches_on() -> None:
    assert verdict_of_contrast(_contrast(2, 1.5), control=_contrast(2, 1.0), margin=0.01)[0] == "slower"
    assert verdict_of_contrast(_contrast(5, 1.5), control=_contrast(5, 1.6), margin=0.01)[0] == "inconclusive"
    assert verdict_of_contrast(_contrast(5, 1.5), control=_contrast(5, 1.6), margin=0.7)[0] == "equivalent"


def test_verdict_of_contrast_is_inconclusive_when_the_control_has_no_interval() -> None:
    blocks = [np.ones((1, 2))] * 2
    control = launch_contrast(blocks, blocks, seed=0)
    assert verdict_of_contrast(_contrast(5, 1.5), control=control, margin=0.01)[0] == "inconclusive"
