"""How times, sizes, shares and factors are written in tables, sentences and figures.

>>> milliseconds(1_234_567), size_text(12_345_678), percent(0.9987), factor_text(3.951)
('1.23', '12.3 MB', '99.87', '3.95')
"""

from __future__ import annotations

NONE = "–"


def milliseconds(nanoseconds: float) -> str:
    """Return a time in milliseconds with three significant digits, without exponent."""
    value = nanoseconds / 1e6
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"


def duration_text(nanoseconds: float) -> str:
    """Return a time with the unit that suits it, three significant digits: `185 ns`, `1.4 µs`, `2.31 ms`, `4.2 s`."""
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= 0.9995 * scale:
            return f"{_three(nanoseconds / scale)} {unit}"
    return f"{nanoseconds:.0f} ns"


def duration_range(low: float, high: float) -> str:
    """Return the two ends of an interval of times, with one unit where both have it: `289 – 313 ms`."""
    first, second = duration_text(low), duration_text(high)
    number, _, unit = first.partition(" ")
    return range_text(number if second.endswith(f" {unit}") else first, second)


def size_text(count: int) -> str:
    """Return bytes in kB or MB (powers of ten), three significant digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.3g} kB" if count < 999_500 else f"{count / 1e3:.0f} kB"


def count_text(count: int | None) -> str:
    """Return a number of parameters, such as `1.24 M`."""
    if count is None:
        return NONE
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return str(count)


def percent(share: float) -> str:
    """Return a share in per cent with two decimals; 100 only where nothing is missing."""
    text = f"{100 * share:.2f}"
    return "99.99" if text == "100.00" and share < 1 else text


def points(share: float) -> str:
    """Return a difference of shares in percentage points with its sign, such as `−0.42`."""
    text = f"{100 * share:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def factor_text(factor: float) -> str:
    """Return a factor with three significant digits, without exponent."""
    return f"{factor:.3g}" if 0.001 <= factor < 999.5 else f"{factor:.0f}" if factor >= 1 else f"{factor:.6f}"


def ratio_text(ratio: float) -> str:
    """Return a ratio of times with three decimals: near 1 they are what matters."""
    return f"{ratio:.3f}" if ratio < 9.9995 else factor_text(ratio)


def rate_text(rate: float) -> str:
    """Return images per second: whole ones from ten on."""
    return f"{rate:,.0f}" if rate >= 9.5 else f"{rate:.2g}"


def chance_text(p_value: float) -> str:
    """Return the p of a test, such as `p = 0.031`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def range_text(low: str, high: str) -> str:
    """Return the two ends of an interval."""
    return f"{low} – {high}"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
