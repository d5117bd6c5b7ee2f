"""What a report page is made of: badges, tables, figures, lists of facts. Every text in them is safe to show.

Names come from files and devices and may hold anything: control characters and characters that turn the direction of writing
are escaped here, markup by the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgebert._console import printable
from edgebert.bench.report.figures import PALETTE
from edgebert.bench.schema import Arm, Result

Tone = Literal["", "good", "bad", "changed"]

AA_COLOUR = PALETTE  # the control is grey, as in the figures
MAX_LISTED = 30  # rows of a list that could be as long as the data


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A short word on the state of a run."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place of a table: a number, its interval below it, a remark, which may take several lines, and how it is set.

    Attributes:
        colour: of the arm that it names; None for no mark.
        strong: set in bold.
    """

    text: str
    below: str = ""
    remark: str = ""
    tone: Tone = ""
    strong: bool = False
    colour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headers; the first cell of each row names it.

    Attributes:
        wide: takes the whole width.
        cards: a narrow screen shows each row as a card; it scrolls other tables sideways.
    """

    title: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    wide: bool = False
    cards: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its title and what to know about it; `wide` takes the whole width."""

    title: str
    caption: str
    svg: str
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A titled list of names and values."""

    title: str
    entries: tuple[tuple[str, Cell], ...]


def table_of(
    title: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    *,
    caption: str = "",
    wide: bool = False,
    cards: bool = False,
) -> Table:
    """Return a table of cells or plain texts, every text made safe."""
    return Table(
        title=plain(title),
        caption=plain(caption),
        headers=tuple(plain(header) for header in headers),
        rows=tuple(tuple(safe(cell) for cell in row) for row in rows),
        wide=wide,
        cards=cards,
    )


def facts_of(title: str, entries: Iterable[tuple[str, str]]) -> Facts:
    """Return a list of facts, every text made safe."""
    return Facts(title=plain(title), entries=tuple((plain(name), Cell(text=plain(value))) for name, value in entries))


def safe(cell: Cell | str) -> Cell:
    """Return a cell whose texts hold no control character."""
    if isinstance(cell, str):
        return Cell(text=plain(cell))
    return Cell(
        text=plain(cell.text),
        below=plain(cell.below),
        remark=plain(cell.remark),
        tone=cell.tone,
        strong=cell.strong,
        colour=cell.colour,
    )


def plain(text: str) -> str:
    """Return a text without control characters, and without the backticks that only a terminal needs."""
    return printable(text.replace("`", ""))


def arm_cell(result: Result, arm: Arm, *, below: str = "") -> Cell:
    """Return the cell that names an arm, with its colour."""
    return Cell(text=arm.id, below=below, colour=colour_of(result, arm))


def colour_of(result: Result, arm: Arm) -> int:
    """Return the number of an arm's colour; the same in every figure and table of a result."""
    return AA_COLOUR if arm.role == "aa" else [other.id for other in result.arms].index(arm.id) % PALETTE
