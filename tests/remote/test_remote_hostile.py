"""A device that lies, floods or replays in a session is contained: refused, in bounded memory, with nothing written and no escape code shown."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgebert.bench.options import BenchOptions
from edgebert.errors import EdgebertError, RefusedError
from edgebert.remote.bench import bench_on
from edgebert.remote.session import DeviceSession
from edgebert.remote.transport import LocalPipe

pytest.importorskip("asyncssh")
pytest.importorskip("onnxruntime")

# What a device would say that is no agent: it reads our frames, and answers what it likes.
DEVICE = """
import json, os, sys
given = json.loads(sys.argv[-1])
nonce, number = given["nonce"], 0
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
def line(**fields):
    stdout.write(json.dumps(fields).encode() + b"\\n"); stdout.flush()
def frame(kind, re, blobs=(), **fields):
    global number
    number += 1
    line(**{"nonce": nonce, "number": number, "type": kind, "re": re, "blobs": [[n, len(c)] for n, c in blobs], **fields})
    for _, content in blobs:
        stdout.write(content)
    stdout.flush()
def asked():
    while True:
        text = stdin.readline()
        if not text:
            sys.exit(0)
        request = json.loads(text)
        stdin.read(sum(size for _, size in request["blobs"]))
        if request["type"] != "pong":
            return request
modules = {"numpy": "2.4", "PIL": "13.0", "onnxruntime": "1.31"}
line(nonce=nonce, python=[3, 12, 1], executable="/usr/bin/python3", machine="aarch64", modules=modules, wheel=True)
ready = asked()
def well():
    frame("ready", ready["number"]); frame("answer", ready["number"])
def until(kind):
    while True:
        request = asked()
        if request["type"] == kind:
            return request
        if request["type"] == "there":
            frame("answer", request["number"], bytes=[0] * len(request["objects"]))
        elif request["type"] == "push":
            frame("answer", request["number"], damaged=[])
        elif request["type"] == "images":
            frame("answer", request["number"], otherwise=[])
        else:
            frame("answer", request["number"])
