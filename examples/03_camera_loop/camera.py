"""Classify what a camera sees, frame by frame, and never an old frame: what was not ready in time is dropped, and counted.

    python camera.py widgets.edgebert --camera 0                       # needs OpenCV: pip install opencv-python-headless
    python camera.py widgets.edgebert --images FOLDER                  # files in the order of their names, as if they were frames
    ffmpeg ... -f rawvideo -pix_fmt rgb24 - | python camera.py widgets.edgebert --raw 640x480

One line of JSON for each answer on stdout. Ctrl-C, or SIGTERM, ends it and prints the counters on stderr.

OpenCV gives BGR, and a network that was trained on RGB still answers something: the frame is turned before it is classified.

>>> import io
>>> next(raw_frames(io.BytesIO(bytes(range(12))), width=2, height=2)).tolist()
[[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgebert import Classifier, EdgebertError
from edgebert.preprocess import decode_image

Frame = NDArray[np.uint8]  # (height, width, 3) RGB


class NoFrames(Exception):
    """A source gives no frames; its text says why, and what mends it."""


def camera_frames(number: int) -> Iterator[Frame]:
    """Yield RGB frames of a camera until it ends."""
    try:
        import cv2
    except ImportError as error:
        raise NoFrames("OpenCV is not installed: pip install opencv-python-headless") from error
    camera = cv2.VideoCapture(number)
    if not camera.isOpened():
        raise NoFrames(f"camera {number} cannot be opened; `v4l2-ctl --list-devices` lists those that are there")
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # else the driver hands out frames that are several frames old
    try:
        while True:
            there, frame = camera.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])  # BGR -> RGB
    finally:
        camera.release()


def image_frames(folder: Path) -> Iterator[Frame]:
    """Yield the images of a folder; what is no image is said, and passed over."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise NoFrames(f"`{folder}` cannot be read: {error.strerror}") from error
    for path in paths:
        try:
            yield decode_image(path)
        except EdgebertError as error:
            print(f"`{path}`: {error.what}", file=sys.stderr)


def raw_frames(stream: BinaryIO | FileIO, *, width: int, height: int) -> Iterator[Frame]:
    """Yield frames of packed RGB bytes; an incomplete last one is dropped."""
    size = width * height * 3
    content = bytearray()
    while piece := stream.read(size - len(content)):  # a pipe gives what is there
        content += piece
        if len(content) == size:
            yield np.frombuffer(bytes(content), np.uint8).reshape(height, width, 3)
            content.clear()


def frame_size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`.

    >>> frame_size("640x480")
    (640, 480)
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"`{text}` is no size such as 640x480")
    return int(width), int(height)


class LatestFrame:
    """Reads frames in a thread of its own and keeps the newest: a slow answer makes later frames drop, never wait.

    What the source raises is raised to whoever iterates: else a camera that is not there would look like one that has ended.
    """

    def __init__(self, frames: Iterator[Frame], stop: threading.Event, *, drop: bool) -> None:
        self.dropped = 0
        self._failure: Exception | None = None
        self._drop, self._stop = drop, stop
        self._waiting: queue.Queue[Frame | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._read, args=(frames,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while not self._stop.is_set():
            try:
                frame = self._waiting.get(timeout=0.2)  # a camera that hangs must not keep the program from ending
            except queue.Empty:
                continue
            if frame is None:
                if self._failure is not None:
                    raise self._failure
                return
            yield frame

    def _read(self, frames: Iterator[Frame]) -> None:
        try:
            for frame in frames:
                if self._drop:
                    self._forget_waiting()
                self._waiting.put(frame)
        except Exception as error:  # noqa: BLE001  # raised again where somebody sees it
            self._failure = error
        finally:
            self._waiting.put(None)

    def _forget_waiting(self) -> None:
        try:
            self._waiting.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass


def run(classifier: Classifier, frames: LatestFrame, say: Callable[[str], object]) -> int:
    """Classify frames until they end; return how many were answered."""
    answered = 0
    for frame in frames:
        began = time.perf_counter()
        prediction = classifier.predict(frame)
        answered += 1
        answer = {
            "frame": answered,
            "label": prediction.label,
            "score": round(prediction.score, 4),
            "abstained": prediction.abstained,
            "ms": round(1000 * (time.perf_counter() - began), 2),
        }
        say(json.dumps(answer))
    return answered


def main(arguments: list[str] | None = None) -> int:
    """Parse, open the bundle, and classify until the source ends or somebody stops it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="NAME.edgebert, or the folder of `edgebert install --to`")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--camera", type=int, metavar="NUMBER", help="a camera that OpenCV knows")
    source.add_argument("--images", type=Path, metavar="FOLDER", help="image files as frames; none is dropped")
    source.add_argument("--raw", metavar="WIDTHxHEIGHT", type=frame_size, help="packed RGB frames on stdin")
    given = parser.parse_args(arguments)
    if given.camera is not None:
        frames = camera_frames(given.camera)
    elif given.images is not None:
        frames = image_frames(given.images)
    else:
        width, height = given.raw
        # Unbuffered: a thread that waits in a buffered read holds its lock, and the interpreter could not end.
        stdin = FileIO(0, closefd=False)
        frames = raw_frames(stdin, width=width, height=height)
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with Classifier(given.bundle) as classifier:
        latest = LatestFrame(frames, stop, drop=given.images is None)
        answered = run(classifier, latest, lambda line: print(line, flush=True))
    print(f"{answered} frames answered, {latest.dropped} dropped because a newer one was there", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (EdgebertError, NoFrames) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, EdgebertError) else 1)
