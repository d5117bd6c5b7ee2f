from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bench.environment.jetson.sources import (
    JETSON_SOURCES,
    GpuClockSource,
    MemoryClock,
    Rails,
    SlowDowns,
    Tegrastats,
    Zones,
)
from edgebert.bench.environment.sampler import Sampling
from edgebert.bench.environment.sensors import SOURCES, open_sources
from edgebert.bench.environment.source import MISSING, Source
from edgebert.bench.environment.system_files import SystemFiles

Board = Callable[[str], Path]
BOARDS = ("orin-nano", "orin-nx", "agx-orin", "agx-thor")
FAKE = str(Path(__file__).with_name("fake_tegrastats.py"))


def values(source: Source) -> dict[str, int]:
    return dict(zip(source.columns, source.read(), strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orin-nano", {"power_vdd_in_uw": 16_320_000, "power_vdd_cpu_gpu_cv_uw": 7_100_000, "power_vdd_soc_uw": 3_120_000}),
        (
            "agx-orin",
            {
                "power_vdd_gpu_soc_uw": 5_130_000,
                "power_vdd_cpu_cv_uw": 3_268_000,
                "power_vin_sys_5v0_uw": 5_500_000,
                "power_vddq_vdd2_1v8ao_uw": 300_000,
            },
        ),
        (
            "agx-thor",  # the GPU's rail of an idle board is below nothing
            {
                "power_vdd_gpu_uw": -396_000,
                "power_vdd_cpu_soc_mss_uw": 4_164_000,
                "power_vin_sys_5v0_uw": 4_125_000,
                "power_vin_uw": 28_906_000,
            },
        ),
    ],
)  # fmt: skip
def test_rails_reads_microwatts_by_label(board: Board, name: str, expected: dict[str, int]) -> None:
    assert values(Rails(SystemFiles(board(name)))) == expected


def test_rails_has_no_value_where_half_of_a_product_is_missing(board: Board) -> None:
    root = board("orin-nano")
    source = Rails(SystemFiles(root))
    (root / "sys/class/hwmon/hwmon1/curr1_input").write_text("", encoding="utf-8")
    assert values(source)["power_vdd_in_uw"] == MISSING
    assert values(source)["power_vdd_soc_uw"] == 3_120_000


def test_sampling_keeps_negative_power(board: Board) -> None:
    rows: list[bytes] = []
    source = Rails(SystemFiles(board("agx-thor")))
    Sampling([source], rows.append).sample(5)
    at = 1 + source.columns.index("power_vdd_gpu_uw")
    assert int.from_bytes(rows[0][8 * at : 8 * at + 8], "little", signed=True) == -396_000


