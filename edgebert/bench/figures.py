"""The figures of the report: inline SVG, the same bytes for the same result, readable on light and on dark paper.

Matplotlib knows no theme, so the figures are drawn in marker colours that become CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert._console import printable
from edgebert.bench.recorder import FLAG_ERROR, FLAG_REWARM, FLAG_WARMUP
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import Arm, Result
from edgebert.bench.table import factor_text, measure_of, milliseconds
from edgebert.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = 6  # colours of arms in the page's style sheet; a seventh arm starts again with another dash

_INK, _MUTED, _GRID, _PAPER = "#010201", "#010202", "#010203", "#010204"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--grid)", _PAPER: "var(--paper)"}
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")

_WIDTH, _HEIGHT = 5.6, 3.5  # inches
_POINTS = 600  # of a line or strip; bench.md, section 13: more makes the page large and not clearer
_MANY_DECADES = 200.0  # an axis that spans more has numbers at powers of ten only
_NAME = 26  # characters of an arm's name in a figure

_STYLE: dict[Any, Any] = {  # matplotlib types each of its keys
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are data
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def accuracy_latency_figure(result: Result, part: str = "") -> str:
    """Return top-1 over median latency, with 95 % intervals both ways."""

    def draw(axes: Axes) -> None:
        for index, arm in enumerate(result.arms):
            latency, top1 = arm.scenarios[0].latency.e2e.p50, arm.accuracy.top1
            if latency.value is None:
                continue
            x, y = latency.value / 1e6, 100 * top1.value
            across = None if latency.ci95 is None else [[x - latency.ci95[0] / 1e6], [latency.ci95[1] / 1e6 - x]]
            upwards = [[y - 100 * top1.ci95[0]], [100 * top1.ci95[1] - y]]
            axes.errorbar(
                x,
                y,
                xerr=None if across is None else np.maximum(across, 0),
                yerr=np.maximum(upwards, 0),
                color=theme_colour(index),
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=8,
                elinewidth=1.4,
                capsize=3,
                linestyle="none",
                label=_name(arm),
            )
        _log_axis(axes, "x")
        axes.set_xlabel("end-to-end latency p50, ms (logarithmic)")
        axes.set_ylabel(f"{measure_of(result)}, %")
        _legend(axes)

    return themed_svg(draw, f"{part}accuracy-latency")


def speedup_figure(result: Result, part: str = "") -> str:
    """Return the speed-up of every arm over the baseline, with its interval."""

    def draw(axes: Axes) -> None:
        names = [arm.id for arm in result.arms]
        for position, comparison in enumerate(result.comparisons):
            index = names.index(comparison.b)
            x = comparison.speedup
            interval = comparison.ci95
            error = None if interval is None else np.maximum([[x - 1 / interval[1]], [1 / interval[0] - x]], 0)
            axes.errorbar(
                x, position, xerr=error, color=theme_colour(index), marker="o", markersize=7, elinewidth=2, capsize=4
            )
            axes.annotate(
                factor_text(x),
                (x, position),
                textcoords="offset points",
                xytext=(0, 9),
                ha="center",
                color=_INK,
                fontsize=9,
            )
        axes.axvline(1.0, color=_MUTED, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(result.comparisons)))
        axes.set_yticklabels([_name(result.arm(comparison.b)) for comparison in result.comparisons])
        axes.set_ylim(len(result.comparisons) - 0.4, -0.6)
        _log_axis(axes, "x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"times as fast as {_cut(result.comparisons[0].a)} (within this run)")

    return themed_svg(draw, f"{part}speed-up", height=1.5 + 0.6 * len(result.comparisons))


def percentile_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return latency over the percentile, the tail stretched: every nine has the same width."""

    def draw(axes: Axes) -> None:
        most = max(len(counted_latency(samples, index)) for index in range(len(result.arms)))
        last = np.log10(max(most, 2))
        for index, arm in enumerate(result.arms):
            times = np.sort(counted_latency(samples, index)) / 1e6
            nines = np.linspace(0, np.log10(max(times.size, 2)), _POINTS // 2)
            ranks = np.ceil(times.size * (1 - 10**-nines)).astype(np.int64).clip(1, times.size) - 1
            axes.plot(
                nines,
                times[ranks],
                color=theme_colour(index),
                linestyle=_DASHES[index // PALETTE % len(_DASHES)],
                drawstyle="steps-post",
                label=_name(arm),
            )
        shares = [share for share in (0.5, 0.9, 0.99, 0.999, 0.9999) if -np.log10(1 - share) <= last]
        axes.set_xticks([-np.log10(1 - share) for share in shares])
        axes.set_xticklabels([f"p{100 * share:g}" for share in shares])
        axes.set_xlim(0, last)
        _log_axis(axes, "y")
        axes.set_ylabel("end-to-end latency, ms")
        _legend(axes)

    return themed_svg(draw, f"{part}percentiles")


def stage_figure(result: Result, part: str = "") -> str:
    """Return the shares of pre, infer and post in the mean time of every arm, with the milliseconds above."""

    def draw(axes: Axes) -> None:
        positions = np.arange(len(result.arms))
        means = [_stage_means(arm) for arm in result.arms]
        totals = np.array([sum(mean.values()) for mean in means])
        left = np.zeros(len(result.arms))
        for stage, label, alpha in (
            ("pre", "preprocessing", 0.25),
            ("infer", "inference", 0.75),
            ("post", "decision", 0.45),
        ):
            widths = 100 * np.array([mean[stage] for mean in means]) / totals
            axes.barh(
                positions,
                widths,
                left=left,
                height=0.4,
                color=_INK,
                alpha=alpha,
                edgecolor=_PAPER,
                linewidth=1,
                label=label,
            )
            left += widths
        for position, mean in enumerate(means):
            parts = " + ".join(milliseconds(mean[stage]) for stage in ("pre", "infer", "post"))
            axes.annotate(
                f"{parts} ms", (0, position), textcoords="offset points", xytext=(2, 16), color=_INK, fontsize=8.5
            )
        axes.set_yticks(positions)
        axes.set_yticklabels([_name(arm) for arm in result.arms])
        axes.set_ylim(len(result.arms) - 0.5, -0.75)
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of the mean end-to-end time, %")
        _legend(axes)

    return themed_svg(draw, f"{part}stages", height=1.5 + 0.65 * len(result.arms))


def timeline_figure(result: Result, samples: Samples, part: str = "") -> str:
    """Return the latency of every query over time, warm-up included; thinned out so that extremes stay."""

    def draw(axes: Axes) -> None:
        start = int(samples["t_issue"].min())
        for index, arm in enumerate(result.arms):
            rows = samples.queries_of(index)
            seconds = (rows["t_issue"] - start) / 1e9
            times = (rows["t_done"] - rows["t_issue"]) / 1e6
            chosen = thinned(rows["t_done"] - rows["t_issue"])
            warm = (rows["flags"][chosen] & FLAG_WARMUP) != 0
            for shown, size, alpha in ((warm, 5, 0.3), (~warm, 5, 0.75)):
                axes.scatter(
                    seconds[chosen][shown],
                    times[chosen][shown],
                    s=size,
                    color=theme_colour(index),
                    alpha=alpha,
                    linewidths=0,
                    label=_name(arm) if shown is not warm else None,
                )
        _log_axis(axes, "y")
        axes.set_xlabel("seconds since the first query; pale: warm-up")
        axes.set_ylabel("end-to-end latency, ms")
        _legend(axes, markerscale=2.5)

    return themed_svg(draw, f"{part}timeline", width=2 * _WIDTH + 0.4)


def counted_latency(samples: Samples, arm: int) -> IntArray:
    """Return the end-to-end times that the statistics count: neither warm-up, nor a block's first, nor failed."""
    rows = samples.queries_of(arm)
    counted = (rows["flags"] & (FLAG_WARMUP | FLAG_REWARM | FLAG_ERROR)) == 0
    times: IntArray = (rows["t_done"] - rows["t_issue"])[counted]
    return times


def thinned(times: IntArray) -> IntArray:
    """Return positions of at most `_POINTS` values: the lowest and the highest of each stretch, so that tails survive."""
    if times.size <= _POINTS:
        return np.arange(times.size)
    stretches = np.array_split(np.arange(times.size), _POINTS // 2)
    extremes = [(part[np.argmin(times[part])], part[np.argmax(times[part])]) for part in stretches]
    return np.unique(np.array(extremes, np.int64))


def _stage_means(arm: Arm) -> dict[str, float]:
    latency = arm.scenarios[0].latency
    return {"pre": latency.pre.mean, "infer": latency.infer.mean, "post": latency.post.mean}


def themed_svg(draw: Callable[[Axes], None], salt: str, *, width: float = _WIDTH, height: float = _HEIGHT) -> str:
    """Return a figure as an SVG element for a page: no prolog, no metadata, no fixed size, themed colours."""
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user prefers: the same result gives the same page
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": f"edgebert-{salt}"})
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{salt}-", text)  # unique over the figures of a page
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    return re.sub(r"#0103([0-9a-f]{2})", lambda found: f"var(--arm-{int(found[1], 16)})", text)


def theme_colour(index: int) -> str:
    return f"#0103{index % PALETTE:02x}"


def _name(arm: Arm) -> str:
    return _cut(arm.id)


def _cut(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 8]}…{text[-7:]}"


def _legend(axes: Axes, markerscale: float = 1.0) -> None:
    """Put the legend above the axes, where it hides nothing."""
    columns = min(3, len(axes.get_legend_handles_labels()[1]))
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, markerscale=markerscale, columnspacing=1.4
    )


def _log_axis(axes: Axes, which: str) -> None:
    """Make an axis logarithmic with plain numbers: at 1, 2 and 5, or at powers of ten where it spans many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if which == "x":
        axes.set_xscale("log")
        axes.margins(x=0.12)
    else:
        axes.set_yscale("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high < _MANY_DECADES * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def figures_of(result: Result, samples: Samples, part: str) -> Sequence[tuple[str, str, str]]:
    """Return (title, caption, SVG) of the figures of a result, in the order of the page.

    Args:
        result: any.
        samples: its raw samples.
        part: begins every id in the figures; another one for each result of a page.
    """
    found = [
        (
            "Accuracy against latency",
            f"Better is up and to the left. Bars: 95 % intervals, Wilson's for {measure_of(result)}, over blocks for p50.",
            accuracy_latency_figure(result, part),
        ),
        (
            "Latency by percentile",
            "Each step to the right is ten times rarer. Every query counts; no outlier was removed.",
            percentile_figure(result, samples, part),
        ),
        ("Where the time goes", "The stages of a query add up to its end-to-end time.", stage_figure(result, part)),
    ]
    if result.comparisons:
        caption = f"From {result.comparisons[0].rounds} rounds of interleaved blocks; bars are 95 % intervals."
        found.append(("Speed-up", caption, speedup_figure(result, part)))
    return found
