"""Versions of installed Debian packages, from dpkg's own list; no program is started.

>>> upstream("10.3.0.30-1+cuda12.5"), upstream("1:12.6.68-1"), upstream("36.4.3-20250107174145")
('10.3.0.30', '12.6.68', '36.4.3')
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgebert.bench.environment.system_files import SystemFiles

STATUS = "/var/lib/dpkg/status"

_PARAGRAPH = re.compile(r"^Package: (\S+)\n((?:[^\n]+\n?)*)", re.MULTILINE)
_VERSION = re.compile(r"^Version: (\S{1,100})$", re.MULTILINE)


def installed(files: SystemFiles, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of the installed packages whose whole name matches, in the order of the list.

    Args:
        files: of the computer.
        pattern: a regular expression.
    """
    wanted = re.compile(pattern)
    for package in _PARAGRAPH.finditer(files.text(STATUS) or ""):
        if wanted.fullmatch(package[1]) and re.search(r"^Status: .* installed$", package[2], re.MULTILINE):
            version = _VERSION.search(package[2])
            if version:
                yield package[1], version[1]


def version_of(files: SystemFiles, *patterns: str) -> str | None:
    """Return the version of the first package that is installed, as its maker numbers it; None without any."""
    found = (version for pattern in patterns for _, version in installed(files, pattern))
    return next((upstream(version) for version in found), None)


def upstream(version: str) -> str:
    """Return a Debian version without epoch, revision and what JetPack appends: `6.2.1+b38` is 6.2.1."""
    return re.split(r"[-+~]", version.rpartition(":")[2])[0]