def test_sampling_takes_a_negative_value_of_another_sensor_for_none(board: Board) -> None:
    root, rows = board("orin-nano"), list[bytes]()
    (root / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("-5000\n", encoding="utf-8")
    Sampling([GpuClockSource(SystemFiles(root))], rows.append).sample(5)
    assert int.from_bytes(rows[0][8:16], "little", signed=True) == MISSING


def test_gpu_clock_reads_clock_limits_and_load(board: Board) -> None:
    assert values(GpuClockSource(SystemFiles(board("orin-nano")))) == {
        "gpu_clock_khz": 306_000,
        "gpu_clock_min_khz": 306_000,
        "gpu_clock_max_khz": 1_020_000,
        "gpu_load_permille": 12,
    }


def test_gpu_clock_has_no_load_on_thor(board: Board) -> None:
    source = GpuClockSource(SystemFiles(board("agx-thor")))
    assert "gpu_load_permille" not in source.columns
    assert source.reasons["gpu_load_permille"] == "the GPU tells no load"


def test_memory_clock_is_read_where_it_is_open(board: Board) -> None:
    assert values(MemoryClock(SystemFiles(board("agx-orin")))) == {"emc_clock_khz": 3_199_000}
    assert "root only" in MemoryClock(SystemFiles(board("orin-nano"))).reasons["emc_clock_khz"]


def test_zones_skips_a_unit_that_is_gated(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Zones(SystemFiles(board("orin-nano")))
    gated = source._readers[source.columns.index("temperature_gpu_mc")]._descriptor
    read = os.read

    def again(descriptor: int, count: int) -> bytes:
        if descriptor == gated:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", again)
    found = values(source)
    assert found["temperature_gpu_mc"] == MISSING
    assert found["temperature_cpu_mc"] == 57_125


def test_slow_downs_reads_counters_and_states(board: Board) -> None:
    root = board("orin-nano")
    source = SlowDowns(SystemFiles(root))
    assert values(source) == {
        "oc1_events": 0,
        "oc2_events": 4,
        "oc3_events": 17,
        "throttle_alerts": 0,
        "gpu_cap_state": 0,
    }
    for device in (0, 1, 5):
        (root / f"sys/class/thermal/cooling_device{device}/cur_state").write_text("2\n", encoding="utf-8")
    found = values(source)
    assert (found["throttle_alerts"], found["gpu_cap_state"]) == (2, 2)


def test_slow_downs_leaves_out_counters_whose_events_slow_nothing(board: Board) -> None:
    root = board("orin-nano")
    for number in (2, 3):
        (root / f"sys/class/hwmon/hwmon3/oc{number}_throt_en").write_text("0\n", encoding="utf-8")
    source = SlowDowns(SystemFiles(root))
    assert "oc2_events" not in source.columns
    assert "slow nothing down" in source.reasons["oc2_events"]
    assert "oc3_events" in source.columns  # which is only told


def test_slow_downs_has_reasons_where_the_board_counts_nothing(board: Board) -> None:
    source = SlowDowns(SystemFiles(board("agx-thor")))
    assert source.columns == ("throttle_alerts", "gpu_cap_state")
    assert set(source.reasons) == {"oc1_events", "oc2_events", "oc3_events"}


@pytest.mark.parametrize("name", BOARDS)
def test_open_sources_reads_a_board_without_two_columns_of_one_name(board: Board, name: str) -> None:
    sources = open_sources(SystemFiles(board(name)))
    columns = [column for source in sources for column in source.columns]
    assert len(set(columns)) == len(columns)
    assert {"gpu_clock_khz", "temperature_gpu_mc", "throttle_alerts", "temperature_mc"} <= set(columns)
    for source in sources:
        assert len(source.read()) == len(source.columns)
        source.close()


def test_jetson_sources_say_nothing_of_another_computer(tmp_path: Path) -> None:
    for source in (each(SystemFiles(tmp_path)) for each in JETSON_SOURCES):
        assert (source.columns, source.reasons, source.read()) == ((), {}, [])
        source.close()
    assert set(JETSON_SOURCES) <= set(SOURCES)


@pytest.mark.parametrize("text", ["", "\x00\xff", "-", "9" * 400])
def test_jetson_sources_survive_files_of_nonsense(board: Board, text: str) -> None:
    root = board("agx-thor")
    sources = [each(SystemFiles(root)) for each in JETSON_SOURCES]
    for path in (entry for entry in (root / "sys").rglob("*") if entry.is_file()):
        path.write_text(text, encoding="utf-8")
    for source in (*sources, *(each(SystemFiles(root)) for each in JETSON_SOURCES)):
        assert set(source.read()) <= {MISSING}
        source.close()


def told_by(root: Path, line: str, tmp_path: Path) -> Tegrastats:
    """Return the source with the stand-in as its program."""
    (tmp_path / "lines").write_text(line + "\n", encoding="utf-8")

    class Told(Tegrastats):
        command = (sys.executable, FAKE, str(tmp_path / "lines"), str(tmp_path / "pid"), "forever")
        patience_s = 60.0

    Told.root = root
    return Told(SystemFiles(root))


@pytest.mark.skipif(sys.platform != "linux", reason="tegrastats is a program of Linux")
def test_tegrastats_tells_rails_and_memory_where_the_files_do_not(
    board: Board, tmp_path: Path, lines: dict[str, str]
) -> None:
    root = board("orin-nano")
    (root / "sys/class/hwmon/hwmon1/name").unlink()
    source = told_by(root, lines["orin-nano-super-jetpack-6.2-busy"], tmp_path)
    assert values(source) == {
        "emc_clock_khz": 2_133_000,
        "power_vdd_in_uw": 16_321_000,
        "power_vdd_cpu_gpu_cv_uw": 7_104_000,
        "power_vdd_soc_uw": 3_120_000,
    }
    source.close()


@pytest.mark.skipif(sys.platform != "linux", reason="tegrastats is a program of Linux")
def test_tegrastats_tells_the_memory_alone_where_the_rails_have_files(
    board: Board, tmp_path: Path, lines: dict[str, str]
) -> None:
    source = told_by(board("orin-nano"), lines["orin-nano-super-jetpack-6.2-busy"], tmp_path)
    assert source.columns == ("emc_clock_khz",)
    source.close()


def test_tegrastats_is_not_started_where_the_files_tell_all(
    board: Board, tmp_path: Path, lines: dict[str, str]
) -> None:
    source = told_by(board("agx-orin"), lines["agx-orin-jetpack-7.2"], tmp_path)
    assert source.columns == ()
    assert not (tmp_path / "pid").exists()


def test_tegrastats_gives_the_reason_where_the_program_is_missing(board: Board) -> None:
    root = board("orin-nano")

    class Missing(Tegrastats):
        command = ("no-such-tegrastats",)

    Missing.root = root
    source = Missing(SystemFiles(root))
    assert "`no-such-tegrastats` is not on PATH" in source.reasons["emc_clock_khz"]
