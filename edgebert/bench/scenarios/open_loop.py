"""Arrivals that do not wait for answers: `paced` at equal distances, `server` by a Poisson process (bench.md, section 7).

The whole schedule is drawn before the first arrival. A thread sleeps until a quarter of a millisecond before the next one and then
spins: a plain sleep wakes about 100 microseconds late (bench.md, section 2.2). Latency counts from the moment a query was due, so
a harness or a model that falls behind cannot hide it.

>>> paced_schedule(1_000.0, 3).tolist()
[0, 1000000, 2000000]
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgebert.bench.recorder import FLAG_REWARM, BlockMeter, quiet
from edgebert.bench.samples import IntArray
from edgebert.bench.scenarios.query import Asker, Clock

Policy = Literal["drop", "queue"]

SPIN_NS = 250_000  # bench.md, section 2.2
_LEAST = 50  # arrivals: fewer would say little of how long queries take at this rate
_LEAD_NS = 2_000_000  # from the start of the loop to the first arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """What arrives when, and what becomes of it.

    Attributes:
        offsets: int64 (arrivals,) nanoseconds after the first moment, ascending.
        policy: `queue` answers every query in order; `drop` gives up those that come while every server is busy, unseen.
        patience_ns: a query that is answered later than this after it was due ends the run: the servers cannot keep up. Those
            that are due by then and were not looked at are given up. None to go on to the end.
        bound_ns: a query that is answered later than this after it was due is late.
        late_allowed: more late queries than this end the run too, once `_LEAST` have come: what it was to show is decided. None to
            go on.
        first: number of the first image.
    """

    offsets: IntArray
    policy: Policy = "queue"
    patience_ns: int | None = None
    bound_ns: int | None = None
    late_allowed: int | None = None
    first: int = 0


def paced_schedule(rate: float, count: int) -> IntArray:
    """Return int64 (count,): arrivals at equal distances, `rate` per second, from 0 on."""
    return np.round(np.arange(count) * (1e9 / rate)).astype(np.int64)


def poisson_schedule(rate: float, count: int, *, seed: int) -> IntArray:
    """Return int64 (count,): arrivals of a Poisson process of `rate` per second; gaps are exponential and independent."""
    gaps = np.random.default_rng([seed, 5]).exponential(1e9 / rate, count)
    return np.round(np.cumsum(gaps)).astype(np.int64)


def run_arrivals(
    askers: Sequence[Asker], arrivals: Arrivals, *, sleep: Callable[[float], None] = time.sleep
) -> BlockMeter:
    """Serve arrivals with one thread for each asker, which keep the stamps; return what the process used.

    Threads take arrivals in order, each as soon as it is free. Each asks once before the first arrival, flagged `rewarm`.

    Args:
        askers: one for each server.
        arrivals: what arrives.
        sleep: called with seconds; a test gives its own.
    """
    loop = _Loop(arrivals, askers[0].clock, sleep, alone=len(askers) == 1)
    ready = threading.Barrier(len(askers), action=loop.begin)
    with quiet():
        if loop.alone:
            loop.serve(askers[0], ready)
        else:
            with ThreadPoolExecutor(len(askers)) as pool:
                for turn in [pool.submit(loop.serve, asker, ready) for asker in askers]:
                    turn.result()
    return loop.meter.stop()


@dataclass(slots=True)
class _Loop:
    """One run of arrivals, shared by its servers."""

    arrivals: Arrivals
    clock: Clock
    sleep: Callable[[float], None]
    alone: bool
    due: list[int] = field(default_factory=list)
    meter: BlockMeter = field(default_factory=BlockMeter.start)
    given_up_at: int | None = None
    late: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def begin(self) -> None:
        """Say when each arrival is due; called once, when every server is ready."""
        self.due = (self.arrivals.offsets + (self.clock() + _LEAD_NS)).tolist()
        self.meter = BlockMeter.start()

    def serve(self, asker: Asker, ready: threading.Barrier) -> None:
        """Take arrivals until none is left, or the queue has become too long."""
        first, drops, numbers, done = self.arrivals.first, self.arrivals.policy == "drop", self._numbers, 0
        asker.ask(first, 1, flags=FLAG_REWARM)
        ready.wait()
        due_times, count = self.due, len(self.due)
        while (number := next(numbers)) < count:
            due = due_times[number]
            if self.given_up_at is not None:
                if due <= self.given_up_at:
                    asker.drop(first + number, due=due, at=self.given_up_at)
            elif drops and due <= done:  # it came while this server, and so every other, was busy
                asker.drop(first + number, due=due, at=due)
            else:
                self._wait(due)
                done = asker.ask(first + number, 1, due=due)
                if self._is_over(number, done - due):
                    self.given_up_at = done

    def _is_over(self, number: int, latency: int) -> bool:
        """Say whether there is no use in going on after arrival `number`, answered so long after it was due."""
        arrivals = self.arrivals
        if arrivals.patience_ns is not None and latency > arrivals.patience_ns:
            return True
        if arrivals.bound_ns is None or arrivals.late_allowed is None:
            return False
        self.late += latency > arrivals.bound_ns
        return self.late > arrivals.late_allowed and number + 1 >= _LEAST

    def _wait(self, due: int) -> None:
        clock = self.clock
        left = due - clock()
        if left > SPIN_NS:
            self.sleep((left - SPIN_NS) / 1e9)
        if self.alone:
            while clock() < due:
                pass
        else:  # a thread that spins holds the interpreter, which the other servers need
            while clock() < due:
                self.sleep(0)
