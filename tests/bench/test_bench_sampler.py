from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgebert.bench.environment.sampler import NICENESS, Sampling, next_tick
from edgebert.bench.environment.sampler_process import Sampler
from edgebert.bench.environment.source import Source
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.bench.environment.telemetry import Telemetry, throttled_blocks
from edgebert.bench.worker_process import worker_environment

RecordedTree = Callable[[str], Path]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sampler reads /proc and /sys")


def telemetry(**columns: list[int]) -> Telemetry:
    arrays = {name: np.array(values, np.int64) for name, values in columns.items()}
    length = len(next(iter(arrays.values())))
    return Telemetry(t_ns=100 * np.arange(length, dtype=np.int64), columns=arrays, reasons={}, coverage={})


def blocks(*spans: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = zip(*spans, strict=True)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def test_throttled_blocks_finds_the_block_in_which_a_counter_moved() -> None:
    seen = telemetry(throttle_events=[3, 3, 3, 4, 4, 4, 4])
    assert throttled_blocks(seen, *blocks((10, 190), (210, 390), (410, 590))).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["throttle_events", "throttle_ms", "quota_events", "quota_us"])
def test_throttled_blocks_looks_at_every_counter(name: str) -> None:
    assert throttled_blocks(telemetry(**{name: [0, 1]}), *blocks((10, 90))).tolist() == [True]


def test_throttled_blocks_skips_missing_values_of_a_counter() -> None:
    seen = telemetry(throttle_events=[3, -1, 3, -1, 4])
    assert throttled_blocks(seen, *blocks((110, 190), (210, 290))).tolist() == [False, True]


def test_throttled_blocks_does_not_take_pressure_or_steal_for_throttling() -> None:
    seen = telemetry(steal_ticks=[0, 9], pressure_cpu_us=[0, 9])
    assert throttled_blocks(seen, *blocks((10, 90))).tolist() == [False]
    assert not seen.sees_throttling


def test_throttled_blocks_finds_a_block_that_is_slow_from_end_to_end() -> None:
    clock = [4_000] * 10 + [3_000] * 10 + [4_000] * 20
    spans = blocks((0, 900), (1_000, 1_900), (2_000, 2_900), (3_000, 3_900))
    assert throttled_blocks(telemetry(clock_khz=clock), *spans).tolist() == [False, True, False, False]


def test_throttled_blocks_bears_five_percent() -> None:
    spans = blocks((0, 900), (1_000, 1_900), (2_000, 2_900))
    for low, expected in ((3_800, False), (3_799, True)):
        seen = telemetry(clock_khz=[4_000] * 10 + [low] * 10 + [4_000] * 10)
        assert throttled_blocks(seen, *spans).tolist() == [False, expected, False]


def test_throttled_blocks_bears_a_low_clock_for_one_percent_of_the_time() -> None:
    clock = [4_000] * 400
    clock[150] = 2_000
    assert not throttled_blocks(telemetry(clock_khz=clock), *blocks((0, 39_900)))[0]
    clock[160:166] = [2_000] * 6
    assert throttled_blocks(telemetry(clock_khz=clock), *blocks((0, 39_900)))[0]


def test_throttled_blocks_leaves_out_the_rise_of_the_clock_at_the_start_of_a_block() -> None:
    clock = [1_000] + [4_000] * 19
    assert throttled_blocks(telemetry(clock_khz=clock), *blocks((0, 1_900))).tolist() == [False]


def test_throttled_blocks_compares_an_arm_with_itself() -> None:
    # Arm 1 uses wide vectors, which lower the clock by design.
    clock = ([4_000] * 10 + [3_500] * 10) * 2
    spans = blocks((0, 900), (1_000, 1_900), (2_000, 2_900), (3_000, 3_900))
    arms = np.array([0, 1, 0, 1])
    assert throttled_blocks(telemetry(clock_khz=clock), *spans).any()
    assert not throttled_blocks(telemetry(clock_khz=clock), *spans, groups=arms).any()


def test_throttled_blocks_is_false_without_samples() -> None:
    seen = telemetry(clock_khz=[])
    assert throttled_blocks(seen, *blocks((0, 10))).tolist() == [False]
    assert not seen.sees_throttling


