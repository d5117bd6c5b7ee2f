"""The self-check of a Jetson as a command of a session: each rung is told as it is climbed, and the whole report is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgebert._json import JsonObject
from edgebert.errors import UnavailableError
from edgebert.jetson_check.ladder import check_jetson
from edgebert.jetson_check.report import Rung

if TYPE_CHECKING:
    from edgebert.remote.device_link import Link
    from edgebert.remote.device_store import Store
    from edgebert.remote.frames import Frame

RUNG = "rung"  # what is said of each: its name when it begins, and all of it when it ends


def jetson_check(link: Link, _store: Store, request: Frame) -> tuple[JsonObject, Mapping[str, bytes]]:
    """Climb the ladder on this board; it is no measurement, so the link is not kept silent meanwhile.

    Raises:
        UnavailableError: this is no Jetson.
    """

    def told(name: str, rung: Rung | None) -> None:
        link.say(RUNG, request, {"name": name, "rung": None if rung is None else rung.to_json()})

    try:
        report = check_jetson(told=told)
    except UnavailableError as error:
        raise UnavailableError(error.what, expected=error.expected, hint="name a Jetson: --host USER@HOST") from error
    return {"report": report.to_json()}, {}
