"""A Jetson's facts in a result: energy from end to end, comparison, status, report, and the command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgebert import doctor
from edgebert.bench import energy, harness
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.comparison.comparability import deciding, surrounding_differences
from edgebert.bench.comparison.validation import check_result
from edgebert.bench.environment.computer import read_environment
from edgebert.bench.environment.difference import differences
from edgebert.bench.environment.jetson.facts import jetson_facts, jetson_refusal
from edgebert.bench.environment.sampler_process import Sampler
from edgebert.bench.harness import result_from_arms
from edgebert.bench.options import BenchOptions
from edgebert.bench.report.energy import energy_table
from edgebert.bench.report.environment import environment_of
from edgebert.bench.report.figures_timeline import read_strips
from edgebert.bench.report.words import scenario_sentences
from edgebert.bench.result import read_result_samples
from edgebert.bench.samples import Samples
from edgebert.bench.scenarios import plan
from edgebert.bench.schema import Energy, Result
from edgebert.cli import app
from edgebert.errors import UnavailableError

Board = Callable[[str], Path]
Synthetic = Callable[..., tuple[Result, Samples]]
ScriptArm = Callable[..., Path]

MEASURED = Energy(
    scope="sum of monitored rails",
    rails=("VDD_GPU_SOC", "VDD_CPU_CV"),
    idle_w=5.25,
    idle_before_w=5.0,
    idle_after_w=5.5,
    mean_w=15.0,
    gross_j_per_image=0.0432,
    above_idle_j_per_image=0.0281,
    above_idle_ci95=(0.0271, 0.0291),
    images=2_000,
    windows=4,
    seconds=36.0,
    coverage=0.99,
    sample_interval_ms=100.0,
    change_interval_ms=None,
)


@pytest.fixture
def on_board(synthetic: Synthetic, board: Board) -> Callable[[str], Result]:
    """Return a function that gives a made-up result with the surroundings of a board."""

    def of(name: str) -> Result:
        made, _ = synthetic()
        environment = read_environment(board(name))
        return replace(made, device=environment.device, power_state=environment.power_state)

    return of


def with_energy(result: Result, measured: Energy) -> Result:
    first = result.arms[0]
    scenario = replace(first.scenarios[0], name="energy", energy=measured)
    return replace(result, arms=(replace(first, scenarios=(*first.scenarios, scenario)), *result.arms[1:]))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the windows and idle times of energy last a second."""
    monkeypatch.setattr(harness, "IDLE_S", 1.0)
    monkeypatch.setattr(plan, "WINDOW_S", 1.0)
    for name, value in (("LEAD_S", 0.1), ("MIN_WINDOW_S", 0.5), ("MIN_COVERAGE", 0.0)):
        monkeypatch.setattr(energy, name, value)


def measured_on(
    root: Path,
    arm: Path,
    quick: BenchOptions,
    worker_command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    **changes: object,
) -> Path:
    monkeypatch.setattr(harness, "Sampler", functools.partial(Sampler, root=root))
    output = arm.with_name("r.json")
    options = replace(quick, **changes)  # type: ignore[arg-type]  # the fields that a test names
    result_from_arms([arm], output, options, worker_command=worker_command)
    return output


