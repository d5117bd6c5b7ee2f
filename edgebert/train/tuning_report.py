"""One self-contained page of a study: the best trial, its recipe, the history, what mattered, and every trial.

No script, no address of anything outside the page, and the same bytes for the same study.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebert._console import printable
from edgebert._files import staged_file
from edgebert.extras import require
from edgebert.train.tuning import TrialRow, TuneReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATE = "tuning.html.j2"

# Marker colours of a drawing that become the page's variables: matplotlib knows no theme.
_INK, _MUTED, _GRID, _FIRST, _SECOND = "#010201", "#010202", "#010203", "#010300", "#010301"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
}
_STYLE: dict[Any, Any] = {  # matplotlib types each of its keys
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are data
    "font.size": 9.5,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
}
_WIDTH, _HEIGHT = 7.5, 3.2  # inches


def write_page(report: TuneReport, output: Path, *, force: bool) -> None:
    """Write the page of a study.

    Raises:
        UnavailableError: the extra `report` is not installed.
        CannotWriteError: `output` exists without `force`, or cannot be written.
    """
    page = page_of(report)
    with staged_file(output, force=force) as staging:
        staging.write_text(page, encoding="utf-8")


def page_of(report: TuneReport) -> str:
    """Return the page as HTML."""
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgebert.train", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = sorted({name for trial in report.trials for name in trial.values})
    return environment.get_template(_TEMPLATE).render(
        report=report,
        title=printable(f"{report.recipe}: tuning {report.stage}"),
        names=names,
        rows=[_cells(trial, names) for trial in report.trials],
        history=history_figure(report),
        importance=importance_figure(report) if report.importance else "",
    )


def history_figure(report: TuneReport) -> str:
    """Return the score of every trial in order, and the best completed one so far, as an SVG element."""
    require("matplotlib")
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for state, marker, colour, label in (
            ("complete", "o", _FIRST, "completed"),
            ("pruned", "x", _MUTED, "stopped early, best epoch"),
        ):
            shown = [
                (trial.number, trial.score)
                for trial in report.trials
                if trial.state == state and trial.score is not None
            ]
            if shown:
                numbers, scores = zip(*shown, strict=True)
                axes.scatter(numbers, [100 * score for score in scores], marker=marker, color=colour, label=label)
        best, line = 0.0, []
        for trial in report.trials:
            if trial.state == "complete" and trial.score is not None:
                best = max(best, trial.score)
                line.append((trial.number, 100 * best))
        if line:
            axes.step(*zip(*line, strict=True), where="post", color=_SECOND, label="best so far")
        axes.set_xlabel("trial")
        axes.set_ylabel("validation score, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower right")

    return _svg(draw, "history", _HEIGHT)


def importance_figure(report: TuneReport) -> str:
    """Return the importance of each option as bars, as an SVG element."""

    def draw(axes: Axes) -> None:
        names, shares = list(report.importance), [100 * share for share in report.importance.values()]
        axes.barh(range(len(names)), shares, color=_FIRST, height=0.6)
        axes.set_yticks(range(len(names)))
        axes.set_yticklabels([printable(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("importance, %")

    return _svg(draw, "importance", 1.0 + 0.35 * len(report.importance))


def _cells(trial: TrialRow, names: list[str]) -> tuple[str, ...]:
    return (
        str(trial.number),
        trial.state,
        "–" if trial.score is None else f"{100 * trial.score:.2f}",
        str(trial.epochs),
        *(printable(json.dumps(trial.values[name])) if name in trial.values else "–" for name in names),
        printable(trial.error or ""),
    )


def _svg(draw: Callable[[Axes], None], name: str, height: float) -> str:
    """Return a drawing without prolog, metadata and fixed size, in the page's colours."""
    require("matplotlib")
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user prefers
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": f"edgebert-tune-{name}"})
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)  # unique over the page
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    return text
