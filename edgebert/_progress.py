"""Progress of long work, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

_Item = TypeVar("_Item")

_PLAIN_SECONDS = 10.0  # between two plain lines
_BAR_SECONDS = 0.1  # between two redraws


class Progress:
    """Counts steps of a known total and shows them with rate, time left and a free text.

    Args:
        what: the work, such as `train`.
        total: number of steps.
        stream: where to write; stderr by default.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what, self._total, self._done = what, total, 0
        # Of processes that train together (`torchrun` numbers them from 0) one speaks.
        self._stream = stream or (sys.stderr if os.environ.get("RANK", "0") == "0" else io.StringIO())
        self._bar = self._stream.isatty()
        self._started = time.monotonic()
        self._shown = self._started if not self._bar else 0.0
        self._note = ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more; `note` replaces the text behind the bar."""
        self._done += steps
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._shown >= (_BAR_SECONDS if self._bar else _PLAIN_SECONDS):
            self._shown = now
            self._show(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._show(time.monotonic())
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, now: float) -> None:
        elapsed = max(now - self._started, 1e-9)
        share = self._done / self._total if self._total else 1.0
        left = elapsed / self._done * (self._total - self._done) if self._done else 0.0
        text = f"{self._what} {self._done}/{self._total}, {_clock(left)} left"
        text += f", {self._note}" if self._note else ""
        if self._bar:
            filled = round(20 * min(share, 1.0))
            self._stream.write(f"\r\x1b[2K[{'#' * filled}{'.' * (20 - filled)}] {text}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def tracked(items: Iterable[_Item], *, what: str, total: int) -> Iterator[_Item]:
    """Yield `items` while showing progress."""
    with Progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
