"""The table of wheels that a host may bring is complete and well-formed, and what a device says picks lines of it and nothing else."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebert.errors import UnavailableError
from edgebert.extras import DISTRIBUTIONS, FLOORS, _numbers, below_floor
from edgebert.remote.agent import Device
from edgebert.remote.wheel_pins import ARCHITECTURES, IMPORTED, PYTHONS, PinnedWheel, pinned_wheels, wheels_for

ROOT = Path(__file__).parents[2]
BEYOND = {"numpy": "3", "PIL": "13"}  # the next major version, which no device was tried with
ORIN = Device(
    name="orin",
    python=(3, 10, 12),
    executable="/usr/bin/python3",
    machine="aarch64",
    modules={"numpy": "1.21.5", "PIL": "9.0.1", "tensorrt": "10.3.0"},
    suffix=".cpython-310-aarch64-linux-gnu.so",
    libc="glibc 2.35",
)


@pytest.fixture(params=pinned_wheels(), ids=lambda wheel: wheel.file)
def wheel(request: pytest.FixtureRequest) -> PinnedWheel:
    line: PinnedWheel = request.param
    return line


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("wheel_pins")


def test_table_has_each_wheel_once() -> None:
    listed = [(wheel.module, wheel.python, wheel.architecture) for wheel in pinned_wheels()]
    wanted = [(module, python, arch) for module in IMPORTED for python in PYTHONS for arch in ARCHITECTURES]
    assert sorted(listed) == sorted(wanted)


def test_table_names_no_hash_twice() -> None:
    assert len({wheel.sha256 for wheel in pinned_wheels()}) == len(pinned_wheels())


def test_pinned_version_is_at_or_above_the_floor_and_below_what_was_never_tried(wheel: PinnedWheel) -> None:
    assert not below_floor(wheel.module, wheel.version)
    assert _numbers(wheel.version) < _numbers(BEYOND[wheel.module])


def test_pinned_numpy_is_one_wherever_there_is_one(wheel: PinnedWheel) -> None:
    """The bindings of JetPack 6 were compiled before numpy 2 was there."""
    if wheel.module == "numpy":
        assert (wheel.version < "2") == (wheel.python != "3.13")


def test_pinned_file_says_what_its_line_says(wheel: PinnedWheel) -> None:
    tag = "cp" + wheel.python.replace(".", "")
    start, *platforms = wheel.file.removesuffix(".whl").replace(f"-{tag}-{tag}-", " ").split()
    assert start == f"{wheel.name.lower()}-{wheel.version}"
    assert len(platforms) == 1
    assert all(re.fullmatch(rf"manylinux(_2_\d+|2014)_{wheel.architecture}", entry) for entry in wheel.platforms)
    assert DISTRIBUTIONS.get(wheel.module, wheel.module) == wheel.name


def test_pinned_hash_and_size_are_such(wheel: PinnedWheel) -> None:
    assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
    assert 1 << 20 < wheel.size < 64 << 20


def test_pinned_wheel_runs_on_jetpack_6(wheel: PinnedWheel) -> None:
    assert (2, 17) <= wheel.glibc <= (2, 35)


def test_script_makes_the_table_that_is_shipped(script: Any) -> None:
    table = json.loads(script.TABLE.read_text("ascii"))
    assert table["schema"] == script.SCHEMA
    assert (script.PYTHONS, script.ARCHITECTURES) == (PYTHONS, ARCHITECTURES)
    made = [(line["name"], line["python"], line["version"]) for line in table["wheels"]]
    asked = [(name, python, script.VERSIONS[name][python]) for name in script.VERSIONS for python in PYTHONS]
    assert sorted(set(made)) == sorted(asked)


# -- what a device gets


def names(device: Device) -> list[str]:
    return [f"{wheel.name} {wheel.version} {wheel.python} {wheel.architecture}" for wheel in wheels_for(device)]


def test_wheels_for_jetpack_6_are_those_of_its_own_python() -> None:
    assert names(ORIN) == ["numpy 1.26.4 3.10 aarch64", "Pillow 12.3.0 3.10 aarch64"]


def test_wheels_for_jetpack_7_leave_a_numpy_that_is_good_enough() -> None:
    thor = replace(
        ORIN,
        python=(3, 12, 3),
        modules={"numpy": "1.26.4", "PIL": "10.2.0"},
        suffix=".cpython-312-aarch64-linux-gnu.so",
        libc="glibc 2.39",
    )
    assert names(thor) == ["Pillow 12.3.0 3.12 aarch64"]


@pytest.mark.parametrize("module", sorted(IMPORTED))
def test_wheels_for_a_device_without_one_of_them_are_that_one(module: str) -> None:
    others = {name: FLOORS[name] for name in IMPORTED if name != module}
    assert [wheel.module for wheel in wheels_for(replace(ORIN, modules=others))] == [module]


def test_wheels_for_a_device_of_unknown_versions_are_none() -> None:
    assert names(replace(ORIN, modules={"numpy": "", "PIL": ""})) == []


def test_wheels_for_a_device_with_enough_ask_nothing_of_its_kind() -> None:
    assert names(replace(ORIN, modules={"numpy": "2.4.6", "PIL": "13.0.0"}, suffix=".pypy310.so", libc="")) == []


@pytest.mark.parametrize(
    ("suffix", "libc", "said"),
    [
        (".cpython-312-x86_64-linux-musl.so", "", "not glibc"),
        (".cpython-312-x86_64-linux-gnu.so", "", "not glibc"),
        (".cpython-311-arm-linux-gnueabihf.so", "glibc 2.36", "arm-linux-gnueabihf"),
        (".cpython-314-aarch64-linux-gnu.so", "glibc 2.41", "314"),
        (".cpython-39-aarch64-linux-gnu.so", "glibc 2.35", "39"),
        (".cpython-313t-aarch64-linux-gnu.so", "glibc 2.41", "313t"),
        (".cpython-310d-aarch64-linux-gnu.so", "glibc 2.35", "310d"),
        (".cpython-310-riscv64-linux-gnu.so", "glibc 2.35", "riscv64"),
        (".cpython-310-aarch64-linux-gnu.so", "glibc 2.26", "needs 2.27"),
        (".pypy310-pp73-aarch64-linux-gnu.so", "glibc 2.35", "pypy"),
        ("", "", "of an unknown kind"),
        # What no honest device says.
        (".cpython-310-aarch64-linux-gnu.so\n--index-url=http://device", "glibc 2.35", "index-url"),
        (".cpython-310-../../x86_64-linux-gnu.so", "glibc 2.35", r"\.\./"),
        (".cpython-310-aarch64-linux-gnu.so", "glibc 9" * 40, "glibc 9"),
        (".cpython-3\u0661\u0660-aarch64-linux-gnu.so", "glibc 2.35", "aarch64"),
    ],
)
def test_wheels_for_a_device_without_any_are_refused_in_three_parts(suffix: str, libc: str, said: str) -> None:
    with pytest.raises(UnavailableError, match=said) as caught:
        wheels_for(replace(ORIN, suffix=suffix, libc=libc))
    assert "numpy 1.21.5, older than 1.24, and Pillow 9.0.1, older than 12.3" in caught.value.what
    assert "aarch64 or x86_64" in (caught.value.expected or "")
    assert "install numpy Pillow into a venv there" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "version", ["0", "1.21.5; rm -rf", "1.0 --hash=sha256:00", "-r /etc/passwd", "0 @ http://device/x.whl"]
)
def test_wheels_for_a_device_that_lies_are_lines_of_the_table(version: str) -> None:
    lying = replace(ORIN, modules={"numpy": version, "PIL": version, "torch": "0", "../../x": "0"})
    assert set(wheels_for(lying)) <= set(pinned_wheels())
    assert {wheel.module for wheel in wheels_for(lying)} <= set(IMPORTED)


def test_download_command_asks_for_this_very_wheel() -> None:
    (numpy, _) = wheels_for(ORIN)
    assert numpy.download_command("wheels") == (
        "pip download --no-deps --only-binary=:all: --python-version 3.10 --platform manylinux_2_17_aarch64 "
        "--platform manylinux2014_aarch64 numpy==1.26.4 -d wheels"
    )
