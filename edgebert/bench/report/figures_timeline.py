"""The timeline of a run: every query of every launch, and beneath it what the sensors saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.environment.jetson.rails import label_of, scope_of
from edgebert.bench.recorder import FLAG_WARMUP
from edgebert.bench.report.figures import (
    INK,
    MUTED,
    POINTS,
    WIDTH,
    log_axis,
    name_of,
    put_legend,
    theme_colour,
    themed_figure,
    thinned,
)
from edgebert.bench.samples import TELEMETRY, IntArray, Samples
from edgebert.bench.schema import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

_TIME = f"{TELEMETRY}t_ns"
_MISSING = -1
_SPACE = 0.012  # between two launches, of the whole time shown
_TICKS_PER_SECOND = 100.0  # USER_HZ, in which Linux counts processor time for user space


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """What one sensor says: its name in words, a label with its unit, and how its column becomes a value.

    `missed` is False for one that only some boards have: where it was not read, nobody needs to be told so.
    """

    column: str
    name: str
    label: str
    scale: float
    counter: bool
    missed: bool = True


# A counter is shown as its increase per second.
STRIPS = (
    Strip(column="clock_khz", name="clock", label="clock, GHz", scale=1e-6, counter=False),
    Strip(column="temperature_mc", name="temperature", label="°C", scale=1e-3, counter=False),
    Strip(column="energy_package_uj", name="power of the package", label="power, W", scale=1e-6, counter=True),
    Strip(column="gpu_clock_khz", name="GPU clock", label="GPU, GHz", scale=1e-6, counter=False, missed=False),
    Strip(column="steal_ticks", name="stolen time", label="stolen, CPUs", scale=1 / _TICKS_PER_SECOND, counter=True),
    Strip(column="pressure_cpu_us", name="waiting for a processor", label="waiting, %", scale=1e-4, counter=True),
    Strip(column="quota_us", name="stops by the quota", label="quota, %", scale=1e-4, counter=True),
    Strip(column="throttle_events", name="throttling", label="throttled, /s", scale=1.0, counter=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where the launches lie on an axis from which the time between them is cut out.

    Attributes:
        starts: when each launch began, ns.
        ends: when it ended, ns.
        places: where each begins on the axis, seconds.
    """

    launches: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    places: tuple[float, ...]

    def at(self, stamps: IntArray) -> FloatArray:
        """Return where stamps lie on the axis, seconds; NaN between launches."""
        seconds = np.full(stamps.shape, np.nan)
        for start, end, place in zip(self.starts, self.ends, self.places, strict=True):
            inside = (stamps >= start) & (stamps <= end)
            seconds[inside] = place + (stamps[inside] - start) / 1e9
        return seconds


def clock_of(samples: Samples) -> Clock:
    """Return the launches of the single-stream scenario as one axis."""
    own = samples["scenario"] == 0
    timed = np.unique(
        samples["launch"][own & ((samples["flags"] & FLAG_WARMUP) == 0)]
    )  # other scenarios only warm up with it
    chosen = own & np.isin(samples["launch"], timed)
    launch, issue, done = (samples[name][chosen] for name in ("launch", "t_issue", "t_done"))
    numbers = [int(number) for number in np.unique(launch)]
    starts = [int(issue[launch == number].min()) for number in numbers]
    ends = [int(done[launch == number].max()) for number in numbers]
    lengths = [(end - start) / 1e9 for start, end in zip(starts, ends, strict=True)]
    space = _SPACE * sum(lengths)
    places = [sum(lengths[:at]) + at * space for at in range(len(numbers))]
    return Clock(launches=tuple(numbers), starts=tuple(starts), ends=tuple(ends), places=tuple(places))


def read_strips(samples: Samples) -> list[Strip]:
    """Return the sensors that were read at least twice."""
    columns = samples.columns
    strips = (*STRIPS, *_rail_strips(samples))
    found = [strip for strip in strips if _TIME in columns and f"{TELEMETRY}{strip.column}" in columns]
    return [
        strip for strip in found if np.count_nonzero(columns[f"{TELEMETRY}{strip.column}"] != _MISSING) > int(strip.counter)
    ]  # fmt: skip


def _rail_strips(samples: Samples) -> list[Strip]:
    """Return the power rails that make up a board's power."""
    names = [name.removeprefix(TELEMETRY) for name in samples.columns if name.startswith(TELEMETRY)]
    labels = {label: name for name in names if (label := label_of(name)) is not None}
    scope = scope_of(tuple(labels))
    return [
        Strip(
            column=labels[label], name=f"power of {label}", label=f"{label}, W", scale=1e-6, counter=False, missed=False
        )
        for label in (() if scope is None else scope.labels)
    ]


def strips_of(samples: Samples) -> list[Strip]:
    """Return the sensors that have something to show: a counter that never moved is told in words."""
    return [strip for strip in read_strips(samples) if not strip.counter or readings_of(samples, strip)[1].any()]


