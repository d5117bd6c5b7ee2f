"""The whole way on a device with a backend and neither numpy nor Pillow: the real wheels come from the index, and everything works.

The device is a bare Python: 3.10, as on JetPack 6, and in the long run newer ones. The wheels are kept in pytest's cache; where the index cannot be had, the tests are skipped
and say so.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edgebert._files import sha256_of_folder
from edgebert.bench.options import BenchOptions
from edgebert.errors import UnavailableError
from edgebert.remote.bench import bench_on
from edgebert.remote.devices import check_device_at
from edgebert.remote.install import install_on
from edgebert.remote.installation import status_on
from edgebert.remote.transport import LocalPipe
from edgebert.remote.wheel_files import default_cache, wheel_files
from edgebert.remote.wheel_pins import pinned_wheels

if TYPE_CHECKING:
    from tests.remote.conftest import DevicePython

pytest.importorskip("asyncssh")

_TARGETS = {"onnxruntime": "cpu", "openvino": "intel-cpu"}


@pytest.fixture
def bare_python(device_python: DevicePython, tmp_path: Path) -> Path:
    """A Python with the backend of a device, and with nothing of numpy and Pillow."""
    base = (
        device_python.python.resolve(),
        device_python.python.parents[1] / f"lib/python{device_python.version}/site-packages",
    )
    subprocess.run([str(base[0]), "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    packages = tmp_path / f"venv/lib/python{device_python.version}/site-packages"
    for path in base[1].iterdir():
        if path.name.lower().partition("-")[0].partition(".")[0] not in ("numpy", "pil", "pillow", "pip", "setuptools"):
            (packages / path.name).symlink_to(path)
    return tmp_path / "venv/bin/python"


@pytest.fixture
def cached(
    request: pytest.FixtureRequest, device_python: DevicePython, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The wheels of this device lie in the host's cache: the version of each module."""
    machine = os.uname().machine
    asked = (device_python.version, machine)
    wanted = [wheel for wheel in pinned_wheels() if (wheel.python, wheel.architecture) == asked]
    if len(wanted) != 2:
        pytest.skip(f"no wheels are pinned for {machine}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(request.config.cache.mkdir("device-wheels")))
    try:
        wheel_files(wanted, None, cache=default_cache())
    except UnavailableError as error:
        pytest.skip(error.what)
    return {wheel.module: wheel.version for wheel in wanted}


def test_bench_on_a_device_without_numpy_measures_and_leaves_nothing(
    bare_python: Path,
    device_python: DevicePython,
    cached: dict[str, str],
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    images, home = tmp_path / "images", tmp_path / "home"
    for name in ("bolt", "gear", "nut", "washer"):
        (images / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(images / name / f"{index}.png")
    (home / "tmp").mkdir(parents=True)
    pipe = LocalPipe(
        python=str(bare_python),
        environment={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home / "tmp")},
    )
    before = sha256_of_folder(bare_python.parents[1])
    options = BenchOptions(
        data=str(images),
        targets=(_TARGETS[device_python.backend],),
        launches=1,
        seconds=0.2,
        queries=40,
        max_warmup_seconds=0.0,
        threads=1,
    )
    result = bench_on(pipe, [make_toy_bundle(tmp_path / "toy.edgebert")], tmp_path / "result.json", options)
    assert (result.software["numpy"], result.software["Pillow"]) == (cached["numpy"], cached["PIL"])
    assert not result.status.partial
    assert sha256_of_folder(bare_python.parents[1]) == before
    assert [path.name for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_install_on_a_device_without_numpy_tests_itself_and_keeps_the_wheels_as_the_agent_is_kept(
    bare_python: Path,
    cached: dict[str, str],
    start_device: Callable[..., Any],
    host_home: Path,
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    before = sha256_of_folder(bare_python.parents[1])
    with start_device(python=bare_python) as device:
        device.trust(host_home / ".ssh/known_hosts")
        address = f"pi@127.0.0.1:{device.port}"
        report = install_on(address, bundle, "~/widgets")
        assert "answers all" in (report.self_test or "")
        assert status_on(address, "~/widgets").report.to_json()["current"] is not None
        kept = device.home / ".cache/edgebert"
        assert len(list((kept / "objects").iterdir())) == 2
        assert not [path.name for path in kept.iterdir() if path.name.startswith(("packages-", "session-"))]
        checked = check_device_at(address)
        assert checked.exit_code == 0
        found = {check.what: check.found for check in checked.checks}
        assert found["numpy"] == (
            f"missing there; edgebert brings {cached['numpy']} for its own process, 1.24 or newer is needed"
        )
    assert sha256_of_folder(bare_python.parents[1]) == before
