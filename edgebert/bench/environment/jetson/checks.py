"""The checks of the pre-flight that only a Jetson has; see `edgebert.bench.environment.preflight_checks`.

Each names the command that mends what it found. None of them is run: a mode that another user chose is not ours to switch.
"""

from __future__ import annotations

from collections.abc import Callable

from edgebert.bench.environment.jetson.clocks import read_gpu_clock, read_load, read_locked
from edgebert.bench.environment.jetson.heat import alerts_now
from edgebert.bench.environment.jetson.identity import is_jetson, jetpack_of_l4t, read_l4t
from edgebert.bench.environment.jetson.power_mode import DEFINITIONS, STATUS, defined_modes, highest, read_power_mode
from edgebert.bench.environment.preflight import Check, Observation
from edgebert.runtime.tensorrt_api import l4t_refusal

_BUSY_PERMILLE = 50

# What draws a desktop: the names of processes as /proc gives them, which it cuts to 15 characters.
_DESKTOP = (
    "gnome-shell",
    "Xorg",
    "Xwayland",
    "gdm-x-session",
    "gdm-wayland-ses",
    "lxsession",
    "xfce4-session",
    "lightdm",
)


def release(seen: Observation) -> Check:
    """Whether this L4T is one that edgebert supports."""
    l4t = read_l4t(seen.files)
    if l4t is None:
        return _unknown("L4T", "no /etc/nv_tegra_release and no package nvidia-l4t-core")
    refused, jetpack = l4t_refusal(l4t), jetpack_of_l4t(l4t)
    return Check(
        name="L4T",
        state="warn" if refused else "pass",
        found=f"{l4t}, JetPack {jetpack or 'not known to this version'}",
        why=f"{refused}: TensorRT engines are refused here",
        fix="flash JetPack 6.1 or newer" if refused else "",
    )


def power_mode(seen: Observation) -> Check:
    """Whether the board runs in its highest power mode."""
    mode, modes = read_power_mode(seen.files), defined_modes(seen.files)
    if mode is None:
        return _unknown("power mode", f"{STATUS} is not readable, and `nvpmodel -q` does not answer")
    best, said = highest(modes), f"{mode.name or 'of unknown name'} ({mode.id})"
    if best is None:
        return _unknown("power mode", f"{said}; {DEFINITIONS} names no mode to compare it with")
    lower = mode.id != best
    return Check(
        name="power mode",
        state="warn" if lower else "pass",
        found=said + (f", the highest is {modes[best]} ({best})" if lower else ", the highest"),
        why="a lower mode caps clocks and switches cores off: figures of another mode are those of another computer. It may ask for a "
        "new start of the board",
        fix=f"sudo nvpmodel -m {best}" if lower else "",
    )


def clocks(seen: Observation) -> Check:
    """Whether GPU and memory are held at one clock."""
    locked, gpu = read_locked(seen.files), read_gpu_clock(seen.files)
    limits = ""
    if gpu is not None and gpu.min_khz is not None and gpu.max_khz is not None:
        limits = f", GPU {gpu.min_khz // 1_000} to {gpu.max_khz // 1_000} MHz"
    if locked is None:
        held = gpu is not None and gpu.min_khz is not None and gpu.min_khz == gpu.max_khz
        known = "the GPU's clock is held, and the memory's is told to root only" if held else "told to root only"
        return _unknown("Jetson clocks", f"{known}: sudo jetson_clocks --show")
    return Check(
        name="Jetson clocks",
        state="pass" if locked else "warn",
        found=("held" if locked else "not held") + limits,
        why="the governors lower the clocks of GPU and memory between queries, so that a query starts slow, and a run differs from the next",
        fix="" if locked else "sudo jetson_clocks",
    )


def slow_downs(seen: Observation) -> Check:
    """Whether heat slows the chip down right now."""
    found = alerts_now(seen.files)
    return Check(
        name="throttle alerts",
        state="fail" if found else "pass",
        found=", ".join(found) or "none",
        why="the chip is slowed down before the measurement has begun; let it cool, and see that the fan turns",
        fix="grep . /sys/class/thermal/cooling_device*/cur_state" if found else "",
    )


def gpu_load(seen: Observation) -> Check:
    """Whether somebody uses the GPU."""
    load = read_load(seen.files)
    if load is None:
        return _unknown("GPU load", "this GPU tells none")  # which is not 0
    return Check(
        name="GPU load",
        state="warn" if load > _BUSY_PERMILLE else "pass",
        found=f"{load / 10:.0f} %",
        why="another program computes on the GPU, and takes its time, its memory and its power; end it, or wait",
        fix="top -o %CPU" if load > _BUSY_PERMILLE else "",
    )


def desktop(seen: Observation) -> Check:
    """Whether a desktop is drawn."""
    if not seen.after.processes:
        return _unknown("desktop", "no process is visible in /proc")
    running = sorted({name for name, _ in seen.after.processes.values()} & set(_DESKTOP))
    return Check(
        name="desktop",
        state="warn" if running else "pass",
        found=", ".join(running) or "none",
        why="a desktop takes some hundred MB of the memory that GPU and processors share, and draws on the GPU between queries",
        fix="sudo systemctl isolate multi-user.target" if running else "",
    )


JETSON_CHECKS: tuple[Callable[[Observation], Check], ...] = (release, power_mode, clocks, slow_downs, gpu_load, desktop)


def jetson_checks(seen: Observation) -> tuple[Check, ...]:
    """Return the checks of a Jetson; none on another computer."""
    return tuple(check(seen) for check in JETSON_CHECKS) if is_jetson(seen.files) else ()


def _unknown(name: str, reason: str) -> Check:
    return Check(name=name, state="unknown", found="-", why=reason)
