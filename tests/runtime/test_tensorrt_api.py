"""Which TensorRT and which board is taken, and what is said of the others."""

from __future__ import annotations

import builtins
import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from edgebert.errors import UnavailableError, UsageError
from edgebert.fingerprint import GpuFacts
from edgebert.runtime.tensorrt_api import (
    check_board,
    check_version,
    is_strong_only,
    l4t_refusal,
    load_tensorrt,
    logger_of,
    network_flags,
    new_builder,
    recorded,
)
from tests.tensorrt.double import VERSIONS, Script, tensorrt_double

JETPACK_6_2 = "36.4.3"


@pytest.mark.parametrize("version", [*VERSIONS, "10.3.0.30", "10.16.1.11", "11.5.0"])
def test_supported_versions_pass(version: str) -> None:
    check_version(version, l4t=JETPACK_6_2)


@pytest.mark.parametrize(
    "version", ["8.6.2", "8.5.2.2", "9.0.0", "10.0.1", "10.1.0", "10.2.0.post1", "12.0.0", "nonsense"]
)
def test_unsupported_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(UnavailableError, match=f"TensorRT `{version}` is not supported") as caught:
        check_version(version, l4t=None)
    assert "TensorRT 10.3 to 10.16" in str(caught.value.expected)
    assert "11.4.1" in str(caught.value.expected)


@pytest.mark.parametrize("version", ["11.0.0.114", "11.2.1.2", "11.4.0.106"])
def test_early_versions_of_11_are_refused_on_a_jetson_alone(version: str) -> None:
    check_version(version, l4t=None)
    with pytest.raises(UnavailableError, match=r"TensorRT 11 supports JetPack from 11\.4\.1 on"):
        check_version(version, l4t="39.2.1")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        *(("32.7.1", "JetPack 4"), ("34.1.0", "JetPack 5"), ("35.3.1", "JetPack 5"), ("36.0.0", r"JetPack 6\.0")),
        *(("36.2.0", r"JetPack 6\.0"), ("36.3.0", r"JetPack 6\.0")),
    ],
)
def test_old_jetpacks_are_refused_by_name(l4t: str, jetpack: str) -> None:
    with pytest.raises(UnavailableError, match=rf"^L4T {l4t} \({jetpack}\) is older than JetPack 6\.1") as caught:
        check_board(GpuFacts(compute_capability="8.7", l4t=l4t))
    assert "JetPack 6.1 (L4T 36.4.0) with TensorRT 10.3" in str(caught.value.expected)


@pytest.mark.parametrize("l4t", ["36.4.0", "36.4.3", "36.4.7", "36.5.0", "38.2.2", "38.4.0", "39.2.1", None])
def test_supported_jetpacks_pass(l4t: str | None) -> None:
    check_board(GpuFacts(compute_capability="8.7", l4t=l4t))


@pytest.mark.parametrize("l4t", ["36.4.0", "39.2.1", "41.0.0", None, "nonsense"])
def test_l4t_refusal_refuses_nothing_newer_and_nothing_unknown(l4t: str | None) -> None:
    assert l4t_refusal(l4t) == ""


@pytest.mark.parametrize(("capability", "board"), [("7.2", "Xavier"), ("5.3", "Nano or TX1"), ("6.2", "TX2")])
def test_old_boards_are_refused_by_name(capability: str, board: str) -> None:
    with pytest.raises(UnavailableError, match=f"a Jetson {board}") as caught:
        check_board(GpuFacts(compute_capability=capability, l4t="35.3.1"))
    assert "Orin (8.7) or Thor (11.0)" in str(caught.value.expected)


def test_a_tensorrt_that_knows_no_strong_typing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trt: Any = tensorrt_double("10.3.0", Script())
    del trt.NetworkDefinitionCreationFlag
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(UnavailableError, match="it knows no strongly typed networks"):
        load_tensorrt()


def test_a_missing_tensorrt_names_the_two_ways_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match="TensorRT is not on this computer") as caught:
        load_tensorrt()
    assert "--host USER@HOST" in str(caught.value.hint)
    assert "on the board itself" in str(caught.value.hint)


def test_bindings_without_their_libraries_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module

    def broken(name: str, package: str | None = None) -> ModuleType:
        if name == "tensorrt":
            raise ImportError("libnvinfer.so.10: cannot open shared object file: No such file or directory")
        return plain(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UnavailableError, match=r"libnvinfer\.so\.10") as caught:
        load_tensorrt()
    assert "python3-libnvinfer" in str(caught.value.hint)


def test_an_old_board_is_refused_before_tensorrt_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", None)
    with pytest.raises(UnavailableError, match="JetPack 5"):
        load_tensorrt(facts=GpuFacts(l4t="35.3.1"))


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_builds(version: str) -> None:
    trt = tensorrt_double(version, Script())
    strong_only = version.startswith("11.")
    assert is_strong_only(trt) is strong_only
    assert network_flags(trt, "strong") == (0 if strong_only else 2)
    if strong_only:
        with pytest.raises(UsageError, match="`--typing weak`"):
            network_flags(trt, "weak")
    else:
        assert network_flags(trt, "weak") == 0


def test_one_logger_serves_a_process() -> None:
    trt = tensorrt_double("10.3.0", Script())
    assert logger_of(trt) is logger_of(trt)


def test_a_log_holds_what_was_said_meanwhile() -> None:
    trt = tensorrt_double("10.3.0", Script())
    logger, severity = logger_of(trt), trt.ILogger.Severity
    logger.log(severity.ERROR, "before")
    with recorded(logger) as log:
        logger.log(severity.VERBOSE, "chatter")
        logger.log(severity.WARNING, "odd")
        assert log.errors() == ["odd"]
        logger.log(severity.INTERNAL_ERROR, "bad")
        logger.log(severity.ERROR, "worse")
        assert log.errors() == ["bad", "worse"]
    assert logger.collected.errors() == ["before"]
    assert [line.text for line in log.lines] == ["odd", "bad", "worse"]


def test_a_log_keeps_the_newest() -> None:
    trt = tensorrt_double("10.3.0", Script())
    logger = logger_of(trt)
    with recorded(logger) as log:
        for number in range(1000):
            logger.log(trt.ILogger.Severity.ERROR, str(number))
    assert len(log.lines) == 200
    assert log.errors()[-1] == "999"


def test_a_builder_that_cannot_start_names_the_driver() -> None:
    trt = tensorrt_double("10.3.0", Script(has_gpu=False))
    with pytest.raises(UnavailableError, match="TensorRT finds no NVIDIA driver or no GPU"):
        new_builder(trt, logger_of(trt))
