"""What a self-check found: every rung with its state, as text for people, and as the JSON of the file.

The file of a device that is checked over SSH is made here from what the device says, which is believed in its form only: the rungs are
those of this version, in their order, texts are short and cannot steer a terminal, numbers are numbers.

>>> rung = Rung(name="cuda", state="failed", found="no GPU", hint="reboot", exit_code=69)
>>> report = Report(edgebert="0.1.0", date="2026-11-26", board="Orin NX 16GB", rungs=(rung,))
>>> report.exit_code, report.file_name()
(69, 'edgebert-jetson-check-orin-nx-16gb-2026-11-26.json')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgebert._console import columns, printable
from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError
from edgebert.jetson_check.privacy import Names

SCHEMA = "edgebert.jetson-check/1"

State = Literal["ok", "failed", "skipped"]
_STATES: Mapping[str, State] = {"ok": "ok", "failed": "failed", "skipped": "skipped"}

MAX_TEXT = 600  # characters of a text
MAX_FACTS = 100  # of a rung
MAX_ENTRIES = 500  # of a list
_MAX_NAME = 80
_EXIT_CODES = range(1, 78)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNKNOWN_BOARD = "unknown board"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One check.

    Attributes:
        name: such as `build int8`.
        state: `failed`; `skipped` where a rung that it needs did not hold, or where it has no meaning here.
        found: in one line; of a failure, what failed.
        expected: of a failure; may be empty.
        hint: what mends it; may be empty.
        exit_code: that the same failure gives elsewhere (`edgebert.errors`); 0 where none.
        seconds: that it took.
        facts: what was measured: name -> number, text, truth, nothing, or a list of them.
    """

    name: str
    state: State
    found: str
    expected: str = ""
    hint: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    facts: JsonObject = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return the fields."""
        return {
            "name": self.name,
            "state": self.state,
            "found": self.found,
            "expected": self.expected,
            "hint": self.hint,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Rung:
        """Read what `to_json` wrote on a device.

        Raises:
            BadDataError: it is something else, or more than a rung says.
        """
        state = _STATES.get(fields.text("state"))
        code = fields.integer("exit_code")
        if state is None or (code in _EXIT_CODES) != (state == "failed") or (code != 0) != (state == "failed"):
            raise BadDataError(
                f"{fields.what} has the state `{printable(fields.text('state')):.20}` with exit code {code:.20g}",
                expected="ok or skipped with 0, failed with 1 to 77",
            )
        facts = fields.fields("facts").value
        if len(facts) > MAX_FACTS:
            raise BadDataError(f"{fields.what} has {len(facts):,} facts", expected=f"at most {MAX_FACTS}")
        return cls(
            name=_text(fields, "name"),
            state=state,
            found=_text(fields, "found"),
            expected=_text(fields, "expected"),
            hint=_text(fields, "hint"),
            exit_code=code,
            seconds=fields.number("seconds"),
            facts={_plain(name)[:_MAX_NAME]: _fact(value, fields.what) for name, value in facts.items()},
        )

    def tidied(self, names: Names) -> Rung:
        """Return it with nothing in it that the file may not tell, and no text longer than it may be."""
        facts = names.scrubbed_value(self.facts)
        assert isinstance(facts, Mapping)
        return Rung(
            name=self.name,
            state=self.state,
            found=_plain(names.scrubbed(self.found)),
            expected=_plain(names.scrubbed(self.expected)),
            hint=_plain(names.scrubbed(self.hint)),
            exit_code=self.exit_code,
            seconds=self.seconds,
            facts={name: _plain(value) if isinstance(value, str) else value for name, value in facts.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole ladder.

    Attributes:
        edgebert: version that ran there.
        date: of the check, by the board's clock.
        board: what it is sold as, as far as it is known.
        rungs: in order.
    """

    edgebert: str
    date: str
    board: str
    rungs: tuple[Rung, ...]

    @property
    def exit_code(self) -> int:
        """0 where nothing failed, else that of the first failure: the others may follow from it."""
        return next((rung.exit_code for rung in self.rungs if rung.state == "failed"), 0)

    def file_name(self) -> str:
        """Return the name of the file where the user gave none."""
        return file_name(self.board, self.date)

    def to_json(self) -> JsonObject:
        """Return the content of the file."""
        return {
            "schema": SCHEMA,
            "edgebert": self.edgebert,
            "date": self.date,
            "board": self.board,
            "exit_code": self.exit_code,
            "rungs": [rung.to_json() for rung in self.rungs],
        }

    @classmethod
    def from_fields(cls, fields: Fields, *, names: Sequence[str]) -> Report:
        """Read what `to_json` wrote on a device.

        Args:
            fields: of it.
            names: of the rungs that there must be, in order.

        Raises:
            BadDataError: it is something else.
        """
        rungs = tuple(Rung.from_fields(each) for each in fields.list_of_fields("rungs"))
        date = fields.text("date")
        if fields.text("schema") != SCHEMA or not _DATE.fullmatch(date):
            raise BadDataError(f"{fields.what} is no `{SCHEMA}` of a day")
        if [rung.name for rung in rungs] != list(names):
            raise BadDataError(f"{fields.what} has other rungs", expected=", ".join(names))
        report = cls(edgebert=_text(fields, "edgebert"), date=date, board=_text(fields, "board"), rungs=rungs)
        if fields.integer("exit_code") != report.exit_code:
            raise BadDataError(f"{fields.what} has exit code {fields.integer('exit_code'):.20g}")
        return report

    def to_text(self) -> str:
        """Return a line for each rung, then what was expected of those that failed, and what mends them."""
        rows = [(rung.state, rung.name, rung.found) for rung in self.rungs]
        table = columns(("state", "rung", "found"), rows)
        counts = {state: sum(rung.state == state for rung in self.rungs) for state in _STATES}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        head = f"{self.board}, {self.date}, edgebert {self.edgebert}"
        return "\n\n".join((head, table, *(_advice(rung) for rung in self.rungs if rung.state == "failed"), told))


