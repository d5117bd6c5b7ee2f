"""The checks of the pre-flight (bench.md, section 9): each looks at an observation and says what it found.

A new check is one more function in `CHECKS`.

>>> len({check.__name__ for check in CHECKS}) == len(CHECKS)
True
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from edgebert._cpu_quota import quota_cpus, read_cpu_max
from edgebert.bench.environment.control_group import read_cpuset, read_memory_limit
from edgebert.bench.environment.operating_system import ASLR, CLOCK_SOURCE, HUGE_PAGES
from edgebert.bench.environment.power_state import read_governors, read_turbo
from edgebert.bench.environment.power_supply import batteries, on_mains
from edgebert.bench.environment.preflight import Check, Observation, State
from edgebert.bench.environment.sensors import RAPL_RULE, is_temperature, rapl_zones, temperature_paths
from edgebert.bench.environment.system_files import chosen, cpu_list, read_memory, text_of_cpus

_CPUS = "/sys/devices/system/cpu"
_MB = 1 << 20
_NO_CLOCK_VM = "virtualised: the clock is the host's"

# A CPU-bound neighbour of half a core moves the median of a run on two to six cores by several percent.
_LOAD_WARN = 0.5
_STEAL_WARN = 0.01
_PRESSURE_WARN = 0.01
_BUSY_WARN = 0.05  # of one processor, for one process
_SWAP_WARN_BYTES = 64 * _MB
_MEMORY_BYTES = (256 * _MB, 1024 * _MB)  # fail, warn
_DISK_BYTES = (100 * _MB, 1024 * _MB)
_HEADROOM_MC = (5_000, 15_000)  # fail, warn; processors throttle at their limit, fans react some degrees before

# Read without a system call, and steady: what is measured is the model, not the clock.
_FAST_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page", "riscv_clocksource")

# The harness sets these for its workers; a value of the user's is replaced.
_REPLACED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# These pin threads, change their number, or how they wait, whatever --threads says (bench.md, section 3).
_FIGHTING = re.compile(
    r"^(KMP_\w+|GOMP_\w+|TBB_\w+|OMP_(PROC_BIND|PLACES|DYNAMIC|THREAD_LIMIT|WAIT_POLICY|SCHEDULE|NESTED|MAX_ACTIVE_LEVELS)"
    r"|MKL_(DYNAMIC|DOMAIN_NUM_THREADS|THREADING_LAYER|ENABLE_INSTRUCTIONS|CBWR)|OPENBLAS_(?!NUM_THREADS)\w+|ORT_NUM_THREADS)$"
)


def governor(seen: Observation) -> Check:
    """Whether the clock stays up between queries."""
    found = read_governors(seen.files)
    if not found:
        return _unknown("governor", _NO_CLOCK_VM if seen.virtualised else "no cpufreq driver")
    return _judged(
        "governor",
        "pass" if found == ("performance",) else "warn",
        ", ".join(found),
        "other governors than `performance` lower the clock between queries, so a query starts slow",
        "sudo cpupower frequency-set -g performance",
    )


def energy_preference(seen: Observation) -> Check:
    """Whether the processor itself prefers speed."""
    paths = seen.files.paths(f"{_CPUS}/cpu*/cpufreq/energy_performance_preference")
    found = sorted({text for path in paths if (text := seen.files.text(path))})
    if not found:
        return _unknown("energy preference", _NO_CLOCK_VM if seen.virtualised else "the driver has none")
    return _judged(
        "energy preference",
        "pass" if found == ["performance"] else "warn",
        ", ".join(found),
        "the processor chooses its clock by this hint; others than `performance` make it rise late",
        f"echo performance | sudo tee {_CPUS}/cpu*/cpufreq/energy_performance_preference",
    )


def turbo(seen: Observation) -> Check:
    """Whether the clock depends on heat and on how many cores work."""
    found = read_turbo(seen.files)
    if found is None:
        return _unknown("turbo", _NO_CLOCK_VM if seen.virtualised else "no driver tells")
    intel = seen.files.exists(f"{_CPUS}/intel_pstate/no_turbo")
    fix = f"echo 1 | sudo tee {_CPUS}/intel_pstate/no_turbo" if intel else f"echo 0 | sudo tee {_CPUS}/cpufreq/boost"
    return _judged(
        "turbo",
        "warn" if found else "pass",
        "on" if found else "off",
        "with turbo the clock depends on heat and on how many cores work; off, times repeat better and are longer",
        fix,
    )


def mains(seen: Observation) -> Check:
    """Whether the computer runs from its battery."""
    found = on_mains(seen.files)
    if found is None:
        reason = "no mains supply is known" if batteries(seen.files) else "no battery and no mains supply is known"
        return _unknown("power supply", reason)
    return _judged(
        "power supply",
        "pass" if found else "warn",
        "mains" if found else "battery",
        "on battery, firmware lowers the power limit; connect the mains adapter",
    )


def load(seen: Observation) -> Check:
    """Whether other programs ran during the last minute."""
    if seen.load is None:
        return _unknown("load average", "no /proc/loadavg")
    return _judged(
        "load average",
        "warn" if seen.load > _LOAD_WARN else "pass",
        f"{seen.load:.2f} over one minute, {len(seen.usable)} usable processors",
        "other programs take processors, caches and power from what is measured; wait until it is below 0.5",
        "uptime",
    )


def busy_processes(seen: Observation) -> Check:
    """Which other processes use a processor right now."""
    if not seen.after.processes or seen.elapsed_s <= 0:
        return _unknown("busy processes", "no process is visible in /proc")
    ticks = os.sysconf("SC_CLK_TCK") * seen.elapsed_s
    shares = [
        ((now - seen.before.processes.get(key, (name, 0))[1]) / ticks, name)
        for key, (name, now) in seen.after.processes.items()
        if key in seen.before.processes
    ]
    busy = sorted((entry for entry in shares if entry[0] > _BUSY_WARN), reverse=True)
    return _judged(
        "busy processes",
        "warn" if busy else "pass",
        ", ".join(f"{name} {share:.0%}" for share, name in busy[:5]) or "none above 5 % of a processor",
        "they compete with what is measured; end them, or wait",
        "top -o %CPU",
    )


def quota(seen: Observation) -> Check:
    """Whether the control group may use fewer processors than it sees."""
    found = read_cpu_max(seen.files)
    if found is None:
        return _unknown("processor quota", "no control group is visible in /sys/fs/cgroup")
    granted = quota_cpus(found)
    if granted is None:
        return _judged("processor quota", "pass", "none", "no quota stops the threads")
    tight = granted < len(seen.usable)
    return _judged(
        "processor quota",
        "warn" if tight else "pass",
        f"{granted:g} processors of {len(seen.usable)} usable ones",
        "a backend starts one thread for each processor it sees, uses the quota up early in each period of some 100 ms, and is "
        "stopped until the next: slow queries of tens of ms. Start the container without the quota, or use fewer threads",
        f"edgebert bench … --threads {max(1, int(granted))}" if tight else "",
    )


def stops(seen: Observation) -> Check:
    """Whether heat or the quota slows the processor down right now."""
    before, after = seen.before.throttle_events, seen.after.throttle_events
    if before is None or after is None:
        return _unknown("throttling", "virtualised" if seen.virtualised else "no counter of it")
    return _judged(
        "throttling",
        "fail" if after > before else "pass",
        f"{after - before} events in {seen.elapsed_s:.1f} s",
        "the processor is slowed down by heat or stopped by the quota before the measurement has begun; let it cool, "
        "or end what uses the quota",
    )


def cpuset(seen: Observation) -> Check:
    """Whether this process may use all processors of its control group."""
    allowed = cpu_list(read_cpuset(seen.files)) or cpu_list(seen.files.text(f"{_CPUS}/online"))
    if not allowed:
        return _unknown("affinity", f"neither a cpuset nor {_CPUS}/online is visible")
    narrow = set(seen.usable) < set(allowed)
    return _judged(
        "affinity",
        "warn" if narrow else "pass",
        f"processors {text_of_cpus(seen.usable)} of {text_of_cpus(allowed)}",
        "this process is pinned to fewer processors than its control group allows; others that are measured without that "
        "have more",
        f"taskset -c {text_of_cpus(allowed)} edgebert bench …" if narrow else "",
    )


def siblings(seen: Observation) -> Check:
    """Whether two threads can land on one core."""
    files = seen.files
    groups = {files.text(path) for path in files.paths(f"{_CPUS}/cpu[0-9]*/topology/thread_siblings_list")}
    cores = [members for text in groups if (members := set(cpu_list(text)) & set(seen.usable))]
    if not cores:
        return _unknown("SMT siblings", f"no topology in {_CPUS}")
    shared = any(len(members) > 1 for members in cores)
    return _judged(
        "SMT siblings",
        "warn" if shared else "pass",
        f"{len(seen.usable)} usable processors on {len(cores)} cores",
        "two threads on one core share its units, and which threads do changes from launch to launch",
        f"taskset -c {text_of_cpus(min(members) for members in cores)} edgebert bench …",
    )


def steal(seen: Observation) -> Check:
    """Whether the hypervisor takes time away."""
    before, after = seen.before.ticks, seen.after.ticks
    if before is None or after is None or after[2] <= before[2]:
        return _unknown("steal", "/proc/stat counts no time")
    share = max(0.0, (after[0] - before[0]) / (after[2] - before[2]))
    return _judged(
        "steal",
        "warn" if share > _STEAL_WARN else "pass",
        f"{share:.1%} in {seen.elapsed_s:.1f} s",
        "the hypervisor gave processors to other guests; no setting inside the machine helps. Measure at another time, or "
        "on the device",
    )


def swap(seen: Observation) -> Check:
    """Whether memory lies on the disk."""
    memory = read_memory(seen.files)
    if not {"SwapTotal", "SwapFree"} <= set(memory):
        return _unknown("swap", "not in /proc/meminfo")
    used = memory["SwapTotal"] - memory["SwapFree"]
    return _judged(
        "swap",
        "warn" if used > _SWAP_WARN_BYTES else "pass",
        f"{used // _MB} MB used",
        "a page that must be read from the disk makes a query slow by milliseconds",
        "sudo swapoff -a && sudo swapon -a",
    )


def pressure(seen: Observation) -> Check:
    """Whether processes waited for processor, memory or disk."""
    shares: dict[str, float] = {}
    for name in ("cpu", "memory", "io"):
        line = re.search(r"^some avg10=(\d{1,3}\.\d{1,4})", seen.files.text(f"/proc/pressure/{name}") or "")
        if line:
            shares[name] = float(line[1]) / 100
    if not shares:
        return _unknown("pressure", "the kernel counts none: no /proc/pressure")
    return _judged(
        "pressure",
        "warn" if max(shares.values()) > _PRESSURE_WARN else "pass",
        ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
        "share of the last ten seconds in which some process waited; what is measured will wait as well",
        "grep . /proc/pressure/*",
    )


def memory(seen: Observation) -> Check:
    """Whether there is memory for the models."""
    entries = read_memory(seen.files)
    if "MemAvailable" not in entries:
        return _unknown("free memory", "not in /proc/meminfo")
    limit = read_memory_limit(seen.files)
    free = min(entries["MemAvailable"], limit) if limit else entries["MemAvailable"]
    return _judged(
        "free memory",
        _below(free, _MEMORY_BYTES),
        f"{free // _MB} MB" + (", as far as the control group allows" if limit == free else ""),
        "models that do not fit are swapped, or killed",
        "free -m",
    )


def disk(seen: Observation) -> Check:
    """Whether there is room for the images and samples."""
    return _judged(
        "free disk",
        _below(seen.free_bytes, _DISK_BYTES),
        f"{seen.free_bytes // _MB} MB in {seen.temporary}",
        "decoded images and samples pass through the folder for temporary files; TMPDIR names another",
        "export TMPDIR=/path/with/room",
    )


def layout(seen: Observation) -> Check:
    """Whether each launch has its own memory layout."""
    found = seen.files.number(ASLR)
    if found is None:
        return _unknown("ASLR", f"not in {ASLR}")
    return _judged(
        "ASLR",
        "pass" if found == 2 else "warn",
        {0: "off", 1: "partly", 2: "on"}.get(found, str(found)),
        "the layout of memory shifts times by some percent; with it random, several launches average over that, and without, all "
        "share one bias",
        f"echo 2 | sudo tee {ASLR}",
    )


def huge_pages(seen: Observation) -> Check:
    """Whether the kernel rearranges memory while we measure."""
    found = chosen(seen.files.text(HUGE_PAGES))
    if found is None:
        return _unknown("transparent huge pages", f"not in {HUGE_PAGES}")
    return _judged(
        "transparent huge pages",
        "warn" if found == "always" else "pass",
        found,
        "with `always`, the kernel merges pages while the model runs: times and memory change with the age of the process",
        f"echo madvise | sudo tee {HUGE_PAGES}",
    )


def clock_source(seen: Observation) -> Check:
    """Whether reading the clock is cheap."""
    found = seen.files.text(CLOCK_SOURCE)
    if not found:
        return _unknown("clock source", f"not in {CLOCK_SOURCE}")
    available = (seen.files.text(CLOCK_SOURCE.replace("current_", "available_")) or "").split()
    state: State = "pass" if found in _FAST_CLOCKS else "fail" if found == "jiffies" else "warn"
    return _judged(
        "clock source",
        state,
        found,
        "each stamp takes a system call and some µs, and with jiffies is coarse by milliseconds",
        f"echo tsc | sudo tee {CLOCK_SOURCE}" if "tsc" in available else "sudo dmesg | grep -i -e tsc -e clocksource",
    )


def virtual(seen: Observation) -> Check:
    """Whether this is a virtual machine."""
    return _judged(
        "virtual machine",
        "warn" if seen.virtualised else "pass",
        "yes" if seen.virtualised else "no",
        "neighbours, and a clock that cannot be read: ratios of interleaved arms hold, times are no times of a device",
    )


def energy(seen: Observation) -> Check:
    """Whether energy can be read."""
    zones = rapl_zones(seen.files)
    if not zones:
        return _unknown(
            "energy counters", "virtualised" if seen.virtualised else "no intel-rapl in /sys/class/powercap"
        )
    readable = all(seen.files.number(f"{zone}/energy_uj") is not None for zone in zones)
    return _judged(
        "energy counters",
        "pass" if readable else "warn",
        f"{len(zones)} RAPL zones" + ("" if readable else ", readable by root only"),
        "energy is left out, not estimated; the rule lets every user of this computer read the counters, which the kernel "
        "forbade because they can betray what others compute (CVE-2020-8694)",
        RAPL_RULE,
    )


def headroom(seen: Observation) -> Check:
    """How far the processor is from the temperature at which it slows down."""
    paths, origin = temperature_paths(seen.files)
    hottest = [(value, path) for path in paths if (value := seen.files.number(path)) and is_temperature(value)]
    if not hottest:
        return _unknown("thermal headroom", "virtualised" if seen.virtualised else "no temperature of the processor")
    margins = [(limit - value, value, limit) for value, path in hottest if (limit := _limit(seen, path)) is not None]
    if not margins:
        return _unknown("thermal headroom", f"{origin}: {max(hottest)[0] / 1000:.0f} °C, its limit is not told")
    margin, value, limit = min(margins)
    return _judged(
        "thermal headroom",
        _below(margin, _HEADROOM_MC),
        f"{margin / 1000:.0f} °C: {value / 1000:.0f} of {limit / 1000:.0f} °C ({origin})",
        "a hot processor slows down soon after the start; let it cool, and see that the fan turns",
        "sensors",
    )


def thread_variables(seen: Observation) -> Check:
    """Whether variables decide about threads against `--threads`."""
    fighting = [name for name in sorted(seen.environ) if _FIGHTING.match(name)]
    replaced = [f"{name}={seen.environ[name]}" for name in _REPLACED if name in seen.environ]
    found = [f"{name}={seen.environ[name]}" for name in fighting]
    return _judged(
        "thread variables",
        "warn" if found else "pass",
        ", ".join(found + [f"{entry} (replaced by --threads)" for entry in replaced]) or "none",
        "they pin threads, change their number or how they wait, whatever --threads says",
        f"unset {' '.join(fighting)}",
    )


CHECKS: tuple[Callable[[Observation], Check], ...] = (
    governor,
    energy_preference,
    turbo,
    mains,
    headroom,
    stops,
    load,
    busy_processes,
    pressure,
    steal,
    quota,
    cpuset,
    siblings,
    thread_variables,
    memory,
    swap,
    disk,
    clock_source,
    layout,
    huge_pages,
    virtual,
    energy,
)


def _judged(name: str, state: State, found: str, why: str, fix: str = "") -> Check:
    return Check(name=name, state=state, found=found, why=why, fix=fix if state in ("warn", "fail") else "")


def _unknown(name: str, reason: str) -> Check:
    return Check(name=name, state="unknown", found="-", why=reason)


def _below(value: int, limits: tuple[int, int]) -> State:
    fail, warn = limits
    return "fail" if value < fail else "warn" if value < warn else "pass"


def _limit(seen: Observation, path: str) -> int | None:
    """Return the temperature at which the processor slows down: a chip's `crit`, or a zone's lowest trip point."""
    if path.endswith("_input"):
        limits = [seen.files.number(path.replace("_input", f"_{name}")) for name in ("crit", "max")]
        return next((limit for limit in limits if limit is not None and is_temperature(limit)), None)
    zone = path.rpartition("/")[0]
    trips = [
        seen.files.number(kind.replace("_type", "_temp"))
        for kind in seen.files.paths(f"{zone}/trip_point_*_type")
        if seen.files.text(kind) in ("passive", "hot", "critical")
    ]
    return min((trip for trip in trips if trip is not None and is_temperature(trip)), default=None)
