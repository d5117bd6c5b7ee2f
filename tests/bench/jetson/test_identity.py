from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bench.environment.computer import read_environment
from edgebert.bench.environment.jetson.facts import jetson_facts, jetson_refusal
from edgebert.bench.environment.jetson.identity import (
    is_jetson,
    jetpack_of_l4t,
    read_identity,
    read_l4t,
)
from edgebert.bench.environment.jetson.packages import version_of
from edgebert.bench.environment.system_files import SystemFiles

Board = Callable[[str], Path]

# The first lines of /etc/nv_tegra_release (tensorrt_jetson.md, section 8.5).
RELEASES = {
    "R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref, EABI: aarch64, DATE: Wed Feb  2 21:33:23 UTC 2022": "32.7.1",
    "R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref, EABI: aarch64, DATE: Wed Mar 15 07:54:12 UTC 2023": "35.3.1",
    "R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025": "36.4.3",
    "R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic, EABI: aarch64, DATE: Thu Sep 25 22:47:11 UTC 2025": "38.2.2",
    "R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64, DATE: Wed Dec 31 00:15:19 UTC 2025": "38.4.0",
    "R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, DATE: Mon Jun  1 09:28:48 PM UTC 2026": "39.2.0",
}


@pytest.mark.parametrize(("line", "expected"), RELEASES.items())
def test_read_l4t_reads_every_release_file(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(f"# {line}\n# KERNEL_VARIANT: oot\n", encoding="utf-8")
    assert read_l4t(SystemFiles(tmp_path)) == expected


def test_read_l4t_falls_back_to_dpkg_where_a_container_lacks_the_file(board: Board) -> None:
    root = board("orin-nano")
    (root / "etc/nv_tegra_release").unlink()
    assert read_l4t(SystemFiles(root)) == "36.4.3"


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.4.0", "6.1"),
        ("36.4", "6.1"),
        ("36.4.2", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("38.2.0", "7.0"),
        ("38.2.2", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("39.2.1", "7.2.1"),
        ("40.0.0", None),
        (None, None),
        ("nonsense", None),
    ],
)
def test_jetpack_of_l4t_knows_the_supported_releases(l4t: str | None, jetpack: str | None) -> None:
    assert jetpack_of_l4t(l4t) == jetpack


@pytest.mark.parametrize(
    ("name", "module", "sold_as", "soc", "jetpack", "tensorrt", "cuda"),
    [
        ("orin-nano", "p3767-0005", "Orin Nano developer kit", "tegra234", "6.2", "10.3.0.30", "12.6.68"),
        ("orin-nx", "p3767-0000", "Orin NX 16GB", "tegra234", "6.2.2", "10.3.0.30", None),
        ("agx-orin", "p3701-0005", "AGX Orin 64GB", "tegra234", "7.2", "10.16.2.10", "13.2.51"),
        ("agx-thor", "p3834-0008", "AGX Thor", "tegra264", "7.2", "10.16.2.10", None),
    ],
)
def test_read_identity_reads_every_board(
    board: Board, name: str, module: str, sold_as: str, soc: str, jetpack: str, tensorrt: str, cuda: str | None
) -> None:
    found = read_identity(SystemFiles(board(name)))
    assert found is not None
    assert (found.module, found.module_name, found.soc) == (module, sold_as, soc)
    assert (found.jetpack, found.tensorrt, found.cuda) == (jetpack, tensorrt, cuda)


def test_read_identity_goes_by_the_module_where_the_model_names_another_board(board: Board) -> None:
    root = board("orin-nx")
    assert "Orin Nano" in (root / "proc/device-tree/model").read_text(encoding="utf-8")
    found = read_identity(SystemFiles(root))
    assert found is not None
    assert found.module_name == "Orin NX 16GB"


@pytest.mark.parametrize("text", ['{"cuda": {"version": "12.6.68"}}', '{"cuda": {"version": 12}}', "[", "[]", ""])
def test_read_identity_takes_the_version_of_cuda_from_its_own_file(board: Board, text: str) -> None:
    root = board("orin-nx")
    (root / "usr/local/cuda").mkdir(parents=True)
    (root / "usr/local/cuda/version.json").write_text(text, encoding="utf-8")
    found = read_identity(SystemFiles(root))
    assert found is not None
    assert found.cuda == ("12.6.68" if "12.6.68" in text else None)


def test_version_of_leaves_out_what_was_removed(board: Board) -> None:
    files = SystemFiles(board("orin-nx"))
    assert version_of(files, "libnvinfer-bin") is None  # its configuration alone is left
    assert version_of(files, "libnvinfer-bin", r"libnvinfer\d+") == "10.3.0.30"


def test_read_identity_is_none_on_another_computer(tmp_path: Path) -> None:
    files = SystemFiles(tmp_path)
    assert not is_jetson(files)
    assert read_identity(files) is None
    assert files.not_available == {"device.jetson": "not a Jetson"}


def test_read_identity_survives_files_of_nonsense(board: Board) -> None:
    root = board("agx-orin")
    for path in (entry for entry in root.rglob("*") if entry.is_file()):
        path.write_bytes(b"\xff\x00 nonsense \n")
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,tegra")
    found = read_identity(SystemFiles(root))
    assert found is not None
    assert (found.module, found.l4t, found.tensorrt, found.rails) == (None, None, None, ())


def test_jetson_facts_say_what_is_shown(board: Board) -> None:
    assert jetson_facts(board("orin-nano")) == {
        "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "module": "Orin Nano developer kit, p3767-0005, Orin, tegra234",
        "l4t": "36.4.3 (JetPack 6.2)",
        "tensorrt": "10.3.0.30",
        "cuda": "12.6.68",
        "power mode": "MAXN_SUPER (2)",
        "clocks": "not held, GPU 306 to 1020 MHz",
        "temperature": "59 °C (gpu, the hottest of 6)",
        "slowed down by": "nothing",
        "power from": "VDD_IN, input rail of the module",
    }


def test_jetson_facts_say_sum_where_there_is_no_input_rail(board: Board) -> None:
    assert jetson_facts(board("agx-orin"))["power from"] == (
        "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO, sum of monitored rails"
    )
    assert jetson_facts(board("agx-thor"))["power from"] == "VIN, input rail of the board"


def test_jetson_facts_are_empty_on_another_computer(tmp_path: Path) -> None:
    assert jetson_facts(tmp_path) == {}
    assert jetson_refusal(tmp_path) == ""


def test_jetson_refusal_names_what_is_too_old(board: Board) -> None:
    root = board("orin-nano")
    assert jetson_refusal(root) == ""
    (root / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 3.1, GCID: 1\n", encoding="utf-8")
    assert "L4T 35.3.1 (JetPack 5)" in jetson_refusal(root)
    assert "refused" in jetson_facts(root)["l4t"]


@pytest.mark.parametrize("name", ["orin-nano", "orin-nx", "agx-orin", "agx-thor"])
def test_read_environment_has_every_fact_or_a_reason(board: Board, name: str) -> None:
    found = read_environment(board(name))
    facts = found.device.jetson
    assert facts is not None
    for field in ("module", "l4t", "jetpack", "tensorrt", "cuda"):
        assert (getattr(facts, field) is None) == (f"device.jetson.{field}" in found.not_available)
    power = found.power_state
    for field in ("nvpmodel", "jetson_clocks", "gpu_clock"):
        assert (getattr(power, field) is None) == (f"power_state.{field}" in found.not_available)


def test_read_environment_reads_mode_and_clocks(board: Board) -> None:
    power = read_environment(board("agx-orin")).power_state
    assert power.nvpmodel is not None
    assert power.gpu_clock is not None
    assert (power.nvpmodel.id, power.nvpmodel.name, power.jetson_clocks) == (0, "MAXN", True)
    assert (power.gpu_clock.min_khz, power.gpu_clock.max_khz) == (1_300_500, 1_300_500)
