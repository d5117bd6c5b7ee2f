"""The page of an audit: the verdict in words, what was looked at, figures, and the pictures themselves.

No script, no address of anything outside the page, and the same bytes for the same report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgebert._console import printable
from edgebert.bench.report.figures import theme_colour, themed_svg
from edgebert.calibration.audit_result import SEVERITIES, AuditReport, Comparison, Picture, words_of
from edgebert.calibration.spreads import UNITS, bin_edges
from edgebert.errors import BadDataError
from edgebert.extras import require

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes

MAX_PAGE_BYTES = 2 << 20  # a page that cannot be mailed is no report

_PAGE, _SECTION = "audit.html.j2", "audit_section.html.j2"
_CLASSES = 60  # rows of the table of classes; of more, those with the fewest calibration images


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    title: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gallery:
    title: str
    note: str
    groups: tuple[tuple[Picture, ...], ...]


def page_of(report: AuditReport) -> str:
    """Return the page of an audit as HTML.

    Raises:
        UnavailableError: the extra `report` is not installed.
        BadDataError: the page would be larger than 2 MiB.
    """
    page = (
        _environment()
        .get_template(_PAGE)
        .render(title=printable(f"{report.data}: audit of the calibration images"), section=section_of(report))
        + "\n"
    )
    if len(page.encode("utf-8")) > MAX_PAGE_BYTES:
        raise BadDataError(f"the page would have {len(page):,} characters", expected=f"at most {MAX_PAGE_BYTES:,}")
    return page


def section_of(report: AuditReport) -> str:
    """Return an audit as a fragment of HTML, its style sheet included, for a page of another report.

    The page supplies the variables of `bench`'s report (`--ink`, `--muted`, `--grid`, `--panel`, `--good`, `--good-paper`, `--bad`,
    `--bad-paper`, `--arm-0` to `--arm-4`, `--sans`), and allows `img-src data:`.

    Raises:
        UnavailableError: the extra `report` is not installed.
    """
    classes = report.classes
    if len(classes) > _CLASSES:
        classes = tuple(sorted(classes, key=lambda entry: entry.calibration)[:_CLASSES])
    longest = max(max(entry.training_share, entry.calibration_share) for entry in classes)
    return (
        _environment()
        .get_template(_SECTION)
        .render(
            report=report,
            words=words_of(report.verdict),
            # What is wrong comes first.
            findings=sorted(report.findings, key=lambda finding: -SEVERITIES.index(finding.severity)),
            classes=classes,
            longest=longest or 1.0,
            figures=_figures(report),
            galleries=_galleries(report),
        )
    )


def _environment() -> Environment:
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgebert.calibration", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    return environment


def _figures(report: AuditReport) -> list[_Figure]:
    """Return a figure of each comparison: the reference is weighed by the sample's classes, and differs from one to the next."""
    return [
        _Figure(
            title=f"{comparison.shift.measure.capitalize()} of {comparison.sample} images: {UNITS[comparison.shift.measure]}",
            svg=_histogram(comparison),
        )
        for comparison in report.comparisons
    ]


def _histogram(comparison: Comparison) -> str:
    """Return the two distributions of one measure as an SVG element."""
    shift = comparison.shift
    edges = bin_edges(shift.measure)

    def draw(axes: Axes) -> None:
        axes.stairs(
            [100 * share for share in shift.reference],
            edges,
            fill=True,
            color=theme_colour(0),
            alpha=0.35,
            label=f"{comparison.reference}, same classes",
        )
        axes.stairs([100 * share for share in shift.sample], edges, color=theme_colour(1), label=comparison.sample)
        filled = [at for at, shares in enumerate(zip(shift.reference, shift.sample, strict=True)) if any(shares)]
        if shift.measure == "size":
            from matplotlib.ticker import FuncFormatter, NullFormatter

            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(edges[max(filled[0] - 2, 0)], edges[min(filled[-1] + 3, len(edges) - 1)])
        axes.set_ylabel("images, %")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, columnspacing=1.2, handlelength=1.2)

    return themed_svg(draw, f"audit-{comparison.sample}-{shift.measure}", width=4.6, height=2.8)


def _galleries(report: AuditReport) -> list[_Gallery]:
    def of(group: str) -> list[Picture]:
        return [picture for picture in report.pictures if picture.group == group]

    doubles = of("duplicates")
    pairs = tuple((doubles[at], doubles[at + 1]) for at in range(0, len(doubles), 2))
    galleries = [
        _Gallery(
            title="Calibration images",
            note="The first of each class.",
            groups=tuple((picture,) for picture in of("calibration")),
        ),
        _Gallery(
            title="Closest pairs",
            note="At the network's size; test first, then validation, then training. Distance 0 is the same picture.",
            groups=pairs,
        ),
        _Gallery(
            title="Darkest and brightest training images",
            note="With their mean grey value.",
            groups=tuple((picture,) for picture in (*of("darkest"), *reversed(of("brightest")))),
        ),
    ]
    return [gallery for gallery in galleries if gallery.groups]
