"""Starts the process that builds an engine, shows its progress, watches its memory and explains its end.

A build that the system ended for lack of memory leaves no word of its own: what is known then is its peak memory, how little was
left on the device, and whether the kernel counted such an end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeAlias

from edgebert._json import Fields, JsonObject
from edgebert._out_of_memory import says_out_of_memory
from edgebert._progress import Progress
from edgebert.bench.child import last_words
from edgebert.bench.out_of_memory import counted_since, oom_kills
from edgebert.bench.protocol import error_from_message, read_message, write_message
from edgebert.bench.worker_process import worker_environment
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError
from edgebert.export.engine_build import PlanRequest
from edgebert.runtime.runner import InputSpec
from edgebert.runtime.tensorrt_errors import FREE_MEMORY

if TYPE_CHECKING:
    from typing_extensions import Self

CHILD_COMMAND = (sys.executable, "-m", "edgebert.export.engine_child")

_MIB = 1 << 20
_LOOK_SECONDS = 0.2  # between two looks at memory, and at whether the child still runs
_END_SECONDS = 5.0  # for a child that has answered to end
_RUN_SECONDS = 300.0  # to load TensorRT and one engine, on a small board whose disk is slow
_AROUND = "`--optimization-level 2`, or another `--typing`, may go around a fault of TensorRT's"

_Task = Literal["build", "run"]


class Advancing(Protocol):
    """What shows how far a build is: `edgebert._progress.Progress`, or a message to a host."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more of a hundred; `note` names what is done."""
        ...


ProgressFactory: TypeAlias = Callable[[str, int], AbstractContextManager[Advancing]]  # of the work and its steps


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPeak:
    """How much memory a build took.

    Attributes:
        resident_mib: the most that the process held, in MiB. What the GPU of a Jetson was given is not in it.
        least_available_mib: the least that was free on the device meanwhile, in MiB; this shows both.
    """

    resident_mib: int
    least_available_mib: int

    def to_text(self) -> str:
        """Return both as words."""
        return f"it held {self.resident_mib:,} MiB at its peak, and {self.least_available_mib:,} MiB were left on the device"


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that is free for new work, as the kernel estimates it; None where it does not say."""
    kib = _kib(root / "proc/meminfo", "MemAvailable:")
    return None if kib is None else kib * 1024


def total_bytes(root: Path = Path("/")) -> int | None:
    """Return the computer's memory; None where the kernel does not say."""
    kib = _kib(root / "proc/meminfo", "MemTotal:")
    return None if kib is None else kib * 1024


def run_build(
    request: PlanRequest,
    graph: Path,
    plan: Path,
    cache: Path | None,
    *,
    what: str,
    timeout_s: float,
    command: Sequence[str] = CHILD_COMMAND,
    progress: ProgressFactory = Progress,
) -> tuple[Fields, MemoryPeak]:
    """Build one engine in a process of its own.

    Args:
        request: how.
        graph: the ONNX file.
        plan: the file that the engine is written to.
        cache: folder of timing caches; None for none.
        what: of the progress bar, such as `build strong`.
        timeout_s: after which the build is ended.
        command: what is started; the real child but in tests.
        progress: shows how far it is.

    Returns:
        The child's answer, and its peak memory.

    Raises:
        MemoryExhaustedError: the system ended it for lack of memory, or TensorRT says that memory ran out.
        EdgebertError: it crashed, hangs, or reported an error, of the class it had there.
    """
    with _Child(command, "build") as child, progress(what, 100) as shown:
        folder = None if cache is None else str(cache)
        child.ask({"request": request.to_json(), "graph": str(graph), "plan": str(plan), "cache": folder})
        answer = child.answer(shown, timeout_s)
        if answer.text("type") == "error":
            found = error_from_message(answer)
            if isinstance(found, MemoryExhaustedError):
                said = f"{found.what}; {child.peak().to_text()}"
                raise MemoryExhaustedError(said, expected=found.expected, hint=found.hint)
            raise found
        return answer, child.peak()


def run_once(
    folder: Path, spec: InputSpec, *, timeout_s: float = _RUN_SECONDS, command: Sequence[str] = CHILD_COMMAND
) -> None:
    """Open an engine and ask it of one image, in a process of its own: an engine that crashes ends that one alone.

    Args:
        folder: with `engine.plan` and `engine.json`.
        spec: what the engine takes and gives.
        timeout_s: after which the run is ended.
        command: what is started; the real child but in tests.

    Raises:
        MemoryExhaustedError: the system ended it for lack of memory, or TensorRT says that memory ran out.
        EdgebertError: it crashed, hangs, or reported an error, of the class it had there.
    """
    size: JsonObject = {"height": spec.height, "width": spec.width, "classes": spec.classes}
    with _Child(command, "run") as child:
        child.ask({"folder": str(folder), "spec": size})
        answer = child.answer(_Unseen(), timeout_s)
        if answer.text("type") == "error":
            raise error_from_message(answer)
        if answer.text("type") != "ran":
            raise EdgebertError(f"the process of the run says `{answer.text('type')}`", expected="`ran`")


class _Unseen:
    """Progress of what takes seconds."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Show nothing."""


