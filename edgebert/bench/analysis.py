"""From raw samples to the numbers of a result: pure functions, so that any result can be rebuilt from its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.recorder import FLAG_ERROR, FLAG_REWARM, FLAG_WARMUP, NO_CLASS
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import (
    Accuracy,
    AccuracyTwin,
    Agreement,
    ClassAccuracy,
    Comparison,
    Distribution,
    Latency,
    MultiLabelAccuracy,
    Outliers,
    Quantile,
    Scenario,
    ScenarioParams,
    Share,
    WarmupRecord,
)
from edgebert.bench.several import several_of
from edgebert.bench.statistics import (
    block_bootstrap,
    interleaved_ratio,
    mcnemar_exact,
    minimum_queries,
    percentile,
    percentile_upper_bound,
    tukey_outliers,
    wilson_interval,
)
from edgebert.metrics import (
    confusion_matrix,
    macro_f1,
    mean_average_precision,
    multilabel_f1,
    multilabel_rows,
    per_class,
)

REGION = "decoded uint8 RGB image in memory -> class"
METHOD = "exp(median over rounds of mean log block median of b minus that of a); bootstrap over rounds"

_BOOTSTRAPPED = (0.5, 0.9)


def scenario_from_samples(
    samples: Samples, arm: int, *, warmup: WarmupRecord, timer_overhead_ns: int, seed: int
) -> Scenario:
    """Return the single-stream scenario of one arm.

    Args:
        samples: of the run.
        arm: index of the arm.
        warmup: how its warm-up ended.
        timer_overhead_ns: between two stamps.
        seed: of the bootstrap.
    """
    rows = samples.queries_of(arm)
    counted = (rows["flags"] & (FLAG_WARMUP | FLAG_REWARM | FLAG_ERROR)) == 0
    timed = (rows["flags"] & FLAG_WARMUP) == 0
    blocks = samples.blocks_of(arm)
    wall = int(blocks["block_wall_ns"].sum())
    e2e = rows["t_done"] - rows["t_issue"]
    stages = {
        "e2e": e2e,
        "pre": rows["t_pre_end"] - rows["t_issue"],
        "infer": rows["t_inf_end"] - rows["t_pre_end"],
        "post": rows["t_done"] - rows["t_inf_end"],
    }
    distributions = {
        name: distribution(times[counted], rows["block"][counted], seed=seed) for name, times in stages.items()
    }
    switches = blocks["block_involuntary"]
    mild, severe = tukey_outliers(e2e[counted])
    queries = int(np.count_nonzero(timed))
    return Scenario(
        name="single-stream",
        params=ScenarioParams(batch=1, inflight=1, start="memory", region=REGION),
        warmup=warmup,
        launches=len(np.unique(rows["launch"])),
        blocks=len(blocks["block_index"]),
        queries=int(np.count_nonzero(counted)),
        latency=Latency(**distributions),
        throughput=queries / (wall / 1e9),
        cpu_seconds_per_query=float(blocks["block_cpu_ns"].sum()) / 1e9 / queries,
        outliers=Outliers(mild=mild, severe=severe),
        gap_ratio=(wall - int(e2e[timed].sum())) / wall,
        timer_overhead_ns=timer_overhead_ns,
        involuntary_switches=None if (switches < 0).any() else int(switches.sum()),
    )


def distribution(times: IntArray, blocks: IntArray, *, seed: int) -> Distribution:
    """Return percentiles, extremes and mean of times in nanoseconds.

    Args:
        times: at least one.
        blocks: the block of each.
        seed: of the bootstrap over blocks.
    """
    by_block = [times[blocks == block] for block in np.unique(blocks)]
    found = block_bootstrap(by_block, _BOOTSTRAPPED, seed=seed)
    # Every resample's percentile is one of the times, so the bounds are whole nanoseconds.
    intervals = {share: (int(pair[0]), int(pair[1])) for share, pair in zip(_BOOTSTRAPPED, found, strict=True) if pair}
    quantiles = {}
    for share in (0.5, 0.9, 0.95, 0.99):
        needs = minimum_queries(share)
        quantiles[f"p{round(100 * share)}"] = Quantile(
            value=percentile(times, share) if times.size >= needs else None,
            ci95=intervals.get(share),
            upper95=percentile_upper_bound(times, share),
            needs=needs,
        )
    return Distribution(**quantiles, min=int(times.min()), max=int(times.max()), mean=float(times.mean()))


def accuracy_from_samples(
    samples: Samples, arm: int, class_names: Sequence[str], reference: tuple[int, str] | None
) -> Accuracy:
    """Return the accuracy of one arm; an image that failed counts as wrong, and is not in the tables by class.

    Args:
        samples: of the run.
        arm: index of the arm.
        class_names: of the data set.
        reference: index and name of the arm that agreement refers to; None for none.
    """
    labels, decisions = samples.accuracy_of(arm)
    answered = decisions != NO_CLASS
    right = int(np.count_nonzero(labels == decisions))
    agreement, delta = None, None
    if reference is not None:
        _, reference_decisions = samples.accuracy_of(reference[0])
        same = int(np.count_nonzero((decisions == reference_decisions) & answered))
        agreement = Agreement(reference=reference[1], share=share_of(same, len(labels)))
        delta = (right - int(np.count_nonzero(labels == reference_decisions))) / len(labels)
    top1 = share_of(right, len(labels))
    several, confusion = None, np.zeros((0, 0), np.int64)
    if "score" in samples.columns:
        truth, said, scores = several_of(samples, arm, len(class_names))
        truth, said, scores = truth[answered], said[answered], scores[answered]
        several = _several_accuracy(top1, truth, said, scores)
        macro, rows = several.macro_f1, multilabel_rows(truth, said, class_names)
    else:
        macro = macro_f1(labels[answered], decisions[answered], len(class_names))
        rows = per_class(labels[answered], decisions[answered], class_names)
        confusion = confusion_matrix(labels[answered], decisions[answered], len(class_names))
    return Accuracy(
        top1=top1,
        macro_f1=macro,
        agreement=agreement,
        delta_top1=delta,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        per_class=tuple(
            ClassAccuracy(name=row.name, precision=row.precision, recall=row.recall, f1=row.f1, support=row.support)
            for row in rows
        ),
        multi_label=several,
    )


def _several_accuracy(
    exact_match: Share, truth: NDArray[np.bool_], said: NDArray[np.bool_], scores: NDArray[np.float64]
) -> MultiLabelAccuracy:
    micro, macro = multilabel_f1(truth, said)
    return MultiLabelAccuracy(
        exact_match=exact_match,
        micro_f1=micro,
        macro_f1=macro,
        mean_average_precision=mean_average_precision(truth, scores) if truth.any() else None,
    )


def share_of(count: int, total: int) -> Share:
    """Return a share with its Wilson interval."""
    return Share(value=count / total, ci95=wilson_interval(count, total), n=total)


def timed_mismatches(samples: Samples, arm: int) -> tuple[int, int]:
    """Compare every timed decision, warm-up included, with the accuracy pass.

    Returns:
        how many were compared, and how many differ. Failed queries are not compared; they are counted apart.
    """
    rows = samples.queries_of(arm)
    _, decisions = samples.accuracy_of(arm)
    answered = (rows["flags"] & FLAG_ERROR) == 0
    expected = decisions[rows["sample_index"][answered]]
    return int(np.count_nonzero(answered)), int(np.count_nonzero(rows["pred"][answered] != expected))


def failed_queries(samples: Samples, arm: int) -> int:
    """Return how many queries failed, timed or for accuracy."""
    _, decisions = samples.accuracy_of(arm)
    timed = np.count_nonzero(samples.queries_of(arm)["flags"] & FLAG_ERROR)
    return int(timed) + int(np.count_nonzero(decisions == NO_CLASS))


def comparison_from_samples(
    samples: Samples, baseline: int, arm: int, names: Sequence[str], *, seed: int
) -> Comparison:
    """Return how the arm compares with the baseline, from their interleaved blocks.

    Args:
        samples: of the run.
        baseline: index of the arm that the ratio refers to.
        arm: index of the other.
        names: of all arms.
        seed: of the bootstrap over rounds.
    """
    contrast = interleaved_ratio(
        _block_medians(samples, baseline, len(names)), _block_medians(samples, arm, len(names)), seed=seed
    )
    labels, first = samples.accuracy_of(baseline)
    _, second = samples.accuracy_of(arm)
    only_first = int(np.count_nonzero((first == labels) & (second != labels)))
    only_second = int(np.count_nonzero((first != labels) & (second == labels)))
    return Comparison(
        a=names[baseline],
        b=names[arm],
        metric="latency.e2e.p50",
        scenario="single-stream",
        paired=True,
        ratio=contrast.ratio,
        speedup=1 / contrast.ratio,
        ci95=contrast.ci95,
        scope="within-run only",
        method=METHOD,
        launches=1,
        rounds=contrast.rounds,
        accuracy=AccuracyTwin(
            delta_top1=(only_second - only_first) / len(labels),
            only_a_right=only_first,
            only_b_right=only_second,
            mcnemar_p=mcnemar_exact(only_first, only_second),
        ),
    )


def _block_medians(samples: Samples, arm: int, arms: int) -> np.ndarray:
    """Return float64 (rounds, 2): the median end-to-end time of the arm's two blocks in each round, in time order."""
    rows: Mapping[str, IntArray] = samples.queries_of(arm)
    counted = (rows["flags"] & (FLAG_WARMUP | FLAG_REWARM)) == 0  # a failed query has its time too; the arm is invalid
    e2e, blocks = (rows["t_done"] - rows["t_issue"])[counted], rows["block"][counted]
    order = np.flatnonzero(samples["schedule"] == arm)  # positions of the arm's blocks: two in each run of 2 * arms
    medians = np.array([np.median(np.maximum(e2e[blocks == position], 1)) for position in order], np.float64)
    assert len(samples["schedule"]) == len(order) * arms
    return medians.reshape(-1, 2)  # (rounds, blocks of the arm in a round)
