"""Sensors that the sampler reads while timing: clock, temperature, throttling, steal, pressure, energy, battery.

A source is one class in `SOURCES`: it finds its files when it is made, names its columns with their units, and reads
one integer for each, -1 for a value that is missing this time. A column that it cannot have at all has a reason instead.
Another platform is some more classes in the table, such as those of a Jetson (`edgebert.bench.environment.jetson.sources`).

>>> [source.__name__ for source in SOURCES][:3]
['Clock', 'Temperature', 'Throttle']
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from edgebert.bench.environment.control_group import cpu_stat_paths, read_counts
from edgebert.bench.environment.jetson.sources import JETSON_SOURCES
from edgebert.bench.environment.power_supply import batteries
from edgebert.bench.environment.source import MISSING, VIRTUALISED, Source, is_virtual
from edgebert.bench.environment.system_files import FileReader, SystemFiles

_CPUS = "/sys/devices/system/cpu"


class Clock(Source):
    """The clock of the watched processors: of the fastest, and the mean of all.

    The fastest is what shows throttling: where fewer threads run than there are processors, idle ones are slow anyway.
    """

    names = ("clock_khz", "clock_mean_khz")

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._clocks: list[FileReader] = []
        self._cpuinfo: FileReader | None = None
        self._cpus = cpus
        paths = [
            path
            for path in files.paths(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")
            if not cpus or _cpu_of(path) in cpus
        ]
        readable = [path for path in paths if files.number(path) is not None]
        if readable:
            self._clocks = [self._open(files, path) for path in readable]
            for name in self.names:
                self._offer(name, "cpufreq scaling_cur_freq")
        elif not is_virtual(files) and _megahertz(files.text("/proc/cpuinfo"), cpus):
            # Nominal in a virtual machine; elsewhere the harness drops the column if it never moves.
            self._cpuinfo = self._open(files, "/proc/cpuinfo")
            for name in self.names:
                self._offer(name, CPUINFO_ORIGIN)

    def read(self) -> list[int]:
        """Return the highest and the mean clock in kHz."""
        if self._cpuinfo is not None:
            clocks = _megahertz(self._cpuinfo.text(), self._cpus)
        else:
            clocks = _known(reader.number() for reader in self._clocks)
        return [max(clocks), round(sum(clocks) / len(clocks))] if clocks else [MISSING] * len(self.columns)

    def _why_absent(self, files: SystemFiles) -> str:
        if is_virtual(files):
            return VIRTUALISED
        return "no cpufreq driver, and /proc/cpuinfo tells no clock"


CPUINFO_ORIGIN = "/proc/cpuinfo cpu MHz"


class Temperature(Source):
    """The hottest sensor of the processor, in thousandths of a degree Celsius."""

    names = ("temperature_mc",)

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        paths, origin = temperature_paths(files)
        self._sensors = [self._open(files, path) for path in paths]
        if paths:
            self._offer("temperature_mc", origin)

    def read(self) -> list[int]:
        """Return the hottest of the sensors."""
        values = [value for value in _known(reader.number() for reader in self._sensors) if is_temperature(value)]
        return [max(values, default=MISSING)] if self.columns else []


class Throttle(Source):
    """Thermal throttling since the start of the computer: events and milliseconds of all cores and packages."""

    names = ("throttle_events", "throttle_ms")

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._counters: dict[str, list[FileReader]] = {}
        for name, suffix in (("throttle_events", "throttle_count"), ("throttle_ms", "throttle_total_time_ms")):
            paths = _one_per_core(files, suffix)
            if paths:
                self._counters[name] = [self._open(files, path) for path in paths]
                self._offer(name, f"cpu*/thermal_throttle/*_{suffix}")

    def read(self) -> list[int]:
        """Return the sums of the counters; a core that went offline makes a sum missing, not smaller."""
        return [_sum(reader.number() for reader in self._counters[name]) for name in self.columns]

    def _why_absent(self, files: SystemFiles) -> str:
        return VIRTUALISED if is_virtual(files) else "no thermal_throttle counters (Intel has them)"


class Quota(Source):
    """How often, and for how long, the quota of the control group stopped its processes."""

    names = ("quota_events", "quota_us")

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._stats = [self._open(files, path) for path in cpu_stat_paths(files)]
        if self._stats:
            self._offer("quota_events", "cgroup cpu.stat nr_throttled")
            self._offer("quota_us", "cgroup cpu.stat throttled_usec")

    def read(self) -> list[int]:
        """Return stopped periods and microseconds."""
        counts = [read_counts(reader.text()) for reader in self._stats]
        return [_sum(count.get(name) for count in counts) for name in ("nr_throttled", "throttled_usec")][
            : len(self.columns)
        ]

    def _why_absent(self, files: SystemFiles) -> str:
        return "this control group has no quota and counts no stopped periods"


class Steal(Source):
    """Ticks that the hypervisor gave to other guests."""

    names = ("steal_ticks",)

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._stat = self._open(files, "/proc/stat")
        if _steal_ticks(self._stat.text()) != MISSING:
            self._offer("steal_ticks", "/proc/stat")

    def read(self) -> list[int]:
        """Return the ticks of all processors together."""
        return [_steal_ticks(self._stat.text())] if self.columns else []

    def _why_absent(self, files: SystemFiles) -> str:
        return "/proc/stat counts no stolen time"


class WaitTime(Source):
    """Microseconds in which some process of the computer waited for a resource (PSI)."""

    names = ("pressure_cpu_us", "pressure_memory_us", "pressure_io_us")

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._totals: list[FileReader] = []
        for name in self.names:
            path = f"/proc/pressure/{name.split('_')[1]}"
            if _wait_us(files.text(path)) != MISSING:
                self._totals.append(self._open(files, path))
                self._offer(name, path)

    def read(self) -> list[int]:
        """Return the totals since the start of the computer."""
        return [_wait_us(reader.text()) for reader in self._totals]

    def _why_absent(self, files: SystemFiles) -> str:
        return "the kernel counts no pressure: no /proc/pressure"


class Rapl(Source):
    """Energy by the processor's own counters (RAPL), in µJ since the source was made; never an estimate.

    Columns are the scopes that the processor has, each the sum over its packages: `package` holds `core`, `uncore`, and
    not `dram`; `psys` is the platform as its maker wired it. AMD's counters appear under Intel's name (package and core).
    A counter that wraps is followed; it takes minutes, a sample a tenth of a second.
    """

    names = tuple(f"energy_{scope}_uj" for scope in ("package", "core", "uncore", "dram", "psys"))

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._zones: dict[str, list[_EnergyCounter]] = {}
        for zone in rapl_zones(files):
            # `package-0`, on processors of several dies `package-0-die-1`
            scope = re.split(r"-\d", files.text(f"{zone}/name") or "")[0]
            name = f"energy_{scope}_uj"
            if name not in self.names or name in self.reasons:
                continue
            if files.number(f"{zone}/energy_uj") is None:
                self.reasons[name] = RAPL_UNREADABLE
                self._zones.pop(name, None)  # a sum without one of its parts would be too small
                continue
            counter = _EnergyCounter(
                self._open(files, f"{zone}/energy_uj"), files.number(f"{zone}/max_energy_range_uj")
            )
            self._zones.setdefault(name, []).append(counter)
        for name in self.names:
            if name in self._zones:
                self._offer(name, "powercap intel-rapl energy_uj")

    def read(self) -> list[int]:
        """Return the energy of each scope since the source was made."""
        return [_sum([counter.advance() for counter in self._zones[name]]) for name in self.columns]

    def _why_absent(self, files: SystemFiles) -> str:
        if is_virtual(files):
            return VIRTUALISED
        return (
            "the processor has no such scope" if self._zones or self.reasons else "no intel-rapl in /sys/class/powercap"
        )


RAPL_RULE = (
    'echo \'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"\''
    " | sudo tee /etc/udev/rules.d/70-intel-rapl.rules"
    " && sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=powercap --action=add"
)
RAPL_UNREADABLE = f"energy_uj is readable by root only (Linux 5.10 and newer); to let all users read it: {RAPL_RULE}"


class _EnergyCounter:
    """One counter of energy that starts again at 0 after `range_uj`."""

    def __init__(self, reader: FileReader, range_uj: int | None) -> None:
        self._reader = reader
        self._range_uj = range_uj
        self._last = reader.number()
        self._total: int | None = 0 if self._last is not None else None

    def advance(self) -> int | None:
        """Return the µJ since the start, or None where the counter cannot be read now, or wrapped by an unknown range."""
        now = self._reader.number()
        if now is None or self._last is None or self._total is None:
            return None
        step = now - self._last
        if step < 0:
            if self._range_uj is None or now > self._range_uj:
                self._total = None  # what was lost is unknown from here on
                return None
            step += self._range_uj
        self._last, self._total = now, self._total + step
        return self._total


class BatteryState(Source):
    """Charge of the battery, and the power that flows out of it or, while charging, into it.

    An embedded controller answers slowly, and its values change every few seconds.
    """

    names = ("battery_percent", "battery_power_uw")
    every_s = 5.0

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._parts: list[list[FileReader]] = []
        for folder in batteries(files)[:1]:
            self._add(files, folder, "battery_percent", ("capacity",))
            power = (
                ("power_now",) if files.number(f"{folder}/power_now") is not None else ("current_now", "voltage_now")
            )
            self._add(files, folder, "battery_power_uw", power)

    def _add(self, files: SystemFiles, folder: str, name: str, parts: tuple[str, ...]) -> None:
        if all(files.number(f"{folder}/{part}") is not None for part in parts):
            self._parts.append([self._open(files, f"{folder}/{part}") for part in parts])
            self._offer(name, f"power_supply {' x '.join(parts)}")

    def read(self) -> list[int]:
        """Return percent and µW."""
        found = []
        for readers in self._parts:
            values = _known(reader.number() for reader in readers)
            if len(values) < len(readers):
                found.append(MISSING)
            else:  # µA x µV is 10^-12 W
                found.append(abs(values[0]) if len(values) == 1 else abs(values[0] * values[1]) // 10**6)
        return found

    def _why_absent(self, files: SystemFiles) -> str:
        return "the battery does not tell" if batteries(files) else "no battery"


SOURCES: tuple[type[Source], ...] = (
    *(Clock, Temperature, Throttle, Quota, Steal, WaitTime, Rapl, BatteryState),
    *JETSON_SOURCES,
)


def open_sources(
    files: SystemFiles, cpus: Collection[int] = (), sources: Iterable[type[Source]] = SOURCES
) -> list[Source]:
    """Return every source of the table, those without anything to read included."""
    return [source(files, cpus) for source in sources]


def merged_reasons(sources: Iterable[Source]) -> dict[str, str]:
    """Return column -> why it is not there, over all sources, without the columns that another source has."""
    sources = list(sources)
    there = {name for source in sources for name in source.columns}
    return {name: why for source in sources for name, why in source.reasons.items() if name not in there}


def read_throttle_events(files: SystemFiles) -> int | None:
    """Return the sum of the processor's thermal events and of the control group's stopped periods, or None."""
    found = []
    for source in (Throttle(files), Quota(files)):
        values = dict(zip(source.columns, source.read(), strict=True))
        found += [values[name] for name in ("throttle_events", "quota_events") if values.get(name, MISSING) >= 0]
        source.close()
    return sum(found) if found else None


# Drivers of the processor's own sensors, and what the thermal zones of processors are called.
_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal")
_CPU_ZONES = re.compile(r"^(x86_pkg_temp|.*cpu.*|.*soc.*|.*pkg.*|tj.*)$", re.IGNORECASE)


def temperature_paths(files: SystemFiles) -> tuple[list[str], str]:
    """Return the processor's temperature files and what they are, none where there are none.

    AMD's `Tctl` steers the fan and is, on some processors, the temperature plus 10 to 27 degrees; it is used only where
    no `Tdie` is beside it (kernel documentation, hwmon/k10temp).
    """
    for folder in files.paths("/sys/class/hwmon/hwmon*"):
        chip = files.text(f"{folder}/name") or ""
        if chip in _CPU_CHIPS:
            chips = [other for other in files.paths("/sys/class/hwmon/hwmon*") if files.text(f"{other}/name") == chip]
            paths = [path for other in chips for path in _chip_temperatures(files, other)]
            if paths:
                return paths, f"hwmon {chip}"
    zones = {
        f"{zone}/temp": files.text(f"{zone}/type") or ""
        for zone in files.paths("/sys/class/thermal/thermal_zone*")
        if (value := files.number(f"{zone}/temp")) is not None and is_temperature(value)
    }
    of_cpu = [path for path, kind in zones.items() if _CPU_ZONES.match(kind)]
    kinds = sorted({zones[path] for path in of_cpu or zones})
    return of_cpu or list(zones), f"thermal zones {', '.join(kinds)}"


def is_temperature(millidegrees: int) -> bool:
    """Say whether a value is one: drivers write -274000 or huge numbers for a sensor that is off."""
    return 0 < millidegrees < 150_000


def rapl_zones(files: SystemFiles) -> list[str]:
    """Return the folders of RAPL's zones, each once.

    `intel-rapl-mmio` shows the same package a second time and is left out.
    """
    flat = files.paths("/sys/class/powercap/intel-rapl:*")
    nested = files.paths("/sys/class/powercap/intel-rapl/intel-rapl:*")
    nested += files.paths("/sys/class/powercap/intel-rapl/intel-rapl:*/intel-rapl:*")
    zones = {path.rpartition("/")[2]: path for path in (*nested, *flat)}
    return [zones[name] for name in sorted(zones)]


def _chip_temperatures(files: SystemFiles, folder: str) -> list[str]:
    found = {}
    for path in files.paths(f"{folder}/temp*_input"):
        value = files.number(path)
        if value is not None and is_temperature(value):
            found[path] = files.text(path.replace("_input", "_label")) or ""
    if "Tdie" in found.values():
        return [path for path, label in found.items() if label != "Tctl"]
    return list(found)


def _one_per_core(files: SystemFiles, suffix: str) -> list[str]:
    """Return one counter for each core and each package: every processor of it shows the same one."""
    chosen: dict[tuple[str | None, ...], str] = {}
    for scope in ("core", "package"):
        for path in files.paths(f"{_CPUS}/cpu[0-9]*/thermal_throttle/{scope}_{suffix}"):
            topology = f"{_CPUS}/cpu{_cpu_of(path)}/topology"
            package, core = files.text(f"{topology}/physical_package_id"), files.text(f"{topology}/core_id")
            own = path if package is None else None  # without a topology each counts for itself
            if files.number(path) is not None:
                chosen.setdefault((scope, own, package, core if scope == "core" else None), path)
    return list(chosen.values())


def _cpu_of(path: str) -> int:
    found = re.search(r"/cpu(\d+)/", path)
    assert found is not None
    return int(found[1])


def _megahertz(cpuinfo: str | None, cpus: frozenset[int]) -> list[int]:
    """Return the clocks of /proc/cpuinfo in kHz."""
    found: Mapping[int, float] = {
        int(cpu): float(clock)
        for cpu, clock in re.findall(
            r"^processor\s*:\s*(\d{1,5})$.*?^cpu MHz\s*:\s*(\d{1,6}(?:\.\d{1,6})?)$",
            cpuinfo or "",
            re.DOTALL | re.MULTILINE,
        )
    }
    return [round(clock * 1000) for cpu, clock in found.items() if clock > 0 and (not cpus or cpu in cpus)]


def _steal_ticks(stat: str | None) -> int:
    fields = (stat or "").partition("\n")[0].split()
    return int(fields[8]) if len(fields) > 8 and fields[0] == "cpu" and fields[8].isdigit() else MISSING


def _wait_us(pressure: str | None) -> int:
    found = re.search(r"^some .*total=(\d{1,18})", pressure or "")
    return int(found[1]) if found else MISSING


def _known(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _sum(values: Iterable[int | None]) -> int:
    """Return the sum, `MISSING` where a part of it is."""
    parts = list(values)
    return MISSING if not parts or None in parts else sum(_known(parts))
