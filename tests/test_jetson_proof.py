"""Short forms of `make proof-jetson`: what takes an hour there is looked at for its mechanism here."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("asyncssh")
pytest.importorskip("onnx")
from edgebert.errors import BadDataError, LinkLostError

ROOT = Path(__file__).resolve().parents[1]
Benchmarks = Callable[[str], ModuleType]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
    """Return a function that imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


# -- the list


def test_every_item_names_a_script_and_tests_that_exist(benchmarks: Benchmarks) -> None:
    for item in benchmarks("proof_jetson").ITEMS:
        paths = [part for part in item.command if part.endswith(".py")]
        assert paths
        assert all((ROOT / path).is_file() for path in paths), item.name


def test_every_item_has_a_short_form_in_the_suite_but_the_one_that_needs_sshd(benchmarks: Benchmarks) -> None:
    proof = benchmarks("proof_jetson")
    assert [item.name for item in proof.ITEMS if not proof.SHORT[item.name]] == ["sshd"]
    for names in proof.SHORT.values():
        for name in names:
            file, _, test = name.partition("::")
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_page_never_shows_an_item_that_was_not_run_as_passed(benchmarks: Benchmarks, monkeypatch: Any) -> None:
    proof = benchmarks("proof_jetson").PROOF
    monkeypatch.setattr(benchmarks("_proof"), "version", lambda name: "1")
    page = proof.page([proof._record(SimpleNamespace(name="no such item"))] * len(proof.items))
    assert page.count("**not run**") == len(proof.items)
    assert "PASS" not in page.replace("exit code 69", "")


# -- tests that stand for an item


def junit(inside: str) -> str:
    """Return a report as pytest writes it."""
    return f"<testsuites><testsuite>{inside}</testsuite></testsuites>"


def case(inside: str = "") -> str:
    return f'<testcase classname="tests.test_planted" name="test_a">{inside}</testcase>'


@pytest.mark.parametrize(
    ("report", "held", "said"),
    [
        (case(), True, "PASS 1 of 1 things passed"),
        (case() + case('<failure message="planted">trace</failure>'), False, "failure: test_a: planted"),
        (case() + case('<skipped message="no wheels" />'), False, "skipped: test_a: no wheels"),
        (case() + case('<error message="in a fixture" />'), False, "FAIL 1 of 2 things passed"),
        ("", False, "FAIL 0 of 0 things passed"),
    ],
)
def test_held_by_tests_fails_where_one_failed_was_skipped_or_none_was_found(
    benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str], report: str, held: bool, said: str
) -> None:
    assert benchmarks("held_by_tests").holds(junit(report), "", "things") is held
    assert said in capsys.readouterr().out


def test_held_by_tests_counts_what_pytest_ran(benchmarks: Benchmarks, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-p", "no:cacheprovider", "tests/runtime/test_tensorrt_errors.py", "-k", "silence"]
    assert benchmarks("held_by_tests").main(arguments) == 0
    assert "1 in tests/runtime/test_tensorrt_errors.py" in capsys.readouterr().out


# -- cut links


@pytest.fixture
def cuts(benchmarks: Benchmarks) -> ModuleType:
    return benchmarks("remote_cuts")


class FakeSweep:
    """Stands for the sweep: 1,000 bytes, and a call that ends after so many cuts."""

    def __init__(self, module: ModuleType, ends_after: int) -> None:
        self.module, self.left, self.done = module, ends_after, []  # type: ignore[var-annotated]
        self.filled = False

    def __call__(self, *_: object) -> FakeSweep:
        return self

    def whole(self, *, keep: bool) -> int:
        self.filled = keep
        return 1000

    def cut(self, number: int, after_bytes: int, *, keep: bool, silent: bool, resume: bool) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.done.append((after_bytes, keep, silent, self.filled))
        return self.module.Cut(
            number=number,
            after_bytes=after_bytes,
            kept=keep,
            silent=silent,
            said="lost",
            seconds=0.1,
            ended_seconds=0.1,
            launches=0,
            resumed=int(resume),
            wrong=(),
            commit="abc",
        )


def sweep(cuts: ModuleType, monkeypatch: Any, tmp_path: Path, kept: Path | None, ends_after: int) -> tuple[Any, Any]:
    """Run a sweep of 16 positions over the fake; return the fake and the cuts, None where it was interrupted."""
    fake = FakeSweep(cuts, ends_after)
    monkeypatch.setattr(cuts, "Sweep", fake)
    try:
        return fake, cuts.swept(tmp_path / "work", SimpleNamespace(), 16, 4, 5, kept=kept)
    except KeyboardInterrupt:
        return fake, None


def test_swept_goes_on_where_an_earlier_call_ended(cuts: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
    whole, at_once = sweep(cuts, monkeypatch, tmp_path, None, 100)
    kept = tmp_path / "cuts.jsonl"
    first, interrupted = sweep(cuts, monkeypatch, tmp_path, kept, 10)
    second, finished = sweep(cuts, monkeypatch, tmp_path, kept, 100)
    assert interrupted is None
    assert [len(fake.done) for fake in (whole, first, second)] == [16, 10, 6]
    assert [entry[:3] for entry in first.done + second.done] == [entry[:3] for entry in whole.done]
    assert finished == at_once


def test_swept_makes_a_cut_again_whose_line_was_removed(cuts: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
    kept = tmp_path / "cuts.jsonl"
    _, whole = sweep(cuts, monkeypatch, tmp_path, kept, 100)
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:4] + lines[5:]))
    again, finished = sweep(cuts, monkeypatch, tmp_path, kept, 100)
    assert len(again.done) == 1
    assert finished == whole


