"""Devices by name, several devices at once, and what this computer cannot measure itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgebert.errors import BadDataError, UnavailableError, UsageError
from edgebert.remote.devices import KnownDevice, add_device, check_device_at, devices_file, known_device, known_devices
from edgebert.remote.fleet import _outputs, bench_fleet
from edgebert.remote.transport import LocalPipe, Ssh, transport_of

pytest.importorskip("asyncssh")
Start = Callable[..., Any]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return devices_file()


def test_add_device_makes_a_name_that_host_takes(config: Path) -> None:
    add_device(KnownDevice(name="orin", host="pi@camera-3:2222", python="~/edgebert/bin/python"))
    found = transport_of("orin")
    assert isinstance(found, Ssh)
    assert (str(found), found.python) == ("pi@camera-3:2222", "~/edgebert/bin/python")
    assert transport_of("orin", python="python3.12").python == "python3.12"
    assert json.loads(config.read_text())["schema"] == "edgebert.devices/1"


def test_add_device_refuses_another_device_of_the_same_name_without_force(config: Path) -> None:
    add_device(KnownDevice(name="orin", host="a"))
    with pytest.raises(UsageError, match="is a already"):
        add_device(KnownDevice(name="orin", host="b"))
    assert known_devices()["orin"].host == "a"
    add_device(KnownDevice(name="orin", host="b"), force=True)
    assert known_devices()["orin"].host == "b"


@pytest.mark.parametrize(("name", "host"), [("../x", "a"), ("-x", "a"), ("", "a"), ("x", "a b"), ("x", "-oProxy=1")])
def test_known_device_refuses_names_and_hosts_that_are_none(name: str, host: str) -> None:
    with pytest.raises(UsageError):
        KnownDevice(name=name, host=host)


def test_known_devices_refuses_a_file_of_something_else(config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text('{"schema": "other/1", "devices": []}')
    with pytest.raises(BadDataError, match="other/1"):
        known_device("orin")


def test_check_device_at_looks_at_all_that_matters(start_device: Start, host_home: Path, config: Path) -> None:
    with start_device() as device:
        device.trust(host_home / ".ssh/known_hosts")
        add_device(KnownDevice(name="board", host=f"pi@127.0.0.1:{device.port}"))
        checked = check_device_at("board")
    found = {check.what: check.state for check in checked.checks}
    assert {"host key", "python", "numpy", "Pillow", "targets", "disk", "lock", "clock"} <= set(found)
    assert set(found.values()) <= {"ok", "warning"}
    assert checked.exit_code == 0


def test_check_device_at_fails_where_the_host_key_is_unknown(start_device: Start, host_home: Path) -> None:
    with start_device() as device:
        checked = check_device_at(f"pi@127.0.0.1:{device.port}")
    assert [(check.what, check.state) for check in checked.checks] == [("host key and login", "fail")]
    assert "StrictHostKeyChecking=ask" in checked.checks[0].fix
    assert checked.exit_code == 1


def test_check_device_at_tells_what_a_device_lacks_from_one_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks(*arguments: Any, **options: Any) -> Any:
        raise UnavailableError("`local:` has no onnxruntime and no openvino")

    (found,) = check_device_at("local:/no/such/python").checks
    assert (found.what, found.state) == ("reached", "fail")
    monkeypatch.setattr("edgebert.remote.session.check_device_is_usable", lacks)
    (found,) = check_device_at("local:").checks
    assert (found.what, found.state) == ("usable", "fail")


def test_transport_of_takes_this_computer() -> None:
    assert transport_of("local:") == LocalPipe(python=sys.executable)
    assert transport_of("local:/usr/bin/python3").python == "/usr/bin/python3"


def test_outputs_of_a_fleet_are_one_for_each_device(tmp_path: Path) -> None:
    found = _outputs(tmp_path / "r.json", ("pi@a", "pi_a", "local:"))
    assert [path.name for path in found.values()] == ["r.pi-a.json", "r.pi-a-2.json", "r.local.json"]


def test_bench_fleet_refuses_a_device_twice_and_a_run_of_several(tmp_path: Path) -> None:
    from edgebert.bench.options import BenchOptions

    options = BenchOptions(data="digits")
    with pytest.raises(UsageError, match="devices `a, a`"):
        bench_fleet(["a", "a"], [], tmp_path / "r.json", options)
    with pytest.raises(UsageError, match="for several devices"):
        bench_fleet(["a", "b"], [], tmp_path / "r.json", options, resume=tmp_path / "run")


def edgebert(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgebert", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=folder, env=environment
    )


def test_bench_for_a_target_that_is_not_here_ends_with_69_and_names_the_two_ways_on(tmp_path: Path) -> None:
    ran = edgebert(tmp_path, "bench", "--target", "jetson")
    assert ran.returncode == 69, ran.stderr
    assert "`--target jetson` (the Jetson at hand, TensorRT) cannot run on this computer: " in ran.stderr
    assert "tensorrt" in ran.stderr
    assert "--host USER@HOST" in ran.stderr
    assert "on the device itself" in ran.stderr


@pytest.mark.parametrize("flag", ["--python=python3", "--keep-on-device", "--device-wheels=wheels", "--resume=run"])
def test_bench_refuses_options_of_a_device_without_one(tmp_path: Path, flag: str) -> None:
    ran = edgebert(tmp_path, "bench", "--data", "digits", "-o", "r.json", flag)
    assert ran.returncode == 2
    assert "--host USER@HOST" in ran.stderr


def test_devices_commands_add_and_list(tmp_path: Path, config: Path) -> None:
    assert edgebert(tmp_path, "devices", "add", "orin", "pi@camera-3").returncode == 0
    listed = edgebert(tmp_path, "devices", "list", "--json")
    assert json.loads(listed.stdout) == {"devices": [{"name": "orin", "host": "pi@camera-3", "python": "python3"}]}
