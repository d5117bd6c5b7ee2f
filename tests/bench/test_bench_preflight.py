from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgebert.bench.environment import preflight as preflight_module
from edgebert.bench.environment.preflight import (
    Check,
    Moment,
    Observation,
    checks_of,
    exit_code,
    observe,
    preflight,
    text_of_checks,
    worst,
)
from edgebert.bench.environment.preflight_checks import CHECKS
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.cli import app

RecordedTree = Callable[[str], Path]


def seen(root: Path, usable: tuple[int, ...] = (0, 1, 2, 3)) -> Observation:
    return replace(
        observe(SystemFiles(root), watch_s=0.0),
        usable=usable,
        environ={},
        elapsed_s=0.5,
        temporary="/tmp",
        free_bytes=9 << 30,
    )


def by_name(observation: Observation) -> dict[str, Check]:
    return {check.name: check for check in checks_of(observation)}


def test_preflight_passes_a_computer_that_is_set_up(recorded_tree: RecordedTree) -> None:
    checks = by_name(seen(recorded_tree("intel"), usable=(0, 2, 3)))
    assert {name: check.state for name, check in checks.items() if check.state not in ("pass", "unknown")} == {
        "affinity": "warn"  # three of four processors
    }
    assert checks["thermal headroom"].found == "39 °C: 61 of 100 °C (hwmon coretemp)"
    assert checks["energy counters"].state == "pass"
    assert checks["busy processes"].state == "unknown"  # the recorded tree has no processes


def test_preflight_gives_the_commands_for_a_computer_that_is_not(recorded_tree: RecordedTree) -> None:
    checks = by_name(seen(recorded_tree("amd")))
    fixes = {name: check.fix for name, check in checks.items() if check.state == "warn"}
    assert fixes["governor"] == "sudo cpupower frequency-set -g performance"
    assert fixes["turbo"] == "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"
    assert fixes["ASLR"] == "echo 2 | sudo tee /proc/sys/kernel/randomize_va_space"
    assert fixes["transparent huge pages"] == "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    assert fixes["clock source"].startswith("echo tsc | sudo tee /sys/devices/system/clocksource/")
    assert fixes["SMT siblings"] == "taskset -c 0-1 edgebert bench …"
    assert checks["energy preference"].state == "unknown"


