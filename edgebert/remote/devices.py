"""Devices by name: `edgebert devices add|list|check`, and `--host NAME` in every command that takes one.

They are kept in `~/.config/edgebert/devices.json` (in `$XDG_CONFIG_HOME`, where that is set), which holds no secret: keys, users of
other names and jump hosts are in the SSH configuration, as for `ssh` itself.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert._console import columns, printable
from edgebert._files import claimed, staged_file
from edgebert._json import Fields, JsonObject, dump_json, parse_json_object
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    InputNotFoundError,
    LockedError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.extras import DISTRIBUTIONS, FLOORS, below_floor
from edgebert.remote.ssh import SshOptions, parse_destination

if TYPE_CHECKING:
    from edgebert.remote.agent import Device
    from edgebert.remote.wheel_pins import PinnedWheel

SCHEMA = "edgebert.devices/1"
MAX_SKEW_SECONDS = 60.0  # of a device's clock: more, and the dates of what it writes mislead
MIN_FREE_BYTES = 200 << 20  # the wheel, a bundle and some hundred images

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device with a name.

    Attributes:
        name: what `--host` takes.
        host: `[USER@]HOST[:PORT]`.
        python: its Python.
    """

    name: str
    host: str
    python: str = "python3"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"`{printable(self.name):.80}` names no device", expected="letters, digits, - and _")
        parse_destination(self.host)
        if not self.python or not self.python.isprintable() or self.python.startswith("-"):
            raise UsageError(f"`{printable(self.python):.80}` is no Python", expected="a command, or a path")


def devices_file() -> Path:
    """Return where the devices are kept."""
    named = os.environ.get("XDG_CONFIG_HOME")
    return (Path(named) if named else Path.home() / ".config") / "edgebert" / "devices.json"


def known_devices(path: Path | None = None) -> dict[str, KnownDevice]:
    """Return the devices by their names; none where the file is not there.

    Raises:
        BadDataError: the file holds something else.
    """
    path = path or devices_file()
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputNotFoundError(f"cannot read `{path}`: {error.strerror}") from error
    fields = Fields(parse_json_object(content, what=f"`{path}`", max_bytes=_MAX_BYTES), what=f"`{path}`")
    if fields.text("schema") != SCHEMA:
        raise BadDataError(f"`{path}` has schema `{fields.text('schema'):.40}`", expected=SCHEMA)
    found = {}
    for entry in fields.list_of_fields("devices"):
        try:
            device = KnownDevice(name=entry.text("name"), host=entry.text("host"), python=entry.text("python"))
        except UsageError as error:
            raise BadDataError(f"`{path}`: {error.what}", expected=error.expected) from error
        found[device.name] = device
    return found


def known_device(name: str, path: Path | None = None) -> KnownDevice | None:
    """Return the device of this name, or None."""
    return known_devices(path).get(name) if _NAME.fullmatch(name) else None


