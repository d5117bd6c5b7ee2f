"""What a Classifier counts while it serves, as a frozen snapshot and as text for Prometheus.

Latencies go into histograms whose bounds never change, twenty to a factor of ten (each 12 % above the one before), from a
microsecond to 100 seconds: memory does not grow, and two snapshots can be subtracted. A quantile is read off the histogram,
so it is exact to the width of a bucket.

>>> tally = Tally()
>>> tally.answered_alone(0, 10_000, 2_010_000, 2_020_000)
>>> counters = tally.counters(digest="ab" * 32, queue_depth=0)
>>> counters.answers, counters.batch_sizes[1]
(1, 1)
>>> 1.7 < counters.infer.p50_ms < 2.3
True
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stage = Literal["preprocess", "infer", "postprocess", "queue", "whole"]

STAGES: tuple[Stage, ...] = ("preprocess", "infer", "postprocess", "queue", "whole")
PROMETHEUS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PER_DECADE = 20
_DECADES = 8  # from 1 microsecond to 100 seconds
BOUNDS_NS = tuple(round(1_000 * 10 ** (step / _PER_DECADE)) for step in range(_DECADES * _PER_DECADE + 1))
_BOUNDS = np.array(BOUNDS_NS, np.int64)
_FRESH = 256  # answers that are written down before they are counted, some 60 microseconds for all of them
_EXPORTED = range(0, len(BOUNDS_NS), 4)  # Prometheus gets every fourth bound, five to a factor of ten
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How long something took, each time.

    Attributes:
        counts: how many took at most as long as the bound at the same place of `BOUNDS_NS`, and longer than the one
            before; one more at the end for what took longer than all.
        sum_s: all of them together, in seconds.
    """

    counts: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def p50_ms(self) -> float | None:
        """The median in milliseconds; None of nothing."""
        return self.quantile_ms(0.5)

    @property
    def p90_ms(self) -> float | None:
        """The 90th percentile in milliseconds; None of nothing."""
        return self.quantile_ms(0.9)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile in milliseconds; None of nothing."""
        return self.quantile_ms(0.99)

    def quantile_ms(self, share: float) -> float | None:
        """Return the time in milliseconds that this share of them, in [0, 1], took at most; None where there are none.

        Inside a bucket they are taken to lie evenly on a logarithmic scale, so it is at most 12 % off. What took longer
        than the last bound counts as that bound.
        """
        wanted = share * self.count
        if not self.count:
            return None
        below = 0
        for place, count in enumerate(self.counts):
            if count and below + count >= wanted:
                return _inside(place, (wanted - below) / count) / 1e6
            below += count
        return BOUNDS_NS[-1] / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What a Classifier did since it was opened.

    Attributes:
        digest: of the bundle that serves now.
        answers: images answered, by `predict`, `predict_batch` and `submit` together.
        errors: name of the error's class -> how many images or calls failed with it.
        cancelled: submitted images that were cancelled before they were run.
        swaps: bundles that took over.
        failed_swaps: calls of `swap` after which the old bundle went on serving.
        queue_depth: images that wait now: submitted ones, and those of an `AsyncClassifier` from `await predict` on.
        queue_depth_max: the most that ever waited.
        batch_sizes: images in one call of the model -> how many calls had as many.
        preprocess: decoding and resizing, for each image.
        infer: each call of the model, whatever its batch.
        postprocess: turning the logits of each such call into answers.
        queue: how long each submitted image waited: for room, for a thread that decodes it, and then for the call of the model.
        whole: each `predict`, each submitted image, each `predict_batch`, from the call to the answer.
    """

    digest: str
    answers: int
    errors: Mapping[str, int]
    cancelled: int
    swaps: int
    failed_swaps: int
    queue_depth: int
    queue_depth_max: int
    batch_sizes: Mapping[int, int]
    preprocess: Histogram
    infer: Histogram
    postprocess: Histogram
    queue: Histogram
    whole: Histogram

    def stage(self, name: Stage) -> Histogram:
        """Return the histogram of this name, one of `STAGES`."""
        histogram: Histogram = getattr(self, name)
        return histogram


