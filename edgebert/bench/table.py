"""The one table of a result: for a terminal, at most 100 columns wide, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgebert._console import printable
from edgebert.bench.schema import Arm, MultiLabelAccuracy, Quantile, Result

MAX_WIDTH = 100

_NONE = "–"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm as text, ready for any table."""

    name: str
    cells: tuple[str, ...]


def rows_of(result: Result) -> list[Row]:
    """Return the arms of a result as rows; the cells are those of the headers, in their order."""
    return [Row(name=arm.id, cells=_cells(result, arm)) for arm in result.arms]


def text_table(result: Result) -> str:
    """Return the table and the notes to it as plain text, no line wider than 100 columns."""
    rows = rows_of(result)
    headers = [title for title, _ in _headers(result)]
    units = [unit for _, unit in _headers(result)]
    grid = [headers, units, *(list(row.cells) for row in rows)]
    widths = [max(len(line[at]) for line in grid) for at in range(len(headers))]
    left = MAX_WIDTH - sum(width + 2 for width in widths)
    name_width = max(_MIN_NAME, min(left, max(len("arm"), *(len(printable(row.name)) for row in rows))))
    lines = [_line("arm", headers, name_width, widths), _line("", units, name_width, widths)]
    lines.append("-" * len(lines[0]))
    lines += [_line(_shortened(printable(row.name), name_width), row.cells, name_width, widths) for row in rows]
    return "\n".join(
        [line.rstrip() for line in lines] + [""] + [line for note in notes_of(result) for line in _wrapped(note)]
    )


def markdown_table(result: Result) -> str:
    """Return the table as GitHub-flavoured Markdown, the notes below it."""
    headers = [f"{title} ({unit})" if unit else title for title, unit in _headers(result)]
    lines = ["| arm | " + " | ".join(headers) + " |", "|---|" + "--:|" * len(headers)]
    lines += [f"| {_markdown(row.name)} | " + " | ".join(row.cells) + " |" for row in rows_of(result)]
    return "\n".join([*lines, "", *(f"{_markdown(note)}  " for note in notes_of(result))])


def measure_of(result: Result) -> str:
    """Return what the share of right decisions is called: `top-1`, or `exact match` where there are several labels."""
    return "top-1" if result.dataset.task == "single-label" else "exact match"


def notes_of(result: Result) -> list[str]:
    """Return what the numbers of the table mean, and what is wrong with them."""
    data = result.dataset
    scenario = result.arms[0].scenarios[0]
    notes = []
    if not result.status.valid:
        notes.append("NOT VALID, do not use these numbers:")
    notes += list(result.status.reasons)
    notes.append(
        f"End to end from a decoded image, one image at a time, {result.arms[0].options.get('threads', '?')} threads, "
        f"{result.device.cpu.model or result.device.arch}; {measure_of(result)} and agreement with FP32 on {data.n} test images of {data.name}."
    )
    intervals = ", ".join(
        f"{arm.id} {100 * arm.accuracy.top1.ci95[0]:.1f} to {100 * arm.accuracy.top1.ci95[1]:.1f}"
        for arm in result.arms
    )
    notes.append(f"95 % intervals of {measure_of(result)}: {intervals}.")
    missing = [name for name, count in zip(data.class_names, data.per_class, strict=True) if not count]
    if missing:
        notes.append(f"No test image has {_listed(missing)}: mAP is of the other classes.")
    for arm in result.arms:
        p99 = arm.scenarios[0].latency.e2e.p99
        if p99.value is None:
            notes.append(
                f"p99 of {arm.id} is not estimable (needs {p99.needs} queries, has {arm.scenarios[0].queries})."
            )
    if data.excluded:
        notes.append(f"{len(data.excluded)} test images were left out: an arm had seen them.")
    if result.comparisons:
        notes.append(
            f"Speed-up over {result.comparisons[0].a}, from {scenario.blocks} interleaved blocks; within this run only."
        )
    return notes + list(result.status.warnings)


def milliseconds(nanoseconds: float) -> str:
    """Return a time in milliseconds with three significant digits, without exponent."""
    value = nanoseconds / 1e6
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:.{digits}f}"


def size_text(count: int) -> str:
    """Return bytes in kB or MB (powers of ten), three significant digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.3g} kB" if count < 999_500 else f"{count / 1e3:.0f} kB"


def count_text(count: int | None) -> str:
    """Return a number of parameters, such as `1.24 M`."""
    if count is None:
        return _NONE
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return str(count)


def percent(share: float) -> str:
    """Return a share in per cent with two decimals; 100 only where nothing is missing."""
    text = f"{100 * share:.2f}"
    return "99.99" if text == "100.00" and share < 1 else text


def factor_text(factor: float) -> str:
    """Return a factor with three significant digits, without exponent."""
    return f"{factor:.3g}" if 0.001 <= factor < 999.5 else f"{factor:.0f}" if factor >= 1 else f"{factor:.6f}"


def speedup_of(result: Result, arm: Arm) -> str:
    """Return the speed-up over the baseline, such as `4.21 x`; `1 x` for the baseline itself."""
    if arm.role == "baseline":
        return "1 x"
    found = next((comparison for comparison in result.comparisons if comparison.b == arm.id), None)
    return _NONE if found is None else f"{factor_text(found.speedup)} x"


def agreement_gap(result: Result, arm: Arm) -> str:
    """Return what stands where an arm has no agreement: `ref.` for one that others refer to."""
    others = (other.accuracy.agreement for other in result.arms)
    return "ref." if any(found is not None and found.reference == arm.id for found in others) else _NONE


def map_text(several: MultiLabelAccuracy) -> str:
    """Return mean average precision in per cent, or a dash where no test image has any label."""
    return _NONE if several.mean_average_precision is None else percent(several.mean_average_precision)


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _headers(result: Result) -> tuple[tuple[str, str], ...]:
    return _HEADERS if result.dataset.task == "single-label" else _SEVERAL_HEADERS


def _cells(result: Result, arm: Arm) -> tuple[str, ...]:
    scenario, agreement = arm.scenarios[0], arm.accuracy.agreement
    e2e = scenario.latency.e2e
    agree = percent(agreement.share.value) if agreement else agreement_gap(result, arm)
    if (several := arm.accuracy.multi_label) is not None:
        return (
            size_text(arm.artifact.bytes),
            percent(several.micro_f1),
            percent(several.macro_f1),
            map_text(several),
            percent(several.exact_match.value),
            agree,
            _quantile(e2e.p50),
            _quantile(e2e.p90),
            _quantile(e2e.p99),
            speedup_of(result, arm),
        )
    return (
        count_text(arm.artifact.parameters),
        size_text(arm.artifact.bytes),
        percent(arm.accuracy.top1.value),
        agree,
        _quantile(e2e.p50),
        _quantile(e2e.p90),
        _quantile(e2e.p99),
        f"{scenario.throughput:.0f}" if scenario.throughput >= 9.5 else f"{scenario.throughput:.2g}",
        speedup_of(result, arm),
    )


def _quantile(quantile: Quantile) -> str:
    return _NONE if quantile.value is None else milliseconds(quantile.value)


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
