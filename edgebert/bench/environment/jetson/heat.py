"""Temperatures of a Jetson, and everything by which it says that it is slowed down (tensorrt_jetson.md, section 8.3).

>>> slows("gpu-throttle-alert"), slows("hot-surface-alert"), slows("devfreq-17000000.gpu"), slows("pwm-fan")
('alert', 'alert', 'cap', None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgebert.bench.environment.system_files import SystemFiles

ZONES = "/sys/class/thermal/thermal_zone*"
COOLING = "/sys/class/thermal/cooling_device*"

# What counts how often the regulators held the chip back: cumulative, since the start of the computer.
OVER_CURRENT = {
    1: "under-voltage of the input",
    2: "average current above its limit",
    3: "momentary current above its limit",
}

_ZONE = re.compile(r"([a-z][a-z0-9_]{0,20})-thermal")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverCurrent:
    """A counter of `soctherm_oc`: its number, its file, and whether its events slow the chip; None where that is not told."""

    number: int
    path: str
    slows: bool | None


def find_zones(files: SystemFiles) -> dict[str, str]:
    """Return zone without `-thermal` -> file of its temperature, m°C; one that is gated now may be readable later."""
    found: dict[str, str] = {}
    for folder in files.paths(ZONES):
        kind = _ZONE.fullmatch((files.text(f"{folder}/type") or "").lower())
        if kind:
            found.setdefault(kind[1], f"{folder}/temp")
    return found


def slows(kind: str) -> Literal["alert", "cap"] | None:
    """Return what it means that a cooling device of this type is at work: an alert, a capped GPU clock, or nothing (a fan)."""
    if kind.endswith("-throttle-alert") or kind == "hot-surface-alert":
        return "alert"
    if re.fullmatch(r"devfreq-(\d+\.(gpu|ga10b|gb10b)|gpu-gpc-0)", kind):
        return "cap"
    return None


def find_cooling(files: SystemFiles, meaning: Literal["alert", "cap"]) -> dict[str, str]:
    """Return type -> file of the state of the cooling devices of one meaning; a state above 0 means now."""
    kinds = {folder: files.text(f"{folder}/type") or "" for folder in files.paths(COOLING)}
    return {kind: f"{folder}/cur_state" for folder, kind in kinds.items() if slows(kind) == meaning}


def find_over_current(files: SystemFiles) -> list[OverCurrent]:
    """Return the counters of over-current events, those that are there."""
    found = []
    for folder in files.paths("/sys/class/hwmon/hwmon*"):
        if files.text(f"{folder}/name") != "soctherm_oc":
            continue
        for number in OVER_CURRENT:
            path, enabled = f"{folder}/oc{number}_event_cnt", files.number(f"{folder}/oc{number}_throt_en")
            if files.exists(path):
                found.append(OverCurrent(number=number, path=path, slows=None if enabled is None else enabled != 0))
    return found


def alerts_now(files: SystemFiles) -> tuple[str, ...]:
    """Return the cooling devices that slow the chip at this moment."""
    devices = {**find_cooling(files, "alert"), **find_cooling(files, "cap")}
    return tuple(kind for kind, path in devices.items() if (files.number(path) or 0) > 0)


def read_temperatures(files: SystemFiles) -> Mapping[str, float]:
    """Return zone -> °C of this moment, without those that are gated."""
    values = {zone: files.number(path) for zone, path in find_zones(files).items()}
    return {zone: value / 1_000 for zone, value in values.items() if value is not None and value > -200_000}
