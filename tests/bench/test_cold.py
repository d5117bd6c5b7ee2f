"""Cold starts of a worker whose arm is a script."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgebert.bench.arms import ArmRequest
from edgebert.bench.scenarios.cold import artefact_files, cold_starts, drop_pages
from edgebert.card import ModelCard, Provenance
from edgebert.errors import EdgebertError, UnavailableError
from edgebert.preprocess import Preprocessing

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
IMAGE = np.zeros((8, 8, 3), np.uint8)


def arm_of(folder: Path, **script: object) -> ArmRequest:
    card = ModelCard(
        class_names=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=8, width=8),
        provenance=Provenance(stage="export"),
    )
    path = folder / "arm.onnx"
    path.write_text(json.dumps({"card": card.to_json(), "answers": [0] * 16, "latency_ms": 0.2, **script}))
    return ArmRequest(name="arm", path=path, kind="graph", target="cpu")


def test_cold_starts_times_fresh_processes_and_their_parts_add_up(tmp_path: Path) -> None:
    found = cold_starts(arm_of(tmp_path, latency_ms=30.0), IMAGE, threads=1, count=2, worker_command=WORKER)
    parts = (found.process, found.import_backend, found.load, found.first_infer)
    assert all(len(part.values) == 2 for part in (*parts, found.total))
    assert all(value > 0 for part in parts for value in part.values)
    for start in range(2):
        assert sum(part.values[start] for part in parts) == found.total.values[start]
        assert found.first_infer.values[start] > 29_000_000  # the script's wait is in it
    assert found.total.median in found.total.values
    assert "(1)" in found.page_cache


def test_cold_starts_raises_what_the_process_met(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="arm `arm`"):
        cold_starts(arm_of(tmp_path, unavailable=True), IMAGE, threads=1, count=1, worker_command=WORKER)
    with pytest.raises(EdgebertError, match="exit code 9"):
        cold_starts(arm_of(tmp_path, crash_at=0), IMAGE, threads=1, count=1, worker_command=WORKER)


def test_artefact_files_are_the_file_or_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("b.json", "a.bin", "deep/c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in artefact_files(tmp_path)] == ["a.bin", "b.json", "c.bin"]
    assert artefact_files(tmp_path / "a.bin") == [tmp_path / "a.bin"]
    assert artefact_files(tmp_path / "none") == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot drop pages")
def test_drop_pages_says_when_the_system_keeps_one(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(1 << 16))
    if not drop_pages([file]):
        pytest.skip("this file system keeps its pages")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[0] == file.read_bytes()[0]  # a page that a program has mapped and read stays
        assert not drop_pages([file])
    assert drop_pages([file])


def test_drop_pages_claims_nothing_where_the_system_cannot_drop_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert not drop_pages([file])
