"""How the arms of a run compare with its baseline, from interleaved blocks; the A/A control first, which says what noise is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgebert.bench.analysis import block_medians, launch_percentiles, schedule_of, single_stream_launches
from edgebert.bench.paired_accuracy import accuracy_twin
from edgebert.bench.samples import Samples
from edgebert.bench.schema import AccuracyTwin, Comparison, NoiseFloor, Role, ScenarioName
from edgebert.bench.statistics.decision import verdict_of_contrast
from edgebert.bench.statistics.formulas import CONFIDENCE, holm
from edgebert.bench.statistics.launches import (
    LaunchContrast,
    contrast_p_value,
    launch_contrast,
    launches_needed,
    pooled_contrast,
    simultaneous_confidence,
)
from edgebert.bench.statistics.stopping import relative_half_width

P50, P90, P99 = "latency.e2e.p50", "latency.e2e.p90", "latency.e2e.p99"
SCENARIO: ScenarioName = "single-stream"  # what arms are compared by
NARROW: Mapping[str, int] = {P50: 1, P90: 2}
"""Metric -> how many of the rigor's half-widths its interval may have; 1 % for p50 and 2 % for p90 (bench.md, section 4.2)."""

METRICS: Mapping[str, float] = {P50: 0.5, P90: 0.9, P99: 0.99}


def comparisons_from_samples(
    samples: Samples, names: Sequence[str], roles: Sequence[Role], *, margin: float, seed: int
) -> tuple[Comparison, ...]:
    """Return how every arm compares with the baseline in p50, p90 and p99 of the single-stream scenario.

    The intervals of the candidates hold together: of m candidates each has the confidence 1 - 0.05 / m (Bonferroni), and their
    p-values are adjusted by Holm (1979). The A/A control claims nothing, and keeps 95 %. A percentile for which a launch has
    too few queries is not compared.

    Args:
        samples: of the run.
        names: of all arms.
        roles: of all arms; one baseline, at most one `aa`.
        margin: relative difference that matters.
        seed: of the bootstrap.
    """
    found: list[Comparison] = []
    for metric in METRICS:
        found += _of_metric(samples, names, roles, metric, margin=margin, seed=seed)
    return tuple(found)


def wide_comparisons(comparisons: Iterable[Comparison], half_width: float) -> list[Comparison]:
    """Return the comparisons whose interval is wider than a rigor asks for, or that have none.

    Args:
        comparisons: of a run.
        half_width: of the p50 ratio, relative; infinite where nothing is asked.
    """
    return [
        found
        for found in comparisons
        if found.metric in NARROW and relative_half_width(found) > NARROW[found.metric] * half_width
    ]


def contrast_of(
    samples: Samples, baseline: int, arm: int, metric: str, *, confidence: float, seed: int
) -> LaunchContrast | None:
    """Return the contrast of an arm with the baseline in one metric, or None where a launch has too few queries for it."""
    launches = single_stream_launches(samples)
    if metric == P50:
        return launch_contrast(
            [block_medians(samples, baseline, launch) for launch in launches],
            [block_medians(samples, arm, launch) for launch in launches],
            seed=seed,
            confidence=confidence,
        )
    first, second = (launch_percentiles(samples, index, METRICS[metric]) for index in (baseline, arm))
    if first is None or second is None:
        return None
    arms = len(np.unique(samples["schedule"]))
    rounds = sum(len(schedule_of(samples, launch)) for launch in launches) // (2 * arms)
    return pooled_contrast(first, second, rounds=rounds, confidence=confidence)


def _of_metric(
    samples: Samples, names: Sequence[str], roles: Sequence[Role], metric: str, *, margin: float, seed: int
) -> list[Comparison]:
    baseline = roles.index("baseline")
    candidates = [index for index, role in enumerate(roles) if role == "candidate"]
    control = roles.index("aa") if "aa" in roles else None
    noise = (
        None if control is None else contrast_of(samples, baseline, control, metric, confidence=CONFIDENCE, seed=seed)
    )
    confidence = simultaneous_confidence(max(1, len(candidates)))
    contrasts = {
        index: contrast
        for index in candidates
        if (contrast := contrast_of(samples, baseline, index, metric, confidence=confidence, seed=seed)) is not None
    }
    p_values = {index: contrast_p_value(contrast) for index, contrast in contrasts.items()}
    stated = [index for index, value in p_values.items() if value is not None]
    adjusted = dict(zip(stated, holm([p_values[index] or 0.0 for index in stated]), strict=True))
    rows: list[tuple[int, LaunchContrast, LaunchContrast | None]] = []
    if noise is not None and control is not None:
        rows.append((control, noise, None))
    rows += [(index, contrast, noise) for index, contrast in contrasts.items()]
    return [
        comparison_of(
            contrast,
            (names[baseline], names[index]),
            metric,
            margin=margin,
            control=None if copy is None else NoiseFloor(ratio=copy.ratio, ci95=copy.ci95),
            accuracy=accuracy_twin(*samples.accuracy_of(baseline), samples.accuracy_of(index)[1]),
            p_holm=adjusted.get(index),
        )
        for index, contrast, copy in rows
    ]


def comparison_of(
    contrast: LaunchContrast,
    names: tuple[str, str],
    metric: str,
    *,
    margin: float,
    control: NoiseFloor | None,
    accuracy: AccuracyTwin,
    paired: bool = True,
    p_holm: float | None = None,
) -> Comparison:
    """Return a contrast with its verdict.

    Args:
        contrast: of the times of both arms.
        names: of the baseline and of the arm that is judged.
        metric: what was compared.
        margin: relative difference that matters.
        control: what two copies of the baseline differ by; None where there is none.
        accuracy: its change.
        paired: from interleaved blocks of one run.
        p_holm: of the t-test over launches, adjusted over the arms; None where there is none.
    """
    verdict, delta = verdict_of_contrast(contrast, control=control, margin=margin)
    return Comparison(
        a=names[0],
        b=names[1],
        metric=metric,
        scenario=SCENARIO,
        paired=paired,
        ratio=contrast.ratio,
        speedup=1 / contrast.ratio,
        ci95=contrast.ci95,
        confidence=contrast.confidence,
        scope=contrast.scope,
        method=contrast.method,
        launches=contrast.launches,
        rounds=contrast.rounds,
        margin=margin,
        noise_floor=control,
        delta=delta,
        verdict=verdict,
        launches_needed=_launches_needed(contrast, delta) if verdict == "inconclusive" else None,
        p_holm=p_holm,
        accuracy=accuracy,
    )


def _launches_needed(contrast: LaunchContrast, delta: float) -> int | None:
    """Return about how many launches decide: their interval is as narrow as delta, or as the ratio's distance from it."""
    if contrast.sd_log is None or delta <= 0:
        return None
    beyond = math.expm1(max(0.0, abs(math.log(contrast.ratio)) - math.log1p(delta)))
    return launches_needed(contrast.sd_log, max(delta, beyond), confidence=contrast.confidence)
