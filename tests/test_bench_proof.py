"""Short forms of `make proof-bench`: what takes two hours there is looked at for its mechanism here."""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.card import ModelCard, Provenance
from edgebert.preprocess import Preprocessing
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

ROOT = Path(__file__).resolve().parents[1]
Benchmarks = Callable[[str], ModuleType]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    """Return a function that imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def row(verdict: str, others: float = 0.0) -> dict[str, object]:
    """Return a kept comparison."""
    return {
        "verdict": verdict,
        "ratio": 1.05,
        "ci95": [1.04, 1.06],
        "control_ci95": [0.99, 1.01],
        "p50_ns": 250_000,
        "launches": 8,
        "rounds": 32,
        "others": others,
        "when": "2026-11-25T00:00:00+00:00",
        "commit": "abc",
    }


@pytest.mark.parametrize(
    ("part", "verdicts", "code"),
    [
        ("control", ["inconclusive"] * 20 + ["equivalent"] * 18 + ["faster", "slower"], 0),
        ("control", ["inconclusive"] * 37 + ["faster"] * 3, 1),
        ("slowdown", ["slower"] * 36 + ["inconclusive"] * 4, 0),
        ("slowdown", ["slower"] * 35 + ["inconclusive"] * 4 + ["faster"], 1),
    ],
)
def test_comparisons_are_counted_as_the_list_says(
    benchmarks: Benchmarks, part: str, verdicts: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    aa = benchmarks("aa_comparisons")
    assert aa._verdict(part, [row(verdict) for verdict in verdicts], 1.0) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL" if code else "PASS")


def test_a_slowdown_is_not_judged_by_comparisons_that_others_disturbed(benchmarks: Benchmarks) -> None:
    aa = benchmarks("aa_comparisons")
    rows = [row("slower"), row("inconclusive", others=0.4), row("slower", others=0.2)]
    assert aa._counted("slowdown", rows) == [rows[0], rows[2]]
    assert aa._counted("control", rows) == rows


def test_comparisons_that_were_made_are_not_made_again(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aa = benchmarks("aa_comparisons")
    made: list[int] = []

    def measure(*paths: object, seed: int, spin_ns: float) -> SimpleNamespace:
        made.append(seed)
        return SimpleNamespace()

    monkeypatch.setattr(aa, "_measure", measure)
    monkeypatch.setattr(aa, "_row", lambda result, spin_ns: row("equivalent"))
    monkeypatch.setattr(aa, "fashion_data", lambda *arguments, **changes: tmp_path)
    graph = tmp_path / "g.onnx"
    graph.write_bytes(b"")
    (tmp_path / "aa-control.jsonl").write_text("".join(json.dumps(row("equivalent")) + "\n" for _ in range(3)))
    arguments = [str(tmp_path), "--part", "control", "--graph", str(graph), "--output", str(tmp_path)]
    logger = logging.getLogger("edgebert")
    level = logger.level
    try:
        assert aa.main([*arguments, "--comparisons", "5"]) == 0
    finally:
        logger.setLevel(level)
    assert made == [3, 4]
    assert len((tmp_path / "aa-control.jsonl").read_text().splitlines()) == 5
    assert "PASS 0 of 5" in capsys.readouterr().out


def test_the_spinning_worker_takes_longer_by_what_it_was_told(benchmarks: Benchmarks) -> None:
    spinning = benchmarks("_spinning_worker")
    card = ModelCard(
        class_names=("a", "b"),
        preprocessing=Preprocessing(height=4, width=4),
        provenance=Provenance(stage="export"),
    )
    pipeline = spinning._Spinning(FakeRunner(InputSpec(height=4, width=4, classes=2)), card, 3_000_000)
    batch: NDArray[np.uint8] = np.zeros((1, 4, 4, 3), np.uint8)
    started = time.perf_counter_ns()
    pipeline.infer(batch)
    assert time.perf_counter_ns() - started >= 3_000_000


def test_every_item_of_the_list_names_a_script_or_tests_that_exist(benchmarks: Benchmarks) -> None:
    proof = benchmarks("proof_bench")
    assert len({item.name for item in proof.ITEMS}) == len(proof.ITEMS)
    for item in proof.ITEMS:
        paths = [part for part in item.command if part.endswith(".py")]
        assert paths
        assert all((ROOT / path).is_file() for path in paths), item.name


def test_the_page_for_those_who_know_a_peer_names_every_figure(
    benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    figures = benchmarks("peer_figures")
    assert figures.main() == 0
    page = tmp_path / "page.md"
    page.write_text(figures.PAGE.read_text(encoding="utf-8").replace("Enqueue Time", "…"), encoding="utf-8")
    monkeypatch.setattr(figures, "PAGE", page)
    assert figures.main() == 1
    assert "does not name `Enqueue Time`" in capsys.readouterr().out


def test_the_harness_states_its_own_cost(benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks("harness_cost").main(["--processes", "1"])  # the aims are the proof's to judge, on a quiet computer
    said = capsys.readouterr().out
    assert "recorder_ns: median" in said
    assert "lateness_p99_ns: median" in said
