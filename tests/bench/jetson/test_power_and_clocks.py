from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bench.environment.jetson.clocks import find_gpu, read_locked
from edgebert.bench.environment.jetson.heat import alerts_now, read_temperatures
from edgebert.bench.environment.jetson.power_mode import defined_modes, highest, read_power_mode
from edgebert.bench.environment.jetson.programs import (
    JETSON_CLOCKS_SHOW,
    NVPMODEL_QUERY,
    answer_of,
    are_locked,
    mode_of_answer,
    shown_clocks,
)
from edgebert.bench.environment.jetson.rails import find_rails, scope_of
from edgebert.bench.environment.system_files import SystemFiles

Board = Callable[[str], Path]

# What `jetson_clocks --show` prints (tensorrt_jetson.md, section 8.4).
SHOWN = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=1510400 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=624750000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=62
NV Power Mode: 15W
"""
HELD = SHOWN.replace("MinFreq=306000000", "MinFreq=624750000").replace("CurrentFreq=306000000", "CurrentFreq=624750000")


def test_mode_of_answer_reads_name_and_number() -> None:
    assert mode_of_answer("NV Power Mode: MAXN_SUPER\n2\n") == (2, "MAXN_SUPER")
    assert mode_of_answer("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n") == (0, "15W")


@pytest.mark.parametrize("answer", ["", "NVPM ERROR: request for bad power mode 2", "NV Power Mode: 15W\n", "2\n"])
def test_mode_of_answer_is_none_for_anything_else(answer: str) -> None:
    assert mode_of_answer(answer) is None


def test_shown_clocks_reads_every_unit() -> None:
    found = shown_clocks(SHOWN)
    assert set(found) == {"cpu0", "GPU", "EMC"}
    assert (found["GPU"].lowest, found["GPU"].highest, found["GPU"].is_held) == (306_000_000, 624_750_000, False)
    assert (found["EMC"].current, found["EMC"].override) == (2_133_000_000, False)


@pytest.mark.parametrize(
    ("shown", "locked"),
    [
        (SHOWN, False),
        (HELD, False),  # the memory's clock may move
        (HELD.replace("FreqOverride=0", "FreqOverride=1"), True),
        (SHOWN.replace("FreqOverride=0", "FreqOverride=1"), False),
        (HELD.replace(" FreqOverride=0", ""), None),
        ("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n", None),
        ("", None),
    ],
)
def test_are_locked_asks_for_gpu_and_memory(shown: str, locked: bool | None) -> None:
    assert are_locked(shown_clocks(shown)) is locked


def test_answer_of_starts_no_program_for_a_recorded_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    assert answer_of(SystemFiles(tmp_path), NVPMODEL_QUERY) is None


def test_answer_of_does_not_ask_jetson_clocks_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    assert answer_of(SystemFiles(), JETSON_CLOCKS_SHOW) is None


@pytest.mark.parametrize(
    ("command", "expected"), [(("/bin/echo", "x"), "x\n"), (("/bin/false",), None), (("/none",), None)]
)
def test_answer_of_is_what_was_printed_where_it_succeeded(command: tuple[str, ...], expected: str | None) -> None:
    assert answer_of(SystemFiles(), command) == expected


@pytest.mark.parametrize(
    ("name", "mode", "best"),
    [
        ("orin-nano", (2, "MAXN_SUPER"), 2),
        ("orin-nx", (2, "15W"), 0),
        ("agx-orin", (0, "MAXN"), 0),
        ("agx-thor", (1, "120W"), 0),
    ],
)
def test_read_power_mode_goes_by_the_names_of_the_board(
    board: Board, name: str, mode: tuple[int, str], best: int
) -> None:
    files = SystemFiles(board(name))
    found = read_power_mode(files)
    assert (None if found is None else (found.id, found.name)) == mode
    assert highest(defined_modes(files)) == best


def test_read_power_mode_is_none_where_nothing_tells(board: Board) -> None:
    root = board("orin-nx")
    (root / "var/lib/nvpmodel/status").write_text("fmode:cool\n", encoding="utf-8")
    assert read_power_mode(SystemFiles(root)) is None


def test_read_power_mode_has_no_name_for_a_mode_that_is_not_defined(board: Board) -> None:
    root = board("orin-nx")
    (root / "var/lib/nvpmodel/status").write_text("pmode:0009 fmode:cool\n", encoding="utf-8")
    found = read_power_mode(SystemFiles(root))
    assert found is not None
    assert (found.id, found.name) == (9, None)


@pytest.mark.parametrize(
    ("modes", "best"),
    [
        ({0: "15W", 1: "7W"}, 0),
        ({0: "10W", 1: "MODE_40W", 2: "25W"}, 1),
        ({0: "MAXN", 1: "MAXN_SUPER"}, 1),
        ({0: "QUIET", 1: "LOUD"}, None),
        ({}, None),
    ],
)
def test_highest_goes_by_name_not_by_number(modes: dict[int, str], best: int | None) -> None:
    assert highest(modes) == best


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("orin-nano", "17000000.gpu"),
        ("orin-nx", "17000000.ga10b"),
        ("agx-orin", "17000000.gpu"),
        ("agx-thor", "gpu-gpc-0"),
    ],
)
def test_find_gpu_finds_it_by_node_or_by_folder(board: Board, name: str, folder: str) -> None:
    found = find_gpu(SystemFiles(board(name)))
    assert found is not None
    assert found.folder == f"/sys/class/devfreq/{folder}"


@pytest.mark.parametrize(
    ("name", "locked"),
    [("orin-nano", False), ("agx-orin", True), ("agx-thor", False)],
)
def test_read_locked_reads_the_limits_of_the_gpu(board: Board, name: str, locked: bool) -> None:
    assert read_locked(SystemFiles(board(name))) is locked


def test_read_locked_does_not_know_where_the_memory_is_told_to_root_only(board: Board) -> None:
    root = board("agx-orin")
    (root / "sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked").unlink()
    assert read_locked(SystemFiles(root)) is None


@pytest.mark.parametrize(
    ("name", "labels", "kind"),
    [
        ("orin-nano", ("VDD_IN",), "input rail of the module"),
        ("orin-nx", ("VDD_IN",), "input rail of the module"),
        ("agx-orin", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"), "sum of monitored rails"),
        ("agx-thor", ("VIN",), "input rail of the board"),
    ],
)
def test_scope_of_is_the_input_rail_or_the_sum(board: Board, name: str, labels: tuple[str, ...], kind: str) -> None:
    scope = scope_of([rail.label for rail in find_rails(SystemFiles(board(name)))])
    assert scope is not None
    assert (scope.labels, scope.kind) == (labels, kind)


def test_find_rails_leaves_out_shunts_and_what_is_not_connected(board: Board) -> None:
    labels = [rail.label for rail in find_rails(SystemFiles(board("agx-orin")))]
    assert labels == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]


def test_find_rails_finds_chips_whatever_their_number(board: Board) -> None:
    root = board("orin-nano")
    before = [rail.label for rail in find_rails(SystemFiles(root))]
    (root / "sys/class/hwmon/hwmon1").rename(root / "sys/class/hwmon/hwmon11")
    assert [rail.label for rail in find_rails(SystemFiles(root))] == before


def test_find_rails_finds_them_below_the_bus_where_the_class_has_none(board: Board) -> None:
    root = board("orin-nano")
    chip = root / "sys/bus/i2c/devices/1-0040"
    (chip / "hwmon").mkdir(parents=True)
    (chip / "name").write_text("ina3221\n", encoding="utf-8")
    (root / "sys/class/hwmon/hwmon1").rename(chip / "hwmon/hwmon7")
    found = find_rails(SystemFiles(root))
    assert [rail.label for rail in found] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert found[0].parts[0] == "/sys/bus/i2c/devices/1-0040/hwmon/hwmon7/in1_input"


def test_find_rails_tells_the_interval_where_the_driver_does(board: Board) -> None:
    assert {rail.update_interval_ms for rail in find_rails(SystemFiles(board("orin-nx")))} == {70}
    assert {rail.update_interval_ms for rail in find_rails(SystemFiles(board("orin-nano")))} == {None}


def test_find_rails_gives_two_rails_of_one_label_a_column_each(board: Board) -> None:
    root = board("agx-orin")
    (root / "sys/class/hwmon/hwmon5/in2_label").write_text("VDD_CPU_CV\n", encoding="utf-8")
    columns = [rail.column for rail in find_rails(SystemFiles(root))]
    assert columns[1::2] == ["power_vdd_cpu_cv_uw", "power_vdd_cpu_cv_2_uw"]


def test_read_temperatures_leaves_out_units_that_are_off(board: Board) -> None:
    assert read_temperatures(SystemFiles(board("orin-nano"))) == {
        "cpu": 57.125, "gpu": 58.625, "soc0": 56.625, "soc1": 55.937, "soc2": 55.093, "tj": 58.625,
    }  # fmt: skip


def test_alerts_now_does_not_take_the_fan_for_throttling(board: Board) -> None:
    root = board("orin-nano")
    assert alerts_now(SystemFiles(root)) == ()  # the fan of this tree turns
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1\n", encoding="utf-8")
    (root / "sys/class/thermal/cooling_device5/cur_state").write_text("3\n", encoding="utf-8")
    assert alerts_now(SystemFiles(root)) == ("gpu-throttle-alert", "devfreq-17000000.gpu")
