"""What is tried on a device over SSH, with the commands that a user types: compile, bench, size, install; and nothing is left there."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import remote_cuts
from _bare_python import described
from _ssh_device import processes_of
from _tiny_bundles import linear

from edgebert.bench.comparison.validation import check_result

NAME = "board"  # of the device, in the SSH configuration


def passed(work: Path, device: remote_cuts.Device, python: Path, *, target: str, size: bool, cuts: int) -> bool:
    """Try all of it, print a line for each, and say whether all held.

    Args:
        work: a folder; `host` in it is the home folder of the user.
        device: that runs.
        python: the device's.
        target: that its backend runs.
        size: try `size`, which needs torch here.
        cuts: how many times the link of `bench` is cut.
    """
    known = work / "host/.ssh/known_hosts"
    device.trust(known)
    config = f"Host *\n User {getpass.getuser()}\nHost {NAME}\n HostName 127.0.0.1\n Port {device.port}\n"
    (known.parent / "config").write_text(config, encoding="utf-8")
    remote_cuts.write_graph(work / "tiny.onnx")
    images = remote_cuts.some_images(work / "images", linear(1).card.class_names)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("device", lambda: described(python)),
        ("compile", lambda: _compile(work, target)),
        ("bench", lambda: _bench(work, images, target)),
        *([("size", lambda: _size(work, target))] if size else []),
        ("install", lambda: _install(work)),
        ("nothing is left", lambda: _nothing_left(device)),
        *([("cuts", lambda: _cuts(work, device, cuts))] if cuts else []),
    ]
    return not sum(not _passes(title, step) for title, step in steps)  # each is tried, whatever the ones before said


def _passes(title: str, step: Callable[[], str]) -> bool:
    try:
        print(f"PASS {title}: {step()}", flush=True)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the figure of this line
        print(f"FAIL {title}: {type(error).__name__}: {error}", flush=True)
        return False
    return True


def _edgebert(work: Path, *arguments: str) -> str:
    """Run a command of the user of `work`/host with `--host`, and return what it printed."""
    environment = {**os.environ, "HOME": str(work / "host")}
    environment.pop("SSH_AUTH_SOCK", None)
    command = [sys.executable, "-m", "edgebert", *arguments, "--host", NAME]
    ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=900)
    if ran.returncode:
        raise AssertionError(f"exit code {ran.returncode}: {' '.join(ran.stderr.split())[-800:]}")
    return ran.stdout


def _compile(work: Path, target: str) -> str:
    arguments = ("--target", target, "--canary", "synthetic", "-o", "tiny.edgebert", "--json")
    made = json.loads(_edgebert(work, "compile", "tiny.onnx", *arguments))
    assert made["verified"] == [target], made["verified"]
    return f"a form for `{target}`, answered and opened on the device"


def _bench(work: Path, images: Path, target: str) -> str:
    arguments = ["--data", str(images), "--target", target, "-o", "bench.json", "--launches", "2", "--queries", "40"]
    arguments += ["--seconds", "0.2", "--max-warmup-seconds", "0", "--threads", "1"]
    _edgebert(work, "bench", "tiny.edgebert", *arguments)
    return check_result(work / "bench.json")[-1]


def _size(work: Path, target: str) -> str:
    arguments = [
        "--image-size",
        "8",
        "--target",
        target,
        "--budget-ms",
        "1000",
        "--shape",
        "d32-l2-h2-r2",
        "--threads",
        "1",
    ]
    said = json.loads(_edgebert(work, "size", "digits", *arguments, "--timed-images", "8", "--json"))
    assert said["proposed"] == "d32-l2-h2-r2", said["proposed"]
    return "a student built here and measured there"


def _install(work: Path) -> str:
    said = json.loads(_edgebert(work, "install", "tiny.edgebert", "--to", "~/widgets", "--self-test", "now", "--json"))
    assert said["outcome"] == "installed", said
    return "installed, self-tested there"


def _nothing_left(device: remote_cuts.Device) -> str:
    until = time.monotonic() + remote_cuts.ORPHAN_SECONDS
    while found := processes_of(device.home):
        assert time.monotonic() < until, f"{len(found)} processes"
        time.sleep(0.1)
    objects = [path for path in (device.home / ".cache").rglob("*") if path.is_file() and path.suffix != ".whl"]
    assert not objects, objects
    return "no process, no object; the wheel stays, since `install` brought it"


def _cuts(work: Path, device: remote_cuts.Device, count: int) -> str:
    os.environ["HOME"] = str(work / "host")
    os.environ.pop("SSH_AUTH_SOCK", None)
    cuts = remote_cuts.swept(work / "cuts", device, count, count // 4, 4, home=work / "host")
    wrong = [cut for cut in cuts if cut.wrong]
    assert not wrong, json.dumps([cut.wrong for cut in wrong])
    return f"{len(cuts)} positions, {sum(cut.silent for cut in cuts)} of them silent, none wrong"
