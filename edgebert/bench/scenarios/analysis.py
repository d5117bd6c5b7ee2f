"""From raw samples to the record of a scenario beside single-stream; pure, so that any result can be rebuilt from its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.analysis import NOT_COUNTED, blocks_of_queries, latency_of, outliers_of
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_REWARM, FLAG_WARMUP, ROW_COLUMNS
from edgebert.bench.samples import BLOCK_COLUMNS, SCENARIOS, IntArray, Samples
from edgebert.bench.scenarios.lateness import late_by, lateness_of
from edgebert.bench.scenarios.server_search import keeps_bound
from edgebert.bench.schema import (
    CurvePoint,
    Deadlines,
    Interval,
    Lateness,
    Scenario,
    ScenarioName,
    ScenarioParams,
    ServerLimit,
    Share,
    SoakDrift,
    WarmupRecord,
)
from edgebert.bench.statistics.blocks import effective_queries
from edgebert.bench.statistics.formulas import CONFIDENCE, minimum_queries, percentile, wilson_interval
from edgebert.bench.statistics.student_t import t_quantile
from edgebert.errors import BadDataError

Columns = Mapping[str, IntArray]

OPEN_LOOPS = ("paced", "server")
_BEFORE = FLAG_WARMUP | FLAG_REWARM
_MINUTE_NS = 60_000_000_000
_ROW_BYTES = 8 * len(ROW_COLUMNS)
_SOAK_SHARE = 0.1  # at the start and at the end of a soak, at most a minute


@dataclass(frozen=True, slots=True)
class _Point:
    """A point of a sweep, and what was asked there: one row for each query that arrived, those before a window not among them."""

    number: int
    batch: int
    inflight: int
    rate: float | None
    rows: Columns
    group: int  # images of a query

    @property
    def answered(self) -> Columns:
        """Queries that were answered; where none was, those that failed: they have their time too, and the arm is invalid."""
        answered = (self.rows["flags"] & NOT_COUNTED) == 0
        return _chosen(self.rows, answered if answered.any() else (self.rows["flags"] & FLAG_DROPPED) == 0)

    @property
    def runs(self) -> list[Columns]:
        """The queries of each window, or run of arrivals."""
        return [
            _chosen(self.rows, block) for launch in blocks_of_queries(self.rows) for block in launch
        ]  # in the order of launches


def scenario_record(
    samples: Samples,
    arm: int,
    name: ScenarioName,
    params: ScenarioParams,
    *,
    warmup: WarmupRecord,
    seed: int,
    throttled_blocks: int | None = None,
    throttle_events: int | None = None,
) -> Scenario:
    """Return the record of one scenario of one arm, which was run.

    Latency, outliers and processor time are those of the best point of an offline sweep, and of the server's limit (of the lowest
    rate tried where none kept the bound).

    Args:
        samples: of the run.
        arm: index of the arm.
        name: of the scenario, any but single-stream.
        params: as declared; batch and in-flight are replaced by those of the point that was chosen.
        warmup: how the warm-ups ended.
        seed: of the bootstrap.
        throttled_blocks: None where no clock can be read.
        throttle_events: during a soak; None where they cannot be counted.

    Raises:
        BadDataError: the rows are not those of whole queries, or belong to a point that is not listed.
    """
    points = _points(samples, arm, name, params)
    curve = tuple(_curve_point(point, params) for point in points) if name in ("offline", "server") else ()
    server = _server_limit(points, params) if name == "server" else None
    chosen = _chosen_points(points, curve, server, name)
    rows = _joined([point.answered for point in chosen])
    runs = [run for point in chosen for run in point.runs]
    blocks = _blocks(samples, arm, name, [point.number for point in chosen])
    groups = blocks_of_queries(rows)
    e2e = rows["t_done"] - rows["t_sched"]
    throughput, interval = _throughput([(point, run) for point in chosen for run in point.runs], name)
    switches = blocks["block_involuntary"]
    return Scenario(
        name=name,
        params=replace(params, batch=chosen[0].batch, inflight=chosen[0].inflight),
        warmup=warmup,
        launches=len(np.unique(rows["launch"])),
        looks=1,
        blocks=len(runs),
        queries=len(e2e),
        effective_queries=effective_queries([e2e[block] for launch in groups for block in launch]),
        latency=latency_of(rows, seed=seed),
        throughput=throughput,
        throughput_ci95=interval,
        cpu_seconds_per_query=float(blocks["block_cpu_ns"].sum()) / 1e9 / len(e2e),
        outliers=outliers_of(rows, blocks, np.ones(len(e2e), np.bool_)),
        gap_ratio=None if name in OPEN_LOOPS or chosen[0].inflight > 1 else _gap(runs),
        involuntary_switches=None if (switches < 0).any() else int(switches.sum()),
        throttled_blocks=throttled_blocks,
        lateness=_lateness(points) if name in OPEN_LOOPS else None,
        deadlines=_deadlines(chosen[0], params) if name == "paced" else None,
        curve=curve,
        server=server,
        soak=_drift(chosen[0], blocks, throttle_events) if name == "soak" else None,
    )


def _points(samples: Samples, arm: int, name: ScenarioName, params: ScenarioParams) -> list[_Point]:
    """Return the points at which this arm was asked, in the order of their numbers."""
    rows = samples.queries_of(arm, name)
    here = samples["point_scenario"] == SCENARIOS.index(name)
    known = {
        number: (batch, inflight, rate)
        for number, batch, inflight, rate in zip(
            *(samples[f"point_{column}"][here].tolist() for column in ("number", "batch", "inflight", "rate_mhz")),
            strict=True,
        )
    }
    points = []
    for number in np.unique(rows["point"]).tolist():
        if number not in known:
            raise BadDataError(f"samples of {name} belong to point {number}, which is not listed")
        batch, inflight, rate = known[number]
        group = params.samples_per_query if name == "multi-stream" else batch
        own = _queries(_chosen(rows, rows["point"] == number), group, name)
        asked = _chosen(own, (own["flags"] & _BEFORE) == 0)
        if len(asked["flags"]):
            points.append(_Point(number, batch, inflight, rate / 1_000 if rate else None, asked, group))
    if not points:
        raise BadDataError(f"samples of {name} hold no query that counts")
    return points


def _queries(rows: Columns, group: int, name: str) -> Columns:
    """Return the first row of every query; the `group` rows of one stand together and have the same stamps."""
    if group == 1:
        return rows
    stamps = np.column_stack([rows[column] for column in ("launch", "block", "t_issue", "t_done")])
    if len(stamps) % group or (stamps.reshape(-1, group, 4) != stamps[::group, np.newaxis]).any():
        raise BadDataError(f"samples of {name} are not those of queries for {group} images", expected="equal stamps")
    return _chosen(rows, np.arange(len(stamps)) % group == 0)


def _chosen_points(
    points: Sequence[_Point], curve: Sequence[CurvePoint], server: ServerLimit | None, name: ScenarioName
) -> list[_Point]:
    """Return the points that the scenario's latency is of."""
    if name == "offline":
        return [points[int(np.argmax([entry.throughput for entry in curve]))]]
    if server is not None:
        return [next((point for point in points if point.rate == server.rate), points[0])]
    # Multi-stream has a second one where a call of several images failed in one launch and not in another: the first counts.
    return [points[0]]


