"""`install --host`: a device that has nothing of edgebert gets a bundle, whole or not at all, whatever it or the link does."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import (
    EdgebertError,
    InputNotFoundError,
    LinkLostError,
    MalformedBundleError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.install import rollback
from edgebert.install.installing import InstallOptions
from edgebert.install.reports import RollbackReport, StatusReport
from edgebert.remote.agent import run_agent
from edgebert.remote.device_wheel import device_wheel
from edgebert.remote.install import RemoteInstallation, install_on
from edgebert.remote.installation import rollback_on, status_on
from edgebert.remote.ssh import SshOptions, parse_destination

pytest.importorskip("asyncssh")
Start = Callable[..., Any]
MakeBundle = Callable[[Path], Path]
UNTESTED = InstallOptions(self_test="later")  # where the self-test is not what the test is about


@pytest.fixture
def device(start_device: Start, host_home: Path) -> Iterator[Any]:
    with start_device() as server:
        server.trust(host_home / ".ssh/known_hosts")
        yield server


@pytest.fixture
def bundle(make_toy_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


def host(server: Any) -> str:
    return f"pi@127.0.0.1:{server.port}"


def wheels(server: Any) -> list[Path]:
    return sorted((server.home / ".cache/edgebert").rglob("*.whl"))


def test_install_on_puts_a_bundle_in_place_and_keeps_the_wheel(device: Any, bundle: Path) -> None:
    report = install_on(host(device), bundle, "~/widgets")
    assert (report.outcome, report.digest) == ("installed", read_bundle(bundle).digest)
    assert "canaries" in (report.self_test or "")
    with Classifier(device.home / "widgets/current") as classifier:
        assert classifier.predict(bundle / "canary/0.png").label
    assert [path.parent.name for path in wheels(device)] == [device_wheel().sha256]
    assert wheels(device)[0].read_bytes() == device_wheel().content
    assert len(device.commands) == 1


def test_install_on_sends_the_wheel_only_once(device: Any, bundle: Path) -> None:
    first = install_on(host(device), bundle, "~/widgets", UNTESTED)
    second = install_on(host(device), bundle, "~/widgets", UNTESTED)
    assert second.outcome == "already current"
    assert first.sent_bytes - second.sent_bytes == len(device_wheel().content)


def test_install_on_replaces_a_damaged_wheel(device: Any, bundle: Path) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    wheels(device)[0].write_bytes(b"damaged")
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    assert hashlib.sha256(wheels(device)[0].read_bytes()).hexdigest() == device_wheel().sha256


@pytest.mark.parametrize("to", ["a 'b' $HOME `id`; ü* \"\\", "{signers}"])
def test_install_on_takes_any_folder_name(device: Any, bundle: Path, to: str) -> None:
    install_on(host(device), bundle, f"./{to}", UNTESTED)
    assert (device.home / to / "current" / "manifest.json").is_file()


def test_install_on_takes_a_packed_bundle(device: Any, bundle: Path, tmp_path: Path) -> None:
    from edgebert.archive import write_archive

    write_archive(read_bundle(bundle), tmp_path / "toy.zip")
    report = install_on(host(device), tmp_path / "toy.zip", "~/widgets", UNTESTED)
    assert report.digest == read_bundle(bundle).digest


def test_install_on_refuses_a_damaged_bundle_before_it_connects(device: Any, bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other")
    with pytest.raises(EdgebertError):
        install_on(host(device), bundle, "~/widgets")
    assert device.commands == []


def test_failed_self_test_leaves_the_old_bundle_and_says_why(
    device: Any, bundle: Path, make_toy_bundle: MakeBundle, tmp_path: Path
) -> None:
    install_on(host(device), bundle, "~/widgets")
    wrong = wrongly_answering(make_toy_bundle(tmp_path / "wrong.edgebert"))
    with pytest.raises(RefusedError, match="canary") as caught:
        install_on(host(device), wrong, "~/widgets")
    assert f"on `{host(device)}`" in caught.value.what
    assert read_bundle(device.home / "widgets/current").digest == read_bundle(bundle).digest


def wrongly_answering(bundle: Path) -> Path:
    """Swap two class names and hash everything again: a whole bundle that answers its canaries wrongly."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    names = manifest["card"]["class_names"]
    names[0], names[1] = names[1], names[0]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    lines = [line.split("  ") for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    text = "".join(f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for _, name in lines)
    (bundle / "SHA256SUMS").write_text(text)
    return bundle


def test_signers_of_this_computer_are_sent_and_count_there(device: Any, bundle: Path, tmp_path: Path) -> None:
    from edgebert.signing import sign_bundle

    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this computer")
    (device.home / "bin/ssh-keygen").symlink_to(shutil.which("ssh-keygen") or "")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sign_bundle(bundle, key)
    signers = tmp_path / "allowed signers"
    signers.write_text(f"maker@lab {key.with_suffix('.pub').read_text()}")
    options = InstallOptions(signers=signers, require_signature=True)
    report = install_on(host(device), bundle, "~/widgets", options)
    assert (report.signed_by, report.signatures_required) == ("maker@lab", True)
    (bundle / "SHA256SUMS.sig").unlink()
    with pytest.raises(RefusedError):
        install_on(host(device), bundle, "~/widgets")


# -- devices that lack something


def test_device_without_python_is_named_with_the_command(start_device: Start, host_home: Path, bundle: Path) -> None:
    with start_device(python=None) as device:
        device.trust(host_home / ".ssh/known_hosts")
        with pytest.raises(UnavailableError, match="has no `python3`"):
            install_on(host(device), bundle, "~/widgets")


def python_that(tmp_path: Path, code: str) -> Path:
    """Return a Python that runs this first, whatever it is given."""
    path = tmp_path / "python-with-a-difference"
    start = f"import sys\n{code}\nsys.argv = ['-c', *sys.argv[3:]]\nimport base64\nexec(base64.b64decode(sys.argv[1]))"
    path.write_text(f"#!{sys.executable}\n{start}\n")
    path.chmod(0o755)
    return path


def test_device_with_an_old_python_is_refused(
    start_device: Start, host_home: Path, bundle: Path, tmp_path: Path
) -> None:
    python = python_that(tmp_path, "import collections\nsys.version_info = (3, 9, 2)")
    with start_device(python=python) as device:
        device.trust(host_home / ".ssh/known_hosts")
        with pytest.raises(UnavailableError, match=r"is Python 3\.9\.2") as caught:
            install_on(host(device), bundle, "~/widgets")
    assert "--python" in (caught.value.hint or "")
    assert wheels(device) == []


def test_device_without_numpy_and_backend_is_told_all_that_is_missing(
    start_device: Start, host_home: Path, bundle: Path, tmp_path: Path
) -> None:
    hidden = "import importlib.util as u\nfind = u.find_spec\n"
    hidden += "u.find_spec = lambda name: None if name in ('numpy', 'onnxruntime', 'openvino') else find(name)"
    with start_device(python=python_that(tmp_path, hidden)) as device:
        device.trust(host_home / ".ssh/known_hosts")
        with pytest.raises(UnavailableError, match="no numpy and no onnxruntime") as caught:
            install_on(host(device), bundle, "~/widgets")
    assert "pip install numpy onnxruntime" in (caught.value.hint or "")


def test_another_python_of_the_device_is_used(start_device: Start, host_home: Path, bundle: Path) -> None:
    with start_device(python=None) as device:
        device.trust(host_home / ".ssh/known_hosts")
        own = device.home / "my env/bin/python"
        own.parent.mkdir(parents=True)
        own.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        own.chmod(0o755)
        report = install_on(host(device), bundle, "~/widgets", UNTESTED, python="~/my env/bin/python")
    assert report.outcome == "installed"


def test_modules_in_the_home_folder_are_not_imported(device: Any, bundle: Path) -> None:
    (device.home / "numpy.py").write_text("raise SystemExit('a file of the user')")
    assert install_on(host(device), bundle, "~/widgets", UNTESTED).outcome == "installed"


def test_folder_that_cannot_be_written_is_74_with_the_devices_reason(device: Any, bundle: Path) -> None:
    (device.home / "taken").write_text("a file")
    with pytest.raises(EdgebertError) as caught:
        install_on(host(device), bundle, "~/taken")
    assert caught.value.exit_code == 74
    assert str(device.home / "taken") in caught.value.what


@pytest.mark.parametrize("to", ["", "-x", "a\nb", "\x1b[2J"])
def test_install_on_refuses_a_folder_that_is_none(to: str, bundle: Path) -> None:
    with pytest.raises(UsageError, match="names no folder"):
        install_on("127.0.0.1", bundle, to)


def test_install_on_refuses_files_too_large_for_a_command(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "signers").write_bytes(b"x" * (65 << 10))
    with pytest.raises(UsageError, match="66,560 bytes"):
        install_on("127.0.0.1", bundle, "~/widgets", InstallOptions(signers=tmp_path / "signers"))


# -- devices that lie

HOSTILE = """
import json, os, sys
command = sys.argv[-1]
given = json.loads(command[command.index("{"): command.rindex("}") + 1])
nonce = given["nonce"]
def say(**fields):
    sys.stdout.write(json.dumps(fields) + "\\n"); sys.stdout.flush()
def hello(**changes):
    modules = {"numpy": "2.4", "PIL": "13.0", "onnxruntime": "1.31"}
    say(**{"nonce": nonce, "python": [3, 11, 2], "executable": "/usr/bin/python3", "machine": "aarch64", "modules": modules,
           "wheel": True, **changes})
def report(**changes):
    return {"path": "/w", "outcome": "installed", "digest": DIGEST, "name": "toy", "release": 0, "signed_by": None,
            "previous": None, "self_test": "fine", "removed": [], "signatures_required": False, **changes}
def end(**changes):
    sys.stdin.buffer.read()
    say(**{"nonce": nonce, "exit_code": 0, "answer": report(), **changes})
"""


@pytest.fixture
def lying(start_device: Start, host_home: Path, bundle: Path) -> Callable[[str], RemoteInstallation]:
    """Return a function that installs on a device that runs this code instead of our command."""

    def install(code: str) -> RemoteInstallation:
        digest = read_bundle(bundle).digest
        program = f"DIGEST = {digest!r}\n{HOSTILE}\n{code}"
        with start_device(instead=(sys.executable, "-c", program)) as device:
            device.trust(host_home / ".ssh/known_hosts")
            return install_on(host(device), bundle, "~/widgets")

    return install


def test_the_honest_answer_that_the_lies_vary_is_taken(lying: Callable[[str], RemoteInstallation]) -> None:
    report = lying("hello(); end()")
    assert (report.outcome, report.device.machine) == ("installed", "aarch64")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("hello(nonce='0' * 32); end()", "another call"),
        ("hello(); end(nonce='0' * 32)", "another call"),
        ("hello(nonce=7)", "nonce"),
        ("print('Welcome to Linux')", "not valid JSON"),
        ("print('[]')", "list"),
        ("hello(); sys.stdin.buffer.read(); print('{')", "not valid JSON"),
        ("hello(); sys.stdin.buffer.read(); print('{\"a\": NaN}')", "not valid JSON"),
        ("hello(); sys.stdin.buffer.read(); print('[' * 100000)", "not valid JSON"),
        ("hello(); end(answer=None)", "no JSON object"),
        ("hello(); end(answer=report(digest='ab' * 32))", "is current"),
        ("hello(); end(answer=report(outcome='owned'))", "owned"),
        ("hello(); end(answer=report(previous='../../etc'))", "calls a bundle"),
        ("hello(); end(answer=report(removed=['x']))", "calls a bundle"),
        ("hello(); end(answer=report(release='many'))", "release"),
        ("hello(); end(exit_code='0')", "no JSON object"),
        ("hello(python='new')", "python"),
        ("hello(modules=[])", "modules"),
        ("sys.stdout.write('x' * 10_000_000)", "more than 4,096 bytes"),
        ("hello()\nwhile True: sys.stdout.write('x' * 65536)", "more than 1,048,576 bytes"),
        ("hello()\nwhile True: sys.stderr.write('x' * 65536)", "bytes of log"),
    ],
)
def test_answer_that_cannot_be_trusted_is_refused(
    lying: Callable[[str], RemoteInstallation], code: str, said: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        lying(code)
    assert said in caught.value.what


@pytest.mark.parametrize(
    "code",
    [
        r"hello(); end(answer=report(name='\x1b[2Jx', path='\x1b]0;y\x07', self_test='\x9b2J', signed_by='\u202ee'))",
        r"hello(machine='\x1b[2J', executable='\x1b[2J'); end()",
    ],
)
def test_no_control_character_of_a_device_reaches_the_terminal(
    lying: Callable[[str], RemoteInstallation], code: str
) -> None:
    text = lying(code).to_text()
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "code",
    [
        r"hello(); end(exit_code=77, answer={'error': {'exit_code': 77, 'what': '\x1b[2J', 'expected': '\x07', 'hint': '\x9b'}})",
        r"print('\x1b[2J')",
        r"hello(); end(answer=report(outcome='\x1b[2J'))",
        r"hello(); end(answer=report(digest='\x1b[2J'))",
        r"hello(python=[3, 8, 0], executable='\x1b[2J')",
        r"hello(modules={'\x1b[2J': '1'}, executable='\x1b[2J')",
        r"sys.stderr.write('\x1b[2J\n'); sys.exit(9)",
    ],
)
def test_no_control_character_of_a_device_is_in_an_error(
    lying: Callable[[str], RemoteInstallation], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgebert"), pytest.raises(EdgebertError) as caught:
        lying(code)
    for text in (str(caught.value), *(record.getMessage() for record in caplog.records)):
        assert text.replace("\n", "").isprintable(), text


def test_words_of_a_device_in_an_error_are_marked_as_its_own(lying: Callable[[str], RemoteInstallation]) -> None:
    said = "{'exit_code': 77, 'what': 'no\\nhint: x', 'expected': 'y', 'hint': 'curl z'}"
    with pytest.raises(RefusedError) as caught:
        lying(f"hello(); end(exit_code=77, answer={{'error': {said}}})")
    error = caught.value
    assert "\n" not in error.what
    assert all(part.startswith("on `pi@127.0.0.1:") for part in (error.what, error.expected or "", error.hint or ""))


def test_agent_that_is_killed_means_out_of_memory(lying: Callable[[str], RemoteInstallation]) -> None:
    with pytest.raises(MemoryExhaustedError, match="signal 9"):
        lying("hello(); sys.stdin.buffer.read(); os.kill(os.getpid(), 9)")


def test_device_that_stops_reading_and_says_nothing_is_an_error(lying: Callable[[str], RemoteInstallation]) -> None:
    with pytest.raises(EdgebertError, match="ended without an answer"):
        lying("hello(); sys.exit(9)")


# -- links that break


@pytest.mark.parametrize(
    "share", [0.3, 0.97, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.5, 0.7, 0.9, 0.99))]
)
def test_cut_link_leaves_the_old_or_the_new_bundle_and_the_next_call_succeeds(
    device: Any,
    bundle: Path,
    make_toy_bundle: MakeBundle,
    tmp_path: Path,
    host_home: Path,
    cutting_proxy: Start,
    share: float,
) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    shutil.rmtree(device.home / ".cache")  # so that the wheel is sent again, and can be cut as well
    new = renamed(make_toy_bundle(tmp_path / "new.edgebert"))
    whole = sum(len(content) for content in read_bundle(new).all_files().values()) + len(device_wheel().content)
    with cutting_proxy(device.port, int(share * whole)) as proxy:
        device.trust(host_home / ".ssh/known_hosts", port=proxy.port)
        with pytest.raises(LinkLostError):
            install_on(host(proxy), new, "~/widgets", UNTESTED)
    current = read_bundle(device.home / "widgets/current").digest
    assert current in (read_bundle(bundle).digest, read_bundle(new).digest)
    assert [path for path in wheels(device) if path.read_bytes() != device_wheel().content] == []
    wait_until(lambda: device.running() == 0)
    install_on(host(device), new, "~/widgets", UNTESTED)
    assert read_bundle(device.home / "widgets/current").digest == read_bundle(new).digest
    left = [path.name for path in (device.home / "widgets").iterdir() if "staging" in path.name]
    assert left == []


