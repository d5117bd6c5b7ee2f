from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from edgebert._json import dump_json
from edgebert.bench import json_schema
from edgebert.bench.codec import to_json
from edgebert.bench.json_schema import PATH, schema_of
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result

jsonschema = pytest.importorskip("jsonschema")

Synthetic = Callable[..., tuple[Result, Samples]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part.

    Attributes:
        size: in bytes,
            over two lines.
    """

    size: int | None
    share: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Every kind of annotation that the schema of results uses."""

    kind: Literal["a", "b"]
    pair: tuple[float, float]
    many: tuple[Part, ...]
    named: Mapping[str, int]
    flag: bool


def published() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return loaded


def errors_of(schema: object, value: object) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def test_published_file_is_what_the_dataclasses_say() -> None:
    assert PATH.read_text(encoding="utf-8") == dump_json(schema_of(Result)), (
        "python -m edgebert.bench.json_schema --write"
    )


def test_published_file_is_a_schema_of_its_draft() -> None:
    schema = published()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:edgebert:schema:edgebert.bench:1"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("wishes", [{}, {"mismatch": True}, {"queries": 20}, {"names": ("only",), "times_ms": (2.0,)}])
def test_results_are_valid_by_the_published_schema(synthetic: Synthetic, wishes: dict[str, Any]) -> None:
    result, _ = synthetic(launches=2, **wishes)
    assert errors_of(published(), json.loads(dump_json(to_json(result)))) == []


def test_a_result_in_which_nothing_was_measured_is_valid_by_the_schema(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=2)
    empty = dataclasses.replace(result, arms=(), comparisons=(), dataset=None)
    assert errors_of(published(), json.loads(dump_json(to_json(empty)))) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(schema="edgebert.bench/2"),
        lambda content: content.pop("status"),
        lambda content: content["status"].update(valid="yes"),
        lambda content: content["arms"][0].update(role="other"),
        lambda content: content["arms"][0]["scenarios"][0].update(queries=1.5),
        lambda content: content["arms"][0]["scenarios"][0].update(queries=2**63),
        lambda content: content["comparisons"][0].update(ci95=[1.0]),
        lambda content: content["not_measured"].update(x=None),
    ],
)
def test_schema_refuses_what_the_reader_refuses(
    synthetic: Synthetic, change: Callable[[dict[str, Any]], object]
) -> None:
    content = json.loads(dump_json(to_json(synthetic(launches=2)[0])))
    change(content)
    assert errors_of(published(), content)


def test_schema_takes_fields_that_a_later_version_adds(synthetic: Synthetic) -> None:
    content = json.loads(dump_json(to_json(synthetic(launches=2)[0])))
    content["added"] = {"later": 1}
    content["arms"][0]["added"] = [None]
    assert errors_of(published(), content) == []


def test_schema_of_describes_every_kind_of_annotation() -> None:
    schema: Any = schema_of(Whole)
    whole, part = schema["$defs"]["Whole"], schema["$defs"]["Part"]
    assert whole["required"] == ["kind", "pair", "many", "named", "flag"]
    assert part["required"] == ["size"]
    assert part["description"] == "A part."
    assert part["properties"]["size"]["description"] == "in bytes, over two lines."
    good = {"kind": "a", "pair": [1, 2.5], "many": [{"size": None}], "named": {"x": 1}, "flag": True}
    assert errors_of(schema, good) == []
    for key, bad in (("kind", "c"), ("pair", [1]), ("many", {}), ("many", [{}]), ("named", {"x": "1"}), ("flag", 1)):
        assert errors_of(schema, {**good, key: bad}), key


def test_main_checks_and_writes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "PATH", tmp_path / "bench.schema.json")
    assert json_schema.main(["--check"]) == 1
    assert json_schema.main(["--write"]) == 0
    assert json_schema.main(["--check"]) == 0
    assert json_schema.main([]) == 2
