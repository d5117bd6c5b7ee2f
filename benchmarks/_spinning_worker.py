"""A worker of the harness whose arm wastes time, where the artefact's name asks for it: a slowdown of known size.

An artefact called `spinning…` busy-waits after every inference for `EDGEBERT_SPIN_NS` nanoseconds; any other is measured as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.loading import LoadedArm, LoadRequest, load_arm
from edgebert.bench.worker import run_worker
from edgebert.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from edgebert.card import ModelCard
    from edgebert.runtime.runner import Runner

SPIN_VARIABLE = "EDGEBERT_SPIN_NS"
NAME = "spinning"


class _Spinning(Pipeline):
    """A pipeline whose inference takes longer by a fixed time."""

    def __init__(self, runner: Runner, card: ModelCard, spin_ns: int) -> None:
        super().__init__(runner, card)
        self._spin_ns = spin_ns

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answer, then spin."""
        logits = super().infer(batch)
        until = time.perf_counter_ns() + self._spin_ns
        while time.perf_counter_ns() < until:
            pass
        return logits


def load(request: LoadRequest, before_loading: Callable[[], None]) -> LoadedArm:
    """Open an arm, and make it spin if its name asks for it."""
    arm = load_arm(request, before_loading)
    if not Path(request.path).name.startswith(NAME):
        return arm
    spin_ns = int(os.environ.get(SPIN_VARIABLE, "0"))
    return replace(arm, pipeline=_Spinning(arm.pipeline.runner, arm.pipeline.card, spin_ns))


if __name__ == "__main__":
    run_worker(load)