def renamed(bundle: Path) -> Path:
    """Give a bundle another name, and so another digest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["name"] = "newer"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    lines = [line.split("  ") for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    text = "".join(f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n" for _, name in lines)
    (bundle / "SHA256SUMS").write_text(text)
    return bundle


def wait_until(condition: Callable[[], bool]) -> None:
    import time

    until = time.monotonic() + 10  # reliability.md, G15: no orphan after 10 s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_device_gives_up_where_the_host_vanishes(tmp_path: Path) -> None:
    from importlib.resources import files

    given = {
        "nonce": "0",
        "wheel": device_wheel().name,
        "sha256": device_wheel().sha256,
        "size": len(device_wheel().content),
        "silence_seconds": 0.2,
        "words": [],
        "files": {},
    }
    text = files("edgebert.remote").joinpath("bootstrap.py").read_text()
    command = [sys.executable, "-c", text, json.dumps(given)]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as started:
        try:
            assert started.wait(20) == 0  # its stdin is open and silent
        finally:
            started.kill()


def test_install_on_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "no.edgebert").mkdir()
    with pytest.raises(MalformedBundleError):
        install_on("127.0.0.1", tmp_path / "no.edgebert", "~/widgets")


# -- the command line


def edgebert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as its user would: HOME is the one of the test."""
    command = [sys.executable, "-m", "edgebert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_install_command_with_a_host_installs_there(device: Any, bundle: Path) -> None:
    ran = edgebert("install", bundle, "--to", "~/widgets", "--host", host(device), "--self-test", "later", "--json")
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["host"], said["outcome"]) == (host(device), "installed")
    assert said["path"] == str(device.home / "widgets")
    assert (device.home / "widgets/current/manifest.json").is_file()


