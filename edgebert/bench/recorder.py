"""The timed loop: one query in flight, four monotonic stamps per query, nothing else in between.

    t_issue ── pre ── t_pre_end ── infer ── t_inf_end ── post ── t_done

The stages share their boundaries, so they add up to the end-to-end time exactly.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.schedule import rewarm_queries
from edgebert.bench.several import answer_code
from edgebert.bench.statistics import STEADY_WINDOWS, is_steady
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline, Prediction

WARMUP_BLOCK = -1  # what the column `block` holds for warm-up queries

FLAG_WARMUP = 1
FLAG_REWARM = 2
FLAG_ERROR = 4
NO_CLASS = -1  # what the column `pred` holds for a query that failed

STAMPS = ("t_issue", "t_pre_end", "t_inf_end", "t_done")
QUERY_COLUMNS = ("block", "flags", "sample_index", *STAMPS, "pred")
BLOCK_COLUMNS = ("block_index", "block_wall_ns", "block_cpu_ns", "block_involuntary")

_WINDOW_NS = 250_000_000  # bench.md, section 8: a window is max(250 ms, 10 queries)
_WINDOW_QUERIES = 10
_MIN_WARMUP_NS = 2_000_000_000
_MIN_WARMUP_QUERIES = 20
_UNKNOWN_COUNT = -1  # in `block_involuntary`, where the system does not count context switches

_BLOCK, _FLAGS = QUERY_COLUMNS.index("block"), QUERY_COLUMNS.index("flags")
_ISSUE, _DONE = QUERY_COLUMNS.index("t_issue"), QUERY_COLUMNS.index("t_done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """How a warm-up ended: `converged` is False where the cap came first."""

    converged: bool
    queries: int
    ns: int
    median_ns: int
    mean_ns: int


@dataclass(slots=True)
class Recorder:
    """Times queries of one pipeline over a fixed cycle of images and keeps every stamp.

    Attributes:
        pipeline: what is timed.
        images: uint8 (height, width, 3) RGB each, in the order of issue; used again from the start at the end.
        first_error: the message of the first query that failed.
    """

    pipeline: Pipeline
    images: Sequence[RgbImage]
    first_error: str | None = None
    _cursor: int = 0
    _queries: list[NDArray[np.int64]] = field(default_factory=list)
    _blocks: list[tuple[int, int, int, int]] = field(default_factory=list)
    _code: Callable[[Prediction], int] = field(init=False)

    def __post_init__(self) -> None:
        self._code = answer_code(self.pipeline.card)

    def warm_up(self, max_ns: int) -> Warmup:
        """Run queries until four windows in a row are steady, or `max_ns` have passed.

        The images start from the beginning again afterwards, so that all arms time the same sequence.
        """
        started = time.perf_counter_ns()
        medians: list[float] = []
        rows: list[NDArray[np.int64]] = []
        count = 0
        with _quiet():
            while True:
                rows.append(self._window())
                count += len(rows[-1])
                medians.append(float(np.median(rows[-1][:, _DONE] - rows[-1][:, _ISSUE])))
                spent = time.perf_counter_ns() - started
                enough = spent >= _MIN_WARMUP_NS and count >= _MIN_WARMUP_QUERIES
                converged = enough and is_steady(medians)
                if converged or spent >= max_ns:
                    break
        self._queries.extend(rows)
        self._cursor = 0
        # The blocks are planned by these; the last windows are the steady ones.
        last = np.concatenate(rows[-STEADY_WINDOWS:])
        times = last[:, _DONE] - last[:, _ISSUE]
        return Warmup(
            converged=converged, queries=count, ns=spent, median_ns=int(np.median(times)), mean_ns=int(times.mean())
        )

    def block(self, index: int, queries: int) -> None:
        """Run one block; its first max(2, 10 %) queries are kept but flagged `rewarm`."""
        switches, cpu = _involuntary_switches(), time.process_time_ns()
        with _quiet():
            rows = self._run(queries)
        cpu = time.process_time_ns() - cpu
        moved = _UNKNOWN_COUNT if switches is None else (_involuntary_switches() or 0) - switches
        rows[:, _BLOCK] = index
        rows[: rewarm_queries(queries), _FLAGS] |= FLAG_REWARM
        self._queries.append(rows)
        self._blocks.append((index, int(rows[-1, _DONE] - rows[0, _ISSUE]), cpu, moved))

    def input_sensitivity(self, pairs: int) -> float:
        """Return the time of an input the model has met before over that of one it never met, median of pairs.

        About 1 for an honest model; far below 1 for one that remembers its answers. Only `infer` is timed: `pre` has
        just written both inputs, so neither is colder than the other.
        """
        known = self.pipeline.pre(self.images[0])
        self.pipeline.infer(known)
        ratios = []
        with _quiet():
            for pair in range(pairs):
                fresh = known.copy()
                fresh.reshape(-1)[pair % fresh.size] ^= 1 + pair // fresh.size % 255
                inputs = (known, fresh) if pair % 2 else (fresh, known)
                times = [self._time_of_infer(batch) for batch in inputs]
                ratios.append(times[0] / times[1] if pair % 2 else times[1] / times[0])
        return float(np.median(ratios))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Return every stamp so far: one int64 array per name of `QUERY_COLUMNS` and `BLOCK_COLUMNS`."""
        queries = np.concatenate([np.zeros((0, len(QUERY_COLUMNS)), np.int64), *self._queries])
        blocks = np.array(self._blocks, np.int64).reshape(-1, len(BLOCK_COLUMNS))  # (blocks, columns)
        named = {name: np.ascontiguousarray(queries[:, at]) for at, name in enumerate(QUERY_COLUMNS)}
        return named | {name: np.ascontiguousarray(blocks[:, at]) for at, name in enumerate(BLOCK_COLUMNS)}

    def _window(self) -> NDArray[np.int64]:
        """Return the rows of one warm-up window."""
        started = time.perf_counter_ns()
        parts = [self._run(_WINDOW_QUERIES)]
        while time.perf_counter_ns() - started < _WINDOW_NS:
            parts.append(self._run(1))
        rows = np.concatenate(parts)
        rows[:, _BLOCK] = WARMUP_BLOCK
        rows[:, _FLAGS] |= FLAG_WARMUP
        return rows

    def _run(self, queries: int) -> NDArray[np.int64]:
        """Return int64 (queries, columns), `block` still 0; the loop is all that happens while timing."""
        clock, pipeline = time.perf_counter_ns, self.pipeline
        pre, infer, post, code = pipeline.pre, pipeline.infer, pipeline.post, self._code
        images, cursor = self.images, self._cursor
        rows: list[tuple[int, ...]] = []
        for _ in range(queries):
            image, flags, answer = images[cursor], 0, None
            issue = pre_end = inf_end = clock()
            try:
                batch = pre(image)
                pre_end = clock()
                logits = infer(batch)
                inf_end = clock()
                answer = post(logits)[0]
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: a failed query is kept, and makes the arm invalid
                self.first_error = self.first_error or f"{type(error).__name__}: {error}"
                flags, inf_end = FLAG_ERROR, max(pre_end, inf_end)
            done = clock()
            rows.append((0, flags, cursor, issue, pre_end, inf_end, done, NO_CLASS if answer is None else code(answer)))
            cursor = cursor + 1 if cursor + 1 < len(images) else 0
        self._cursor = cursor
        return np.array(rows, np.int64)

    def _time_of_infer(self, batch: NDArray[np.uint8]) -> int:
        started = time.perf_counter_ns()
        self.pipeline.infer(batch)
        return max(1, time.perf_counter_ns() - started)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the garbage collector out of a block; reference counting goes on."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def timer_overhead_ns(pairs: int = 1_001) -> int:
    """Return the time between two stamps with nothing in between, median of `pairs`."""
    clock = time.perf_counter_ns
    return int(np.median([-(clock() - clock()) for _ in range(pairs)]))


def _involuntary_switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
