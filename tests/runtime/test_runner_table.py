"""The table of backends, and what opening a model decides before a backend is asked."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from edgebert.errors import BadDataError, UnavailableError
from edgebert.runtime import ort_runner
from edgebert.runtime import runner as runner_module
from edgebert.runtime.runner import (
    RUNNERS,
    InputSpec,
    ModelSource,
    check_device,
    check_logits,
    open_runner,
    physical_cores,
)
from edgebert.testing import FakeRunner

SPEC = InputSpec(height=2, width=2, classes=3)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend of one line in the table, on a computer with two GPUs."""
    monkeypatch.setitem(RUNNERS, "fake", "edgebert.testing:FakeRunner")
    monkeypatch.setattr(FakeRunner, "devices", classmethod(lambda cls: ("CPU", "GPU.0", "GPU.1")))
    return "fake"


def test_a_backend_is_one_line_in_the_table(two_gpus: str) -> None:
    with open_runner(two_gpus, ModelSource(spec=SPEC)) as opened:
        assert opened.infer(np.zeros((2, 2, 2, 3), np.uint8)).shape == (2, 3)


@pytest.mark.parametrize("device", ["CPU", "GPU", "GPU.1"])
def test_check_device_takes_a_numbered_device_for_its_kind(two_gpus: str, device: str) -> None:
    check_device(two_gpus, device)


@pytest.mark.parametrize("device", ["NPU", "GPU.2", "G", ""])
def test_check_device_names_what_is_there(two_gpus: str, device: str) -> None:
    with pytest.raises(UnavailableError, match=r"GPU\.0, GPU\.1"):
        check_device(two_gpus, device)


@pytest.mark.parametrize(
    "logits", [np.zeros((1, 4), np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float64)]
)
def test_check_logits_refuses_what_the_spec_does_not_promise(logits: np.ndarray) -> None:
    with pytest.raises(BadDataError, match="one logit per class"):
        check_logits(logits, 1, SPEC)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is a thing of Linux")
def test_physical_cores_counts_siblings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = {0: "0,4", 4: "0,4", 1: "1,5"}  # processor 2 tells nothing

    def read(path: Path) -> str:
        cpu = int(path.parts[5].removeprefix("cpu"))
        if cpu not in siblings:
            raise FileNotFoundError(path)
        return siblings[cpu] + "\n"

    monkeypatch.setattr(runner_module, "granted_cpus", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 4})
    monkeypatch.setattr(Path, "read_text", read)
    assert physical_cores() == 3


def test_physical_cores_falls_back_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "granted_cpus", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert physical_cores() == 6


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (8.0, 6), (2.0, 2), (2.9, 2), (0.5, 1)])
def test_physical_cores_keeps_to_the_quota_of_a_container(
    quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(runner_module, "granted_cpus", lambda: quota)
    assert physical_cores() == cores


def test_an_old_onnxruntime_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ort_runner, "_warned", set())
    monkeypatch.setattr(ort_runner, "installed_version", lambda module: "1.23.2")
    with caplog.at_level(logging.WARNING, "edgebert"):
        ort_runner._warn_below_security_floor()
        ort_runner._warn_below_security_floor()
    assert [record.args for record in caplog.records] == [("1.23.2", "1.28.3")]


@pytest.mark.parametrize("version", ["1.28.3", "1.31.1", "2.0"])
def test_a_safe_onnxruntime_is_not_warned_of(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ort_runner, "installed_version", lambda module: version)
    with caplog.at_level(logging.WARNING, "edgebert"):
        ort_runner._warn_below_security_floor()
    assert not caplog.records
