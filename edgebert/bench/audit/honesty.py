"""Whether what was timed is what was judged: from raw samples, and in words that name the fault.

A backend that answers garbage once in a while, remembers its answers, leaves work out or waits instead of computing is fast
for a reason that nobody wants to buy (bench.md, section 3: "any error => INVALID"; section 10). What makes a result not valid
comes from `reasons_of`, what only disturbs it from `warnings_of`. `edgebert bench --audit` looks harder; see
`edgebert.bench.audit.audit`.

The bounds rest on twelve runs of 12 s each and 256,000 queries together (digits, cells and fashion graphs, FP32 and INT8, ONNX
Runtime 1.31.1 and OpenVINO 2026.4.1, one thread, beside other work on two virtual cores of an AMD EPYC, 2026-11-25):
every answer to the same image had the same bits, at batch 8 probabilities moved by 3.3e-7 at most; processor time over wall
time was 0.22 at least; one query took less than a quarter of its block's median (the bound below, of the lower quartile, is looser); a repeated input took 0.96 to 1.01 of the
time of a new one; resident memory grew by 19 bytes per query at most.

>>> theil_sen_slope(np.array([0.0, 1.0, 2.0, 3.0]), np.array([5.0, 7.0, 100.0, 11.0]))
2.0
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_WARMUP, NO_CLASS
from edgebert.bench.samples import CONFIDENCE_UNIT, IntArray, Samples
from edgebert.bench.schema import Arm, Consistency

MAX_CONFIDENCE_DIFFERENCE = 1e-3  # of the probability of the decided class; room for backends that round at random
MIN_INPUT_SENSITIVITY = (
    0.7  # bench.md says 0.95 for a dedicated audit; 64 pairs need more room, and a cache gives far less
)
MIN_CPU_RATIO = 0.1  # what is left to a program among ten that compete for a core
MAX_INSTANT_SHARE = 0.01
INSTANT = 0.25  # of the lower quartile of its block: on a busy computer more than half of the queries wait, the quickest quarter seldom
MAX_RSS_GROWTH = 2_048  # bytes per query; the stamps of a query take about 120, and a leaked 32x32 RGB input 3,072

_MIN_RSS_BLOCKS = 4  # fewer have no trend
_MAX_TREND_POINTS = 400  # of a slope, whose cost grows with the square


def consistency_from_samples(
    samples: Samples, arm: int, *, first_error: str | None, input_sensitivity: float | None
) -> Consistency:
    """Return what the samples say of one arm's honesty.

    Args:
        samples: of the run.
        arm: index of the arm.
        first_error: message of the first query that failed.
        input_sensitivity: lowest of the launches; see `Recorder.input_sensitivity`.
    """
    rows = samples.queries_of(arm, None)
    answered = (rows["flags"] & (FLAG_ERROR | FLAG_DROPPED)) == 0
    checked, mismatch = _compared(
        samples, arm, rows["sample_index"][answered], rows["pred"][answered], rows["confidence"][answered]
    )
    mine = (samples["recheck_arm"] == arm) & (samples["recheck_pred"] != NO_CLASS)
    rechecked, recheck_mismatch = _compared(
        samples,
        arm,
        samples["recheck_sample"][mine],
        samples["recheck_pred"][mine],
        samples["recheck_confidence"][mine],
    )
    return Consistency(
        timed_checked=checked,
        mismatch=mismatch,
        rechecked=rechecked,
        recheck_mismatch=recheck_mismatch,
        errors=failed_queries(samples, arm),
        first_error=first_error,
        input_sensitivity=input_sensitivity,
        cpu_ratio=cpu_ratio(samples, arm),
        instant_share=instant_share(samples, arm),
        rss_growth_per_query=rss_growth_per_query(samples, arm),
    )


def differing(
    expected: IntArray, expected_confidence: IntArray, pred: IntArray, confidence: IntArray
) -> NDArray[np.bool_]:
    """Return bool (n,): which answers decide otherwise than expected, or are sure of it to another degree.

    Args:
        expected: int64 (n,), classes of the accuracy pass.
        expected_confidence: int64 (n,), their probabilities in `CONFIDENCE_UNIT`.
        pred: int64 (n,), classes that were timed.
        confidence: int64 (n,), their probabilities in `CONFIDENCE_UNIT`.
    """
    most = round(MAX_CONFIDENCE_DIFFERENCE / CONFIDENCE_UNIT)
    different: NDArray[np.bool_] = (pred != expected) | (np.abs(confidence - expected_confidence) > most)
    return different


def failed_queries(samples: Samples, arm: int) -> int:
    """Return how many queries failed: timed, of the accuracy pass, or of a later launch's shorter one."""
    timed = np.count_nonzero(samples.queries_of(arm, None)["flags"] & FLAG_ERROR)
    judged = (samples["accuracy_arm"] == arm) & (samples["accuracy_pred"] == NO_CLASS)
    again = (samples["recheck_arm"] == arm) & (samples["recheck_pred"] == NO_CLASS)
    return int(timed + np.count_nonzero(judged) + np.count_nonzero(again))


def cpu_ratio(samples: Samples, arm: int) -> float | None:
    """Return processor time over wall time of the single-stream blocks; None where there are none, or it is not known."""
    blocks = samples.blocks_of(arm)
    wall = int(blocks["block_wall_ns"].sum())
    if wall <= 0 or (blocks["block_cpu_ns"] < 0).any():
        return None
    return float(blocks["block_cpu_ns"].sum()) / wall


