"""The messages between the harness and a worker: one JSON object per line, `{"v": 1, "seq": n, "type": …}`.

The harness asks, the worker answers with the same `seq`. Arrays never travel here but through files in a temporary
folder, so a line is short and a library that prints something cannot be mistaken for an answer.
"""

from __future__ import annotations

import json
from typing import IO

from edgebert import errors
from edgebert._json import Fields, JsonObject, JsonValue, parse_json_object
from edgebert.errors import EdgebertError

VERSION = 1
MAX_LINE_BYTES = 8 << 20  # an artefact's card names every class and every training image; other lines are far shorter


def write_message(stream: IO[bytes], kind: str, seq: int, content: JsonObject | None = None) -> None:
    """Write one message and flush it."""
    message: dict[str, JsonValue] = {**(content or {}), "v": VERSION, "seq": seq, "type": kind}
    stream.write(json.dumps(message, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n")
    stream.flush()


def read_message(stream: IO[bytes]) -> Fields | None:
    """Read one message, or None where the other side has closed.

    Raises:
        BadDataError: a line that is too long, no JSON object, or of another version.
    """
    line = stream.readline(MAX_LINE_BYTES + 1)
    if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        return None  # closed, possibly in the middle of a line
    message = Fields(
        parse_json_object(line, what="a worker's message", max_bytes=MAX_LINE_BYTES), what="a worker's message"
    )
    if message.integer("v") != VERSION:
        raise errors.BadDataError(f"a worker's message has version {message.integer('v')}", expected=str(VERSION))
    return message


def error_content(error: EdgebertError) -> JsonObject:
    """Return an error as the content of an `error` message."""
    return {"class": type(error).__name__, "what": error.what, "expected": error.expected, "hint": error.hint}


def error_from_message(message: Fields) -> EdgebertError:
    """Return the error that a worker reported; a class that edgebert does not have becomes `EdgebertError`."""
    found = getattr(errors, message.text("class"), EdgebertError)
    error_class = found if isinstance(found, type) and issubclass(found, EdgebertError) else EdgebertError
    return error_class(
        message.text("what"), expected=message.optional_text("expected"), hint=message.optional_text("hint")
    )
