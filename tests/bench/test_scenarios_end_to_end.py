"""Every scenario through the real harness, workers and protocol, with scripted arms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.rebuild import recomputed
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR
from edgebert.bench.result import read_result_samples
from edgebert.bench.samples import SCENARIOS
from edgebert.bench.schema import Result

ScriptArm = Callable[..., Path]


@pytest.fixture
def options(quick: BenchOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BenchOptions:
    """Return options of a run of every scenario that is as short as it can be."""
    monkeypatch.setenv("EDGEBERT_BENCH_LOCK", str(tmp_path / "lock"))
    return replace(
        quick,
        scenarios=("all", "soak"),
        launches=1,
        seconds=0.1,
        queries=20,
        fps=200.0,
        streams=3,
        bound_ms=3.0,
        bound_share=0.5,
        soak_minutes=0.01,
    )


@pytest.fixture
def measured(options: BenchOptions, tmp_path: Path, worker_command: list[str]) -> Callable[..., Result]:
    """Return a function that measures one arm."""

    def measure(arm: Path, **changes: object) -> Result:
        changed = replace(options, **changes)  # type: ignore[arg-type]  # the fields that a test names
        return result_from_arms([arm], tmp_path / "r.json", changed, worker_command=worker_command)

    return measure


def test_result_from_arms_measures_every_scenario_from_samples_that_rebuild_it(
    measured: Callable[..., Result], script_arm: ScriptArm, tmp_path: Path
) -> None:
    result = measured(script_arm("arm", latency_ms=1.0))
    arm, control = result.arms
    # Energy needs power rails: tests/bench/jetson/test_jetson_results.py runs it.
    assert tuple(found.name for found in arm.scenarios) == tuple(name for name in SCENARIOS if name != "energy")
    assert [found.name for found in control.scenarios] == ["single-stream"]
    assert (arm.consistency.mismatch, arm.consistency.errors, result.status.valid) == (0, 0, True)
    samples = read_result_samples(tmp_path / "r.json", result)
    assert recomputed(result, samples).arms == result.arms
    # Of every scenario each answered row was compared with the accuracy pass, dropped frames were not.
    own = samples.queries_of(0, None)
    assert arm.consistency.timed_checked == np.count_nonzero((own["flags"] & FLAG_DROPPED) == 0)
    assert arm.startup.cold is not None
    assert control.startup.cold is None


def test_result_from_arms_measures_what_each_scenario_is_for(
    measured: Callable[..., Result], script_arm: ScriptArm
) -> None:
    arm = script_arm("arm", latency_ms=7.0)  # longer than the frames of 5 ms
    result = measured(arm, scenarios=("multi-stream", "offline", "paced", "server"))
    named = {found.name: found for found in result.arms[0].scenarios}
    deadlines = named["paced"].deadlines
    assert deadlines is not None
    assert deadlines.dropped >= deadlines.frames // 3
    assert deadlines.miss_rate.value == 1.0  # what is answered is late
    assert named["paced"].lateness is not None
    server = named["server"].server
    assert server is not None
    assert server.rate is None  # no query of 7 ms keeps a bound of 3
    assert any(
        "keeps its bound at no rate" in note for note in (*result.status.warnings, *result.not_measured.values())
    )
    # The scripted arm takes no batch: multi-stream asks one by one, the sweep keeps what it takes.
    assert named["multi-stream"].params.batch == 1
    single = named["single-stream"].latency.e2e.p50.value
    several = named["multi-stream"].latency.e2e.p50.value
    assert single is not None
    assert several is not None
    assert several >= 2.5 * 7_000_000
    assert {point.batch for point in named["offline"].curve} == {1}


def test_result_from_arms_is_not_valid_when_a_query_of_a_scenario_fails(
    measured: Callable[..., Result], script_arm: ScriptArm, tmp_path: Path
) -> None:
    # Each launch begins to count anew; that of the soak takes enough queries to meet the failure.
    result = measured(script_arm("arm", latency_ms=0.2, fail_at=2_000), scenarios=("soak",), soak_minutes=0.06)
    rows = read_result_samples(tmp_path / "r.json", result).queries_of(0, "soak")
    assert np.count_nonzero(rows["flags"] & FLAG_ERROR) == 1
    assert result.arms[0].consistency.first_error == "RuntimeError: the planted failure"
    assert not result.status.valid
