"""What decides the clock of a computer: driver, governor, turbo, siblings, mains or battery.

>>> isinstance(read_governors(SystemFiles()), tuple)
True
"""

from __future__ import annotations

from dataclasses import replace

from edgebert.bench.environment.jetson.clocks import read_gpu_clock, read_locked
from edgebert.bench.environment.jetson.identity import is_jetson
from edgebert.bench.environment.jetson.power_mode import STATUS, read_power_mode
from edgebert.bench.environment.power_supply import SUPPLIES, batteries, on_mains
from edgebert.bench.environment.processor import read_clock_limits
from edgebert.bench.environment.schema import Battery
from edgebert.bench.environment.system_files import SystemFiles, switch
from edgebert.bench.schema import PowerState

_CPUS = "/sys/devices/system/cpu"


def read_power_state(files: SystemFiles, *, virtualised: bool) -> PowerState:
    """Return what decides the clock; reasons go below `power_state`."""
    reason = "a virtual machine does not see the clock" if virtualised else f"not in {_CPUS}"
    state = PowerState(
        driver=files.text(f"{_CPUS}/cpu0/cpufreq/scaling_driver"),
        governor=read_governors(files),
        turbo=read_turbo(files),
        epp=files.text(f"{_CPUS}/cpu0/cpufreq/energy_performance_preference"),
        smt=switch(files.text(f"{_CPUS}/smt/active")),
        ac=on_mains(files),
        clock=read_clock_limits(files, reason),
        battery=_battery(files),
    )
    state = _with_jetson(state, files)
    for name, value in (
        ("driver", state.driver),
        ("governor", state.governor or None),
        ("turbo", state.turbo),
        ("epp", state.epp),
    ):
        if value is None:
            files.missing(f"power_state.{name}", reason)
    if state.smt is None:
        files.missing("power_state.smt", f"not in {_CPUS}/smt")
    if state.ac is None:
        files.missing("power_state.ac", f"no mains supply in {SUPPLIES}")
    return state


def _with_jetson(state: PowerState, files: SystemFiles) -> PowerState:
    if not is_jetson(files):
        for name in ("nvpmodel", "jetson_clocks", "gpu_clock"):
            files.missing(f"power_state.{name}", "not a Jetson")
        return state
    mode, locked, gpu = read_power_mode(files), read_locked(files), read_gpu_clock(files)
    for name, value, reason in (
        ("nvpmodel", mode, f"{STATUS} is not readable, and `nvpmodel -q` does not answer"),
        ("jetson_clocks", locked, "the memory's clock is told to root only: sudo jetson_clocks --show"),
        ("gpu_clock", gpu, "no clock of a GPU in /sys/class/devfreq"),
    ):
        if value is None:
            files.missing(f"power_state.{name}", reason)
    return replace(state, nvpmodel=mode, jetson_clocks=locked, gpu_clock=gpu)


def read_governors(files: SystemFiles) -> tuple[str, ...]:
    """Return the distinct governors of all processors, sorted."""
    found = {files.text(path) for path in files.paths(f"{_CPUS}/cpu*/cpufreq/scaling_governor")}
    return tuple(sorted(filter(None, found)))


def read_turbo(files: SystemFiles) -> bool | None:
    """Say whether the clock may rise above its nominal value; None where no driver tells."""
    no_turbo = switch(files.text(f"{_CPUS}/intel_pstate/no_turbo"))
    return switch(files.text(f"{_CPUS}/cpufreq/boost")) if no_turbo is None else not no_turbo


def _battery(files: SystemFiles) -> Battery | None:
    folders = batteries(files)
    if not folders:
        files.missing("power_state.battery", f"no battery in {SUPPLIES}")
        return None
    status, charge = files.text(f"{folders[0]}/status"), files.number(f"{folders[0]}/capacity")
    for name, value in (("status", status), ("charge_percent", charge)):
        if value is None:
            files.missing(f"power_state.battery.{name}", f"not in {SUPPLIES}")
    return Battery(status=status, charge_percent=charge)
