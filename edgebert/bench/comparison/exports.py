"""Results and comparisons in the formats of others: tidy CSV for statistics programs, Markdown, and JUnit XML for CI systems.

What stands in a result is the input of somebody else: names are escaped, and what XML cannot hold is replaced.

>>> xml_text("a\\x00b\\x1b[31m")
'a�b�[31m'
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from edgebert._console import printable
from edgebert._files import check_file_is_free, check_not_input, staged_file
from edgebert.bench.report.table import markdown_table
from edgebert.bench.result import read_result
from edgebert.bench.schema import Arm, Comparison, Distribution, Interval, Quantile, Result, Scenario, Share, Verdict
from edgebert.errors import UsageError

CSV_HEADER = ("result", "arm", "scenario", "metric", "value", "lo", "hi", "unit", "n")

# What XML 1.0 allows is the complement of this (section 2.2, production 2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take a cell for a formula by

Outcome = Literal["passed", "failure", "error", "skipped"]

_OUTCOMES: Mapping[Verdict, Outcome] = {
    "faster": "passed",
    "equivalent": "passed",
    "slower": "failure",
    "inconclusive": "skipped",
    "not comparable": "error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One number: of which arm, in which scenario, with its 95 % interval, its unit, and how many it is made of."""

    arm: str
    scenario: str
    metric: str
    value: float | int
    lo: float | int | None = None
    hi: float | int | None = None
    unit: str
    n: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test case of JUnit XML."""

    group: str
    name: str
    outcome: Outcome
    message: str


def write_results(paths: Sequence[Path], output: Path, *, force: bool = False) -> Path:
    """Write results in the format that the suffix of `output` names: `.html`, `.md`, `.csv` or `.xml`.

    Raises:
        UsageError: another suffix, or no result.
        InputNotFoundError, BadDataError, RefusedError: as `read_result`.
        CannotWriteError: `output` exists without `force`, or cannot be written.
    """
    if not paths:
        raise UsageError("no result is named", expected="one or more results of `edgebert bench`")
    if output.suffix == ".html":
        from edgebert.bench.report.page import report_from_results

        return report_from_results(paths, output, force=force)
    formats: Mapping[str, Callable[[Sequence[tuple[str, Result]]], str]] = {
        ".md": results_markdown,
        ".csv": results_csv,
        ".xml": results_junit,
    }
    made = formats.get(output.suffix)
    if made is None:
        raise UsageError(f"`{output.name}` has a suffix that names no format", expected=", ".join((".html", *formats)))
    check_not_input(output, *paths)
    check_file_is_free(output, force=force)
    return write_text(output, made([(path.name, read_result(path)) for path in paths]), force=force)


def write_text(output: Path, text: str, *, force: bool) -> Path:
    """Write a text file, complete or not at all, and return its path."""
    with staged_file(output, force=force) as staging:
        staging.write_bytes(text.encode("utf-8"))
    return output


def results_markdown(results: Sequence[tuple[str, Result]]) -> str:
    """Return a table for each result, under its name."""
    parts = []
    for name, result in results:
        body = markdown_table(result) if result.arms else "Nothing was measured: the run was cut short."
        parts.append(f"## {markdown_text(name)}\n\n{body}\n")
    return "\n".join(parts)


def results_csv(results: Sequence[tuple[str, Result]]) -> str:
    """Return one row for each number, with a header."""
    return csv_text((name, row) for name, result in results for row in rows_of_result(result))


def results_junit(results: Sequence[tuple[str, Result]]) -> str:
    """Return a test suite for each result: one case for each check of validity, one for each comparison."""
    return junit_text([(name, cases_of_result(result)) for name, result in results])


def rows_of_result(result: Result) -> Iterator[MetricRow]:
    """Yield every number of a result that has a unit."""
    for arm in result.arms:
        yield from _arm_rows(arm)
        for scenario in arm.scenarios:
            yield from _scenario_rows(arm.id, scenario)
    for comparison in result.comparisons:
        yield ratio_row(comparison)
        if comparison.metric == "latency.e2e.p50":
            yield accuracy_row(comparison)


def ratio_row(comparison: Comparison) -> MetricRow:
    """Return the ratio of times of a comparison, by its arm `b`."""
    low, high = comparison.ci95 or (None, None)
    return MetricRow(
        arm=comparison.b,
        scenario=comparison.scenario,
        metric=f"ratio.{comparison.metric}",
        value=comparison.ratio,
        lo=low,
        hi=high,
        unit="1",
        n=comparison.launches,
    )


def accuracy_row(comparison: Comparison) -> MetricRow:
    """Return the change of top-1 that goes with a comparison, in percentage points."""
    twin = comparison.accuracy
    return _interval_row(comparison.b, "accuracy.delta_vs_baseline", twin.delta_top1, twin.delta_ci95, None)


def cases_of_result(result: Result) -> list[Case]:
    """Return the checks of validity and the comparisons of a result as test cases."""
    status, reasons = result.status, "; ".join(result.status.reasons)
    invalid = f"not valid: {reasons}"
    checks: list[tuple[str, Outcome, str]] = [
        ("valid", "passed" if status.valid else "error", invalid),
        ("complete", "error" if status.partial else "passed", f"cut short: {reasons}"),
        (
            "not throttled",
            "error" if status.throttled else "skipped" if status.throttled is None else "passed",
            "the processor was throttled while timing" if status.throttled else "no throttle counter can be read",
        ),
        ("converged", "passed" if status.converged else "skipped", f"not converged: {reasons}"),
    ]
    for arm in result.measured_arms:
        used = arm.consistency
        wrong = used.mismatch + used.recheck_mismatch + used.errors
        told = (
            f"{used.errors} queries failed, {used.mismatch} of {used.timed_checked} timed answers and "
            f"{used.recheck_mismatch} of {used.rechecked} repeated ones differ from those that accuracy was measured on"
        )
        checks.append((f"{arm.id}: timed answers are the judged ones", "error" if wrong else "passed", told))
    cases = [
        Case(group="validity", name=name, outcome=outcome, message="" if outcome == "passed" else message)
        for name, outcome, message in checks
    ]
    forbidden = not status.valid or status.partial or bool(status.throttled)
    controls = {arm.id for arm in result.arms if arm.role == "aa"}
    for comparison in result.comparisons:
        if comparison.b not in controls:
            cases.append(
                Case(
                    group="comparison",
                    name=f"{comparison.b} against {comparison.a}: {comparison.scenario} {comparison.metric}",
                    outcome="error" if forbidden else _OUTCOMES[comparison.verdict],
                    message=f"not comparable: {reasons}" if forbidden else _verdict_text(comparison),
                )
            )
    return cases


def outcome_of(verdict: Verdict) -> Outcome:
    """Return what a verdict is to a CI system: slower fails, not comparable is an error, inconclusive is skipped."""
    return _OUTCOMES[verdict]


def csv_text(rows: Iterator[tuple[str, MetricRow]] | Sequence[tuple[str, MetricRow]]) -> str:
    """Return rows, each with the name of its result, as CSV (RFC 4180 but for the line ends) with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for result, row in rows:
        numbers = ["" if value is None else repr(value) for value in (row.value, row.lo, row.hi)]
        words = [_cell(text) for text in (result, row.arm, row.scenario, row.metric)]
        writer.writerow([*words, *numbers, row.unit, "" if row.n is None else row.n])
    return stream.getvalue()


