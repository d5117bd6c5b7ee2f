from __future__ import annotations

import dataclasses
import re

import pytest

from edgebert.bench.environment.jetson.tegrastats import MAX_LINE, Load, Reading, reading_of, whole_words


def read(line: str) -> Reading:
    reading = reading_of(line)
    assert reading is not None
    return reading


def power(line: str) -> dict[str, int]:
    return {rail.label: rail.now_mw for rail in read(line).rails}


def celsius(line: str) -> dict[str, float]:
    return {name: heat.celsius for name, heat in read(line).temperatures.items()}


# Memory, swap, cores that work, memory clock, GPU.
@pytest.mark.parametrize(
    ("name", "ram", "swap", "cores", "emc", "gpu"),
    [
        ("xavier-nx-jetpack-5.1.2", (3168, 6851), (161, 3426), 6, Load(percent=2, mhz=(204,)), Load(percent=0, mhz=(114,))),
        ("agx-orin-jetpack-5", (2257, 30536), (0, 15268), 2, Load(percent=0, mhz=(204,)), Load(percent=0, mhz=(0,))),
        ("agx-orin-64gb-jetpack-5-or-6", (4321, 62801), (19, 31400), 12, Load(percent=0, mhz=(2133,)), Load(percent=0, mhz=(0, 0))),
        ("agx-orin-jetpack-6.2.1", (18207, 62841), (86, 31420), 12, Load(percent=3, mhz=(2133,)), Load(percent=0, mhz=(0, 0))),
        ("orin-nano-super-jetpack-6.2-busy", (6712, 7620), (369, 3810), 6, Load(percent=61, mhz=(2133,)), Load(percent=99, mhz=(612,))),
        ("orin-nano-super-jetpack-6.2-idle", (1343, 7620), (165, 3810), 6, Load(percent=15, mhz=(204,)), Load(percent=0, mhz=(305,))),
        ("agx-orin-jetpack-7.2", (20642, 62817), None, 12, Load(percent=3, mhz=(3199,)), Load(percent=12, mhz=(1300, 1300))),
        ("thor-jetpack-7.1-idle", (4208, 125773), (0, 2048), 14, Load(percent=0, mhz=(665,)), Load(percent=None, mhz=(0, 0, 0))),
        ("thor-r39-loaded", (8353, 125749), None, 3, Load(percent=34, mhz=(4266,)), Load(percent=87, mhz=(1574, 1574, 1574))),
        ("thor-r39-idle", (3429, 125749), None, 2, Load(percent=None, mhz=(4266,)), Load(percent=None, mhz=(1574, 1574, 1574))),
    ],
)  # fmt: skip
def test_reading_of_reads_every_release(
    lines: dict[str, str],
    name: str,
    ram: tuple[int, int],
    swap: tuple[int, int] | None,
    cores: int,
    emc: Load,
    gpu: Load,
) -> None:
    found = read(lines[name])
    assert (found.ram_mb, found.swap_mb) == (ram, swap)
    assert sum(core is not None for core in found.cpus) == cores
    assert (found.emc, found.gpu) == (emc, gpu)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xavier-nx-jetpack-5.1.2", {"VDD_IN": 2763, "VDD_CPU_GPU_CV": 650, "VDD_SOC": 650}),
        ("agx-orin-jetpack-5", {"VDD_GPU_SOC": 2390, "VDD_CPU_CV": 796, "VIN_SYS_5V0": 3522, "VDDQ_VDD2_1V8AO": 301}),
        ("agx-orin-64gb-jetpack-5-or-6", {"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025, "VDDQ_VDD2_1V8AO": 301}),
        ("agx-orin-jetpack-6.2.1", {"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707}),
        ("orin-nano-super-jetpack-6.2-busy", {"VDD_IN": 16321, "VDD_CPU_GPU_CV": 7104, "VDD_SOC": 3120}),
        ("orin-nano-super-jetpack-6.2-idle", {"VDD_IN": 5251, "VDD_CPU_GPU_CV": 512, "VDD_SOC": 2720}),
        ("agx-orin-jetpack-7.2", {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}),
        ("thor-jetpack-7.1-idle", {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 4165, "VIN_SYS_5V0": 4126}),
        ("thor-r39-loaded", {"VDD_GPU": 37939, "VDD_CPU_SOC_MSS": 30059, "VIN_SYS_5V0": 15486, "VIN": 124486}),
        ("thor-r39-idle", {"VDD_GPU": 6330, "VIN": 28906}),
    ],
)  # fmt: skip
def test_reading_of_takes_the_power_of_this_moment_and_skips_nc(
    lines: dict[str, str], name: str, expected: dict[str, int]
) -> None:
    assert power(lines[name]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xavier-nx-jetpack-5.1.2", {"aux": 45, "cpu": 46.5, "thermal": 45.6, "ao": 45, "gpu": 45.5, "pmic": 50}),
        (
            "agx-orin-jetpack-5",  # CV0 to CV2 and the GPU are off
            {
                "cpu": 41.437,
                "tboard": 29,
                "soc2": 39.062,
                "tdiode": 30.75,
                "soc0": 39.031,
                "tj": 41.656,
                "soc1": 38.937,
            },
        ),
        ("thor-r39-idle", {"cpu": 49.75, "tj": 51.218, "gpu": 51.218}),
    ],
)
def test_reading_of_names_sensors_alike_and_leaves_out_those_that_are_off(
    lines: dict[str, str], name: str, expected: dict[str, float]
) -> None:
    assert celsius(lines[name]) == expected


def test_reading_of_keeps_the_peaks_of_r39_apart(lines: dict[str, str]) -> None:
    found = read(lines["thor-r39-loaded"])
    gpu = found.temperatures["gpu"]
    assert (gpu.celsius, gpu.peak_celsius) == (56.937, 66.625)
    rail = next(rail for rail in found.rails if rail.label == "VIN")
    assert (rail.now_mw, rail.average_mw, rail.peak_mw) == (124486, 36487, 124486)


def test_reading_of_has_no_peak_before_r39(lines: dict[str, str]) -> None:
    found = read(lines["agx-orin-jetpack-6.2.1"])
    assert {heat.peak_celsius for heat in found.temperatures.values()} == {None}
    assert {rail.peak_mw for rail in found.rails} == {None}


def test_reading_of_reads_every_form_of_an_engine(lines: dict[str, str]) -> None:
    assert read(lines["agx-orin-jetpack-6.2.1"]).engines == {
        "NVENC": Load(percent=79, mhz=(166,)),
        "VIC": Load(percent=36, mhz=(115,)),
        "APE": Load(percent=None, mhz=(174,)),
        **dict.fromkeys(("NVDEC", "NVJPG", "NVJPG1", "OFA", "NVDLA0", "NVDLA1", "PVA0")),
    }
    thor = read(lines["thor-jetpack-7.1-idle"]).engines
    assert (thor["NVENC0"], thor["VIC"], thor["PVA0"]) == (Load(percent=None, mhz=(0,)), None, None)
    assert read(lines["agx-orin-jetpack-5"]).engines["GR3D2"] == Load(percent=0, mhz=(0,))


def test_reading_of_knows_the_clock_of_each_core_and_the_shared_one(lines: dict[str, str]) -> None:
    apart, shared = read(lines["thor-r39-loaded"]).cpus, read(lines["thor-r39-idle"]).cpus
    assert apart == (Load(percent=90, mhz=(2601,)), Load(percent=75, mhz=(2601,)), None, Load(percent=7, mhz=(2601,)))
    assert shared == (Load(percent=0, mhz=(2601,)), Load(percent=5, mhz=(2601,)), None)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("GR3D_FREQ 7%", Load(percent=7)),
        ("GR3D_FREQ 7%@306", Load(percent=7, mhz=(306,))),
        ("GR3D_FREQ 7%@[306]", Load(percent=7, mhz=(306,))),
        ("GR3D_FREQ 7%@[306,off]", Load(percent=7, mhz=(306,))),
        ("GR3D_FREQ @[off,off]", Load(percent=None)),
        ("GR3D_FREQ @[1,2,3]", Load(percent=None, mhz=(1, 2, 3))),
        ("GR3D_FREQ", None),
        ("", None),
    ],
)
def test_reading_of_never_takes_a_missing_load_of_the_gpu_for_none(said: str, expected: Load | None) -> None:
    assert read(f"RAM 1/2MB {said} APE 150").gpu == expected