def file_name(board: str, date: str) -> str:
    """Return a name with the board and the day: nothing of what a device says can make another folder of it.

    >>> file_name("../../etc: x", "2026-11-26")
    'edgebert-jetson-check-etc-x-2026-11-26.json'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", board.lower()).strip("-")[:40].strip("-")
    return f"edgebert-jetson-check-{slug or 'jetson'}-{date}.json"


def board_of(rung: Rung) -> str:
    """Return what the board's rung says that it is."""
    named = rung.facts.get("sold as") or rung.facts.get("model")
    return _plain(named)[:_MAX_NAME] if isinstance(named, str) and named else _UNKNOWN_BOARD


def _advice(rung: Rung) -> str:
    parts = [f"failed {rung.name}: {rung.found}"]
    parts += [f"  {what}: {text}" for what, text in (("expected", rung.expected), ("hint", rung.hint)) if text]
    return "\n".join(parts)


def _text(fields: Fields, key: str) -> str:
    return _plain(fields.text(key))


def _plain(text: str) -> str:
    """Return a text on one line, which cannot steer a terminal, and not too much of it."""
    one_line = " ".join(text[: 4 * MAX_TEXT].split())
    return printable(one_line)[:MAX_TEXT]


def _fact(value: JsonValue, what: str) -> JsonValue:
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_ENTRIES:
            raise BadDataError(f"{what} has a list of {len(value):,} facts", expected=f"at most {MAX_ENTRIES}")
        return [_scalar(entry, what) for entry in value]
    return _scalar(value, what)


def _scalar(value: JsonValue, what: str) -> JsonValue:
    if isinstance(value, str):
        return _plain(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise BadDataError(f"{what} has a fact within a fact", expected="numbers, texts, and lists of them")
