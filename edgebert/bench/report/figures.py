"""How the figures of a page are drawn: inline SVG, the same bytes for the same data, readable on light and on dark paper.

Matplotlib knows no theme, so the figures are drawn in marker colours that become CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert._console import printable
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import Arm, Result, ScenarioName
from edgebert.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = 6  # colours of arms in the page's style sheet; a seventh arm starts again with another dash
POINTS = 600  # of a line or strip; bench.md, section 13: more makes the page large and not clearer
WIDTH, HEIGHT = 5.6, 3.5  # inches

INK, MUTED, GRID, PAPER = "#010201", "#010202", "#010203", "#010204"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")

_MANY_DECADES = 200.0  # an axis that spans more has numbers at powers of ten only
_LONG_PATH = 1_000  # characters; a marker has fewer
_NAME = 26  # characters of an arm's name in a figure

_STYLE: dict[Any, Any] = {  # matplotlib types each of its keys
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are data
    "path.simplify": False,  # figures are thinned out before; a dot is a line of no length, which would go
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


def themed_svg(draw: Callable[[Axes], None], salt: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return a figure of one pair of axes as an SVG element for a page; see `themed_figure`."""
    return themed_figure(lambda figure: draw(figure.add_subplot()), salt, width=width, height=height)


def themed_figure(draw: Callable[[Figure], None], salt: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
    """Return a figure as an SVG element for a page: no prolog, no metadata, no fixed size, themed colours.

    Args:
        draw: puts axes into the empty figure.
        salt: begins every id in it; another one for each figure of a page.
        width: inches.
        height: inches.
    """
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user prefers: the same result gives the same page
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": f"edgebert-{salt}"})
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{salt}-", text)  # unique over the figures of a page
    text = _shortened(text)
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    return re.sub(r"#0103([0-9a-f]{2})", lambda found: f"var(--arm-{int(found[1], 16)})", text)


def _shortened(text: str) -> str:
    """Return an SVG without what nobody sees: names of groups, a list of fonts with each word, and fine coordinates."""
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'font-family: [^;"]*', "font-family: sans-serif", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r' (?:d|x|y)="[^"]*"', _rounded, text)
    return re.sub(r">\s*\n\s*<", "><", text)


def _rounded(attribute: re.Match[str]) -> str:
    """Return coordinates with two decimals, of a long path with one: a tenth of a point is not seen in a curve."""
    text = re.sub(r"\s*\n\s*", " ", attribute[0])
    kept = 1 if len(text) > _LONG_PATH else 2
    return re.sub(rf"(\.\d{{{kept}}})\d+", r"\1", text)


def theme_colour(index: int) -> str:
    """Return the marker colour of an arm."""
    return f"#0103{index % PALETTE:02x}"


def dash_of(index: int) -> str:
    """Return the line style of an arm: another one where the colours start again."""
    return DASHES[index // PALETTE % len(DASHES)]


def counted_latency(samples: Samples, arm: int, scenario: ScenarioName = "single-stream") -> IntArray:
    """Return the end-to-end times that the statistics count: neither warm-up, nor a block's first, failed or dropped.

    From when a query was due (`t_sched`), which in a closed loop is when it was issued.
    """
    rows = samples.queries_of(arm, scenario)
    times: IntArray = (rows["t_done"] - rows["t_sched"])[rows["flags"] == 0]
    return times


def measured_indices(result: Result) -> list[tuple[int, Arm]]:
    """Return the arms that were asked for with their numbers in the samples, which are also those of their colours."""
    return [(index, arm) for index, arm in enumerate(result.arms) if arm.role != "aa"]


def thinned(values: NDArray[np.int64] | NDArray[np.float64], most: int = POINTS) -> IntArray:
    """Return positions of at most `most` values: the lowest and the highest of each stretch, so that extremes survive."""
    if values.size <= most:
        return np.arange(values.size)
    stretches = np.array_split(np.arange(values.size), most // 2)
    extremes = [(part[np.argmin(values[part])], part[np.argmax(values[part])]) for part in stretches]
    return np.unique(np.array(extremes, np.int64))


def name_of(arm: Arm) -> str:
    """Return an arm's name, short enough for a figure."""
    return cut(arm.id)


def cut(name: str) -> str:
    """Return a name with its middle left out where it is long."""
    text = printable(name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 8]}…{text[-7:]}"


def put_legend(axes: Axes, *, columns: int = 3, markerscale: float = 1.0) -> None:
    """Put the legend above the axes, where it hides nothing."""
    found = len(axes.get_legend_handles_labels()[1])
    if found:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=min(columns, found),
            markerscale=markerscale,
            columnspacing=1.4,
        )


def log_axis(axes: Axes, which: str, *, margin: float = 0.12) -> None:
    """Make an axis logarithmic with plain numbers: at 1, 2 and 5, or at powers of ten where it spans many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if which == "x":
        axes.set_xscale("log")
        axes.margins(x=margin)
    else:
        axes.set_yscale("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    if high < 4 * low:  # 1, 2 and 5 would leave it with one number, or none
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high < _MANY_DECADES * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
