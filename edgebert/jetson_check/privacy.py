"""What a text may not tell before it goes into the file: who, where, and which single board.

No user name, no host name, no serial number, no machine id, no hardware address, and no path that is not the system's own.

>>> names = Names(home="/home/anna", secrets=("anna", "line-7-camera", "1423019123456"))
>>> names.scrubbed("`/home/anna/x.plan` on line-7-camera (1423019123456), see /proc/meminfo and NVIDIA/TensorRT#4832")
'`<path>` on <hidden> (<hidden>), see /proc/meminfo and NVIDIA/TensorRT#4832'
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert._json import JsonValue
from edgebert.bench.environment.system_files import SystemFiles

HIDDEN, PATH = "<hidden>", "<path>"

# One slash, or several, which mean the same: but not those behind the colon of an address.
_PATH = re.compile(r"(?:(?<![\w./~:-])/+|(?<![\w./~-])/|(?<=\bfile:)/+)(?:[^\s/`'\":;,()<>|]+/+)*[^\s/`'\":;,()<>|]+/*")
_QUOTED = re.compile(r"([`'\"])(/[^`'\"\n]+)\1")  # as messages show one; it may hold spaces
_SYSTEM = ("/dev/", "/etc/", "/lib/", "/opt/nvidia/", "/proc/", "/sys/", "/usr/", "/var/lib/dpkg", "/var/lib/nvpmodel")
_HARDWARE_ADDRESS = re.compile(r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b")
_FIELD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")  # of ours: of several words
_SHORTEST = 3  # of a name: shorter ones occur inside of everything
# What an image of JetPack is called before anybody has named it: it tells nothing, and occurs in what is to be told.
_NOBODY = frozenset(
    (
        *("admin", "agx", "cuda", "gpu", "jetson", "localhost", "nano", "nvidia", "orin", "root"),
        *("tegra", "tegra-ubuntu", "thor", "ubuntu", "user", "xavier"),
    )
)
_FILES = (
    "/etc/machine-id",
    "/proc/device-tree/serial-number",
    "/proc/sys/kernel/random/boot_id",
    "/sys/class/dmi/id/board_serial",
    "/sys/class/dmi/id/product_serial",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What is hidden.

    Attributes:
        home: folder of the user, "" where there is none; it may lie where the system's own things do.
        secrets: words.
    """

    home: str = ""
    secrets: tuple[str, ...] = ()

    def scrubbed(self, text: str) -> str:
        """Return a text without them."""
        if len(self.home) > 1:  # first, for a home such as /usr/people/anna
            text = re.sub(re.escape(self.home) + r"(?![\w-])", "/home/_", text)
        text = _QUOTED.sub(lambda found: f"{found[1]}{_shown_path(found[2])}{found[1]}", text)
        text = _PATH.sub(lambda found: _shown_path(found[0]), text)
        text = _HARDWARE_ADDRESS.sub(HIDDEN, text)
        for secret in sorted(self.secrets, key=len, reverse=True):
            # Whole words, in any case, with hyphens and underscores for ends: kernels are called `5.15.148-anna`.
            text = re.sub(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", HIDDEN, text, flags=re.IGNORECASE)
        return text

    def scrubbed_value(self, value: JsonValue) -> JsonValue:
        """Return a value of JSON with every text in it scrubbed, the names of fields among them."""
        if isinstance(value, str):
            return self.scrubbed(value)
        if isinstance(value, Mapping):
            shown: dict[str, JsonValue] = {}
            for name, entry in value.items():
                key = self._scrubbed_name(name)
                while key in shown:  # no fact is lost
                    key += "_"
                shown[key] = self.scrubbed_value(entry)
            return shown
        if isinstance(value, (list, tuple)):
            return [self.scrubbed_value(entry) for entry in value]
        return value

    def _scrubbed_name(self, name: str) -> str:
        """Return the name of a field: our own, such as `max_mhz`, are left, whoever the user is."""
        is_secret = name.lower() in (secret.lower() for secret in self.secrets)
        return self.scrubbed(name) if is_secret or not _FIELD.fullmatch(name) else name


def names_here(root: Path = Path("/")) -> Names:
    """Return what is to be hidden of this computer and this user.

    Args:
        root: where `proc`, `sys` and `etc` lie.
    """
    files = SystemFiles(root)
    found = {*_users(), *_hosts(), *(files.text(path) or "" for path in _FILES)}
    telling = {name for name in found if len(name) >= _SHORTEST and name.lower() not in _NOBODY}
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without one
        home = ""
    return Names(home=home, secrets=tuple(sorted(telling)))


def _users() -> Iterator[str]:
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user without an entry
        yield getpass.getuser()
    for variable in ("USER", "LOGNAME", "SUDO_USER"):
        yield os.environ.get(variable, "")


def _hosts() -> Iterator[str]:
    host = socket.gethostname()
    yield from (host, host.partition(".")[0])


def _shown_path(path: str) -> str:
    """Return a path where it is the system's own, whatever `..` or doubled slashes lead elsewhere."""
    return path if (os.path.normpath("/" + path.lstrip("/")) + "/").startswith(_SYSTEM) else PATH