class Steps(Source):
    """Counts how often it was read."""

    names = ("reads",)

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._offer("reads", "here")
        self.count = 0

    def read(self) -> list[int]:
        self.count += 1
        return [self.count]


class SlowSteps(Steps):
    names = ("slow_reads",)
    every_s = 1.0

    def _find(self, files: SystemFiles, cpus: frozenset[int]) -> None:
        self._offer("slow_reads", "here")
        self.count = 0


def test_sampling_reads_a_slow_source_less_often_and_keeps_its_value() -> None:
    rows: list[bytes] = []
    sampling = Sampling([Steps(SystemFiles()), SlowSteps(SystemFiles())], rows.append)
    for tenth in range(1, 13):
        sampling.sample(tenth * 10**8)
    table = np.frombuffer(b"".join(rows), "<i8").reshape(-1, 3)
    assert table[:, 1].tolist() == list(range(1, 13))
    assert table[:, 2].tolist() == [1] * 10 + [2] * 2


def test_sampling_writes_missing_for_what_fits_no_int64() -> None:
    class Huge(Steps):
        def read(self) -> list[int]:
            return [1 << 70]

    rows: list[bytes] = []
    Sampling([Huge(SystemFiles())], rows.append).sample(5)
    assert np.frombuffer(rows[0], "<i8").tolist() == [5, -1]


def test_next_tick_stays_on_the_grid() -> None:
    assert [next_tick(due_ns=0, now_ns=now, interval_ns=100) for now in (0, 1, 99, 100, 101, 250)] == [
        100,
        100,
        100,
        100,
        200,
        300,
    ]


@linux_only
def test_sampler_sees_this_computer_on_the_clock_of_the_queries() -> None:
    with Sampler(interval_s=0.05) as sampler:
        before = time.perf_counter_ns()
        time.sleep(0.6)
        after = time.perf_counter_ns()
        found = sampler.finish()
    assert found.warnings == ()
    assert np.count_nonzero((found.t_ns >= before) & (found.t_ns <= after)) >= 2
    assert np.all(np.diff(found.t_ns) > 0)
    assert found.t_ns[-1] >= after  # the last row is written when it ends
    assert set(found.columns) == set(found.coverage) == set(found.origins)
    assert not set(found.columns) & set(found.reasons)
    assert "steal_ticks" in found.columns
    assert np.all(np.diff(found.columns["steal_ticks"]) >= 0)
    assert all(0.0 <= share <= 1.0 for share in found.coverage.values())
    assert found.cost_cpu_s is not None
    assert found.cost_cpu_s >= 0.0


@linux_only
def test_perf_counter_and_monotonic_are_one_clock() -> None:
    clocks = {time.get_clock_info(name).implementation for name in ("perf_counter", "monotonic")}
    assert clocks == {"clock_gettime(CLOCK_MONOTONIC)"}


@linux_only
def test_sampler_follows_a_recorded_tree(recorded_tree: RecordedTree) -> None:
    root = recorded_tree("intel")
    cores = root / "sys/devices/system/cpu"
    with Sampler(interval_s=0.02, root=root, watch={0}) as sampler:
        time.sleep(0.3)
        (cores / "cpu0/cpufreq/scaling_cur_freq").write_text("1000000\n")
        (cores / "cpu2/thermal_throttle/core_throttle_count").write_text("2\n")
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("2500\n")
        time.sleep(0.3)
        found = sampler.finish()
    assert (found.columns["clock_khz"][0], found.columns["clock_khz"][-1]) == (4_200_000, 1_000_000)
    assert (found.columns["throttle_events"][0], found.columns["throttle_events"][-1]) == (13, 14)
    assert found.columns["energy_package_uj"][-1] == 1_500
    assert np.all(found.columns["temperature_mc"] == 61_000)
    assert throttled_blocks(found, found.t_ns[:1], found.t_ns[-1:]).tolist() == [True]
    assert found.sees_throttling


