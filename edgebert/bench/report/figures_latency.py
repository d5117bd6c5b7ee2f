"""Figures of how the times of single queries are spread: percentiles with the tail, densities, and stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgebert.bench.report.figures import (
    GRID,
    INK,
    MUTED,
    PAPER,
    POINTS,
    counted_latency,
    cut,
    dash_of,
    log_axis,
    measured_indices,
    name_of,
    put_legend,
    theme_colour,
    themed_svg,
)
from edgebert.bench.report.quantities import milliseconds
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Arm, Result, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 70
_WAITS = 0.01  # of the end-to-end time
_STAGES = (
    ("queue", "waiting", 0.12),
    ("pre", "preprocessing", 0.3),
    ("infer", "inference", 0.75),
    ("post", "decision", 0.5),
    ("gap", "gap", 0.0),
)


def percentile_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return latency over the percentile, the tail stretched: every nine has the same width."""

    def draw(axes: Axes) -> None:
        arms = measured_indices(result)
        most = max(counted_latency(samples, index).size for index, _ in arms)
        last = np.log10(max(most, 2))
        for index, arm in arms:
            times = np.sort(counted_latency(samples, index)) / 1e6
            if not times.size:
                continue
            nines = np.linspace(0, np.log10(max(times.size, 2)), POINTS // 2)
            ranks = np.ceil(times.size * (1 - 10**-nines)).astype(np.int64).clip(1, times.size) - 1
            axes.plot(
                nines,
                times[ranks],
                color=theme_colour(index),
                linestyle=dash_of(index),
                drawstyle="steps-post",
                label=name_of(arm),
            )
        shares = [share for share in (0.5, 0.9, 0.99, 0.999, 0.9999) if -np.log10(1 - share) <= last]
        axes.set_xticks([-np.log10(1 - share) for share in shares])
        axes.set_xticklabels([f"p{100 * share:g}" for share in shares])
        axes.set_xlim(0, last)
        log_axis(axes, "y")
        axes.set_ylabel("end-to-end latency, ms")
        put_legend(axes)

    return themed_svg(draw, f"{part}percentiles")


def density_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return a histogram of each arm over common logarithmic bins, each as high as its fullest bin."""

    def draw(axes: Axes) -> None:
        times = {index: np.maximum(counted_latency(samples, index), 1) / 1e6 for index, _ in measured_indices(result)}
        together = np.concatenate(list(times.values()))
        if not together.size:
            return
        low, high = float(together.min()), float(together.max())
        edges = np.geomspace(low, max(high, low * 1.01) * (1 + 1e-9), _BINS + 1)
        for index, arm in measured_indices(result):
            if not times[index].size:
                continue
            counts, _ = np.histogram(times[index], edges)
            heights = 100 * counts / counts.sum()
            axes.stairs(heights, edges, color=theme_colour(index), fill=True, alpha=0.22)
            axes.stairs(
                heights,
                edges,
                color=theme_colour(index),
                linewidth=1.4,
                linestyle=dash_of(index),
                label=name_of(arm),
            )
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.set_ylim(0, 100)
        axes.set_yticks([0, 1, 10, 100])
        axes.set_yticklabels(["0", "1", "10", "100"])
        log_axis(axes, "x", margin=0.02)
        axes.set_xlabel("end-to-end latency, ms (logarithmic)")
        axes.set_ylabel("queries, %")
        put_legend(axes)

    return themed_svg(draw, f"{part}density")


def stage_figure(result: Result, part: str = "") -> str:
    """Return the shares of queue, pre, infer, post and gap in the time of every arm, with the milliseconds above.

    The gap is what belongs to no query: of block time in a closed loop. An open loop waits, and has none.
    """
    rows = [(arm, scenario) for arm in result.measured_arms for scenario in arm.scenarios if _has_stages(scenario)]
    shown = [stage for stage in _STAGES if any(stage_means(scenario)[stage[0]] for _, scenario in rows)]

    def draw(axes: Axes) -> None:
        positions = np.arange(len(rows))
        means = [stage_means(scenario) for _, scenario in rows]
        totals = np.array([sum(mean.values()) for mean in means])
        left = np.zeros(len(rows))
        for stage, label, alpha in shown:
            values = np.array([mean[stage] for mean in means])
            widths = 100 * values / totals
            axes.barh(
                positions,
                widths,
                left=left,
                height=0.4,
                color=INK if alpha else GRID,
                alpha=alpha or 1.0,
                edgecolor=PAPER,
                linewidth=1,
                hatch=None if alpha else "////",
                label=label,
            )
            left += widths
        for position, mean in enumerate(means):
            text = " + ".join(milliseconds(mean[stage]) for stage, _, _ in shown)
            axes.annotate(f"{text} ms", (0, position), textcoords="offset points", xytext=(2, 13), fontsize=8.5)
        axes.set_yticks(positions)
        axes.set_yticklabels([_row_name(arm, scenario) for arm, scenario in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of the mean time of a query, %")
        put_legend(axes, columns=len(shown))

    return themed_svg(draw, f"{part}stages", height=1.6 + 0.52 * len(rows))


def stage_means(scenario: Scenario) -> dict[str, float]:
    """Return the mean nanoseconds of each stage, and what lies between two queries."""
    latency = scenario.latency
    means = {stage: getattr(latency, stage).mean for stage in ("queue", "pre", "infer", "post")}
    ratio = scenario.gap_ratio or 0.0
    return {**means, "gap": latency.e2e.mean * ratio / (1 - ratio) if 0 <= ratio < 1 else 0.0}


def soak_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return p50 and p99 of a hundred stretches of the long run of each arm."""

    def draw(axes: Axes) -> None:
        for index, arm in measured_indices(result):
            rows = samples.queries_of(index, "soak")
            kept = (rows["flags"] & ~2) == 0
            issue, times = rows["t_issue"][kept], (rows["t_done"] - rows["t_sched"])[kept]
            if times.size < 2:
                continue
            minutes = (issue - issue.min()) / 60e9
            stretches = np.array_split(np.arange(times.size), min(100, max(1, times.size // 20)))
            middle = [float(np.median(minutes[part_of])) for part_of in stretches]
            for share, style, width in ((50, "-", 1.8), (99, ":", 1.2)):
                values = [float(np.percentile(times[part_of], share)) / 1e6 for part_of in stretches]
                axes.plot(
                    middle,
                    values,
                    color=theme_colour(index),
                    linestyle=style,
                    linewidth=width,
                    label=name_of(arm) if share == 50 else None,
                )
        log_axis(axes, "y")
        axes.set_xlabel("minutes since the first query")
        axes.set_ylabel("end-to-end latency, ms")
        put_legend(axes)

    return themed_svg(draw, f"{part}soak", width=2 * 5.6 + 0.4, height=2.6)


def cold_figure(result: Result, part: str = "") -> str:
    """Return how long a fresh process takes to its first answer, by what it does; medians."""
    arms = [(arm, arm.startup.cold) for arm in result.measured_arms]

    def draw(axes: Axes) -> None:
        positions = np.arange(len(arms))
        left = np.zeros(len(arms))
        for name, label, alpha in (
            ("process", "process", 0.2),
            ("import_backend", "import", 0.4),
            ("load", "load", 0.75),
            ("first_infer", "first answer", 0.55),
        ):
            widths = np.array([0 if cold is None else getattr(cold, name).median / 1e6 for _, cold in arms])
            axes.barh(positions, widths, left=left, height=0.45, color=INK, alpha=alpha, edgecolor=PAPER, label=label)
            left += widths
        for position, (_, cold) in enumerate(arms):
            if cold is None:
                continue
            total = np.array(cold.total.values) / 1e6
            axes.plot(total, np.full(total.size, position + 0.34), "|", color=MUTED, markersize=6)
        axes.set_yticks(positions)
        axes.set_yticklabels([name_of(arm) for arm, _ in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms from the start of the process; ticks: each start")
        put_legend(axes, columns=4)

    return themed_svg(draw, f"{part}cold", height=1.5 + 0.5 * len(arms))


def _has_stages(scenario: Scenario) -> bool:
    """Say whether the stages tell something: of an open loop only where queries wait for one another."""
    latency = scenario.latency
    waits = latency.queue.mean >= _WAITS * latency.e2e.mean > 0
    return scenario.name == "single-stream" or (scenario.name in ("paced", "server") and waits)


def _row_name(arm: Arm, scenario: Scenario) -> str:
    return name_of(arm) if scenario.name == "single-stream" else cut(f"{arm.id}, {scenario.name}")
