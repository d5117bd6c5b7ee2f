"""Short forms of the comparisons with benchmark_app and LoadGen: what they read, their bounds, and that a shift fails."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgebert.bench.recorder import Recorder
from edgebert.card import ModelCard, Provenance
from edgebert.errors import EdgebertError
from edgebert.extras import installed_version
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

ROOT = Path(__file__).resolve().parents[2]

# What benchmark_app 2026.4.1 printed for a model of 0.16 ms; some lines left out.
APP_OUTPUT = """\
[Step 8/11] Querying optimal runtime parameters
[ INFO ] Model:
[ INFO ]   NETWORK_NAME: main_graph
[ INFO ]   NUM_STREAMS: 1
[ INFO ]   INFERENCE_NUM_THREADS: 2
[ INFO ]   INFERENCE_PRECISION_HINT: <Type: 'float32'>
[ INFO ]   PERFORMANCE_HINT: LATENCY
[ INFO ]   ENABLE_CPU_PINNING: False
[ INFO ] First inference took 2.50 ms
[Step 11/11] Dumping statistics report
[ INFO ] Execution Devices:['CPU']
[ INFO ] Count:            17270 iterations
[ INFO ] Duration:         3000.16 ms
[ INFO ] Latency:
[ INFO ]    Median:        155.90 us
[ INFO ]    Average:       163.95 us
[ INFO ]    Min:           146.50 us
[ INFO ]    Max:           1923.95 us
[ INFO ] Throughput:   5756.37 FPS
"""

# The lines of LoadGen 6.0.17's detail log that are read, of one run, less their metadata.
DETAIL = {
    "result_validity": "VALID",
    "result_query_count": 1614,
    "result_mean_latency_ns": 616429,
    "result_50.00_percentile_latency_ns": 593629,
    "result_90.00_percentile_latency_ns": 623573,
}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def detail(**changes: object) -> str:
    """Return a detail log as LoadGen writes it."""
    return "".join(
        f":::MLLOG {json.dumps({'key': key, 'value': value})}\n" for key, value in {**DETAIL, **changes}.items()
    )


def test_launch_of_output_reads_microseconds_and_the_settings_in_effect(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    launch = benchmarks("against_benchmark_app").launch_of_output(APP_OUTPUT)
    assert launch.median_ns == pytest.approx(155_900)
    assert launch.count == 17_270
    assert launch.settings == {"threads": "2", "streams": "1", "precision": "f32", "pinning": "False"}


def test_launch_of_output_reads_milliseconds(benchmarks: Callable[[str], ModuleType]) -> None:
    text = APP_OUTPUT.replace("155.90 us", "140.06 ms")
    assert benchmarks("against_benchmark_app").launch_of_output(text).median_ns == pytest.approx(140_060_000)


def test_launch_of_output_refuses_another_percentile(benchmarks: Callable[[str], ModuleType]) -> None:
    text = APP_OUTPUT.replace("Median:    ", "90 percentile: ")
    with pytest.raises(EdgebertError, match="no median"):
        benchmarks("against_benchmark_app").launch_of_output(text)


def test_check_settings_refuses_launches_with_other_threads(benchmarks: Callable[[str], ModuleType]) -> None:
    module = benchmarks("against_benchmark_app")
    alike = module.launch_of_output(APP_OUTPUT)
    other = module.launch_of_output(APP_OUTPUT.replace("NUM_THREADS: 2", "NUM_THREADS: 1"))
    module.check_settings("toy", [[alike]] * 4)
    with pytest.raises(EdgebertError, match="ran `toy` with"):
        module.check_settings("toy", [[alike], [other], [alike], [alike]])


def test_segment_of_detail_reads_loadgens_log(benchmarks: Callable[[str], ModuleType]) -> None:
    segment = benchmarks("_loadgen").segment_of_detail(detail())
    assert (segment.by, segment.queries, segment.p50, segment.p90) == ("loadgen", 1614, 593_629, 623_573)


@pytest.mark.parametrize(
    ("text", "said"),
    [(detail(result_validity="INVALID", result_invalid_reason="early stopping"), "INVALID"), ("", "has no")],
)
def test_segment_of_detail_refuses_a_run_that_does_not_count(
    benchmarks: Callable[[str], ModuleType], text: str, said: str
) -> None:
    with pytest.raises(EdgebertError, match=said):
        benchmarks("_loadgen").segment_of_detail(text)


@pytest.mark.parametrize(
    ("ours", "theirs", "allowed", "passed"),
    [
        ((2_060_000.0,), (2_000_000.0,), 60_000, True),  # 3 % is the larger bound, and is met exactly
        ((2_061_000.0,), (2_000_000.0,), 60_000, False),
        ((1_939_000.0,), (2_000_000.0,), 60_000, False),  # faster is as wrong as slower
        ((129_000.0,), (100_000.0,), 30_000, True),  # 30 µs is the larger bound
        ((131_000.0,), (100_000.0,), 30_000, False),
        ((1_000_000.0, 2e9, 1_000_000.0), (1_000_000.0,), 30_000, True),  # the median over launches counts
    ],
)
def test_comparison_allows_the_larger_of_two_bounds(
    benchmarks: Callable[[str], ModuleType],
    ours: tuple[float, ...],
    theirs: tuple[float, ...],
    allowed: float,
    passed: bool,
) -> None:
    peers = benchmarks("_peers")
    bound = peers.Bound(relative=0.03, absolute_ns=30_000)
    compared = peers.Comparison(model="m", figure="p50", peer="app", ours=ours, theirs=theirs, bound=bound)
    assert compared.allowed_ns == pytest.approx(allowed)
    assert compared.passed is passed


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "PASS"), (1.1, 1, "FAIL"), (0.9, 1, "FAIL")])
def test_run_comparison_fails_on_a_planted_tenth(
    benchmarks: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    factor: float,
    code: int,
    word: str,
) -> None:
    peers, app = benchmarks("_peers"), benchmarks("against_benchmark_app")
    slow = app.launch_of_output(APP_OUTPUT.replace("155.90 us", "2.20 ms")).median_ns
    theirs = tuple(slow * share for share in (0.999, 1.0, 1.004))
    fine = peers.Comparison(model="a", figure="p50", peer="app", ours=theirs, theirs=theirs, bound=app.BOUND)
    ours = tuple(factor * figure for figure in theirs)
    shifted = peers.Comparison(model="b", figure="p50", peer="app", ours=ours, theirs=theirs, bound=app.BOUND)
    shown = peers.Comparison(model="c", figure="p50", peer="app", ours=(1.0,), theirs=theirs, bound=None)
    arguments = argparse.Namespace(json=tmp_path / "figures.json")
    assert peers.run_comparison(lambda _: [fine, shifted, shown], arguments, ("numpy",)) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{word} worst of 2: {'a' if factor == 1 else 'b'}, p50: ")
    written = json.loads(arguments.json.read_text(encoding="utf-8"))
    assert [each.get("passed") for each in written["comparisons"]] == [True, factor == 1, None]
    assert written["conditions"]["versions"].endswith(f"numpy {np.__version__}")


def test_launch_order_is_balanced_and_mirrored(benchmarks: Callable[[str], ModuleType]) -> None:
    order = benchmarks("_peers").launch_order(4, 5, seed=1)
    assert sorted(order) == sorted([*range(4)] * 5)
    assert order[4:8] == order[3::-1]


def test_loadgen_that_is_missing_exits_69_with_the_command(
    benchmarks: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    peers, module = benchmarks("_peers"), benchmarks("against_loadgen")
    arguments = peers.peer_parser(module.__doc__).parse_args(["x.edgebert"])
    assert peers.run_comparison(module.main, arguments, ()) == 69
    assert 'hint: pip install "edgebert[loadgen]"' in capsys.readouterr().err


def test_both_sides_run_the_same_model_with_the_same_settings(
    benchmarks: Callable[[str], ModuleType], make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="the peer is not installed: openvino")
    app, peers = benchmarks("against_benchmark_app"), benchmarks("_peers")
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    (tmp_path / "work").mkdir()
    arguments = peers.peer_parser("").parse_args([str(bundle), "--threads", "1", "--images", "3", "--seconds", "1"])
    subject = app.subject_of(bundle, tmp_path / "work", arguments)
    ours = app.launch_edgebert(bundle, subject.images, threads=1, seconds=1, max_warmup_ns=0)
    theirs = app.launch_app(app.app_arguments(subject, threads=1, seconds=1), threads=1)
    distinct = app.launch_app(app.app_arguments(subject, threads=1, seconds=1, distinct=True), threads=1)
    app.check_settings("toy", [[ours], [theirs], [distinct], [ours]])
    assert ours.settings["threads"] == "1"
    assert min(ours.median_ns, theirs.median_ns, distinct.median_ns) > 0
    assert min(ours.count, theirs.count, distinct.count) > 100


def test_launch_app_tells_what_the_tool_said_when_it_failed(benchmarks: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("openvino", reason="the peer is not installed: openvino")
    with pytest.raises(EdgebertError, match="exit code 1") as caught:
        benchmarks("against_benchmark_app").launch_app(["-m", "missing.xml"], threads=1)
    assert "missing.xml" in str(caught.value)


def _slow_pipeline(milliseconds: float) -> Pipeline:
    spec = InputSpec(height=4, width=4, classes=2)
    card = ModelCard(
        class_names=("a", "b"), preprocessing=Preprocessing(height=4, width=4), provenance=Provenance(stage="export")
    )
    return Pipeline(FakeRunner(spec, latency_ms=(milliseconds,)), card)


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (1.4, False)])
def test_loadgen_agrees_with_the_recorder_unless_the_pipeline_differs(
    benchmarks: Callable[[str], ModuleType], factor: float, passed: bool
) -> None:
    if installed_version("mlperf_loadgen") is None:
        pytest.skip("the peer is not installed: mlcommons-loadgen")
    child, peers = benchmarks("_loadgen"), benchmarks("_peers")
    lg = importlib.import_module("mlperf_loadgen")
    images = list(np.zeros((4, 4, 4, 3), np.uint8))
    recorder = Recorder(_slow_pipeline(5.0), images)
    warmup = recorder.warm_up(0)
    ours = child.recorded(recorder, warmup, 0.5)
    theirs = child.load_generated(lg, _slow_pipeline(5.0 * factor), images, warmup, 0.5, 0)
    assert theirs.queries >= 64
    bound = peers.Bound(
        relative=0.2, absolute_ns=0
    )  # a sleep ends late on a busy computer; the real bound is for quiet ones
    compared = peers.Comparison(
        model="sleeps", figure="p50", peer="LoadGen", ours=(ours.p50,), theirs=(theirs.p50,), bound=bound
    )
    assert compared.passed is passed


def test_load_generated_tells_the_error_of_a_query(benchmarks: Callable[[str], ModuleType]) -> None:
    if installed_version("mlperf_loadgen") is None:
        pytest.skip("the peer is not installed: mlcommons-loadgen")
    child, lg = benchmarks("_loadgen"), importlib.import_module("mlperf_loadgen")
    images = list(np.zeros((4, 4, 4, 3), np.uint8))
    warmup = Recorder(_slow_pipeline(1.0), images).warm_up(0)
    broken = _slow_pipeline(1.0)
    broken.runner.close()
    with pytest.raises(EdgebertError, match="a query failed"):
        child.load_generated(lg, broken, images, warmup, 0.1, 0)
