"""The one table of a result: for a terminal, at most 100 columns wide, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgebert._console import printable
from edgebert.bench.report.quantities import (
    NONE,
    chance_text,
    count_text,
    factor_text,
    milliseconds,
    percent,
    points,
    range_text,
    rate_text,
    ratio_text,
    size_text,
)
from edgebert.bench.report.words import (
    accuracy_sentence,
    map_text,
    measure_of,
    noise_sentence,
    verdict_sentence,
    verdicts_of,
)
from edgebert.bench.schema import Arm, DatasetRecord, Quantile, Result, Share

# How numbers are written is `edgebert.bench.report.quantities`; the names stay here for those who write tables of their own.
__all__ = [
    "MAX_WIDTH",
    "Row",
    "agreement_gap",
    "chance_text",
    "count_text",
    "factor_text",
    "map_text",
    "markdown_table",
    "measure_of",
    "milliseconds",
    "notes_of",
    "percent",
    "points",
    "rate_text",
    "ratio_text",
    "rows_of",
    "size_text",
    "speedup_of",
    "text_table",
]

MAX_WIDTH = 100

_MIN_NAME = 8
_MARKDOWN_SPECIAL = "\\`*_[]<>|~#&!"

# Over the columns of numbers: what it is, and its unit. F1, mAP and exact match take the room of parameters and images per
# second, which the report has.
_SEVERAL_HEADERS = (
    ("size", ""),
    ("F1", "micro %"),
    ("F1", "macro %"),
    ("mAP", "%"),
    ("exact", "%"),
    ("agree", "%"),
    ("p50", "ms"),
    ("p90", "ms"),
    ("p99", "ms"),
    ("speed-up", ""),
)
_HEADERS = (
    ("parameters", ""),
    ("size", ""),
    ("top-1", "%"),
    ("agree", "%"),
    ("p50", "ms"),
    ("p90", "ms"),
    ("p99", "ms"),
    ("images", "/s"),
    ("speed-up", ""),
)
# Whose intervals a narrow terminal does without, in this order.
_GIVEN_UP = ("p90", "exact", "top-1", "speed-up", "p99", "p50")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm as text, ready for any table: the cells, and the interval of each, empty where it has none."""

    name: str
    cells: tuple[str, ...]
    intervals: tuple[str, ...]


def rows_of(result: Result) -> list[Row]:
    """Return the arms that were asked for as rows; the cells are those of the headers, in their order."""
    return [_row(result, arm) for arm in result.measured_arms]


def text_table(result: Result) -> str:
    """Return the table, intervals in a second line of each arm, and the notes, no line wider than 100 columns."""
    notes = [line for note in notes_of(result) for line in _wrapped(note)]
    if not result.arms:
        return "\n".join(notes)
    rows = _fitting(rows_of(result), _headers(result))
    headers, units = ([header[at] for header in _headers(result)] for at in (0, 1))
    grid = [headers, units, *(line for row in rows for line in (list(row.cells), list(row.intervals)))]
    widths = [max(len(line[at]) for line in grid) for at in range(len(headers))]
    left = MAX_WIDTH - sum(width + 2 for width in widths)
    name_width = max(_MIN_NAME, min(left, max(len("arm"), *(len(printable(row.name)) for row in rows))))
    lines = [_line("arm", headers, name_width, widths), _line("", units, name_width, widths)]
    lines.append("-" * len(lines[0]))
    for row in rows:
        lines.append(_line(_shortened(printable(row.name), name_width), row.cells, name_width, widths))
        if any(row.intervals):
            lines.append(_line("", row.intervals, name_width, widths))
    return "\n".join([line.rstrip() for line in lines] + ["", *notes])


def markdown_table(result: Result) -> str:
    """Return the table as GitHub-flavoured Markdown, intervals in brackets, the notes below it."""
    notes = [f"{_markdown(note)}  " for note in notes_of(result)]
    if not result.arms:
        return "\n".join(notes)
    headers = [f"{title} ({unit})" if unit else title for title, unit in _headers(result)]
    lines = ["| arm | " + " | ".join(headers) + " |", "|---|" + "--:|" * len(headers)]
    for row in rows_of(result):
        cells = (
            f"{cell} ({interval})" if interval else cell
            for cell, interval in zip(row.cells, row.intervals, strict=True)
        )
        lines.append(f"| {_markdown(row.name)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes])


def notes_of(result: Result) -> list[str]:
    """Return what came out, what the numbers of the table mean, and what is wrong with them."""
    if not result.arms or result.dataset is None:
        return ["PARTIAL: the run was cut short before every arm had answered.", *result.status.reasons]
    notes = ["NOT VALID, do not use these numbers:"] if not result.status.valid else []
    notes += list(result.status.reasons)
    if result.status.valid:
        for comparison in verdicts_of(result):
            notes.append(
                f"{verdict_sentence(result, comparison)} {accuracy_sentence(comparison.accuracy, measure_of(result))}"
            )
    return [*notes, *_meaning(result, result.dataset), *result.status.warnings]


def _meaning(result: Result, data: DatasetRecord) -> list[str]:
    scenario = result.arms[0].scenarios[0]
    arms = result.measured_arms
    region = (
        f"End to end from a decoded image, one image at a time, {threads_text(result.arms[0])}, "
        f"{result.device.cpu.model or result.device.arch}; {measure_of(result)} and agreement with FP32 on {data.n:,} test images of {data.name}."
    )
    notes = [
        region,
        "Below a number: its 95 % interval; below p99 an upper bound at 95 % confidence.",
    ]
    if data.task == "multi-label":  # the table has no room for them
        of_arms = ", ".join(f"{arm.id} {share_interval(arm.accuracy.top1).replace(' – ', ' to ')}" for arm in arms)
        notes.append(f"95 % intervals of {measure_of(result)}: {of_arms}.")
    missing = [name for name, count in zip(data.class_names, data.per_class, strict=True) if not count]
    if missing and data.task == "multi-label":
        notes.append(f"No test image has {_listed(missing)}: mAP is of the other classes.")
    for arm in arms:
        p99 = arm.scenarios[0].latency.e2e.p99
        if p99.value is None:
            notes.append(
                f"p99 of {arm.id} is not estimable (needs {p99.needs:,} queries, has {arm.scenarios[0].queries:,})."
            )
    if data.excluded:
        notes.append(
            f"{len(data.excluded):,} test image{'s were' if len(data.excluded) > 1 else ' was'} left out: an arm had seen {'them' if len(data.excluded) > 1 else 'it'}."
        )
    if len(arms) > 1:
        notes.append(noise_sentence(result))
    looks = f", {scenario.looks} looks at the intervals" if scenario.looks > 1 else ""
    wide = "" if result.status.converged else "; NOT CONVERGED"
    notes.append(
        f"Rigor {result.rigor}: {scenario.launches} launches, {scenario.blocks:,} interleaved blocks of each arm{looks}{wide}."
    )
    return notes


def threads_text(arm: Arm) -> str:
    """Return how many threads an arm was asked to use."""
    count = arm.options.get("threads", "?")
    return f"{count} thread" if count == "1" else f"{count} threads"


def speedup_of(result: Result, arm: Arm) -> str:
    """Return the speed-up over the baseline, such as `4.21 x`; `1 x` for the baseline itself."""
    if arm.role == "baseline":
        return "1 x"
    found = result.comparison(arm.id)
    return NONE if found is None else f"{factor_text(found.speedup)} x"


def speedup_interval(result: Result, arm: Arm) -> str:
    """Return the interval of the speed-up; empty where there is none."""
    found = result.comparison(arm.id)
    if found is None or found.ci95 is None or min(found.ci95) <= 0:
        return ""
    return range_text(factor_text(1 / found.ci95[1]), factor_text(1 / found.ci95[0]))


def agreement_gap(result: Result, arm: Arm) -> str:
    """Return what stands where an arm has no agreement: `ref.` for one that others refer to."""
    others = (other.accuracy.agreement for other in result.measured_arms)
    return "ref." if any(found is not None and found.reference == arm.id for found in others) else NONE


def share_interval(share: Share) -> str:
    """Return the interval of a share in per cent, one decimal."""
    return range_text(f"{100 * share.ci95[0]:.1f}", f"{100 * share.ci95[1]:.1f}")


def quantile_text(quantile: Quantile) -> str:
    """Return a percentile in milliseconds, or a dash where it is not estimable."""
    return NONE if quantile.value is None else milliseconds(quantile.value)


def quantile_interval(quantile: Quantile) -> str:
    """Return the interval of a percentile in milliseconds; empty where it has none."""
    if quantile.value is None or quantile.ci95 is None:
        return ""
    return range_text(milliseconds(quantile.ci95[0]), milliseconds(quantile.ci95[1]))


def quantile_bound(quantile: Quantile) -> str:
    """Return the upper bound at 95 % confidence, such as `≤ 1.45`; empty where it has none."""
    return "" if quantile.value is None or quantile.upper95 is None else f"≤ {milliseconds(quantile.upper95)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _headers(result: Result) -> tuple[tuple[str, str], ...]:
    return _HEADERS if measure_of(result) == "top-1" else _SEVERAL_HEADERS


def _row(result: Result, arm: Arm) -> Row:
    scenario, accuracy, size = arm.scenarios[0], arm.accuracy, size_text(arm.artifact.bytes)
    e2e, agreement = scenario.latency.e2e, accuracy.agreement
    agree = (percent(agreement.share.value) if agreement else agreement_gap(result, arm), "")
    times = (
        (quantile_text(e2e.p50), quantile_interval(e2e.p50)),
        (quantile_text(e2e.p90), quantile_interval(e2e.p90)),
        (quantile_text(e2e.p99), quantile_bound(e2e.p99)),
    )
    speedup = (speedup_of(result, arm), speedup_interval(result, arm))
    pairs: tuple[tuple[str, str], ...]
    if (several := accuracy.multi_label) is not None:
        pairs = (
            (size, ""),
            (percent(several.micro_f1), ""),
            (percent(several.macro_f1), ""),
            (map_text(several), ""),
            (percent(several.exact_match.value), share_interval(several.exact_match)),
            agree,
            *times,
            speedup,
        )
    else:
        rate = rate_text(scenario.throughput).replace(",", "")
        pairs = (
            (count_text(arm.artifact.parameters), ""),
            (size, ""),
            (percent(accuracy.top1.value), share_interval(accuracy.top1)),
            agree,
            *times,
            (rate, ""),
            speedup,
        )
    return Row(
        name=arm.id,
        cells=tuple(cell for cell, _ in pairs),
        intervals=tuple(interval.replace(" – ", "–") for _, interval in pairs),
    )


def _fitting(rows: Sequence[Row], headers: Sequence[tuple[str, str]]) -> list[Row]:
    """Return the rows without the intervals that would leave too little room for the names."""
    titles = [title for title, _ in headers]
    kept = set(range(len(titles)))
    wanted = max(_MIN_NAME, min(14, max(len(printable(row.name)) for row in rows)))

    def width_of(at: int) -> int:
        texts = [*headers[at], *(row.cells[at] for row in rows)]
        return max(map(len, texts + ([row.intervals[at] for row in rows] if at in kept else [])))

    for title in _GIVEN_UP:
        if MAX_WIDTH - sum(width_of(at) + 2 for at in range(len(titles))) >= wanted:
            break
        kept -= {at for at, name in enumerate(titles) if name == title}
    return [
        Row(
            name=row.name,
            cells=row.cells,
            intervals=tuple(text if at in kept else "" for at, text in enumerate(row.intervals)),
        )
        for row in rows
    ]


def _line(name: str, cells: Sequence[str], name_width: int, widths: Sequence[int]) -> str:
    return name.ljust(name_width) + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _shortened(name: str, width: int) -> str:
    """Return a name cut in its middle: both ends tell arms apart."""
    if len(name) <= width:
        return name
    head = (width - 1 + 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def _wrapped(text: str) -> list[str]:
    """Return a note as lines of at most 100 columns; a longer word is cut."""
    lines, line = [], ""
    for word in printable(text).split():
        for piece in (word[at : at + MAX_WIDTH] for at in range(0, len(word), MAX_WIDTH)):
            if line and len(line) + 1 + len(piece) > MAX_WIDTH:
                lines.append(line)
                line = piece
            else:
                line = f"{line} {piece}".strip()
    return [*lines, line]


def _markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in _MARKDOWN_SPECIAL else character for character in printable(text))
