"""Strict JSON for everything edgebert writes and later reads back: no duplicate keys, no NaN, bounded size and depth.

No input makes it slow or deep: sizes are looked at before anything is parsed, and numbers before they are converted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

from edgebert.errors import BadDataError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
JsonObject: TypeAlias = Mapping[str, JsonValue]

MAX_DEPTH = 32
_MAX_DIGITS = 40  # of an integer: no count needs more, and every such number fits a float
_MAX_FLOAT_TEXT = 400  # characters; Python writes 24 at most, and nobody needs more to say one

# `\ud800` to `\udfff`: halves of a character, which are no text unless they come in pairs.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

# Control characters, line separators and what turns the direction of writing: they let a text show what it does not say.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# The same in JSON, where they stand as they are or escaped; C0 as they are is layout outside of strings, and refused inside.
_UNPRINTABLE_IN_JSON = re.compile(
    "[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
    r"|(?<!\\)(?:\\\\)*\\(?:[bfnrt]|u00[01]|u007[fF]|u00[89]|u202[89aAbBcCdDeE]|u206[6-9])"
)

# Where there is neither an exponent of three digits nor so long a number, no number is infinite or takes long to convert.
_ODD_NUMBER = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{41}")


def dump_json(value: JsonValue) -> str:
    """Return `value` as JSON text with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def parse_json_object(
    text: bytes | str,
    *,
    what: str,
    max_bytes: int = 64 << 20,
    max_values: int | None = None,
    only_plain_texts: bool = False,
) -> dict[str, JsonValue]:
    """Parse one JSON object strictly.

    Args:
        text: UTF-8 bytes or text.
        what: what is being read, for the message, such as "manifest.json of `widgets.edgebert`".
        max_bytes: longer input is refused unread.
        max_values: input with more brackets, braces and commas than this is refused unread, those inside strings counted
            too: a megabyte of `[],[],…` takes thirty megabytes of memory. None sets no limit.
        only_plain_texts: refuse texts that are not (`is_plain_text`).

    Raises:
        BadDataError: not UTF-8, not JSON, a duplicate key, NaN or infinity, half a character (a lone surrogate), nested too
            deep, too long, not an object.
    """
    if len(text) > max_bytes:
        raise BadDataError(f"{what} has {len(text):,} bytes", expected=f"at most {max_bytes:,}")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        if max_values is not None and sum(map(decoded.count, "[{,")) > max_values:
            raise ValueError(f"more than {max_values:,} values")
        if only_plain_texts and (odd := _UNPRINTABLE_IN_JSON.search(decoded)):
            raise ValueError(f"a text holds `{shown(odd[0])}`, a control character")
        is_odd = _ODD_NUMBER.search(decoded) is not None
        value = json.loads(
            decoded,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float if is_odd else None,
            parse_int=_bounded_int if is_odd else None,
        )
        too_deep = depth_of(value) > MAX_DEPTH
        if _SURROGATE.search(decoded):
            json.dumps(value, ensure_ascii=False).encode()  # a ValueError where a half has no other half
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadDataError(f"{what} holds a {type(value).__name__}", expected="a JSON object")
    if too_deep:
        raise BadDataError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return value


class Fields:
    """Typed access to the fields of a parsed JSON object; every mismatch is a `BadDataError` naming the field."""

    def __init__(self, value: JsonValue, *, what: str) -> None:
        if not isinstance(value, Mapping):
            raise BadDataError(f"{what} holds `{value!r}`", expected="a JSON object")
        self.value = value
        self.what = what

    def _refuse(self, key: str, expected: str) -> NoReturn:
        found = f"`{self.value[key]!r:.80}`" if key in self.value else "nothing"
        raise BadDataError(f"{self.what} holds {found} as `{key}`", expected=expected)

    def text(self, key: str) -> str:
        value = self.value.get(key)
        return value if isinstance(value, str) else self._refuse(key, "a string")

    def optional_text(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def integer(self, key: str) -> int:
        value = self.value.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else self._refuse(key, "an integer")

    def number(self, key: str) -> float:
        number = _finite(self.value.get(key))
        return self._refuse(key, "a finite number") if number is None else number

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key)
        if isinstance(value, (list, tuple)) and all(isinstance(entry, str) for entry in value):
            return tuple(str(entry) for entry in value)
        return self._refuse(key, "a list of strings")

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.value.get(key)
        if not isinstance(value, (list, tuple)):
            return self._refuse(key, "a list of numbers")
        numbers = [number for number in map(_finite, value) if number is not None]
        return tuple(numbers) if len(numbers) == len(value) else self._refuse(key, "a list of finite numbers")

    def rows_of_numbers(self, key: str) -> tuple[tuple[float, ...], ...]:
        value = self.value.get(key)
        if not isinstance(value, (list, tuple)):
            return self._refuse(key, "a list of lists of numbers")
        return tuple(Fields({key: row}, what=self.what).numbers(key) for row in value)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.value.get(key)
        if isinstance(value, (list, tuple)) and all(type(entry) is int for entry in value):
            return tuple(entry for entry in value if isinstance(entry, int))
        return self._refuse(key, "a list of integers")

    def fields(self, key: str) -> Fields:
        value = self.value.get(key)
        return (
            Fields(value, what=f"{self.what}, `{key}`")
            if isinstance(value, Mapping)
            else self._refuse(key, "an object")
        )

    def list_of_fields(self, key: str) -> tuple[Fields, ...]:
        value = self.value.get(key)
        if not isinstance(value, (list, tuple)):
            return self._refuse(key, "a list of objects")
        return tuple(Fields(entry, what=f"{self.what}, `{key}`[{index}]") for index, entry in enumerate(value))


def flat(value: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Return nested objects as one, lists as tuples, so that two can be compared name by name.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': (2,)}
    """
    found: dict[str, JsonValue] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found.update(flat(entry, f"{prefix}{name}."))
        else:
            found[prefix + name] = tuple(entry) if isinstance(entry, (list, tuple)) else entry
    return found


def depth_of(value: JsonValue) -> int:
    """Return how many objects and lists lie inside each other.

    >>> depth_of(1), depth_of({"a": [1]})
    (0, 2)
    """
    if isinstance(value, Mapping):
        return 1 + max((depth_of(entry) for entry in value.values()), default=0)
    if isinstance(value, (list, tuple)):
        return 1 + max((depth_of(entry) for entry in value), default=0)
    return 0


def is_plain_text(text: str) -> bool:
    """Say whether a text holds no control character, no line break, no change of direction and no half character.

    >>> is_plain_text("Schraube, groß"), is_plain_text("bolt\\x1b[2J")
    (True, False)
    """
    return _UNPRINTABLE.search(text) is None


def shown(text: str, most: int = 80) -> str:
    """Return a text of unknown origin as a message may show it: short, and everything odd in it escaped.

    >>> shown("a" * 100, 4), shown("caf\\xe9\\n")
    ('aaaa…', 'café\\\\n')
    """
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)


def _finite(value: JsonValue) -> float | None:
    """Return a number as float; None for anything else, and for `1e999` and integers beyond a float's range."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _object_without_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"duplicate key `{shown(twice)}`")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"`{name}` is not a finite number")


def _finite_float(text: str) -> float:
    if len(text) > _MAX_FLOAT_TEXT:
        raise ValueError(f"a number has {len(text)} characters")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"`{text:.40}` is not a finite number")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
