"""Random draws that are a pure function of what they are for: no generator, no state, no order.

Every draw hashes (seed, bank, image, purpose, number), so that it does not matter which process asks, in which batch an
image stands or what was drawn before.

>>> import numpy as np
>>> keys = np.array([5, 7], np.uint64)
>>> both, second = (uniforms(0, 3, some, "shift", 2) for some in (keys, keys[1:]))
>>> bool((both[1] == second[0]).all())
True
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# SplitMix64: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figures 16 and 17; the mixing
# constants are Stafford's variant 13, as in java.util.SplittableRandom.
_GAMMA = 0x9E3779B97F4A7C15
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniforms(seed: int, bank: int, keys: NDArray[np.uint64], what: str, count: int) -> NDArray[np.float64]:
    """Return numbers drawn evenly from [0, 1): float64 (images, count).

    Args:
        seed: of all views.
        bank: which view of each image.
        keys: uint64 (images,), one for each image.
        what: what the numbers are for; other words give other numbers.
        count: numbers for each image; more of them begin with the same ones.
    """
    # The upper 53 bits, which a float64 holds exactly.
    numbers: NDArray[np.float64] = (_bits(seed, bank, keys, what, count) >> np.uint64(11)).astype(np.float64)
    numbers *= 2.0**-53
    return numbers


def noise_bytes(seed: int, bank: int, keys: NDArray[np.uint64], what: str, count: int) -> NDArray[np.uint8]:
    """Return whole numbers drawn evenly from 0 to 255: uint8 (images, count); arguments as for `uniforms`."""
    bits = _bits(seed, bank, keys, what, -(-count // 8)).astype("<u8", copy=False)
    return bits.view(np.uint8)[:, :count]


def symmetric_beta(strength: float, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn pairs of uniform draws into draws from Beta(strength, strength): float64 (images,) in [0, 1].

    Bailey's 1994 polar form of Student's t with 2a degrees of freedom, T = sqrt(2a (U^(-1/a) - 1)) cos(2 pi V), and the
    identity Beta(a, a) = (1 + T / sqrt(2a + T^2)) / 2; both together in Devroye 1996, "Random variate generation in one
    line of code", section 4. It needs no rejection, so the number of draws is fixed, and no library's quantiles.

    Args:
        strength: a, above 0.
        draws: float64 (images, 2) in [0, 1).
    """
    power = each(lambda draw: draw ** (1.0 / strength), draws[:, 0])  # U^(1/a)
    cosine = each(lambda draw: math.cos(2.0 * math.pi * draw), draws[:, 1])
    spread = cosine * cosine * (1.0 - power)
    # Multiplied by U^(1/a) above and below, so that nothing overflows where a is small.
    shares: NDArray[np.float64] = 0.5 + 0.5 * np.sign(cosine) * np.sqrt(spread / (spread + power))
    return shares


def each(function: Callable[[float], float], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a function of one number to each of an array.

    numpy's own cosines and powers take one of several ways to the last bit by the array's length and strides; those of
    `math` have one.
    """
    return np.array([function(value) for value in values.tolist()], np.float64)


def _bits(seed: int, bank: int, keys: NDArray[np.uint64], what: str, count: int) -> NDArray[np.uint64]:
    stream = hashlib.sha256(f"{seed} {bank} {what}".encode()).digest()[:8]
    start = _mixed(keys ^ np.uint64(int.from_bytes(stream, "little")))  # (images,)
    return _mixed(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST_FACTOR
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND_FACTOR
    mixed: NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed
