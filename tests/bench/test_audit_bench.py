"""`bench --audit` end to end: fake backends that cheat are caught and named, an honest one passes everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgebert.bench.audit.audit import audit_arms
from edgebert.bench.audit.block import added, queued_by_task
from edgebert.bench.audit.checks import (
    AuditCheck,
    AuditReport,
    check_answers,
    check_harness,
    check_memory,
    check_order,
    check_remembered,
    check_repeated,
    check_skipped,
    check_waiting,
)
from edgebert.bench.device_lock import device_lock
from edgebert.bench.options import BenchOptions
from edgebert.bench.statistics.formulas import Contrast
from edgebert.cli import app
from edgebert.errors import LockedError

ScriptArm = Callable[..., Path]
Audit = Callable[..., AuditReport]


@pytest.fixture
def audit(quick: BenchOptions, worker_command: list[str]) -> Audit:
    """Return a function that audits scripted arms for a few seconds."""

    def run(*arms: Path | str, seconds: float = 2.0) -> AuditReport:
        options = replace(quick, max_seconds=seconds, max_warmup_seconds=0.2)
        return audit_arms(list(arms), options, worker_command=worker_command)

    return run


def failed(report: AuditReport) -> dict[str, str]:
    """Return what the checks of the only arm say that failed, by their names."""
    (arm,) = report.arms
    return {check.name: check.finding for check in arm.failed}


def told(report: AuditReport) -> dict[str, str]:
    """The same, with those that a busy computer leaves unclear."""
    (arm,) = report.arms
    return {check.name: check.finding for check in arm.checks if check.state in ("fail", "unclear")}


def test_audit_arms_finds_no_fault_in_an_honest_backend(audit: Audit, script_arm: ScriptArm) -> None:
    report = audit(script_arm("honest", latency_ms=0.5))
    assert failed(report) == {}
    assert report.exit_code == 0
    assert {check.name for check in report.arms[0].checks} == {
        "timed answers",
        "repeated image",
        "remembered answers",
        "skipped work",
        "sleeping backend",
        "other seed",
        "memory",
        "harness cost",
    }
    assert "no fault found" in report.to_text()


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ({"remembers": True}, "remembered answers", "answers are remembered"),
        ({"remembers": True}, "repeated image", "remembered"),
        ({"skips_every": 10}, "skipped work", "work is skipped"),
        ({"skips_every": 50}, "skipped work", "work is skipped"),
        ({"sleeps_ms": 0.5}, "sleeping backend", "sleeps or waits"),
        ({"garbage_every": 1_000, "latency_ms": 0.05}, "timed answers", "differ from the accuracy pass"),
        ({"unsure_every": 1_000, "latency_ms": 0.05}, "timed answers", "differ from the accuracy pass"),
        ({"fail_at": 700}, "timed answers", "1 queries failed; the first: RuntimeError: the planted failure"),
        ({"leaks_bytes": 4_096}, "memory", "a leak"),
    ],
)
def test_audit_arms_catches_and_names(
    audit: Audit, script_arm: ScriptArm, script: dict[str, object], name: str, words: str
) -> None:
    report = audit(script_arm("cheat", **{"latency_ms": 0.5, **script}), seconds=4.0)
    assert words in told(report).get(name, "nothing")
    assert report.exit_code == 5
    text = report.to_text()
    assert "FAIL" in text
    assert "faults found in `cheat`" in text
    assert max(map(len, text.splitlines())) < 140


def test_audit_arms_tells_the_cheat_from_the_honest_arm_beside_it(audit: Audit, script_arm: ScriptArm) -> None:
    report = audit(script_arm("honest", latency_ms=0.5), script_arm("cheat", sleeps_ms=1.0))
    assert [bool(arm.failed) for arm in report.arms] == [False, True]


def test_audit_report_is_json_that_says_the_same(audit: Audit, script_arm: ScriptArm) -> None:
    report = audit(script_arm("cheat", sleeps_ms=1.0), seconds=1.0)
    content = json.loads(json.dumps(report.to_json()))
    assert content["schema"] == "edgebert.bench-audit/1"
    states = {check["name"]: check["state"] for check in content["arms"][0]["checks"]}
    assert states["sleeping backend"] == "fail"


def test_audit_arms_waits_for_no_other_measurement(audit: Audit, script_arm: ScriptArm) -> None:
    with device_lock(), pytest.raises(LockedError):
        audit(script_arm("honest"))


def state(check: AuditCheck) -> str:
    return check.state


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.97, 1.02), "pass"), ((0.90, 0.94), "fail"), ((0.94, 1.01), "unclear"), ((1.1, 1.3), "pass")],
)
def test_check_repeated_fails_where_the_interval_excludes_the_bound(
    interval: tuple[float, float], expected: str
) -> None:
    contrast = Contrast(ratio=sum(interval) / 2, ci95=interval, rounds=20)
    assert state(check_repeated(contrast)) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.99, 1.02), "pass"),
        ((0.80, 0.94), "fail"),
        ((1.06, 1.20), "fail"),
        ((0.94, 1.01), "unclear"),
        ((1.0, 1.06), "unclear"),
    ],
)
def test_check_order_fails_on_either_side(interval: tuple[float, float], expected: str) -> None:
    contrast = Contrast(ratio=sum(interval) / 2, ci95=interval, rounds=20)
    assert state(check_order(contrast)) == expected


def test_checks_without_a_figure_say_why_they_do_not_apply() -> None:
    for check in (
        check_remembered(None),
        check_waiting(None, device="CPU"),
        check_waiting(0.9, device="GPU.0"),
        check_memory(None, queries=10),
    ):
        assert check.state == "not applicable"
        assert check.finding
    assert "GPU.0" in check_waiting(0.9, device="GPU.0").finding


def test_check_answers_says_how_likely_a_rare_fault_is_missed() -> None:
    assert "missed with 5.0%" in check_answers(2_995, 0, 0, None).finding
    assert "missed with 1.0%" in check_answers(4_605, 0, 0, None).finding


def test_checks_take_a_figure_at_the_bound_as_kept() -> None:
    assert state(check_skipped(10, 1_000)) == "pass"
    assert state(check_skipped(11, 1_000)) == "fail"
    assert state(check_skipped(11, 1_000, queued=0.6)) == "unclear"
    assert state(check_harness(10, 1_000)) == "pass"
    assert state(check_harness(11, 1_000)) == "fail"
    assert state(check_memory(1_024.0, queries=1)) == "pass"
    assert state(check_memory(1_025.0, queries=1)) == "fail"


def test_queued_by_task_reads_every_thread(tmp_path: Path) -> None:
    for task, line in (("7", "100 20 3\n"), ("8", "5 0 1\n")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(line)
    before = queued_by_task(tmp_path)
    assert before is not None
    assert before == {"7": 20, "8": 0}
    (tmp_path / "7" / "schedstat").write_text("150 30 4\n")
    after = queued_by_task(tmp_path)
    assert after is not None
    assert added(before, after) == 10
    assert queued_by_task(tmp_path / "none") is None


def test_bench_audit_of_the_command_line_writes_what_it_shows(
    script_arm: ScriptArm,
    image_folder: Path,
    worker_command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = partial(audit_arms, worker_command=worker_command)
    monkeypatch.setattr("edgebert.bench.audit.audit.audit_arms", real)
    cheat, output = script_arm("cheat", sleeps_ms=1.0), tmp_path / "audit.json"
    words = ["bench", str(cheat), "--data", str(image_folder), "--audit", "--max-seconds", "1", "--threads", "1"]
    words += ["--max-warmup-seconds", "0.1", "--json"]
    done = CliRunner().invoke(app, [*words, "-o", str(output)])
    assert done.exit_code == 5, done.stderr
    assert json.loads(output.read_text()) == json.loads(done.stdout)
    assert CliRunner().invoke(app, [*words, "-o", str(output)]).exit_code == 74
    assert CliRunner().invoke(app, words).exit_code == 5


def test_bench_without_audit_needs_a_name_to_write_to(script_arm: ScriptArm, image_folder: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(script_arm("a")), "--data", str(image_folder)])
    assert done.exit_code == 2
    assert "-o result.json" in done.stderr
