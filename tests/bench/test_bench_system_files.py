from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert._cpu_quota import quota_cpus
from edgebert.bench.environment.computer import Environment, read_environment
from edgebert.bench.environment.control_group import read_quota_usage
from edgebert.bench.environment.operating_system import chosen_flags, read_cgroup
from edgebert.bench.environment.system_files import SystemFiles, chosen, cpu_list, text_of_cpus

RecordedTree = Callable[[str], Path]
ALL = ("intel", "amd", "virtual", "laptop", "container-v2", "container-v1", "slices")


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "1,3,5-6"])
def test_cpu_list_and_text_of_cpus_are_inverse(text: str) -> None:
    assert text_of_cpus(cpu_list(text)) == text


@pytest.mark.parametrize("text", [None, "", "a-b", "-1", "9" * 30, "3-1"])
def test_cpu_list_is_empty_for_nonsense(text: str | None) -> None:
    assert cpu_list(text) == ()


def test_chosen_finds_the_entry_in_brackets() -> None:
    assert chosen("always [madvise] never") == "madvise"
    assert chosen("always madvise") is None


def test_paths_sorts_numbers_by_value(tmp_path: Path) -> None:
    for name in ("cpu10", "cpu2", "cpu1"):
        (tmp_path / "sys" / name).mkdir(parents=True)
    assert SystemFiles(tmp_path).paths("/sys/cpu*") == ["/sys/cpu1", "/sys/cpu2", "/sys/cpu10"]


def test_reader_sees_changes_and_survives_a_vanished_file(tmp_path: Path) -> None:
    (tmp_path / "value").write_text("1\n")
    reader = SystemFiles(tmp_path).reader("/value")
    assert reader.number() == 1
    (tmp_path / "value").write_text("23\n")
    assert reader.number() == 23
    reader.close()
    assert reader.number() is None
    assert SystemFiles(tmp_path).reader("/nothing").text() is None


def test_text_is_none_for_a_folder(tmp_path: Path) -> None:
    assert SystemFiles(tmp_path).text("/") is None


def test_read_environment_tells_the_kinds_of_cores_of_a_hybrid_processor(recorded_tree: RecordedTree) -> None:
    topology = read_environment(recorded_tree("intel")).device.cpu.topology
    assert topology is not None
    assert [(kind.name, kind.cpus, kind.max_khz) for kind in topology.core_types] == [
        ("performance", "0-1", 4_400_000),
        ("efficient", "2-3", 3_300_000),
    ]
    assert topology.siblings == ("0-1", "2", "3")
    assert (dict(topology.numa_nodes), topology.online, topology.isolated) == ({"node0": "0-3"}, "0-3", "3")


def test_read_environment_tells_arm_cores_apart_by_capacity(tmp_path: Path) -> None:
    for cpu, capacity in enumerate((1024, 1024, 400, 400)):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/core_id").write_text(str(cpu))
        (folder / "cpu_capacity").write_text(str(capacity))
    topology = read_environment(tmp_path).device.cpu.topology
    assert topology is not None
    assert [(kind.name, kind.cpus) for kind in topology.core_types] == [
        ("capacity 1024", "0-1"),
        ("capacity 400", "2-3"),
    ]


def test_read_environment_tells_settings_of_the_kernel_and_no_other_flag(recorded_tree: RecordedTree) -> None:
    settings = read_environment(recorded_tree("intel")).os.settings
    assert settings is not None
    assert (settings.aslr, settings.transparent_hugepages, settings.clock_source) == (2, "madvise", "tsc")
    assert settings.command_line == ("mitigations=off", "isolcpus=3")
    assert settings.vulnerabilities == {"spectre_v2": "Vulnerable"}
    assert settings.swap_bytes == 1_024_000


def test_chosen_flags_ends_where_those_of_the_first_process_begin() -> None:
    assert chosen_flags("nosmt root=UUID=secret -- mitigations=off") == ("nosmt",)


def test_read_environment_tells_the_limits_of_the_clock(recorded_tree: RecordedTree) -> None:
    clock = read_environment(recorded_tree("intel")).power_state.clock
    assert clock is not None
    assert (clock.hardware_min_khz, clock.hardware_max_khz) == (400_000, 4_400_000)
    assert (clock.min_khz, clock.max_khz) == (800_000, 4_400_000)