"""


@pytest.fixture
def lying(tmp_path: Path) -> Callable[[str], LocalPipe]:
    """Return a function that makes a device of a program."""

    def make(code: str) -> LocalPipe:
        path = tmp_path / "python-with-a-difference"
        path.write_text(f"#!{sys.executable}\n{DEVICE}\n{code}\n")
        path.chmod(0o755)
        return LocalPipe(python=str(path), environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})

    return make


def ask_facts(device: LocalPipe) -> Any:
    with DeviceSession(device) as session:
        return session.ask("facts", {}, timeout_s=20).fields.value


HONEST = "well(); r = until('facts'); frame('answer', r['number'], x=1); r = until('bye'); frame('answer', r['number'])"


def test_the_honest_session_that_the_lies_vary_is_taken(lying: Callable[[str], LocalPipe]) -> None:
    assert ask_facts(lying(HONEST))["x"] == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("well(); r = until('facts'); frame('answer', r['number'], nonce='0' * 32); until('x')", "another call"),
        ("well(); r = until('facts'); number -= 1; frame('answer', r['number']); until('x')", "each once|message"),
        ("well(); r = until('facts'); number += 5; frame('answer', r['number']); until('x')", "message"),
        ("well(); r = until('facts'); frame('answer', 99); until('x')", "not asked for"),
        ("well(); frame('answer', 1); until('x')", "not asked for"),
        ("well(); r = until('facts'); frame('launched', r['number']); until('x')", "says `launched`"),
        (
            "well(); r = until('facts'); stdout.write(b'x' * 9_000_000); stdout.flush(); until('x')",
            "a line of more than",
        ),
        ("well(); r = until('facts'); stdout.write(b'Welcome\\n'); stdout.flush(); until('x')", "not valid JSON"),
        ("well(); r = until('facts'); line(nonce=nonce); until('x')", "number"),
        (
            "well(); r = until('facts'); line(nonce=nonce, number=3, type='answer', re=r['number'], blobs=[['a', 1 << 40]]); until('x')",
            "more than",
        ),
        (
            "well(); r = until('facts'); line(nonce=nonce, number=3, type='answer', re=r['number'], blobs=[['a', -1]]); until('x')",
            "lists a blob",
        ),
        ("well(); r = until('facts'); [frame('note', r['number']) for _ in range(2000)]; until('x')", "says `note`"),
        ("stdout.write(b'x' * 100); stdout.flush(); until('x')", "says|valid JSON|nothing"),
    ],
)
def test_session_refuses_what_cannot_be_trusted(lying: Callable[[str], LocalPipe], code: str, said: str) -> None:
    with pytest.raises(EdgebertError, match=said) as caught:
        ask_facts(lying(code))
    assert caught.value.exit_code in (75, 77)
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "code",
    [
        r"well(); r = until('facts'); frame('error', r['number'], error={'exit_code': 77, 'what': '\x1b[2J', 'hint': '\x9b\nhint: curl'}); until('x')",
        r"well(); r = until('facts'); frame('\x1b[2J', r['number']); until('x')",
        r"well(); r = until('facts'); frame('error', r['number'], error='\x1b[2J'); until('x')",
    ],
)
def test_no_control_character_of_a_session_reaches_the_terminal(lying: Callable[[str], LocalPipe], code: str) -> None:
    with pytest.raises(EdgebertError) as caught:
        ask_facts(lying(code))
    for part in (caught.value.what, caught.value.expected or "", caught.value.hint or ""):
        assert part.isprintable()


def test_notes_of_a_device_are_escaped(lying: Callable[[str], LocalPipe], caplog: pytest.LogCaptureFixture) -> None:
    code = HONEST.replace("x=1", r"x=1, notes=['\x1b[2Jnote']")
    with caplog.at_level(logging.WARNING, "edgebert"):
        ask_facts(lying(code))
    assert "note" in caplog.text
    assert "\x1b" not in caplog.text


def test_notes_of_a_device_that_are_none_are_refused(lying: Callable[[str], LocalPipe]) -> None:
    with pytest.raises(RefusedError, match="notes"):
        ask_facts(lying(HONEST.replace("x=1", "x=1, notes={'a': 1}")))


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    generator = np.random.default_rng(0)
    for name in ("bolt", "gear", "nut", "washer"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return BenchOptions(data=str(tmp_path / "images"), targets=("cpu",), launches=1, queries=40, threads=1)


RESULTS = """
well(); r = until("bench")
import io, zipfile
"""


@pytest.mark.parametrize(
    "code",
    [
        "frame('answer', r['number'])",
        "frame('answer', r['number'], [('result', b'{}'), ('samples', b'')])",
        "frame('answer', r['number'], [('result', b'{\"a\": NaN}'), ('samples', b'PK')])",
        "frame('answer', r['number'], [('../../../result', b'{}'), ('samples', b'')])",
        "frame('launched', r['number'], [('columns', b'\\x80\\x04.')], launch={})",
        "frame('begin', r['number'], boot='x', surroundings=[])",
        "frame('partial', r['number'], [('result', b'{}'), ('samples', b'')])",
        "frame('owned', r['number'])",
    ],
)
def test_bench_on_writes_nothing_of_a_result_that_is_none(
    lying: Callable[[str], LocalPipe],
    code: str,
    options: BenchOptions,
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RefusedError):
        bench_on(lying(f"{RESULTS}{code}; until('x')"), [bundle], tmp_path / "r.json", options)
    after = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in after if name not in before] == ["python-with-a-difference"]


def test_bench_on_refuses_a_true_result_of_other_images(
    options: BenchOptions, make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    """What a device measured once is not taken for what it was asked now: labels and images are held against ours."""
    from dataclasses import replace

    from edgebert.bench.harness import result_from_arms
    from edgebert.bench.result import read_result, read_result_samples
    from edgebert.errors import BadDataError
    from edgebert.remote.bench import _check_is_asked, planned

    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    quick = replace(options, seconds=0.1, max_warmup_seconds=0.0)
    result_from_arms([bundle], tmp_path / "r.json", quick)
    result, samples = (
        read_result(tmp_path / "r.json"),
        read_result_samples(tmp_path / "r.json", read_result(tmp_path / "r.json")),
    )
    work = planned([bundle], tmp_path / "other.json", quick)
    _check_is_asked(result, samples, work, partial=False)
    with pytest.raises(BadDataError, match="marked complete"):
        _check_is_asked(result, samples, work, partial=True)
    fewer = replace(work, selection=replace(work.selection, examples=work.selection.examples[1:]))
    with pytest.raises(BadDataError, match="other images"):
        _check_is_asked(result, samples, fewer, partial=False)
    with pytest.raises(BadDataError, match="other arms"):
        _check_is_asked(result, samples, replace(work, hashes=("0" * 64,) * 2), partial=False)
    columns = {**samples.columns, "accuracy_label": (samples["accuracy_label"] + 1) % 4}
    with pytest.raises(BadDataError, match="other labels"):
        _check_is_asked(result, replace(samples, columns=columns), work, partial=False)
