from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgebert.bench.comparison.exports import (
    CSV_HEADER,
    Case,
    MetricRow,
    cases_of_result,
    csv_text,
    junit_text,
    markdown_text,
    outcome_of,
    results_csv,
    results_junit,
    results_markdown,
    write_results,
    xml_text,
)
from edgebert.bench.result import write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result
from edgebert.errors import CannotWriteError, UsageError

Synthetic = Callable[..., tuple[Result, Samples]]
Run = Callable[..., tuple[int, str, str]]

HOSTILE = "=cmd|' /C calc'!A0\x1b[31m\x00<script>&\u202e\ud7ff\ufffe"


@pytest.fixture
def written(tmp_path: Path, synthetic: Synthetic) -> Path:
    """Return the path of a result, its samples beside it."""
    path = tmp_path / "r.json"
    write_result(path, *synthetic(launches=5), force=False)
    return path


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_results_csv_has_one_row_for_each_number(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=5)
    text = results_csv([("r.json", result)])
    assert text.splitlines()[0] == "result,arm,scenario,metric,value,lo,hi,unit,n"
    rows = {(row["arm"], row["scenario"], row["metric"]): row for row in table(text)}
    assert len(rows) == len(table(text))
    p50 = result.arm("student").scenarios[0].latency.e2e.p50
    assert p50.ci95 is not None
    found = rows["student", "single-stream", "latency.e2e.p50"]
    assert (found["value"], found["lo"], found["hi"]) == (str(p50.value), str(p50.ci95[0]), str(p50.ci95[1]))
    assert (found["unit"], found["n"]) == ("ns", str(result.arm("student").scenarios[0].queries))
    top1 = rows["student", "accuracy", "accuracy.top1"]
    assert (float(top1["value"]), top1["n"], top1["unit"]) == (0.9, "30", "1")
    ratio = rows["student", "single-stream", "ratio.latency.e2e.p50"]
    comparison = result.comparison("student")
    assert comparison is not None
    assert float(ratio["value"]) == comparison.ratio
    delta = rows["student", "accuracy", "accuracy.delta_vs_baseline"]
    assert float(delta["value"]) == pytest.approx(-10.0)
    assert delta["unit"] == "pp"


def test_results_csv_leaves_out_what_was_not_measured(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=2, queries=20)
    metrics = {row["metric"] for row in table(results_csv([("r", result)]))}
    assert "latency.e2e.p50" in metrics
    assert "latency.e2e.p99.9" not in metrics
    assert not {row["value"] for row in table(results_csv([("r", result)]))} & {"", "None", "nan"}


def test_csv_text_escapes_what_a_spreadsheet_would_run() -> None:
    row = MetricRow(arm=HOSTILE, scenario="", metric="m", value=-1.5, unit="1")
    (found,) = table(csv_text([("@r\n2", row)]))
    assert found["arm"].startswith("'=cmd")
    assert "\x1b" not in found["arm"]
    assert found["result"] == "'@r\\n2"
    assert found["value"] == "-1.5"


def test_results_junit_gates_on_verdicts(synthetic: Synthetic) -> None:
    slower, _ = synthetic(launches=5, times_ms=(1.0, 1.5))
    faster, _ = synthetic(launches=5, times_ms=(4.0, 1.0))
    root = ElementTree.fromstring(results_junit([("slow.json", slower), ("fast.json", faster)]))
    suites = {suite.get("name"): suite for suite in root}
    assert int(suites["slow.json"].get("failures", "")) >= 1
    assert (suites["fast.json"].get("failures"), suites["fast.json"].get("errors")) == ("0", "0")
    failed = suites["slow.json"].find(".//failure/..")
    assert failed is not None
    assert failed.get("name", "").startswith("student against teacher: single-stream latency.e2e.p")
    assert "slower" in (failed[0].get("message") or "")
    assert not [case for case in root.iter("testcase") if "A/A" in case.get("name", "")]


@pytest.mark.parametrize("suite", ["validity", "comparison"])
def test_cases_of_result_are_errors_when_it_is_not_valid(synthetic: Synthetic, suite: str) -> None:
    result, _ = synthetic(launches=5, mismatch=True)
    outcomes = [case.outcome for case in cases_of_result(result) if case.group == suite]
    assert "error" in outcomes
    if suite == "comparison":
        assert set(outcomes) == {"error"}


def test_cases_of_result_of_a_run_that_was_cut_short(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=5)
    status = dataclasses.replace(result.status, partial=True, throttled=True, converged=False, reasons=("interrupted",))
    empty = dataclasses.replace(result, arms=(), comparisons=(), dataset=None, status=status)
    outcomes = {case.name: case.outcome for case in cases_of_result(empty)}
    assert outcomes == {"valid": "passed", "complete": "error", "not throttled": "error", "converged": "skipped"}
    assert "Nothing was measured" in results_markdown([("r", empty)])
    assert results_csv([("r", empty)]) == ",".join(CSV_HEADER) + "\n"


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("faster", "passed"),
        ("equivalent", "passed"),
        ("slower", "failure"),
        ("inconclusive", "skipped"),
        ("not comparable", "error"),
    ],
)
def test_outcome_of_a_verdict(verdict: Any, outcome: str) -> None:
    assert outcome_of(verdict) == outcome


