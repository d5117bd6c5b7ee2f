"""The report: as text, as the file, and as it is read from a device that may be anybody's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edgebert._json import Fields
from edgebert.errors import BadDataError
from edgebert.jetson_check.privacy import Names
from edgebert.jetson_check.report import MAX_TEXT, Report, Rung, board_of

OK = Rung(name="board", state="ok", found="Orin Nano", seconds=1.25, facts={"l4t": "36.4.3", "values": [1, 2.5, None]})
FAILED = Rung(name="cuda", state="failed", found="no GPU", expected="one", hint="reboot", exit_code=69)
SKIPPED = Rung(name="parse", state="skipped", found="it needs `cuda`, which failed")
REPORT = Report(edgebert="0.1.0", date="2026-11-26", board="Orin Nano", rungs=(OK, FAILED, SKIPPED))
NAMES = tuple(rung.name for rung in REPORT.rungs)


def said(**changes: Any) -> Fields:
    """Return what a device says, with changes of the report or, as `rung`, of its first rung."""
    content: dict[str, Any] = json.loads(json.dumps(REPORT.to_json()))
    content["rungs"][0] |= changes.pop("rung", {})
    return Fields({**content, **changes}, what="the report")


def read(**changes: Any) -> Report:
    return Report.from_fields(said(**changes), names=NAMES)


def test_report_is_read_as_it_was_written() -> None:
    assert read() == REPORT


def test_to_text_has_a_line_for_each_rung_and_the_way_on() -> None:
    assert REPORT.to_text().splitlines() == [
        "Orin Nano, 2026-11-26, edgebert 0.1.0",
        "",
        "state    rung   found",
        "ok       board  Orin Nano",
        "failed   cuda   no GPU",
        "skipped  parse  it needs `cuda`, which failed",
        "",
        "failed cuda: no GPU",
        "  expected: one",
        "  hint: reboot",
        "",
        "1 ok, 1 failed, 1 skipped",
    ]


def test_exit_code_is_that_of_the_first_failure() -> None:
    later = replace(FAILED, name="parse", exit_code=75)
    assert replace(REPORT, rungs=(OK, FAILED, later)).exit_code == 69
    assert replace(REPORT, rungs=(OK, SKIPPED)).exit_code == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "edgebert.jetson-check/2"},
        {"date": "2026-11-26T10:00"},
        {"date": "../../../x"},
        {"exit_code": 0},
        {"rungs": []},
        {"rungs": [1]},
        {"board": 7},
        {"rung": {"name": "bindings"}},
        {"rung": {"state": "fine"}},
        {"rung": {"exit_code": 1}},
        {"rung": {"state": "failed"}},
        {"rung": {"state": "failed", "exit_code": 300}},
        {"rung": {"seconds": "1"}},
        {"rung": {"found": None}},
        {"rung": {"facts": [1]}},
        {"rung": {"facts": {"a": {"b": 1}}}},
        {"rung": {"facts": {"a": [[1]]}}},
        {"rung": {"facts": {"a": [0] * 501}}},
        {"rung": {"facts": {str(number): 0 for number in range(101)}}},
    ],
)
def test_from_fields_refuses_what_is_no_report(changes: dict[str, Any]) -> None:
    with pytest.raises(BadDataError):
        read(**changes)


def test_from_fields_shortens_texts_and_lets_none_steer_a_terminal() -> None:
    odd = "\x1b]0;x\x07\n" + "y" * 10_000
    found = read(board=odd, rung={"found": odd, "facts": {odd: odd, "list": [odd]}})
    text = found.to_text() + json.dumps(found.to_json(), ensure_ascii=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(found.board) == len(found.rungs[0].found) == MAX_TEXT
    assert len(text) < 10 * MAX_TEXT
    assert found.to_text().count("\n") == REPORT.to_text().count("\n")


def test_tidied_hides_names_everywhere() -> None:
    rung = Rung(
        name="x", state="failed", found="anna", expected="of anna", hint="ask anna", exit_code=1, facts={"a": "anna"}
    )
    assert "anna" not in json.dumps(rung.tidied(Names(secrets=("anna",))).to_json())


@pytest.mark.parametrize(
    ("facts", "board"),
    [
        ({"sold as": "Orin NX 16GB", "model": "x"}, "Orin NX 16GB"),
        ({"sold as": None, "model": "NVIDIA Jetson Y"}, "NVIDIA Jetson Y"),
        ({}, "unknown board"),
    ],
)
def test_board_of_takes_the_best_name_there_is(facts: dict[str, Any], board: str) -> None:
    assert board_of(replace(OK, facts=facts)) == board
