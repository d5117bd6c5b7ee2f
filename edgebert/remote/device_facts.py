"""What a device says of itself to `edgebert devices check`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgebert._json import JsonObject
from edgebert.bench.codec import to_json
from edgebert.bench.device_lock import device_lock
from edgebert.bench.environment.computer import read_environment
from edgebert.doctor import target_states
from edgebert.errors import LockedError
from edgebert.runtime.runner import physical_cores

if TYPE_CHECKING:
    from edgebert.remote.device_link import Link
    from edgebert.remote.device_store import Store
    from edgebert.remote.frames import Frame


def boot_id() -> str:
    """Return what names the time since the device was started, "" where the system does not say.

    Launches before and after a restart cannot be joined: the clock of their stamps begins anew.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def device_facts(_link: Link, store: Store, _request: Frame) -> tuple[JsonObject, Mapping[str, bytes]]:
    """Answer with the device's clock, disk, lock, software and targets."""
    environment = read_environment()
    usage = shutil.disk_usage(store.root)
    return {
        "time": time.time(),
        "disk_free_bytes": usage.free,
        "measuring": _measuring(),
        "arch": environment.device.arch,
        "model": environment.device.model,
        "cpu": environment.device.cpu.model,
        "memory_bytes": environment.device.memory_bytes,
        "software": dict(environment.software),
        "environment": to_json(environment),
        "cores": physical_cores(),
        "targets": [
            {"name": state.name, "here": state.here, "reason": state.reason or ""} for state in target_states()
        ],
    }, {}


def _measuring() -> str:
    """Return who measures on this device, "" for nobody."""
    try:
        with device_lock():
            return ""
    except LockedError as error:
        return error.what
