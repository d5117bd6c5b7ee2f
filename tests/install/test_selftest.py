"""The self-test's process: what it answers, and what is made of one that crashes, hangs or is killed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.errors import EdgebertError, MemoryExhaustedError, RefusedBundleError, UnavailableError
from edgebert.install import selftest
from edgebert.install.selftest import run_self_test

MakeBundle = Callable[..., Path]


def _run(bundle: Path, timeout_s: float = 60) -> selftest.SelfTest:
    return run_self_test(bundle, 4, target=None, timeout_s=timeout_s)


def test_self_test_says_what_answered(make_bundle: MakeBundle) -> None:
    assert _run(make_bundle("a")).to_text() == "`cpu` answers all 4 canaries in onnxruntime"


def test_self_test_passes_errors_on(tmp_path: Path) -> None:
    with pytest.raises(EdgebertError, match="no such bundle"):
        _run(tmp_path / "nowhere")


def test_self_test_of_an_unknown_target_is_unavailable(make_bundle: MakeBundle) -> None:
    with pytest.raises(UnavailableError, match="no form for `intel-gpu`"):
        run_self_test(make_bundle("a"), 4, target="intel-gpu", timeout_s=60)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", RefusedBundleError, "died of SIGSEGV"),
        ("os.abort()", RefusedBundleError, "died of SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", MemoryExhaustedError, "memory ran out"),
        ("os.kill(os.getpid(), signal.SIGTERM)", EdgebertError, "ended from outside"),
        ("signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(60)", RefusedBundleError, "did not end within 2 s"),
        ("time.sleep(60)", RefusedBundleError, "did not end within 2 s"),
        ("sys.exit('boom')", EdgebertError, "no answer: boom"),
        ("print('{}')", EdgebertError, "no answer"),
        ("print('x' * 2_000_000)", EdgebertError, "no answer"),
        ("""print('{"exit_code": 69, "what": "none", "warnings": []}')""", UnavailableError, "none"),
        ("""print('{"exit_code": 65, "what": "bad", "warnings": []}')""", EdgebertError, "bad"),
        ("""print('{"exit_code": 1, "what": "odd", "warnings": []}')""", EdgebertError, "odd"),
    ],
)
def test_self_test_that_ends_otherwise(
    code: str, error: type[EdgebertError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_CHILD", f"import os, signal, sys, time\n{code}")
    monkeypatch.setattr(selftest, "_GRACE_S", 0.0)
    with pytest.raises(error, match=said):
        _run(tmp_path, timeout_s=2)


def test_self_test_repeats_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = '{"target": "cpu", "backend": "onnxruntime", "warnings": ["it saturates"]}'
    monkeypatch.setattr(selftest, "_CHILD", f"print({answer!r})")
    caplog.set_level(logging.WARNING)
    _run(tmp_path)
    assert "it saturates" in caplog.text


def test_self_test_does_not_import_from_the_current_folder(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert _run(make_bundle("a")).backend == "onnxruntime"


def test_self_test_without_an_interpreter_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(UnavailableError, match="no Python interpreter"):
        _run(tmp_path)
