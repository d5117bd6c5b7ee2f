"""The short form of `benchmarks/runtime_soak.py`, and that it fails where something is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "runtime_soak.py"


def _soak(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    if before:
        code = f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n{before}\nimport runtime_soak\nsys.exit(runtime_soak.main())"
        command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_threads_get_no_wrong_answer() -> None:
    ran = _soak("threads", "--seconds", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(
        r"onnxruntime 0 wrong of .* 0 arrays changed; openvino 0 wrong of .* 0 arrays changed$", ran.stdout
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_swaps_lose_and_mix_nothing(backend: str) -> None:
    ran = _soak("swaps", "--swaps", "20", "--warm-up", "0", "--backend", backend, "--here")
    record = json.loads(ran.stdout.splitlines()[-1])
    assert (record["swaps"], record["refused"], record["failed"], record["mixed"]) == (20, 2, 0, 0), ran.stderr
    assert record["answers"] > 100


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_many_calls_leave_nothing_behind(backend: str) -> None:
    ran = _soak("leaks", "--inferences", "8000", "--failures", "2000", "--backend", backend, "--here")
    record = json.loads(ran.stdout.splitlines()[-1])
    assert record["descriptors_threads_after"] == record["descriptors_threads_before"]
    assert record["grown_kib"] < 1_024
    assert record["failures_grown_kib"] < 512


_MIXED = """
import itertools
from dataclasses import replace
from edgebert.runtime.pipeline import Pipeline
digests = []
def post(self, logits, post=Pipeline.post):
    digests.append(self.digest)
    return [replace(answer, digest=digests[0]) for answer in post(self, logits)]
Pipeline.post = post
"""
_WRONG = """
import numpy as np
from edgebert.runtime.pipeline import Pipeline
calls = []
def infer(self, batch, infer=Pipeline.infer):
    calls.append(None)
    return infer(self, batch) + np.float32(len(calls) % 50 == 49) * np.arange(4, dtype=np.float32)
Pipeline.infer = infer
"""
_LEAKING = """
from edgebert.runtime.pipeline import Pipeline
kept = []
def pre(self, image, pre=Pipeline.pre):
    kept.append(bytes(1_000))
    return pre(self, image)
Pipeline.pre = pre
"""


@pytest.mark.parametrize(
    ("part", "mutant"),
    [
        (("threads", "--seconds", "0.5"), _WRONG),
        (("leaks", "--inferences", "8000", "--failures", "90"), _LEAKING),
    ],
    ids=["wrong", "leaking"],
)
def test_soak_finds_what_is_planted(part: tuple[str, ...], mutant: str) -> None:
    ran = _soak(*part, "--backend", "onnxruntime", "--here", before=mutant)
    assert json.loads(ran.stdout.splitlines()[-1])["held"] is False, ran.stderr


def test_soak_finds_mixed_answers() -> None:
    ran = _soak("swaps", "--swaps", "4", "--warm-up", "0", "--backend", "onnxruntime", "--here", before=_MIXED)
    assert ran.returncode != 0 or json.loads(ran.stdout.splitlines()[-1])["held"] is False
