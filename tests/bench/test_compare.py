"""Every row of bench.md, section 4.3, through the command line: the sentence, the exit code, and what forbids a verdict."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.bench.comparison.comparability import status_obstacles
from edgebert.bench.comparison.compare import (
    CompareOptions,
    compare_results,
    dominating,
    guard_of,
    share_of_text,
    wider_floor,
    worst_exit_code,
)
from edgebert.bench.paired_accuracy import accuracy_twin, twin_from_samples
from edgebert.bench.result import write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import AccuracyTwin, Comparison, NoiseFloor, Result, Verdict
from edgebert.errors import UsageError

Synthetic = Callable[..., tuple[Result, Samples]]
Run = Callable[..., tuple[int, str, str]]
Made = Callable[..., Path]

_CACHE: dict[str, tuple[Result, Samples]] = {}


@pytest.fixture
def made(tmp_path: Path, synthetic: Synthetic) -> Made:
    """Return a function that writes a made-up result; equal wishes are computed once."""

    def write(name: str, *, change: Callable[[Result], Result] = lambda result: result, **wishes: Any) -> Path:
        wishes = {"launches": 5, **wishes}
        key = repr(sorted(wishes.items()))
        if key not in _CACHE:
            _CACHE[key] = synthetic(**wishes)
        result, samples = _CACHE[key]
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_result(path, change(result), samples, force=False)
        return path

    return write


def device(model: str) -> Callable[[Result], Result]:
    """Return what gives a result another processor."""

    def change(result: Result) -> Result:
        cpu = dataclasses.replace(result.device.cpu, model=model)
        return dataclasses.replace(result, device=dataclasses.replace(result.device, cpu=cpu))

    return change


def status(**fields: Any) -> Callable[[Result], Result]:
    """Return what changes the status of a result."""
    return lambda result: dataclasses.replace(result, status=dataclasses.replace(result.status, **fields))


ONE_RESULT = [
    ((4.0, 1.0), {}, (), "student is faster than teacher by 7", 0),
    ((1.0, 1.5), {}, (), "student is slower than teacher by ", 3),
    ((1.0, 1.0), {}, ("--margin", "10%"), "no difference larger than 10.0 % between student and teacher", 0),
    ((1.0, 1.1), {"noise": 0.08}, (), "inconclusive whether student is faster or slower than teacher", 4),
    ((4.0, 1.0), {"mismatch": True}, (), "not comparable:", 5),
]


@pytest.mark.parametrize(("times", "wishes", "flags", "sentence", "code"), ONE_RESULT)
def test_compare_one_result_says_every_row(
    made: Made,
    run: Run,
    times: tuple[float, float],
    wishes: dict[str, Any],
    flags: tuple[str, ...],
    sentence: str,
    code: int,
) -> None:
    path = made("r.json", times_ms=times, **wishes)
    found, out, _ = run("compare", path, *flags)
    assert sentence in out
    assert found == code
    assert max(map(len, out.splitlines())) <= 100


TWO_RESULTS = [
    ((4.0, 1.0), {}, (), "student (b.json) is faster than student (a.json) by ", 0),
    ((4.0, 6.0), {}, (), "student (b.json) is slower than student (a.json) by ", 3),
    ((4.0, 4.0), {}, ("--margin", "10%"), "no difference larger than 10.0 % between", 0),
    ((4.0, 4.3), {"noise": 0.08}, (), "inconclusive whether student (b.json) is faster or slower", 4),
    ((4.0, 4.0), {"mismatch": True}, (), "`b.json` is not valid", 5),
]


@pytest.mark.parametrize(("times", "wishes", "flags", "sentence", "code"), TWO_RESULTS)
def test_compare_two_results_says_every_row(
    made: Made,
    run: Run,
    times: tuple[float, float],
    wishes: dict[str, Any],
    flags: tuple[str, ...],
    sentence: str,
    code: int,
) -> None:
    noise = {"noise": wishes["noise"]} if "noise" in wishes else {}
    a, b = made("a.json", times_ms=(4.0, 4.0), **noise), made("b.json", times_ms=times, **wishes)
    found, out, _ = run("compare", a, b, "--arm", "student", *flags)
    assert sentence in " ".join(out.split())
    assert found == code
    assert max(map(len, out.splitlines())) <= 100
    assert code == 5 or "unpaired, 5 launches each" in " ".join(out.split())


def test_compare_exits_with_the_code_as_a_program(made: Made) -> None:
    path = made("r.json", times_ms=(1.0, 1.5))
    command = [sys.executable, "-m", "edgebert", "compare", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert ran.stdout.startswith("student is slower than teacher by ")
    assert ran.stderr == ""


def test_compare_tells_the_accuracy_twin_and_reports_the_speed_once(made: Made, run: Run) -> None:
    _, out, _ = run("compare", made("r.json", times_ms=(4.0, 1.0), wrong=3))
    text = " ".join(out.split())
    assert "top-1 changes by -10.0 pp [" in text
    assert "McNemar exact p = 0.25" in text
    assert text.count("ratio of times") == 1
    assert "student is better" not in text
    assert "neither is called better" in text


def test_compare_calls_better_what_is_faster_at_the_same_accuracy(made: Made, run: Run) -> None:
    _, out, _ = run("compare", made("r.json", times_ms=(4.0, 1.0), wrong=0))
    assert "student is better: ahead in speed or accuracy, behind in neither" in out


def test_compare_lists_every_difference_that_decides(made: Made, run: Run) -> None:
    def other(result: Result) -> Result:
        assert result.dataset is not None
        dataset = dataclasses.replace(result.dataset, sha256="00" * 32)
        return dataclasses.replace(device("another")(result), dataset=dataset)

    code, out, _ = run("compare", made("a.json"), made("b.json", change=other))
    assert code == 5
    assert "device.cpu.model: " in out
    assert "dataset.sha256: " in out


def test_compare_labels_two_devices_that_are_compared_on_purpose(made: Made, run: Run) -> None:
    a, b = made("a.json", times_ms=(4.0, 4.0)), made("b.json", times_ms=(4.0, 1.0), change=device("another"))
    assert run("compare", a, b, "--arm", "student")[0] == 5
    code, out, _ = run("compare", a, b, "--arm", "student", "--cross-device")
    assert code == 0
    assert "unpaired, cross-device, 5 launches each" in " ".join(out.split())
    assert "device.cpu.model: " in out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (status(partial=True), "is partial"),
        (status(throttled=True), "was throttled"),
        (status(valid=False, reasons=("made up",)), "is not valid (made up)"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_compare_refuses_a_run_whose_status_forbids_it(
    made: Made, run: Run, change: Callable[[Result], Result], reason: str, first: bool
) -> None:
    good, bad = made("good.json"), made("bad.json", change=change)
    code, out, _ = run("compare", *((bad, good) if first else (good, bad)), "--cross-device")
    assert code == 5
    assert f"`bad.json` {reason}" in out


def test_compare_refuses_a_run_in_which_nothing_was_measured(made: Made, run: Run) -> None:
    def emptied(result: Result) -> Result:
        return dataclasses.replace(status(partial=True)(result), arms=(), comparisons=(), dataset=None)

    code, out, _ = run("compare", made("a.json"), made("b.json", change=emptied))
    assert code == 5
    assert "holds no arm that was measured" in " ".join(out.split())


def test_compare_gives_a_verdict_on_a_run_that_is_not_converged_and_says_so(made: Made, run: Run) -> None:
    path = made("r.json", times_ms=(4.0, 1.0), change=status(converged=False))
    code, out, _ = run("compare", path)
    assert code == 0
    assert "is not converged: the interval says how sure the verdict is" in out


@pytest.mark.parametrize("field", ["pre", "post", "input"])
def test_compare_refuses_arms_of_another_pipeline(made: Made, run: Run, field: str) -> None:
    def other(result: Result) -> Result:
        arms = tuple(
            dataclasses.replace(arm, pipeline=dataclasses.replace(arm.pipeline, **{field: "another"}))
            for arm in result.arms
        )
        return dataclasses.replace(result, arms=arms)

    code, out, _ = run("compare", made("a.json"), made("b.json", change=other), "--cross-device")
    assert code == 5
    assert f"pipeline.{field}: " in out


def test_compare_refuses_other_labels_behind_one_hash(made: Made, synthetic: Synthetic, tmp_path: Path) -> None:
    result, samples = synthetic(launches=5)
    labels = samples["accuracy_label"].copy()
    labels[:] = np.roll(labels, 1)
    path = tmp_path / "other.json"
    write_result(path, result, Samples({**samples.columns, "accuracy_label": labels}), force=False)
    report = compare_results([made("a.json"), path], CompareOptions())
    assert report.exit_code == 5
    assert "labels of the test images differ" in report.to_text()


def test_compare_takes_the_arm_of_the_same_name_else_the_named_ones(made: Made, run: Run) -> None:
    a = made("a.json", names=("base", "old"), times_ms=(4.0, 2.0))
    b = made("b.json", names=("base", "new"), times_ms=(4.0, 1.0))
    assert "base (b.json) and base (a.json)" in " ".join(run("compare", a, b)[1].split())
    code, out, _ = run("compare", a, b, "--baseline", "old", "--arm", "new")
    assert code == 0
    assert out.startswith("new (b.json) is faster than old (a.json) by ")


def test_compare_lists_the_names_when_no_arm_fits(made: Made, run: Run) -> None:
    a, b = made("a.json", names=("base", "old")), made("b.json", names=("first", "new"))
    code, _, err = run("compare", a, b)
    assert code == 2
    assert "`a.json` has base, old; `b.json` has first, new" in err
    code, _, err = run("compare", a, b, "--arm", "nobody", "--baseline", "old")
    assert code == 2
    assert "expected: first, new" in err


def test_compare_against_another_arm_of_the_run(made: Made, run: Run) -> None:
    path = made("r.json", times_ms=(4.0, 1.0))
    code, out, _ = run("compare", path, "--baseline", "student")
    assert code == 3
    assert out.startswith("teacher is slower than student by ")


def test_compare_names_files_by_their_paths_when_their_names_are_the_same(made: Made, run: Run) -> None:
    a, b = made("old/r.json", times_ms=(4.0, 4.0)), made("new/r.json", times_ms=(4.0, 1.0))
    _, out, _ = run("compare", a, b, "--arm", "student", "--json")
    assert (json.loads(out)["arms"][0]["a"]["file"], json.loads(out)["arms"][0]["b"]["file"]) == (str(a), str(b))


@pytest.mark.parametrize("metric", ["p50", "p90", "p99", "throughput"])
@pytest.mark.parametrize("results", [1, 2])
def test_compare_by_each_metric(made: Made, run: Run, metric: str, results: int) -> None:
    paths = [made("a.json", times_ms=(4.0, 4.0), queries=80), made("b.json", times_ms=(4.0, 1.0), queries=80)]
    code, out, _ = run("compare", *paths[-results:], "--arm", "student", "--metric", metric, "--json")
    assert code == 0
    (comparison,) = json.loads(out)["arms"][0]["comparisons"]
    assert comparison["metric"] == ("throughput" if metric == "throughput" else f"latency.e2e.{metric}")
    assert comparison["ratio"] == pytest.approx(0.25, rel=0.05)
    assert comparison["verdict"] == "faster"


@pytest.mark.parametrize("results", [1, 2])
def test_compare_says_what_cannot_be_estimated(made: Made, run: Run, results: int) -> None:
    paths = [made("a.json", queries=20), made("b.json", queries=20)]
    code, out, _ = run("compare", *paths[-results:], "--arm", "student", "--metric", "p99")
    assert code == 5
    assert "p99 is not estimable: a launch has fewer than 299 queries" in out


@pytest.mark.parametrize(("points", "code", "word"), [(50, 0, "no more than that"), (0, 3, "more than that is lost")])
def test_compare_guards_accuracy(made: Made, run: Run, points: int, code: int, word: str) -> None:
    path = made("r.json", times_ms=(4.0, 1.0), wrong=15)
    found, out, _ = run("compare", path, "--max-drop", {50: 90, 0: 0}[points])
    assert (found, word in out) == (code, True)


def test_compare_is_inconclusive_when_the_drop_cannot_be_told(made: Made, run: Run) -> None:
    code, out, _ = run("compare", made("r.json", times_ms=(4.0, 1.0), wrong=3), "--max-drop", "5")
    assert code == 4
    assert "inconclusive: the interval holds both" in " ".join(out.split())


def test_compare_does_not_believe_the_statistics_in_the_file(made: Made, run: Run) -> None:
    def flattered(result: Result) -> Result:
        comparisons = tuple(
            dataclasses.replace(entry, ratio=0.1, ci95=(0.09, 0.11), verdict="faster") for entry in result.comparisons
        )
        return dataclasses.replace(result, comparisons=comparisons)

    assert run("compare", made("r.json", times_ms=(1.0, 1.5), change=flattered))[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--metric", "p12"),
        ("--margin", "2"),
        ("--margin", "x"),
        ("--margin", "-1%"),
        ("--max-drop", "-1"),
        ("--arm", "nobody"),
        ("--baseline", "nobody"),
        ("--arm", "teacher"),
        ("--cross-device",),
        ("-o", "x.html"),
    ],
)
def test_compare_refuses_what_cannot_be_meant(made: Made, run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run("compare", made("r.json"), *arguments)
    assert (code, out) == (2, "")
    assert "expected" in err


def test_compare_refuses_three_results(made: Made, run: Run) -> None:
    path = made("r.json")
    assert run("compare", path, path, path)[0] == 2


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.02", 0.02), ("0", 0.0)])
def test_share_of_text_reads_per_cent_and_shares(text: str, share: float) -> None:
    assert share_of_text(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["1", "100%", "nan", "inf%", "", "%"])
def test_share_of_text_refuses_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError):
        share_of_text(text)


@pytest.mark.parametrize(("codes", "worst"), [([], 0), ([0, 4], 4), ([4, 3], 3), ([3, 5, 4, 0], 5)])
def test_worst_exit_code_stops_at_what_matters_most(codes: list[int], worst: int) -> None:
    assert worst_exit_code(codes) == worst


def comparison(verdict: Verdict, gained: int, lost: int, count: int = 1000) -> Comparison:
    labels = np.zeros(count, np.int64)
    first, second = labels.copy(), labels.copy()
    first[:gained] = 1
    second[gained : gained + lost] = 1
    return Comparison(
        a="a",
        b="b",
        metric="latency.e2e.p50",
        scenario="single-stream",
        paired=True,
        ratio=1.0,
        speedup=1.0,
        ci95=(0.9, 1.1),
        confidence=0.95,
        scope="launches",
        method="made up",
        launches=5,
        rounds=5,
        margin=0.01,
        noise_floor=None,
        delta=0.01,
        verdict=verdict,
        launches_needed=None,
        p_holm=None,
        accuracy=accuracy_twin(labels, first, second),
    )


@pytest.mark.parametrize(
    ("verdict", "gained", "lost", "winner"),
    [
        ("faster", 0, 0, "b"),
        ("faster", 30, 0, "b"),
        ("faster", 0, 30, None),
        ("faster", 0, 1, None),  # no loss that is sure, but none that can be denied
        ("slower", 0, 0, "a"),
        ("slower", 30, 0, None),
        ("slower", 0, 30, "a"),
        ("equivalent", 0, 0, None),
        ("equivalent", 30, 0, "b"),
        ("equivalent", 2, 0, None),
        ("equivalent", 0, 30, "a"),
        ("inconclusive", 30, 0, None),
    ],
)
def test_dominating_takes_a_lead_in_one_and_no_loss_in_the_other(
    verdict: Verdict, gained: int, lost: int, winner: str | None
) -> None:
    assert dominating([comparison(verdict, gained, lost)]) == winner


def test_dominating_is_nobody_when_two_metrics_disagree() -> None:
    assert dominating([comparison("faster", 0, 0), comparison("slower", 0, 0)]) is None
    assert dominating([]) is None


@pytest.mark.parametrize(
    ("lost", "max_drop", "outcome"),
    [(0, 1.0, "kept"), (100, 1.0, "exceeded"), (10, 1.0, "inconclusive"), (100, 50.0, "kept")],
)
def test_guard_of_asks_for_the_whole_interval(lost: int, max_drop: float, outcome: str) -> None:
    assert guard_of(comparison("faster", 0, lost), max_drop) == outcome


def test_wider_floor_takes_the_interval_that_reaches_farthest_from_one() -> None:
    narrow, wide = NoiseFloor(ratio=1.0, ci95=(0.99, 1.01)), NoiseFloor(ratio=1.0, ci95=(0.95, 1.0))
    unknown = NoiseFloor(ratio=1.0, ci95=None)
    assert wider_floor([narrow, wide, unknown, None]) == wide
    assert wider_floor([unknown, None]) is None


def test_accuracy_twin_counts_a_failed_query_as_wrong() -> None:
    labels = np.array([0, 1, 2, 0], np.int64)
    twin: AccuracyTwin = accuracy_twin(labels, labels, np.array([0, -1, 1, 0], np.int64))
    assert (twin.only_a_right, twin.only_b_right, twin.delta_top1, twin.mcnemar_p) == (2, 0, -0.5, 0.5)
    assert twin.delta_ci95[0] < -0.5 < twin.delta_ci95[1]


def test_twin_from_samples_pairs_by_image_or_not_at_all(synthetic: Synthetic) -> None:
    _, samples = synthetic(launches=2)
    twin = twin_from_samples(samples, 0, samples, 1)
    assert twin is not None
    assert twin.only_a_right == 3
    fewer = {name: values for name, values in samples.columns.items() if not name.startswith("accuracy_")}
    short = Samples({**fewer, **{name: samples[name][1:] for name in samples.columns if name.startswith("accuracy_")}})
    assert twin_from_samples(samples, 0, short, 0) is None


def test_status_obstacles_are_none_for_a_run_that_holds(synthetic: Synthetic) -> None:
    assert status_obstacles(synthetic(launches=2)[0], "it") == ()
