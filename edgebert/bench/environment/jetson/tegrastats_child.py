"""Becomes tegrastats, in a process that the kernel kills when its parent dies: `python -m …tegrastats_child PARENT PROGRAM …`.

tegrastats itself goes on for ever, whoever started it. The wish to be killed outlives `exec` (prctl(2)), so it is said first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from edgebert.bench.child import die_with_parent

NOT_STARTED = 127  # as a shell says it of a command that is not there


def main(arguments: Sequence[str]) -> int:
    """Become the program, unless the parent is gone already; return only where that fails."""
    parent, program = int(arguments[0]), arguments[1:]
    die_with_parent()
    if os.getppid() != parent:  # it died before the line above
        return NOT_STARTED
    try:
        os.execve(program[0], list(program), os.environ)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error}\n")
        return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
