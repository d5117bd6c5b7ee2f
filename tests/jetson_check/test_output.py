"""Where the file goes: what is there is kept, and said before the long work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.errors import CannotWriteError
from edgebert.jetson_check.ladder import Told
from edgebert.jetson_check.output import CheckFile, check_into_file
from edgebert.jetson_check.report import Report, Rung

BOARD = Rung(name="board", state="ok", found="Orin NX 16GB", facts={"sold as": "Orin NX 16GB"})
REPORT = Report(edgebert="0.1.0", date="2026-11-26", board="Orin NX 16GB", rungs=(BOARD,))
NAME = "edgebert-jetson-check-orin-nx-16gb-2026-11-26.json"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_check_file_is_named_by_board_and_day(tmp_path: Path) -> None:
    assert CheckFile(None, force=False).write(REPORT) == Path(NAME)
    assert json.loads((tmp_path / NAME).read_text()) == REPORT.to_json()


def test_check_file_refuses_a_name_that_is_taken_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("mine")
    with pytest.raises(CannotWriteError, match=r"x\.json"):
        CheckFile(tmp_path / "x.json", force=False)
    CheckFile(tmp_path / "x.json", force=True).write(REPORT)
    assert json.loads((tmp_path / "x.json").read_text())["board"] == "Orin NX 16GB"


def test_check_file_refuses_its_own_name_as_soon_as_the_board_is_known(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("mine")
    file = CheckFile(None, force=False)
    with pytest.raises(CannotWriteError, match=NAME):
        file.board_is(BOARD, "2026-11-26")
    assert (tmp_path / NAME).read_text() == "mine"


def test_check_file_refuses_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError):
        CheckFile(tmp_path / "file" / "check.json", force=False)


def test_check_into_file_ends_as_the_report_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = Rung(name="cuda", state="failed", found="no GPU", exit_code=69)
    report = replace(REPORT, rungs=(BOARD, failed))

    def climb(told: Told) -> Report:
        for rung in report.rungs:
            told(rung.name, None)
            told(rung.name, rung)
        return report

    assert check_into_file(climb, CheckFile(tmp_path / "x.json", force=False), as_json=True) == 69
    assert json.loads(capsys.readouterr().out) == {**report.to_json(), "file": str(tmp_path / "x.json")}


def test_check_into_file_writes_nothing_where_the_ladder_is_not_climbed(tmp_path: Path) -> None:
    def climb(_told: Told) -> Report:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_into_file(climb, CheckFile(tmp_path / "x.json", force=False), as_json=False)
    assert list(tmp_path.iterdir()) == []
