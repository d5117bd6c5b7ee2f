"""The short form of `benchmarks/kill_resume.py`: four kills, one of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_killed_distillation_resumes_to_equal_weights(tmp_path: Path) -> None:
    script, result = Path(__file__).parent.parent / "benchmarks/kill_resume.py", tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, str(script), "--kills", "4", "--seed", "1", "--json", str(result)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(result.read_text())
    assert told == {"kills": 4, "equal": 4, "kinds": {"step": 1, "border": 1, "write": 1, "time": 1}, "passed": True}
