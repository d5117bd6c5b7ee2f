"""JSON that edgebert reads back: strict, and every refusal is a `BadDataError`, never a crash."""

from __future__ import annotations

import pytest

from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.errors import BadDataError


def test_dump_json_gives_equal_bytes_for_equal_values() -> None:
    first: JsonObject = {"b": [1, 2.5], "a": {"ü": None, "t": True}}
    second: JsonObject = {"a": {"t": True, "ü": None}, "b": [1, 2.5]}
    assert dump_json(first) == dump_json(second)
    assert parse_json_object(dump_json(first), what="it") == first


def test_dump_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"a": float("nan")})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        '"x"',
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": -1e999}',
        '{"a": ' + "9" * 41 + "}",
        '{"a": 1} x',
        "{'a': 1}",
        '{"a": 1,}',
        '\ufeff{"a": 1}',
        b'{"a": "\xff"}',
        '{"a": ' + "[" * 40 + "]" * 40 + "}",
        '{"a": ' + "[" * 500 + "]" * 500 + "}",
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a":' * 40 + "1" + "}" * 40,
    ],
    ids=lambda text: repr(text[:24]),
)
def test_parse_json_object_refuses(text: str | bytes) -> None:
    with pytest.raises(BadDataError, match="manifest"):
        parse_json_object(text, what="manifest")


def test_parse_json_object_refuses_long_input_unread() -> None:
    with pytest.raises(BadDataError, match="11 bytes"):
        parse_json_object("not JSON at"[:11], what="manifest", max_bytes=10)


def test_parse_json_object_takes_what_is_within_the_limits() -> None:
    assert parse_json_object('{"a": ' + "9" * 40 + "}", what="it") == {"a": int("9" * 40)}
    assert parse_json_object(b'{"a": 1.5e3, "b": "\xc3\xbc"}', what="it") == {"a": 1500.0, "b": "ü"}


FIELDS = Fields(
    {
        "text": "x",
        "none": None,
        "integer": 3,
        "number": 2.5,
        "true": True,
        "texts": ["a", "b"],
        "numbers": [1, 2.5],
        "object": {"inner": 1},
        "objects": [{"inner": 1}, {"inner": 2}],
    },
    what="card",
)


def test_fields_give_typed_values() -> None:
    assert FIELDS.text("text") == "x"
    assert FIELDS.optional_text("none") is None
    assert FIELDS.optional_text("absent") is None
    assert FIELDS.optional_text("text") == "x"
    assert FIELDS.integer("integer") == 3
    assert FIELDS.number("integer") == 3.0
    assert FIELDS.texts("texts") == ("a", "b")
    assert FIELDS.numbers("numbers") == (1.0, 2.5)
    assert FIELDS.fields("object").integer("inner") == 1
    assert [fields.integer("inner") for fields in FIELDS.list_of_fields("objects")] == [1, 2]


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("text", "integer"),
        ("text", "absent"),
        ("optional_text", "integer"),
        ("integer", "number"),
        ("integer", "true"),
        ("number", "true"),
        ("number", "text"),
        ("texts", "numbers"),
        ("texts", "text"),
        ("numbers", "texts"),
        ("numbers", "integer"),
        ("fields", "texts"),
        ("list_of_fields", "object"),
        ("list_of_fields", "texts"),
    ],
)
def test_fields_refuse_another_type_naming_the_field(method: str, key: str) -> None:
    with pytest.raises(BadDataError, match=rf"card.*`{key}`"):
        getattr(FIELDS, method)(key)


@pytest.mark.parametrize("value", [None, 1, "x", [1]])
def test_fields_refuse_what_is_no_object(value: JsonValue) -> None:
    with pytest.raises(BadDataError, match="card"):
        Fields(value, what="card")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud800"}',
        '{"\\udc00": 1}',
        '{"a": "\\ude00\\ud83d"}',
        '{"a": 0.' + "1" * 500 + "}",
        '{"a": 1e' + "9" * 500 + "}",
    ],
    ids=lambda text: text[:14],
)
def test_parse_json_object_refuses_half_characters_and_endless_numbers(text: str) -> None:
    with pytest.raises(BadDataError, match="manifest"):
        parse_json_object(text, what="manifest")


def test_parse_json_object_takes_pairs_of_surrogates_and_long_fractions() -> None:
    assert parse_json_object('{"a": "\\ud83d\\ude00"}', what="it") == {"a": "😀"}
    assert parse_json_object('{"a": 0.' + "1" * 50 + ', "b": 1e+100}', what="it") == {"a": 1 / 9, "b": 1e100}


def test_parse_json_object_counts_values_before_it_parses() -> None:
    assert parse_json_object('{"a": [1, 2]}', what="it", max_values=3) == {"a": [1, 2]}
    with pytest.raises(BadDataError, match="more than 3 values"):
        parse_json_object('{"a": [[], [], [', what="it", max_values=3)


@pytest.mark.parametrize(
    "char", ["\\n", "\\t", "\\u001b", "\\u007f", "\\u0085", "\x85", "\\u2028", "\u2028", "\u202e", "\\u2066"]
)
@pytest.mark.parametrize("text", ['{{"a": "x{}"}}', '{{"x{}": 1}}', '{{"a": ["\\\\\\\\{}"]}}'])
def test_parse_json_object_refuses_texts_that_are_not_plain(text: str, char: str) -> None:
    odd = text.format(char)
    assert parse_json_object(odd, what="it")
    with pytest.raises(BadDataError, match="control character"):
        parse_json_object(odd, what="it", only_plain_texts=True)


@pytest.mark.parametrize("text", ['{\n "a": "C:\\\\new\\\\table\\\\u001b"\n}', '{"a": "\\u00e9 \\" \\/ é"}'])
def test_parse_json_object_takes_plain_texts(text: str) -> None:
    assert parse_json_object(text, what="it", only_plain_texts=True)
