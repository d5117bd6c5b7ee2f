"""When the binding wheels cannot be had the reason is said, and a version that does not exist is no such reason."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tensorrt.wheels import WHEELS, WheelsMissing, installed, require_host


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let pip ask nobody, and find one version in a folder."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "known_bindings-1.0-py3-none-any.whl").touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))


def test_installed_says_that_no_index_has_a_wheel(tmp_path: Path) -> None:
    with pytest.raises(WheelsMissing, match=r"pip cannot fetch tensorrt-cu12-bindings==10\.3\.0: ERROR: No matching"):
        installed(WHEELS[0], tmp_path)


def test_installed_fails_where_an_index_answers_without_the_version(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"from versions: 1\.0"):
        installed(replace(WHEELS[0], requirement="known-bindings==2.0"), tmp_path)


def test_require_host_names_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(WheelsMissing, match="this is Linux on aarch64"):
        require_host()


def test_require_host_names_a_python_without_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(WheelsMissing, match=r"wheels up to Python 3\.12"):
        require_host()


def test_require_host_names_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(WheelsMissing, match="no C compiler"):
        require_host()
