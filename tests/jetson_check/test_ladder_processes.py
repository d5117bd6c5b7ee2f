"""Whole ladders in processes of their own, over the doubles: all that holds, and what crashes or hangs ends as a rung that failed."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import __version__
from edgebert.jetson_check import ladder
from edgebert.jetson_check.ladder import Climb, check_jetson, step_of, steps
from edgebert.jetson_check.privacy import names_here
from edgebert.jetson_check.process import CHILD_COMMAND
from edgebert.jetson_check.reference import CLASSES, IMAGES, read_reference
from edgebert.jetson_check.report import Report, Rung

Board = Callable[..., Path]
Children = Callable[..., None]
SERIAL = "1423019123456"


@pytest.fixture(scope="module")
def climbed(
    board: Board, children: Children, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Report, Path]]:
    """A ladder on an Orin Nano, and the folder for temporary files that it had."""
    root, temporary = board("orin-nano"), tmp_path_factory.mktemp("temporary")
    (root / "proc/device-tree/serial-number").write_text(f"{SERIAL}\x00")
    with pytest.MonkeyPatch.context() as patch:
        children(patch)
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr("tempfile.tempdir", None)
        yield check_jetson(root=root, most_s=120), temporary


def rung(report: Report, name: str) -> Rung:
    return next(each for each in report.rungs if each.name == name)


def test_every_rung_holds_on_a_board_that_is_in_order(climbed: tuple[Report, Path]) -> None:
    report, _ = climbed
    assert [(each.name, each.state) for each in report.rungs] == [(step.name, "ok") for step in steps()], (
        report.to_text()
    )
    assert (report.exit_code, report.edgebert, report.board) == (0, __version__, "Orin Nano developer kit")


def test_the_board_and_its_software_are_named(climbed: tuple[Report, Path]) -> None:
    facts = rung(climbed[0], "board").facts
    assert (facts["l4t"], facts["jetpack"], facts["gpu"], facts["multiprocessors"]) == ("36.4.3", "6.2", "Orin", 8)
    assert rung(climbed[0], "bindings").facts["tensorrt"] == "10.3.0"
    assert rung(climbed[0], "cuda").facts["compute capability"] == "8.7"


def test_engines_are_built_as_asked(climbed: tuple[Report, Path]) -> None:
    found = {name: rung(climbed[0], f"build {name}").facts for name in ("fp16", "int8", "int8 weak")}
    labels = {name: facts["label"] for name, facts in found.items()}
    assert labels == {"fp16": "strong-fp16", "int8": "strong-int8", "int8 weak": "weak-int8-fp16"}
    assert found["int8 weak"]["flags"] == ["FP16", "INT8"]


@pytest.mark.parametrize("name", ["fp16", "int8", "int8 weak"])
def test_the_file_holds_what_the_engine_answered(climbed: tuple[Report, Path], name: str) -> None:
    facts = rung(climbed[0], f"parity {name}").facts
    logits = np.array(facts["logits"], np.float32).reshape(IMAGES, CLASSES)
    apart = float(np.abs(logits - read_reference().engine(name).logits).max())
    assert apart == pytest.approx(facts["largest_difference"], abs=1e-5)
    assert apart <= read_reference().engine(name).control


def test_both_clocks_are_in_the_file(climbed: tuple[Report, Path]) -> None:
    facts = rung(climbed[0], "timing fp16").facts
    assert facts["gpu_p50_ms"] == 0.5  # what the double of CUDA says of each run
    assert float(facts["wall_p50_ms"]) > 0  # type: ignore[arg-type]  # a fact of the file


def test_nothing_is_left_behind(climbed: tuple[Report, Path]) -> None:
    left = {path.name for path in climbed[1].iterdir()} - {
        f"edgebert-locks-{os.getuid()}"
    }  # which every command shares
    assert left == set()


def test_the_file_tells_nothing_of_the_user_and_the_computer(climbed: tuple[Report, Path]) -> None:
    report, temporary = climbed
    text = json.dumps(report.to_json())
    hidden = {SERIAL, str(temporary), str(Path.home()), f"/{getpass.getuser()}/", socket.gethostname()} - {"/"}
    assert [secret for secret in hidden if len(secret) > 3 and secret in text] == []


# What crashes, and what hangs


@pytest.fixture
def climb(board: Board, tmp_path: Path) -> Climb:
    return Climb(root=board("orin-nano"), folder=tmp_path / "engines", command=CHILD_COMMAND, most_s=60)


def looked(climb: Climb, name: str, timeout_s: float = 60.0) -> Rung:
    """Climb one rung as though those that it needs had held."""
    before = {need: Rung(name=need, state="ok", found="") for need in step_of(name).needs}
    climb.most_s = timeout_s
    return ladder._climbed(step_of(name), climb, before, names_here(climb.root))


def test_a_build_that_crashes_is_a_rung_that_failed(
    climb: Climb, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch, dies="SIGSEGV")
    found = looked(climb, "build fp16")
    assert (found.state, found.exit_code) == ("failed", 1)
    assert "signal 11" in found.found


def test_a_build_that_hangs_is_ended(climb: Climb, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    children(monkeypatch, dies="SIGSTOP")
    found = looked(climb, "build fp16", timeout_s=3)
    assert found.found == "the engine was not built within 3 s: the build was ended"


@pytest.mark.parametrize(
    ("dies", "timeout_s", "said", "code"),
    [
        ("SIGSEGV", 60, "the process of `run` crashed (signal 11, SIGSEGV)", 1),
        ("SIGKILL", 60, "the process of `run` was killed (signal 9)", 75),
        ("SIGSTOP", 6, "`run` did not end within 6 s: it hangs, and was ended", 1),
    ],
)
def test_a_run_that_ends_badly_is_a_rung_that_failed(
    climb: Climb, children: Children, monkeypatch: pytest.MonkeyPatch, dies: str, timeout_s: float, said: str, code: int
) -> None:
    children(monkeypatch)
    assert looked(climb, "build fp16").state == "ok"
    children(monkeypatch, dies=dies, dies_in="run")
    found = looked(climb, "run fp16", timeout_s=timeout_s)
    assert (found.state, found.exit_code) == ("failed", code)
    assert found.found.startswith(said)


def test_bindings_without_tensorrt_say_so_by_name(climb: Climb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found: Any = looked(climb, "bindings")
    assert (found.state, found.exit_code) == ("failed", 69)
    assert "TensorRT is not on this computer" in found.found
    assert "python3-libnvinfer" in found.hint
