"""Starts the process that does one task, and explains its end: a crash or a hang of native code is a rung that failed, and no more.

One process for each task, which starts with nothing that an earlier one broke.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from edgebert._json import Fields, JsonObject
from edgebert._out_of_memory import says_out_of_memory
from edgebert.bench.child import last_words
from edgebert.bench.out_of_memory import counted_since, oom_kills
from edgebert.bench.protocol import read_message, write_message
from edgebert.bench.worker_process import worker_environment
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError
from edgebert.runtime.tensorrt_errors import FREE_MEMORY

CHILD_COMMAND = (sys.executable, "-m", "edgebert.jetson_check.child")

_REPORT_IT = "attach the file of this check to a report; the system's own words: sudo dmesg | tail -n 40"


def answer_of(task: str, content: JsonObject, *, timeout_s: float, command: Sequence[str] = CHILD_COMMAND) -> Fields:
    """Let a process do one task, and return its answer.

    Args:
        task: of `edgebert.jetson_check.child`.
        content: of the request.
        timeout_s: after which the process is ended.
        command: what is started; the real child but in tests.

    Raises:
        MemoryExhaustedError: the system ended it for lack of memory.
        EdgebertError: it crashed, hangs, or answered with something else.
    """
    request = io.BytesIO()
    write_message(request, task, 1, content)
    kills = oom_kills()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(worker_environment(os.cpu_count() or 1)),
            start_new_session=True,  # a Ctrl-C is the parent's to handle, and what the child starts ends with it
        )
        try:
            said, _ = process.communicate(request.getvalue(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise EdgebertError(
                f"`{task}` did not end within {timeout_s:.0f} s: it hangs, and was ended",
                expected=f"an answer; the last words were `{last_words(errors)}`",
                hint=_REPORT_IT,
            ) from None
        finally:
            _end(process)
        answer = _message(said)
        if answer is None:
            raise _died(task, process.returncode, last_words(errors), kills)
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started; it may have ended by itself."""
    if process.poll() is None:  # not waited for, so its number is still its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _message(said: bytes) -> Fields | None:
    try:
        return read_message(io.BytesIO(said))
    except BadDataError:
        return None


def _died(task: str, code: int, words: str, kills: int | None) -> EdgebertError:
    """Return the explanation of a process that ended without an answer."""
    expected = f"an answer; the last words were `{words}`"
    if code == -signal.SIGKILL:
        counted = counted_since(kills)
        doubt = (
            "" if counted else "; that is how the system ends a process when memory is short, but it has counted none"
        )
        return MemoryExhaustedError(
            f"the process of `{task}` was killed (signal 9){doubt}", expected=expected, hint=FREE_MEMORY
        )
    if says_out_of_memory(words):
        return MemoryExhaustedError(f"memory ran out in the process of `{task}`", expected=expected, hint=FREE_MEMORY)
    return EdgebertError(f"the process of `{task}` crashed ({_ending(code)})", expected=expected, hint=_REPORT_IT)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
