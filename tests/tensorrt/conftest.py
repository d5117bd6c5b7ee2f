"""The bindings of each supported TensorRT, and TensorRT for RTX, installed once for a run; lines in the summary say whether they were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.tensorrt.rtx import VERSION, Rtx, installed_rtx
from tests.tensorrt.wheels import WHEELS, Bindings, WheelsMissing, all_bindings

_HELD = pytest.StashKey[str]()
_BUILT = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bindings]]:
    """Every version: version -> what was installed. Skips, and says why, where the wheels cannot be had."""
    folder = tmp_path_factory.mktemp("bindings")
    try:
        found = all_bindings(folder)
        request.config.stash[_HELD] = f"checked against the official bindings of {', '.join(found)}"
        yield found
    except WheelsMissing as error:
        request.config.stash[_HELD] = f"NOT CHECKED against any binding wheel: {error}"
        pytest.skip(f"TensorRT's binding wheels: {error}")
    finally:
        shutil.rmtree(folder)  # their licence: installed for the test, and not kept


@pytest.fixture(params=[wheel.version for wheel in WHEELS])
def binding(request: pytest.FixtureRequest, bindings: dict[str, Bindings]) -> Bindings:
    """One version after the other."""
    version: str = request.param
    return bindings[version]


@pytest.fixture(scope="session")
def rtx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rtx]:
    """TensorRT for RTX. Skips, and says why, where its wheels cannot be had."""
    folder = tmp_path_factory.mktemp("rtx")
    try:
        found = installed_rtx(folder)
        request.config.stash[_BUILT] = f"graphs parsed and built by TensorRT for RTX {VERSION}"
        yield found
    except WheelsMissing as error:
        request.config.stash[_BUILT] = f"NOT BUILT by TensorRT for RTX: {error}"
        pytest.skip(f"TensorRT for RTX: {error}")
    finally:
        shutil.rmtree(folder)  # its licence: installed for the test, and not kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in the summary of a run what the TensorRT code was checked against; a skip must not pass unseen."""
    for key in (_HELD, _BUILT):
        held = config.stash.get(key, "")
        if held:
            terminalreporter.write_line(f"tensorrt: {held}", yellow=held.startswith("NOT"))
