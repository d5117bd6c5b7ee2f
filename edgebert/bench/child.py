"""Our own child processes: what they do first, so that none of them outlives us, and what is read of one that died."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import IO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_BYTES, _LAST_LINES = 4000, 6  # of stderr, in a message


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux), and leave Ctrl-C to the parent.

    A parent that died before this call has closed its end of stdin, so the first read ends the child.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def last_words(stderr: IO[bytes]) -> str:
    """Return the last lines that a process wrote to a file, on one line."""
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _LAST_BYTES))
    lines = [line.strip() for line in stderr.read().decode("utf-8", "replace").split("\n")]
    return " / ".join([line for line in lines if line][-_LAST_LINES:]) or "nothing"