def test_preflight_names_the_intel_switch_of_turbo(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    (root / "sys/devices/system/cpu/intel_pstate/no_turbo").write_text("0\n")
    assert by_name(seen(root))["turbo"].fix == "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"


def test_preflight_warns_of_a_laptop_on_its_battery_that_is_hot(recorded_tree: RecordedTree) -> None:
    checks = by_name(seen(recorded_tree("laptop"), usable=(0, 1)))
    assert (checks["power supply"].state, checks["power supply"].found) == ("warn", "battery")
    assert (checks["thermal headroom"].state, checks["thermal headroom"].found[:5]) == ("warn", "9 °C:")


def test_preflight_says_virtualised_for_what_a_virtual_machine_hides(recorded_tree: RecordedTree) -> None:
    checks = by_name(seen(recorded_tree("virtual"), usable=(0, 1)))
    assert checks["virtual machine"].state == "warn"
    for name in ("governor", "energy preference", "turbo", "energy counters", "thermal headroom", "throttling"):
        assert (checks[name].state, "virtualised" in checks[name].why) == ("unknown", True), name
    assert checks["clock source"].state == "pass"


@pytest.mark.parametrize(("name", "threads"), [("container-v2", 1), ("container-v1", 1), ("slices", 2)])
def test_preflight_warns_of_a_quota_below_the_usable_processors(
    recorded_tree: RecordedTree, name: str, threads: int
) -> None:
    check = by_name(seen(recorded_tree(name)))["processor quota"]
    assert (check.state, check.fix) == ("warn", f"edgebert bench … --threads {threads}")


def test_preflight_fails_while_the_quota_or_heat_stops_the_processor(recorded_tree: RecordedTree) -> None:
    observation = seen(recorded_tree("container-v2"))
    later = replace(observation, after=replace(observation.after, throttle_events=14))
    assert by_name(later)["throttling"].state == "fail"
    assert by_name(later)["throttling"].found == "2 events in 0.5 s"
    assert exit_code(checks_of(later)) == 1
    assert exit_code(checks_of(observation)) == 0


@pytest.mark.parametrize(("free_mb", "state"), [(50, "fail"), (500, "warn"), (5_000, "pass")])
def test_preflight_weighs_disk_and_memory(recorded_tree: RecordedTree, free_mb: int, state: str) -> None:
    root = recorded_tree("intel")
    assert by_name(replace(seen(root), free_bytes=free_mb << 20))["free disk"].state == state
    (root / "proc/meminfo").write_text(f"MemAvailable:   {free_mb << 10} kB\n")
    assert by_name(seen(root))["free memory"].state == state


@pytest.mark.parametrize(("stolen", "state"), [(0, "pass"), (1, "pass"), (2, "warn")])
def test_preflight_warns_of_more_than_a_percent_of_steal(recorded_tree: RecordedTree, stolen: int, state: str) -> None:
    after = Moment(ticks=(25 + stolen, 850, 1_025 + 100), throttle_events=None, processes={})
    assert by_name(replace(seen(recorded_tree("virtual")), after=after))["steal"].state == state


def test_preflight_names_busy_processes_and_nothing_else_of_them(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    folder = root / "proc/4242"
    folder.mkdir()
    line = "4242 (my (odd) name) R 1 " + " ".join(["0"] * 9) + " {user} 5 0 0 20 0 1 0 777 0 0\n"
    (folder / "stat").write_text(line.format(user=100))
    (folder / "cmdline").write_text("--password=secret")
    observation = seen(root)
    assert observation.after.processes == {(4242, "777"): ("my (odd) name", 105)}
    assert by_name(observation)["busy processes"].state == "pass"
    later = replace(observation, after=replace(observation.after, processes={(4242, "777"): ("my (odd) name", 145)}))
    check = by_name(later)["busy processes"]
    assert (check.state, check.found) == ("warn", "my (odd) name 80%")


def test_preflight_does_not_take_a_new_process_of_an_old_number_for_the_same(recorded_tree: RecordedTree) -> None:
    observation = seen(recorded_tree("intel"))
    before = replace(observation.before, processes={(7, "1"): ("a", 0)})
    after = replace(observation.after, processes={(7, "2"): ("b", 900)})
    assert by_name(replace(observation, before=before, after=after))["busy processes"].state == "pass"


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, "pass"),
        ({"OMP_NUM_THREADS": "4"}, "pass"),  # the harness sets it for its workers
        ({"KMP_AFFINITY": "compact"}, "warn"),
        ({"GOMP_CPU_AFFINITY": "0"}, "warn"),
        ({"OMP_PROC_BIND": "true"}, "warn"),
        ({"TBB_NUM_THREADS": "1"}, "warn"),
        ({"MKL_DYNAMIC": "true"}, "warn"),
        ({"OPENBLAS_CORETYPE": "Haswell"}, "warn"),
    ],
)
def test_preflight_warns_of_variables_that_fight_with_threads(
    recorded_tree: RecordedTree, environ: dict[str, str], state: str
) -> None:
    check = by_name(replace(seen(recorded_tree("intel")), environ=environ))["thread variables"]
    assert check.state == state
    if state == "warn":
        assert check.fix == f"unset {next(iter(environ))}"


@pytest.mark.parametrize(("used_kb", "state"), [(600, "pass"), (700_000, "warn")])
def test_preflight_warns_of_swap_in_use(recorded_tree: RecordedTree, used_kb: int, state: str) -> None:
    root = recorded_tree("intel")
    (root / "proc/meminfo").write_text(f"SwapTotal: 1000000 kB\nSwapFree: {1_000_000 - used_kb} kB\n")
    assert by_name(seen(root))["swap"].state == state


