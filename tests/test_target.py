"""The target table."""

from __future__ import annotations

from typing import get_args

import pytest

from edgebert.errors import UsageError
from edgebert.runtime.runner import RUNNERS
from edgebert.target import TARGETS, Backend, Form, resolve_target


def test_targets_are_those_of_the_design() -> None:
    assert list(TARGETS) == [
        "cpu",
        "intel-cpu",
        "intel-gpu",
        "intel-npu",
        "jetson",
        "jetson-orin-nano",
        "jetson-orin-nx",
        "jetson-agx-orin",
        "jetson-agx-thor",
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_consistent(name: str) -> None:
    target = resolve_target(name)
    assert target.name == name
    assert target.backend in get_args(Backend)
    assert target.form in get_args(Form)
    assert target.form == {"onnxruntime": "ort", "openvino": "ir", "tensorrt": "engine"}[target.backend]
    assert target.backend in RUNNERS
    assert target.summary


def test_resolve_target_suggests_and_never_takes_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target("intel_cpu")
    assert "did you mean `--target intel-cpu`?" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        resolve_target("zzz")
    assert caught.value.hint == "edgebert targets"
    assert "jetson-orin-nx" in str(caught.value)
