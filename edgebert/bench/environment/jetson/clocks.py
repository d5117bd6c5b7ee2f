"""The clocks of GPU and memory: where they are read, between which limits they may move, and whether they are held.

>>> GpuFiles(folder="/sys/class/devfreq/gpu-gpc-0").current
'/sys/class/devfreq/gpu-gpc-0/cur_freq'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgebert.bench.environment.jetson.nvml import GpuLoad
from edgebert.bench.environment.jetson.programs import JETSON_CLOCKS_SHOW, answer_of, are_locked, shown_clocks
from edgebert.bench.environment.schema import GpuClock
from edgebert.bench.environment.system_files import SystemFiles

# The memory controller's clock by the firmware's clock tree: debugfs, so root only. The path is that of JetPack's own jetson_clocks
# script; tensorrt_jetson.md does not name it.
EMC_CLOCK = "/sys/kernel/debug/bpmp/debug/clk/emc/rate"
EMC_LOCKED = "/sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked"

_DEVICES = "/sys/class/devfreq"
_NODES = ("ga10b", "gb10b", "gpu")  # of the device tree (tensorrt_jetson.md, section 8.3)
_FOLDERS = re.compile(r"gpu-gpc-0|\d+\.(?:gpu|ga10b|gb10b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFiles:
    """The folder of the GPU's clock below /sys/class/devfreq; clocks in Hz."""

    folder: str

    @property
    def current(self) -> str:
        """The clock of this moment."""
        return f"{self.folder}/cur_freq"

    @property
    def lowest(self) -> str:
        """The lowest that the settings allow."""
        return f"{self.folder}/min_freq"

    @property
    def highest(self) -> str:
        """The highest that the settings, and a cooling device, allow."""
        return f"{self.folder}/max_freq"

    @property
    def governor(self) -> str:
        """What chooses the clock between them."""
        return f"{self.folder}/governor"

    @property
    def load(self) -> str:
        """How much of its time it works, per mille."""
        return f"{self.folder}/device/load"


def find_gpu(files: SystemFiles) -> GpuFiles | None:
    """Return where the GPU's clock is, by its name in the device tree or that of the folder; None where there is none."""
    folders = [path.rpartition("/")[0] for path in files.paths(f"{_DEVICES}/*/cur_freq")]
    by_node = [folder for folder in folders if (files.text(f"{folder}/device/of_node/name") or "") in _NODES]
    by_name = [folder for folder in folders if _FOLDERS.fullmatch(folder.rpartition("/")[2])]
    return next((GpuFiles(folder=folder) for folder in (*by_node, *by_name)), None)


def read_gpu_clock(files: SystemFiles) -> GpuClock | None:
    """Return between which limits the GPU's clock may move."""
    gpu = find_gpu(files)
    if gpu is None:
        return None
    return GpuClock(
        min_khz=_kilohertz(files.number(gpu.lowest)),
        max_khz=_kilohertz(files.number(gpu.highest)),
        governor=files.text(gpu.governor),
    )


def read_load(files: SystemFiles) -> int | None:
    """Return how much of its time the GPU works, per mille, from its folder or the driver's library; None is not 0."""
    gpu = find_gpu(files)
    load = None if gpu is None else files.number(gpu.load)
    if load is not None or gpu is None or files.root != Path("/"):
        return load
    nvml = GpuLoad()
    load = nvml.permille()
    nvml.close()
    return load


def read_locked(files: SystemFiles) -> bool | None:
    """Say whether the clocks are held, as `sudo jetson_clocks` does; None where that cannot be known.

    They are held where the GPU's lowest, highest and current clock are one and the memory's is overridden. Without root the memory is
    not told: limits of the GPU that differ then still say no, and equal ones say nothing yet.
    """
    shown = are_locked(shown_clocks(answer_of(files, JETSON_CLOCKS_SHOW) or ""))
    if shown is not None:
        return shown
    gpu = find_gpu(files)
    if gpu is None:
        return None
    lowest, highest = files.number(gpu.lowest), files.number(gpu.highest)
    if lowest is None or highest is None:
        return None
    if lowest < highest:
        return False
    emc = files.number(EMC_LOCKED)
    return None if emc is None else emc == 1


def _kilohertz(hertz: int | None) -> int | None:
    return None if hertz is None else hertz // 1_000
