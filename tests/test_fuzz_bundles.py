"""The short form of benchmarks/fuzz_bundles.py, with its own mutator and a fixed seed; and that it finds what is planted."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return importlib.import_module("fuzz_bundles")


def _arguments(findings: Path, runs: int) -> list[str]:
    # The process of a whole test run has more memory than a reader of bundles, and others use its processor.
    return ["--engine", "mutator", "--runs", str(runs), "--findings", str(findings), "--mib", "1e6", "--limit", "30"]


def test_mutated_bundles_only_ever_raise_bundle_errors(
    fuzz: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = fuzz.main(_arguments(tmp_path / "findings", 1_500))
    said = capsys.readouterr().out
    assert code == 0, said
    assert not (tmp_path / "findings").exists()


@pytest.mark.parametrize("kind", range(5))
def test_the_good_input_of_each_kind_is_accepted(fuzz: Any, tmp_path: Path, kind: int) -> None:
    fuzzer = fuzz.Fuzzer(limit=30, findings=tmp_path / "findings", scratch=tmp_path)
    fuzzer.check(fuzzer.seeds()[kind])
    assert (fuzzer.runs, fuzzer.accepted, fuzzer.faults) == (1, 1, [])


def test_the_fuzzer_keeps_what_raises_something_else(
    fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr("edgebert.bundle.parse_json_object", fail)
    assert fuzz.main(_arguments(tmp_path / "findings", 200)) == 1
    assert "KeyError: 'planted'" in capsys.readouterr().out
    assert fuzz.main(["--replay", str(next((tmp_path / "findings").iterdir())), "--findings", str(tmp_path / "f")]) == 1
