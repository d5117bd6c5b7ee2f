"""`bench --host`: what a device measures becomes a result of this computer, whole and checked, or no result at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgebert.bench.comparison.validation import check_result
from edgebert.bench.options import BenchOptions
from edgebert.bench.result import read_result
from edgebert.errors import CannotWriteError, LinkLostError, LockedError, NotComparableError, UsageError
from edgebert.install.installing import InstallOptions
from edgebert.remote.bench import _asked, bench_on, planned
from edgebert.remote.device_store import Store
from edgebert.remote.fleet import bench_transports
from edgebert.remote.install import install_on
from edgebert.remote.objects import object_of_bytes
from edgebert.remote.run_folder import RunFolder
from edgebert.remote.session import DeviceSession
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import LocalPipe, Ssh, transport_of

pytest.importorskip("asyncssh")
pytest.importorskip("onnxruntime")
MakeBundle = Callable[[Path], Path]
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("bolt", "gear", "nut", "washer"):
        (root / name).mkdir()
        for index in range(6):
            pixels = generator.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def quick(images: Path) -> BenchOptions:
    return BenchOptions(
        data=str(images), targets=("cpu",), launches=1, seconds=0.2, queries=40, max_warmup_seconds=0.0, threads=1
    )


@pytest.fixture
def bundle(make_toy_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


@pytest.fixture
def device_home(tmp_path: Path) -> Path:
    (tmp_path / "device/tmp").mkdir(parents=True)
    return tmp_path / "device"


@pytest.fixture
def pipe(device_home: Path) -> LocalPipe:
    """A device that is a process of this computer, in a home folder of its own."""
    return LocalPipe(
        environment={"HOME": str(device_home), "PATH": os.environ["PATH"], "TMPDIR": str(device_home / "tmp")}
    )


def left_on(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and "bin" not in path.parts)


def test_bench_on_writes_a_result_that_holds_and_leaves_nothing(
    pipe: LocalPipe, bundle: Path, quick: BenchOptions, tmp_path: Path, device_home: Path
) -> None:
    output = tmp_path / "result.json"
    result = bench_on(pipe, [bundle], output, quick)
    assert [arm.role for arm in result.arms] == ["baseline", "aa"]
    assert result.arms[0].scenarios[0].queries >= 40
    assert any("statistics follow" in line for line in check_result(output))
    assert read_result(output) == result
    assert not output.with_name("result.json.run").exists()
    assert [name for name in left_on(device_home) if not name.endswith(".lock")] == []


def test_bench_on_over_ssh_says_how_the_device_was_reached(
    start_device: Start, host_home: Path, bundle: Path, quick: BenchOptions, tmp_path: Path
) -> None:
    with start_device() as device:
        device.trust(host_home / ".ssh/known_hosts")
        output = tmp_path / "result.json"
        result = bench_on(transport_of(f"pi@127.0.0.1:{device.port}"), [bundle], output, quick)
        assert result.device.transport == "ssh"
        assert result.command[3:5] == ("--host", f"127.0.0.1:{device.port}")
        check_result(output)
        assert len(device.commands) == 1
        assert [name for name in left_on(device.home) if not name.endswith(".lock")] == []


# -- links that break


@pytest.fixture
def device(start_device: Start, host_home: Path) -> Iterator[Any]:
    with start_device() as server:
        server.trust(host_home / ".ssh/known_hosts")
        yield server


def at(server: Any) -> Ssh:
    found = transport_of(f"pi@127.0.0.1:{server.port}")
    assert isinstance(found, Ssh)
    return found


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("hang", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bench_on_keeps_complete_launches_where_the_link_breaks_and_resume_goes_on_from_them(
    device: Any,
    host_home: Path,
    bundle: Path,
    quick: BenchOptions,
    tmp_path: Path,
    cutting_proxy: Start,
    ssh_device: Any,
    hang: bool,
) -> None:
    output, options = tmp_path / "result.json", replace(quick, launches=3)
    run = RunFolder.beside(output)
    with cutting_proxy(device.port, None, hang=hang) as proxy:
        device.trust(host_home / ".ssh/known_hosts", port=proxy.port)
        (host_home / ".ssh/config").write_text(f"Host board\n HostName 127.0.0.1\n Port {proxy.port}\n User pi\n")

        def cut_after_the_first_launch() -> None:
            wait_until((run.path / "launch-0.json").exists, 120)
            proxy.cut()

        watching = threading.Thread(target=cut_after_the_first_launch)
        watching.start()
        with pytest.raises(LinkLostError, match="1 complete launch is kept") as caught:
            bench_on(transport_of("board"), [bundle], output, options, ssh=SshOptions(silence_seconds=2))
        watching.join()
    assert f"--resume {run.path}" in (caught.value.hint or "")
    assert not output.exists()
    wait_until(lambda: not ssh_device.processes_of(device.home))
    kept = run.launches()
    (host_home / ".ssh/config").write_text(f"Host board\n HostName 127.0.0.1\n Port {device.port}\n User pi\n")
    result = bench_on(transport_of("board"), [bundle], output, options, resume=run.path)
    check_result(output)
    assert not result.status.partial
    assert len(result.arms[0].startup.load_ns.values) == 3
    assert result.arms[0].startup.load_ns.values[0] == kept[0].record.arms[0].loaded.load_ns
    assert any("taken up again after 1 launches" in warning for warning in result.status.warnings)
    assert not run.path.exists()


def test_push_goes_on_where_the_link_was_cut(
    device: Any, host_home: Path, cutting_proxy: Start, ssh_device: Any
) -> None:
    content = np.random.default_rng(0).bytes(3 << 20)
    with DeviceSession(at(device), keep=True):
        pass  # the wheel is there from now on
    with cutting_proxy(device.port, 2 << 20) as proxy:
        device.trust(host_home / ".ssh/known_hosts", port=proxy.port)
        with pytest.raises(LinkLostError), DeviceSession(at(proxy)) as session:
            session.push([object_of_bytes(content)])
    wait_until(lambda: not ssh_device.processes_of(device.home))
    with DeviceSession(at(device)) as session:
        sent = session.push([object_of_bytes(content)])
        assert 0 < sent < len(content) - (1 << 20)
        assert session.push([object_of_bytes(content)]) == 0


def test_push_replaces_a_part_that_was_damaged(pipe: LocalPipe, device_home: Path) -> None:
    entry = object_of_bytes(b"seven" * 1000)
    objects = device_home / ".cache/edgebert/objects"
    objects.mkdir(parents=True)
    (objects / f"{entry.sha256}.part").write_bytes(b"other" * 10)
    (objects / object_of_bytes(b"eight").sha256).write_bytes(b"nine!")
    with DeviceSession(pipe, keep=True) as session:
        session.push([entry, object_of_bytes(b"eight")])
    assert (objects / entry.sha256).read_bytes() == b"seven" * 1000
    assert (objects / object_of_bytes(b"eight").sha256).read_bytes() == b"eight"
    assert len(list(objects.iterdir())) == 2


def test_second_session_on_a_device_is_refused_as_locked(pipe: LocalPipe) -> None:
    with DeviceSession(pipe), pytest.raises(LockedError, match="another session"), DeviceSession(pipe):
        pass


def test_agent_ends_where_the_host_falls_silent(pipe: LocalPipe, device_home: Path, ssh_device: Any) -> None:
    """The host's thread stops for good, as a laptop that is shut does; its end of the pipe stays open."""
    session = DeviceSession(pipe)
    session.__enter__()
    (running,) = ssh_device.processes_of(device_home)
    stopped = threading.Event()
    session._loop.call_soon_threadsafe(stopped.wait, 30)
    try:
        wait_until(lambda: running not in ssh_device.processes_of(device_home) or is_zombie(running))
    finally:
        stopped.set()
        session._close()


