from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from edgebert.bench.energy import energy_of, idle_columns, idle_spans, missing_energy, trapezoid_j
from edgebert.bench.recorder import FLAG_ERROR, FLAG_WARMUP
from edgebert.bench.samples import BLOCK_COLUMNS, QUERY_COLUMNS, SCENARIOS, Samples
from edgebert.bench.schema import Arm, Energy, Result

S = 1_000_000_000
STEP = S // 10


def recorded(
    *,
    windows: tuple[tuple[int, int], ...] = ((10, 20), (20, 30)),
    idle: tuple[tuple[int, int], ...] = ((0, 9), (31, 40)),
    rate: int = 100,
    watts: Callable[[int], float] = lambda t: 15.0 if 10 * S <= t < 30 * S else 5.0,
    rails: dict[str, float] | None = None,
) -> Samples:
    """Return samples of one arm in `energy`: `rate` images a second in each window, and rails that share the power."""
    t_ns = np.arange(0, 40 * S + 1, STEP, dtype=np.int64)
    power = np.array([1e6 * watts(int(t)) for t in t_ns])
    shares = {"vdd_in": 1.0, "vdd_cpu_gpu_cv": 0.5, "vdd_soc": 0.2} if rails is None else rails
    done = np.concatenate(
        [np.arange(start * S + S // rate, end * S + 1, S // rate) for start, end in windows] or [np.zeros(0, np.int64)]
    )
    queries = {name: np.zeros(len(done), np.int64) for name in QUERY_COLUMNS}
    queries |= {"t_done": done, "scenario": np.full(len(done), SCENARIOS.index("energy"))}
    blocks = {name: np.zeros(len(windows), np.int64) for name in BLOCK_COLUMNS}
    blocks |= {
        "block_scenario": np.full(len(windows), SCENARIOS.index("energy")),
        "block_start_ns": np.array([start * S for start, _ in windows], np.int64),
        "block_wall_ns": np.array([(end - start) * S for start, end in windows], np.int64),
    }
    telemetry = {f"telemetry_power_{name}_uw": (power * share).astype(np.int64) for name, share in shares.items()}
    spans = [(start * S, end * S) for start, end in idle]
    return Samples({**queries, **blocks, "telemetry_t_ns": t_ns, **telemetry, **idle_columns(spans)})


def stated(samples: Samples) -> Energy:
    found = energy_of(samples, 0, "energy")
    assert isinstance(found, Energy), found
    return found


def test_trapezoid_is_exact_for_power_that_rises_evenly() -> None:
    t_ns = np.array([0, 1, 2, 3, 4], np.int64) * S
    # From 1 W at 0.5 s to 7 W at 3.5 s.
    assert trapezoid_j(t_ns, 2_000_000 * np.arange(5), S // 2, 7 * S // 2) == pytest.approx(12.0)


def test_trapezoid_reads_between_two_samples() -> None:
    assert trapezoid_j(np.array([0, 10 * S]), np.array([4_000_000, 4_000_000]), S, 3 * S) == pytest.approx(8.0)


def test_energy_is_what_is_above_idle_for_each_image() -> None:
    found = stated(recorded())
    assert [found.idle_w, found.idle_before_w, found.idle_after_w] == pytest.approx([5.0, 5.0, 5.0])
    assert found.mean_w == pytest.approx(15.0, rel=0.01)
    assert found.gross_j_per_image == pytest.approx(0.15, rel=0.01)
    assert found.above_idle_j_per_image == pytest.approx(0.10, rel=0.01)
    assert (found.windows, found.images, found.seconds) == (2, 1_800, 18.0)


def test_energy_counts_the_input_rail_once_and_nothing_behind_it() -> None:
    found = stated(recorded())
    assert (found.scope, found.rails) == ("input rail of the module", ("VDD_IN",))


def test_energy_calls_a_sum_of_rails_a_sum() -> None:
    found = stated(recorded(rails={"vdd_gpu_soc": 0.5, "vdd_cpu_cv": 0.2, "vin_sys_5v0": 0.3}))
    assert (found.scope, found.rails) == ("sum of monitored rails", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
    assert found.mean_w == pytest.approx(15.0, rel=0.01)


def test_energy_takes_the_mean_of_idle_before_and_after() -> None:
    found = stated(recorded(watts=lambda t: 15.0 if 10 * S <= t < 30 * S else 5.0 if t < 10 * S else 7.0))
    assert [found.idle_before_w, found.idle_after_w] == pytest.approx([5.0, 7.0])
    assert found.above_idle_j_per_image == pytest.approx(0.09, rel=0.02)


def test_energy_leaves_out_the_first_second_in_which_the_sensor_shows_what_was_before() -> None:
    def lagging(t: int) -> float:
        return 15.0 if 10 * S + S // 2 <= t < 30 * S else 5.0 if t < 30 * S or t > 31 * S - STEP else 15.0

    assert stated(recorded(watts=lagging)).above_idle_j_per_image == pytest.approx(0.10, rel=0.01)


def test_energy_keeps_negative_power() -> None:
    found = stated(recorded(rails={"vdd_gpu": -0.1, "vdd_cpu_soc_mss": 1.1}))
    assert found.mean_w == pytest.approx(15.0, rel=0.01)


def test_energy_has_an_interval_over_three_windows() -> None:
    assert stated(recorded()).above_idle_ci95 is None
    windows = ((10, 16), (16, 22), (22, 28))
    found = stated(
        recorded(windows=windows, watts=lambda t: (14.0, 15.0, 16.0)[t // (6 * S) % 3] if 10 * S <= t < 28 * S else 5.0)
    )
    assert found.above_idle_ci95 is not None
    low, high = found.above_idle_ci95
    assert low < found.above_idle_j_per_image < high


def test_energy_does_not_count_images_that_failed() -> None:
    samples = recorded()
    flags = samples["flags"].copy()
    flags[::2] = FLAG_ERROR
    flags[1::4] = FLAG_WARMUP
    found = stated(Samples({**samples.columns, "flags": flags}))
    assert found.images == 450


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (recorded(rails={}), "no power rail was read"),
        (recorded(idle=()), "idle power was not measured"),
        (recorded(idle=((0, 1),)), "idle power was not measured"),
        (recorded(windows=((10, 12), (12, 13))), "no window of 4 s or longer"),
        (recorded(windows=()), "no window of 4 s or longer"),
    ],
)
def test_energy_of_gives_a_reason(samples: Samples, reason: str) -> None:
    found = energy_of(samples, 0, "energy")
    assert isinstance(found, str)
    assert reason in found


def test_energy_of_states_nothing_where_samples_are_missing() -> None:
    samples = recorded()
    power = samples["telemetry_power_vdd_in_uw"].copy()
    power[130:140] = -1  # a second of the first window
    found = energy_of(Samples({**samples.columns, "telemetry_power_vdd_in_uw": power}), 0, "energy")
    assert found == "less than 95 % of the expected samples of power have a value"


def test_energy_of_states_nothing_of_a_window_without_an_answer() -> None:
    samples = recorded()
    columns = {**samples.columns, "flags": np.full_like(samples["flags"], FLAG_ERROR)}
    assert energy_of(Samples(columns), 0, "energy") == "a window without an answer"


def test_energy_tells_how_often_the_sensor_shows_something_new() -> None:
    def slow(t: int) -> float:
        return 15.0 + (t // (S // 2)) % 7 if 10 * S <= t < 30 * S else 5.0 + (t // (S // 2)) % 3

    found = stated(recorded(watts=slow))
    assert (found.sample_interval_ms, found.change_interval_ms) == (100.0, 500.0)


def test_idle_columns_and_spans_are_inverse() -> None:
    spans = [(1, 2), (5, 9)]
    assert idle_spans(Samples(idle_columns(spans))) == spans
    assert idle_columns([]) == {}
    assert idle_spans(Samples({})) == []


def test_missing_energy_names_the_scenarios_that_would_have_one(
    synthetic: Callable[..., tuple[Result, Samples]],
) -> None:
    result, samples = synthetic()
    arm: Arm = result.arms[0]
    assert missing_energy(samples, [arm]) == {}
    longer = dataclasses.replace(arm, scenarios=(*arm.scenarios, dataclasses.replace(arm.scenarios[0], name="energy")))
    assert missing_energy(samples, [longer]) == {f"arms.{arm.id}.scenarios.energy.energy": "no power rail was read"}