def test_preflight_warns_of_load_and_pressure(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    (root / "proc/loadavg").write_text("1.70 0.10 0.09 1/300 999\n")
    (root / "proc/pressure/cpu").write_text("some avg10=40.25 avg60=0.10 avg300=0.05 total=1\n")
    checks = by_name(seen(root))
    assert checks["load average"].state == checks["pressure"].state == "warn"
    assert checks["pressure"].found.startswith("cpu 40.2%")


def test_preflight_warns_of_energy_that_only_root_may_read(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")
    check = by_name(seen(root))["energy counters"]
    assert check.state == "warn"
    assert "/etc/udev/rules.d/" in check.fix


@pytest.mark.parametrize("name", ["intel", "amd", "virtual", "laptop", "container-v2", "container-v1", "slices"])
def test_preflight_says_why_for_each_check_and_how_for_each_it_can_mend(recorded_tree: RecordedTree, name: str) -> None:
    checks = checks_of(seen(recorded_tree(name)))
    assert len(checks) == len(CHECKS) == len({check.name for check in checks})
    assert all(check.why and check.found for check in checks)
    assert not [check for check in checks if check.fix and check.state in ("pass", "unknown")]


def test_preflight_knows_nothing_of_an_empty_folder_and_raises_nothing(tmp_path: Path) -> None:
    states = {name: check.state for name, check in by_name(seen(tmp_path)).items()}
    assert {name for name, state in states.items() if state != "unknown"} == {
        "free disk",
        "thread variables",
        "virtual machine",
    }


def test_preflight_changes_no_file(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("amd")
    before = {path: path.read_text() for path in root.rglob("*") if path.is_file()}
    preflight(root)
    assert {path: path.read_text() for path in root.rglob("*") if path.is_file()} == before


def check(name: str, state: str) -> Check:
    return Check(name=name, state=state, found="x", why="because", fix="do" if state == "warn" else "")  # type: ignore[arg-type]  # a state


def test_worst_and_exit_code_follow_the_worst_check() -> None:
    assert worst([check("a", "pass"), check("b", "unknown")]) == "pass"
    assert worst([check("a", "pass"), check("b", "warn")]) == "warn"
    assert (exit_code([check("b", "warn")]), exit_code([check("b", "fail"), check("a", "warn")])) == (0, 1)


def test_text_of_checks_is_aligned_and_has_the_commands(recorded_tree: RecordedTree) -> None:
    text = text_of_checks(checks_of(seen(recorded_tree("amd"))))
    table, *rest = text.split("\n\n")
    starts = {re.match(r"\S+ +", line)[0].__len__() for line in table.splitlines()}  # type: ignore[index]  # each line matches
    assert len(starts) == 1
    states = [line.split()[0] for line in table.splitlines()[1:]]
    assert states == sorted(states, key=("fail", "warn", "unknown", "pass").index)
    assert any("  sudo cpupower frequency-set -g performance" in note for note in rest)
    assert text.endswith("nothing was changed")


def planted(*checks: Check) -> Callable[[], tuple[Check, ...]]:
    return lambda: checks


@pytest.mark.parametrize(("state", "code"), [("pass", 0), ("warn", 0), ("fail", 1)])
def test_doctor_bench_exits_by_the_worst_check(monkeypatch: pytest.MonkeyPatch, state: str, code: int) -> None:
    monkeypatch.setattr(preflight_module, "preflight", planted(check("swap", state)))
    done = CliRunner().invoke(app, ["doctor", "--bench", "--json"])
    assert done.exit_code == code
    answer = json.loads(done.stdout)
    assert (answer["state"], answer["checks"][0]["name"]) == (state, "swap")


def test_doctor_bench_shows_this_computer() -> None:
    done = CliRunner().invoke(app, ["doctor", "--bench"])
    assert done.exit_code in (0, 1)
    assert done.stdout.startswith("state ")
    assert "nothing was changed" in done.stdout
    assert "extra" not in done.stdout  # the packages are another question
