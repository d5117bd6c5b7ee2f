"""What a report shows of single-stream beside the figures: every comparison, every stage, and slow queries: tables."""

from __future__ import annotations

from edgebert.bench.report.parts import Cell, Table, Tone, arm_cell, table_of
from edgebert.bench.report.quantities import NONE, chance_text, milliseconds, range_text, ratio_text
from edgebert.bench.report.summary import quantile_cell
from edgebert.bench.report.words import delta_text
from edgebert.bench.schema import Arm, Comparison, Distribution, Result

_CAUSES = ("involuntary switch", "major fault", "throttle", "unexplained")
_TONES: dict[str, Tone] = {"faster": "good", "slower": "bad", "not comparable": "bad"}
_METRICS = {"latency.e2e.p50": "p50", "latency.e2e.p90": "p90", "latency.e2e.p99": "p99", "throughput": "throughput"}


def comparison_table(result: Result) -> Table:
    """Return every comparison of the run with what its verdict was reached from, the A/A control last."""
    control = {arm.id for arm in result.arms if arm.role == "aa"}
    ordered = sorted(result.comparisons, key=lambda comparison: comparison.b in control)
    return table_of(
        f"Every comparison with {result.comparisons[0].a}",
        ("arm", "what", "ratio of times", "δ", "verdict", "launches", "p (Holm)"),
        [_comparison_row(result, comparison) for comparison in ordered],
        caption="A ratio below 1 is faster; of throughput it is that of the baseline over that of the arm. Intervals are "
        "simultaneous over the arms of the run. A difference is claimed only beyond δ, the larger of the margin and of what "
        "the A/A control shows.",
        wide=True,
    )


def _comparison_row(result: Result, comparison: Comparison) -> list[Cell | str]:
    interval, control = comparison.ci95, result.arm(comparison.b).role == "aa"
    where = "" if comparison.scenario == "single-stream" else f", {comparison.scenario}"
    needed = comparison.launches_needed if comparison.verdict == "inconclusive" and not control else None
    return [
        arm_cell(result, result.arm(comparison.b)),
        _METRICS.get(comparison.metric, comparison.metric) + where,
        Cell(
            text=ratio_text(comparison.ratio),
            below="no interval" if interval is None else range_text(ratio_text(interval[0]), ratio_text(interval[1])),
        ),
        delta_text(comparison.delta),
        "noise, by definition" if control else Cell(text=comparison.verdict, tone=_TONES.get(comparison.verdict, "")),
        Cell(
            text=str(comparison.launches),
            below=f"about {needed} needed" if needed else "" if comparison.scope == "launches" else comparison.scope,
        ),
        NONE if comparison.p_holm is None else chance_text(comparison.p_holm),
    ]


def outlier_table(result: Result) -> Table:
    """Return how many queries were slow, and what their block met."""
    causes = [
        *_CAUSES,
        *sorted({name for arm in result.arms for name in arm.scenarios[0].outliers.attributed} - set(_CAUSES)),
    ]
    rows: list[list[Cell | str]] = []
    for arm in result.arms:
        scenario, found = arm.scenarios[0], arm.scenarios[0].outliers.attributed
        counts = [found.get(cause, 0) for cause in causes]
        all_of_them = max(1, sum(counts))
        rows.append(
            [
                arm_cell(result, arm),
                f"{scenario.queries:,}",
                f"{scenario.outliers.mild:,}",
                f"{scenario.outliers.severe:,}",
                *(Cell(text=f"{count:,}", below=f"{100 * count / all_of_them:.0f} %") for count in counts),
                NONE if scenario.involuntary_switches is None else f"{scenario.involuntary_switches:,}",
                NONE if scenario.throttled_blocks is None else f"{scenario.throttled_blocks:,}",
            ]
        )
    return table_of(
        "Slow queries, and what their block met",
        ("arm", "queries", "mild", "severe", *causes, "switches in all", "throttled blocks"),
        rows,
        caption="Mild: beyond 1.5 interquartile ranges (Tukey), severe: beyond 3. They are counted and explained, none is "
        "removed.",
        wide=True,
    )


def stage_table(result: Result) -> Table:
    """Return percentiles and spread of every stage of every arm; inference alone stands beside the end-to-end time."""
    rows = [
        _stage_row(result, arm, name, found, arm.scenarios[0].queries)
        for arm in result.measured_arms
        for name, found in (
            ("end to end", arm.scenarios[0].latency.e2e),
            ("preprocessing", arm.scenarios[0].latency.pre),
            ("inference", arm.scenarios[0].latency.infer),
            ("decision", arm.scenarios[0].latency.post),
        )
    ]
    bounds = [
        f"{arm.id} p90 {_optional(latency.mlperf_bound_p90)}, p99 {_optional(latency.mlperf_bound_p99)}"
        for arm in result.measured_arms
        for latency in [arm.scenarios[0].latency]
    ]
    return table_of(
        "Times of every stage, ms",
        ("arm", "p50", "p90", "p95", "p99", "p99.9", "min", "max", "mean", "MAD", "p99 − p50"),
        rows,
        caption="MAD: median absolute deviation. Early-stopping bounds by MLPerf's rules, end to end, 99 % confidence, ms: "
        f"{'; '.join(bounds)}.",
        wide=True,
    )


def _stage_row(result: Result, arm: Arm, stage: str, found: Distribution, queries: int) -> list[Cell | str]:
    return [
        arm_cell(result, arm, below=stage),
        quantile_cell(found.p50, queries),
        quantile_cell(found.p90, queries),
        quantile_cell(found.p95, queries),
        quantile_cell(found.p99, queries, bounded=True),
        NONE if found.p99_9.value is None else milliseconds(found.p99_9.value),
        milliseconds(found.min),
        milliseconds(found.max),
        milliseconds(found.mean),
        milliseconds(found.mad),
        _optional(found.jitter),
    ]


def _optional(nanoseconds: int | None) -> str:
    return NONE if nanoseconds is None else milliseconds(nanoseconds)
