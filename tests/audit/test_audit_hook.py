"""The audit hook can fail: a run of pytest with one planted violation of each rule, in this process, a child and a grandchild."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_CONFTEST = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("suite_conftest", {str(ROOT / "tests/conftest.py")!r})
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
pytest_addoption, pytest_configure = module.pytest_addoption, module.pytest_configure
"""

_INNOCENT = """
import os, pickle, socket, subprocess, sys

def test_innocent_files(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "link").unlink()
    open(os.devnull, "w").close()
    assert open(__file__).read()

def test_innocent_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass

def test_innocent_child(tmp_path):
    code = "import dataclasses, json; dataclasses.make_dataclass('A', ['x']); open('file', 'w').close()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={})

def test_innocent_exec_in_the_own_environment():
    child = os.fork()
    if child == 0:
        try:
            os.execv(sys.executable, [sys.executable, "-c", ""])
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0

def test_innocent_pickle_of_plain_values():
    assert pickle.loads(pickle.dumps({"a": [1, 2.0, None]})) == {"a": [1, 2.0, None]}
"""

# Each body breaks one rule; what it raises afterwards is of no interest.
_PLANTED = {
    "pickle": "pickle.loads(b'cposix\\ngetpid\\n.')",
    "pickle_in_numpy": "numpy.load(io.BytesIO(_object_array()), allow_pickle=True)",
    "exec_of_a_file": "(tmp_path / 'x.py').write_text('a = 1'); runpy.run_path(str(tmp_path / 'x.py'))",
    "exec_of_text": "exec((tmp_path.name and 'a = 1'), {'__name__': 'somebody'})",
    "eval_of_text": "eval('1 + 1')",
    "import_of_a_file": "(tmp_path / 'planted_m.py').write_text(''); monkeypatch.syspath_prepend(tmp_path); import planted_m",
    "exec_of_a_made_up_name": f"os.chdir({str(ROOT)!r}); exec(compile('a = 1', 'edgebert/cli.py', 'exec'))",
    "function_of_a_code_object": "types.FunctionType(compile('a = 1', 'data.py', 'exec'), {})",
    "marshal": "marshal.loads(marshal.dumps(1))",
    "library": "ctypes.CDLL(str(tmp_path / 'x.so'))",
    "connect": "socket.socket().connect_ex(('192.0.2.1', 9)) if _quick() else None",
    "datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
    "bind": "socket.socket().bind(('0.0.0.0', 0))",
    "name": "socket.getaddrinfo('planted.invalid', 80)",
    "write": "open('/nonexistent/x', 'w')",
    "append_by_descriptor": "os.open('/nonexistent/x', os.O_WRONLY | os.O_APPEND)",
    "write_into_the_checkout": f"os.mkdir({str(ROOT / 'missing' / 'x')!r})",
    "rename": "(tmp_path / 'a').touch(); os.rename(tmp_path / 'a', '/nonexistent/a')",
    "remove": "os.remove('/nonexistent/a')",
    "remove_by_folder": "os.remove('nonexistent', dir_fd=os.open('/', os.O_RDONLY))",
    "link_to_outside": "(tmp_path / 'l').symlink_to('/nonexistent'); open(tmp_path / 'l' / 'x', 'w')",
    "database": "sqlite3.connect('/nonexistent/x')",
    "shell": "os.system('true')",
    "program": "(tmp_path / 'p').write_text('#!/bin/sh'); (tmp_path / 'p').chmod(0o755); subprocess.run([tmp_path / 'p'])",
    "script": "(tmp_path / 's.py').write_text(''); subprocess.run([sys.executable, tmp_path / 's.py'], check=True)",
    "isolated_python": "subprocess.run([sys.executable, '-I', '-c', ''], check=True)",
    "python_without_site": "subprocess.run([sys.executable, '-bSc', ''], check=True)",
    "child": "subprocess.run([sys.executable, '-c', CHILD], check=True)",
    "child_without_environment": "subprocess.run([sys.executable, '-c', CHILD], check=True, env={})",
    "spawned_child": "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, '-c', CHILD], {}), 0)",
    "grandchild": "subprocess.run([sys.executable, '-c', GRANDCHILD], check=True, env={})",
    "forked_child": "multiprocessing.get_context('fork').Process(target=pickle.loads, args=(b'cposix\\ngetpid\\n.',)).start(); time.sleep(1)",
    "thread": "t = threading.Thread(target=eval, args=('1',)); t.start(); t.join()",
}

_PREFACE = """
import contextlib, ctypes, io, marshal, multiprocessing, os, pickle, runpy, socket, sqlite3, subprocess, sys, threading, time, types
import numpy
CHILD = "import pickle; pickle.loads(b'cposix\\\\ngetpid\\\\n.')"
GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"

def _object_array():
    stream = io.BytesIO()
    numpy.save(stream, numpy.array([{}, 1], dtype=object), allow_pickle=True)
    return stream.getvalue()

def _quick():
    socket.setdefaulttimeout(0.01)
    return True
"""


def _run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--tb=short", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest said of each planted test in its summary: the reason of its failure, nothing where it passed."""
    folder = tmp_path_factory.mktemp("planted")
    bodies = [
        f"def test_{name}(tmp_path, monkeypatch):\n    with contextlib.suppress(Exception):\n        {body}\n"
        for name, body in _PLANTED.items()
    ]
    (folder / "test_planted.py").write_text("\n\n".join([_PREFACE, *bodies, _INNOCENT]))
    ran = _run_pytest(folder, "test_planted.py")
    outcomes = re.findall(r"^(?:PASSED|FAILED|ERROR) test_planted.py::test_(\w+)(.*)", ran.stdout, re.MULTILINE)
    found: dict[str, str] = {}
    for name, words in outcomes:
        found[name] = found.get(name, "") + words
    assert len(found) == len(_PLANTED) + 5, ran.stdout + ran.stderr
    return found


@pytest.mark.parametrize("name", _PLANTED)
def test_a_violation_fails_the_test_in_which_it_happens(name: str, planted: dict[str, str]) -> None:
    assert "the audit hook saw in the test" in planted[name]


def test_what_is_allowed_fails_nothing(planted: dict[str, str]) -> None:
    innocent = {name: outcome for name, outcome in planted.items() if name.startswith("innocent")}
    assert len(innocent) == 5
    assert set(innocent.values()) == {""}


def test_an_exception_that_nothing_uses_fails_a_whole_run_that_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_innocent.py").write_text(_INNOCENT)
    counted = _run_pytest(tmp_path, "--audit-json", str(tmp_path / "counts.json"))
    assert counted.returncode == 1, counted.stdout
    assert "nothing used this line" in counted.stdout
    plain = _run_pytest(tmp_path)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "nothing used this line" in plain.stdout
    part = _run_pytest(tmp_path, "test_innocent.py")
    assert part.returncode == 0, part.stdout + part.stderr