def test_install_command_exits_with_77_where_the_host_key_is_unknown(
    device: Any, bundle: Path, host_home: Path
) -> None:
    (host_home / ".ssh/known_hosts").write_text("")
    ran = edgebert("install", bundle, "--to", "~/widgets", "--host", host(device))
    assert ran.returncode == 77
    assert device.host_key.get_fingerprint() in ran.stderr


def test_install_command_refuses_a_python_without_a_host(bundle: Path, tmp_path: Path) -> None:
    ran = edgebert("install", bundle, "--to", tmp_path / "widgets", "--python", "python3.11")
    assert ran.returncode == 2
    assert "--host" in ran.stderr


def test_device_wheel_command_writes_the_wheel(tmp_path: Path) -> None:
    ran = edgebert("device-wheel", "-o", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).read_bytes() == device_wheel().content


# -- the installation of a device


def test_status_on_says_what_is_installed_there(device: Any, bundle: Path) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    there = status_on(host(device), "~/widgets")
    assert isinstance(there.report, StatusReport)
    assert there.report.current is not None
    assert there.report.current.digest == read_bundle(bundle).digest
    assert there.to_text().startswith(f"{host(device)}:{device.home}/widgets\n")
    assert there.to_json()["host"] == host(device)


def test_rollback_on_makes_the_previous_bundle_current_there(
    device: Any, bundle: Path, make_toy_bundle: MakeBundle, tmp_path: Path
) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    install_on(host(device), renamed(make_toy_bundle(tmp_path / "new.edgebert")), "~/widgets", UNTESTED)
    there = rollback_on(host(device), "~/widgets", self_test="later")
    assert read_bundle(device.home / "widgets/current").digest == read_bundle(bundle).digest
    assert isinstance(there.report, RollbackReport)
    assert there.report.bundle.digest == read_bundle(bundle).digest