def add_device(device: KnownDevice, *, force: bool = False, path: Path | None = None) -> Path:
    """Keep a device, and return the file; other processes that do the same meanwhile lose nothing.

    Raises:
        UsageError: there is one of this name, and no `force`.
        LockedError: another process writes the file.
        CannotWriteError: it cannot be written.
    """
    path = path or devices_file()
    with claimed(path):
        found = known_devices(path)
        if device.name in found and found[device.name] != device and not force:
            raise UsageError(
                f"`{device.name}` is {found[device.name].host} already",
                hint="--force replaces it, or take another name",
            )
        found[device.name] = device
        listed = [
            {"name": entry.name, "host": entry.host, "python": entry.python} for _, entry in sorted(found.items())
        ]
        content: JsonObject = {"schema": SCHEMA, "devices": listed}
        with staged_file(path, force=True) as staging:
            staging.write_text(dump_json(content), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """One thing that was looked at.

    Attributes:
        what: such as `host key`.
        state: `ok`, `warning` or `fail`.
        found: in words.
        fix: the command that mends it, or empty.
    """

    what: str
    state: str
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedDevice:
    """What became of one device."""

    host: str
    checks: tuple[DeviceCheck, ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 where a check failed."""
        return int(any(check.state == "fail" for check in self.checks))

    def to_json(self) -> JsonObject:
        """Return the fields."""
        listed = [
            {"what": each.what, "state": each.state, "found": each.found, "fix": each.fix} for each in self.checks
        ]
        return {"host": self.host, "checks": listed, "exit_code": self.exit_code}

    def to_text(self) -> str:
        """Return a table."""
        rows = [(each.state, each.what, each.found) for each in self.checks]
        fixes = [f"  {each.what}: {each.fix}" for each in self.checks if each.fix]
        return "\n".join([columns((self.host, "", ""), rows), *fixes])


def check_device_at(
    host: str, *, python: str | None = None, wheels: Path | None = None, ssh: SshOptions | None = None
) -> CheckedDevice:
    """Look whether a device can be used: host key, Python, numpy, Pillow, backend, disk, lock, clock.

    Where its numpy or Pillow is missing or too old, the session brings them, as every other one does, and they go with it.
    What cannot be reached, or must not be trusted, is a check that failed and no exception.
    """
    from edgebert.remote.session import DeviceSession
    from edgebert.remote.transport import transport_of

    session = None
    try:
        session = DeviceSession(transport_of(host, python=python, wheels=wheels), ssh=ssh, only_looks=True)
        with session:
            asked = time.time()
            said = session.ask("facts", {}, timeout_s=120.0).fields
            now = (asked + time.time()) / 2
            return CheckedDevice(host=host, checks=_checks(session.device, session.brought, said, now))
    except UsageError:
        raise
    except EdgebertError as error:
        lacks = "usable" if session is not None and session.has_answered else "reached"
        known = {RefusedError: "host key and login", LockedError: "lock", UnavailableError: lacks}
        what = known.get(type(error), "reached")
        return CheckedDevice(
            host=host, checks=(DeviceCheck(what=what, state="fail", found=error.what, fix=error.hint or ""),)
        )


def _checks(device: Device, brought: Sequence[PinnedWheel], said: Fields, now: float) -> tuple[DeviceCheck, ...]:
    skew = said.number("time") - now
    free = said.integer("disk_free_bytes")
    measuring = printable(said.text("measuring"))[:200]
    here = [
        printable(entry.text("name"))[:40]
        for entry in said.list_of_fields("targets")
        if entry.value.get("here") is True
    ]
    return (
        DeviceCheck(what="host key", state="ok", found="known, and the one that answered"),
        DeviceCheck(what="python", state="ok", found=f"{'.'.join(map(str, device.python))}, {device.machine}"),
        *_version_checks(device.modules, {wheel.module: wheel.version for wheel in brought}),
        DeviceCheck(
            what="targets",
            state="ok" if here else "fail",
            found=", ".join(here) or "none can run there",
        ),
        DeviceCheck(
            what="disk",
            state="ok" if free >= MIN_FREE_BYTES else "fail",
            found=f"{free >> 20:,} MiB free",
            fix="" if free >= MIN_FREE_BYTES else "free some space in the home folder there",
        ),
        DeviceCheck(
            what="lock",
            state="warning" if measuring else "ok",
            found=measuring or "nobody measures",
        ),
        DeviceCheck(
            what="clock",
            state="ok" if abs(skew) <= MAX_SKEW_SECONDS else "warning",
            found=f"{skew:+.1f} s against this computer's",
            fix="" if abs(skew) <= MAX_SKEW_SECONDS else "on the device: sudo timedatectl set-ntp true",
        ),
    )


def _version_checks(modules: Mapping[str, str], brought: Mapping[str, str]) -> list[DeviceCheck]:
    found = []
    for name in ("numpy", "PIL", "onnxruntime", "openvino", "tensorrt"):
        if name in brought:
            own = modules.get(name) or "missing"
            text = (
                f"{own} there; edgebert brings {brought[name]} for its own process, {FLOORS[name]} or newer is needed"
            )
            found.append(DeviceCheck(what=DISTRIBUTIONS.get(name, name), state="ok", found=text))
            continue
        if name not in modules:
            continue
        version = modules[name]
        old = bool(version) and below_floor(name, version)
        found.append(
            DeviceCheck(
                what=DISTRIBUTIONS.get(name, name),
                state="warning" if old else "ok",
                found=version or "of unknown version",
                fix=f"{FLOORS[name]} or newer is advised" if old else "",
            )
        )
    return found
