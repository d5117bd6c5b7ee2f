"""What a result records of the computer beyond `edgebert.bench.schema`'s first fields: records of `edgebert.bench/1`.

Every field is None, or empty, where it cannot be read; `not_measured` then says why, by the path of the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreType:
    """Processors of one kind; a hybrid processor has several.

    Attributes:
        name: `performance` or `efficient` where the kernel names them (Intel), otherwise `capacity N` of 1,024 (Arm),
            or `uniform`.
        cpus: in the kernel's list format, such as `0-7`.
        max_khz: the highest clock of this kind.
    """

    name: str
    cpus: str
    max_khz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTopology:
    """How the logical processors lie; belongs to `device.cpu.topology`.

    Attributes:
        core_types: the kinds of cores; one for a processor that is not hybrid.
        siblings: groups of processors that share a core, such as `("0,4", "1,5")`.
        numa_nodes: node -> processors.
        online: processors that are switched on.
        isolated: processors that the scheduler leaves alone (`isolcpus`); empty for none.
    """

    core_types: tuple[CoreType, ...]
    siblings: tuple[str, ...]
    numa_nodes: Mapping[str, str]
    online: str | None
    isolated: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockLimits:
    """Between which the clock may move, of the slowest and the fastest processor; belongs to `power_state.clock`.

    Attributes:
        hardware_min_khz: the lowest that the processor can.
        hardware_max_khz: the highest that it can.
        min_khz: the lowest that the settings allow.
        max_khz: the highest that they allow.
    """

    hardware_min_khz: int | None
    hardware_max_khz: int | None
    min_khz: int | None
    max_khz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """A battery that feeds the computer, at the start; belongs to `power_state.battery`."""

    status: str | None
    charge_percent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaUsage:
    """How often the quota of the control group stopped its processes since the group began; belongs to `interference`.

    Attributes:
        periods: of the quota, elapsed.
        throttled_periods: of these, those in which the quota ran out.
        throttled_us: time that its processes waited for the next period.
    """

    periods: int | None
    throttled_periods: int | None
    throttled_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """Settings of the kernel that change a time; belongs to `os.settings`.

    Attributes:
        aslr: 0 off, 1 without the heap, 2 whole.
        transparent_hugepages: `always`, `madvise` or `never`.
        clock_source: what `perf_counter_ns` reads.
        command_line: flags of the boot that change a time, such as `mitigations=off`; no others are kept.
        vulnerabilities: vulnerability -> mitigation, for those that are mitigated or vulnerable.
        swap_bytes: size of the swap space.
    """

    aslr: int | None
    transparent_hugepages: str | None
    clock_source: str | None
    command_line: tuple[str, ...]
    vulnerabilities: Mapping[str, str]
    swap_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """Share of the last ten seconds in which some process waited for a resource (PSI); belongs to `interference`.

    Each is in [0, 1].
    """

    cpu: float | None
    memory: float | None
    io: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """The process that measures; belongs to `process` of the result.

    Attributes:
        affinity: processors it may run on, in the kernel's list format.
        nice: 0 is usual, 19 yields to all.
        scheduler: policy of the system's scheduler, such as `other`.
    """

    affinity: str
    nice: int | None
    scheduler: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRail:
    """A power rail of a Jetson that can be read; belongs to `device.jetson.rails`.

    Attributes:
        label: as the board names it.
        column: of the samples, below `telemetry_`.
        chip: that measures it, such as `ina3221`.
        is_input: everything behind it is fed through this one, so that nothing is added to it.
    """

    label: str
    column: str
    chip: str
    is_input: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JetsonFacts:
    """What an NVIDIA Jetson is; belongs to `device.jetson`.

    Attributes:
        module: its number, such as `p3767-0005`.
        module_name: what is sold under that number.
        soc: the chip, such as `tegra234`.
        family: of the chip, such as `Orin`.
        l4t: version of NVIDIA's Linux for it, such as `36.4.3`.
        jetpack: the release that this L4T belongs to.
        tensorrt: version of the installed packages.
        cuda: version of the installed packages.
        rails: that can be read in /sys.
        update_interval_ms: chip -> time over which it averages before it shows a new value; without those whose driver does not tell.
    """

    module: str | None
    module_name: str | None
    soc: str | None
    family: str | None
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    cuda: str | None
    rails: tuple[PowerRail, ...]
    update_interval_ms: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """The power mode of a Jetson; belongs to `power_state.nvpmodel`. A number means another mode on another board."""

    id: int
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClock:
    """Between which limits a Jetson's GPU clock may move; belongs to `power_state.gpu_clock`."""

    min_khz: int | None
    max_khz: int | None
    governor: str | None
