"""`edgebert doctor --jetson --host USER@HOST`: the self-check of a board, climbed there and written down here.

What the device says is a stranger's: it may be the rungs of this version in their order, short texts and numbers, and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edgebert._console import printable
from edgebert.errors import BadDataError, RefusedError
from edgebert.jetson_check.ladder import Told, longest_seconds, steps
from edgebert.jetson_check.report import Report, Rung
from edgebert.remote.agent import plain_text
from edgebert.remote.device_jetson_check import RUNG
from edgebert.remote.session import DeviceSession, Reply
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport

_T = TypeVar("_T")

_SAID_OF_EACH = 2  # that it begins, and how it ended


def check_jetson_on(transport: Transport, *, told: Told, ssh: SshOptions | None = None) -> Report:
    """Climb the ladder on a device; it needs Python, numpy and Pillow there, since what else is missing is a rung.

    Args:
        transport: how the device is reached.
        told: hears of each rung.
        ssh: how it is reached, over SSH.

    Raises:
        UnavailableError: it is no Jetson, or has no numpy or Pillow.
        RefusedError: a host key, a login or an answer cannot be trusted.
        LinkLostError: the device cannot be reached, or the link broke.
    """
    with DeviceSession(transport, ssh=ssh, backends=(), only_looks=True) as session:
        hearing = _Hearing(session.name, told)
        reply = session.ask("jetson-check", {}, timeout_s=longest_seconds(), said=hearing.hear)
        return _trusted(session.name, lambda: Report.from_fields(reply.fields.fields("report"), names=hearing.names))


class _Hearing:
    """Takes what a device says of its rungs: each begins and ends once, in order."""

    def __init__(self, device: str, told: Told) -> None:
        self.names = tuple(step.name for step in steps())
        self._device, self._told, self._heard = device, told, 0

    def hear(self, kind: str, reply: Reply) -> None:
        """Tell of one rung that begins or has ended.

        Raises:
            RefusedError: it is something else.
        """
        place, ends = divmod(self._heard, _SAID_OF_EACH)
        name = _trusted(self._device, lambda: reply.fields.text("name"))
        if kind != RUNG or place >= len(self.names) or name != self.names[place]:
            raise RefusedError(
                f"`{self._device}` says `{printable(kind)[:40]}` of `{printable(name)[:40]}`",
                expected=f"its rungs in order: {', '.join(self.names)}",
            )
        self._heard += 1
        rung = _trusted(self._device, lambda: Rung.from_fields(reply.fields.fields("rung"))) if ends else None
        if rung is not None and rung.name != name:
            raise RefusedError(f"`{self._device}` says another rung than `{name}`")
        self._told(name, rung)


def _trusted(device: str, read: Callable[[], _T]) -> _T:
    """Return what is read of a device's words; what they must not be is a refusal."""
    try:
        return read()
    except BadDataError as error:
        raise RefusedError(f"`{device}`: {plain_text(error.what)}", expected=plain_text(error.expected)) from error
