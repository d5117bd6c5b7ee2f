"""Figures of the sweeps: offline by batch and queries in flight, server by the rate of arrivals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgebert.bench.report.figures import (
    DASHES,
    MARKERS,
    MUTED,
    log_axis,
    measured_indices,
    name_of,
    put_legend,
    theme_colour,
    themed_svg,
)
from edgebert.bench.schema import Arm, CurvePoint, Result, ScenarioName

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_APART = 0.82  # of throughput: points closer than this have no room for two names


def offline_figure(result: Result, part: str = "") -> str:
    """Return images per second over the batch, a line for each number of queries in flight, with intervals."""

    def draw(axes: Axes) -> None:
        flights = sorted({point.inflight for _, _, curve in _curves(result, "offline") for point in curve})
        batches = sorted({point.batch for _, _, curve in _curves(result, "offline") for point in curve})
        for index, arm, curve in _curves(result, "offline"):
            for style, inflight in enumerate(flights):
                points = sorted((point for point in curve if point.inflight == inflight), key=lambda point: point.batch)
                if not points:
                    continue
                rates = np.array([point.throughput for point in points])
                low, high = (
                    np.array([(point.throughput_ci95 or (point.throughput,) * 2)[end] for point in points])
                    for end in (0, 1)
                )
                axes.errorbar(
                    [batches.index(point.batch) for point in points],
                    rates,
                    yerr=np.maximum([rates - low, high - rates], 0),
                    color=theme_colour(index),
                    marker=MARKERS[style % len(MARKERS)],
                    markersize=4.5,
                    linestyle=DASHES[style % len(DASHES)],
                    linewidth=1.4,
                    elinewidth=1,
                    capsize=2,
                    label=f"{name_of(arm)}, {inflight} in flight",
                )
        axes.set_xticks(range(len(batches)))
        axes.set_xticklabels([str(batch) for batch in batches])
        axes.set_xlabel("images of a batch")
        log_axis(axes, "y")
        axes.set_ylabel("images per second")
        put_legend(axes, columns=2)

    return themed_svg(draw, f"{part}offline", height=4.0)


def latency_throughput_figure(result: Result, part: str = "") -> str:
    """Return what a point of the sweep costs in latency: p50 of a query over images per second."""

    def draw(axes: Axes) -> None:
        for index, arm, curve in _curves(result, "offline"):
            points = sorted(curve, key=lambda point: point.p50)
            axes.scatter(
                [point.throughput for point in points],
                [point.p50 / 1e6 for point in points],
                color=theme_colour(index),
                marker=MARKERS[index % len(MARKERS)],
                s=22,
                label=name_of(arm),
            )
            best: list[CurvePoint] = []  # by rising latency: only what no faster point beats
            for point in points:
                if not best or point.throughput > best[-1].throughput:
                    best.append(point)
            axes.plot(
                [point.throughput for point in best],
                [point.p50 / 1e6 for point in best],
                color=theme_colour(index),
                linewidth=1.2,
            )
            named: list[CurvePoint] = []
            for point in reversed(best):
                if named and point.throughput > _APART * named[-1].throughput:
                    continue
                named.append(point)
                axes.annotate(
                    f"{point.batch}×{point.inflight}",
                    (point.throughput, point.p50 / 1e6),
                    textcoords="offset points",
                    xytext=(5, -9),
                    fontsize=7.5,
                    color=MUTED,
                )
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.set_xlabel("images per second (batch × in flight beside the points)")
        axes.set_ylabel("p50 of a query, ms")
        put_legend(axes)

    return themed_svg(draw, f"{part}latency-throughput", height=4.0)


def server_figure(result: Result, part: str = "") -> str:
    """Return the share of queries inside the bound over the rate of arrivals, with the share asked for and the limit."""

    def draw(axes: Axes) -> None:
        for index, arm, curve in _curves(result, "server"):
            points = [point for point in curve if point.rate is not None and point.within is not None]
            points.sort(key=lambda point: point.rate or 0.0)
            shares = np.array([100 * point.within.value for point in points if point.within])
            low, high = (np.array([100 * point.within.ci95[end] for point in points if point.within]) for end in (0, 1))
            axes.errorbar(
                [point.rate or 0.0 for point in points],
                shares,
                yerr=np.maximum([shares - low, high - shares], 0),
                color=theme_colour(index),
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.2,
                elinewidth=1,
                capsize=2,
                label=name_of(arm),
            )
            scenario = arm.scenario("server")
            if scenario is not None and scenario.server is not None and scenario.server.rate is not None:
                axes.axvline(scenario.server.rate, color=theme_colour(index), linewidth=1, linestyle="--")
            if scenario is not None and scenario.params.bound_share is not None:
                axes.axhline(100 * scenario.params.bound_share, color=MUTED, linewidth=1, linestyle=":")
        log_axis(axes, "x", margin=0.05)
        axes.set_xlabel("arrivals per second (dashed: the largest rate kept; dotted: the share asked for)")
        axes.set_ylabel("queries inside the bound, %")
        put_legend(axes)

    return themed_svg(draw, f"{part}server")


def _curves(result: Result, name: ScenarioName) -> Iterator[tuple[int, Arm, tuple[CurvePoint, ...]]]:
    for index, arm in measured_indices(result):
        scenario = arm.scenario(name)
        if scenario is not None and scenario.curve:
            yield index, arm, scenario.curve
