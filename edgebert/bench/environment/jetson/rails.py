"""Power rails: the INA3221 and INA238 chips of a board, by label, and which of their rails add up to what (tensorrt_jetson.md, 8.1 and 8.2).

>>> scope_of(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")).labels
('VDD_IN',)
>>> scope_of(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")).kind
'sum of monitored rails'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgebert.bench.environment.system_files import SystemFiles

UNCONNECTED = "NC"

# The one rail that everything behind it is fed through. bench.md, section 12: what the carrier board itself takes is not in VDD_IN.
INPUTS = {"VDD_IN": "input rail of the module", "VIN": "input rail of the board"}
SUM = "sum of monitored rails"

_INA3221_CHANNELS = (1, 2, 3)  # 4 to 6 are voltages over the shunts, 7 is their sum
_COLUMN = re.compile(r"power_([a-z0-9_]+)_uw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """A rail and where it is read.

    Attributes:
        label: as the board's device tree names it.
        column: of the samples.
        chip: such as `ina3221`.
        parts: files whose product is the power in µW (mV and mA), or one that holds it.
        update_interval_ms: over which the chip averages before it shows a new value; None where the driver does not tell.
    """

    label: str
    column: str
    chip: str
    parts: tuple[str, ...]
    update_interval_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a board's power is taken from: `labels` are added up."""

    kind: str
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' + '.join(self.labels)}, {self.kind}"


def find_rails(files: SystemFiles) -> list[Rail]:
    """Return every connected rail of the board; chips are found by name, for their numbers change from boot to boot."""
    rails: list[Rail] = []
    for folder in _chips(files):
        for rail in _rails_of(files, folder):
            if rail.label != UNCONNECTED:
                rails.append(_distinct(rail, rails))
    return rails


def column_of(label: str) -> str:
    """Return the column of a rail.

    >>> column_of("VDDQ_VDD2_1V8AO")
    'power_vddq_vdd2_1v8ao_uw'
    """
    return f"power_{re.sub(r'[^a-z0-9]+', '_', label.lower()).strip('_')[:40]}_uw"


def label_of(column: str) -> str | None:
    """Return the label that a column was made from, None for a column that is no rail's.

    >>> label_of("power_vin_sys_5v0_uw"), label_of("battery_power_uw")
    ('VIN_SYS_5V0', None)
    """
    found = _COLUMN.fullmatch(column)
    return found[1].upper() if found else None


def scope_of(labels: Sequence[str]) -> Scope | None:
    """Return what the board's power is: its input rail, or else the sum of all rails; None without any.

    AGX Orin has no input rail, and AGX Thor has one from R39 on; a sum of rails is less than what the board takes, and is called so.
    """
    if not labels:
        return None
    entry = next((label for label in INPUTS if label in labels), None)
    return Scope(kind=SUM, labels=tuple(labels)) if entry is None else Scope(kind=INPUTS[entry], labels=(entry,))


def _chips(files: SystemFiles) -> list[str]:
    """Return the hwmon folders of the INA chips."""
    folders = files.paths("/sys/class/hwmon/hwmon*")
    found = [folder for folder in folders if (files.text(f"{folder}/name") or "").startswith("ina")]
    if found:
        return found
    devices = [path.rpartition("/")[0] for path in files.paths("/sys/bus/i2c/devices/*/name")]
    inas = [device for device in devices if (files.text(f"{device}/name") or "").startswith("ina")]
    return [folder for device in inas for folder in files.paths(f"{device}/hwmon/hwmon*")]


def _rails_of(files: SystemFiles, folder: str) -> list[Rail]:
    chip = files.text(f"{folder}/name") or files.text(f"{folder.rpartition('/hwmon/')[0]}/name") or "ina"
    interval = files.number(f"{folder}/update_interval")
    if files.exists(f"{folder}/power1_input"):  # INA238: one rail, µW
        named = files.text(f"{folder}/label") or files.text(f"{folder}/in1_label") or chip.upper()
        return [_rail(named, chip, (f"{folder}/power1_input",), interval)]
    channels = []
    for number in _INA3221_CHANNELS:
        label, parts = files.text(f"{folder}/in{number}_label"), (f"in{number}_input", f"curr{number}_input")
        if label and all(files.exists(f"{folder}/{part}") for part in parts):
            channels.append(_rail(label, chip, tuple(f"{folder}/{part}" for part in parts), interval))
    return channels


def _rail(label: str, chip: str, parts: tuple[str, ...], interval: int | None) -> Rail:
    return Rail(label=label, column=column_of(label), chip=chip, parts=parts, update_interval_ms=interval)


def _distinct(rail: Rail, rails: Sequence[Rail]) -> Rail:
    """Return a rail under a column of its own, where another one has the same label."""
    taken = {other.column for other in rails}
    if rail.column not in taken:
        return rail
    numbers = (number for number in range(2, 100) if column_of(f"{rail.label}_{number}") not in taken)
    label = f"{rail.label}_{next(numbers)}"
    return Rail(
        label=label,
        column=column_of(label),
        chip=rail.chip,
        parts=rail.parts,
        update_interval_ms=rail.update_interval_ms,
    )
