from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bench.environment.sensors import (
    SOURCES,
    BatteryState,
    Clock,
    Quota,
    Rapl,
    Steal,
    Temperature,
    Throttle,
    WaitTime,
    merged_reasons,
    open_sources,
    read_throttle_events,
)
from edgebert.bench.environment.source import MISSING, Source
from edgebert.bench.environment.system_files import SystemFiles

RecordedTree = Callable[[str], Path]


def values(source: Source) -> dict[str, int]:
    return dict(zip(source.columns, source.read(), strict=True))


def test_clock_reads_the_fastest_and_the_mean_of_the_watched_processors(recorded_tree: RecordedTree) -> None:
    files = SystemFiles(recorded_tree("intel"))
    assert values(Clock(files)) == {"clock_khz": 4_200_000, "clock_mean_khz": 3_075_000}
    assert values(Clock(files, {2, 3})) == {"clock_khz": 3_200_000, "clock_mean_khz": 2_000_000}


def test_clock_reads_cpuinfo_where_there_is_no_cpufreq(recorded_tree: RecordedTree) -> None:
    source = Clock(SystemFiles(recorded_tree("laptop")))
    assert values(source) == {"clock_khz": 3_400_001, "clock_mean_khz": 2_099_994}
    assert source.origins["clock_khz"] == "/proc/cpuinfo cpu MHz"


def test_clock_does_not_believe_the_cpuinfo_of_a_virtual_machine(recorded_tree: RecordedTree) -> None:
    source = Clock(SystemFiles(recorded_tree("virtual")))
    assert source.columns == ()
    assert source.reasons == {"clock_khz": "virtualised", "clock_mean_khz": "virtualised"}


