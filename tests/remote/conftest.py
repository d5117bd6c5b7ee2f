"""A device's Python: numpy, Pillow and one backend, no typer and no edgebert but the device wheel on PYTHONPATH."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgebert.remote.device_wheel import REQUIRES, write_device_wheel


@dataclass(frozen=True)
class DevicePython:
    """An interpreter with what the device wheel requires, and the wheel."""

    python: Path
    version: str
    backend: str
    wheel: Path

    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in a folder, the wheel file on its path, warnings of edgebert being errors."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PYTHONPATH"] = str(self.wheel)
        command = [str(self.python), "-W", "error:::edgebert", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=300
        )


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_device_wheel(tmp_path_factory.mktemp("device-wheel"))


def _cases() -> list[object]:
    """One interpreter in `make test`, the oldest; all others in `make test-slow`."""
    versions, backends = ("3.10", "3.11", "3.12", "3.13"), ("onnxruntime", "openvino")
    return [
        pytest.param(
            (version, backend),
            id=f"{version}-{backend}",
            marks=[] if (version, backend) == ("3.10", "onnxruntime") else pytest.mark.slow,
        )
        for version in versions
        for backend in backends
    ]


@pytest.fixture(scope="session", params=_cases())
def device_python(request: pytest.FixtureRequest, wheel_file: Path) -> DevicePython:
    """An environment kept in pytest's cache, made where it is not there yet."""
    version, backend = request.param
    interpreter = _interpreter(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} on this computer")
    requirements = [requirement.replace(f"extra == '{backend}'", "python_version > '3'") for requirement in REQUIRES]
    key = hashlib.sha256("\n".join([interpreter, *requirements]).encode()).hexdigest()[:12]
    folder = request.config.cache.mkdir(f"device-wheel-{version}-{backend}-{key}") / "venv"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(folder)], check=True, capture_output=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        installed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if installed.returncode:
            pytest.skip(f"pip cannot install a device's packages here: {installed.stderr.strip().splitlines()[-1]}")
        complete.touch()
    return DevicePython(python=python, version=version, backend=backend, wheel=wheel_file)


def _interpreter(version: str) -> str | None:
    """Return an interpreter of this version that really starts, or None."""
    managed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python"))
    for candidate in (*map(str, managed), shutil.which(f"python{version}")):
        if candidate is None:
            continue
        asked = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == version:
            return candidate
    return None


@pytest.fixture
def host_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user who installs, without an SSH agent."""
    home = tmp_path / "host"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def ssh_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of benchmarks/ with the SSH server and the cutting proxy."""
    pytest.importorskip("asyncssh")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("_ssh_device")


@pytest.fixture
def start_device(ssh_device: Any, host_home: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes an SSH server of a device; it is started by `with`."""

    def start(name: str = "device", **options: Any) -> Any:
        return ssh_device.SshDevice(home=tmp_path / name, host_home=host_home, **options)

    return start


@pytest.fixture
def cutting_proxy(ssh_device: Any) -> Callable[..., Any]:
    """Return the class of the proxy that cuts."""
    proxy: Callable[..., Any] = ssh_device.CuttingProxy
    return proxy