def test_read_environment_tells_battery_and_mains_of_a_laptop(recorded_tree: RecordedTree) -> None:
    power = read_environment(recorded_tree("laptop")).power_state
    assert power.ac is False
    assert power.battery is not None
    assert (power.battery.status, power.battery.charge_percent) == ("Discharging", 64)


@pytest.mark.parametrize(("battery", "expected"), [(True, False), (False, None)])
def test_read_environment_takes_an_unplugged_usb_port_for_mains_only_of_a_laptop(
    tmp_path: Path, battery: bool, expected: bool | None
) -> None:
    supplies = {"usb": ("USB", "0"), **({"BAT0": ("Battery", "1")} if battery else {})}
    for name, (kind, online) in supplies.items():
        folder = tmp_path / "sys/class/power_supply" / name
        folder.mkdir(parents=True)
        (folder / "type").write_text(kind)
        (folder / "online").write_text(online)
    assert read_environment(tmp_path).power_state.ac is expected


def test_read_cgroup_reads_a_container_of_version_2(recorded_tree: RecordedTree) -> None:
    files = SystemFiles(recorded_tree("container-v2"))
    found, usage = read_cgroup(files), read_quota_usage(files)
    assert (found.version, found.cpu_max, found.cpuset, found.memory_max_bytes) == (
        2,
        "150000 100000",
        "0-1",
        512 << 20,
    )
    assert usage is not None
    assert (usage.periods, usage.throttled_periods, usage.throttled_us) == (40, 12, 90_000)


def test_read_cgroup_reads_a_container_of_version_1(recorded_tree: RecordedTree) -> None:
    files = SystemFiles(recorded_tree("container-v1"))
    found, usage = read_cgroup(files), read_quota_usage(files)
    assert (found.version, found.cpu_max, found.cpuset, found.memory_max_bytes) == (1, "50000 100000", "1", None)
    assert usage is not None
    assert (usage.periods, usage.throttled_periods, usage.throttled_us) == (8, 3, 5_000)


def test_read_cgroup_takes_the_tightest_limit_of_the_groups_above(recorded_tree: RecordedTree) -> None:
    files = SystemFiles(recorded_tree("slices"))
    found, usage = read_cgroup(files), read_quota_usage(files)
    assert (found.cpu_max, found.memory_max_bytes) == ("200000 100000", 1_000_000_000)
    assert usage is not None
    assert (usage.periods, usage.throttled_periods, usage.throttled_us) == (13, 3, 12)


def test_read_cgroup_does_not_leave_its_folder(tmp_path: Path, recorded_tree: RecordedTree) -> None:
    root = recorded_tree("container-v2")
    (root / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    assert read_cgroup(SystemFiles(root)).cpu_max == "150000 100000"


@pytest.mark.parametrize(
    ("text", "expected"), [("50000 100000", 0.5), ("max 100000", None), (None, None), ("1 0", None)]
)
def test_quota_cpus_is_quota_over_period(text: str | None, expected: float | None) -> None:
    assert quota_cpus(text) == expected


def nones(value: object, path: str) -> list[str]:
    import dataclasses

    if value is None:
        return [path]
    if isinstance(value, tuple):
        return [found for entry in value for found in nones(entry, path)]
    if dataclasses.is_dataclass(value):
        return [
            found
            for entry in dataclasses.fields(value)
            for found in nones(getattr(value, entry.name), f"{path}.{entry.name}".lstrip("."))
        ]
    return []


def unexplained(environment: Environment) -> set[str]:
    return set(nones(environment, "")) - {"virtualised"} - set(environment.not_available)


@pytest.mark.parametrize("name", ALL)
def test_read_environment_explains_every_none_of_a_recorded_computer(recorded_tree: RecordedTree, name: str) -> None:
    assert unexplained(read_environment(recorded_tree(name))) == set()


def test_read_environment_explains_every_none_of_nothing_and_of_this_computer(tmp_path: Path) -> None:
    assert unexplained(read_environment(tmp_path)) == set()
    assert unexplained(read_environment()) == set()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_read_environment_tells_where_this_process_may_run() -> None:
    process = read_environment().process
    assert process is not None
    assert cpu_list(process.affinity) == tuple(sorted(os.sched_getaffinity(0)))