@linux_only
def test_sampler_drops_a_clock_of_cpuinfo_that_never_moves(recorded_tree: RecordedTree) -> None:
    with Sampler(interval_s=0.02, root=recorded_tree("laptop")) as sampler:
        time.sleep(0.1)
        found = sampler.finish()
    assert "clock_khz" not in found.columns
    assert "nominal" in found.reasons["clock_khz"]
    assert found.columns["temperature_mc"][-1] == 88_000


@linux_only
def test_sampler_keeps_what_a_killed_process_wrote() -> None:
    with Sampler(interval_s=0.02) as sampler:
        time.sleep(0.3)
        assert sampler.pid is not None
        os.kill(sampler.pid, signal.SIGKILL)
        time.sleep(0.5)
        found = sampler.finish()
    assert len(found.t_ns) > 0
    assert "ended too early" in found.warnings[0]
    assert found.cost_cpu_s is None
    assert max(found.coverage.values()) < 0.9  # it did not see the last half second


@linux_only
def test_sampler_runs_at_low_priority_and_off_the_processors_of_the_workers() -> None:
    usable = sorted(os.sched_getaffinity(0))
    with Sampler(avoid=usable[:1]) as sampler:
        assert sampler.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, sampler.pid) >= NICENESS
        expected = set(usable[1:]) or set(usable)
        assert os.sched_getaffinity(sampler.pid) == expected


@linux_only
def test_sampler_stays_where_all_processors_are_the_workers() -> None:
    usable = os.sched_getaffinity(0)
    with Sampler(avoid=usable) as sampler:
        assert sampler.pid is not None
        assert os.sched_getaffinity(sampler.pid) == usable


@linux_only
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("raise SystemExit('a planted failure')", "a planted failure"),
        ("print('no json'); import sys; sys.stdin.read()", "did not begin"),
        ("print('[1]'); import sys; sys.stdin.read()", "did not begin"),
        ("print('{\"columns\": 3}', flush=True); import sys; sys.stdin.read()", "could not be read"),
    ],
)
def test_sampler_turns_a_failure_into_a_warning(program: str, expected: str) -> None:
    with Sampler(command=(sys.executable, "-c", program)) as sampler:
        found = sampler.finish()
    assert any(expected in warning for warning in found.warnings)
    assert len(found.t_ns) == 0
    assert found.columns == {}


@linux_only
def test_sampler_does_not_wait_for_a_process_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.bench.environment.sampler_process._START_SECONDS", 0.2)
    with Sampler(command=(sys.executable, "-c", "import time; time.sleep(600)")) as sampler:
        found = sampler.finish()
    assert "did not begin" in found.warnings[0]


@linux_only
def test_sampler_does_not_wait_for_a_process_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.bench.environment.sampler_process._END_SECONDS", 0.2)
    begin = '{"columns": ["a"], "reasons": {}, "origins": {"a": "x"}}'
    program = (
        f"import sys, time; open(sys.argv[1], 'wb').write(bytes(24)); print({begin!r}, flush=True); time.sleep(600)"
    )
    with Sampler(command=(sys.executable, "-c", program)) as sampler:
        found = sampler.finish()
    assert "did not end" in found.warnings[0]
    assert found.columns["a"].tolist() == [0]  # the second row was cut short
    assert sampler.finish() is found


def test_sampler_that_is_not_there_is_a_warning() -> None:
    with Sampler(command=("/nowhere/python",)) as sampler:
        found = sampler.finish()
    assert "not started" in found.warnings[0]


@linux_only
def test_sampler_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import os, time\nfrom edgebert.bench.environment.sampler_process import Sampler\n"
        "sampler = Sampler()\nsampler.start()\nprint(sampler.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    environment = {**worker_environment(1), "TMPDIR": str(tmp_path)}  # a killed parent leaves its folder behind
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=environment)
    pid = int(done.stdout)
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.05)
    pytest.fail(f"the sampler {pid} outlived its parent")


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_sampler_imports_nothing_heavy() -> None:
    program = (
        "import sys, edgebert.bench.environment.sampler\n"
        "print([name for name in ('numpy', 'PIL', 'torch', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=worker_environment(1))
    assert done.stdout.strip() == b"[]"
