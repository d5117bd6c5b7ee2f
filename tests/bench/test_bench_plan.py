from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgebert.bench.arms import arms_from_paths, control_of, find_arm, named_arms
from edgebert.bench.options import (
    BUDGETS,
    BenchOptions,
    Budget,
    budget_of,
    cold_starts_of,
    processors,
    scenarios_of,
)
from edgebert.bench.schedule import order_of_blocks, plan_from_times, rewarm_queries
from edgebert.errors import BadDataError, InputNotFoundError, UsageError


def options(**changes: object) -> BenchOptions:
    return BenchOptions(data="digits", **changes)  # type: ignore[arg-type]  # tests give what fits, or what is to be refused


def budget(**changes: object) -> Budget:
    return budget_of(options(**changes))


def test_bench_options_give_queries_enough_for_p99_by_default() -> None:
    plan = plan_from_times([300_000, 2_000_000, 60_000_000], [300_000, 2_000_000, 60_000_000], budget(), threads=1)
    counted = [3 * 2 * plan.rounds * (queries - rewarm_queries(queries)) for queries in plan.queries]
    assert min(counted) >= 299


@pytest.mark.parametrize("change", [{"threads": -1}, {"queries": 0}, {"seconds": float("nan")}, {"seed": 2**32}])
def test_bench_options_refuse_what_is_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        options(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"scenarios": ("sprint",)},
        {"rigor": "sloppy"},
        {"launches": 5, "max_launches": 4},
        {"cpus": "0-x"},
        {"margin": -0.1},
        {"bound_share": 1.0},
    ],
)
def test_bench_options_refuse_what_means_nothing(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        options(**change)


def test_budget_of_takes_the_rigor_and_what_the_options_change() -> None:
    assert budget() == BUDGETS["quick"]
    assert budget(rigor="standard").max_launches == 14
    assert (budget(launches=7).launches, budget(launches=7).max_launches) == (7, 7)
    assert (budget(max_launches=2).launches, budget(max_launches=2).max_launches) == (2, 2)
    assert budget(rigor="publish", seconds=1.0).seconds == 1.0


def test_scenarios_of_puts_single_stream_first_and_keeps_soak_out_of_all() -> None:
    assert scenarios_of(options()) == ("single-stream",)
    assert scenarios_of(options(scenarios=("server", "single-stream", "paced"))) == ("single-stream", "paced", "server")
    assert scenarios_of(options(scenarios=("all",))) == ("single-stream", "multi-stream", "offline", "paced", "server")
    assert scenarios_of(options(scenarios=("all", "soak")))[-1] == "soak"
    assert scenarios_of(options(rigor="publish")) == ("single-stream", "offline")


def test_cold_starts_of_counts_them_where_they_are_asked_for() -> None:
    assert cold_starts_of(options()) == 0
    assert cold_starts_of(options(scenarios=("cold",))) == cold_starts_of(options(scenarios=("all",))) == 5
    assert cold_starts_of(options(rigor="publish")) == 10


def test_processors_reads_lists_and_ranges() -> None:
    assert processors("0-2, 5") == {0, 1, 2, 5}
    assert processors("") == set()


def test_plan_from_times_makes_blocks_of_ten_milliseconds_and_at_least_ten_queries() -> None:
    plan = plan_from_times([100_000, 100_000_000], [100_000, 100_000_000], budget(), threads=1)
    assert plan.queries == (100, 10)
    assert plan.expected_ns == (10_000_000, 1_000_000_000)


def test_plan_from_times_keeps_to_the_seconds_at_most() -> None:
    plan = plan_from_times([100_000_000], [250_000_000], budget(max_seconds=60.0), threads=1)
    assert 3 * 2 * plan.rounds * plan.expected_ns[0] <= 60 * 10**9
    assert plan.rounds == 4


def test_plan_from_times_runs_one_round_when_even_that_takes_too_long() -> None:
    assert plan_from_times([10**10], [10**10], budget(max_seconds=1.0), threads=1).rounds == 1


@pytest.mark.parametrize("arms", [1, 2, 3, 5])
def test_order_of_blocks_mirrors_every_round(arms: int) -> None:
    order = order_of_blocks(arms=arms, rounds=9, seed=3)
    assert order.shape == (9, 2 * arms)
    for blocks in order:
        assert blocks.tolist() == blocks[::-1].tolist()
        assert sorted(blocks[:arms]) == list(range(arms))


def test_order_of_blocks_is_drawn_from_the_seed_and_the_launch() -> None:
    first, again, other = (order_of_blocks(arms=3, rounds=8, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, order_of_blocks(arms=3, rounds=8, seed=1, launch=1))
    assert len({tuple(blocks[:3]) for blocks in first.tolist()}) > 1


def graph_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(json.dumps({}))
    return path


def test_arms_from_paths_names_arms_by_their_files_and_by_what_is_asked_for(tmp_path: Path) -> None:
    first, second = graph_file(tmp_path, "widgets.int8.onnx"), graph_file(tmp_path, "b.onnx")
    found = arms_from_paths([first, f"small one={second}"], ())
    assert [(arm.name, arm.path, arm.target) for arm in found] == [
        ("widgets.int8", first, None),
        ("small one", second, None),
    ]


def test_arms_from_paths_takes_a_path_that_holds_an_equals_sign(tmp_path: Path) -> None:
    path = graph_file(tmp_path, "lr=3.onnx")
    assert [arm.name for arm in arms_from_paths([str(path)], ())] == ["lr=3"]


def test_arms_from_paths_gives_each_target_an_arm(tmp_path: Path) -> None:
    path = graph_file(tmp_path, "a.onnx")
    found = arms_from_paths([path], ("cpu", "intel-cpu"))
    assert [(arm.name, arm.target) for arm in found] == [("a@cpu", "cpu"), ("a@intel-cpu", "intel-cpu")]
    assert [arm.name for arm in arms_from_paths([path], ("cpu",))] == ["a"]


def test_arms_from_paths_finds_the_bundles_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputNotFoundError, match="no bundle in the current folder"):
        arms_from_paths([], ())
    for name in ("b.edgebert", "a.edgebert", "other"):
        (tmp_path / name).mkdir()
    assert [(arm.name, arm.kind) for arm in arms_from_paths([], ())] == [("a", "bundle"), ("b", "bundle")]


def test_arms_from_paths_refuses_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="is a result"):
        arms_from_paths([graph_file(tmp_path, "r.json")], ())
    with pytest.raises(InputNotFoundError):
        arms_from_paths(["nowhere"], ())
    with pytest.raises(UsageError, match="intel-cpu"):
        arms_from_paths([graph_file(tmp_path, "a.onnx")], ("intel-cup",))
    with pytest.raises(UsageError, match="cannot name an arm"):
        arms_from_paths([f"a\x1b[2Jb={graph_file(tmp_path, 'a.onnx')}"], ())


def test_named_arms_numbers_a_name_that_is_taken() -> None:
    path = Path("x")
    found = named_arms([("a", path, "graph"), ("a", path, "checkpoint"), ("a", path, "bundle")], ())
    assert [arm.name for arm in found] == ["a", "a-2", "a-3"]


def test_named_arms_runs_a_checkpoint_once_whatever_the_targets() -> None:
    found = named_arms([("a", Path("a"), "checkpoint")], ("cpu", "intel-cpu"))
    assert [(arm.name, arm.target) for arm in found] == [("a", None)]


def test_control_of_is_the_same_artefact_under_a_name_of_its_own() -> None:
    (arm,) = named_arms([("a" * 80, Path("a"), "graph")], ("cpu",))
    control = control_of(arm)
    assert control.control
    assert (control.path, control.target, len(control.name)) == (arm.path, arm.target, 80)
    assert control.name.endswith("a (A/A)")


def test_find_arm_names_the_arms_there_are() -> None:
    assert find_arm(["a", "b"], "b", flag="baseline") == 1
    with pytest.raises(UsageError, match="--baseline c"):
        find_arm(["a", "b"], "c", flag="baseline")