@pytest.mark.parametrize(("unit", "kilobytes"), [("4MB", 4096), ("512kB", 512)])
def test_reading_of_reads_the_unit_of_the_largest_free_block(unit: str, kilobytes: int) -> None:
    assert read(f"RAM 1/2MB (lfb 9x{unit}) SWAP 0/1MB (cached 0MB)").largest_free_block_kb == kilobytes


def test_reading_of_does_without_a_time_and_without_what_old_releases_hide(lines: dict[str, str]) -> None:
    line = lines["orin-nano-super-jetpack-6.2-busy"]
    bare = read(line[len("10-08-2026 04:35:02 ") :])
    assert (read(line).time, bare.time) == ("10-08-2026 04:35:02", None)
    assert dataclasses.replace(bare, time="10-08-2026 04:35:02") == read(line)
    hidden = read("RAM 1/2MB CPU [0%,off]")
    assert (hidden.cpus, hidden.emc, hidden.rails) == ((Load(percent=0), None), None, ())


def test_reading_of_keeps_negative_power() -> None:
    assert power("RAM 1/2MB VDD_GPU -392mW/-12mW VIN 5mW/5mW") == {"VDD_GPU": -392, "VIN": 5}


@pytest.mark.parametrize(
    "mark", ["@", "%", "XYZ_FREQ 5%@6%", "new [a,b]", "Tdiode@C", "VDD 5W/5W", "\x1b[2J", "漢字@3C"]
)
def test_reading_of_ignores_what_it_does_not_know(lines: dict[str, str], mark: str) -> None:
    line = lines["thor-r39-loaded"]
    head, tail = line.split(" VIC ")
    assert read(f"{head} {mark} VIC {tail}") == read(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no line",
        "RAM",
        "RAM 5MB",
        "VDD_IN 5mW/5mW",
        "Cannot open /dev/x: run as root",
        "RAM 1/2MB " + "x" * MAX_LINE,
    ],
)
def test_reading_of_refuses_what_is_no_line(line: str) -> None:
    assert reading_of(line) is None


def test_reading_of_believes_nothing_false_of_a_line_that_was_cut_anywhere(lines: dict[str, str]) -> None:
    checked = 0
    for line in lines.values():
        whole = dataclasses.asdict(read(line))
        for end in range(len(line)):
            cut = reading_of(whole_words(line[:end]))
            if cut is None:
                continue
            for name, value in dataclasses.asdict(cut).items():
                if isinstance(value, dict):
                    assert value.items() <= whole[name].items(), (line[:end], name)
                elif isinstance(value, tuple) and name == "rails":
                    assert all(rail in whole[name] for rail in value), (line[:end], name)
                else:
                    assert value in (None, (), whole[name]), (line[:end], name)
            checked += 1
    assert checked > 3_000


def test_reading_of_refuses_the_rest_of_a_line_that_lost_its_start(lines: dict[str, str]) -> None:
    line = lines["agx-orin-jetpack-6.2.1"]
    after = re.search("RAM ", line)
    assert after is not None
    assert all(reading_of(line[start:]) is None for start in range(after.start() + 1, len(line)))
