"""What `doctor` and `targets` show of a Jetson, in words; empty on any other computer."""

from __future__ import annotations

from pathlib import Path

from edgebert.bench.environment.jetson.clocks import read_gpu_clock, read_locked
from edgebert.bench.environment.jetson.heat import alerts_now, read_temperatures
from edgebert.bench.environment.jetson.identity import read_identity
from edgebert.bench.environment.jetson.power_mode import read_power_mode
from edgebert.bench.environment.jetson.rails import scope_of
from edgebert.bench.environment.schema import JetsonFacts
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.runtime.tensorrt_api import l4t_refusal


def jetson_facts(root: Path = Path("/")) -> dict[str, str]:
    """Return name -> value of what is known of this Jetson; empty where it is none.

    Args:
        root: where `proc`, `sys` and `etc` lie; another folder serves recorded trees.
    """
    files = SystemFiles(root)
    identity = read_identity(files)
    if identity is None:
        return {}
    model, mode, locked = files.text("/proc/device-tree/model"), read_power_mode(files), read_locked(files)
    heat = read_temperatures(files)
    hottest = max(heat, key=lambda zone: heat[zone], default=None)
    told = {
        "board": model,
        "module": _module(identity),
        "l4t": _release(identity),
        "tensorrt": identity.tensorrt,
        "cuda": identity.cuda,
        "power mode": None if mode is None else f"{mode.name or '?'} ({mode.id})",
        "clocks": _clocks(files, locked),
        "temperature": None if hottest is None else f"{heat[hottest]:.0f} °C ({hottest}, the hottest of {len(heat)})",
        "slowed down by": ", ".join(alerts_now(files)) or "nothing",
        "power from": _power(identity),
    }
    return {name: value or "not known" for name, value in told.items()}


def jetson_refusal(root: Path = Path("/")) -> str:
    """Return why TensorRT engines are refused on this Jetson; empty where they are not, and on other computers."""
    identity = read_identity(SystemFiles(root))
    return "" if identity is None else l4t_refusal(identity.l4t)


def _module(identity: JetsonFacts) -> str | None:
    known = (identity.module_name, identity.module, identity.family, identity.soc)
    return ", ".join(filter(None, known)) or None


def _release(identity: JetsonFacts) -> str | None:
    if identity.l4t is None:
        return None
    refused = l4t_refusal(identity.l4t)
    jetpack = f"JetPack {identity.jetpack}" if identity.jetpack else "of a JetPack that this version does not know"
    return f"{identity.l4t} ({jetpack})" + (f"; refused: {refused}" if refused else "")


def _clocks(files: SystemFiles, locked: bool | None) -> str | None:
    gpu = read_gpu_clock(files)
    words = {None: "held or not: told to root only", True: "held", False: "not held"}[locked]
    if gpu is None or gpu.min_khz is None or gpu.max_khz is None:
        return words
    return f"{words}, GPU {gpu.min_khz // 1_000} to {gpu.max_khz // 1_000} MHz"


def _power(identity: JetsonFacts) -> str | None:
    scope = scope_of([rail.label for rail in identity.rails])
    return None if scope is None else str(scope)
