"""The process that does one task of the self-check: `python -m edgebert.jetson_check.child`, started by `edgebert.jetson_check.process`.

    TASK {…}  -> answer {found, facts, error, …}

`error` is None, or the parts of an error of our own kinds: a task may fail and have facts to tell.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import IO

from edgebert._json import Fields, JsonObject
from edgebert.bench.child import die_with_parent
from edgebert.bench.protocol import error_content, read_message, write_message
from edgebert.errors import EdgebertError, MemoryExhaustedError
from edgebert.jetson_check import bindings, board, engines, memory, sensors

Task = Callable[[Fields], JsonObject]

TASKS: Mapping[str, Task] = {
    "bindings": bindings.bindings,
    "board": board.board,
    "cuda": memory.cuda,
    "parse": bindings.parse,
    "refusal": engines.refusal,
    "run": engines.run,
    "sensors": sensors.sensors,
    "timing": engines.timing,
}


def answer(request: Fields, answers: IO[bytes]) -> None:
    """Do what was asked for, and write what came of it."""
    said: JsonObject
    try:
        said = {"error": None, **TASKS[request.text("type")](request)}
    except EdgebertError as error:
        said = {"found": "", "facts": {}, "error": error_content(error)}
    except MemoryError:
        said = {"found": "", "facts": {}, "error": error_content(MemoryExhaustedError("memory ran out"))}
    write_message(answers, "answer", request.integer("seq"), said)


def main() -> None:
    """Serve one request of the parent process."""
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    request = read_message(requests)
    assert request is not None, "the parent process asked for nothing"
    answer(request, answers)
    sys.stderr.flush()
    # Not through the destructors of native libraries: what was asked for is answered.
    os._exit(0)


if __name__ == "__main__":
    main()
