"""What timing itself costs in a worker: measured with a pipeline that does nothing, in the loops that time the real one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.recorder import FLAG_REWARM, ROW_COLUMNS, Recorder, timer_overhead_ns
from edgebert.bench.samples import SCENARIOS
from edgebert.bench.scenarios.lateness import late_by, lateness_of
from edgebert.bench.scenarios.open_loop import Arrivals, paced_schedule, run_arrivals
from edgebert.bench.scenarios.query import Asker
from edgebert.bench.schema import HarnessCost
from edgebert.bench.statistics.formulas import percentile
from edgebert.card import ModelCard, Provenance
from edgebert.preprocess import ImageSource, Preprocessing
from edgebert.runtime.pipeline import Pipeline, Prediction
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

_QUERIES = 2_300  # a tenth is not counted
_ARRIVALS = 300
_RATE = 1_000.0  # arrivals per second


def harness_cost() -> HarnessCost:
    """Measure in this process what timing adds: the timed loop around a pipeline that does nothing, and how late it issues."""
    pipeline, images = _idle_pipeline(), [np.zeros((1, 1, 3), np.uint8)]
    recorder = Recorder(pipeline, images)
    recorder.block(0, _QUERIES)
    columns = recorder.columns()
    counted = (columns["flags"] & FLAG_REWARM) == 0
    times = (columns["t_done"] - columns["t_issue"])[counted]
    asker = Asker(pipeline, images)
    run_arrivals([asker], Arrivals(offsets=paced_schedule(_RATE, _ARRIVALS)))
    rows = asker.rows(scenario=SCENARIOS.index("paced"), point=0, block=0)
    rows = rows[(rows[:, ROW_COLUMNS.index("flags")] & FLAG_REWARM) == 0]
    lateness = lateness_of(late_by(*(rows[:, ROW_COLUMNS.index(name)] for name in ("t_sched", "t_issue", "t_done"))))
    assert lateness is not None, "the first arrival finds nothing before it"
    return HarnessCost(
        recorder_ns=percentile(times, 0.5),
        recorder_p99_ns=percentile(times, 0.99),
        timer_overhead_ns=timer_overhead_ns(),
        lateness=lateness,
    )


class _IdlePipeline(Pipeline):
    """Three steps that return what they return always."""

    _batch = np.zeros((1, 1, 1, 3), np.uint8)
    _logits = np.zeros((1, 1), np.float32)
    _answers: ClassVar = [Prediction(label="none", score=1.0, index=0, scores=(1.0,), labels=("none",))]

    def pre(self, image: ImageSource) -> NDArray[np.uint8]:
        return self._batch

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._logits

    def post(self, logits: NDArray[np.float32]) -> list[Prediction]:
        return self._answers


def _idle_pipeline() -> Pipeline:
    card = ModelCard(
        class_names=("none", "other"),
        preprocessing=Preprocessing(height=1, width=1),
        provenance=Provenance(stage="import"),
    )
    return _IdlePipeline(FakeRunner(InputSpec(height=1, width=1, classes=2)), card)
