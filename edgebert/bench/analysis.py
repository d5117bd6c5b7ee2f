"""From raw samples to the latencies of a result: pure functions, so that any result can be rebuilt from its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_REWARM, FLAG_WARMUP, NO_CLASS
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import (
    Distribution,
    Interval,
    Latency,
    Outliers,
    Quantile,
    Scenario,
    ScenarioParams,
    WarmupRecord,
)
from edgebert.bench.statistics.blocks import effective_queries, hierarchical_bootstrap
from edgebert.bench.statistics.formulas import (
    CONFIDENCE,
    minimum_queries,
    mlperf_bound,
    percentile,
    percentile_upper_bound,
    tukey_fences,
)
from edgebert.bench.statistics.launches import MIN_LAUNCHES
from edgebert.bench.statistics.student_t import t_quantile

REGION = "decoded uint8 RGB image in memory -> class"
SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
NOT_COUNTED = FLAG_WARMUP | FLAG_REWARM | FLAG_ERROR | FLAG_DROPPED


def scenario_from_samples(
    samples: Samples, arm: int, *, warmup: WarmupRecord, looks: int, throttled_blocks: int | None, seed: int
) -> Scenario:
    """Return the single-stream scenario of one arm.

    Args:
        samples: of the run.
        arm: index of the arm.
        warmup: how its warm-ups ended.
        looks: at the intervals.
        throttled_blocks: of this arm; None where no clock can be read.
        seed: of the bootstrap.
    """
    rows, blocks = samples.queries_of(arm), samples.blocks_of(arm)
    counted = (rows["flags"] & NOT_COUNTED) == 0
    timed = (rows["flags"] & FLAG_WARMUP) == 0
    wall = int(blocks["block_wall_ns"].sum())
    e2e = rows["t_done"] - rows["t_issue"]
    groups = blocks_of_queries({name: column[counted] for name, column in rows.items()})
    queries = int(np.count_nonzero(timed))
    switches = blocks["block_involuntary"]
    rates = throughput_of_blocks(rows, blocks)
    return Scenario(
        name="single-stream",
        params=ScenarioParams(batch=1, inflight=1, start="memory", region=REGION),
        warmup=warmup,
        launches=len(np.unique(blocks["block_launch"])),
        looks=looks,
        blocks=len(blocks["block_index"]),
        queries=int(np.count_nonzero(counted)),
        effective_queries=effective_queries([e2e[counted][group] for launch in groups for group in launch]),
        latency=latency_of({name: column[counted] for name, column in rows.items()}, seed=seed),
        throughput=queries / (wall / 1e9),
        throughput_ci95=_throughput_interval(rates),
        cpu_seconds_per_query=float(blocks["block_cpu_ns"].sum()) / 1e9 / queries,
        outliers=outliers_of(rows, blocks, counted),
        gap_ratio=(wall - int(e2e[timed].sum())) / wall,
        involuntary_switches=None if (switches < 0).any() else int(switches.sum()),
        throttled_blocks=throttled_blocks,
    )


def latency_of(rows: Mapping[str, IntArray], *, seed: int) -> Latency:
    """Return the latency of queries that count, end to end from when each was due, and by stage.

    Args:
        rows: query columns; one row for each query.
        seed: of the bootstrap.
    """
    groups = blocks_of_queries(rows)
    e2e = rows["t_done"] - rows["t_sched"]
    stages = {
        "e2e": e2e,
        "queue": rows["t_issue"] - rows["t_sched"],
        "pre": rows["t_pre_end"] - rows["t_issue"],
        "infer": rows["t_inf_end"] - rows["t_pre_end"],
        "post": rows["t_done"] - rows["t_inf_end"],
    }
    return Latency(
        **{name: distribution(times, groups, seed=seed) for name, times in stages.items()},
        mlperf_bound_p90=mlperf_bound(e2e, 0.9),
        mlperf_bound_p99=mlperf_bound(e2e, 0.99),
    )


def blocks_of_queries(rows: Mapping[str, IntArray]) -> list[list[NDArray[np.intp]]]:
    """Return, for each launch, the positions of the queries of each of its blocks; a probe of a sweep is a block too."""
    keys = np.stack([rows["launch"], rows["point"], rows["block"]])  # (3, queries)
    order = np.lexsort(keys[::-1])
    edges = np.flatnonzero((np.diff(keys[:, order], axis=1) != 0).any(axis=0)) + 1
    found: dict[int, list[NDArray[np.intp]]] = {}
    for block in np.split(order, edges):
        if block.size:
            found.setdefault(int(rows["launch"][block[0]]), []).append(block)
    return list(found.values())


def distribution(times: IntArray, groups: Sequence[Sequence[NDArray[np.intp]]], *, seed: int) -> Distribution:
    """Return percentiles, extremes and mean of times in nanoseconds.

    Args:
        times: at least one.
        groups: for each launch, which of them belong to each block.
        seed: of the bootstrap over launches and their blocks.
    """
    estimable = {name: times.size >= minimum_queries(share) for name, share in SHARES.items()}
    intervals = hierarchical_bootstrap(
        [[times[group] for group in launch] for launch in groups],
        [share for name, share in SHARES.items() if estimable[name]],
        seed=seed,
    )
    named = dict(zip((name for name in SHARES if estimable[name]), intervals, strict=True))
    quantiles = {name: _quantile(times, share, named.get(name)) for name, share in SHARES.items()}
    median = percentile(times, 0.5)
    p99, p50 = quantiles["p99"].value, quantiles["p50"].value
    return Distribution(
        **quantiles,
        min=int(times.min()),
        max=int(times.max()),
        mean=float(times.mean()),
        mad=percentile(np.abs(times - median), 0.5),
        jitter=None if p99 is None or p50 is None else p99 - p50,
    )


def throughput_of_blocks(rows: Mapping[str, IntArray], blocks: Mapping[str, IntArray]) -> list[float]:
    """Return images per second of each launch: timed images over the time of their blocks."""
    timed = (rows["flags"] & (FLAG_WARMUP | FLAG_ERROR | FLAG_DROPPED)) == 0
    return [
        np.count_nonzero(timed & (rows["launch"] == launch))
        / (blocks["block_wall_ns"][blocks["block_launch"] == launch].sum() / 1e9)
        for launch in np.unique(blocks["block_launch"])
    ]


def outliers_of(rows: Mapping[str, IntArray], blocks: Mapping[str, IntArray], counted: NDArray[np.bool_]) -> Outliers:
    """Count slow queries by Tukey's fences, and say what their blocks met; none is removed."""
    e2e = (rows["t_done"] - rows["t_sched"])[counted]
    mild, severe = tukey_fences(e2e)
    slow = e2e > mild
    met = {"involuntary switch": 0, "major fault": 0, "unexplained": 0}
    causes = {
        (launch, block, point): "major fault" if faults > 0 else "involuntary switch" if switches > 0 else "unexplained"
        for launch, block, point, faults, switches in zip(
            blocks["block_launch"].tolist(),
            blocks["block_index"].tolist(),
            blocks["block_point"].tolist(),
            blocks["block_major_faults"].tolist(),
            blocks["block_involuntary"].tolist(),
            strict=True,
        )
    }
    keys = (rows[name][counted][slow].tolist() for name in ("launch", "block", "point"))
    for key in zip(*keys, strict=True):
        met[causes.get(key, "unexplained")] += 1
    return Outliers(
        mild=int(np.count_nonzero(slow)) - int(np.count_nonzero(e2e > severe)),
        severe=int(np.count_nonzero(e2e > severe)),
        attributed=met,
    )


