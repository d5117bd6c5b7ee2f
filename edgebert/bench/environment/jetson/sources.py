"""A Jetson's sensors for the sampler: GPU clock, memory clock, temperatures, what slows it down, and power by rail.

On any other computer they have no columns, and no reasons why not: nobody misses a Jetson's rails on a laptop.

>>> Rails(SystemFiles(Path("/nowhere"))).columns
()
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from edgebert.bench.environment.jetson.clocks import EMC_CLOCK, find_gpu
from edgebert.bench.environment.jetson.heat import OVER_CURRENT, find_cooling, find_over_current, find_zones
from edgebert.bench.environment.jetson.identity import is_jetson
from edgebert.bench.environment.jetson.nvml import GpuLoad
from edgebert.bench.environment.jetson.rails import Rail, column_of, find_rails
from edgebert.bench.environment.jetson.tegrastats import Reading
from edgebert.bench.environment.jetson.tegrastats_stream import TEGRASTATS, TegrastatsStream
from edgebert.bench.environment.source import MISSING, Source
from edgebert.bench.environment.system_files import FileReader, SystemFiles

POWER_COLUMN = "power_rails_uw"  # stands for all of them where no rail can be read
EMC_COLUMN = "emc_clock_khz"
EMC_ROOT_ONLY = "the memory's clock is readable by root only, and tegrastats does not tell it"

_LOWEST_UW = -(1 << 40)  # a rail may show less than nothing: -392 mW was seen on an idle Thor (section 8.1)


class JetsonSource(Source):
    """Something that only a Jetson has; `wanted` are the columns that need a reason there where they cannot be read."""

    names: ClassVar[tuple[str, ...]] = ()
    wanted: ClassVar[tuple[str, ...]] = ()

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        if is_jetson(files):
            self._find_here(files)

    @abstractmethod
    def _find_here(self, files: SystemFiles) -> None:
        """Open what there is on a Jetson."""

    def _expected(self, files: SystemFiles) -> tuple[str, ...]:
        return self.wanted if is_jetson(files) else ()

    def _why_absent(self, files: SystemFiles) -> str:
        return "this Jetson does not publish it"


class _Files(JetsonSource):
    """Columns that are one file each."""

    def _find_here(self, files: SystemFiles) -> None:
        self._values: list[Callable[[], int]] = []
        self._add_columns(files)

    @abstractmethod
    def _add_columns(self, files: SystemFiles) -> None:
        """Add a column for each file that is there."""

    def _add(self, files: SystemFiles, name: str, path: str, *, divisor: int = 1) -> None:
        reader = self._open(files, path)
        self._values.append(lambda: _scaled(reader, divisor))
        self._offer(name, path)

    def read(self) -> list[int]:
        """Return what each file says, `MISSING` for one that does not answer now: a gated unit gives EAGAIN."""
        return [value() for value in self._values] if self.columns else []


class GpuClockSource(_Files):
    """The GPU's clock, its limits of this moment, and its load."""

    wanted = ("gpu_clock_khz", "gpu_clock_min_khz", "gpu_clock_max_khz", "gpu_load_permille")
    root: ClassVar[Path] = Path("/")  # a recorded tree has no driver

    def _add_columns(self, files: SystemFiles) -> None:
        gpu = find_gpu(files)
        if gpu is None:
            return
        clocks = (gpu.current, gpu.lowest, gpu.highest)
        for name, path in zip(self.wanted[:3], clocks, strict=True):
            self._add(files, name, path, divisor=1_000)
        self._nvml: GpuLoad | None = None
        if files.exists(gpu.load):
            self._add(files, self.wanted[3], gpu.load)
        elif files.root == self.root:
            self._add_nvml()

    def _add_nvml(self) -> None:
        """Thor's devfreq has no load; the driver's library may know it."""
        nvml = GpuLoad()
        if not nvml.is_known:
            return
        self._nvml = nvml
        self._values.append(lambda: _value_or_missing(nvml.permille()))
        self._offer(self.wanted[3], "nvmlDeviceGetUtilizationRates")

    def close(self) -> None:
        """Close the files, and let the library go."""
        super().close()
        nvml = getattr(self, "_nvml", None)
        if nvml is not None:
            nvml.close()

    def _why_absent(self, files: SystemFiles) -> str:
        return "no clock of a GPU in /sys/class/devfreq" if find_gpu(files) is None else "the GPU tells no load"


class MemoryClock(_Files):
    """The memory controller's clock, where it is readable: as root. `Tegrastats` has it for others."""

    wanted = (EMC_COLUMN,)

    def _add_columns(self, files: SystemFiles) -> None:
        if files.number(EMC_CLOCK) is not None:
            self._add(files, EMC_COLUMN, EMC_CLOCK, divisor=1_000)

    def _why_absent(self, files: SystemFiles) -> str:
        return EMC_ROOT_ONLY


class Zones(_Files):
    """Every thermal zone, such as `temperature_gpu_mc`, in thousandths of a degree Celsius.

    Reading one asks the firmware, and heat is slow: once a second.
    """

    every_s = 1.0

    def _add_columns(self, files: SystemFiles) -> None:
        for zone, path in find_zones(files).items():
            self._add(files, f"temperature_{zone}_mc", path)


