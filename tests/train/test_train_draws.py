"""Draws are a pure function, the same for ever, and follow their distributions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgebert.train.draws import noise_bytes, symmetric_beta, uniforms

_MASK = 2**64 - 1


@pytest.fixture(scope="module")
def keys() -> NDArray[np.uint64]:
    return np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)


def _mix(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


def _split_mix(state: int) -> Iterator[int]:
    """SplitMix64 as published, in Python's whole numbers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        yield _mix(state)


def test_split_mix_of_this_test_is_the_published_one() -> None:
    # The first outputs of java.util.SplittableRandom's algorithm for seed 1234567, as many implementations quote them.
    numbers = _split_mix(1234567)
    assert [next(numbers) for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_split_mix_started_by_what_they_are_for() -> None:
    key, stream = 2**63 + 5, hashlib.sha256(b"7 2 shift").digest()[:8]
    numbers = _split_mix(_mix(key ^ int.from_bytes(stream, "little")))
    expected = [(next(numbers) >> 11) / 2**53 for _ in range(4)]
    assert uniforms(7, 2, np.array([key], np.uint64), "shift", 4).tolist() == [expected]


def test_uniforms_stay_the_same_for_ever() -> None:
    # Caches of teachers' answers rest on these: other numbers need another version of `ViewSpec.to_json`.
    drawn = uniforms(0, 1, np.array([0, 2**64 - 1], np.uint64), "shift", 2)
    assert drawn.tolist() == [[0.9363643510310142, 0.9759038306579216], [0.15122213943624907, 0.45017823966270143]]
    assert noise_bytes(0, 1, np.array([3], np.uint64), "erase noise", 9).tolist() == [
        [4, 78, 100, 35, 40, 43, 55, 189, 84]
    ]


def test_uniforms_differ_by_everything_that_goes_in(keys: NDArray[np.uint64]) -> None:
    one = keys[:1]
    drawn = [
        uniforms(0, 0, one, "shift", 1),
        uniforms(1, 0, one, "shift", 1),
        uniforms(0, 1, one, "shift", 1),
        uniforms(0, 0, one, "crop", 1),
        uniforms(0, 0, keys[1:2], "shift", 1),
        uniforms(0, 0, one, "shift", 2)[:, 1:],
    ]
    assert len({float(number) for number in np.ravel(drawn)}) == len(drawn)


def test_uniforms_are_uniform_over_images_banks_and_numbers(keys: NDArray[np.uint64]) -> None:
    over_images = uniforms(0, 0, keys, "shift", 1)[:, 0]
    over_banks = np.array([uniforms(0, bank, keys[:1], "shift", 1)[0, 0] for bank in range(4000)])
    over_numbers = uniforms(0, 0, keys[:1], "shift", 4000)[0]
    over_plain_keys = uniforms(0, 0, np.arange(4000, dtype=np.uint64), "shift", 1)[:, 0]
    for drawn in (over_images, over_banks, over_numbers, over_plain_keys):
        assert stats.kstest(drawn, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.06  # four standard deviations


def test_noise_bytes_are_uniform(keys: NDArray[np.uint64]) -> None:
    drawn = noise_bytes(0, 0, keys[:100], "noise", 1001)
    assert drawn.shape == (100, 1001)
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=256)).pvalue > 0.001


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8, 1.0, 2.0, 10.0])
def test_symmetric_beta_follows_its_distribution(strength: float, keys: NDArray[np.uint64]) -> None:
    shares = symmetric_beta(strength, uniforms(0, 0, keys, "mixup", 2))
    assert bool(((shares >= 0.0) & (shares <= 1.0)).all())
    assert stats.kstest(shares, stats.beta(strength, strength).cdf).pvalue > 0.001


def test_symmetric_beta_is_finite_at_the_ends_of_its_draws() -> None:
    last = math.nextafter(1.0, 0.0)
    ends = np.array([[u, v] for u in (0.0, last) for v in (0.0, 0.25, 0.5, last)])
    for strength in (0.001, 1.0, 10.0):
        assert bool(np.isfinite(symmetric_beta(strength, ends)).all())
