"""Records of scenarios from rows whose every figure can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from edgebert.bench.codec import from_json, to_json
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_REWARM
from edgebert.bench.samples import BLOCK_COLUMNS, POINT_COLUMNS, QUERY_COLUMNS, SCENARIOS, IntArray, Samples
from edgebert.bench.scenarios.analysis import scenario_record
from edgebert.bench.schema import Scenario, ScenarioName, ScenarioParams, WarmupRecord
from edgebert.bench.statistics.formulas import wilson_interval
from edgebert.errors import BadDataError

MS = 1_000_000
SECOND = 1_000 * MS
WARMUP = WarmupRecord(converged=True, queries=1, ns=1)


@dataclass
class Recording:
    """Rows, blocks and points of one scenario of arm 0; an arm 1 that is ten times as slow is there to be left out."""

    name: ScenarioName
    rows: list[tuple[int, ...]] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    points: set[tuple[int, ...]] = field(default_factory=set)

    def run(
        self,
        queries: list[tuple[int, int, int, int]],
        *,
        launch: int = 0,
        point: int = 0,
        block: int = 0,
        batch: int = 1,
        inflight: int = 1,
        rate_mhz: int = 0,
        group: int | None = None,
        rss: int = 1_000,
    ) -> None:
        """Add a block of queries (due, issued, done, flags); one more before it is flagged `rewarm`, and takes an hour."""
        scenario = SCENARIOS.index(self.name)
        start = queries[0][1]
        for due, issued, done, flags in [(start, start, start + 3_600 * SECOND, FLAG_REWARM), *queries]:
            third = (done - issued) // 3
            stamps = (due, issued, issued + third, issued + 2 * third, done)
            for _ in range(group or batch):
                failed = flags & (FLAG_ERROR | FLAG_DROPPED)
                self.rows.append((0, launch, scenario, point, block, flags, 0, *stamps, -1 if failed else 0, 0))
                slow = (due, issued, issued, issued, issued + 10 * (done - issued))
                self.rows.append((1, launch, scenario, point, block, flags, 0, *slow, 0, 0))
        wall = max(done for _, _, done, _ in queries) - start
        for arm in (0, 1):
            self.blocks.append((arm, launch, scenario, point, block, start, wall, wall // 2, 3, 0, rss))
        self.points.add((scenario, point, batch, inflight, rate_mhz))

    def record(self, params: ScenarioParams) -> Scenario:
        columns: dict[str, IntArray] = dict(zip(QUERY_COLUMNS, np.array(self.rows, np.int64).T.copy(), strict=True))
        columns |= dict(zip(BLOCK_COLUMNS, np.array(self.blocks, np.int64).T.copy(), strict=True))
        columns |= dict(zip(POINT_COLUMNS, np.array(sorted(self.points), np.int64).T.copy(), strict=True))
        found = scenario_record(Samples(columns), 0, self.name, params, warmup=WARMUP, seed=0)
        assert from_json(Scenario, to_json(found), what="a test") == found  # finite, and of the schema's types
        return found


def closed(start: int, time_ns: int, count: int) -> list[tuple[int, int, int, int]]:
    """Return queries one after the other."""
    return [(start + n * time_ns, start + n * time_ns, start + (n + 1) * time_ns, 0) for n in range(count)]


def params_of(**changes: object) -> ScenarioParams:
    return ScenarioParams(batch=1, inflight=1, start="memory", region="x", **changes)  # type: ignore[arg-type]  # by name


def test_scenario_record_offline_takes_the_point_of_the_highest_throughput() -> None:
    recording = Recording("offline")
    for block in range(3):
        recording.run(closed(0, 10 * MS, 20), point=1_001, block=block, batch=1)  # 100 images a second
        recording.run(closed(0, 16 * MS, 20), point=4_002, block=block + 10, batch=4, inflight=2)  # 250
        recording.run(closed(0, 50 * MS, 20), point=8_001, block=block + 20, batch=8)  # 160
    found = recording.record(params_of(seconds=0.2))
    assert (found.params.batch, found.params.inflight, found.params.seconds) == (4, 2, 0.2)
    assert [round(point.throughput) for point in found.curve] == [100, 250, 160]
    assert [(point.windows, point.queries) for point in found.curve] == [(3, 20 * 3)] * 3
    assert found.throughput == pytest.approx(250)
    assert found.throughput_ci95 == pytest.approx((250, 250))
    assert (found.queries, found.blocks, found.launches) == (60, 3, 1)
    assert found.latency.e2e.p50.value == 16 * MS  # of a call, and not of an image
    assert found.latency.queue.max == 0
    assert found.cpu_seconds_per_query == pytest.approx(0.008)
    assert found.gap_ratio is None  # two at once share the time


def test_scenario_record_offline_interval_is_over_launches_when_there_are_several() -> None:
    within, across = Recording("offline"), Recording("offline")
    for block in range(4):
        within.run(closed(0, (10 + block % 2) * MS, 20), point=1_001, block=block)
        across.run(closed(0, (10 + block // 2) * MS, 20), point=1_001, block=block, launch=block // 2)
    narrow, wide = (recording.record(params_of()).throughput_ci95 for recording in (within, across))
    assert narrow is not None
    assert wide is not None
    # By hand: the mean of ln 100 and ln 90.9 and t(0.975, 1) = 12.706 times half their distance.
    centre, half = np.log([100, 1_000 / 11]).mean(), 12.706 * np.log(1.1) / 2
    assert wide == pytest.approx((np.exp(centre - half), np.exp(centre + half)), rel=1e-3)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_scenario_record_multi_stream_counts_queries_and_not_images() -> None:
    recording = Recording("multi-stream")
    recording.run(closed(0, 40 * MS, 25), batch=8, group=8)
    found = recording.record(params_of(samples_per_query=8))
    assert (found.queries, found.params.batch, found.params.samples_per_query) == (25, 8, 8)
    assert found.throughput == pytest.approx(200)
    assert found.latency.e2e.p50.value == 40 * MS
    assert found.gap_ratio == pytest.approx(0)
    singly = Recording("multi-stream")
    singly.run(closed(0, 40 * MS, 25), point=1, batch=1, group=8)
    assert singly.record(params_of(samples_per_query=8)).params.batch == 1


def test_scenario_record_refuses_rows_that_are_no_whole_queries() -> None:
    recording = Recording("multi-stream")
    recording.run(closed(0, 40 * MS, 5), batch=8, group=8)
    with pytest.raises(BadDataError, match="queries for 3 images"):
        recording.record(params_of(samples_per_query=3))
    recording.points = {(SCENARIOS.index("multi-stream"), 9, 1, 1, 0)}
    with pytest.raises(BadDataError, match="point 0"):
        recording.record(params_of(samples_per_query=8))


def test_scenario_record_paced_counts_what_had_no_answer_by_its_deadline() -> None:
    recording, frame = Recording("paced"), 10 * MS
    queries = []
    for n in range(100):
        due = n * frame
        if n % 10 == 3:
            queries.append((due, due, due, FLAG_DROPPED))
        elif n % 10 == 5:
            queries.append((due, due + 1_000, due + frame + 1, 0))  # one nanosecond too late
        elif n % 10 == 7 and n > 50:
            queries.append((due, due + 1_000, due + MS, FLAG_ERROR))
        else:
            queries.append((due, due + 1_000, due + frame, 0))
    recording.run(queries, rate_mhz=100_000)
    found = recording.record(params_of(fps=100.0, deadline_ns=frame, policy="drop"))
    deadlines = found.deadlines
    assert deadlines is not None
    assert (deadlines.frames, deadlines.answered, deadlines.missed, deadlines.dropped) == (100, 85, 10, 10)
    assert deadlines.miss_rate.value == pytest.approx(0.25)  # late, dropped and failed ones
    assert deadlines.miss_rate.ci95 == pytest.approx(wilson_interval(25, 100))
    assert found.queries == 85
    assert found.latency.e2e.p50.value == frame  # from when it was due
    assert found.latency.queue.p50.value == 1_000
    assert found.gap_ratio is None


def test_scenario_record_lateness_is_of_arrivals_that_found_nothing_in_their_way() -> None:
    recording = Recording("paced")
    recording.run([(0, 5, 100, 0), (200, 211, 500, 0), (300, 500, 600, 0), (700, 720, 800, 0)], rate_mhz=1)
    lateness = recording.record(params_of(fps=0.001, deadline_ns=MS, policy="queue")).lateness
    assert lateness is not None
    assert (lateness.n, lateness.p50, lateness.max) == (3, 11, 20)  # not the 200 of the one that waited


def server_run(recording: Recording, point: int, rate: int, late: int, *, block: int, count: int = 400) -> None:
    gap = SECOND // rate
    queries = [(n * gap, n * gap, n * gap + (20 * MS if n < late else MS), 0) for n in range(count)]
    recording.run(queries, point=point, block=block, rate_mhz=1_000 * rate)


def test_scenario_record_server_limit_is_the_largest_confirmed_rate() -> None:
    recording = Recording("server")
    for block, (point, rate, late) in enumerate(
        [(1, 10, 0), (2, 20, 0), (3, 30, 0), (5, 50, 30), (4, 40, 0), (4, 40, 9), (3, 30, 0)]
    ):
        server_run(recording, point, rate, late, block=block)
    found = recording.record(params_of(bound_ns=10 * MS, bound_share=0.99))
    assert found.server is not None
    assert (found.server.rate, found.server.confirmed, found.server.probes) == (30.0, True, 7)
    assert [point.rate for point in found.curve] == [10, 20, 30, 40, 50]
    assert [point.kept for point in found.curve] == [True, True, True, False, False]
    shares = [point.within.value for point in found.curve if point.within is not None]
    assert shares == pytest.approx([1, 1, 1, 791 / 800, 370 / 400])
    assert found.queries == 800  # the latency is that of the limit's probes
    assert found.throughput == pytest.approx(30, rel=0.01)


def test_scenario_record_server_counts_what_was_given_up_as_late() -> None:
    recording = Recording("server")
    answered = [(n * MS, n * MS, n * MS + 1_000, 0) for n in range(300)]
    given_up = [(n * MS, 310 * MS, 310 * MS, FLAG_DROPPED) for n in range(300, 310)]
    recording.run([*answered, *given_up], rate_mhz=1_000_000)
    found = recording.record(params_of(bound_ns=MS, bound_share=0.99))
    assert found.server is not None
    assert found.server.rate is None
    assert found.curve[0].within is not None
    assert found.curve[0].within.value == pytest.approx(300 / 310)
    assert (found.curve[0].queries, found.queries) == (310, 300)


def test_scenario_record_server_limit_is_not_confirmed_by_one_probe() -> None:
    recording = Recording("server")
    server_run(recording, 1, 10, 0, block=0)
    server_run(recording, 2, 20, 40, block=1)
    server = recording.record(params_of(bound_ns=10 * MS, bound_share=0.99)).server
    assert server is not None
    assert (server.rate, server.confirmed, server.probes) == (10.0, False, 2)


def test_scenario_record_soak_compares_the_first_with_the_last_tenth() -> None:
    recording = Recording("soak")
    resident = 1_000
    for block in range(100):  # ten seconds, ever slower
        time_ns = MS + block * MS // 100
        count = 100 * MS // time_ns
        # Each window leaves its rows in the worker, 96 bytes each with that of the query before it, and the arm leaks 7 bytes.
        resident += 7 + 96 * (count + 1)
        recording.run(closed(block * 100 * MS, time_ns, count), block=block, rss=resident)
    soak = recording.record(params_of(seconds=10.0)).soak
    assert soak is not None
    assert soak.first_p50 == pytest.approx(1.05 * MS, rel=0.01)
    assert soak.last_p50 == pytest.approx(1.94 * MS, rel=0.01)
    assert soak.ratio == pytest.approx(soak.last_p50 / soak.first_p50)
    assert (soak.rss_growth, soak.throttle_events) == (7 * 99, None)


def test_scenario_record_is_still_made_when_every_query_failed() -> None:
    recording = Recording("soak")
    recording.run([(due, issued, done, FLAG_ERROR) for due, issued, done, _ in closed(0, MS, 20)])
    found = recording.record(params_of(seconds=1.0))
    assert found.throughput == 0
    assert found.throughput_ci95 is None
