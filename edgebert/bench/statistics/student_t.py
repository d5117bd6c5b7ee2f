"""Student's t distribution, for intervals over few launches: scipy is too large for a device (bench.md, section 14).

The tail comes from the regularised incomplete beta function by its continued fraction, the quantile from bisection of the
tail. Both are held against scipy in the tests.

>>> round(t_quantile(0.975, 4), 3)
2.776
>>> round(2 * t_tail(2.776445, 4), 4)
0.05
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300  # keeps Lentz's divisions finite
_EPSILON = 1e-16
_MAX_TERMS = 10_000  # the fraction needs O(sqrt(max(a, b))) terms; this is reached by nobody
_BISECTIONS = 200


def t_tail(value: float, degrees: float) -> float:
    """Return P(T > value) of Student's t.

    P(T > t) = I_x(degrees / 2, 1 / 2) / 2 with x = degrees / (degrees + t^2), for t >= 0 (DLMF 8.17; Abramowitz and
    Stegun 26.7.1).

    Args:
        value: any number.
        degrees: of freedom, above 0; need not be whole (Welch).
    """
    assert degrees > 0
    if math.isinf(value):
        return 0.0 if value > 0 else 1.0
    square = value * value
    upper = 0.5 * _incomplete_beta(square / (degrees + square), degrees / (degrees + square), 0.5 * degrees)
    return upper if value >= 0 else 1.0 - upper


@lru_cache(maxsize=1024)
def t_quantile(probability: float, degrees: float) -> float:
    """Return t such that P(T <= t) = `probability`.

    Args:
        probability: in (0, 1).
        degrees: of freedom, above 0; need not be whole.
    """
    assert 0 < probability < 1
    if probability < 0.5:
        return -t_quantile(1.0 - probability, degrees)
    tail = 1.0 - probability
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > tail:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if t_tail(middle, degrees) > tail else (low, middle)
    return 0.5 * (low + high)


def expanded_confidence(units: int, confidence: float) -> float:
    """Return the confidence to ask of a percentile bootstrap of few units, so that its interval holds with `confidence`.

    Such an interval takes the normal quantile for Student's and the variance over n for that over n - 1. Its tails are
    therefore those of the normal distribution at sqrt(n / (n - 1)) t(n - 1): Hesterberg (2015), "What Teachers Should Know
    About the Bootstrap", section 4.

    >>> round(expanded_confidence(5, 0.95), 4), round(expanded_confidence(1_000, 0.95), 4)
    (0.9981, 0.9504)
    """
    assert units >= 2
    t = t_quantile(1 - (1 - confidence) / 2, units - 1)
    return 1 - math.erfc(math.sqrt(units / (units - 1)) * t / math.sqrt(2))


def _incomplete_beta(rest: float, x: float, a: float) -> float:
    """Return I_x(a, 1/2); `rest` is 1 - x, given apart because the subtraction would lose it where x is near 1."""
    b = 0.5
    if x <= 0.0:
        return 0.0
    if rest <= 0.0:
        return 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    )  # x^a (1 - x)^b / B(a, b)
    # The fraction converges quickly below the mean of the beta distribution; above it the mirrored one does.
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(x, a, b) / a
    return 1.0 - front * _beta_fraction(rest, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of DLMF 8.17.22 by the modified method of Lentz (Thompson and Barnett 1986)."""
    denominator = _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    numerator, found = 1.0, 1.0 / denominator
    inverse = found
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for coefficient in (even, odd):
            inverse = 1.0 / _away_from_zero(1.0 + coefficient * inverse)
            numerator = _away_from_zero(1.0 + coefficient / numerator)
            found *= inverse * numerator
        if abs(inverse * numerator - 1.0) < _EPSILON:
            break
    return found


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
