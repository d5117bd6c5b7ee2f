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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.out_of_memory import raise_out_of_memory
from edgebert.bench.samples import BLOCK_COLUMNS, CONFIDENCE_UNIT, QUERY_COLUMNS, SCENARIOS
from edgebert.bench.schedule import rewarm_queries
from edgebert.bench.several import answer_code
from edgebert.bench.statistics.formulas import STEADY_WINDOWS, is_steady
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline, Prediction

WARMUP_BLOCK = -1  # what the column `block` holds for warm-up queries

FLAG_WARMUP = 1
FLAG_REWARM = 2
FLAG_ERROR = 4
FLAG_DROPPED = 8  # a frame that was never looked at (paced)
NO_CLASS = -1  # what the column `pred` holds for a query that failed
NO_CONFIDENCE = -1

ROW_COLUMNS = tuple(name for name in QUERY_COLUMNS if name not in ("arm", "launch"))
BLOCK_ROW_COLUMNS = tuple(name for name in BLOCK_COLUMNS if name not in ("block_arm", "block_launch"))
SINGLE_STREAM = SCENARIOS.index("single-stream")

_WINDOW_NS = 250_000_000  # bench.md, section 8: a window is max(250 ms, 10 queries)
_WINDOW_QUERIES = 10
_MIN_WARMUP_NS = 2_000_000_000
_MIN_WARMUP_QUERIES = 20
_UNKNOWN = -1  # of a block, where the system does not count