def test_clock_is_missing_when_a_processor_went_offline(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    source = Clock(SystemFiles(root), {0})
    (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    assert values(source) == {"clock_khz": MISSING, "clock_mean_khz": MISSING}


@pytest.mark.parametrize(
    ("name", "expected", "origin"),
    [
        ("intel", 61_000, "hwmon coretemp"),
        ("amd", 65_000, "hwmon k10temp"),  # not Tctl, which has 90 degrees
        ("laptop", 88_000, "thermal zones x86_pkg_temp"),  # not the board's 99, nor the sensor that is off
    ],
)
def test_temperature_is_the_processors_hottest(
    recorded_tree: RecordedTree, name: str, expected: int, origin: str
) -> None:
    source = Temperature(SystemFiles(recorded_tree(name)))
    assert values(source) == {"temperature_mc": expected}
    assert source.origins == {"temperature_mc": origin}


def test_throttle_counts_each_core_and_each_package_once(recorded_tree: RecordedTree) -> None:
    # Processors 0 and 1 are one core and show the same 7 events; all four show the package's 5.
    assert values(Throttle(SystemFiles(recorded_tree("intel")))) == {"throttle_events": 7 + 1 + 5, "throttle_ms": 130}


def test_throttle_says_that_amd_has_no_counters(recorded_tree: RecordedTree) -> None:
    assert "Intel" in Throttle(SystemFiles(recorded_tree("amd"))).reasons["throttle_events"]


def test_quota_reads_both_versions(recorded_tree: RecordedTree) -> None:
    assert values(Quota(SystemFiles(recorded_tree("container-v2")))) == {"quota_events": 12, "quota_us": 90_000}
    assert values(Quota(SystemFiles(recorded_tree("container-v1")))) == {"quota_events": 3, "quota_us": 5_000}
    assert Quota(SystemFiles(recorded_tree("intel"))).columns == ()


def test_read_throttle_events_adds_heat_and_quota(recorded_tree: RecordedTree) -> None:
    assert read_throttle_events(SystemFiles(recorded_tree("intel"))) == 13
    assert read_throttle_events(SystemFiles(recorded_tree("container-v2"))) == 12
    assert read_throttle_events(SystemFiles(recorded_tree("virtual"))) is None


def test_steal_and_pressure_are_counters(recorded_tree: RecordedTree) -> None:
    files = SystemFiles(recorded_tree("virtual"))
    assert values(Steal(files)) == {"steal_ticks": 25}
    assert values(WaitTime(files)) == {"pressure_cpu_us": 1_234_567, "pressure_memory_us": 10, "pressure_io_us": 77}


def zone(root: Path, name: str) -> Path:
    return root / f"sys/class/powercap/intel-rapl:{name}"


def test_rapl_reads_every_scope_since_it_was_opened(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    source = Rapl(SystemFiles(root))
    assert set(source.columns) == {"energy_package_uj", "energy_core_uj", "energy_uncore_uj", "energy_psys_uj"}
    assert "no such scope" in source.reasons["energy_dram_uj"]
    (zone(root, "0") / "energy_uj").write_text("5000\n")
    (zone(root, "0:0") / "energy_uj").write_text("900\n")
    found = values(source)
    # The same package below intel-rapl-mmio is not added.
    assert (found["energy_package_uj"], found["energy_core_uj"], found["energy_psys_uj"]) == (4_000, 500, 0)


def test_rapl_follows_a_counter_that_wraps(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    limit = int((zone(root, "0") / "max_energy_range_uj").read_text())
    (zone(root, "0") / "energy_uj").write_text(f"{limit - 100}\n")
    source = Rapl(SystemFiles(root))
    (zone(root, "0") / "energy_uj").write_text("50\n")
    assert values(source)["energy_package_uj"] == 150
    (zone(root, "0") / "energy_uj").write_text("80\n")
    assert values(source)["energy_package_uj"] == 180
    (zone(root, "0") / "energy_uj").write_text("10\n")
    assert values(source)["energy_package_uj"] == 180 + limit - 70


def test_rapl_is_missing_after_a_wrap_of_unknown_range(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    (zone(root, "0") / "max_energy_range_uj").unlink()
    source = Rapl(SystemFiles(root))
    (zone(root, "0") / "energy_uj").write_text("10\n")
    assert values(source)["energy_package_uj"] == MISSING
    (zone(root, "0") / "energy_uj").write_text("9000\n")
    assert values(source)["energy_package_uj"] == MISSING


def test_rapl_adds_up_packages_and_dies(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("amd")
    source = Rapl(SystemFiles(root))
    for name in ("0", "1"):
        (root / f"sys/class/powercap/intel-rapl/intel-rapl:{name}/energy_uj").write_text("2000\n")
    assert values(source)["energy_package_uj"] == 1_000 + 1_500


def test_rapl_gives_the_rule_that_makes_it_readable(
    recorded_tree: RecordedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: Path, *arguments: int) -> int:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    source = Rapl(SystemFiles(recorded_tree("intel")))
    assert source.columns == ()
    assert "root only" in source.reasons["energy_package_uj"]
    assert "udevadm trigger" in source.reasons["energy_package_uj"]
    assert "no such scope" in source.reasons["energy_dram_uj"]


def test_rapl_has_no_sum_when_one_of_its_packages_is_unreadable(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("amd")
    (root / "sys/class/powercap/intel-rapl/intel-rapl:1/energy_uj").write_text("")
    source = Rapl(SystemFiles(root))
    assert source.columns == ("energy_core_uj",)
    assert "energy_package_uj" in source.reasons


def test_battery_reads_the_computers_own(recorded_tree: RecordedTree) -> None:
    # 1.5 A at 12 V; the mouse has 5 percent
    assert values(BatteryState(SystemFiles(recorded_tree("laptop")))) == {
        "battery_percent": 64,
        "battery_power_uw": 18_000_000,
    }


@pytest.mark.parametrize("tree", ["intel", "amd", "virtual", "laptop", "container-v1", "container-v2", None])
def test_open_sources_gives_each_sensor_a_value_or_a_reason(
    recorded_tree: RecordedTree, tmp_path: Path, tree: str | None
) -> None:
    sources = open_sources(SystemFiles(recorded_tree(tree) if tree else tmp_path))
    columns = [name for source in sources for name in source.columns]
    reasons = merged_reasons(sources)
    assert sorted([*columns, *reasons]) == sorted(name for source in SOURCES for name in source.names)
    assert all(reasons.values())
    for source in sources:
        assert len(source.read()) == len(source.columns)
        source.close()


def test_open_sources_takes_another_platform_as_one_more_class(tmp_path: Path) -> None:
    class Rail(Source):
        names = ("power_vdd_in_uw",)

        def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
            self._offer("power_vdd_in_uw", "a rail")

        def read(self) -> list[int]:
            return [5]

    *_, rail = open_sources(SystemFiles(tmp_path), sources=(*SOURCES, Rail))
    assert values(rail) == {"power_vdd_in_uw": 5}


@pytest.mark.parametrize("text", ["", "\x00\xff", "-", "9" * 400, "some avg10=x total=", "cpu a b c d e f g h"])
def test_sources_survive_files_of_nonsense(recorded_tree: RecordedTree, text: str) -> None:
    trees = json.loads(Path(__file__).with_name("system_trees.json").read_text(encoding="utf-8"))
    root = recorded_tree("intel")
    sources = open_sources(SystemFiles(root))
    for path in trees["intel"]:
        (root / path).write_text(text, encoding="utf-8")
    for source in (*sources, *open_sources(SystemFiles(root))):
        assert all(value >= MISSING for value in source.read())
