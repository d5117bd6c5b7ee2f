"""Whether a run's numbers may be used: what a Jetson's sensors saw decides, or is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgebert.bench.environment.jetson.findings import SlowDown
from edgebert.bench.options import BenchOptions
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result, Status
from edgebert.bench.status import status_of

Synthetic = Callable[..., tuple[Result, Samples]]
Judge = Callable[..., Status]


@pytest.fixture
def judge(synthetic: Synthetic) -> Judge:
    """Return a function that judges a made-up run by what its sensors saw."""
    result, _ = synthetic()

    def of(slow_downs: Sequence[SlowDown] = (), throttle: tuple[int | None, int | None] = (None, None)) -> Status:
        return status_of(
            result.arms,
            result.comparisons,
            result.interference,
            options=BenchOptions(data="x"),
            images=(30, 30),
            throttle=throttle,
            virtualised=False,
            notes=(),
            interrupted=None,
            slow_downs=slow_downs,
        )

    return of


def test_status_of_is_throttled_where_a_slow_down_is_proven(judge: Judge) -> None:
    status = judge([SlowDown(throttled=True, text="oc2: 3 events"), SlowDown(throttled=True, text="an alert")])
    assert status.throttled is True
    assert status.reasons[-1] == "the processor was throttled while timing: oc2: 3 events; an alert"


def test_status_of_tells_what_decides_nothing(judge: Judge) -> None:
    status = judge([SlowDown(throttled=False, text="oc3: 1 event")])
    assert status.throttled is None
    assert "oc3: 1 event" in status.warnings
    assert not any("oc3" in reason for reason in status.reasons)


@pytest.mark.parametrize(("throttle", "expected"), [((None, None), None), ((4, 4), False), ((4, 5), True)])
def test_status_of_goes_by_the_counter_alone_without_findings(
    judge: Judge, throttle: tuple[int | None, int | None], expected: bool | None
) -> None:
    assert judge(throttle=throttle).throttled is expected