def _curve_point(point: _Point, params: ScenarioParams) -> CurvePoint:
    answered, runs = point.answered, point.runs
    times = answered["t_done"] - answered["t_sched"]
    throughput, interval = _throughput([(point, run) for run in runs], "offline" if point.rate is None else "server")
    within, arrived = _within(point.rows, params), len(point.rows["flags"])
    return CurvePoint(
        batch=point.batch,
        inflight=point.inflight,
        windows=len(runs),
        queries=arrived,
        throughput=throughput,
        throughput_ci95=interval,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99) if times.size >= minimum_queries(0.99) else None,
        rate=point.rate,
        within=None if point.rate is None else _share(within, arrived),
        kept=None if point.rate is None else keeps_bound(within, arrived, params.bound_share or 1.0),
    )


def _throughput(runs: Sequence[tuple[_Point, Columns]], name: str) -> tuple[float, Interval | None]:
    """Return answered images per second, mean over windows, and its 95 % t-interval on logarithms.

    The interval is over launches, or, of one launch, over its windows, and then says nothing of other launches.
    """
    rates, launches = [], []
    for point, run in runs:
        answered = (run["flags"] & NOT_COUNTED) == 0
        seen = (run["flags"] & FLAG_DROPPED) == 0
        began = run["t_sched"].min() if name in OPEN_LOOPS else run["t_issue"][seen].min()
        seconds = max(1, int(run["t_done"].max() - began)) / 1e9
        rates.append(point.group * int(np.count_nonzero(answered)) / seconds)
        launches.append(int(run["launch"][0]))
    by_launch = [
        np.mean([rate for rate, own in zip(rates, launches, strict=True) if own == launch]) for launch in set(launches)
    ]
    units = np.array(by_launch if len(by_launch) > 1 else rates, np.float64)
    return float(np.mean(rates)), _log_t_interval(units)


def _log_t_interval(values: NDArray[np.float64]) -> Interval | None:
    if len(values) < 2 or (values <= 0).any():
        return None
    logarithms = np.log(values)
    error = float(np.std(logarithms, ddof=1)) / math.sqrt(len(values))
    half = t_quantile(1 - (1 - CONFIDENCE) / 2, len(values) - 1) * error
    centre = float(np.mean(logarithms))
    return (math.exp(centre - half), math.exp(centre + half)) if centre + half < 700 else None  # exp(710) is infinite