def is_zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_bench_on_refuses_a_run_of_something_else(
    pipe: LocalPipe, bundle: Path, quick: BenchOptions, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "old.run")
    work = planned([bundle], tmp_path / "r.json", quick)
    run.begin(_asked(work, pipe), force=False)
    with pytest.raises(NotComparableError, match="another `options`"):
        bench_on(pipe, [bundle], tmp_path / "r.json", replace(quick, seed=7), resume=run.path)


def test_run_folder_refuses_another_boot(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r.run")
    run.begin({"host": "x"}, force=False)
    run.bind({"boot": "a", "cpu": "c"})
    run.bind({"boot": "a", "cpu": "c"})
    with pytest.raises(NotComparableError, match="was started anew"):
        run.bind({"boot": "b", "cpu": "c"})


def test_bench_on_refuses_a_checkpoint(pipe: LocalPipe, quick: BenchOptions, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(UsageError, match="runs in PyTorch"):
        bench_on(pipe, [tmp_path / "model"], tmp_path / "r.json", quick)


def test_agent_ends_where_the_host_takes_nothing_more(device_home: Path) -> None:
    """A link that fell silent while the device sends: the pipe is full, and whoever writes to it waits."""
    code = (
        "import io, os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from edgebert.remote.device_link import Link\n"
        "from edgebert.remote.device_store import Store\n"
        "from edgebert.remote.frames import Frame\n"
        "from edgebert._json import Fields\n"
        "link = Link('00', sys.stdin.buffer, os.fdopen(os.dup(1), 'wb', buffering=0), Store(Path(sys.argv[1])))\n"
        "link.start()\n"
        "request = Frame(kind='x', number=1, re=0, fields=Fields({}, what='x'), blobs=())\n"
        "link.answer(request, {}, {'blob': bytes(1 << 22)})\n"
    )
    environment = {**os.environ, "HOME": str(device_home)}
    command = [sys.executable, "-c", code, str(device_home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as started:
        try:
            assert started.wait(30) != 0  # nobody reads what it says
        finally:
            started.kill()


@pytest.mark.slow
def test_bench_transports_gives_each_device_a_result_and_claims_nothing_between_them(
    bundle: Path, quick: BenchOptions, tmp_path: Path
) -> None:
    devices = {}
    for name in ("a", "b"):
        home = tmp_path / f"device-{name}"
        (home / "tmp").mkdir(parents=True)
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home / "tmp")}
        devices[name] = LocalPipe(environment=environment)
    missing = LocalPipe(python="/no/such/python", environment={"PATH": ""})
    found = bench_transports({**devices, "c": missing}, [bundle], tmp_path / "r.json", quick)
    assert set(found.results) == {"a", "b"}
    assert set(found.failed) == {"c"}
    assert found.exit_code == 69
    for name in devices:
        check_result(tmp_path / f"r.{name}.json")
    text = found.to_text()
    assert text.index("## a") < text.index("## b") < text.index("no result")
    assert "between devices none is claimed" in text


# -- what else lies on a device


@pytest.fixture
def login_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a command starts, with modules that are called like those of others."""
    folder = tmp_path / "login"
    folder.mkdir()
    for name in ("base64", "json", "numpy", "onnxruntime"):
        (folder / f"{name}.py").write_text("raise SystemExit('the module of the login folder')\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("login_folder")
def test_modules_in_the_login_folder_are_not_the_library_of_a_session(pipe: LocalPipe) -> None:
    with DeviceSession(pipe) as session:
        assert session.ask("facts", {}, timeout_s=60).fields.integer("cores") >= 1


@pytest.mark.usefixtures("login_folder")
def test_what_a_session_starts_does_not_look_into_the_login_folder(
    pipe: LocalPipe, device_home: Path, ssh_device: Any
) -> None:
    """Python 3.10, of JetPack 6, has no PYTHONSAFEPATH: the folder itself must be another one."""
    with DeviceSession(pipe):
        (agent,) = ssh_device.processes_of(device_home)
        assert Path(f"/proc/{agent}/cwd").resolve().parent == device_home / ".cache/edgebert"


def test_session_that_was_refused_something_leaves_nothing(pipe: LocalPipe, device_home: Path) -> None:
    """The link is whole and nothing is under way: an error of one command is no reason to leave what was pushed."""
    request = {"backend": "no-such", "device": "CPU", "builder": None}

    def ask() -> None:
        with DeviceSession(pipe) as session:
            session.push([object_of_bytes(b"x" * 1000)])
            session.ask("form", request, timeout_s=60)

    with pytest.raises(UsageError, match="no-such"):
        ask()
    assert [name for name in left_on(device_home) if not name.endswith(".lock")] == []


def test_session_that_fails_here_leaves_nothing_there(pipe: LocalPipe, device_home: Path) -> None:
    def fail() -> None:
        with DeviceSession(pipe) as session:
            session.push([object_of_bytes(b"x" * 1000)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert left_on(device_home) == []


def test_session_that_only_looks_removes_nothing_that_was_kept_and_leaves_nothing(
    pipe: LocalPipe, device_home: Path
) -> None:
    with DeviceSession(pipe, only_looks=True):
        pass
    assert left_on(device_home) == []
    assert not (device_home / ".cache/edgebert").exists()
    with DeviceSession(pipe, keep=True) as session:
        session.push([object_of_bytes(b"x" * 1000)])
    kept = left_on(device_home)
    assert len(kept) == 3  # the lock, the wheel and the object
    with DeviceSession(pipe, only_looks=True):
        pass
    assert left_on(device_home) == kept


def test_session_that_ends_while_an_installation_uses_its_wheel_leaves_the_wheel(device: Any, bundle: Path) -> None:
    with DeviceSession(at(device)):
        installed = install_on(str(at(device)), bundle, "~/widgets", InstallOptions(self_test="later"))
        assert installed.outcome == "installed"
    assert any(name.endswith(".whl") for name in left_on(device.home))


def test_store_is_held_by_one_session_where_another_one_just_removed_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked must be the file that the next one opens, and not one that has lost its name."""
    import fcntl

    first, second = Store(tmp_path), Store(tmp_path)
    wait = fcntl.flock

    def remove_it_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", wait)
        (tmp_path / "lock").unlink()  # as `forget` of a session that ends just now
        wait(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_it_first)
    with first.held(), pytest.raises(LockedError), second.held():
        pass


def test_run_folder_removes_its_own_files_only(tmp_path: Path) -> None:
    """`-o` may name a file in the folder that `--resume` goes on from."""
    run = RunFolder(tmp_path / "r.run")
    run.begin({"host": "x"}, force=False)
    (run.path / "result.json").write_text("{}")
    run.remove()
    assert [path.name for path in run.path.iterdir()] == ["result.json"]
    (run.path / "result.json").unlink()
    run.begin({"host": "x"}, force=True)
    run.remove()
    assert not run.path.exists()


def test_bench_transports_ends_on_every_device_where_it_is_interrupted(
    bundle: Path, quick: BenchOptions, tmp_path: Path, ssh_device: Any
) -> None:
    devices = {}
    for name in ("a", "b"):
        (tmp_path / name / "tmp").mkdir(parents=True)
        environment = {"HOME": str(tmp_path / name), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / name / "tmp")}
        devices[name] = LocalPipe(environment=environment)

    def interrupt() -> None:
        wait_until(lambda: all(ssh_device.processes_of(tmp_path / name) for name in devices), 60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # that is whom the system interrupts

    long = replace(quick, launches=5, seconds=600.0, queries=10_000_000)
    in_a_while = threading.Thread(target=interrupt)
    in_a_while.start()
    with pytest.raises(KeyboardInterrupt):
        bench_transports(devices, [bundle], tmp_path / "r.json", long)
    in_a_while.join()
    wait_until(lambda: not any(ssh_device.processes_of(tmp_path / name) for name in devices))
    assert not list(tmp_path.glob("r.*.json"))


def test_bench_on_leaves_no_run_where_the_device_was_never_reached(
    host_home: Path, bundle: Path, quick: BenchOptions, tmp_path: Path
) -> None:
    """It would be in the way of the next call, which names another host."""
    del host_home
    nobody = transport_of("pi@127.0.0.1:9")
    with pytest.raises(LinkLostError, match="cannot be reached") as caught:
        bench_on(nobody, [bundle], tmp_path / "r.json", quick)
    assert "--resume" not in str(caught.value)
    assert not list(tmp_path.glob("r.json*"))


def test_begin_names_the_two_ways_on_where_a_run_was_cut_short(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r.run")
    run.begin({"host": "x"}, force=False)
    with pytest.raises(CannotWriteError, match="cut short") as caught:
        run.begin({"host": "x"}, force=False)
    assert f"--resume {run.path}" in (caught.value.hint or "")
    run.begin({"host": "x"}, force=True)


def test_local_pipe_takes_a_python_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As messages and docs name one, in quotes: no shell is there to read it."""
    (tmp_path / "python-with-a-difference").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python-with-a-difference").chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    with DeviceSession(transport_of("local:", python="~/python-with-a-difference")) as session:
        assert session.device.python == sys.version_info[:3]
