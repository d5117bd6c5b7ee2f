"""The times of one arm by launch, from its samples: what two runs are compared by, since they share no round of blocks.

p50: the median end-to-end time of each block. p90 and p99: the percentile of all queries of the launch. Throughput: the time of
a block for each of its images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edgebert.bench.analysis import block_medians, launch_percentiles, single_stream_launches
from edgebert.bench.recorder import FLAG_WARMUP
from edgebert.bench.samples import Samples
from edgebert.bench.statistics.formulas import FloatArray, minimum_queries

MetricName = Literal["p50", "p90", "p99", "throughput"]

_SHARES: Mapping[MetricName, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def schema_metric(metric: MetricName) -> str:
    """Return what the metric is called in a result.

    >>> schema_metric("p90"), schema_metric("throughput")
    ('latency.e2e.p90', 'throughput')
    """
    return metric if metric == "throughput" else f"latency.e2e.{metric}"


def queries_needed(metric: MetricName) -> int:
    """Return the fewest queries of a launch from which the metric is stated (bench.md, section 4.2)."""
    return minimum_queries(_SHARES[metric]) if metric in _SHARES else 1


def launch_times(samples: Samples, arm: int, metric: MetricName) -> list[FloatArray] | None:
    """Return for each launch the single-stream times of one arm, float64 above 0, in nanoseconds.

    One for each block of p50 and throughput, one for the whole launch of p90 and p99. None where a launch has too few queries
    for the percentile.
    """
    launches = single_stream_launches(samples)
    if metric == "p50":
        return [block_medians(samples, arm, launch).reshape(-1) for launch in launches]
    if metric == "throughput":
        return [_times_per_image(samples, arm, launch) for launch in launches]
    values = launch_percentiles(samples, arm, _SHARES[metric])
    return None if values is None else [values[at : at + 1] for at in range(len(values))]


def mean_of_launches(launches: Sequence[FloatArray]) -> FloatArray:
    """Return float64 (launches,): the mean of each."""
    return np.array([launch.mean() for launch in launches], np.float64)


def _times_per_image(samples: Samples, arm: int, launch: int) -> FloatArray:
    """Return float64 (blocks,): the wall time of each block for each image that it timed."""
    rows, blocks = samples.queries_of(arm), samples.blocks_of(arm)
    owners = rows["block"][(rows["launch"] == launch) & ((rows["flags"] & FLAG_WARMUP) == 0)]
    own = blocks["block_launch"] == launch
    pairs = zip(blocks["block_index"][own].tolist(), blocks["block_wall_ns"][own].tolist(), strict=True)
    return np.array([max(1, wall) / max(1, np.count_nonzero(owners == index)) for index, wall in pairs], np.float64)