@pytest.mark.usefixtures("short")
def test_result_from_arms_measures_energy_that_validate_makes_again(
    board: Board, script_arm: ScriptArm, quick: BenchOptions, worker_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = measured_on(
        board("agx-thor"), script_arm("arm", latency_ms=2.0), quick, worker_command, monkeypatch, scenarios=("energy",)
    )
    content = json.loads(output.read_text(encoding="utf-8"))
    result = from_json(Result, content, what="it")
    scenario = result.arms[0].scenario("energy")
    assert scenario is not None
    assert scenario.energy is not None
    found = scenario.energy
    # The tree does not change, so everything is idle power.
    assert (found.scope, found.rails, found.windows) == ("input rail of the board", ("VIN",), 2)
    assert [found.idle_w, found.mean_w] == pytest.approx([28.906, 28.906])
    assert found.above_idle_j_per_image == pytest.approx(0.0, abs=1e-9)
    assert 28.906 / 500 < found.gross_j_per_image < 28.906
    samples = read_result_samples(output, result)
    assert len(samples["idle_start_ns"]) == 2
    assert (samples["telemetry_power_vdd_gpu_uw"] == -396_000).all()
    assert check_result(output)


def test_result_from_arms_refuses_energy_where_no_rail_can_be_read(
    tmp_path: Path,
    script_arm: ScriptArm,
    quick: BenchOptions,
    worker_command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bare").mkdir()
    arm = script_arm("arm")
    with pytest.raises(UnavailableError, match="no power rail can be read here"):
        measured_on(tmp_path / "bare", arm, quick, worker_command, monkeypatch, scenarios=("energy",))
    assert not arm.with_name("r.json").exists()


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("power_state.nvpmodel.name", lambda r: replace(r, power_state=replace(r.power_state, nvpmodel=replace(r.power_state.nvpmodel, name="15W")))),
        ("power_state.jetson_clocks", lambda r: replace(r, power_state=replace(r.power_state, jetson_clocks=False))),
        ("power_state.gpu_clock.max_khz", lambda r: replace(r, power_state=replace(r.power_state, gpu_clock=replace(r.power_state.gpu_clock, max_khz=9)))),
        ("device.jetson.module", lambda r: replace(r, device=replace(r.device, jetson=replace(r.device.jetson, module="p3701-0000")))),
        ("device.jetson.l4t", lambda r: replace(r, device=replace(r.device, jetson=replace(r.device.jetson, l4t="36.4.3")))),
    ],
)  # fmt: skip
def test_results_of_another_mode_clock_or_module_are_not_comparable(
    on_board: Callable[[str], Result], path: str, changed: Callable[[Result], Result]
) -> None:
    first = on_board("agx-orin")
    second = changed(first)
    found = deciding(surrounding_differences(first, first.arms[0], second, second.arms[0], cross_device=False))
    assert [entry.path for entry in found] == [path]
    assert found[0].why


def test_differences_of_tensorrt_decide_for_arms_that_it_runs_only(on_board: Callable[[str], Result]) -> None:
    first = on_board("agx-orin")
    assert first.device.jetson is not None
    second = replace(first, device=replace(first.device, jetson=replace(first.device.jetson, tensorrt="10.3.0.30")))
    (found,) = differences(first, second)
    assert (found.path, found.weight) == ("device.jetson.tensorrt", "informs")
    arms = tuple(replace(arm, backend="tensorrt") for arm in first.arms)
    (found,) = differences(replace(first, arms=arms), replace(second, arms=arms))
    assert found.weight == "decides"


def test_differences_of_a_mode_that_one_result_does_not_know_inform(on_board: Callable[[str], Result]) -> None:
    first = on_board("agx-orin")
    second = replace(first, power_state=replace(first.power_state, jetson_clocks=None))
    (found,) = differences(first, second)
    assert (found.path, found.weight) == ("power_state.jetson_clocks", "informs")


@pytest.mark.parametrize("name", ["orin-nano", "orin-nx", "agx-orin", "agx-thor"])
def test_facts_of_a_board_pass_through_json(on_board: Callable[[str], Result], name: str) -> None:
    result = with_energy(on_board(name), MEASURED)
    again = from_json(Result, json.loads(json.dumps(to_json(result))), what="it")
    assert again == result


def test_result_without_a_jetsons_fields_is_read(on_board: Callable[[str], Result]) -> None:
    content = json.loads(json.dumps(to_json(on_board("agx-orin"))))
    del content["device"]["jetson"]
    for name in ("nvpmodel", "jetson_clocks", "gpu_clock"):
        del content["power_state"][name]
    read = from_json(Result, content, what="it")
    assert (read.device.jetson, read.power_state.nvpmodel) == (None, None)


def test_environment_of_shows_the_board(on_board: Callable[[str], Result]) -> None:
    groups: Mapping[str, dict[str, str]] = {
        group.title: {name: cell.text for name, cell in group.entries}
        for group in environment_of(on_board("orin-nano"))
    }
    assert groups["Jetson"]["power mode"] == "MAXN_SUPER (2)"
    assert groups["Jetson"]["JetPack"] == "6.2"
    assert groups["Jetson"]["clocks held"] == "no"
    assert groups["Jetson"]["power from"] == "VDD_IN, input rail of the module"