def failed_queries(samples: Samples, arm: int) -> int:
    """Return how many queries failed: timed in any scenario, or for accuracy in any launch."""
    _, decisions = samples.accuracy_of(arm)
    timed = np.count_nonzero(samples.queries_of(arm, None)["flags"] & FLAG_ERROR)
    again = samples["recheck_pred"][samples["recheck_arm"] == arm]
    return int(timed) + int(np.count_nonzero(decisions == NO_CLASS)) + int(np.count_nonzero(again == NO_CLASS))


def block_medians(samples: Samples, arm: int, launch: int) -> NDArray[np.float64]:
    """Return float64 (rounds, 2): the median end-to-end time of the arm's two blocks in each round of a launch, in time order."""
    rows = samples.queries_of(arm)
    # A failed query has its time too; the arm is invalid.
    counted = ((rows["flags"] & (FLAG_WARMUP | FLAG_REWARM)) == 0) & (rows["launch"] == launch)
    e2e, blocks = (rows["t_done"] - rows["t_issue"])[counted], rows["block"][counted]
    order = np.flatnonzero(schedule_of(samples, launch) == arm)  # positions of the arm's blocks: two in each round
    sorting = np.argsort(blocks, kind="stable")
    edges = np.searchsorted(blocks[sorting], [*order, order[-1] + 1])
    times = np.split(e2e[sorting], edges)[1:-1]
    medians = np.array([np.median(np.maximum(block, 1)) for block in times], np.float64)
    return medians.reshape(-1, 2)  # (rounds, blocks of the arm in a round)


def launch_percentiles(samples: Samples, arm: int, share: float) -> NDArray[np.float64] | None:
    """Return float64 (launches,): a percentile of each launch's pooled single-stream queries; None where one has too few."""
    rows = samples.queries_of(arm)
    counted = (rows["flags"] & NOT_COUNTED) == 0
    found = []
    for launch in single_stream_launches(samples):
        times = (rows["t_done"] - rows["t_issue"])[counted & (rows["launch"] == launch)]
        if times.size < minimum_queries(share):
            return None
        found.append(max(1, percentile(times, share)))
    return np.array(found, np.float64)


def schedule_of(samples: Samples, launch: int) -> IntArray:
    """Return the arm of each single-stream block of a launch."""
    found: IntArray = samples["schedule"][samples["schedule_launch"] == launch]
    return found


def single_stream_launches(samples: Samples) -> list[int]:
    """Return the launches that ran single-stream blocks."""
    found: list[int] = np.unique(samples["schedule_launch"]).tolist()
    return found


def _quantile(times: IntArray, share: float, interval: Interval | None) -> Quantile:
    needs = minimum_queries(share)
    return Quantile(
        value=percentile(times, share) if times.size >= needs else None,
        # Every resample's percentile is one of the times, so the bounds are whole nanoseconds.
        ci95=None if interval is None else (int(interval[0]), int(interval[1])),
        upper95=percentile_upper_bound(times, share),
        needs=needs,
    )


def _throughput_interval(rates: Sequence[float]) -> Interval | None:
    """Return the 95 % t-interval of the launches' mean rate; None below five launches."""
    if len(rates) < MIN_LAUNCHES:
        return None
    mean, error = float(np.mean(rates)), float(np.std(rates, ddof=1)) / math.sqrt(len(rates))
    half = t_quantile(1 - (1 - CONFIDENCE) / 2, len(rates) - 1) * error
    return mean - half, mean + half
