"""Where the file of a self-check goes: what is there is looked at before the long work, and it is written in one step after it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from edgebert._console import show
from edgebert._files import check_can_be_written, check_file_is_free, staged_file
from edgebert._json import dump_json
from edgebert.jetson_check.ladder import Told, steps, today
from edgebert.jetson_check.report import Report, Rung, board_of, file_name

_log = logging.getLogger("edgebert")


class CheckFile:
    """The file of one self-check.

    Args:
        output: its name; None for one with the board and the day in the current folder.
        force: replace what is there.

    Raises:
        CannotWriteError: it exists without `force`, or cannot be written.
    """

    def __init__(self, output: Path | None, *, force: bool) -> None:
        self._output, self._force = output, force
        self._check(output or Path(file_name("", "")))

    def board_is(self, rung: Rung, date: str) -> None:
        """Look whether the name is free, as soon as the board is known.

        Raises:
            CannotWriteError: it is not.
        """
        if self._output is None:
            self._check(Path(file_name(board_of(rung), date)))

    def write(self, report: Report) -> Path:
        """Write a report and return the file's path.

        Raises:
            CannotWriteError: it exists without `force`, or cannot be written.
        """
        path = self._output or Path(report.file_name())
        with staged_file(path, force=self._force) as staging:
            staging.write_text(dump_json(report.to_json()), encoding="utf-8")
        return path

    def _check(self, path: Path) -> None:
        check_file_is_free(path, force=self._force)
        check_can_be_written(path)


def check_into_file(climb: Callable[[Told], Report], file: CheckFile, *, as_json: bool) -> int:
    """Climb a ladder, tell of each rung, write the file, show what was found, and return the exit code.

    Args:
        climb: does it, here or on a device; given who is to be told.
        file: where it goes.
        as_json: show the whole report as JSON.

    Raises:
        UnavailableError: it is no Jetson.
        CannotWriteError: the file cannot be written.
    """
    report = climb(_telling(file))
    path = file.write(report)
    attach = f"written to {path}: attach it to a report, it names no user, host, path or serial number"
    show({**report.to_json(), "file": str(path)}, f"{report.to_text()}\n{attach}", as_json=as_json)
    return report.exit_code


def _telling(file: CheckFile) -> Told:
    places = {step.name: place for place, step in enumerate(steps(), 1)}

    def told(name: str, rung: Rung | None) -> None:
        if rung is None:
            _log.info("[%d/%d] %s", places[name], len(places), name)
            return
        if name == "board":
            file.board_is(rung, today())
        if rung.state == "failed":
            _log.info("[%d/%d] %s failed: %s", places[name], len(places), name, rung.found)

    return told
