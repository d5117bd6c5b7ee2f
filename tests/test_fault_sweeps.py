"""The short forms of the crash proofs: every script on a part of its points, and the faulty writers that each must catch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

pytest.importorskip("onnx")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting needs root")


def said_by(script: str, *arguments: str) -> str:
    """Return the last line of a script, which must succeed; skip where its computer cannot do what it needs."""
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, check=False
    )
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ""
    if ": not run: " in last:
        pytest.skip(last)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return last


@needs_strace
@pytest.mark.parametrize("command", ["compile", "quantize", "install"])
def test_kill_at_a_system_call_leaves_old_or_new_and_the_next_call_succeeds(command: str) -> None:
    last = said_by("kill_sweep.py", "--command", command, "--every", "80", "--random", "10")
    assert "0 torn or mixed, 0 next calls failed, 0 wrong exit codes" in last


@needs_strace
def test_kill_sweep_catches_every_faulty_writer() -> None:
    assert said_by("kill_sweep.py", "--mutants").endswith("missed: none")


@needs_strace
@pytest.mark.parametrize("command", ["compile", "quantize", "install"])
def test_failing_writes_give_74_and_keep_the_old_artefact(command: str) -> None:
    last = said_by("disk_full.py", "--command", command, "--every", "120")
    assert "0 with another exit or without the old artefact, 0 next calls failed" in last


@needs_strace
def test_disk_full_catches_every_faulty_writer() -> None:
    assert said_by("disk_full.py", "--mutants").endswith("missed: none")


@needs_root
def test_power_cut_leaves_the_old_or_the_new_installation() -> None:
    last = said_by("power_cuts.py", "--cuts", "10", "--longest", "2")
    assert last.endswith("0 torn, lost or not healed")


@needs_root
def test_power_cuts_catch_an_installer_that_never_syncs() -> None:
    assert "(mutant)" in said_by("power_cuts.py", "--cuts", "20", "--longest", "3", "--mutant")


def test_of_two_runs_with_one_output_one_works_and_the_other_is_told() -> None:
    assert ", 0 without exactly one winner" in said_by("lock_races.py", "--races", "4")