class _Live:
    """A histogram that still grows; its owner locks."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.total_ns = 0

    def add(self, nanoseconds: int) -> None:
        self.counts[bisect_left(BOUNDS_NS, nanoseconds)] += 1
        self.total_ns += nanoseconds

    def add_all(self, nanoseconds: NDArray[np.int64]) -> None:
        places, counts = np.unique(np.searchsorted(_BOUNDS, nanoseconds), return_counts=True)
        for place, count in zip(places.tolist(), counts.tolist(), strict=True):
            self.counts[place] += count
        total = int(nanoseconds.sum())
        self.total_ns += total

    def frozen(self) -> Histogram:
        return Histogram(counts=tuple(self.counts), sum_s=self.total_ns / 1e9)


class Tally:
    """The counters while they grow; safe from threads. Times are nanoseconds of `time.perf_counter_ns`.

    A signal handler may count as well, in the middle of what its own thread is counting. Python runs it where a function is called
    or a loop begins anew, and so nothing of that kind stands between the reading of a number and its writing.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._fresh: deque[tuple[int, int, int, int]] = deque()  # its `append` and `popleft` are atomic
        self._answers = 0  # those that `_alone` does not count
        self._alone = 0  # images answered by a call of their own in `predict`
        self._errors: defaultdict[str, int] = defaultdict(int)
        self._cancelled = 0
        self._swaps = 0
        self._failed_swaps = 0
        self._queue_depth_max = 0
        self._batch_sizes: defaultdict[int, int] = defaultdict(int)
        self._preprocess, self._infer, self._postprocess, self._queue, self._whole = (_Live() for _ in STAGES)

    def answered_alone(self, asked: int, prepared: int, inferred: int, done: int) -> None:
        """Count one image that was answered by a call of its own: when it was asked for, and when each step was done."""
        # Every `predict` pays for this, with caches that the model has just emptied: it is only written down, and counted later.
        self._fresh.append((asked, prepared, inferred, done))
        if len(self._fresh) >= _FRESH:
            self._count_fresh()

    def _count_fresh(self) -> None:
        """Count what `answered_alone` wrote down."""
        with self._lock:
            stamps: list[tuple[int, int, int, int]] = []
            with suppress(IndexError):  # a signal handler that asks for the counters takes the rest
                for _ in range(len(self._fresh)):
                    stamps.append(self._fresh.popleft())
            if not stamps:
                return
            asked, prepared, inferred, done = np.array(stamps, np.int64).T
            count = len(stamps)
            self._alone += count
            self._preprocess.add_all(prepared - asked)
            self._infer.add_all(inferred - prepared)
            self._postprocess.add_all(done - inferred)
            self._whole.add_all(done - asked)

    def ran(self, images: int, started: int, inferred: int, done: int) -> None:
        """Count one call of the model with as many images."""
        with self._lock:
            self._batch_sizes[images] += 1
            self._infer.add(inferred - started)
            self._postprocess.add(done - inferred)

    def prepared(self, nanoseconds: int) -> None:
        """Count the preprocessing of one image."""
        with self._lock:
            self._preprocess.add(nanoseconds)

    def answered(self, images: int, whole: int) -> None:
        """Count a request for as many images that took so long."""
        with self._lock:
            self._answers += images
            self._whole.add(whole)

    def waited(self, nanoseconds: int) -> None:
        """Count how long a submitted image waited."""
        with self._lock:
            self._queue.add(nanoseconds)

    def failed(self, error: BaseException) -> None:
        """Count an error by the name of its class."""
        with self._lock:
            self._errors[type(error).__name__] += 1

    def cancelled(self) -> None:
        """Count a submitted image that nobody wants any more."""
        with self._lock:
            self._cancelled += 1

    def swapped(self, outcome: Literal["done", "failed"]) -> None:
        """Count a swap, or one after which the old bundle went on serving."""
        with self._lock:
            if outcome == "done":
                self._swaps += 1
            else:
                self._failed_swaps += 1

    def queued(self, depth: int) -> None:
        """Remember the deepest queue."""
        if depth > self._queue_depth_max:
            with self._lock:
                if depth > self._queue_depth_max:  # noqa: PLR1730  # `max` would be a call between reading and writing
                    self._queue_depth_max = depth

    def is_held_here(self) -> bool:
        """Whether this thread was interrupted while it was counting."""
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]  # typeshed leaves it out
        return owned

    def counters(self, *, digest: str, queue_depth: int) -> Counters:
        """Return all of it as of now."""
        self._count_fresh()
        with self._lock:
            batch_sizes = dict(self._batch_sizes)
            if self._alone:
                batch_sizes[1] = batch_sizes.get(1, 0) + self._alone
            return Counters(
                digest=digest,
                answers=self._answers + self._alone,
                errors=MappingProxyType(dict(self._errors)),
                cancelled=self._cancelled,
                swaps=self._swaps,
                failed_swaps=self._failed_swaps,
                queue_depth=queue_depth,
                queue_depth_max=max(self._queue_depth_max, queue_depth),
                batch_sizes=MappingProxyType(dict(sorted(batch_sizes.items()))),
                preprocess=self._preprocess.frozen(),
                infer=self._infer.frozen(),
                postprocess=self._postprocess.frozen(),
                queue=self._queue.frozen(),
                whole=self._whole.frozen(),
            )