def instant_share(samples: Samples, arm: int) -> float:
    """Return the share of single-stream queries whose inference took less than a quarter of their block's lower quartile.

    Of the block's, because a processor that changes its clock between blocks makes honest queries faster, too.
    """
    rows = samples.queries_of(arm)
    timed = (rows["flags"] & (FLAG_WARMUP | FLAG_ERROR)) == 0
    infer = (rows["t_inf_end"] - rows["t_pre_end"])[timed]
    if not infer.size:
        return 0.0
    blocks = np.stack([rows["launch"][timed], rows["block"][timed]])  # (2, queries)
    place = np.unique(blocks, axis=1, return_inverse=True)[1].reshape(-1)
    return instant_queries(infer, place) / len(infer)


def instant_queries(infer_ns: IntArray, block: IntArray) -> int:
    """Return how many inference times are less than a quarter of their block's lower quartile.

    Args:
        infer_ns: (queries,), in nanoseconds.
        block: (queries,), the block of each, from 0.
    """
    order = np.argsort(block, kind="stable")
    edges = np.flatnonzero(np.diff(block[order])) + 1
    return sum(
        int(np.count_nonzero(part < INSTANT * np.quantile(part, 0.25))) for part in np.split(infer_ns[order], edges)
    )


def rss_growth_per_query(samples: Samples, arm: int) -> float | None:
    """Return by how many bytes the resident memory grew per query: the median over launches of the trend of each.

    None where it is not known, or every launch has fewer than four single-stream blocks.
    """
    blocks, rows = samples.blocks_of(arm), samples.queries_of(arm)
    if (blocks["block_rss"] < 0).any():
        return None
    slopes = []
    for launch in np.unique(blocks["block_launch"]):
        mine = blocks["block_launch"] == launch
        order = np.argsort(blocks["block_index"][mine])
        index, rss = blocks["block_index"][mine][order], blocks["block_rss"][mine][order]
        if len(index) >= _MIN_RSS_BLOCKS:
            ran = rows["block"][rows["launch"] == launch]
            queries = np.cumsum([np.count_nonzero(ran == number) for number in index])
            slopes.append(theil_sen_slope(queries.astype(np.float64), rss.astype(np.float64)))
    return float(np.median(slopes)) if slopes else None


def theil_sen_slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the median slope of all pairs of points; a few jumps do not move it (Theil 1950; Sen 1968, section 2).

    Args:
        x: (n,), rising, at least two.
        y: (n,). Of more than `_MAX_TREND_POINTS` points every n-th is taken.
    """
    step = -(-len(x) // _MAX_TREND_POINTS)
    x, y = x[::step], y[::step]
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def reasons_of(measured: Arm) -> list[str]:
    """Return why an arm's numbers may not be used, each with its name and figure; none where they may."""
    arm, consistency, found = f"arm `{measured.id}`", measured.consistency, list[str]()
    if consistency.errors:
        queries = "query" if consistency.errors == 1 else "queries"
        found.append(f"{arm}: {consistency.errors} {queries} failed; the first: {consistency.first_error}")
    if consistency.mismatch:
        found.append(
            f"{arm}: {consistency.mismatch} of {consistency.timed_checked} timed answers differ from those that accuracy "
            "was measured on"
        )
    if consistency.recheck_mismatch:
        found.append(
            f"{arm}: {consistency.recheck_mismatch} of {consistency.rechecked} answers of later launches differ from those "
            "of the first"
        )
    return found + _shortcuts(arm, consistency, measured.options.get("device", "CPU"))


def warnings_of(arm: Arm) -> list[str]:
    """Return what is wrong with an arm although its numbers may be used."""
    growth = arm.consistency.rss_growth_per_query
    if growth is None or growth <= MAX_RSS_GROWTH:
        return []
    return [
        f"arm `{arm.id}` leaks memory: its resident memory grew by {growth:,.0f} bytes with every query, above {MAX_RSS_GROWTH:,}"
    ]


def _shortcuts(arm: str, consistency: Consistency, device: str) -> list[str]:
    """Return how an arm saves work; an accelerator is waited for, so only a `CPU` must be busy."""
    found, sensitivity, ratio = list[str](), consistency.input_sensitivity, consistency.cpu_ratio
    if sensitivity is not None and sensitivity < MIN_INPUT_SENSITIVITY:
        found.append(
            f"{arm} answers a repeated input in {sensitivity:.0%} of the time of a new one: answers are remembered"
        )
    if consistency.instant_share > MAX_INSTANT_SHARE:
        found.append(
            f"{arm}: {consistency.instant_share:.1%} of the timed queries took less than a quarter of the lower quartile: work is "
            "skipped on some, or other programs held the processor"
        )
    if device.upper() == "CPU" and ratio is not None and ratio < MIN_CPU_RATIO:
        found.append(
            f"{arm} used the processor for {ratio:.0%} of the time it took: its backend waits instead of computing, or other "
            "programs held the processor"
        )
    return found


def _compared(samples: Samples, arm: int, sample: IntArray, pred: IntArray, confidence: IntArray) -> tuple[int, int]:
    """Return how many answers were compared with the accuracy pass, and how many differ."""
    judged = _judged(samples, arm)
    if not len(judged["accuracy_sample"]):
        return 0, 0
    order = np.argsort(judged["accuracy_sample"])
    known = judged["accuracy_sample"][order]
    place = np.minimum(np.searchsorted(known, sample), len(known) - 1)
    met = known[place] == sample
    place = order[place[met]]
    different = differing(
        judged["accuracy_pred"][place], judged["accuracy_confidence"][place], pred[met], confidence[met]
    )
    return int(np.count_nonzero(met)), int(np.count_nonzero(different))


def _judged(samples: Samples, arm: int) -> Mapping[str, IntArray]:
    mine = samples["accuracy_arm"] == arm
    return {name: samples[name][mine] for name in ("accuracy_sample", "accuracy_pred", "accuracy_confidence")}
