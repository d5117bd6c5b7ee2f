"""tegrastats as a source: started once, read line by line without ever waiting for it, and ended with us.

    stream = TegrastatsStream(interval_ms=100)
    reading = stream.latest()   # None until there is a line, and again where none came for a while
    stream.close()

>>> TegrastatsStream(interval_ms=100, command=("/nowhere/tegrastats",)).latest() is None
True
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from edgebert.bench.environment.jetson.tegrastats import MAX_LINE, Reading, reading_of, whole_words

TEGRASTATS = ("tegrastats",)

_CHILD = "edgebert.bench.environment.jetson.tegrastats_child"
_STALE_INTERVALS = 3  # a value that is older than this many intervals is none any more
_PART = 64 << 10
_END_S = 1.0


class TegrastatsStream:
    """A running tegrastats. Nothing raises: what cannot be started, or has ended, gives None, and `problem` says why.

    Args:
        interval_ms: between two lines.
        command: what is started; `--interval` is added.
        clock: of the age of a line, seconds.
    """

    def __init__(
        self, *, interval_ms: int, command: Sequence[str] = TEGRASTATS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.problem = ""
        self.lines = 0
        self.refused = 0
        self._interval_s, self._clock = interval_ms / 1_000, clock
        self._unread = b""
        self._latest: Reading | None = None
        self._seen_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        program = shutil.which(command[0])
        if program is None:
            self.problem = f"`{command[0]}` is not on PATH"
            return
        words = [program, *command[1:], "--interval", str(interval_ms)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self.problem = f"`{program}` was not started: {error}"
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def pid(self) -> int | None:
        """Its process number, None where it was not started."""
        return None if self._process is None else self._process.pid

    def latest(self) -> Reading | None:
        """Take in what has come since the last call, and return the last line that was one, None where it is too old."""
        self._take_in()
        if self._latest is None or self._clock() - self._seen_s > _STALE_INTERVALS * self._interval_s:
            return None
        return self._latest

    def first(self, patience_s: float) -> Reading | None:
        """Wait for the first line, and return it; None where none comes in time, or it ends."""
        ends = self._clock() + patience_s
        while (reading := self.latest()) is None and not self.problem and self._clock() < ends:
            assert self._process is not None
            assert self._process.stdout is not None
            select.select([self._process.stdout], [], [], max(0.0, min(0.1, ends - self._clock())))
        return reading

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdout is not None
        process.stdout.close()
        process.terminate()
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _take_in(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        descriptor = self._process.stdout.fileno()
        with contextlib.suppress(BlockingIOError):  # nothing more has come
            while part := os.read(descriptor, _PART):
                self._feed(part)
            self._ended()

    def _feed(self, part: bytes) -> None:
        *whole, self._unread = (self._unread + part).split(b"\n")
        for line in whole:
            self._keep(line.decode("utf-8", "replace").strip())
        if len(self._unread) > MAX_LINE:  # no line is so long; what follows up to its end is refused with it
            self._unread = self._unread[-1:]

    def _keep(self, line: str) -> None:
        reading = reading_of(line)
        if reading is None:
            self.refused += 1
            return
        self.lines += 1
        self._latest, self._seen_s = reading, self._clock()

    def _ended(self) -> None:
        """Note that it closed its output: its last line may have been cut."""
        assert self._process is not None
        if self._unread:
            self._keep(whole_words(self._unread.decode("utf-8", "replace")))
            self._unread = b""
        code = self._process.poll()
        self.problem = "tegrastats ended by itself" + ("" if code is None else f" with code {code}")