class SlowDowns(_Files):
    """How often the regulators held the chip back since its start, and what holds it back at this moment."""

    wanted = (*(f"oc{number}_events" for number in OVER_CURRENT), "throttle_alerts", "gpu_cap_state")

    def _add_columns(self, files: SystemFiles) -> None:
        for counter in find_over_current(files):
            name = f"oc{counter.number}_events"
            if counter.slows is False and counter.number < max(OVER_CURRENT):
                self.reasons[name] = f"oc{counter.number}_throt_en is 0: its events slow nothing down"
            else:
                self._add(files, name, counter.path)
        self._add_states(files, "throttle_alerts", find_cooling(files, "alert"), _how_many)
        self._add_states(files, "gpu_cap_state", find_cooling(files, "cap"), _largest)

    def _add_states(
        self, files: SystemFiles, name: str, devices: dict[str, str], combined: Callable[[Sequence[int]], int]
    ) -> None:
        if not devices:
            return
        readers = [self._open(files, path) for path in devices.values()]
        self._values.append(lambda: combined([state for reader in readers if (state := reader.number()) is not None]))
        self._offer(name, f"cooling devices {', '.join(devices)}")

    def _why_absent(self, files: SystemFiles) -> str:
        return "no soctherm_oc counter and no such cooling device on this board"


class Rails(JetsonSource):
    """The power of each rail in µW, from the board's INA chips."""

    lowest = _LOWEST_UW

    def _find_here(self, files: SystemFiles) -> None:
        self._rails: list[tuple[Rail, list[FileReader]]] = []
        for rail in find_rails(files):
            self._rails.append((rail, [self._open(files, part) for part in rail.parts]))
            self._offer(rail.column, f"{rail.chip} {' x '.join(part.rpartition('/')[2] for part in rail.parts)}")

    def read(self) -> list[int]:
        """Return the power of each rail; mV times mA is µW."""
        return [_product(readers) for _, readers in self._rails] if self.columns else []


class Tegrastats(JetsonSource):
    """Power by rail where /sys has no INA chip, and the memory's clock where that is closed: what tegrastats prints.

    It is started only where one of the two is missing, as often as a sample is taken for power, once a second for the clock alone. It
    inherits the sampler's low priority and processors, and costs what it costs: that was not measured on a board.
    """

    lowest = _LOWEST_UW
    wanted = (EMC_COLUMN, POWER_COLUMN)
    command: ClassVar[tuple[str, ...]] = TEGRASTATS
    root: ClassVar[Path] = Path("/")  # a recorded tree has no programs
    patience_s: ClassVar[float] = 4.0  # for its first line, which names the rails

    def _find_here(self, files: SystemFiles) -> None:
        self._stream: TegrastatsStream | None = None
        self._labels: tuple[str, ...] = ()
        self._tells_emc = False
        needs_rails, needs_emc = not find_rails(files), files.number(EMC_CLOCK) is None
        if not needs_rails:
            self.reasons[POWER_COLUMN] = "each rail has a column of its own"
        if files.root != self.root or not (needs_rails or needs_emc):
            return
        stream = TegrastatsStream(interval_ms=100 if needs_rails else 1_000, command=self.command)
        first = stream.first(self.patience_s)
        if first is None:
            for name in self.wanted:
                self.reasons.setdefault(name, f"tegrastats says nothing: {stream.problem or 'no line came'}")
            stream.close()
            return
        self._stream = stream
        if needs_emc and first.emc is not None and first.emc.mhz:
            self._tells_emc = True
            self._offer(EMC_COLUMN, "tegrastats EMC_FREQ")
        if needs_rails and first.rails:
            self._labels = tuple(dict.fromkeys(rail.label for rail in first.rails))
            self.reasons[POWER_COLUMN] = "each rail has a column of its own"
            for label in self._labels:
                self._offer(column_of(label), f"tegrastats {label}, its first value")

    def read(self) -> list[int]:
        """Return what its newest line says."""
        if not self.columns:
            return []
        assert self._stream is not None
        reading = self._stream.latest()
        return [MISSING] * len(self.columns) if reading is None else self._values_of(reading)

    def close(self) -> None:
        """End it."""
        super().close()
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.close()

    def _values_of(self, reading: Reading) -> list[int]:
        power = {rail.label: 1_000 * rail.now_mw for rail in reading.rails}
        memory = [1_000 * max(reading.emc.mhz, default=0) if reading.emc else MISSING] if self._tells_emc else []
        return [*memory, *(power.get(label, MISSING) for label in self._labels)]

    def _why_absent(self, files: SystemFiles) -> str:
        return "neither /sys nor tegrastats tells"


JETSON_SOURCES: tuple[type[Source], ...] = (GpuClockSource, MemoryClock, Zones, SlowDowns, Rails, Tegrastats)


def _scaled(reader: FileReader, divisor: int) -> int:
    value = reader.number()
    return MISSING if value is None else value // divisor


def _value_or_missing(value: int | None) -> int:
    return MISSING if value is None else value


def _product(readers: Sequence[FileReader]) -> int:
    values = [reader.number() for reader in readers]
    known = [value for value in values if value is not None]
    return MISSING if len(known) < len(values) else math.prod(known)


def _how_many(states: Sequence[int]) -> int:
    return sum(state > 0 for state in states) if states else MISSING


def _largest(states: Sequence[int]) -> int:
    return max(states, default=MISSING)
