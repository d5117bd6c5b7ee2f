"""A recipe killed with SIGKILL in each of its stages, called again, ends with complete and equal artefacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgebert._files import sha256_of_file
from edgebert.errors import NotComparableError
from edgebert.recipe import DEMO
from edgebert.stages import STAGES
from tests.recipes import TRIES, finish

for _module in ("torch", "onnx", "openvino", "onnxruntime", "matplotlib", "pydantic"):
    pytest.importorskip(_module)

# Two epochs, and a bench as short as it gets: what is tested is what lies on disk.
SHORT = (
    *("--set", "train.epochs=2", "--set", "distill.epochs=2", "--set", "quantize.images=32"),
    *("--set", "bench.queries=10", "--set", "bench.seconds=0.0", "--set", "bench.max_warmup_seconds=0.2"),
)


def _command(output: Path) -> list[str]:
    return [sys.executable, "-m", "edgebert", "run", str(DEMO), "-o", str(output), *SHORT]


def _kill_in(stage: str, output: Path, delay_s: float) -> None:
    """Start the recipe and kill it, but not its workers, `delay_s` after it said that it makes `stage`.

    A stage behind `bench` is reached once a measurement is valid: see `tests.recipes`.
    """
    for _ in range(TRIES):
        said: list[str] = []
        code = _killed_or_exit_code(stage, output, delay_s, said)
        if code != NotComparableError.exit_code:
            break
    assert code == -signal.SIGKILL, f"`{stage}` never started:\n{''.join(said)}"


def _killed_or_exit_code(stage: str, output: Path, delay_s: float, said: list[str]) -> int:
    with subprocess.Popen(
        _command(output), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith(f"{stage}: making"):
                time.sleep(delay_s)
                os.kill(process.pid, signal.SIGKILL)  # the process alone: its workers must notice by themselves
                break
    return process.returncode


def _graphs(output: Path) -> dict[str, str]:
    """SHA-256 of every graph and IR below the output."""
    return {
        path.relative_to(output).as_posix(): sha256_of_file(path)
        for path in sorted(output.rglob("*"))
        if path.suffix in (".onnx", ".xml", ".bin", ".safetensors")
    }


def _check_whole(output: Path) -> None:
    made = [stage.makes.format(name="digits") for stage in STAGES.values()]
    assert {path.name for path in output.iterdir()} == {*made, "stages", "digits.bench.samples.npz"}
    for name in made[:-1]:  # the page is no artefact to verify
        verified = subprocess.run(
            [sys.executable, "-m", "edgebert", "verify", str(output / name)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert verified.returncode == 0, verified.stderr


@pytest.mark.slow
def test_recipe_ends_complete_when_killed_in_each_stage(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(_command(whole))
    for stage in STAGES:
        _kill_in(stage, killed, delay_s=1.5 if stage in ("train", "distill", "bench") else 0.5)
    finish(_command(killed))
    _check_whole(killed)
    assert _graphs(killed) == _graphs(whole)
    assert "made nothing" in finish(_command(killed))
