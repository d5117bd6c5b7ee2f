"""The harness's side of a worker: starts it, asks it, notices when it died or hangs, ends it.

However a worker ends, the harness says how and never waits for ever:

    does not answer in time       killed; exit code 1
    ends, by itself or a signal   named with its last lines on stderr; exit code 1
    ended for lack of memory      `MemoryExhaustedError`, exit code 75 (see `edgebert.bench.out_of_memory`)
    breaks the protocol           exit code 1
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import edgebert
from edgebert._json import Fields, JsonObject
from edgebert._out_of_memory import says_out_of_memory
from edgebert.bench.out_of_memory import MORE_MEMORY, counted_since, oom_kills
from edgebert.bench.protocol import error_from_message, read_message, write_message
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError

if TYPE_CHECKING:
    from typing_extensions import Self

_Item = TypeVar("_Item")

WORKER_COMMAND = (sys.executable, "-m", "edgebert.bench.worker")

# Every library that could start threads of its own gets the same number (bench.md, sections 3 and 9).
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_STDERR_LINES = 20
_STDERR_LINE_CHARACTERS = 500
_END_SECONDS = 5.0  # for a worker to leave after its stdin closed, before it is killed
_LOOK_SECONDS = 0.5  # between two looks at whether a worker that does not answer still runs


class WorkerProcess:
    """One worker process; use it as a context manager, so that it never outlives the measurement.

    Args:
        name: of the arm, for messages.
        threads: what the environment of the worker says to every threading library.
        command: what is started; `edgebert.bench.worker` but in tests.
    """

    def __init__(self, name: str, threads: int, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._name = name
        self._seq = self._answered = 0
        self._oom_kills = oom_kills()
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(threads),
            # A group of its own: a Ctrl-C is the harness's to handle, and what the worker starts ends with it.
            start_new_session=True,
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
            MemoryExhaustedError: memory ran out in the worker, or the system ended it for that.
            EdgebertError: the worker died, does not answer in time, or breaks the protocol; or the error it reported,
                of the class it had there.
        """
        self._seq += 1
        until = time.monotonic() + timeout_s
        try:
            self._send(kind, content, until)
            answer = self._wait_for(self._answers, until)
        except OSError as error:
            raise self._died(kind) from error
        except queue.Empty as error:
            raise self._hangs(kind, timeout_s) from error
        if answer is None:
            raise self._died(kind)
        if isinstance(answer, BadDataError):
            raise EdgebertError(f"arm `{self._name}` broke the protocol: {answer.what}") from answer
        if answer.text("type") == "error":
            raise self._named(error_from_message(answer))
        if answer.integer("seq") != self._seq:
            raise EdgebertError(f"arm `{self._name}` answered {answer.integer('seq')}", expected=str(self._seq))
        self._answered = self._seq
        return answer

    def settle(self, *, timeout_s: float) -> None:
        """Wait for the answer to a request whose `ask` was interrupted, and drop it; without one, return at once."""
        while self._answered < self._seq:
            try:
                answer = self._answers.get(timeout=timeout_s)
            except queue.Empty as error:
                raise self._hangs("the request before", timeout_s) from error
            if not isinstance(answer, Fields):
                raise self._died("settle")
            self._answered = answer.integer("seq")

    def close(self) -> None:
        """End the worker: its stdin is closed, and if it stays, it is killed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        for reader, pipe in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            assert pipe is not None
            reader.join(timeout=_END_SECONDS)
            if reader.is_alive():  # a process that the worker started holds the pipe open
                self._kill_group()
                reader.join(timeout=_END_SECONDS)
            if not reader.is_alive():
                pipe.close()

    def kill(self) -> None:
        """End the worker and what it started at once; after an error there is nothing worth waiting for."""
        if self._process.returncode is None:  # not waited for, so its number is still its own
            self._kill_group()
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self.close()

    def _wait_for(self, source: queue.Queue[_Item], until: float) -> _Item:
        """Return the next item of a queue that a thread of ours fills.

        The end of a worker closes its pipes, but for a process that it has started and that holds them open; so it is looked
        at as well.

        Raises:
            queue.Empty: the time is over.
            OSError: the worker has ended, and said nothing more.
        """
        while True:
            ended = self._process.poll() is not None
            left = until - time.monotonic()
            try:
                return source.get(timeout=max(0.0, min(_LOOK_SECONDS, left)))
            except queue.Empty:
                if ended:
                    raise OSError("the worker has ended") from None
                if left <= _LOOK_SECONDS:
                    raise

    def _send(self, kind: str, content: JsonObject | None, until: float) -> None:
        """Write one request.

        A worker that does not read leaves a long request stuck in the pipe, so it is written by a thread that can be left.

        Raises:
            OSError: the worker has closed its end.
            queue.Empty: it did not take the request in time.
        """
        stream, done = self._process.stdin, queue.Queue[OSError | None]()
        assert stream is not None

        def write() -> None:
            try:
                write_message(stream, kind, self._seq, content)
                done.put(None)
            except (OSError, ValueError) as error:  # ValueError: closed in the meantime
                done.put(error if isinstance(error, OSError) else OSError(str(error)))

        threading.Thread(target=write, daemon=True).start()
        error = self._wait_for(done, until)
        if error is not None:
            raise error

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

    def _hangs(self, kind: str, timeout_s: float) -> EdgebertError:
        self.kill()
        self._readers[1].join(timeout=_END_SECONDS)
        return EdgebertError(
            f"arm `{self._name}` did not answer `{kind}` within {timeout_s:.0f} s: it hangs, and was ended",
            expected=self._last_words(),
        )

    def _died(self, kind: str) -> EdgebertError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)
        self._readers[1].join(timeout=_END_SECONDS)
        if any(reader.is_alive() for reader in self._readers):  # what the worker started holds its pipes open
            self._kill_group()
        code = self._process.returncode
        what = f"arm `{self._name}` ended ({_ending(code)}) while it was asked to `{kind}`"
        killed = code is not None and code == -getattr(signal, "SIGKILL", 9)
        if killed and counted_since(self._oom_kills):
            return MemoryExhaustedError(
                f"{what}: the system ended it because memory ran out", expected=self._last_words(), hint=MORE_MEMORY
            )
        if says_out_of_memory("\n".join(self._stderr)):
            return MemoryExhaustedError(f"{what}: memory ran out", expected=self._last_words(), hint=MORE_MEMORY)
        if killed:
            what += "; that is how the system ends a process when memory is short, but it has counted none"
        return EdgebertError(what, expected=self._last_words())

    def _kill_group(self) -> None:
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        text = "\n  ".join(self._stderr)
        return f"an answer; its last lines on stderr were\n  {text}" if text else "an answer; it said nothing on stderr"

    def _named(self, error: EdgebertError) -> EdgebertError:
        return type(error)(f"arm `{self._name}`: {error.what}", expected=error.expected, hint=error.hint)


StartWorker = Callable[[str, int, Sequence[str]], WorkerProcess]
"""Name of the arm, threads and command -> its worker; `WorkerProcess` itself, but where the link to a host must be silent."""


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