def test_rollback_on_without_a_previous_bundle_is_refused_as_here(device: Any, bundle: Path) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    with pytest.raises(EdgebertError) as there:
        rollback_on(host(device), "~/widgets")
    with pytest.raises(EdgebertError) as here:
        rollback(device.home / "widgets")
    assert there.value.exit_code == here.value.exit_code
    assert here.value.what in there.value.what


@pytest.mark.parametrize("path", ["", "-x", "a\nb"])
def test_status_on_refuses_a_folder_that_is_none(path: str) -> None:
    with pytest.raises(UsageError, match="names no folder"):
        status_on("127.0.0.1", path)


def test_status_and_rollback_commands_take_a_host(device: Any, bundle: Path) -> None:
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    ran = edgebert("status", "~/widgets", "--host", host(device), "--json")
    assert json.loads(ran.stdout)["current"]["digest"] == read_bundle(bundle).digest
    assert "no previous" in edgebert("rollback", "~/widgets", "--host", host(device)).stderr
    assert edgebert("status", "~/widgets", "--python", "python3").returncode == 2


def test_install_on_refuses_stdin() -> None:
    with pytest.raises(UsageError, match="read from a file"):
        install_on("127.0.0.1", Path("-"), "~/widgets")


# -- devices that keep one waiting