def test_swept_fills_the_device_before_the_cuts_that_need_it_in_every_call(
    cuts: ModuleType, monkeypatch: Any, tmp_path: Path
) -> None:
    kept = tmp_path / "cuts.jsonl"
    sweep(cuts, monkeypatch, tmp_path, kept, 10)
    again, _ = sweep(cuts, monkeypatch, tmp_path, kept, 100)
    assert [filled for _, keep, _, filled in again.done if keep] == [True] * 6


def test_swept_refuses_cuts_of_another_sweep(cuts: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
    kept = tmp_path / "cuts.jsonl"
    sweep(cuts, monkeypatch, tmp_path, kept, 10)
    monkeypatch.setattr(cuts, "Sweep", FakeSweep(cuts, 100))
    with pytest.raises(SystemExit, match="remove it"):
        cuts.swept(tmp_path / "work", SimpleNamespace(), 20, 4, 5, kept=kept)


def test_positions_reach_from_the_first_byte_to_the_last(cuts: ModuleType) -> None:
    places = cuts._positions(100_000, 100)
    assert len(places) == 100
    assert (places[0], places[-1]) == (1, 99_999)


@pytest.fixture
def looked(cuts: ModuleType, tmp_path: Path) -> Any:
    """A sweep that only looks at what a call left."""
    made = cuts.Sweep.__new__(cuts.Sweep)
    made._output, made._device = tmp_path / "result.json", SimpleNamespace(home=tmp_path / "device", port=0)
    return made


def test_sweep_finds_a_result_of_a_link_that_was_lost(looked: Any) -> None:
    assert looked._wrong_result("lost") == []
    looked._output.write_text("{}")
    assert looked._wrong_result("lost") == ["a result is there: result.json"]


def test_sweep_finds_a_result_that_does_not_hold(looked: Any) -> None:
    looked._output.write_text("{}")
    (said,) = looked._wrong_result("done")
    assert said.startswith("done, and ")


def test_sweep_finds_a_partial_result_of_a_call_that_succeeded(
    looked: Any, cuts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = SimpleNamespace(status=SimpleNamespace(partial=True))
    monkeypatch.setattr(cuts, "check_result", lambda path: [])
    monkeypatch.setattr(cuts, "read_result", lambda path: partial)
    assert looked._wrong_result("done") == ["done, and marked partial"]


@pytest.fixture
def orphan(looked: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the device that ends when it is told to."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={"HOME": str(looked._device.home)}) as process:
        yield process
        process.kill()


def test_sweep_finds_what_still_runs(
    looked: Any, cuts: ModuleType, monkeypatch: pytest.MonkeyPatch, orphan: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(cuts, "ORPHAN_SECONDS", 0.2)
    monkeypatch.setattr(cuts, "_waited", lambda number: 0.0)
    assert looked._ends() is None
    orphan.kill()
    orphan.wait()
    assert looked._ends() is not None


def test_sweep_leaves_out_what_a_process_waited_for_a_processor(
    looked: Any, cuts: ModuleType, monkeypatch: pytest.MonkeyPatch, orphan: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(cuts, "ORPHAN_SECONDS", 0.2)
    monkeypatch.setattr(cuts, "_LONGEST_END_SECONDS", 60.0)
    monkeypatch.setattr(cuts, "_waited", lambda number: time.monotonic())  # it never ran
    threading.Timer(1.0, orphan.kill).start()
    assert looked._ends() >= 0.9


@pytest.mark.parametrize(
    ("fails", "found"),
    [
        ([], (1, [])),
        ([LinkLostError("silent")], (2, [])),
        ([LinkLostError("silent"), LinkLostError("silent")], (2, ["--resume: silent"])),
        ([BadDataError("launch 0 is damaged")], (1, ["--resume: launch 0 is damaged"])),
    ],
)
def test_sweep_takes_a_run_up_again_and_once_more_where_the_link_was_lost(
    looked: Any, cuts: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: list[Exception], found: tuple[int, list[str]]
) -> None:
    looked._run = SimpleNamespace(path=looked._output.with_name("result.run"))
    looked._run.path.mkdir()
    left = list(fails)

    def bench(*_: object, **__: object) -> None:
        if left:
            raise left.pop(0)
        looked._run.path.rmdir()

    monkeypatch.setattr(looked.__class__, "_bench", bench)
    monkeypatch.setattr(cuts, "check_result", lambda path: [])
    assert looked._resumed(keep=False) == found


# -- what a device has


@pytest.mark.parametrize(("absent", "refused"), [([], False), (["typer", "torch"], True)])
def test_described_refuses_a_python_that_is_not_bare(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, absent: list[str], refused: bool
) -> None:
    bare = benchmarks("_bare_python")
    said = SimpleNamespace(stdout=json.dumps([absent, "Python 3.10"]))
    monkeypatch.setattr(bare.subprocess, "run", lambda *_, **__: said)
    if not refused:
        assert bare.described(Path("python")) == "Python 3.10"
        return
    with pytest.raises(ValueError, match="typer, torch"):
        bare.described(Path("python"))
