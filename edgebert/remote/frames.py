"""What host and agent say to each other in a session: JSON lines, each with the bytes that belong to it behind it.

    {"nonce": "…", "number": 3, "type": "launch", "re": 2, "blobs": [["samples.npz", 41232]], …}\n<41232 bytes>

`nonce` is that of the session and `number` counts what a side has said, so that nothing can be said twice, or in another session;
`re` is the number of the request that it belongs to. Both sides refuse what is longer than it may be.

>>> line = encode_frame("ping", nonce="00", number=1)
>>> frame_of_line(line, nonce="00", number=1, what="the agent").kind
'ping'
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgebert._json import Fields, JsonObject, JsonValue, parse_json_object
from edgebert.errors import BadDataError

MAX_LINE_BYTES = 8 << 20  # a list of all test images, or the card of an arm; other lines are far shorter
MAX_BLOBS = 100_000
READY, PING, PONG, PUSH, ANSWER, ERROR, BYE = "ready", "ping", "pong", "push", "answer", "error", "bye"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One thing that was said.

    Attributes:
        kind: its `type`.
        number: counted by who said it, from 1.
        re: the number of the request that it belongs to; 0 where it belongs to none.
        fields: all of it.
        blobs: name and size in bytes of what follows the line, in its order.
        contents: name -> what followed, where it was read into memory.
    """

    kind: str
    number: int
    re: int
    fields: Fields
    blobs: tuple[tuple[str, int], ...]
    contents: Mapping[str, bytes] = field(default_factory=dict)


def encode_frame(
    kind: str,
    *,
    nonce: str,
    number: int,
    re: int = 0,
    content: JsonObject | None = None,
    blobs: Sequence[tuple[str, int]] = (),
) -> bytes:
    """Return the line of a frame, newline included; the blobs themselves follow it."""
    message: dict[str, JsonValue] = {
        **(content or {}),
        "nonce": nonce,
        "number": number,
        "type": kind,
        "re": re,
        "blobs": [[name, size] for name, size in blobs],
    }
    return json.dumps(message, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def frame_of_line(line: bytes, *, nonce: str, number: int, what: str) -> Frame:
    """Read the line of a frame.

    Args:
        line: without its blobs.
        nonce: of the session.
        number: that it must have: what the other side said before, and one.
        what: who said it, for messages.

    Raises:
        BadDataError: no JSON object, of another session, said before or too early, or with blobs that cannot be.
    """
    fields = Fields(parse_json_object(line, what=what, max_bytes=MAX_LINE_BYTES), what=what)
    if not secrets.compare_digest(fields.text("nonce").encode(), nonce.encode()):
        raise BadDataError(f"{what} answers another call", expected="the number that this session was given")
    if fields.integer("number") != number:
        raise BadDataError(f"{what} says message {fields.integer('number')}", expected=f"message {number}, each once")
    return Frame(
        kind=fields.text("type"),
        number=number,
        re=fields.integer("re"),
        fields=fields,
        blobs=_blobs_of(fields),
    )


def _blobs_of(fields: Fields) -> tuple[tuple[str, int], ...]:
    listed = fields.value.get("blobs")
    if not isinstance(listed, list) or len(listed) > MAX_BLOBS:
        raise BadDataError(f"{fields.what} has no list of what follows", expected=f"`blobs`, at most {MAX_BLOBS:,}")
    found = []
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 2:
            raise BadDataError(f"{fields.what} lists a blob that is none", expected="a name and a size")
        name, size = entry
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise BadDataError(f"{fields.what} lists a blob that is none", expected="a name and a size")
        found.append((name, size))
    return tuple(found)
