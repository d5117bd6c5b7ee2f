"""Figures that set arms against each other: ratios with their intervals, and accuracy against latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.report.figures import (
    GRID,
    MARKERS,
    MUTED,
    WIDTH,
    cut,
    log_axis,
    measured_indices,
    name_of,
    put_legend,
    theme_colour,
    themed_svg,
)
from edgebert.bench.report.quantities import ratio_text
from edgebert.bench.report.words import measure_of
from edgebert.bench.schema import Arm, Comparison, Interval, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = (
    ("latency.e2e.p50", "single-stream", "p50"),
    ("latency.e2e.p90", "single-stream", "p90"),
    ("latency.e2e.p99", "single-stream", "p99"),
    ("throughput", "offline", "offline"),
    ("throughput", "single-stream", "throughput"),
)
_FAR = 0.25  # a ratio farther from 1 than this needs a logarithmic axis


def ratios_of(result: Result) -> list[tuple[str, Comparison]]:
    """Return the comparisons of the forest plot with their short names, arm by arm, the A/A control last."""
    arms = [arm for arm in result.measured_arms if arm.role != "baseline"]
    arms += [arm for arm in result.arms if arm.role == "aa"]
    found = []
    for arm in arms:
        for metric, scenario, short in _METRICS:
            for comparison in result.comparisons:
                if (comparison.b, comparison.metric, comparison.scenario) == (arm.id, metric, scenario):
                    found.append((short, comparison))
    return found


def forest_figure(result: Result, part: str = "") -> str:
    """Return the ratio of times of every comparison with its interval, the margin, and what A/A says of noise."""
    rows = ratios_of(result)
    positions = _positions(rows)

    def draw(axes: Axes) -> None:
        _bands(axes, rows)
        axes.axvline(1.0, color=MUTED, linewidth=1)
        names = [arm.id for arm in result.arms]
        bounds = [bound for _, comparison in rows for bound in (comparison.ci95 or (comparison.ratio,))]
        for position, (_, comparison) in zip(positions, rows, strict=True):
            control = result.arm(comparison.b).role == "aa"
            colour = MUTED if control else theme_colour(names.index(comparison.b))
            axes.errorbar(
                comparison.ratio,
                position,
                xerr=_errors(comparison.ratio, comparison.ci95),
                color=colour,
                marker="D" if control else "o",
                markersize=5,
                elinewidth=2,
                capsize=3,
            )
        _log_ratio_axis(axes, [*bounds, 1 - rows[0][1].delta, 1 + rows[0][1].delta])
        for position, (_, comparison) in zip(positions, rows, strict=True):
            axes.annotate(
                _row_text(comparison),
                (1.0, position),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(8, 0),
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
        axes.set_yticks(positions)
        axes.set_yticklabels([f"{_owner(result, comparison)}  {short}" for short, comparison in rows])
        axes.set_ylim(max(positions) + 0.7, -0.7)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"time over that of {cut(rows[0][1].a)}; left of 1 is faster")
        put_legend(axes)

    return themed_svg(draw, f"{part}forest", width=2 * WIDTH + 0.4, height=1.2 + 0.27 * (max(positions) + 1))


def accuracy_latency_figure(result: Result, part: str = "") -> str:
    """Return top-1 over median latency, with 95 % intervals both ways; arms that another dominates are pale."""

    def draw(axes: Axes) -> None:
        shown = [arm for arm in result.measured_arms if arm.scenarios[0].latency.e2e.p50.value is not None]
        for index, arm in measured_indices(result):
            latency, top1 = arm.scenarios[0].latency.e2e.p50, arm.accuracy.top1
            if latency.value is None:
                continue
            x, y = latency.value / 1e6, 100 * top1.value
            across = None if latency.ci95 is None else (latency.ci95[0] / 1e6, latency.ci95[1] / 1e6)
            axes.errorbar(
                x,
                y,
                xerr=_errors(x, across),
                yerr=_errors(y, (100 * top1.ci95[0], 100 * top1.ci95[1])),
                color=theme_colour(index),
                alpha=0.35 if any(dominates(other, arm) for other in shown) else 1.0,
                marker=MARKERS[index % len(MARKERS)],
                markersize=8,
                elinewidth=1.4,
                capsize=3,
                linestyle="none",
                label=name_of(arm),
            )
        front = sorted(
            (arm.scenarios[0].latency.e2e.p50.value / 1e6, 100 * arm.accuracy.top1.value)
            for arm in shown
            if arm.scenarios[0].latency.e2e.p50.value and not any(dominates(other, arm) for other in shown)
        )
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, linestyle=":", zorder=0)
        log_axis(axes, "x")
        axes.set_xlabel("end-to-end latency p50, ms (logarithmic)")
        axes.set_ylabel(f"{measure_of(result)}, %")
        put_legend(axes)

    return themed_svg(draw, f"{part}accuracy-latency")


def dominates(first: Arm, second: Arm) -> bool:
    """Say whether one arm's values are at least as good as another's in both latency and accuracy, and better in one."""
    ours, theirs = (arm.scenarios[0].latency.e2e.p50.value for arm in (first, second))
    if ours is None or theirs is None:
        return False
    right = (first.accuracy.top1.value, second.accuracy.top1.value)
    return ours <= theirs and right[0] >= right[1] and (ours < theirs or right[0] > right[1])


def _bands(axes: Axes, rows: list[tuple[str, Comparison]]) -> None:
    """Shade the margin, and how far the baseline was from itself."""
    margin = rows[0][1].margin
    axes.axvspan(1 - margin, 1 + margin, color=GRID, alpha=0.9, linewidth=0, label=f"margin ±{100 * margin:.2g} %")
    floor = next((comparison.noise_floor for _, comparison in rows if comparison.noise_floor is not None), None)
    if floor is not None and floor.ci95 is not None:
        axes.axvspan(
            *floor.ci95,
            facecolor="none",
            edgecolor=MUTED,
            linestyle="--",
            linewidth=0.9,
            label="A/A of p50: noise",
        )


def _positions(rows: list[tuple[str, Comparison]]) -> list[float]:
    """Return a place for each row, with half a row between arms."""
    places: list[float] = []
    for at, (_, comparison) in enumerate(rows):
        apart = 0.5 if at and rows[at - 1][1].b != comparison.b else 0.0
        places.append(0.0 if not places else places[-1] + 1 + apart)
    return places


def _log_ratio_axis(axes: Axes, values: list[float]) -> None:
    if max(abs(value - 1) for value in values) > _FAR:
        log_axis(axes, "x", margin=0.05)


def _owner(result: Result, comparison: Comparison) -> str:
    return name_of(result.arm(comparison.b))


def _row_text(comparison: Comparison) -> str:
    interval = comparison.ci95
    bounds = "no interval" if interval is None else f"[{ratio_text(interval[0])}, {ratio_text(interval[1])}]"
    return f"{ratio_text(comparison.ratio)} {bounds}"


def _errors(value: float, interval: Interval | None) -> NDArray[np.float64] | None:
    """Return how far the ends of an interval lie from the value, as matplotlib wants it; None for no interval."""
    if interval is None:
        return None
    errors: NDArray[np.float64] = np.maximum([[value - interval[0]], [interval[1] - value]], 0.0)
    return errors
