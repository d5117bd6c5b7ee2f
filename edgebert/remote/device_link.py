"""The device's end of a session: who reads and writes, how it stays silent while something is timed, and how it ends by itself.

The agent asks now and then whether the host is still there, and the host answers; a host that closes the link, or does not answer,
ends the agent and everything it has started. The sum of the times below is less than ten seconds.

Nothing is said on the link while something is timed (`Link.quiet`): just before it, the agent makes sure that the host is there and
that nothing is on its way. What is timed in one piece for longer than `QUIET_SECONDS`, a soak above all, is asked in between again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Protocol

from edgebert._json import Fields, JsonObject
from edgebert.bench.worker_process import WorkerProcess
from edgebert.errors import BadDataError, EdgebertError
from edgebert.remote.device_store import Store, pieces_of
from edgebert.remote.frames import (
    ANSWER,
    ERROR,
    MAX_LINE_BYTES,
    PING,
    PONG,
    PUSH,
    Frame,
    encode_frame,
    frame_of_line,
)

PING_SECONDS = 1.0  # after the host was heard last
QUIET_SECONDS = 3.0  # at most, while something is timed
PONG_SECONDS = 4.0  # that an answer may take
LEAVE_SECONDS = 1.5  # to clear away and leave, before the process ends itself without
GIVEN_UP = 75  # as in the bootstrap: the exit code of a link that broke

_LOOK_SECONDS = 0.25
_SETTLE_SECONDS = 0.01  # after the link was used, before something is timed
_CHUNK = 16 << 10  # small: each is a sign of life on a slow link

# What a worker is asked while it is timed; `warm` is not: its times decide how long a block is, and nothing else.
TIMED = frozenset(("block", "probe", "first", "audit"))


class ByteReader(Protocol):
    """What the host says: a buffered binary stream."""

    def readline(self, size: int = -1, /) -> bytes: ...
    def read1(self, size: int = -1, /) -> bytes: ...


class LinkClosed(KeyboardInterrupt):
    """The host is gone. As an interruption, it ends whatever is under way as Ctrl-C would."""


class Link:
    """Both directions of a session.

    Args:
        nonce: of the session.
        source: what the host says.
        sink: what is said to it.
        store: takes what is pushed.
    """

    def __init__(self, nonce: str, source: ByteReader, sink: IO[bytes], store: Store) -> None:
        self._nonce, self._source, self._sink, self._store = nonce, source, sink, store
        self._requests: queue.Queue[Frame] = queue.Queue()
        self._writing = threading.Lock()  # one frame at a time
        self._pulse = threading.Lock()  # nobody asks while it is held
        self._answered = threading.Event()  # nothing that was asked is open
        self._answered.set()
        self._open, self._open_since = 0, 0.0
        self._said = self._heard = 0
        self._heard_at = self._moved_at = self._asked_at = time.monotonic()
        self._quiet_until = 0.0
        self._sending = False
        self._lost = False

    def start(self) -> None:
        """Begin to read, and to ask; from now on a lost link is a `LinkClosed` in the main thread."""
        signal.signal(signal.SIGUSR1, _closed)
        for work in (self._read, self._ask_now_and_then, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def next_request(self) -> Frame:
        """Wait for what the host asks next."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._requests.get(timeout=60.0)

    def leave(self) -> None:
        """Take it for no loss that the host closes the link from now on: it has said that it is done, and what remains is to clear away."""
        self._lost = True
        force = threading.Timer(PONG_SECONDS + LEAVE_SECONDS, os._exit, (GIVEN_UP,))
        force.daemon = True
        force.start()

    def say(
        self, kind: str, request: Frame, content: JsonObject | None = None, blobs: Mapping[str, bytes] | None = None
    ) -> None:
        """Say something that belongs to a request; its answer is said last."""
        self._write(kind, request.number, content, blobs or {})

    def answer(
        self, request: Frame, content: JsonObject | None = None, blobs: Mapping[str, bytes] | None = None
    ) -> None:
        """Answer a request."""
        self._write(ANSWER, request.number, content, blobs or {})

    def refuse(self, request: Frame, error: EdgebertError, blobs: Mapping[str, bytes] | None = None) -> None:
        """Answer a request with an error."""
        said: JsonObject = {
            "class": type(error).__name__,
            "exit_code": error.exit_code,
            "what": error.what,
            "expected": error.expected,
            "hint": error.hint,
        }
        self._write(ERROR, request.number, {"error": said}, blobs or {})

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Say nothing inside, once the host has shown that it is there; for `QUIET_SECONDS` at most."""
        if time.monotonic() - self._heard_at > PING_SECONDS:
            self._ask()
        if not self._answered.wait(PONG_SECONDS + 1):
            self._lose()
        with self._pulse:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
        if time.monotonic() - self._heard_at < _SETTLE_SECONDS:
            time.sleep(_SETTLE_SECONDS)
        try:
            yield
        finally:
            self._quiet_until = 0.0

    def _write(self, kind: str, re: int, content: JsonObject | None, blobs: Mapping[str, bytes]) -> None:
        sizes = [(name, len(blob)) for name, blob in blobs.items()]
        with self._writing:
            self._said += 1
            line = encode_frame(kind, nonce=self._nonce, number=self._said, re=re, content=content, blobs=sizes)
            self._moved_at, self._sending = time.monotonic(), True
            try:
                for part in (line, *blobs.values()):
                    view = memoryview(part)
                    for start in range(0, len(view), _CHUNK):
                        self._sink.write(view[start : start + _CHUNK])
                        self._sink.flush()
                        self._moved_at = time.monotonic()
            except OSError:
                self._lose()
            finally:
                self._sending = False

    def _read(self) -> None:
        """Read until the host is gone; what it pushes goes into the store at once."""
        try:
            while line := self._source.readline(MAX_LINE_BYTES + 1):
                if not line.endswith(b"\n"):
                    break
                self._heard += 1
                self._heard_at = time.monotonic()
                frame = frame_of_line(line, nonce=self._nonce, number=self._heard, what="the host")
                if frame.kind == PONG:
                    self._open -= 1
                    if self._open <= 0:
                        self._answered.set()
                elif frame.kind == PUSH:
                    self._take(frame)
                else:
                    self._requests.put(frame)
        except (BadDataError, OSError, EOFError, ValueError):
            pass
        self._lose()

    def _take(self, push: Frame) -> None:
        """Store what follows a `push`, and answer which of it arrived damaged."""
        damaged: list[str] = []
        failed: EdgebertError | None = None
        sizes, offsets = push.fields.integers("sizes"), push.fields.integers("offsets")
        for (name, length), size, offset in zip(push.blobs, sizes, offsets, strict=True):
            pieces = self._pieces(length)
            try:
                if failed is None and not self._store.receive(name, size, offset, pieces):
                    damaged.append(name)
            except EdgebertError as error:
                failed = error
            for _ in pieces:  # what could not be stored is read all the same: the next line comes behind it
                pass
        if failed is None:
            self.answer(push, {"damaged": damaged})
        else:
            self.refuse(push, failed)

    def _pieces(self, length: int) -> Iterator[bytes]:
        for piece in pieces_of(self._source.read1, length):
            self._heard_at = time.monotonic()
            yield piece

    def _ask(self) -> None:
        with self._pulse:
            if not self._sending:
                self._asked_at = time.monotonic()
                if self._open <= 0:
                    self._open_since = self._asked_at
                self._open += 1
                self._answered.clear()
                self._write(PING, 0, None, {})

    def _ask_now_and_then(self) -> None:
        while not self._lost:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if now > self._quiet_until and now - self._asked_at > PING_SECONDS:
                self._ask()  # also while the host sends: it wants to hear that somebody is here

    def _watch(self) -> None:
        """Notice a link that takes nothing, or a host that does not answer; nothing is written here, so that nothing can block."""
        while not self._lost:
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if self._sending and now - self._moved_at > PONG_SECONDS:
                self._lose()
            if not self._answered.is_set() and now - max(self._open_since, self._heard_at) > PONG_SECONDS:
                self._lose()

    def _lose(self) -> None:
        """End this process: by an interruption of the main thread, and by force where that takes too long."""
        if self._lost:
            return
        self._lost = True
        force = threading.Timer(LEAVE_SECONDS, os._exit, (GIVEN_UP,))
        force.daemon = True
        force.start()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _closed(_number: int, _frame: FrameType | None) -> None:
    raise LinkClosed


class QuietWorker(WorkerProcess):
    """A worker that nothing is said beside while it is timed.

    Args:
        link: that falls silent.
        name: of the arm.
        threads: of its environment.
        command: what is started.
    """

    def __init__(self, link: Link, name: str, threads: int, command: Sequence[str]) -> None:
        super().__init__(name, threads, command)
        self._link = link

    def ask(self, kind: str, content: JsonObject | None = None, *, timeout_s: float) -> Fields:
        """As of any worker; see `Link.quiet`."""
        if kind not in TIMED:
            return super().ask(kind, content, timeout_s=timeout_s)
        with self._link.quiet():
            return super().ask(kind, content, timeout_s=timeout_s)