class _Child:
    """One process that does one thing with an engine; a context manager, so that it never outlives its caller.

    Args:
        command: what is started.
        task: `build` or `run`.
    """

    def __init__(self, command: Sequence[str], task: _Task) -> None:
        self._task = task
        self._oom_kills = oom_kills()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=dict(worker_environment(os.cpu_count() or 1)),
            start_new_session=True,  # a Ctrl-C is the parent's to handle, and what the child starts ends with it
        )
        self._answers: queue.Queue[Fields | BadDataError | None] = queue.Queue()
        self._peak_kib, self._least_kib = 0, _kib(Path("/proc/meminfo"), "MemAvailable:") or 0
        self._over = threading.Event()
        self._threads = tuple(threading.Thread(target=each, daemon=True) for each in (self._read, self._watch))
        for thread in self._threads:
            thread.start()

    def ask(self, content: JsonObject) -> None:
        """Send the one request; stdin stays open, and its end is the end of the child."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a child that is gone already is explained by `answer`
            write_message(self._process.stdin, self._task, 1, content)

    def answer(self, progress: Advancing, timeout_s: float) -> Fields:
        """Show progress until the answer, and return it."""
        until, shown = time.monotonic() + timeout_s, 0
        while True:
            # The end of the child closes its pipe, but for a process that it has started and that holds it; so it is looked at as well.
            ended = self._process.poll() is not None
            left = until - time.monotonic()
            try:
                message = self._answers.get(timeout=_END_SECONDS if ended else max(0.0, min(_LOOK_SECONDS, left)))
            except queue.Empty:
                if ended:
                    raise self._died() from None
                if left <= _LOOK_SECONDS:
                    raise self._too_slow(timeout_s) from None
                continue
            if message is None:
                raise self._died()
            if isinstance(message, BadDataError):
                raise EdgebertError(f"the process of the {self._task} broke the protocol: {message.what}") from message
            if message.text("type") != "progress":
                return message
            percent = min(99, round(100 * message.number("share")))
            progress.advance(max(0, percent - shown), note=message.text("phase"))
            shown = max(shown, percent)

    def peak(self) -> MemoryPeak:
        """Return what was seen of its memory so far."""
        return MemoryPeak(resident_mib=self._peak_kib // 1024, least_available_mib=self._least_kib // 1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if error is not None:
            self._kill()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._over.set()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for thread in self._threads:
            thread.join(timeout=_END_SECONDS)
        if not self._threads[0].is_alive():
            self._process.stdout.close()
        self._stderr.close()

    def _kill(self) -> None:
        if self._process.returncode is None:  # not waited for, so its number is still its own
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None
        stream: IO[bytes] = self._process.stdout
        message: Fields | BadDataError | None
        while True:
            try:
                message = read_message(stream)
            except BadDataError as error:
                message = error
            self._answers.put(message)
            if not isinstance(message, Fields):
                return

    def _watch(self) -> None:
        """Look at memory until the build is over; a dead process tells nothing any more."""
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._over.wait(_LOOK_SECONDS):
            self._peak_kib = max(self._peak_kib, _kib(status, "VmHWM:") or 0)
            available = _kib(Path("/proc/meminfo"), "MemAvailable:")
            if available is not None:
                self._least_kib = min(self._least_kib, available)

    def _too_slow(self, timeout_s: float) -> EdgebertError:
        if self._task == "run":
            return EdgebertError(
                f"the engine did not answer one image within {timeout_s:.0f} s: it was ended",
                expected="seconds, on a device that does nothing else",
                hint=_AROUND,
            )
        return EdgebertError(
            f"the engine was not built within {timeout_s:.0f} s: the build was ended",
            expected="minutes, on a device that does nothing else",
            hint="a lower `--optimization-level`, or a longer `--timeout`",
        )

    def _died(self) -> EdgebertError:
        """Return the explanation of a child that ended without an answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)
        if self._threads[0].is_alive():  # what it has started holds its output
            self._kill_group()
        code, said = self._process.returncode, last_words(self._stderr)
        what = {"build": "the build", "run": "the engine's first run"}[self._task]
        expected = f"free memory, which the CPU and the GPU of a Jetson share; {self.peak().to_text()}"
        if code == -signal.SIGKILL:
            counted = counted_since(self._oom_kills)
            by = f"the system ended {what} because memory ran out" if counted else f"{what} was killed (signal 9)"
            doubt = (
                "" if counted else ", which is how the system ends a process when memory is short; it has counted none"
            )
            return MemoryExhaustedError(f"{by}{doubt}", expected=expected, hint=FREE_MEMORY)
        if says_out_of_memory(said):
            return MemoryExhaustedError(f"memory ran out during {what}: `{said}`", expected=expected, hint=FREE_MEMORY)
        ending = "still runs" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._task == "run":
            what, wanted = (
                f"the engine was built, and crashes where it is first run ({ending})",
                "an answer to one image",
            )
        else:
            what, wanted = f"the builder process ended ({ending}) without an answer", "an engine"
        return EdgebertError(
            what, expected=f"{wanted}; its last words were `{said}`; {self.peak().to_text()}", hint=_AROUND
        )


def _kib(file: Path, key: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(key)), "").split()
    return int(found[1]) if len(found) > 1 and found[1].isdecimal() else None
