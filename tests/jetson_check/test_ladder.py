"""Which rungs are climbed, skipped and failed, with what the processes would say put in their place."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from edgebert import agent
from edgebert._json import Fields, JsonObject
from edgebert.bench.protocol import error_content
from edgebert.cli import app
from edgebert.errors import EdgebertError, MemoryExhaustedError, UnavailableError
from edgebert.jetson_check import child, ladder
from edgebert.jetson_check.ladder import check_jetson, longest_seconds, step_of, steps
from edgebert.jetson_check.reference import read_reference
from edgebert.jetson_check.report import Report, Rung
from tests.jetson_check.conftest import is_of

NAMES = [step.name for step in steps()]
Board = Callable[..., Path]


class Planted:
    """What the tasks of a board say: all is well, but for what a test plants."""

    def __init__(self) -> None:
        self.errors: dict[str, EdgebertError] = {}
        self.strong_only = False
        self.asked: list[str] = []

    def answer(self, task: str, content: JsonObject, **_: Any) -> Fields:
        """Stand in for `answer_of`."""
        engine = Path(str(content.get("folder", ""))).parent.name
        name = f"{task} {engine}".strip()
        self.asked.append(name)
        error = self.errors.get(name)
        facts: dict[str, Any] = {"builds strongly typed networks only": self.strong_only, "tensorrt": "11.4.1"}
        said: dict[str, Any] = {"found": task, "facts": facts, "error": None if error is None else error_content(error)}
        if task == "run":
            said["logits"] = read_reference().engine(engine).logits.tolist()
        return Fields(said, what="an answer")

    def build(self, _graph: bytes, options: Any) -> Any:
        """Stand in for `build_engine`."""
        engine = options.folder.name
        self.asked.append(f"build {engine}")
        if f"build {engine}" in self.errors:
            raise self.errors[f"build {engine}"]
        manifest = SimpleNamespace(label="x", plan_bytes=1, fingerprint=SimpleNamespace(to_text=lambda: "x"))
        made = SimpleNamespace(
            folder=options.folder / options.typing,
            manifest=manifest,
            peak=None,
            seconds=1.0,
            builder_flags=(),
            notes=(),
        )
        return SimpleNamespace(candidates=(made,))


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Planted:
    made = Planted()
    monkeypatch.setattr(ladder, "answer_of", made.answer)
    monkeypatch.setattr(ladder, "build_engine", made.build)
    return made


def states(report: Report) -> dict[str, str]:
    return {rung.name: rung.state for rung in report.rungs}


def found(report: Report, name: str) -> Rung:
    return next(rung for rung in report.rungs if rung.name == name)


def test_steps_need_only_what_comes_before_them() -> None:
    for place, step in enumerate(steps()):
        assert set(step.needs) <= set(NAMES[:place]), step.name
    assert len(set(NAMES)) == len(NAMES) == 19


def test_every_task_of_the_child_is_a_rung_and_each_shows_something() -> None:
    kinds = {name.partition(" ")[0] for name in NAMES}
    assert set(child.TASKS) == kinds - {"build", "parity", "cleanup"}
    assert all(step.shows for step in steps())


def test_longest_seconds_covers_every_rung() -> None:
    assert longest_seconds() > sum(step.timeout_s for step in steps())


def test_check_jetson_climbs_all_and_tells_of_each(tasks: Planted, board: Board) -> None:
    told: list[tuple[str, str]] = []
    report = check_jetson(root=board(), told=lambda name, rung: told.append((name, rung.state if rung else "begins")))
    assert set(states(report).values()) == {"ok"}
    assert told == [(name, state) for name in NAMES for state in ("begins", "ok")]
    assert report.exit_code == 0


def test_check_jetson_on_tensorrt_11_leaves_the_weak_form_out_and_holds(tasks: Planted, board: Board) -> None:
    tasks.strong_only = True
    report = check_jetson(root=board())
    skipped = {name for name, state in states(report).items() if state == "skipped"}
    assert skipped == {f"{kind} int8 weak" for kind in ("build", "run", "parity", "timing")}
    assert found(report, "build int8 weak").found == "TensorRT 11.4.1 builds strongly typed networks only"
    assert found(report, "run int8 weak").found == "it needs `build int8 weak`, which was skipped"
    assert report.exit_code == 0


FOLLOWERS = {
    "board": set(NAMES) - {"board", "sensors", "cleanup"},
    "bindings": set(NAMES) - {"board", "bindings", "cuda", "sensors", "cleanup"},
    "cuda": set(NAMES) - {"board", "bindings", "cuda", "sensors", "cleanup"},
    "parse": {name for name in NAMES if " " in name},
    "build int8": {"run int8", "parity int8", "timing int8"},
    "run fp16": {"parity fp16", "timing fp16"},
    "timing fp16": set(),
    "refusal": set(),
    "sensors": set(),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_a_rung_that_fails_skips_what_needs_it_and_nothing_else(tasks: Planted, board: Board, name: str) -> None:
    tasks.errors[name] = MemoryExhaustedError("planted", expected="memory", hint="buy some")
    report = check_jetson(root=board())
    rung = found(report, name)
    assert (rung.state, rung.found, rung.expected, rung.hint) == ("failed", "planted", "memory", "buy some")
    assert {other for other, state in states(report).items() if state == "skipped"} == FOLLOWERS[name]
    assert [other for other, state in states(report).items() if state == "failed"] == [name]
    assert report.exit_code == 75
    assert not FOLLOWERS[name] & set(tasks.asked)


def test_parity_fails_where_an_engine_answers_otherwise(
    tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(task: str, content: JsonObject, **given: Any) -> Fields:
        said = dict(tasks.answer(task, content, **given).value)
        if task == "run" and "int8 weak" in str(content["folder"]):
            said["logits"] = (read_reference().engine("int8 weak").logits + 1).tolist()
        return Fields(said, what="an answer")

    monkeypatch.setattr(ladder, "answer_of", wrong)
    report = check_jetson(root=board())
    rung = found(report, "parity int8 weak")
    assert (rung.state, rung.exit_code) == ("failed", 1)
    assert rung.found == "the engine's logits differ from ONNX Runtime's by 1"
    assert [name for name, state in states(report).items() if state != "ok"] == ["parity int8 weak"]
    assert rung.facts["largest_difference"] == pytest.approx(1, abs=1e-5)


def test_a_disk_that_is_full_is_a_rung_that_failed(
    tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_graph: bytes, _options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ladder, "build_engine", full)
    report = check_jetson(root=board())
    assert found(report, "build fp16").found == "the system refuses: No space left on device"
    assert (found(report, "sensors").state, report.exit_code) == ("ok", 74)


def test_run_refuses_answers_of_another_shape(tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(task: str, content: JsonObject, **given: Any) -> Fields:
        said = dict(tasks.answer(task, content, **given).value)
        return Fields({**said, "logits": [[1.0, 2.0]]}, what="an answer")

    monkeypatch.setattr(ladder, "answer_of", short)
    assert found(check_jetson(root=board()), "run fp16").found == "the engine answers with shape (1, 2)"


def test_the_engines_folder_is_gone_whatever_happens(
    tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(name: str, _rung: Rung | None) -> None:
        if name == "parse":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_jetson(root=board(), told=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_cleanup_that_cannot_clean_up_says_so(tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def refused(path: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied")
        remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", refused)
    rung = found(check_jetson(root=board()), "cleanup")
    assert (rung.state, rung.exit_code) == ("failed", 74)
    assert rung.found == "the engines of this check cannot be removed: Permission denied"


# Off a Jetson, and the commands


def test_check_jetson_elsewhere_names_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is no Jetson") as caught:
        check_jetson(root=tmp_path)
    assert "--host USER@HOST" in str(caught.value.hint)
    assert "JetPack 6.1" in str(caught.value.expected)


def test_doctor_jetson_off_a_jetson_ends_with_69_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["doctor", "--jetson"]).exit_code == 69
    assert agent.main(["doctor", "--jetson"]) == 69
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def on_board(tasks: Planted, board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Planted:
    """This computer is a board, and the current folder is empty."""
    root = is_of(board(), "R36 (release), REVISION: 4.3")
    monkeypatch.setattr(ladder, "check_jetson", functools.partial(check_jetson, root=root))
    monkeypatch.chdir(tmp_path)
    return tasks


def test_doctor_jetson_writes_one_file_and_shows_the_rungs(on_board: Planted, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["doctor", "--jetson", "-o", "check.json"])
    assert ran.exit_code == 0, ran.output
    assert [line.split()[:2] for line in ran.stdout.splitlines() if line.startswith("ok ")][:2] == [
        ["ok", "board"],
        ["ok", "bindings"],
    ]
    assert "written to check.json" in ran.stdout
    assert "[19/19] cleanup" in ran.stderr
    assert json.loads((tmp_path / "check.json").read_text())["schema"] == "edgebert.jetson-check/1"
    assert CliRunner().invoke(app, ["doctor", "--jetson", "-o", "check.json"]).exit_code == 74
    assert CliRunner().invoke(app, ["doctor", "--jetson", "-o", "check.json", "--force"]).exit_code == 0


def test_doctor_jetson_ends_as_its_first_failure(on_board: Planted) -> None:
    on_board.errors["cuda"] = UnavailableError("no GPU")
    assert CliRunner().invoke(app, ["doctor", "--jetson", "-o", "check.json"]).exit_code == 69


def test_agents_doctor_jetson_is_the_same(
    on_board: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agent.main(["doctor", "--jetson", "--output", "check.json", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("file") == "check.json"
    assert shown == json.loads((tmp_path / "check.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--jetson", "--bench"],
        ["--host", "pi@camera-3"],
        ["--output", "x.json"],
        ["--force"],
        ["--jetson", "--python", "python3.12"],
    ],
)
def test_doctor_refuses_options_that_mean_nothing_together(arguments: list[str]) -> None:
    ran = CliRunner().invoke(app, ["doctor", *arguments])
    assert ran.exit_code == 2, ran.output


def test_agents_doctor_refuses_a_file_without_the_check() -> None:
    assert agent.main(["doctor", "--force"]) == 2


def test_the_page_tells_of_every_rung() -> None:
    page = (Path(__file__).parents[2] / "docs" / "jetson-check.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == {name.partition(" ")[0] for name in NAMES}


def test_step_of_knows_every_rung() -> None:
    assert [step_of(name).name for name in NAMES] == NAMES
