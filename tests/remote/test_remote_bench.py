"""`bench --host`: what a device measures becomes a result of this computer, whole and checked, or no result at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgebert.bench.comparison.validation import check_result
from edgebert.bench.options import BenchOptions
from edgebert.bench.result import read_result
from edgebert.remote.bench import bench_on
from edgebert.remote.transport import LocalPipe, Ssh, transport_of

pytest.importorskip("asyncssh")
pytest.importorskip("onnxruntime")
MakeBundle = Callable[[Path], Path]
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("bolt", "gear", "nut", "washer"):
        (root / name).mkdir()
        for index in range(6):
            pixels = generator.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def quick(images: Path) -> BenchOptions:
    return BenchOptions(
        data=str(images), targets=("cpu",), launches=1, seconds=0.2, queries=40, max_warmup_seconds=0.0, threads=1
    )


@pytest.fixture
def bundle(make_toy_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


@pytest.fixture
def device_home(tmp_path: Path) -> Path:
    (tmp_path / "device/tmp").mkdir(parents=True)
    return tmp_path / "device"


@pytest.fixture
def pipe(device_home: Path) -> LocalPipe:
    """A device that is a process of this computer, in a home folder of its own."""
    return LocalPipe(
        environment={"HOME": str(device_home), "PATH": os.environ["PATH"], "TMPDIR": str(device_home / "tmp")}
    )


def left_on(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "bin" not in path.parts)


def test_bench_on_writes_a_result_that_holds_and_leaves_nothing(
    pipe: LocalPipe, bundle: Path, quick: BenchOptions, tmp_path: Path, device_home: Path
) -> None:
    output = tmp_path / "result.json"
    result = bench_on(pipe, [bundle], output, quick)
    assert [arm.role for arm in result.arms] == ["baseline", "aa"]
    assert result.arms[0].scenarios[0].queries >= 40
    assert any("statistics follow" in line for line in check_result(output))
    assert read_result(output) == result
    assert not output.with_name("result.json.run").exists()
    assert [name for name in left_on(device_home) if not name.endswith(".lock")] == []


def test_bench_on_over_ssh_says_how_the_device_was_reached(
    start_device: Start, host_home: Path, bundle: Path, quick: BenchOptions, tmp_path: Path
) -> None:
    with start_device() as device:
        device.trust(host_home / ".ssh/known_hosts")
        output = tmp_path / "result.json"
        result = bench_on(transport_of(f"pi@127.0.0.1:{device.port}"), [bundle], output, quick)
        assert result.device.transport == "ssh"
        assert result.command[3:5] == ("--host", f"127.0.0.1:{device.port}")
        check_result(output)
        assert len(device.commands) == 1
        assert [name for name in left_on(device.home) if not name.endswith(".lock")] == []
