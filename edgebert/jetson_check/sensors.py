"""What the board tells of itself while it works, read once by the very sources that `bench` samples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.bench.environment.jetson.clocks import read_gpu_clock, read_locked
from edgebert.bench.environment.jetson.heat import alerts_now
from edgebert.bench.environment.jetson.power_mode import read_power_mode
from edgebert.bench.environment.jetson.rails import find_rails, label_of, scope_of
from edgebert.bench.environment.jetson.sources import JETSON_SOURCES
from edgebert.bench.environment.source import MISSING, Source
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.bench.protocol import error_content
from edgebert.errors import UnavailableError

_SETTLE_S = 0.3  # tegrastats prints at its interval; files answer at once
# What a result of `bench` is not complete without -> beginnings and ends of columns, of which one has to be there.
_NEEDED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "GPU clock": (("gpu_clock_khz", ""),),
    "temperatures": (("temperature_", "_mc"),),
    "power": (("power_", "_uw"),),
    "throttle counters": (("oc", "_events"), ("throttle_alerts", ""), ("gpu_cap_state", "")),
}


def sensors(request: Fields) -> JsonObject:
    """Read every sensor, and say which kinds cannot be read."""
    files = SystemFiles(Path(request.text("root")))
    mode, locked, clock = read_power_mode(files), read_locked(files), read_gpu_clock(files)
    values, reasons = _read(files)
    alerts = alerts_now(files)
    missing = [kind for kind, patterns in _NEEDED.items() if not any(_fits(name, patterns) for name in values)]
    if mode is None:
        missing.insert(0, "power mode")
    labels = [rail.label for rail in find_rails(files)] or [label for name in values if (label := label_of(name))]
    scope = scope_of(labels)
    facts: dict[str, JsonValue] = {
        "power mode": None if mode is None else f"{mode.name or '?'} ({mode.id})",
        "clocks held": locked,
        "gpu clock_min_khz": None if clock is None else clock.min_khz,
        "gpu clock_max_khz": None if clock is None else clock.max_khz,
        "gpu governor": None if clock is None else clock.governor,
        "power from": None if scope is None else str(scope),
        "slowed down by": list(alerts),
        **values,
        **{f"not read: {name}": reason for name, reason in reasons.items()},
    }
    return {
        "found": _words(facts, values, alerts),
        "facts": facts,
        "error": error_content(_unread(missing)) if missing else None,
    }


def _read(files: SystemFiles) -> tuple[dict[str, int], dict[str, str]]:
    """Return column -> value of those that answer, and column -> why not of the others."""
    sources: list[Source] = [kind(files) for kind in JETSON_SOURCES]
    try:
        time.sleep(_SETTLE_S)
        values: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for source in sources:
            for name, value in zip(source.columns, source.read(), strict=True):
                if value == MISSING or value < source.lowest:
                    reasons[name] = "there, and does not answer now"
                else:
                    values[name] = value
            reasons |= {name: reason for name, reason in source.reasons.items() if name not in values}
    finally:
        for source in sources:
            source.close()
    return values, reasons


def _fits(name: str, patterns: tuple[tuple[str, str], ...]) -> bool:
    return any(name.startswith(begin) and name.endswith(end) for begin, end in patterns)


def _words(facts: Mapping[str, JsonValue], values: Mapping[str, int], alerts: tuple[str, ...]) -> str:
    heat = [value / 1_000 for name, value in values.items() if name.startswith("temperature_")]
    held = {None: "clocks held or not: told to root only", True: "clocks held", False: "clocks not held"}
    rails = sum(1 for name in values if label_of(name) is not None)
    parts = [
        f"power mode {facts['power mode'] or 'not known'}",
        held[facts["clocks held"] if isinstance(facts["clocks held"], bool) else None],
        f"{max(heat):.0f} °C at most in {len(heat)} zones" if heat else "no temperature",
        f"{rails} power rails",
        f"slowed down by {', '.join(alerts)}" if alerts else "slowed down by nothing",
    ]
    return ", ".join(parts)


def _unread(missing: list[str]) -> UnavailableError:
    return UnavailableError(
        f"this board does not tell: {', '.join(missing)}",
        expected="all that a Jetson with JetPack 6.1 or newer publishes below /sys",
        hint="in a container run this on the board itself; else attach the file of this check to a report",
    )