def test_junit_text_is_xml_whatever_the_names_hold() -> None:
    cases = [
        Case(group=HOSTILE, name=HOSTILE, outcome=outcome, message=HOSTILE)
        for outcome in ("passed", "failure", "error", "skipped")
    ]
    root = ElementTree.fromstring(junit_text([(HOSTILE, cases)]))
    suite = root[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "1", "1"]
    assert suite[1].get("name") == xml_text(HOSTILE)
    assert suite[1][0].text == xml_text(HOSTILE)


def test_junit_text_is_the_same_bytes_for_the_same_input(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=2)
    assert results_junit([("r", result)]) == results_junit([("r", result)])


@pytest.mark.parametrize("text", ["\x00", "\x08", "\x0b", "\x1f", "\ud800", "\ufffe", "\uffff"])
def test_xml_text_replaces_what_xml_cannot_hold(text: str) -> None:
    assert xml_text(f"a{text}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_xml_text_keeps_the_rest() -> None:
    assert xml_text("\t\n\r äöü 中 😀 <&>") == "\t\n\r äöü 中 😀 <&>"


def test_markdown_text_escapes_markup() -> None:
    assert markdown_text("a|b*[x](y)\x1b\n") == "a\\|b\\*\\[x\\](y)\\\\x1b "


@pytest.mark.parametrize("suffix", [".md", ".csv", ".xml"])
def test_report_writes_the_format_of_the_suffix(written: Path, run: Run, suffix: str) -> None:
    output = written.with_name(f"out{suffix}")
    code, out, _ = run("report", written, "-o", output)
    assert (code, out) == (0, f"{output}\n")
    text = output.read_text(encoding="utf-8")
    assert text.startswith({".md": "## r.json\n", ".csv": "result,arm,", ".xml": "<?xml "}[suffix])
    assert "student" in text
    assert text.endswith("\n")


def test_report_refuses_another_suffix(written: Path, run: Run) -> None:
    code, _, err = run("report", written, "-o", written.with_name("out.pdf"))
    assert code == 2
    assert ".html, .md, .csv, .xml" in err


def test_write_results_replaces_only_with_force(written: Path) -> None:
    output = written.with_name("out.csv")
    write_results([written], output)
    with pytest.raises(CannotWriteError):
        write_results([written], output)
    assert write_results([written], output, force=True) == output
    with pytest.raises(UsageError):
        write_results([], output)


@pytest.mark.parametrize("suffix", [".md", ".csv", ".xml", ".json"])
def test_compare_writes_the_format_of_the_suffix(written: Path, run: Run, suffix: str) -> None:
    output = written.with_name(f"out{suffix}")
    code, out, _ = run("compare", written, "--max-drop", "50", "-o", output)
    assert code == 0
    assert out.startswith("student is faster than teacher")
    text = output.read_text(encoding="utf-8")
    if suffix == ".json":
        content = json.loads(text)
        assert content["exit_code"] == 0
        assert content["arms"][0]["comparisons"][0]["verdict"] == "faster"
        assert content["arms"][0]["sentences"][0] in " ".join(out.split())
    elif suffix == ".xml":
        names = [case.get("name") for case in ElementTree.fromstring(text).iter("testcase")]
        assert names == ["student against teacher: single-stream latency.e2e.p50", "student against teacher: top-1"]
    elif suffix == ".csv":
        assert [row["metric"] for row in table(text)] == ["ratio.latency.e2e.p50", "accuracy.delta_vs_baseline"]
    else:
        assert "| student against teacher | latency.e2e.p50 | faster | 0.25" in text


def test_compare_writes_a_refusal_as_an_error_for_ci(written: Path, run: Run, synthetic: Synthetic) -> None:
    bad = written.with_name("bad.json")
    write_result(bad, *synthetic(launches=5, mismatch=True), force=False)
    output = written.with_name("out.xml")
    code, _, _ = run("compare", written, bad, "-o", output)
    assert code == 5
    (case,) = ElementTree.parse(output).iter("testcase")
    assert case[0].tag == "error"
    assert "not valid" in (case[0].get("message") or "")


def test_compare_replaces_only_with_force(written: Path, run: Run) -> None:
    output = written.with_name("out.json")
    output.write_text("mine")
    code, _, _ = run("compare", written, "-o", output)
    assert (code, output.read_text()) == (74, "mine")
    assert run("compare", written, "-o", written)[0] in (2, 74)
    assert run("compare", written, "-o", output, "--force")[0] == 0