def timeline_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return the latency of every query over time, warm-up included, with the sensors' strips beneath."""
    strips, clock = strips_of(samples), clock_of(samples)

    def draw(figure: Figure) -> None:
        heights = [3.2, *(1.0 for _ in strips)]
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        axes: Sequence[Axes] = [row[0] for row in grid]
        _draw_queries(axes[0], result, samples, clock)
        for below, strip in zip(axes[1:], strips, strict=True):
            _draw_strip(below, samples, strip, clock)
        for each in axes:
            for place in clock.places[1:]:
                each.axvline(place - _gap(clock) / 2, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
            each.margins(x=0.01)
        axes[-1].set_xlabel("seconds, the time between launches left out; pale: warm-up")

    return themed_figure(draw, f"{part}timeline", width=2 * WIDTH + 0.4, height=3.4 + 0.85 * len(strips))


def _draw_queries(axes: Axes, result: Result, samples: Samples, clock: Clock) -> None:
    for index, arm in enumerate(result.arms):
        rows = samples.queries_of(index)
        seconds, times = clock.at(rows["t_issue"]), (rows["t_done"] - rows["t_sched"]) / 1e6
        warm = (rows["flags"] & FLAG_WARMUP) != 0
        colour = MUTED if arm.role == "aa" else theme_colour(index)
        for chosen, alpha, label in ((warm, 0.35, None), (~warm, 0.85, name_of(arm))):
            share = np.count_nonzero(chosen) / max(1, chosen.size)
            x, y = bars_of(seconds[chosen], times[chosen], stretches=max(20, round(share * POINTS / 2)))
            axes.plot(x, y, color=colour, alpha=alpha, linewidth=1.8, solid_capstyle="round", label=label)
    log_axis(axes, "y")
    top = axes.get_ylim()[1]
    every = max(1, -(-len(clock.places) // 12))
    for number, place in list(zip(clock.launches, clock.places, strict=True))[::every]:
        axes.annotate(
            f"launch {number + 1}",
            (place, top),
            textcoords="offset points",
            xytext=(1, -9),
            fontsize=8,
            color=MUTED,
        )
    axes.set_ylabel("end-to-end latency, ms")
    put_legend(axes, columns=5)


def bars_of(seconds: FloatArray, times: FloatArray, *, stretches: int) -> tuple[FloatArray, FloatArray]:
    """Return one line of upright bars, from the fastest to the slowest query of each stretch; NaN between two bars.

    So no extreme is lost, and one path of a few hundred bars stands for any number of queries.

    Args:
        seconds: float64 (n,), where each query lies on the axis.
        times: float64 (n,).
        stretches: how many bars there are at most.
    """
    order = np.argsort(seconds, kind="stable")
    parts = [part for part in np.array_split(order, min(stretches, max(1, order.size))) if part.size]
    x = np.full((len(parts), 3), np.nan)
    y = np.full((len(parts), 3), np.nan)
    for row, part in enumerate(parts):
        x[row, :2] = np.median(seconds[part])
        y[row, :2] = times[part].min(), times[part].max()
    return x.reshape(-1), y.reshape(-1)


def _draw_strip(axes: Axes, samples: Samples, strip: Strip, clock: Clock) -> None:
    stamps, values = readings_of(samples, strip)
    seconds = clock.at(stamps)
    inside = ~np.isnan(seconds)
    seconds, values = seconds[inside], values[inside]
    for start, place in zip(clock.places, [*clock.places[1:], np.inf], strict=True):
        own = (seconds >= start) & (seconds < place)
        shown = thinned(values[own], most=max(20, POINTS // len(clock.places)))
        axes.plot(seconds[own][shown], values[own][shown], color=INK, alpha=0.75, linewidth=1.1)
    if strip.counter:
        axes.set_ylim(0, max(0.05, 1.15 * float(values.max(initial=0.0))))
    axes.set_ylabel(strip.label, fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="y", nbins=3)


def readings_of(samples: Samples, strip: Strip) -> tuple[IntArray, FloatArray]:
    """Return the stamps and values of one sensor in time order; of a counter, its increase per second since the last."""
    stamps, raw = samples[_TIME], samples[f"{TELEMETRY}{strip.column}"]
    known = raw != _MISSING
    order = np.argsort(stamps[known], kind="stable")
    stamps, raw = stamps[known][order], raw[known][order]
    if not strip.counter:
        return stamps, np.asarray(raw * strip.scale, np.float64)
    passed = np.diff(stamps) / 1e9
    steps = np.diff(raw)
    usable = (passed > 0) & (steps >= 0)  # a counter that went back has wrapped, or is another launch's
    rates = np.asarray(strip.scale * steps[usable] / passed[usable], np.float64)
    return stamps[1:][usable], rates


def _gap(clock: Clock) -> float:
    return clock.places[1] - clock.places[0] - (clock.ends[0] - clock.starts[0]) / 1e9
