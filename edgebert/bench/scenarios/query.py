"""One question to a pipeline, of one image or of several at once, with the stamps of its stages; every scenario asks through this.

    t_sched ── queue ── t_issue ── pre ── t_pre_end ── infer ── t_inf_end ── post ── t_done

Each thread has an `Asker` of its own, so that nothing is shared while timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, ROW_COLUMNS, answer_rows
from edgebert.bench.samples import IntArray
from edgebert.bench.several import answer_code
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline, Prediction

Clock = Callable[[], int]


@dataclass(slots=True)
class Asker:
    """Asks one pipeline about a cycle of images and keeps every stamp.

    Attributes:
        pipeline: what is timed.
        images: uint8 (height, width, 3) RGB each; image n is `images[n % len(images)]`.
        clock: monotonic nanoseconds; a test gives its own.
        first_error: the message of the first question that failed.
    """

    pipeline: Pipeline
    images: Sequence[RgbImage]
    clock: Clock = time.perf_counter_ns
    first_error: str | None = None
    _stamps: list[tuple[int, ...]] = field(default_factory=list)
    _answers: list[Sequence[Prediction | None]] = field(default_factory=list)

    def ask(self, first: int, count: int, *, due: int | None = None, flags: int = 0) -> int:
        """Ask about `count` images from number `first` on, in one call of the model; return when it was answered.

        Args:
            first: number of the first image.
            count: at least 1.
            due: when the question was due; the moment of asking if not given.
            flags: of its rows.
        """
        clock, pipeline, images, many = self.clock, self.pipeline, self.images, len(self.images)
        answers: Sequence[Prediction | None] = ()
        issue = pre_end = inf_end = clock()
        try:
            if count == 1:
                batch = pipeline.pre(images[first % many])
            else:  # (count, height, width, 3)
                batch = np.concatenate([pipeline.pre(images[n % many]) for n in range(first, first + count)])
            pre_end = clock()
            logits = pipeline.infer(batch)
            inf_end = clock()
            answers = pipeline.post(logits)
        except Exception as error:  # noqa: BLE001  # whatever a backend raises: a failed question is kept, and makes the arm invalid
            flags, inf_end = self._failed(error, flags), max(pre_end, inf_end)
        done = clock()
        self._keep(first, count, flags, (issue if due is None else due, issue, pre_end, inf_end, done), answers)
        return done

    def ask_singly(self, first: int, count: int, *, due: int | None = None, flags: int = 0) -> int:
        """Ask about `count` images one after the other, as one question; return when the last was answered.

        The time of each stage is the sum over the images, so the stages add up to the whole; what lies between two images
        (a fraction of a microsecond) counts as `post`.
        """
        clock, pipeline, images = self.clock, self.pipeline, self.images
        answers: list[Prediction | None] = []
        pre_ns = infer_ns = 0
        issue = clock()
        try:
            for number in range(first, first + count):
                started = clock()
                batch = pipeline.pre(images[number % len(images)])
                pre_end = clock()
                logits = pipeline.infer(batch)
                infer_ns += clock() - pre_end
                pre_ns += pre_end - started
                answers.append(pipeline.post(logits)[0])
        except Exception as error:  # noqa: BLE001  # as above
            flags, answers = self._failed(error, flags), []
        done = clock()
        stamps = (issue if due is None else due, issue, issue + pre_ns, issue + pre_ns + infer_ns, done)
        self._keep(first, count, flags, stamps, answers)
        return done

    def drop(self, number: int, *, due: int, at: int) -> None:
        """Keep a row for an image that nobody looked at: it was due at `due`, and given up at `at`."""
        self._keep(number, 1, FLAG_DROPPED, (due, at, at, at, at), ())

    def forget_last(self, *, failed: bool = False) -> None:
        """Forget the last question; one that failed only where `failed` says so."""
        if failed or not self._stamps[-1][0] & FLAG_ERROR:
            self._stamps.pop()
            self._answers.pop()

    @property
    def questions(self) -> int:
        """How many questions are kept."""
        return len(self._stamps)

    def rows(self, *, scenario: int, point: int, block: int) -> IntArray:
        """Return int64 (images, ROW_COLUMNS) of all that is kept, in the order of asking; one row for each image."""
        code, many = answer_code(self.pipeline.card), len(self.images)
        stamps: list[tuple[int, ...]] = []
        answers: list[Prediction | None] = []
        for (flags, first, count, *times), found in zip(self._stamps, self._answers, strict=True):
            stamps.extend((scenario, point, block, flags, (first + n) % many, *times) for n in range(count))
            answers.extend(found or (None,) * count)
        if not stamps:
            return np.zeros((0, len(ROW_COLUMNS)), np.int64)
        return np.column_stack([np.array(stamps, np.int64), answer_rows(answers, code)])

    def _keep(
        self, first: int, count: int, flags: int, times: tuple[int, ...], answers: Sequence[Prediction | None]
    ) -> None:
        self._stamps.append((flags, first, count, *times))
        self._answers.append(answers)

    def _failed(self, error: Exception, flags: int) -> int:
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"
        return flags | FLAG_ERROR
