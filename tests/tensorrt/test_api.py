"""The table of an API: how docstring lines are read, and which calls fit."""

from __future__ import annotations

import pytest

from tests.tensorrt.api import Parameter, Signature
from tests.tensorrt.small_api import small_apis


@pytest.fixture(params=["10.9.0", "11.0.0"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_api_from_json_reads_a_signature_without_self() -> None:
    (create,) = small_apis()["10.9.0"].classes["Builder"].methods["create_network"]
    assert create == Signature((Parameter("flags", "int", optional=True),), "Network")


def test_api_from_json_reads_overloads_in_one_spelling() -> None:
    _, second = small_apis()["10.9.0"].classes["Builder"].methods["build_plan"]
    assert second.parameters[1] == Parameter("text", "int", optional=False)


def test_api_from_json_takes_the_example_of_a_subclass_for_what_it_defines() -> None:
    assert small_apis()["10.9.0"].classes["Writer"].overrides == {"write": ("data",)}


def test_api_from_json_knows_a_class_without_constructor() -> None:
    assert not small_apis()["10.9.0"].classes["Network"].methods["__init__"]


@pytest.mark.parametrize(
    ("positional", "keywords", "fits"),
    [(0, (), False), (1, (), True), (2, (), True), (3, (), False), (0, ("first",), True), (1, ("first",), False)],
)
def test_accepts_counts_positions_and_keywords(positional: int, keywords: tuple[str, ...], fits: bool) -> None:
    shape = Signature((Parameter("first", "int", optional=False), Parameter("second", "int", optional=True)), "None")
    assert shape.accepts(positional, keywords) is fits


def test_accepts_no_keyword_for_a_parameter_without_a_name() -> None:
    assert not Signature((Parameter("", "int", optional=False),), "None").accepts(0, ("arg0",))


def test_without_takes_a_name_from_a_class(version: str) -> None:
    assert not small_apis()[version].without("Builder", "create_network").has("Builder", "create_network")


def test_without_takes_a_class_and_those_inside_it_from_the_module(version: str) -> None:
    assert not {"ILogger", "ILogger.Severity"} & set(small_apis()[version].without("", "ILogger").classes)