def junit_text(suites: Sequence[tuple[str, Sequence[Case]]]) -> str:
    """Return JUnit XML, as GitHub, GitLab and Jenkins read it: a suite for each name, equal input giving equal bytes."""
    root = ElementTree.Element("testsuites", name="edgebert")
    for name, cases in suites:
        count = {outcome: sum(case.outcome == outcome for case in cases) for outcome in ("failure", "error", "skipped")}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=xml_text(name),
            tests=str(len(cases)),
            failures=str(count["failure"]),
            errors=str(count["error"]),
            skipped=str(count["skipped"]),
        )
        for case in cases:
            entry = ElementTree.SubElement(suite, "testcase", classname=xml_text(case.group), name=xml_text(case.name))
            if case.outcome == "passed":
                if case.message:
                    ElementTree.SubElement(entry, "system-out").text = xml_text(case.message)
            else:
                found = ElementTree.SubElement(entry, case.outcome, message=xml_text(case.message))
                if case.outcome != "skipped":
                    found.text = xml_text(case.message)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def xml_text(text: str) -> str:
    """Return text without the characters that XML 1.0 cannot hold, escaped or not; markup is escaped by the writer."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#&!])", r"\\\1", printable(text).replace("\n", " "))


def _arm_rows(arm: Arm) -> Iterator[MetricRow]:
    accuracy = arm.accuracy
    shares: tuple[tuple[str, Share | None], ...] = (
        ("accuracy.top1", accuracy.top1),
        ("accuracy.top5", accuracy.top5),
        ("agreement.argmax", accuracy.agreement.share if accuracy.agreement else None),
    )
    yield from (_share_row(arm.id, metric, share) for metric, share in shares if share is not None)
    n = accuracy.top1.n
    low, high = accuracy.macro_f1_ci95 or (None, None)
    yield MetricRow(
        arm=arm.id,
        scenario="accuracy",
        metric="accuracy.macro_f1",
        value=accuracy.macro_f1,
        lo=low,
        hi=high,
        unit="1",
        n=n,
    )
    if accuracy.delta_top1 is not None:
        yield _interval_row(arm.id, "accuracy.delta_vs_reference", accuracy.delta_top1, accuracy.delta_top1_ci95, n)
    gap, calibration, several = accuracy.logit_gap, accuracy.calibration, accuracy.multi_label
    plain: tuple[tuple[str, str, float | int | None, str, int | None], ...] = (
        ("accuracy", "accuracy.auc", accuracy.auc, "1", n),
        ("accuracy", "accuracy.ece", calibration.ece if calibration else None, "1", n),
        ("accuracy", "accuracy.micro_f1", several.micro_f1 if several else None, "1", n),
        ("accuracy", "accuracy.map", several.mean_average_precision if several else None, "1", n),
        ("accuracy", "agreement.max_abs_dlogit", gap.max_abs if gap else None, "1", n),
        ("accuracy", "agreement.kl", gap.kl if gap else None, "nat", n),
        ("", "consistency.timed_outputs", arm.consistency.mismatch, "count", arm.consistency.timed_checked),
        ("", "consistency.errors", arm.consistency.errors, "count", None),
        ("", "input_sensitivity", arm.consistency.input_sensitivity, "1", None),
        ("startup", "startup.import", arm.startup.import_ns.median, "ns", len(arm.startup.import_ns.values)),
        ("startup", "startup.load", arm.startup.load_ns.median, "ns", len(arm.startup.load_ns.values)),
        ("startup", "startup.first_infer", arm.startup.first_query_ns.median, "ns", None),
        ("startup", "startup.time_to_steady", arm.startup.time_to_steady_ns.median, "ns", None),
        ("cold", "startup.cold.total", arm.startup.cold.total.median if arm.startup.cold else None, "ns", None),
        ("", "memory.rss_after_load", arm.memory.rss_after_load, "B", None),
        ("", "memory.peak", arm.memory.peak, "B", None),
        ("", "size.artifact", arm.artifact.bytes, "B", None),
        ("", "size.on_disk", arm.artifact.bytes_on_disk, "B", None),
        ("", "parameters", arm.artifact.parameters, "count", None),
    )
    for scenario, metric, value, unit, count in plain:
        if value is not None:
            yield MetricRow(arm=arm.id, scenario=scenario, metric=metric, value=value, unit=unit, n=count)


def _scenario_rows(arm: str, scenario: Scenario) -> Iterator[MetricRow]:
    name, latency = scenario.name, scenario.latency
    for stage in ("e2e", "queue", "pre", "infer", "post"):
        yield from _distribution_rows(arm, name, f"latency.{stage}", getattr(latency, stage), scenario.queries)
    low, high = scenario.throughput_ci95 or (None, None)
    yield MetricRow(
        arm=arm,
        scenario=name,
        metric="throughput",
        value=scenario.throughput,
        lo=low,
        hi=high,
        unit="1/s",
        n=scenario.queries,
    )
    plain: tuple[tuple[str, float | int | None, str], ...] = (
        ("latency.mlperf_bound.p90", latency.mlperf_bound_p90, "ns"),
        ("latency.mlperf_bound.p99", latency.mlperf_bound_p99, "ns"),
        ("cpu.core_seconds_per_sample", scenario.cpu_seconds_per_query, "s"),
        ("gap_ratio", scenario.gap_ratio, "1"),
        ("outliers.mild", scenario.outliers.mild, "count"),
        ("outliers.severe", scenario.outliers.severe, "count"),
        ("throughput.server_max", scenario.server.rate if scenario.server else None, "1/s"),
        ("deadline.dropped", scenario.deadlines.dropped if scenario.deadlines else None, "count"),
        ("soak.ratio", scenario.soak.ratio if scenario.soak else None, "1"),
    )
    for metric, value, unit in plain:
        if value is not None:
            yield MetricRow(arm=arm, scenario=name, metric=metric, value=value, unit=unit, n=scenario.queries)
    if scenario.deadlines is not None:
        yield _share_row(arm, "deadline.miss_rate", scenario.deadlines.miss_rate, scenario=name)
    for point in scenario.curve:
        where = f"batch{point.batch}.inflight{point.inflight}" + (
            f".rate{point.rate:g}" if point.rate is not None else ""
        )
        low, high = point.throughput_ci95 or (None, None)
        yield MetricRow(
            arm=arm,
            scenario=name,
            metric=f"throughput.{where}",
            value=point.throughput,
            lo=low,
            hi=high,
            unit="1/s",
            n=point.queries,
        )


def _distribution_rows(arm: str, scenario: str, metric: str, found: Distribution, n: int) -> Iterator[MetricRow]:
    for name in ("p50", "p90", "p95", "p99", "p99_9"):
        quantile: Quantile = getattr(found, name)
        if quantile.value is not None:
            low, high = quantile.ci95 or (None, None)
            yield MetricRow(
                arm=arm,
                scenario=scenario,
                metric=f"{metric}.{name.replace('_', '.')}",
                value=quantile.value,
                lo=low,
                hi=high,
                unit="ns",
                n=n,
            )
    for name in ("min", "max", "mean", "mad", "jitter"):
        value = getattr(found, name)
        if value is not None:
            yield MetricRow(arm=arm, scenario=scenario, metric=f"{metric}.{name}", value=value, unit="ns", n=n)


def _share_row(arm: str, metric: str, share: Share, *, scenario: str = "accuracy") -> MetricRow:
    low, high = share.ci95
    return MetricRow(arm=arm, scenario=scenario, metric=metric, value=share.value, lo=low, hi=high, unit="1", n=share.n)


def _interval_row(arm: str, metric: str, share: float, interval: Interval | None, n: int | None) -> MetricRow:
    """Return a difference of shares in percentage points."""
    low, high = (None, None) if interval is None else (100 * interval[0], 100 * interval[1])
    return MetricRow(arm=arm, scenario="accuracy", metric=metric, value=100 * share, lo=low, hi=high, unit="pp", n=n)


def _verdict_text(comparison: Comparison) -> str:
    interval = comparison.ci95
    bounds = "no interval" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"
    return (
        f"{comparison.verdict}: ratio of times {comparison.ratio:.4g} {bounds}, claimed beyond {comparison.delta:.2%}, "
        f"{comparison.launches} launches, {comparison.scope}"
    )


def _cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula, on one line."""
    shown = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
