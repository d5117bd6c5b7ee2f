from __future__ import annotations

import numpy as np
import pytest

from edgebert.bench.environment.jetson.findings import SlowDown, counted, slow_down_findings, timed_spans
from edgebert.bench.environment.telemetry import Telemetry, throttled_blocks
from edgebert.bench.samples import Samples


def telemetry(**columns: list[int]) -> Telemetry:
    arrays = {name: np.array(values, np.int64) for name, values in columns.items()}
    length = len(next(iter(arrays.values())))
    return Telemetry(t_ns=100 * np.arange(length, dtype=np.int64), columns=arrays, reasons={}, coverage={})


def found(spans: list[tuple[int, int]], **columns: list[int]) -> tuple[SlowDown, ...]:
    return slow_down_findings(telemetry(**columns), spans)


def test_findings_take_cumulative_counters_as_the_difference_over_the_timed_spans() -> None:
    # 3 before the first span, 1 and 2 in the spans, 5 between them.
    seen = [0, 3, 3, 4, 9, 9, 11, 20]
    assert counted(telemetry(oc2_events=seen), "oc2_events", [(150, 350), (450, 650)]) == 3
    assert found([(150, 350), (450, 650)], oc2_events=seen) == (
        SlowDown(throttled=True, text="oc2 (average current above its limit): 3 events while timing"),
    )


def test_findings_say_nothing_of_what_was_counted_before_the_run() -> None:
    assert found([(100, 300)], oc1_events=[900, 900, 900, 900]) == ()


def test_counted_skips_missing_values_and_a_counter_that_began_anew() -> None:
    assert counted(telemetry(oc1_events=[5, -1, -1, 7]), "oc1_events", [(50, 300)]) == 2
    assert counted(telemetry(oc1_events=[5, 5, 0, 0]), "oc1_events", [(50, 300)]) == 0
    assert counted(telemetry(oc1_events=[-1, -1]), "oc1_events", [(0, 100)]) is None
    assert counted(telemetry(other=[1]), "oc1_events", [(0, 100)]) is None


def test_findings_tell_momentary_over_current_and_decide_nothing_by_it() -> None:
    (only,) = found([(0, 200)], oc3_events=[0, 1, 1])
    assert not only.throttled
    assert only.text.startswith("oc3 (momentary current above its limit): 1 event while timing")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("throttle_alerts", "a throttle alert was raised in 2 of 3"),
        ("gpu_cap_state", "heat capped the GPU's clock in 2 of 3"),
    ],
)
def test_findings_see_a_cooling_device_at_work_within_the_spans_only(column: str, text: str) -> None:
    (only,) = found([(100, 300)], **{column: [0, 1, 0, 2, 0]})
    assert only.throttled
    assert text in only.text
    assert found([(100, 300)], **{column: [7, 0, 0, 0, 7]}) == ()


def clocks(
    clock: list[int], *, lowest: int = 1_000, highest: int = 1_000, load: int | None = 990
) -> dict[str, list[int]]:
    columns = {
        "gpu_clock_khz": clock,
        "gpu_clock_min_khz": [lowest] * len(clock),
        "gpu_clock_max_khz": [highest] * len(clock),
    }
    return columns if load is None else {**columns, "gpu_load_permille": [load] * len(clock)}


def test_findings_take_a_held_clock_that_sags_for_throttling() -> None:
    (only,) = found([(0, 300)], **clocks([1_000, 980, 980, 1_000]))
    assert only.throttled
    assert only.text == "the GPU's clock is held, and was below 99 % of 1 MHz in 2 of 4 samples"


@pytest.mark.parametrize("clock", [[1_000] * 4, [990] * 4, [0, 0, 0, 1_000]])
def test_findings_bear_one_percent_and_a_gpu_that_is_gated(clock: list[int]) -> None:
    assert found([(0, 300)], **clocks(clock)) == ()


def test_findings_measure_against_the_highest_limit_for_heat_lowers_that_of_the_moment() -> None:
    columns = clocks([1_000, 700, 700, 700])
    columns["gpu_clock_max_khz"] = [1_000, 700, 700, 700]
    (only,) = found([(0, 300)], **columns)
    assert only.throttled


def test_findings_cannot_tell_a_governor_from_throttling_and_say_so() -> None:
    (only,) = found([(0, 300)], **clocks([600] * 4, lowest=300))
    assert not only.throttled
    assert "cannot be told apart" in only.text
    assert "sudo jetson_clocks" in only.text


def test_findings_expect_no_full_clock_of_an_idle_gpu_that_is_not_held() -> None:
    assert found([(0, 300)], **clocks([300] * 4, lowest=300, load=10)) == ()
    assert found([(0, 300)], **clocks([300] * 4, lowest=300, load=None)) == ()


def test_findings_are_none_of_another_computer() -> None:
    assert found([(0, 300)], clock_khz=[1, 2, 3, 4]) == ()


def test_timed_spans_are_those_of_the_launches() -> None:
    samples = Samples(
        {
            "block_launch": np.array([0, 1, 0, 1]),
            "block_start_ns": np.array([10, 100, 20, 130]),
            "block_wall_ns": np.array([5, 5, 5, 5]),
        }
    )
    assert timed_spans(samples) == [(10, 25), (100, 135)]


@pytest.mark.parametrize("name", ["oc1_events", "oc2_events"])
def test_throttled_blocks_counts_events_of_the_regulators(name: str) -> None:
    seen = telemetry(**{name: [0, 0, 1, 1]})
    starts, ends = np.array([10, 110]), np.array([90, 190])
    assert throttled_blocks(seen, starts, ends).tolist() == [False, True]


def test_throttled_blocks_bears_momentary_over_current() -> None:
    assert not throttled_blocks(telemetry(oc3_events=[0, 9]), np.array([10]), np.array([90])).any()


@pytest.mark.parametrize("name", ["throttle_alerts", "gpu_cap_state"])
def test_throttled_blocks_sees_a_state_that_is_raised(name: str) -> None:
    seen = telemetry(**{name: [0, 0, 1, 0, 0, 0]})
    starts, ends = np.array([10, 110, 310]), np.array([90, 290, 390])
    assert throttled_blocks(seen, starts, ends).tolist() == [False, True, False]
    assert seen.sees_throttling


def test_throttled_blocks_takes_no_missing_state_for_one_that_is_raised() -> None:
    assert not throttled_blocks(telemetry(throttle_alerts=[-1, -1]), np.array([10]), np.array([90])).any()