IMPATIENT = SshOptions(patience_seconds=1)


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "hello(); import time; time.sleep(60)"])
def test_device_that_keeps_one_waiting_is_a_lost_link(start_device: Start, host_home: Path, code: str) -> None:
    with start_device(instead=(sys.executable, "-c", f"{HOSTILE}\n{code}")) as device:
        device.trust(host_home / ".ssh/known_hosts")
        with pytest.raises(LinkLostError, match="for 1 seconds"):
            run_agent(
                parse_destination(host(device)), ["status", "x"], [b"x" * (1 << 20)] * 32, 32 << 20, options=IMPATIENT
            )


def test_device_with_a_home_that_cannot_be_written_is_used_all_the_same(device: Any, bundle: Path) -> None:
    (device.home / ".cache").write_text("a file where a folder should be")
    assert install_on(host(device), bundle, "~/widgets", UNTESTED).outcome == "installed"


def test_modules_in_the_login_folder_are_not_the_standard_library(device: Any, bundle: Path) -> None:
    for name in ("base64", "json", "select", "hashlib"):
        (device.home / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    assert install_on(host(device), bundle, "~/widgets", UNTESTED).outcome == "installed"


def test_wheels_that_nobody_used_for_a_month_are_removed(device: Any, bundle: Path) -> None:
    cache = device.home / ".cache/edgebert"
    for name, days in (("old", 40), ("recent", 3)):
        (cache / name).mkdir(parents=True)
        (cache / name / "edgebert.whl").write_bytes(b"a wheel")
        for path in (cache / name / "edgebert.whl", cache / name):
            os.utime(path, (time.time() - days * 86400, time.time() - days * 86400))
    install_on(host(device), bundle, "~/widgets", UNTESTED)
    assert sorted(path.name for path in cache.iterdir()) == sorted(["recent", device_wheel().sha256])


def test_install_status_and_rollback_take_a_name_of_devices(
    device: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgebert.remote.devices import KnownDevice, add_device

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    add_device(KnownDevice(name="board", host=host(device), python=sys.executable))
    assert install_on("board", bundle, "~/widgets", UNTESTED).outcome == "installed"
    assert status_on("board", "~/widgets").device.executable == sys.executable
    with pytest.raises(InputNotFoundError):
        rollback_on("board", "~/widgets")


def test_install_on_refuses_this_computer(bundle: Path) -> None:
    with pytest.raises(UsageError, match="is this computer"):
        install_on("local:", bundle, "~/widgets", UNTESTED)
