"""Bundles on a device: installed in one step that survives kills, power cuts and full disks, and gone back from by itself.

An installation is a folder, `--to DIR`, that holds the current bundle and the previous one; its layout is in
`edgebert.install.folder`. `install` puts a bundle in place after its self-test, `rollback` goes back, `status` tells what is
there, `open_installed` is what an application does at its start (`Classifier(DIR)` calls it). Only the standard library and
what opens bundles is needed, no network and no root. docs/install.md is for users.

>>> from pathlib import Path
>>> is_installation(Path("/nowhere"))
False
"""

from edgebert.install.folder import installation_of, is_installation
from edgebert.install.installing import InstallOptions, install, rollback, write_phase
from edgebert.install.opening import open_installed, open_previous, status, verify_installation
from edgebert.install.reports import InstallReport, RollbackReport, StatusReport

__all__ = [
    "InstallOptions",
    "InstallReport",
    "RollbackReport",
    "StatusReport",
    "install",
    "installation_of",
    "is_installation",
    "open_installed",
    "open_previous",
    "rollback",
    "status",
    "verify_installation",
    "write_phase",
]
