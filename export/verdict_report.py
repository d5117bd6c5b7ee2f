"""One self-contained page of a verdict: the sentence, both precisions on each target, and the images that INT8 decides otherwise.

No script, and no address of anything outside the page: the images are in it, shrunk to 96 pixels.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgebert._console import printable
from edgebert.bench.report.figures import theme_colour, themed_svg
from edgebert.bench.report.page import MAX_REPORT_BYTES
from edgebert.bench.report.table import milliseconds, percent, size_text
from edgebert.errors import EdgebertError
from edgebert.export.verdict import Flip, Measurement, Verdict, ratio_text
from edgebert.extras import require
from edgebert.manifest import Precision

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_FLIPS = 24  # shown in all, over the targets; the table has their number
THUMBNAIL = 96  # pixels

_TEMPLATE = "verdict.html.j2"
_NAME = 60  # characters of a file's or a class's name
_NAMES = 5  # labels of one image that are shown
_POINTS = 400  # of a line


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """One precision in the table."""

    name: str
    ships: bool
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFlip:
    """One image with what was said of it; `image` is a data URI."""

    name: str
    image: str
    true: str
    fp32: str
    int8: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTarget:
    """What the page shows of a target."""

    name: str
    float_name: str
    sentence: str
    metric: str
    rows: tuple[PageRow, ...]
    note: str
    figure: str
    images: str
    flip_count: int
    flips: tuple[PageFlip, ...]


def check_report_can_be_made() -> None:
    """Raise `UnavailableError` where the extra `report` is not installed, before anything is measured."""
    require("jinja2")
    require("matplotlib")


def page_of_verdict(verdict: Verdict, name: str) -> bytes:
    """Return the page as UTF-8 HTML of less than 2 MB.

    Args:
        verdict: with its flips; their images are decoded again.
        name: of the bundle.

    Raises:
        UnavailableError: the extra `report` is not installed.
        BadDataError, InputNotFoundError: an image changed since it was measured.
        EdgebertError: the page is too large.
    """
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgebert.export", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    left = MAX_FLIPS
    targets = []
    for number, measurement in enumerate(verdict.measurements):
        shown = measurement.flips[: max(0, left)]
        left -= len(shown)
        targets.append(_page_target(verdict, number, shown))
    page = environment.get_template(_TEMPLATE).render(
        title=printable(f"{name}: {verdict.measurements[0].name_of(verdict.precision)} ships"),
        asked=verdict.asked,
        sentence=printable(verdict.sentence),
        max_drop=f"{verdict.limits.max_drop:g}",
        min_agreement=f"{verdict.limits.min_agreement:g}",
        targets=targets,
    )
    content = page.encode("utf-8")
    if len(content) > MAX_REPORT_BYTES:
        raise EdgebertError(f"the page would have {len(content):,} bytes", expected=f"at most {MAX_REPORT_BYTES:,}")
    return content


def _page_target(verdict: Verdict, number: int, shown: tuple[Flip, ...]) -> PageTarget:
    measurement, decision = verdict.measurements[number], verdict.decisions[number]
    interval = measurement.ratio_ci95
    ratio = ratio_text(measurement.ratio) + (
        "" if interval is None else f" ({ratio_text(interval[0])} to {ratio_text(interval[1])})"
    )
    versions = ", ".join(f"{package} {version}" for package, version in measurement.versions.items())
    return PageTarget(
        name=measurement.target,
        float_name=measurement.float_name,
        sentence=printable(decision.sentence),
        metric=measurement.metric,
        rows=(
            _row("fp32", measurement, "1", verdict),
            _row("int8", measurement, ratio, verdict),
        ),
        note=printable(
            f"{measurement.hardware}; int8 on {measurement.instructions}; {versions}; {measurement.threads} threads; "
            f"{measurement.fp32.times_ns.size:,} and {measurement.int8.times_ns.size:,} counted queries in interleaved blocks; "
            f"agreement {percent(measurement.agreement)} % of {measurement.images:,} images."
        ),
        figure=latency_figure(measurement, f"latency-{number}"),
        images=f"{measurement.images:,}",
        flip_count=len(measurement.flips),
        flips=tuple(_page_flip(flip) for flip in shown),
    )


def _row(precision: Precision, measurement: Measurement, ratio: str, verdict: Verdict) -> PageRow:
    figures = measurement.int8 if precision == "int8" else measurement.fp32
    return PageRow(
        name=f"{measurement.name_of(precision)} ({figures.form})" if figures.form else measurement.name_of(precision),
        ships=precision == verdict.precision,
        cells=(
            percent(figures.accuracy),
            milliseconds(figures.p50_ns),
            milliseconds(figures.p90_ns),
            ratio,
            size_text(figures.size_bytes),
            "float" if figures.weight_bits is None else f"{figures.weight_bits} bits",
        ),
    )


def _page_flip(flip: Flip) -> PageFlip:
    return PageFlip(
        name=_cut(flip.example.id),
        image=f"data:image/png;base64,{base64.b64encode(thumbnail_of(flip.example.load())).decode('ascii')}",
        true=_listed(flip.true),
        fp32=_listed(flip.fp32),
        int8=_listed(flip.int8),
    )


def thumbnail_of(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return a PNG of uint8 (height, width, 3) RGB, its longest edge at most 96 pixels; smaller images stay as they are."""
    small = Image.fromarray(np.ascontiguousarray(image))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, format="PNG")
    return stream.getvalue()


def _listed(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(_cut(name) for name in names[:_NAMES]) + more or "no label"


def _cut(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _NAME else f"{text[: _NAME - 20]}…{text[-19:]}"


def latency_figure(measurement: Measurement, name: str) -> str:
    """Return the share of queries answered within a time, of both precisions, as an SVG element."""

    def draw(axes: Axes) -> None:
        for label, figures, colour in (
            (measurement.float_name, measurement.fp32, theme_colour(0)),
            ("INT8", measurement.int8, theme_colour(1)),
        ):
            times = np.sort(figures.times_ns) / 1e6
            shares = np.linspace(0, 1, min(_POINTS, max(2, times.size)))
            ranks = np.minimum((shares * times.size).astype(np.int64), times.size - 1)
            axes.plot(times[ranks], 100 * shares, color=colour, linewidth=1.8, label=label)
        slowest = max(np.percentile(figures.times_ns, 99) for figures in (measurement.fp32, measurement.int8))
        axes.set_xlim(0, 1.1 * slowest / 1e6)  # the slowest hundredth would squeeze the rest together
        axes.set_xlabel("time, ms")
        axes.set_ylabel("queries, %")
        axes.legend(loc="lower right")

    return themed_svg(draw, name, width=6.4, height=3.0)
