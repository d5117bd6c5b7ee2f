"""`engine.json`: exact bytes, what is refused, and what decides whether an engine fits a computer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from edgebert._json import dump_json
from edgebert.errors import BadDataError, RefusedError, UnavailableError
from edgebert.fingerprint import ComputerFacts, GpuFacts
from edgebert.runtime.engine_manifest import EngineManifest, check_engine, differences, engine_fingerprint

ORIN = GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, cuda="12.6", l4t="36.4.3")
HERE = ComputerFacts(os="linux", machine="aarch64", backend="tensorrt", backend_version="10.3.0", gpu=ORIN)
PLAN = b"a plan"
MANIFEST = EngineManifest(
    plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    plan_bytes=len(PLAN),
    graph_sha256="ab" * 32,
    typing="weak",
    precision="int8",
    flags=("FP16", "INT8"),
    min_batch=1,
    max_batch=1,
    fingerprint=engine_fingerprint(ORIN, tensorrt="10.3.0", machine="aarch64"),
    versions={"tensorrt": "10.3.0"},
)
TEXT = """{
 "fingerprint": {
  "backend_version": "== 10.3.0",
  "compute_capability": "8.7",
  "cuda": "== 12.6",
  "gpu": "Orin",
  "l4t": "== 36.4.3",
  "machine": "aarch64",
  "multiprocessors": 8,
  "os": "linux"
 },
 "flags": [
  "FP16",
  "INT8"
 ],
 "graph_sha256": "abababababababababababababababababababababababababababababababab",
 "max_batch": 1,
 "min_batch": 1,
 "plan_bytes": 6,
 "plan_sha256": "PLAN",
 "precision": "int8",
 "schema": "edgebert.engine/1",
 "typing": "weak",
 "versions": {
  "tensorrt": "10.3.0"
 }
}
"""


def test_bytes_are_exactly_these() -> None:
    assert MANIFEST.to_bytes().decode() == TEXT.replace("PLAN", MANIFEST.plan_sha256)


def test_what_was_written_is_read_back() -> None:
    assert EngineManifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


@pytest.mark.parametrize(
    ("typing", "precision", "label"),
    [
        *(("weak", "int8", "weak-int8-fp16"), ("weak", "fp16", "weak-fp16"), ("strong", "int8", "strong-int8")),
        ("strong", "fp32", "strong-fp32"),
    ],
)
def test_label_says_how_it_was_built(typing: Any, precision: Any, label: str) -> None:
    assert replace(MANIFEST, typing=typing, precision=precision).label == label


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "edgebert.engine/2"}, r"has schema `edgebert\.engine/2`"),
        ({"typing": "loose"}, "has typing `loose`"),
        ({"precision": "int4"}, "precision `int4`"),
        ({"plan_sha256": None}, "as `plan_sha256`"),
        ({"plan_bytes": "6"}, "as `plan_bytes`"),
        ({"flags": "FP16"}, "as `flags`"),
        ({"fingerprint": {}}, "fingerprint without `backend_version`"),
        ({"versions": {"tensorrt": 10}}, "as `tensorrt`"),
        ({"plan_sha256": "\x1b[2J"}, "control character"),
    ],
)
def test_a_malformed_manifest_is_bad_data(change: dict[str, Any], said: str) -> None:
    content = dump_json({**json.loads(MANIFEST.to_bytes()), **change}).encode()
    with pytest.raises(BadDataError, match=said):
        EngineManifest.from_bytes(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"schema": 1, "schema": 2}', b"x" * (65 << 10)])
def test_bytes_that_are_no_manifest_are_bad_data(content: bytes) -> None:
    with pytest.raises(BadDataError):
        EngineManifest.from_bytes(content)


def test_an_engine_fits_the_computer_that_built_it() -> None:
    check_engine(MANIFEST, PLAN, HERE)


def test_an_engine_that_was_changed_is_refused_before_it_is_compared() -> None:
    with pytest.raises(RefusedError, match=r"`engine\.plan` has SHA-256"):
        check_engine(MANIFEST, PLAN + b"x", replace(HERE, backend_version="10.7.0"))


def test_every_difference_is_named() -> None:
    other = replace(
        HERE, machine="x86_64", backend_version="10.7.0", gpu=replace(ORIN, multiprocessors=16, l4t="36.5.0")
    )
    with pytest.raises(UnavailableError) as caught:
        check_engine(MANIFEST, PLAN, other)
    for part in ("aarch64", "TensorRT 10.3.0, here is 10.7.0", "8, here is 16", "L4T 36.4.3, here is 36.5.0"):
        assert part in caught.value.what


@pytest.mark.parametrize("missing", ["name", "compute_capability", "multiprocessors"])
def test_no_fingerprint_is_made_of_an_unknown_gpu(missing: str) -> None:
    facts = replace(ORIN, **{missing: None})
    with pytest.raises(UnavailableError, match="does not say which GPU this is"):
        engine_fingerprint(facts, tensorrt="10.3.0", machine="aarch64")


def test_a_gpu_of_no_jetson_has_no_l4t_to_ask_for() -> None:
    made = engine_fingerprint(replace(ORIN, l4t=None), tensorrt="10.3.0", machine="x86_64")
    assert made.l4t is None


def test_differences_name_graph_and_flags() -> None:
    assert differences(MANIFEST, graph_sha256=MANIFEST.graph_sha256, flags=MANIFEST.flags) == ()
    found = differences(MANIFEST, graph_sha256="cd" * 32, flags=("FP16",))
    assert found == (
        "built from graph abababababab, this is cdcdcdcdcdcd",
        "built with FP16 INT8, asked for FP16",
    )
