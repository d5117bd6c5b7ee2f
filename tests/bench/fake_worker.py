"""A worker whose arms are scripts: an arm's "graph" is a JSON file that says how it behaves.

card            the model card, as JSON
answers         16 class numbers; an image of brightness b is answered with answers[b % 16]
latency_ms      of every query
slow_at         {"queries": [n, ...], "ms": m}: queries number n take m milliseconds
wrong_from      from this query on, every answer is one class further
fail_at         query number n raises
remembers       answers of inputs met before cost nothing
crash_at        query number n ends the process
stray_print     prints to stdout, by Python and by file descriptor, on every query
garbage_every   every n-th answer is one class further
unsure_every    every n-th answer is the right class, less sure of it
skips_every     every n-th query gets the answer of the one before, at once
sleeps_ms       of every query, with the processor idle
leaks_bytes     of every query
hang_at         query number n never ends
memory_error_at query number n raises MemoryError
oom_at          from query number n on, memory is allocated until a limit of 256 MiB more is met
killed_at       query number n: what the kernel does to a process when memory is short
babbles         writes lines to stderr without end
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.loading import LoadedArm, LoadRequest
from edgebert.bench.worker import run_worker
from edgebert.card import ModelCard
from edgebert.errors import UnavailableError
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner


class Script:
    """Answers as its file says."""

    def __init__(self, script: dict[str, object], classes: int) -> None:
        self.script, self.classes = script, classes
        self.queries = 0
        self.known: set[bytes] = set()
        self.leaked: list[bytearray] = []
        self.last: NDArray[np.float32] | None = None

    def number(self, name: str) -> float:
        value = self.script.get(name, -1.0)
        assert isinstance(value, (int, float))
        return float(value)

    def every(self, name: str, query: int) -> bool:
        return name in self.script and query % int(self.number(name)) == int(self.number(name)) - 1

    def answer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        query, self.queries = self.queries, self.queries + 1
        if query == self.number("crash_at"):
            sys.stderr.write("the planted crash\n")
            sys.stderr.flush()
            os._exit(9)
        if query == self.number("fail_at"):
            raise RuntimeError("the planted failure")
        self.break_down(query)
        if self.every("skips_every", query) and self.last is not None:
            return self.last
        if "stray_print" in self.script:
            print("a library prints")  # noqa: T201  # what the protocol must survive
            os.write(1, b'{"v": 1, "seq": 1, "type": "done"}\n')
        self.wait(batch)
        answers = self.script["answers"]
        assert isinstance(answers, list)
        decided = int(answers[int(batch[0, 0, 0, 0]) % 16])
        if 0 <= self.number("wrong_from") <= query:
            decided = (decided + 1) % self.classes
        if self.every("garbage_every", query):
            decided = (decided + 1) % self.classes
        self.last = np.eye(self.classes, dtype=np.float32)[[decided]]  # (1, classes)
        sure = 0.9 if self.every("unsure_every", query) else 1.0
        return (self.last * sure).astype(np.float32)

    def break_down(self, query: int) -> None:
        if "leaks_bytes" in self.script:
            self.leaked.append(bytearray(b"x" * int(self.number("leaks_bytes"))))
        if query == self.number("hang_at"):
            while True:
                time.sleep(60)
        if query == self.number("memory_error_at"):
            raise MemoryError("the planted shortage")
        if query == self.number("killed_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if query == self.number("oom_at"):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
            while True:
                self.leaked.append(bytearray(16 << 20))

    def wait(self, batch: NDArray[np.uint8]) -> None:
        if "sleeps_ms" in self.script:
            time.sleep(self.number("sleeps_ms") / 1e3)
            return
        until = time.perf_counter_ns() + round(self.milliseconds(batch) * 1e6)
        while time.perf_counter_ns() < until:
            pass  # a sleep of a fraction of a millisecond lasts as long as the system likes

    def milliseconds(self, batch: NDArray[np.uint8]) -> float:
        if "remembers" in self.script:
            key = batch.tobytes()
            if key in self.known:
                return 0.0
            self.known.add(key)
        slow = self.script.get("slow_at")
        if isinstance(slow, dict) and self.queries - 1 in slow["queries"]:
            return float(slow["ms"])
        return max(0.0, self.number("latency_ms"))


def _babble() -> None:
    while True:
        sys.stderr.write("a library babbles " * 100 + "\n")


def load_script(request: LoadRequest, before_loading: Callable[[], None]) -> LoadedArm:
    """Open the arm that a script describes."""
    content = Path(request.path).read_bytes()
    script = json.loads(content)
    if script.get("unavailable"):
        raise UnavailableError("the planted device is not here", expected="another", hint="edgebert doctor")
    before_loading()
    if "babbles" in script:
        threading.Thread(target=_babble, daemon=True).start()
    card = ModelCard.from_json(script["card"], what="the script")
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    return LoadedArm(
        pipeline=Pipeline(FakeRunner(spec, logits=Script(script, spec.classes).answer), card),
        target=request.target or "cpu",
        backend="fake",
        device="CPU",
        files={Path(request.path).name: len(content)},
        precision=script.get("precision", "fp32"),
        source_model=script.get("source_model"),
        bundle_digest=None,
        import_ns=1_000,
        load_ns=2_000,
    )


if __name__ == "__main__":
    run_worker(load_script)