_BLOCK, _FLAGS = ROW_COLUMNS.index("block"), ROW_COLUMNS.index("flags")
_ISSUE, _DONE = ROW_COLUMNS.index("t_issue"), ROW_COLUMNS.index("t_done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """How a warm-up ended: `converged` is False where the cap came first; `first_ns` is the very first query's time."""

    converged: bool
    queries: int
    ns: int
    median_ns: int
    mean_ns: int
    first_ns: int


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
    _blocks: list[NDArray[np.int64]] = field(default_factory=list)
    _code: Callable[[Prediction], int] = field(init=False)

    def __post_init__(self) -> None:
        self._code = answer_code(self.pipeline.card)

    def warm_up(self, max_ns: int) -> Warmup:
        """Run queries until four windows in a row are steady, or `max_ns` have passed.

        The images start from the beginning again afterwards, so that all arms time the same sequence.
        """
        freeze_garbage()
        started = time.perf_counter_ns()
        medians: list[float] = []
        rows: list[NDArray[np.int64]] = []
        count = 0
        with quiet():
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
            converged=converged,
            queries=count,
            ns=spent,
            median_ns=int(np.median(times)),
            mean_ns=int(times.mean()),
            first_ns=int(rows[0][0, _DONE] - rows[0][0, _ISSUE]),
        )

    def block(self, index: int, queries: int) -> None:
        """Run one block; its first max(2, 10 %) queries are kept but flagged `rewarm`."""
        with quiet():
            meter = BlockMeter.start()
            rows = self._run(queries)
            counted = meter.stop()
        rows[:, _BLOCK] = index
        rows[: rewarm_queries(queries), _FLAGS] |= FLAG_REWARM
        start, wall = int(rows[0, _ISSUE]), int(rows[-1, _DONE] - rows[0, _ISSUE])
        self.keep(rows, counted.row(scenario=SINGLE_STREAM, point=0, index=index, start_ns=start, wall_ns=wall))

    def keep(self, rows: NDArray[np.int64], block: NDArray[np.int64]) -> None:
        """Keep the rows of a block, int64 (queries, ROW_COLUMNS), and the block's own, int64 (BLOCK_ROW_COLUMNS,)."""
        self._queries.append(rows)
        self._blocks.append(block)

    def input_sensitivity(self, pairs: int) -> float:
        """Return the time of an input the model has met before over that of one it never met, median of pairs.

        About 1 for an honest model; far below 1 for one that remembers its answers. Only `infer` is timed;
        making the copy has just read the one input and written the other, so neither is colder. Which of a pair comes first
        is drawn: an order that alternates can beat in time with the system's own turns between busy processes.
        """
        known = self.pipeline.pre(self.images[0])
        self.pipeline.infer(known)
        ratios = []
        known_first = np.random.default_rng(pairs).random(pairs) < 0.5
        with quiet():
            for pair in range(pairs):
                fresh = known.copy()
                fresh.reshape(-1)[pair % fresh.size] ^= 1 + pair // fresh.size % 255
                inputs = (known, fresh) if known_first[pair] else (fresh, known)
                times = [self._time_of_infer(batch) for batch in inputs]
                ratios.append(times[0] / times[1] if known_first[pair] else times[1] / times[0])
        return float(np.median(ratios))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Return every stamp so far: one int64 array per name of `ROW_COLUMNS` and `BLOCK_ROW_COLUMNS`."""
        queries = np.concatenate([np.zeros((0, len(ROW_COLUMNS)), np.int64), *self._queries])
        blocks = np.array(self._blocks, np.int64).reshape(-1, len(BLOCK_ROW_COLUMNS))  # (blocks, columns)
        named = {name: np.ascontiguousarray(queries[:, at]) for at, name in enumerate(ROW_COLUMNS)}
        return named | {name: np.ascontiguousarray(blocks[:, at]) for at, name in enumerate(BLOCK_ROW_COLUMNS)}

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
        """Return int64 (queries, ROW_COLUMNS), `block` still 0; the loop is all that happens while timing."""
        clock, pipeline = time.perf_counter_ns, self.pipeline
        pre, infer, post = pipeline.pre, pipeline.infer, pipeline.post
        images, cursor, last = self.images, self._cursor, len(self.images) - 1
        stamps: list[tuple[int, ...]] = []
        answers: list[Prediction | None] = []
        for _ in range(queries):
            image, flags, answer = images[cursor], 0, None
            issue = pre_end = inf_end = clock()
            try:
                batch = pre(image)
                pre_end = clock()
                logits = infer(batch)
                inf_end = clock()
                answer = post(logits)[0]
            except MemoryError:
                raise  # of the computer, not of this query: nothing after it would mean anything
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: a failed query is kept, and makes the arm invalid
                raise_out_of_memory(error)
                self.first_error = self.first_error or f"{type(error).__name__}: {error}"
                flags, inf_end = FLAG_ERROR, max(pre_end, inf_end)
            done = clock()
            stamps.append((SINGLE_STREAM, 0, 0, flags, cursor, issue, issue, pre_end, inf_end, done))
            answers.append(answer)
            cursor = cursor + 1 if cursor < last else 0
        self._cursor = cursor
        # What an answer is called by is found after the loop: nothing but stamps belongs between two queries.
        return np.column_stack([np.array(stamps, np.int64), answer_rows(answers, self._code)])

    def _time_of_infer(self, batch: NDArray[np.uint8]) -> int:
        started = time.perf_counter_ns()
        self.pipeline.infer(batch)
        return max(1, time.perf_counter_ns() - started)


def answer_rows(answers: Sequence[Prediction | None], code: Callable[[Prediction], int]) -> NDArray[np.int64]:
    """Return int64 (answers, 2): `pred` and `confidence` of each; None is a query that failed."""
    rows = [
        (NO_CLASS, NO_CONFIDENCE) if answer is None else (code(answer), round(answer.score / CONFIDENCE_UNIT))
        for answer in answers
    ]
    return np.array(rows, np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class BlockMeter:
    """Counts what a process used between `start` and `stop`: processor time, involuntary switches, major faults."""

    cpu_ns: int
    involuntary: int | None
    major_faults: int | None

    @classmethod
    def start(cls) -> BlockMeter:
        """Return the counters of this moment."""
        switches, faults = _switches_and_faults()
        return cls(time.process_time_ns(), switches, faults)

    def stop(self) -> BlockMeter:
        """Return what was counted since the start."""
        cpu, (switches, faults) = time.process_time_ns(), _switches_and_faults()
        return BlockMeter(
            cpu - self.cpu_ns,
            None if switches is None or self.involuntary is None else switches - self.involuntary,
            None if faults is None or self.major_faults is None else faults - self.major_faults,
        )

    def row(self, *, scenario: int, point: int, index: int, start_ns: int, wall_ns: int) -> NDArray[np.int64]:
        """Return int64 (BLOCK_ROW_COLUMNS,) of a block that counted this much."""
        known = (self.involuntary, self.major_faults, resident_bytes())
        counts = [_UNKNOWN if count is None else count for count in known]
        return np.array([scenario, point, index, start_ns, wall_ns, self.cpu_ns, *counts], np.int64)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of a block; reference counting goes on."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze_garbage() -> None:
    """Collect once and keep what is left out of later collections, which are then short; blocks follow one another closely."""
    gc.collect()
    gc.freeze()


def timer_overhead_ns(pairs: int = 1_001) -> int:
    """Return the time between two stamps with nothing in between, median of `pairs`."""
    clock = time.perf_counter_ns
    return int(np.median([-(clock() - clock()) for _ in range(pairs)]))


def resident_bytes(name: str = "VmRSS") -> int | None:
    """Return a field of /proc/self/status in bytes (proc(5)), or None where there is none."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _switches_and_faults() -> tuple[int | None, int | None]:
    if sys.platform == "win32":
        return None, None
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nivcsw, usage.ru_majflt
