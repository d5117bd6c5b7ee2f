"""The harness's side of a worker: starts it, asks it, notices when it died, ends it."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import edgebert
from edgebert._json import Fields, JsonObject
from edgebert.bench.protocol import error_from_message, read_message, write_message
from edgebert.errors import BadDataError, EdgebertError

if TYPE_CHECKING:
    from typing_extensions import Self

WORKER_COMMAND = (sys.executable, "-m", "edgebert.bench.worker")

# Every library that could start threads of its own gets the same number (bench.md, sections 3 and 9).
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_STDERR_LINES = 20
_STDERR_LINE_CHARACTERS = 500
_END_SECONDS = 5.0  # for a worker to leave after its stdin closed, before it is killed


class WorkerProcess:
    """One worker process; use it as a context manager, so that it never outlives the measurement.

    Args:
        name: of the arm, for messages.
        threads: what the environment of the worker says to every threading library.
        command: what is started; `edgebert.bench.worker` but in tests.
    """

    def __init__(self, name: str, threads: int, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._name = name
        self._seq = 0
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(threads),
        )
        self._answers: queue.Queue[Fields | BadDataError | None] = queue.Queue()
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._readers = (
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        )
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The worker's process number."""
        return self._process.pid

    def ask(self, kind: str, content: JsonObject | None = None, *, timeout_s: float) -> Fields:
        """Send one request and return its answer.

        Raises:
            EdgebertError: the worker died, does not answer in time, or breaks the protocol; or the error it reported,
                of the class it had there.
        """
        assert self._process.stdin is not None
        self._seq += 1
        try:
            write_message(self._process.stdin, kind, self._seq, content)
        except OSError as error:
            raise self._died(kind) from error
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty as error:
            raise EdgebertError(
                f"arm `{self._name}` did not answer `{kind}` within {timeout_s:.0f} s", expected=self._last_words()
            ) from error
        if answer is None:
            raise self._died(kind)
        if isinstance(answer, BadDataError):
            raise EdgebertError(f"arm `{self._name}` broke the protocol: {answer.what}") from answer
        if answer.text("type") == "error":
            raise self._named(error_from_message(answer))
        if answer.integer("seq") != self._seq:
            raise EdgebertError(f"arm `{self._name}` answered {answer.integer('seq')}", expected=str(self._seq))
        return answer

    def close(self) -> None:
        """End the worker: its stdin is closed, and if it stays, it is killed."""
        for stream in (self._process.stdin,):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def kill(self) -> None:
        """End the worker at once; after an error there is nothing worth waiting for."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self.close()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        message: Fields | BadDataError | None
        while True:
            try:
                message = read_message(self._process.stdout)
            except BadDataError as error:
                message = error
            self._answers.put(message)
            if not isinstance(message, Fields):
                return

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(64 << 10):
            self._stderr.append(line.decode("utf-8", "replace").rstrip()[:_STDERR_LINE_CHARACTERS])

    def _died(self, kind: str) -> EdgebertError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)
        self._readers[1].join(timeout=_END_SECONDS)
        return EdgebertError(
            f"arm `{self._name}` ended ({_ending(self._process.returncode)}) while it was asked to `{kind}`",
            expected=self._last_words(),
        )

    def _last_words(self) -> str:
        text = "\n  ".join(self._stderr)
        return f"an answer; its last lines on stderr were\n  {text}" if text else "an answer; it said nothing on stderr"

    def _named(self, error: EdgebertError) -> EdgebertError:
        return type(error)(f"arm `{self._name}`: {error.what}", expected=error.expected, hint=error.hint)


def worker_environment(threads: int) -> Mapping[str, str]:
    """Return the environment of a worker: ours, this very edgebert first on its path, and the number of threads."""
    environment = dict(os.environ)
    here = str(Path(edgebert.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    environment["PYTHONSAFEPATH"] = "1"  # a `torch.py` in the current folder is not the library (Python 3.11 and newer)
    environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    return environment


def _ending(code: int | None) -> str:
    if code is None:
        return "still running"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
