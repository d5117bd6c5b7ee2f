"""Links cut at a few positions, as `benchmarks/remote_cuts.py` cuts them at 200: bench, compile and size."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("asyncssh")
pytest.importorskip("onnx")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("command", "positions"),
    [("compile", 8), pytest.param("bench", 8, marks=pytest.mark.slow), pytest.param("size", 6, marks=pytest.mark.slow)],
)
def test_links_cut_at_a_few_positions_end_in_a_correct_verdict(
    command: str,
    positions: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command == "size":
        pytest.importorskip("torch")
    for name in ("HOME", "SSH_AUTH_SOCK"):  # restored after the test: the sweep sets them
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cuts = importlib.import_module("remote_cuts")
    kept = tmp_path / "cuts.jsonl"
    given = ["--command", command, "--positions", str(positions), "--silent", "2", "--kept", str(kept)]
    assert cuts.main(given) == 0
    assert f"{positions} cuts of {command} (2 of them silent): 0 wrong" in capsys.readouterr().out
    assert len([json.loads(line) for line in kept.read_text().splitlines()]) == positions + 1
