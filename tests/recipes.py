"""A recipe run to its end on a computer that other programs use as well: a test of what it makes needs no quiet machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from edgebert.errors import NotComparableError

# A measurement that other programs disturbed is refused, and the recipe says to run again; all else that fails is a failure.
TRIES = 6


def finish(command: Sequence[str]) -> str:
    """Return what `edgebert run` prints; a measurement that it calls invalid is made again, as its hint says."""
    for _ in range(TRIES):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != NotComparableError.exit_code:
            break
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
