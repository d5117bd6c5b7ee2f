"""The worker's side of an audit: blocks of images in a given order.

Time is taken by the same `Recorder` that a measurement uses; only which images it gets is decided here.

>>> added({"1": 10, "2": 5}, {"1": 25, "3": 4})
19
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.bench.recorder import Recorder, quiet
from edgebert.bench.samples import write_columns
from edgebert.bench.scratch import writing_to
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline

_NOISE = 2  # most that a pixel is changed by to make an image that was never met: survives a resize, changes no cost
_TASKS = Path("/proc/self/task")


def audit_block(pipeline: Pipeline, images: Sequence[RgbImage], request: Fields) -> JsonObject:
    """Run one block and write its columns.

    Args:
        pipeline: what is audited.
        images: the timed images, uint8 (height, width, 3) each.
        request: `order` (numbers of images, in the order of issue), `queries`, `noise` (seed; -1 for none), `columns` (file).
    """
    chosen = [images[number] for number in request.integers("order")]
    if (noise := request.integer("noise")) >= 0:
        chosen = _never_met(chosen, noise)
    recorder = Recorder(pipeline, chosen)
    with quiet():  # what the harness's objects are collected in is not what the backend does
        queued, cpu, started = queued_by_task(), time.process_time_ns(), time.perf_counter_ns()
        recorder.block(0, request.integer("queries"))
        wall, cpu = time.perf_counter_ns() - started, time.process_time_ns() - cpu
        queued_after = queued_by_task()
    file = Path(request.text("columns"))
    with writing_to(file.parent):
        write_columns(file, recorder.columns())
    return {
        "cpu_ns": cpu,
        "queued_ns": None if queued is None or queued_after is None else added(queued, queued_after),
        "wall_ns": wall,
        "first_error": recorder.first_error,
    }


def queued_by_task(tasks: Path = _TASKS) -> Mapping[str, int] | None:
    """Return, for each thread, nanoseconds spent waiting for a free processor (proc(5): schedstat); None where unknown.

    A thread in the run queue wants to compute, so other programs do not make an honest backend look idle.
    """
    found: dict[str, int] = {}
    try:
        for task in tasks.iterdir():
            try:
                _, queued, _ = (task / "schedstat").read_text(encoding="ascii").split()
            except ProcessLookupError:  # it has just ended
                continue
            found[task.name] = int(queued)
    except (OSError, ValueError):
        return None
    return found


def added(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return by how much the counters of all threads grew; a thread that has ended is left out."""
    return sum(count - before.get(task, 0) for task, count in after.items())


def _never_met(images: Sequence[RgbImage], seed: int) -> list[RgbImage]:
    """Return copies with every pixel changed by at most `_NOISE`."""
    generator = np.random.default_rng([seed, 5])
    changed = []
    for image in images:
        noise = generator.integers(-_NOISE, _NOISE + 1, image.shape, np.int16)
        changed.append(np.clip(image + noise, 0, 255).astype(np.uint8))
    return changed
