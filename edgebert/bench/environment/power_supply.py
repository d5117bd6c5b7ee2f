"""What feeds the computer: mains, USB or a battery.

>>> isinstance(batteries(SystemFiles()), list)
True
"""

from __future__ import annotations

from edgebert.bench.environment.system_files import SystemFiles

SUPPLIES = "/sys/class/power_supply"


def on_mains(files: SystemFiles) -> bool | None:
    """Say whether a mains supply is connected; None where none is known.

    Laptops that charge by USB-C announce `USB` supplies instead; an unplugged one says nothing about a desktop computer.
    """
    mains, usb = _supplies_online(files, "Mains"), _supplies_online(files, "USB")
    if mains:
        return any(mains)
    if any(usb):
        return True
    return False if usb and batteries(files) else None


def _supplies_online(files: SystemFiles, kind: str) -> list[bool]:
    folders = [path.rpartition("/")[0] for path in files.paths(f"{SUPPLIES}/*/type") if files.text(path) == kind]
    # USB writes 2 where a charger with variable voltage is plugged in.
    states = [files.number(f"{folder}/online") for folder in folders]
    return [state > 0 for state in states if state is not None]


def batteries(files: SystemFiles) -> list[str]:
    """Return the folders of the batteries that feed the computer, not those of mice and headsets."""
    folders = [path.rpartition("/")[0] for path in files.paths(f"{SUPPLIES}/*/type") if files.text(path) == "Battery"]
    return [folder for folder in folders if files.text(f"{folder}/scope") != "Device"]
