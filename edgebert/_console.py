"""How the command line speaks: data on stdout, everything else on stderr, one exit code per kind of error."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from edgebert.errors import INTERRUPTED_EXIT_CODE, EdgebertError, MemoryExhaustedError

if TYPE_CHECKING:
    from edgebert._json import JsonObject

_log = logging.getLogger("edgebert")

EDGEBERT = "edgebert"
AGENT = "python3 -m edgebert.agent"  # a device has no other; its commands have the same names and options
_program: ContextVar[str] = ContextVar("program", default=EDGEBERT)
_OF_THE_AGENT = re.compile(r"\bedgebert (?=(?:install|rollback|status|verify|predict|doctor)\b)")


def leads() -> bool:
    """Say whether this process speaks for those that train together: `torchrun` numbers them from 0, and one is enough."""
    return os.environ.get("RANK", "0") == "0"


class _StderrHandler(logging.Handler):
    """Shows notes and warnings as plain lines on stderr, and counts the warnings for the last line."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.warnings = 0
        self.skipped_files = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not leads():
            return
        text = record.getMessage()
        self.skipped_files = max(self.skipped_files, getattr(record, "skipped_files", 0))
        if record.levelno >= logging.WARNING:
            self.warnings += 1
            text = f"warning: {text}"
        sys.stderr.write(_worded(text) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """Return text with control characters escaped, so that a file name cannot steer the terminal."""
    return "".join(
        character if character in "\n\t" or character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def _worded(text: str) -> str:
    """Return a text for people: printable, and with its commands as this program takes them; others are for the host."""
    program = _program.get()
    return printable(text if program == EDGEBERT else _OF_THE_AGENT.sub(f"{program} ", text))


def show(data: JsonObject, text: str, *, as_json: bool) -> None:
    """Print a command's answer on stdout: text for people, or the same as JSON."""
    if not leads():
        return
    if as_json:
        sys.stdout.write(json.dumps(data, indent=1, default=str) + "\n")
    else:
        sys.stdout.write(_worded(text) + "\n")
    sys.stdout.flush()


def plain(report: object) -> JsonObject:
    """Return a report dataclass as JSON values; paths become text."""
    assert dataclasses.is_dataclass(report)
    assert not isinstance(report, type)
    decoded: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(report), default=str))
    return decoded  # type: ignore[return-value]  # json.loads makes JSON values


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain text table with aligned columns."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def run_command(command: Callable[[], int], *, debug: bool, as_json: bool, program: str = EDGEBERT) -> int:
    """Run a command and return its exit code; errors become messages.

    Args:
        command: returns its own exit code.
        debug: let a traceback through after the message.
        as_json: an error is an object on stdout as well.
        program: how this one is called, for the commands that messages for people name; JSON always says `edgebert`.
    """
    called = _program.set(program)
    handler = _StderrHandler()
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        code = command()
        counts = [(handler.warnings, "warning"), (handler.skipped_files, "skipped file")]
        told = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count]
        if told:
            sys.stderr.write(f"done, with {' and '.join(told)}\n")
        return code
    except EdgebertError as error:
        _tell_error(error, as_json=as_json)
        if debug:
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED_EXIT_CODE
    except MemoryError:
        exhausted = MemoryExhaustedError(
            "memory ran out", expected="enough of it for this input", hint="free some, or give it less to do"
        )
        _tell_error(exhausted, as_json=as_json)
        return exhausted.exit_code
    except BrokenPipeError:
        # The reader of our output left (`edgebert … | head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  # the last line of defence: a fault of ours, told without a traceback unless asked for
        fault = EdgebertError(
            f"internal error: {type(error).__name__}: {error}",
            hint="run it again with --debug, and report what that shows",
        )
        _tell_error(fault, as_json=as_json)
        if debug:
            traceback.print_exc()
        return fault.exit_code
    finally:
        _log.removeHandler(handler)
        _program.reset(called)


def _tell_error(error: EdgebertError, *, as_json: bool) -> None:
    lines = [f"error: {error.what}"]
    if error.expected:
        lines.append(f"  expected: {error.expected}")
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    sys.stderr.write(_worded("\n".join(lines)) + "\n")
    if as_json:
        content: Mapping[str, object] = {
            "error": {"exit_code": error.exit_code, "what": error.what, "expected": error.expected, "hint": error.hint}
        }
        sys.stdout.write(json.dumps(content) + "\n")
