"""The examples that run a bundle beside something else: a camera, an HTTP server, a folder, GStreamer."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = {"bolt", "gear", "nut", "washer"}


def module_of(path: Path) -> ModuleType:
    """Import an example by its path."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def png(value: int) -> bytes:
    """Return a PNG file of one colour."""
    import io

    stream = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something holds; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_03_camera_loop_answers_each_image_of_a_folder(bundle: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.png").write_bytes(png(80 * number))
    (frames / "notes.txt").write_text("no image")
    command = [sys.executable, str(EXAMPLES / "03_camera_loop" / "camera.py"), str(bundle), "--images", str(frames)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [answer["frame"] for answer in answers] == [1, 2, 3]
    assert {answer["label"] for answer in answers} <= CLASSES
    assert "notes.txt" in ran.stderr
    assert "3 frames answered, 0 dropped" in ran.stderr


def test_03_camera_loop_takes_raw_frames_and_leaves_an_incomplete_one(bundle: Path) -> None:
    camera = EXAMPLES / "03_camera_loop" / "camera.py"
    content = bytes(4 * 5 * 3) + b"\x01"
    ran = subprocess.run(
        [sys.executable, str(camera), str(bundle), "--raw", "5x4"], input=content, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert len(ran.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "said"),
    [(["--images", "no such folder"], "cannot be read"), (["--camera", "99"], "camera 99|OpenCV is not")],
)
def test_03_camera_loop_fails_where_there_is_no_source(bundle: Path, source: list[str], said: str) -> None:
    command = [sys.executable, str(EXAMPLES / "03_camera_loop" / "camera.py"), str(bundle), *source]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert re.search(said, ran.stderr)


def test_03_camera_loop_ends_by_sigterm_while_stdin_is_silent(bundle: Path) -> None:
    camera = EXAMPLES / "03_camera_loop" / "camera.py"
    command = [sys.executable, str(camera), str(bundle), "--raw", "12x9"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ran:
        assert ran.stdin is not None
        assert ran.stdout is not None
        ran.stdin.write(bytes(12 * 9 * 3))
        ran.stdin.flush()
        ran.stdout.readline()  # it answers, so it waits for the next frame
        ran.send_signal(signal.SIGTERM)
        assert ran.wait(60) == 0


def test_03_latest_frame_drops_what_nobody_took() -> None:
    camera = module_of(EXAMPLES / "03_camera_loop" / "camera.py")
    read = threading.Event()

    def frames() -> Iterator[int]:
        yield from range(5)
        read.set()

    latest = camera.LatestFrame(frames(), threading.Event(), drop=True)
    assert read.wait(10)
    assert next(iter(latest)) == 4
    assert latest.dropped == 4


def test_03_camera_frames_turns_bgr_into_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = module_of(EXAMPLES / "03_camera_loop" / "camera.py")

    class Capture:
        def __init__(self, number: int) -> None:
            self.left = 1

        def isOpened(self) -> bool:
            return True

        def set(self, name: int, value: int) -> None:
            pass

        def read(self) -> tuple[bool, object]:
            self.left -= 1
            return self.left >= 0, np.full((2, 2, 3), (10, 20, 30), np.uint8)

        def release(self) -> None:
            pass

    fake = ModuleType("cv2")
    fake.VideoCapture = Capture  # type: ignore[attr-defined]  # a stand-in for OpenCV
    fake.CAP_PROP_BUFFERSIZE = 38  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", fake)
    (frame,) = camera.camera_frames(0)
    assert frame[0, 0].tolist() == [30, 20, 10]


@contextmanager
def service(bundle: Path) -> Iterator[str]:
    """Run the HTTP service in a process of its own and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=EXAMPLES / "04_service", env={**os.environ, "BUNDLE": str(bundle)})
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(address))
        yield address
    finally:
        process.send_signal(signal.SIGTERM)  # uvicorn handles it as Ctrl-C, which a shell's background programs ignore
        assert process.wait(30) in (0, -signal.SIGTERM)


def answers(address: str) -> bool:
    try:
        return bool(get(f"{address}/healthz"))
    except OSError:
        return False


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        content: bytes = response.read()
    return content.decode()


def post(address: str, body: bytes) -> tuple[int, str]:
    """Return status and body."""
    request = urllib.request.Request(address, data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_04_service_answers_measures_refuses_and_swaps(
    bundle: Path, make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with service(bundle) as address:
        status, body = post(f"{address}/predict", png(200))
        assert status == 200
        assert json.loads(body)["label"] in CLASSES
        assert json.loads(body)["bundle"] == json.loads(get(f"{address}/healthz"))["bundle"]
        assert post(f"{address}/predict", b"no image")[0] == 422
        assert post(f"{address}/predict", bytes(17 << 20))[0] == 413
        assert post(f"{address}/swap?path={tmp_path}/missing", b"")[0] == 409
        other = make_toy_bundle(tmp_path / "other.edgebert")
        assert post(f"{address}/swap?path={other}", b"")[0] == 200
        metrics = get(f"{address}/metrics")
        assert "# TYPE edgebert_" in metrics
        assert post(f"{address}/predict", png(10))[0] == 200


def test_05_watch_folder_answers_moves_refuses_and_takes_up_a_new_bundle(
    bundle: Path, make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    from edgebert.install import install  # the installation that the watcher follows

    inbox, log, where = tmp_path / "inbox", tmp_path / "answers.jsonl", tmp_path / "model"
    inbox.mkdir()
    install(bundle, where)
    (inbox / "first.png").write_bytes(png(30))
    (inbox / "bad.png").write_bytes(b"no image")
    (inbox / ".half.png").write_bytes(b"still being written")
    command = [sys.executable, str(EXAMPLES / "05_watch_folder" / "watch.py"), str(where)]
    command += ["--inbox", str(inbox), "--log", str(log), "--seconds", "0.05"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watcher:
        try:
            wait_for(lambda: (inbox / "done" / "first.png").exists() and (inbox / "refused" / "bad.png").exists())
            other = changed(bundle, tmp_path / "other.edgebert")
            installed = install(other, where)
            wait_for(lambda: (where / "current").readlink().name == installed.bundle.digest)
            (inbox / "second.png").write_bytes(png(60))
            wait_for(lambda: (inbox / "done" / "second.png").exists())
        finally:
            watcher.send_signal(signal.SIGTERM)
            assert watcher.wait(30) == 0
    lines = {line["file"]: line for line in map(json.loads, log.read_text().splitlines())}
    assert set(lines) == {"first.png", "bad.png", "second.png"}
    assert "error" in lines["bad.png"]
    assert lines["first.png"]["bundle"] != lines["second.png"]["bundle"] == installed.bundle.digest
    assert (inbox / ".half.png").exists()


def changed(bundle: Path, copy: Path) -> Path:
    """Return a copy of a bundle under another name: another digest, the same answers."""
    from dataclasses import replace

    from edgebert.bundle import read_bundle, write_bundle

    read = read_bundle(bundle)
    copy.mkdir()
    write_bundle(copy, replace(read.manifest, name="other"), {name: read.files[name] for name in read.manifest.sizes})
    return copy


def test_05_watch_folder_keeps_two_images_of_one_name(tmp_path: Path) -> None:
    watch = module_of(EXAMPLES / "05_watch_folder" / "watch.py")
    (tmp_path / "done").mkdir()
    for content in (b"first", b"second", b"third"):
        (tmp_path / "part.png").write_bytes(content)
        watch.move(tmp_path / "part.png", tmp_path / "done")
    assert {path.name: path.read_bytes() for path in (tmp_path / "done").iterdir()} == {
        "part.png": b"first",
        "part.2.png": b"second",
        "part.3.png": b"third",
    }


def test_05_watch_folder_passes_over_a_file_that_vanished(tmp_path: Path) -> None:
    watch = module_of(EXAMPLES / "05_watch_folder" / "watch.py")
    watch.move(tmp_path / "part.png", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_05_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = (EXAMPLES / "05_watch_folder" / "edgebert-watch.service").read_text()
    assert "/opt/widgets/venv/bin/python" in unit  # is not here: what stands in for it must be executable
    (tmp_path / "edgebert-watch.service").write_text(unit.replace("/opt/widgets/venv/bin/python", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "edgebert-watch.service")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "edgebert-watch" not in ran.stderr


def test_06_gstreamer_classifies_a_test_picture(bundle: Path) -> None:
    python = "/usr/bin/python3"
    ask = "import gi, sys; gi.require_version('Gst', '1.0'); gi.require_version('GstVideo', '1.0'); print('%d.%d' % sys.version_info[:2])"
    asked = (
        subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        if Path(python).exists()
        else None
    )
    if asked is None or asked.returncode:
        pytest.skip("GStreamer for Python is not installed")
    if asked.stdout.strip() != "{}.{}".format(*sys.version_info[:2]):
        pytest.skip("the system's Python is another version than the one that numpy is installed for")
    packages = Path(np.__file__).parents[1]
    command = [python, str(EXAMPLES / "06_gstreamer" / "pipeline.py"), str(bundle)]
    source = "videotestsrc num-buffers=2 ! video/x-raw,width=33,height=21 ! videoconvert"  # rows of 99 bytes are padded
    path = os.pathsep.join([str(EXAMPLES.parent), str(packages)])
    for extra, code in (([source], 0), (["filesrc location=/missing ! decodebin ! videoconvert"], 1)):
        ran = subprocess.run(
            [*command, *extra],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
            timeout=60,
        )
        assert ran.returncode == code, ran.stderr
        assert {json.loads(line)["label"] for line in ran.stdout.splitlines()} <= CLASSES
        assert bool(ran.stdout) is (code == 0)
