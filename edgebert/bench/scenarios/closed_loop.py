"""Windows in which the next question is asked as soon as one is answered: offline, multi-stream, soak and energy (bench.md, section 7).

`inflight` threads of the worker draw numbers from one counter and ask about the images that belong to them. Each thread asks once
before the window begins: a backend keeps buffers by shape and by thread, and its first call sets them up.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from edgebert.bench.recorder import FLAG_REWARM, BlockMeter, quiet
from edgebert.bench.scenarios.query import Asker


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How one window is run.

    Attributes:
        group: images of a question.
        ns: it is not over before.
        least: questions, at least; whole ones, so a window of slow questions is longer than `ns`.
        most: questions that are kept; asking goes on until the window is over. None for all.
        first: number of the first image.
        singly: the images of a question are asked about one after the other instead of in one call of the model.
    """

    group: int
    ns: int
    least: int = 1
    most: int | None = None
    first: int = 0
    singly: bool = False


@dataclass(slots=True)
class _Start:
    """When a window began and what had been used by then; set once, by the last thread that is ready."""

    window: Window
    clock: Callable[[], int]
    end: int = 0
    meter: BlockMeter = field(default_factory=BlockMeter.start)

    def __call__(self) -> None:
        self.meter = BlockMeter.start()
        self.end = self.clock() + self.window.ns


def run_window(askers: Sequence[Asker], window: Window) -> BlockMeter:
    """Run one window with a thread for each asker, which keep the stamps; return what the process used while it was kept.

    The questions before the window are flagged `rewarm`.
    """
    numbers = itertools.count()  # `next` of it is one step of the interpreter, so no two threads draw the same
    start = _Start(window, askers[0].clock)
    ready = threading.Barrier(len(askers), action=start)
    with quiet():
        if len(askers) == 1:
            _turn(askers[0], numbers, ready, start)
        else:
            with ThreadPoolExecutor(len(askers)) as pool:
                for turn in [pool.submit(_turn, asker, numbers, ready, start) for asker in askers]:
                    turn.result()
        used = start.meter.stop()
        if window.most is not None:
            _go_on(askers[0], numbers, start)
    return used


def takes_batch(asker: Asker, group: int, first: int = 0) -> bool:
    """Say whether the model answers about `group` images in one call; the question is kept, flagged `rewarm`, if it does."""
    errors, asker.first_error = asker.first_error, None
    asker.ask(first, group, flags=FLAG_REWARM)
    refused, asker.first_error = asker.first_error is not None, errors
    if refused:
        asker.forget_last(failed=True)
    return not refused


def _turn(asker: Asker, numbers: Iterator[int], ready: threading.Barrier, start: _Start) -> None:
    window = start.window
    ask, group, first, clock = _ask_of(asker, window), window.group, window.first, asker.clock
    ask(first + next(numbers) * group, FLAG_REWARM)
    before = asker.questions
    ready.wait()
    least = window.least + ready.parties  # the numbers of the questions before the window
    while (number := next(numbers)) < least or clock() < start.end:
        ask(first + number * group, 0)
        if asker.questions - before == window.most:
            return


def _go_on(asker: Asker, numbers: Iterator[int], start: _Start) -> None:
    """Keep the load up to the end of the window; only failures are kept."""
    ask, window = _ask_of(asker, start.window), start.window
    while asker.clock() < start.end:
        ask(window.first + next(numbers) * window.group, 0)
        asker.forget_last()


def _ask_of(asker: Asker, window: Window) -> Callable[[int, int], int]:
    method = asker.ask_singly if window.singly else asker.ask
    return lambda first, flags: method(first, window.group, flags=flags)
