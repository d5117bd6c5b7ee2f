"""Fakes for tests of programs that use edgebert: no model, no backend, known answers.

>>> import numpy as np
>>> spec = InputSpec(height=2, width=2, classes=3)
>>> with FakeRunner(spec, logits=[0.0, 1.0, 0.0]) as runner:
...     print(runner.infer(np.zeros((2, 2, 2, 3), np.uint8)).argmax(axis=1))
[1 1]
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgebert.runtime.lifetime import NativeModel
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_batch, check_logits

if TYPE_CHECKING:
    from typing_extensions import Self

LogitsFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class FakeRunner(NativeModel):
    """A `Runner` whose answers and latency are scripted.

    Args:
        spec: what it takes and gives.
        logits: the answer for every image, `spec.classes` numbers; or a function from uint8
            (batch, height, width, 3) to float32 (batch, classes). By default a fixed function of the pixels.
        latency_ms: milliseconds that each call takes, used in turn and again from the start; none by default.
        sleep: called with seconds; a test gives its own to count instead of wait.
    """

    input_spec: InputSpec

    def __init__(
        self,
        spec: InputSpec,
        *,
        logits: Sequence[float] | LogitsFunction | None = None,
        latency_ms: Iterable[float] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.input_spec = spec
        self._latency_ms = itertools.cycle(tuple(latency_ms))
        self._sleep = sleep
        super().__init__(_answering(logits, spec.classes))

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return `("CPU",)`."""
        return ("CPU",)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Return a fake of `source.spec` with the default answers; the files are not looked at."""
        return cls(source.spec)

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Wait for the scripted time and give the scripted answer; see `Runner.infer`."""
        answer: LogitsFunction = self._usable_model()
        images = np.ascontiguousarray(check_batch(batch, self.input_spec))
        latency_ms = next(self._latency_ms, 0.0)
        if latency_ms:
            self._sleep(latency_ms / 1000)
        return check_logits(answer(images), len(images), self.input_spec)

    def properties(self) -> Mapping[str, str]:
        """Return what a fake can truly say of itself."""
        self._usable_model()
        return {"backend": "fake", "version": "none", "device": "CPU", "threads": "1", "precision": "f32"}


def _answering(logits: Sequence[float] | LogitsFunction | None, classes: int) -> LogitsFunction:
    if callable(logits):
        return logits
    if logits is None:
        return lambda batch: _fixed_projection(batch, classes)
    row = np.asarray(logits, np.float32)
    return lambda batch: np.tile(row, (len(batch), 1))  # (batch, classes)


def _fixed_projection(batch: NDArray[np.uint8], classes: int) -> NDArray[np.float32]:
    """Return different logits for different images: sums of the pixels weighted by cosines of many frequencies."""
    pixels = batch.reshape(len(batch), -1).astype(np.float64) / 255  # (batch, height * width * 3)
    place = np.arange(pixels.shape[1])[:, np.newaxis]  # (height * width * 3, 1)
    weights = np.cos(place * (1 + np.arange(classes)) * 0.7)  # (height * width * 3, classes)
    logits: NDArray[np.float32] = (pixels @ weights).astype(np.float32)
    return logits
