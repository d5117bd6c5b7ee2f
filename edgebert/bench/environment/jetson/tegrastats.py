"""One line of `tegrastats`: what it says, and what it leaves unsaid (tensorrt_jetson.md, section 8.1).

The line changed with every release. Whatever is not understood is ignored; whatever is missing is None, never 0. A line is believed
only whole: one that was cut at its start lacks `RAM` and is refused, and one that was cut at its end must be cut back to its last
blank first (`whole_words`), for `EMC_FREQ 61%@21` may have been going to say 2133.

>>> line = "RAM 1343/7620MB (lfb 157x4MB) GR3D_FREQ 0%@[305] gpu@49.625C VDD_IN 5251mW/8535mW NC 0mW/0mW"
>>> found = reading_of(line)
>>> found.gpu.mhz, found.temperatures["gpu"].celsius, [(rail.label, rail.now_mw) for rail in found.rails]
((305,), 49.625, [('VDD_IN', 5251)])
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_LINE = 8_192  # characters; the longest line of section 8.1 has 700

_OFF_C = -256.0  # a sensor of a unit that is switched off
_UNCONNECTED = "NC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A unit that works: how much, and how fast.

    Attributes:
        percent: of its time; None where the line does not tell (Thor).
        mhz: its clocks, one for each of its parts that is on; empty where the line does not tell.
    """

    percent: int | None
    mhz: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A temperature in degrees Celsius, and the highest since the start where the release tells it (R39)."""

    celsius: float
    peak_celsius: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RailPower:
    """The power of a rail in mW, which may be negative.

    Attributes:
        label: as printed.
        now_mw: of this moment; the one to use.
        average_mw: cumulative since tegrastats began.
        peak_mw: the third value of R39, taken as the highest: an estimate of the reference.
    """

    label: str
    now_mw: int
    average_mw: int
    peak_mw: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One line.

    Attributes:
        time: as printed, None on releases without it.
        ram_mb: used, and all.
        largest_free_block_kb: what `lfb` says one piece has.
        swap_mb: used, and all; None on R39.
        cpus: one for each core, None for a core that is off.
        emc: the memory controller.
        gpu: None where the line has no `GR3D_FREQ`.
        engines: name without `_FREQ` -> load, None for one that is off.
        temperatures: sensor, in small letters -> temperature; without those that are off.
        rails: in the order of the line, without those that are not connected.
    """

    time: str | None
    ram_mb: tuple[int, int]
    largest_free_block_kb: int | None
    swap_mb: tuple[int, int] | None
    cpus: tuple[Load | None, ...]
    emc: Load | None
    gpu: Load | None
    engines: Mapping[str, Load | None]
    temperatures: Mapping[str, Heat]
    rails: tuple[RailPower, ...]


# Every field stands alone between blanks, so that a piece of another one is never taken for it.
_START, _END = r"(?<!\S)", r"(?!\S)"
_NUMBER = r"-?\d{1,7}(?:\.\d{1,4})?"
_TIME = re.compile(r"^(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d) ")
_RAM = re.compile(rf"{_START}RAM (\d{{1,9}})/(\d{{1,9}})MB(?: \(lfb \d{{1,9}}x(\d{{1,9}})(kB|MB)\))?{_END}")
_SWAP = re.compile(rf"{_START}SWAP (\d{{1,9}})/(\d{{1,9}})MB{_END}")
_CPUS = re.compile(rf"{_START}CPU \[([^\]\s]{{1,4000}})\](?:@(\d{{1,6}}))?{_END}")
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,6}))?")
_LOAD = r"(?:(\d{1,3})%)?(?:@(\d{1,6}|\[[0-9a-z,]{0,200}\]))?"
_EMC = re.compile(rf"{_START}EMC_FREQ {_LOAD}{_END}")
_GPU = re.compile(rf"{_START}GR3D_FREQ {_LOAD}{_END}")
_ENGINE = re.compile(rf"{_START}([A-Z][A-Z0-9]{{1,20}})(?:_FREQ)? (off|\d{{1,6}}|(?:\d{{1,3}}%)?@\d{{1,6}}){_END}")
_NO_ENGINES = ("EMC", "GR3D")  # written like engines, and read by patterns of their own
_HEAT = re.compile(rf"{_START}([A-Za-z][A-Za-z0-9_.-]{{0,40}})@({_NUMBER})C(?:/({_NUMBER})C)?{_END}")
_RAIL = re.compile(
    rf"{_START}([A-Z][A-Z0-9_]{{1,40}}) (-?\d{{1,8}})mW/(-?\d{{1,8}})mW(?:/(-?\d{{1,8}})mW)?{_END}"
)  # fmt: skip


def reading_of(line: str) -> Reading | None:
    """Return what a whole line says, or None where it is no line of tegrastats.

    Args:
        line: without the end of line; see `whole_words` for one that may have been cut.
    """
    ram = _RAM.search(line[:MAX_LINE])
    if ram is None or len(line) > MAX_LINE:
        return None
    time, swap = _TIME.match(line), _SWAP.search(line)
    return Reading(
        time=time[1] if time else None,
        ram_mb=(int(ram[1]), int(ram[2])),
        largest_free_block_kb=int(ram[3]) * (1024 if ram[4] == "MB" else 1) if ram[3] else None,
        swap_mb=(int(swap[1]), int(swap[2])) if swap else None,
        cpus=_cpus(line),
        emc=_load(_EMC.search(line)),
        gpu=_load(_GPU.search(line)),
        engines={name: _engine(said) for name, said in _ENGINE.findall(line) if name not in _NO_ENGINES},
        temperatures=_temperatures(line),
        rails=_rails(line),
    )


def whole_words(text: str) -> str:
    """Return a line that may have been cut without its last word.

    >>> whole_words("RAM 6712/7620MB EMC_FREQ 61%@21")
    'RAM 6712/7620MB EMC_FREQ'
    """
    return text.rpartition(" ")[0]


def _cpus(line: str) -> tuple[Load | None, ...]:
    found = _CPUS.search(line)
    if found is None:
        return ()
    shared = (int(found[2]),) if found[2] else ()  # `[0%,5%,off]@2601`: one clock for all
    cores = [_CORE.fullmatch(entry) for entry in found[1].split(",")]
    return tuple(
        None if core is None else Load(percent=int(core[1]), mhz=(int(core[2]),) if core[2] else shared)
        for core in cores
    )


def _load(found: re.Match[str] | None) -> Load | None:
    if found is None or (found[1] is None and found[2] is None):
        return None
    clocks = (found[2] or "").strip("[]").split(",")
    return Load(
        percent=None if found[1] is None else int(found[1]),
        mhz=tuple(int(clock) for clock in clocks if clock.isdigit()),  # a part that is `off` has no clock
    )


def _engine(said: str) -> Load | None:
    if said == "off":
        return None
    percent, _, clock = said.rpartition("@")
    return Load(percent=int(percent[:-1]) if percent else None, mhz=(int(clock),))


def _temperatures(line: str) -> dict[str, Heat]:
    return {
        name.lower(): Heat(celsius=float(now), peak_celsius=float(peak) if peak else None)
        for name, now, peak in _HEAT.findall(line)
        if float(now) != _OFF_C
    }


def _rails(line: str) -> tuple[RailPower, ...]:
    return tuple(
        RailPower(label=label, now_mw=int(now), average_mw=int(average), peak_mw=int(peak) if peak else None)
        for label, now, average, peak in _RAIL.findall(line)
        if label != _UNCONNECTED
    )
