"""Brings numpy and Pillow to a device whose own are missing or too old, for one session; nothing is installed there.

What is brought is named by `edgebert.remote.wheel_pins`, had by `edgebert.remote.wheel_files`, pushed by its SHA-256 like everything
else, and put on the path of the agent's own process by `edgebert.remote.device_packages`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from edgebert._files import read_input
from edgebert._json import JsonObject
from edgebert.errors import RefusedError
from edgebert.remote.session import DeviceSession, SentObject
from edgebert.remote.wheel_files import wheel_files
from edgebert.remote.wheel_pins import IMPORTED, PinnedWheel, lacking, wheels_for, words_for

_log = logging.getLogger("edgebert")

_UNPACK_SECONDS = 300.0  # 90 MB, on the slowest card


def bring_packages(session: DeviceSession) -> tuple[PinnedWheel, ...]:
    """Push the wheels that a device needs, and have it use them for this session; return them.

    Args:
        session: with the device, before anything else is asked of it.

    Raises:
        EdgebertError: there are none for it (`wheels_for`), they cannot be had here (`wheel_files`), or not be used there.
    """
    wheels = wheels_for(session.device)
    if not wheels:
        return ()
    _log.info(
        "`%s` has %s; edgebert brings %s for its own process, and installs nothing there",
        session.name,
        words_for(lacking(session.device.modules)),
        " and ".join(f"{wheel.name} {wheel.version}" for wheel in wheels),
    )
    paths = wheel_files(wheels, session.transport.wheels)
    session.push(
        [
            SentObject(sha256=wheel.sha256, size=wheel.size, read=partial(read_input, path, what="the wheel"))
            for wheel, path in zip(wheels, paths, strict=True)
        ]
    )
    said = session.ask("packages", packages_message(wheels), timeout_s=_UNPACK_SECONDS).fields.value.get("modules")
    if said != {wheel.module: wheel.version for wheel in wheels}:
        raise RefusedError(f"`{session.name}` says that it uses something else than was sent", expected="what was sent")
    return wheels


def packages_message(wheels: Sequence[PinnedWheel]) -> JsonObject:
    """Return what a device is told of wheels that were pushed to it."""
    return {
        "wheels": [
            {
                "name": wheel.file,
                "sha256": wheel.sha256,
                "size": wheel.size,
                "module": IMPORTED[wheel.module],
                "version": wheel.version,
            }
            for wheel in wheels
        ]
    }
