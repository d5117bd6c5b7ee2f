"""What a form asks of a computer: reading and writing it, and every way in which a computer does not have it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebert._json import Fields, dump_json, parse_json_object
from edgebert.errors import BadDataError
from edgebert.fingerprint import (
    ComputerFacts,
    Fingerprint,
    GpuFacts,
    at_least_release,
    computer_facts,
    gpu_facts,
    is_for_another_kind,
    machine,
    misfits,
)

ORIN = GpuFacts(
    name="Orin",
    compute_capability="8.7",
    multiprocessors=8,
    module="p3767-0003",
    driver="540.4.0",
    cuda="12.6",
    l4t="36.4.3",
)
JETSON = ComputerFacts(
    os="linux",
    machine="aarch64",
    backend="tensorrt",
    backend_version="10.3.0",
    cpu_flags=("asimd", "asimddp"),
    gpu=ORIN,
)
FITTING: dict[str, Any] = {
    "os": "linux",
    "machine": "aarch64",
    "backend_version": "== 10.3.0",
    "cpu_flags": ["asimd"],
    "gpu": "Orin",
    "compute_capability": "8.7",
    "multiprocessors": 8,
    "module": "p3767-0003",
    "driver": ">= 540.3",
    "cuda": ">= 12.6",
    "l4t": "== 36.4.3",
}


def _read(value: dict[str, Any]) -> Fingerprint:
    return Fingerprint.from_fields(Fields(parse_json_object(dump_json(value), what="test"), what="test"))


def test_every_condition_at_once_fits() -> None:
    assert misfits(_read(FITTING), JETSON) == ()


def test_a_backend_whose_version_nobody_knows_is_not_called_missing() -> None:
    here = replace(JETSON, backend_version=None, backend_found=True)
    expected = "made with TensorRT 10.3.0, here is one that does not tell its version"
    assert misfits(_read({"backend_version": "== 10.3.0"}), here) == (expected,)
    assert not is_for_another_kind(_read({"backend_version": "== 10.3.0"}), here)


def test_no_condition_fits_everything() -> None:
    assert misfits(Fingerprint(), ComputerFacts(os="", machine="", backend="torch", backend_version=None)) == ()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("os", "windows", "made for windows, here is linux"),
        ("machine", "x86_64", "made for x86_64, here is aarch64"),
        ("backend_version", "== 10.7.0", "made with TensorRT 10.7.0, here is 10.3.0"),
        ("backend_version", "== 10.3.1", "made with TensorRT 10.3.1, here is 10.3.0"),
        ("backend_version", "== 10.3.0rc1", "made with TensorRT 10.3.0rc1, here is 10.3.0"),
        ("backend_version", ">= 10.4", "needs TensorRT 10.4 or newer, here is 10.3.0"),
        ("backend_version", "~= 10.3", "asks for TensorRT `~= 10.3`, a rule that this version of edgebert cannot read"),
        ("cpu_flags", ["asimd", "sve"], "needs sve of the CPU, here is asimd, asimddp"),
        ("gpu", "NVIDIA Thor", "made for the GPU NVIDIA Thor, here is Orin"),
        ("compute_capability", "11.0", "made for compute capability 11.0, here is 8.7"),
        ("multiprocessors", 16, "made for a GPU with this many multiprocessors: 16, here is 8"),
        ("module", "p3767-0000", "made for the module p3767-0000, here is p3767-0003"),
        ("driver", "== 540.3.0", "made with NVIDIA's driver 540.3.0, here is 540.4.0"),
        ("cuda", ">= 13.0", "needs CUDA 13.0 or newer, here is 12.6"),
        ("l4t", "== 36.4.7", "made with L4T 36.4.7, here is 36.4.3"),
        ("dla", "orin", "asks for `dla` orin, which this version of edgebert does not know"),
        ("dla", {"cores": [1, 2]}, "asks for `dla` {'cores': [1, 2]}, which this version of edgebert does not know"),
    ],
)
def test_each_condition_alone_refuses_and_names_both(name: str, value: object, reason: str) -> None:
    assert misfits(_read({**FITTING, name: value}), JETSON) == (reason,)


@pytest.mark.parametrize("name", ["gpu", "compute_capability", "multiprocessors", "module", "driver", "cuda", "l4t"])
def test_what_the_computer_does_not_tell_does_not_fit(name: str) -> None:
    (reason,) = misfits(_read({name: FITTING[name]}), replace(JETSON, gpu=GpuFacts()))
    assert "here is none" in reason or "none is installed here" in reason


def test_a_backend_that_is_not_installed_does_not_fit() -> None:
    facts = replace(JETSON, backend_version=None)
    assert misfits(_read({"backend_version": "== 10.3.0"}), facts) == (
        "made with TensorRT 10.3.0, none is installed here",
    )


@pytest.mark.parametrize(
    ("rule", "version", "fits"),
    [
        ("== 10.3", "10.3.0", True),
        ("==10.3.0", "10.3.0", True),
        ("== 10.3.0", "10.3.0.30", False),
        ("== 10.3.0", "10.30", False),
        (">= 2026.4", "2026.4.1", True),
        (">= 2026.4", "2026.10", True),
        (">= 2026.4", "2026.3.9", False),
        (">= 1.18", "1.31.1+cpu", True),
        (">= 1.18", "1.9", False),
        (">= 1.18", "unknown", False),
    ],
)
def test_versions_are_compared_as_numbers(rule: str, version: str, fits: bool) -> None:
    asked = Fingerprint(backend_version=rule)
    assert (not misfits(asked, replace(JETSON, backend_version=version))) is fits


def test_several_misfits_are_all_given() -> None:
    assert len(misfits(_read({**FITTING, "os": "darwin", "gpu": "Thor", "newer": 1}), JETSON)) == 3


def test_fingerprint_survives_writing_and_reading() -> None:
    asked = _read({**FITTING, "newer": {"deep": [1, None]}})
    assert _read(dict(asked.to_json())) == asked
    assert asked.to_json() == {**FITTING, "newer": {"deep": [1, None]}}


def test_null_asks_for_nothing() -> None:
    assert _read(dict.fromkeys([*FITTING, "newer"])) == Fingerprint()


@pytest.mark.parametrize(
    "value",
    [
        {"os": 5},
        {"machine": ["x86_64"]},
        {"backend_version": {"at_least": "10"}},
        {"cpu_flags": "avx2"},
        {"cpu_flags": ["avx2", 3]},
        {"cpu_flags": ["avx2"] * 33},
        {"cpu_flags": ["\x1b[2J"]},
        {"gpu": "\x1b[31mOrin"},
        {"gpu": ""},
        {"gpu": "x" * 101},
        {"multiprocessors": "8"},
        {"multiprocessors": True},
        {"\x1b]0;": 1},
        {"n" * 101: 1},
    ],
)
def test_a_malformed_condition_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(BadDataError):
        _read(value)


def test_no_reason_carries_a_control_character() -> None:
    (reason,) = misfits(_read({"newer": ["\x1b[2J", {"x": "\x07"}]}), JETSON)
    assert reason.isprintable()


@pytest.mark.parametrize(
    ("value", "another"),
    [
        ({"os": "windows"}, True),
        ({"machine": "x86_64"}, True),
        ({"backend_version": "== 10.7.0"}, False),
        ({"gpu": "Thor"}, False),
        ({"newer": 1}, False),
    ],
)
def test_a_form_for_another_kind_of_computer_is_told_from_a_stale_one(value: dict[str, Any], another: bool) -> None:
    assert is_for_another_kind(_read(value), JETSON) is another


def test_a_form_whose_backend_is_missing_was_not_meant_for_here() -> None:
    assert is_for_another_kind(Fingerprint(), replace(JETSON, backend_version=None))


@pytest.mark.parametrize(("version", "rule"), [("2026.4.1", ">= 2026.4"), ("2026.0", ">= 2026.0"), ("3", ">= 3.0")])
def test_at_least_release_keeps_major_and_minor(version: str, rule: str) -> None:
    assert at_least_release(version) == rule


def test_computer_facts_are_those_of_this_computer() -> None:
    facts = computer_facts("no-such-backend")
    assert (facts.machine, facts.backend_version, facts.gpu) == (machine(), None, GpuFacts())
    assert facts.os in ("linux", "windows", "darwin")


@pytest.mark.parametrize(("name", "expected"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")])
def test_machine_has_one_name_on_every_system(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: name)
    assert machine() == expected


# GPUs, on written trees and a driver of our own making

L4T = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
L4T_39 = "# R39 (release), REVISION: 2.0, GCID: 45755727, BOARD: generic, EABI: aarch64, DATE: Mon Jun  1 09:28:48 PM UTC 2026\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@mobile)\n"
NO_LIBRARY = "no-such-library.so"


def _tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_gpu_facts_of_a_jetson_without_cuda(tmp_path: Path) -> None:
    files = {
        "etc/nv_tegra_release": L4T.encode(),
        "proc/driver/nvidia/version": OPEN.encode(),
        "proc/device-tree/compatible": b"nvidia,p3767-0005\0nvidia,tegra234\0",
    }
    assert gpu_facts(_tree(tmp_path, files), NO_LIBRARY) == GpuFacts(
        compute_capability="8.7", module="p3767-0005", driver="540.4.0", l4t="36.4.3"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("etc/nv_tegra_release", L4T_39, GpuFacts(l4t="39.2.0")),
        ("etc/nv_tegra_release", "something else", GpuFacts()),
        ("proc/driver/nvidia/version", CLOSED, GpuFacts(driver="550.54.15")),
        ("proc/device-tree/compatible", "nvidia,tegra264\0", GpuFacts(compute_capability="11.0")),
        ("proc/device-tree/compatible", "raspberrypi,5-model-b\0", GpuFacts()),
    ],
)
def test_gpu_facts_of_single_files(tmp_path: Path, name: str, content: str, expected: GpuFacts) -> None:
    assert gpu_facts(_tree(tmp_path, {name: content.encode()}), NO_LIBRARY) == expected


@pytest.mark.parametrize(
    ("compatible", "module"),
    [
        ("nvidia,p3767-0005\0nvidia,tegra234\0", "p3767-0005"),
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", "p3767-0005"),
        ("nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0", "p3701-0000"),
        ("nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0", "p3767-0000"),
        ("nvidia,tegra234\0", None),
        ("acme,p1234-0000\0", None),
    ],
)
def test_gpu_facts_name_the_module_and_not_its_carrier_board(
    tmp_path: Path, compatible: str, module: str | None
) -> None:
    tree = _tree(tmp_path, {"proc/device-tree/compatible": compatible.encode()})
    assert gpu_facts(tree, NO_LIBRARY).module == module


def test_gpu_facts_of_a_computer_without_one(tmp_path: Path) -> None:
    assert gpu_facts(tmp_path, NO_LIBRARY) == GpuFacts()
    assert GpuFacts().to_text() == ""


_DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return flags == 0 ? INIT : 1; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDeviceGetName(char *name, int length, int device) { (void)length; strcpy(name, "Orin"); return device - 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 16 ? 8 : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
  return device - 7;
}
"""


def _driver(folder: Path, init: int) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a driver with")
    (folder / "driver.c").write_text(_DRIVER)
    library = folder / f"libcuda{init}.so"
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", str(library), str(folder / "driver.c")]
    subprocess.run(command, check=True)
    return str(library)


def test_gpu_facts_ask_the_driver(tmp_path: Path) -> None:
    facts = gpu_facts(tmp_path, _driver(tmp_path, init=0))
    assert facts == GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, cuda="12.6")
    assert facts.to_text() == "Orin, compute capability 8.7, multiprocessors 8, CUDA 12.6"


def test_a_driver_without_a_gpu_tells_nothing(tmp_path: Path) -> None:
    assert gpu_facts(tmp_path, _driver(tmp_path, init=100)) == GpuFacts()


def test_a_library_that_is_no_driver_tells_nothing(tmp_path: Path) -> None:
    assert gpu_facts(tmp_path, "libc.so.6") == GpuFacts()
