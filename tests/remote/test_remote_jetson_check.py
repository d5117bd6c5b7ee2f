"""`doctor --jetson --host`: the ladder over a session, and devices that lie about it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgebert._json import Fields
from edgebert.errors import CannotWriteError, EdgebertError, RefusedError, UnavailableError
from edgebert.jetson_check.ladder import steps
from edgebert.jetson_check.output import CheckFile, check_into_file
from edgebert.jetson_check.report import Report, Rung
from edgebert.remote import device_jetson_check
from edgebert.remote.jetson_check import check_jetson_on
from edgebert.remote.transport import LocalPipe
from tests.remote.test_remote_hostile import DEVICE

pytest.importorskip("asyncssh")

NAMES = [step.name for step in steps()]
FACTS = {"board": {"sold as": "Orin NX 16GB"}}

# What an honest device says; `REPORT` is its report. A lie is put in the place of a line.
HONEST = """
r = until("jetson-check")
for name, rung in zip(names, report["rungs"]):
    frame("rung", r["number"], name=name, rung=None)
    frame("rung", r["number"], name=name, rung=rung)
frame("answer", r["number"], report=report)
r = until("bye"); frame("answer", r["number"])
"""


def report() -> Report:
    rungs = [Rung(name=name, state="ok", found="fine", facts=FACTS.get(name, {})) for name in NAMES]
    return Report(edgebert="0.1.0", date="2026-11-26", board="Orin NX 16GB", rungs=tuple(rungs))


@pytest.fixture
def lying(tmp_path: Path) -> Callable[[str], LocalPipe]:
    """Return a function that makes a device of a program, without any backend: it has TensorRT's absence to report."""

    def make(code: str) -> LocalPipe:
        path = tmp_path / "python-with-a-difference"
        start = DEVICE.replace(', "onnxruntime": "1.31"', "")
        given = f"names = {NAMES!r}\nreport = json.loads({json.dumps(report().to_json())!r})\n"
        path.write_text(f"#!{sys.executable}\n{start}\n{given}\nwell()\n{code}\n")
        path.chmod(0o755)
        return LocalPipe(python=str(path), environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})

    return make


def test_check_jetson_on_takes_an_honest_report_and_tells_of_each_rung(lying: Callable[[str], LocalPipe]) -> None:
    told: list[tuple[str, str]] = []
    found = check_jetson_on(
        lying(HONEST), told=lambda name, rung: told.append((name, rung.state if rung else "begins"))
    )
    assert found == report()
    assert told == [(name, state) for name in NAMES for state in ("begins", "ok")]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("frame('rung', r['number'], name='cuda', rung=None)", "its rungs in order|says `rung` of `cuda`"),
        ("frame('rung', r['number'], name=7, rung=None)", "name"),
        ("frame('launch', r['number'], name='board')", "says `launch`"),
        (
            "frame('rung', r['number'], name='board', rung=None); frame('rung', r['number'], name='board', rung={})",
            "state|holds nothing",
        ),
        (
            "for rung in (None, dict(report['rungs'][0], name='cuda')): frame('rung', r['number'], name='board', rung=rung)",
            "another rung",
        ),
        ("[frame('rung', r['number'], name='board', rung=None) for _ in range(3)]", "board|rung"),
        ("frame('answer', r['number'])", "report"),
        ("frame('answer', r['number'], report=[])", "report"),
        ("frame('answer', r['number'], report=dict(report, rungs=report['rungs'][1:]))", "other rungs"),
        ("frame('answer', r['number'], report=dict(report, exit_code=69))", "exit code"),
        ("frame('answer', r['number'], report=dict(report, date='../../x'))", "of a day"),
        (
            "report['rungs'][3]['facts'] = {str(n): 0 for n in range(5000)}; frame('answer', r['number'], report=report)",
            "facts",
        ),
        ("report['rungs'][3]['found'] = 'x' * 9_000_000; frame('answer', r['number'], report=report)", "more than"),
    ],
)
def test_check_jetson_on_refuses_what_is_no_report(
    lying: Callable[[str], LocalPipe], code: str, said: str, tmp_path: Path
) -> None:
    device = lying(f"r = until('jetson-check')\n{code}\nuntil('x')")
    file = CheckFile(tmp_path / "check.json", force=False)
    with pytest.raises(RefusedError, match=said) as caught:
        check_into_file(lambda told: check_jetson_on(device, told=told), file, as_json=False)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "check.json").exists()


def test_a_device_cannot_steer_the_terminal_or_choose_the_file(
    lying: Callable[[str], LocalPipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "report['board'] = '../../\\x1b[2Jx'; report['rungs'][0]['facts'] = {'sold as': '../../\\x1b[2Jx'}"
    more = "report['rungs'][1]['found'] = '\\x1b]0;x\\x07\\n\\nok  cuda'"
    device = lying(f"{odd}\n{more}\n{HONEST}")
    before = {path.name for path in tmp_path.iterdir()}
    assert (
        check_into_file(lambda told: check_jetson_on(device, told=told), CheckFile(None, force=False), as_json=False)
        == 0
    )
    made = {path.name for path in tmp_path.iterdir()} - before
    assert made == {"edgebert-jetson-check-x1b-2jx-2026-11-26.json"}
    shown = capsys.readouterr()
    content = (tmp_path / made.pop()).read_text()
    assert not {"\x1b", "\x07"} & set(shown.out + shown.err + content)


def test_a_file_that_is_there_ends_the_check_when_the_board_is_known(
    lying: Callable[[str], LocalPipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from edgebert.jetson_check import output

    monkeypatch.setattr(output, "today", lambda: "2026-11-26")
    (tmp_path / "edgebert-jetson-check-orin-nx-16gb-2026-11-26.json").write_text("mine")
    device = lying(HONEST.replace('frame("answer"', "until('x'); frame(\"answer\"", 1))
    with pytest.raises(CannotWriteError):
        check_into_file(lambda told: check_jetson_on(device, told=told), CheckFile(None, force=False), as_json=False)


def test_check_jetson_on_a_device_that_is_no_jetson_ends_with_69(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with pytest.raises(UnavailableError, match="this computer is no Jetson") as caught:
        check_jetson_on(LocalPipe(environment=environment), told=lambda _name, _rung: None)
    assert "on `local:`" in str(caught.value.hint)


# The device's end


class Said:
    """A link that keeps what is said."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, Any]] = []

    def say(self, kind: str, _request: object, content: Any) -> None:
        self.frames.append((kind, content))


def test_the_command_says_each_rung_and_answers_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def climbed(*, told: Callable[[str, Rung | None], None]) -> Report:
        for rung in report().rungs:
            told(rung.name, None)
            told(rung.name, rung)
        return report()

    monkeypatch.setattr(device_jetson_check, "check_jetson", climbed)
    link: Any = Said()
    nothing: Any = None
    answer, blobs = device_jetson_check.jetson_check(link, nothing, nothing)
    assert blobs == {}
    assert Report.from_fields(Fields(answer["report"], what="it"), names=NAMES) == report()
    assert [content["name"] for kind, content in link.frames if kind == "rung"] == [
        name for name in NAMES for _ in "12"
    ]


def test_the_command_off_a_jetson_says_whom_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*, told: object) -> Report:
        raise UnavailableError("this computer is no Jetson", expected="one", hint="here")

    monkeypatch.setattr(device_jetson_check, "check_jetson", elsewhere)
    nothing: Any = None
    with pytest.raises(EdgebertError) as caught:
        device_jetson_check.jetson_check(nothing, nothing, nothing)
    assert caught.value.hint == "name a Jetson: --host USER@HOST"