def prometheus_text(counters: Counters | Mapping[str, Counters]) -> str:
    r"""Return the counters in Prometheus' text format, version 0.0.4; serve it as `PROMETHEUS_CONTENT_TYPE`.

    Args:
        counters: of one Classifier; or of several by a name each, which becomes the label `classifier`.

    >>> text = prometheus_text(Tally().counters(digest="", queue_depth=0))
    >>> text.splitlines()[2]
    'edgebert_answers_total 0'
    """
    named = {"": counters} if isinstance(counters, Counters) else counters
    labelled = [({"classifier": name} if name else {}, each) for name, each in named.items()]
    lines: list[str] = []
    for name, kind, says, samples in _families():
        lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]
        for labels, each in labelled:
            lines += [f"{name}{suffix}{_labels({**labels, **more})} {value}" for suffix, more, value in samples(each)]
    return "\n".join(lines) + "\n"


_Samples = Iterable[tuple[str, dict[str, str], str]]  # suffix of the name, labels, value
_SamplesOf = Callable[[Counters], _Samples]


def _families() -> list[tuple[str, str, str, _SamplesOf]]:
    return [
        ("edgebert_answers_total", "counter", "Images answered.", lambda c: [("", {}, str(c.answers))]),
        (
            "edgebert_errors_total",
            "counter",
            "Images or calls that failed, by the class of the error.",
            lambda c: [("", {"kind": kind}, str(count)) for kind, count in sorted(c.errors.items())],
        ),
        (
            "edgebert_cancelled_total",
            "counter",
            "Submitted images that were cancelled before they were run.",
            lambda c: [("", {}, str(c.cancelled))],
        ),
        (
            "edgebert_swaps_total",
            "counter",
            "Swaps of the bundle, by their outcome.",
            lambda c: [("", {"outcome": "done"}, str(c.swaps)), ("", {"outcome": "failed"}, str(c.failed_swaps))],
        ),
        (
            "edgebert_queue_depth",
            "gauge",
            "Images that wait now.",
            lambda c: [("", {}, str(c.queue_depth))],
        ),
        (
            "edgebert_queue_depth_max",
            "gauge",
            "The most images that ever waited.",
            lambda c: [("", {}, str(c.queue_depth_max))],
        ),
        (
            "edgebert_bundle_info",
            "gauge",
            "The bundle that serves now, by its digest.",
            lambda c: [("", {"digest": c.digest}, "1")],
        ),
        ("edgebert_batch_images", "histogram", "Images in one call of the model.", _batch_samples),
        ("edgebert_latency_seconds", "histogram", "How long each stage of an answer took.", _latency_samples),
    ]


def _batch_samples(counters: Counters) -> _Samples:
    sizes = counters.batch_sizes
    for bound in _BATCH_BOUNDS:
        within = sum(count for size, count in sizes.items() if size <= bound)
        yield "_bucket", {"le": str(bound)}, str(within)
    yield "_bucket", {"le": "+Inf"}, str(sum(sizes.values()))
    yield "_sum", {}, str(sum(size * count for size, count in sizes.items()))
    yield "_count", {}, str(sum(sizes.values()))


def _latency_samples(counters: Counters) -> _Samples:
    for stage in STAGES:
        histogram, within, done = counters.stage(stage), 0, 0
        for place in _EXPORTED:
            within += sum(histogram.counts[done : place + 1])
            done = place + 1
            yield "_bucket", {"stage": stage, "le": repr(BOUNDS_NS[place] / 1e9)}, str(within)
        yield "_bucket", {"stage": stage, "le": "+Inf"}, str(histogram.count)
        yield "_sum", {"stage": stage}, repr(histogram.sum_s)
        yield "_count", {"stage": stage}, str(histogram.count)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escape = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escape)}"' for name, value in labels.items()) + "}"


def _inside(place: int, share: float) -> float:
    """Return the nanoseconds at this share of the bucket's width, on a logarithmic scale."""
    if place == 0:
        return BOUNDS_NS[0] * share
    if place == len(BOUNDS_NS):
        return float(BOUNDS_NS[-1])
    low, high = BOUNDS_NS[place - 1], BOUNDS_NS[place]
    return float(low * (high / low) ** share)
