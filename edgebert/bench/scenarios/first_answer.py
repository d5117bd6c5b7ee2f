"""A cold start, seen from inside the fresh process: the moments from its first line to its first answer.

`time.monotonic_ns` counts on one clock for all processes of a computer (clock_gettime(2), CLOCK_MONOTONIC), so the process that
started this one can subtract its own stamp.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgebert._json import Fields, JsonObject
from edgebert.bench.images import read_images
from edgebert.bench.loading import LoadedArm, LoadRequest
from edgebert.bench.schema import ArtefactKind
from edgebert.errors import EdgebertError


def first_answer(
    load: Callable[[LoadRequest, Callable[[], None]], LoadedArm], request: Fields, *, first_line_ns: int
) -> JsonObject:
    """Open an arm, answer one image, and say when each step was done.

    Args:
        load: opens an artefact.
        request: what to open, as in `load`, and one image, as in `images`.
        first_line_ns: when this process ran its first line of ours.

    Returns:
        moments in monotonic nanoseconds, and how long importing the backend took of the time to open the arm.
    """
    kinds: dict[str, ArtefactKind] = {"bundle": "bundle", "graph": "graph", "checkpoint": "checkpoint"}
    (image,) = read_images(request)
    opening = time.monotonic_ns()
    arm = load(
        LoadRequest(
            path=request.text("path"),
            kind=kinds[request.text("kind")],
            target=request.optional_text("target"),
            threads=request.integer("threads"),
        ),
        lambda: None,
    )
    opened = time.monotonic_ns()
    answers = arm.pipeline.post(arm.pipeline.infer(arm.pipeline.pre(image)))
    answered = time.monotonic_ns()
    if len(answers) != 1:
        raise EdgebertError(f"one image got {len(answers)} answers", expected="one")
    return {
        "first_line_ns": first_line_ns,
        "opening_ns": opening,
        "opened_ns": opened,
        "answered_ns": answered,
        "import_ns": arm.import_ns,
    }
