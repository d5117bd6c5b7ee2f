"""A comparison as a file: Markdown, CSV, JUnit XML or JSON, by the suffix of its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgebert._files import check_file_is_free, check_not_input
from edgebert._json import dump_json
from edgebert.bench.comparison.compare import ArmComparison, CompareReport, Guard
from edgebert.bench.comparison.exports import (
    Case,
    MetricRow,
    Outcome,
    accuracy_row,
    csv_text,
    junit_text,
    markdown_text,
    outcome_of,
    ratio_row,
    write_text,
)
from edgebert.bench.comparison.text import accuracy_sentence, names_of, paragraphs_of, sentence_of
from edgebert.errors import UsageError

_GUARDS: Mapping[Guard, Outcome] = {"kept": "passed", "exceeded": "failure", "inconclusive": "skipped"}


def check_output(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises:
        UsageError: its suffix names no format, or it is one of the inputs.
        CannotWriteError: it exists without `force`.
    """
    if output.suffix not in _FORMATS:
        raise UsageError(f"`{output.name}` has a suffix that names no format", expected=", ".join(_FORMATS))
    check_not_input(output, *inputs)
    check_file_is_free(output, force=force)


def write_comparison(report: CompareReport, output: Path, *, force: bool) -> Path:
    """Write the comparison in the format that the suffix names, and return `output`."""
    return write_text(output, _FORMATS[output.suffix](report), force=force)


def comparison_markdown(report: CompareReport) -> str:
    """Return a table of the verdicts, and the report's text below it."""
    lines = [
        "| b against a | metric | verdict | ratio of times | 95 % interval | top-1 (pp) |",
        "|---|---|---|--:|---|--:|",
    ]
    for arms in report.arms:
        a, b = names_of(arms)
        pair = f"{markdown_text(b)} against {markdown_text(a)}"
        if arms.obstacles:
            lines.append(f"| {pair} | – | not comparable | – | – | – |")
        for entry in arms.comparisons:
            interval = "–" if entry.ci95 is None else f"{entry.ci95[0]:.4g} to {entry.ci95[1]:.4g}"
            lines.append(
                f"| {pair} | {markdown_text(entry.metric)} | {entry.verdict} | {entry.ratio:.4g} | {interval} "
                f"| {100 * entry.accuracy.delta_top1:+.2f} |"
            )
    table = "\n".join(lines) + "\n\n" if report.arms else ""
    told = [f"{' ' * indent}- {markdown_text(line)}" for indent, line in paragraphs_of(report)]
    return table + "\n".join(told) + "\n"


def comparison_csv(report: CompareReport) -> str:
    """Return tidy rows: the ratio of each metric and the change of top-1, by arm."""
    rows: list[tuple[str, MetricRow]] = []
    for arms in report.arms:
        rows += [(arms.b.file, ratio_row(entry)) for entry in arms.comparisons]
        rows += [(arms.b.file, accuracy_row(entry)) for entry in arms.comparisons[:1]]
    return csv_text(rows)


def comparison_junit(report: CompareReport) -> str:
    """Return JUnit XML: a case for each verdict, one for each guard, and an error for each reason against comparing."""
    cases = [
        Case(group="comparable", name=f"comparable {at}", outcome="error", message=f"not comparable: {reason}")
        for at, reason in enumerate(report.obstacles, 1)
    ]
    for arms in report.arms:
        cases += _cases_of(arms, report.max_drop)
    return junit_text([("edgebert compare", cases)])


def _cases_of(arms: ArmComparison, max_drop: float | None) -> list[Case]:
    a, b = names_of(arms)
    pair = f"{b} against {a}"
    cases = []
    if arms.obstacles:
        message = f"not comparable: {'; '.join(arms.obstacles)}"
        cases.append(Case(group="comparable", name=pair, outcome="error", message=message))
    for entry in arms.comparisons:
        message = f"{sentence_of(arms, entry)}; {accuracy_sentence(entry.accuracy)}"
        name = f"{pair}: {entry.scenario} {entry.metric}"
        cases.append(Case(group="comparison", name=name, outcome=outcome_of(entry.verdict), message=message))
    if arms.guard is not None and max_drop is not None:
        message = f"{accuracy_sentence(arms.comparisons[0].accuracy)}; at most {max_drop:g} points may be lost"
        cases.append(Case(group="accuracy", name=f"{pair}: top-1", outcome=_GUARDS[arms.guard], message=message))
    return cases


_FORMATS: Mapping[str, Callable[[CompareReport], str]] = {
    ".md": comparison_markdown,
    ".csv": comparison_csv,
    ".xml": comparison_junit,
    ".json": lambda report: dump_json(report.to_json()),
}