def test_environment_of_has_no_group_for_another_computer(synthetic: Synthetic) -> None:
    assert "Jetson" not in {group.title for group in environment_of(synthetic()[0])}


def test_energy_table_calls_a_sum_a_sum_and_tells_how_it_was_sampled(on_board: Callable[[str], Result]) -> None:
    table = energy_table(with_energy(on_board("orin-nx"), MEASURED))
    assert table is not None
    (row,) = table.rows
    assert (row[1].text, row[1].below) == ("28.1", "27.1 to 29.1") or row[1].below.startswith("27.1")
    assert (row[6].text, row[6].below) == ("VDD_GPU_SOC + VDD_CPU_CV", "sum of monitored rails")
    assert "never changed" in row[6].remark
    assert table.caption.endswith("ina3221 70 ms.")


def test_energy_table_says_that_the_driver_tells_no_interval(on_board: Callable[[str], Result]) -> None:
    table = energy_table(with_energy(on_board("orin-nano"), replace(MEASURED, above_idle_ci95=None, windows=2)))
    assert table is not None
    assert "not told by the driver" in table.caption
    assert table.rows[0][1].below == "no interval of 2 windows"
    assert energy_table(on_board("orin-nano")) is None


def test_scenario_sentences_name_the_rails(on_board: Callable[[str], Result]) -> None:
    told = " ".join(scenario_sentences(with_energy(on_board("agx-orin"), MEASURED)))
    assert "28.1 mJ above idle (VDD_GPU_SOC + VDD_CPU_CV, sum of monitored rails; idle 5.25 W)" in told


def test_read_strips_show_the_rails_that_make_up_the_power(synthetic: Synthetic) -> None:
    _, samples = synthetic()
    seen = {
        f"telemetry_{name}": np.array([5, 6, 7])
        for name in ("t_ns", "power_vdd_in_uw", "power_vdd_soc_uw", "gpu_clock_khz")
    }
    names = [strip.name for strip in read_strips(Samples({**samples.columns, **seen}))]
    assert names == ["GPU clock", "power of VDD_IN"]


@pytest.fixture
def cli_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], CliRunner]:
    """Return a function that makes the command line see a board."""

    def see(root: Path) -> CliRunner:
        monkeypatch.setattr(doctor, "jetson_facts", functools.partial(jetson_facts, root))
        monkeypatch.setattr(doctor, "jetson_refusal", functools.partial(jetson_refusal, root))
        return CliRunner()

    return see


def test_targets_shows_the_device(board: Board, cli_on: Callable[[Path], CliRunner]) -> None:
    runner = cli_on(board("agx-thor"))
    assert "120W (1)" in runner.invoke(app, ["targets"]).stdout
    device = json.loads(runner.invoke(app, ["targets", "--json"]).stdout)["device"]
    assert device["jetson module"] == "AGX Thor, p3834-0008, Thor, tegra264"


def test_targets_refuses_an_old_jetpack_by_name(board: Board, cli_on: Callable[[Path], CliRunner]) -> None:
    root = board("orin-nano")
    (root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 3.0, GCID: 1\n", encoding="utf-8")
    states = json.loads(cli_on(root).invoke(app, ["targets", "--json"]).stdout)["targets"]
    reason = next(state["reason"] for state in states if state["name"] == "jetson")
    assert reason == "L4T 36.3.0 (JetPack 6.0) is older than JetPack 6.1 (L4T 36.4.0), which brings TensorRT 10.3"


def test_doctor_shows_the_device(board: Board, cli_on: Callable[[Path], CliRunner]) -> None:
    computer = json.loads(cli_on(board("orin-nano")).invoke(app, ["doctor", "--json"]).stdout)["computer"]
    assert computer["jetson l4t"] == "36.4.3 (JetPack 6.2)"
    assert computer["jetson power from"] == "VDD_IN, input rail of the module"