def _within(rows: Columns, params: ScenarioParams) -> int:
    """Return how many arrivals were answered within the bound; those that failed or were given up were not."""
    answered = (rows["flags"] & NOT_COUNTED) == 0
    bound = params.bound_ns if params.bound_ns is not None else params.deadline_ns
    late = np.zeros(len(answered), np.bool_) if bound is None else rows["t_done"] - rows["t_sched"] > bound
    return int(np.count_nonzero(answered & ~late))


def _server_limit(points: Sequence[_Point], params: ScenarioParams) -> ServerLimit:
    """Return the largest rate that every probe there kept; of rates that at least two probes kept, where there are any."""
    share = params.bound_share or 1.0
    kept: dict[float, int] = {}
    probes = 0
    for point in points:
        found = [keeps_bound(_within(run, params), len(run["flags"]), share) for run in point.runs]
        probes += len(found)
        if all(found) and point.rate is not None:
            kept[point.rate] = len(found)
    confirmed = [rate for rate, count in kept.items() if count > 1]
    return ServerLimit(rate=max(confirmed or kept, default=None), confirmed=bool(confirmed), probes=probes)


def _deadlines(point: _Point, params: ScenarioParams) -> Deadlines:
    """Return what became of the frames; the miss rate counts all that had no answer by their deadline, for whatever reason."""
    flags, frames = point.rows["flags"], len(point.rows["flags"])
    answered = int(np.count_nonzero((flags & NOT_COUNTED) == 0))
    in_time = _within(point.rows, params)
    return Deadlines(
        frames=frames,
        answered=answered,
        missed=answered - in_time,
        dropped=int(np.count_nonzero(flags & FLAG_DROPPED)),
        miss_rate=_share(frames - in_time, frames),
    )


def _lateness(points: Sequence[_Point]) -> Lateness | None:
    found = [np.zeros(0, np.int64)]
    for point in points:
        for run in point.runs:
            seen = _chosen(run, (run["flags"] & FLAG_DROPPED) == 0)
            order = np.argsort(seen["t_sched"], kind="stable")  # each server's rows stand together
            due, issued, done = (seen[name][order] for name in ("t_sched", "t_issue", "t_done"))
            found.append(late_by(due, issued, done, servers=point.inflight))
    return lateness_of(np.concatenate(found))


def _drift(point: _Point, blocks: Columns, throttle_events: int | None) -> SoakDrift:
    """Compare the first tenth of a soak with the last; what the harness keeps is no growth of the arm's memory."""
    first, last, growth = [], [], []
    rows = point.answered
    for launch in np.unique(rows["launch"]):
        own = _chosen(rows, rows["launch"] == launch)
        begin, end = int(own["t_issue"].min()), int(own["t_done"].max())
        part = min(_MINUTE_NS, (end - begin) * _SOAK_SHARE)
        times = own["t_done"] - own["t_sched"]
        first.append(times[own["t_issue"] <= begin + part])
        last.append(times[own["t_done"] >= end - part])
        resident = blocks["block_rss"][blocks["block_launch"] == launch]
        if len(resident) and (resident >= 0).all():
            # The worker keeps the rows of every window until the end, those of one query before each window too.
            later = np.count_nonzero(rows["launch"] == launch) - np.count_nonzero(own["block"] == own["block"].min())
            kept = (later + len(resident) - 1) * _ROW_BYTES
            growth.append(int(resident[-1] - resident[0]) - int(kept))
    before, after = (percentile(np.concatenate(parts), 0.5) for parts in (first, last))
    return SoakDrift(
        first_p50=before,
        last_p50=after,
        ratio=after / max(1, before),
        rss_growth=max(growth, default=None),
        throttle_events=throttle_events,
    )


def _gap(runs: Sequence[Columns]) -> float:
    """Return the share of the windows that belongs to no query; of one query at a time."""
    wall = sum(int(run["t_done"].max() - run["t_issue"].min()) for run in runs)
    asked = sum(int((run["t_done"] - run["t_issue"]).sum()) for run in runs)
    return (wall - asked) / max(1, wall)


def _blocks(samples: Samples, arm: int, name: ScenarioName, points: Sequence[int]) -> Columns:
    """Return the block columns of these points; a batch that the model refused has a block of no length."""
    blocks = samples.blocks_of(arm, name)
    own = np.isin(blocks["block_point"], points) & (blocks["block_wall_ns"] > 0)
    return {column: blocks[column][own] for column in BLOCK_COLUMNS}


def _share(count: int, total: int) -> Share:
    return Share(value=count / total, ci95=wilson_interval(count, total), n=total)


def _chosen(rows: Columns, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Columns:
    return {name: column[chosen] for name, column in rows.items()}


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
