"""How it was measured, in words that are made from the run; what the harness costs, and whether its numbers can be believed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from edgebert.bench.report.parts import Cell, Table, Tone, arm_cell, table_of
from edgebert.bench.report.quantities import NONE, duration_text
from edgebert.bench.report.table import threads_text
from edgebert.bench.report.words import delta_text, measure_of
from edgebert.bench.schema import Arm, Result

# Beyond these a number is marked. They are hints for the reader; what makes a run invalid is `status.reasons`.
_REPEATED_INPUT = 0.95  # bench.md, section 10: a repeated input must not be more than 5 % faster
_GAP = 0.01  # bench.md, section 5
_TIMER_SHARE = 0.01  # bench.md, section 5: of p50


def method_of(result: Result) -> Iterator[str]:
    """Yield the method of the run, one paragraph each."""
    data, arm = result.dataset, result.arms[0]
    scenario = arm.scenarios[0]
    assert data is not None
    control = any(other.role == "aa" for other in result.arms)
    yield (
        f"Rigor {result.rigor}: {_counted(scenario.launches, 'launch', 'launches')}. In each launch every arm ran in a fresh "
        f"process of its own with one runtime and {threads_text(arm)}"
        + (
            "; one more process held the baseline once more, the A/A control: what tells it from the baseline is noise."
            if control
            else "; there was no A/A control."
        )
    )
    yield (
        f"The same loaded model classified all {data.n:,} test images of {data.name} and was then timed; every timed decision was "
        f"compared with that pass. Later launches classified the {data.timed:,} timed images once more."
    )
    yield (
        f"Timed region: {scenario.params.region}. Batch {scenario.params.batch}, {scenario.params.inflight} in flight. The "
        f"stages preprocessing ({arm.pipeline.pre}), inference until the logits are readable, and decision are stamped by one "
        f"monotonic clock in nanoseconds and add up to the end-to-end time. {data.timed:,} different test images went round in a "
        "seeded order, the same for every arm."
    )
    yield (
        "After a warm-up, blocks alternated between the arms in a random order and its mirror image, so that a steady drift "
        f"hits all arms alike. The first tenth of each block is kept but not counted. {arm.id}: {scenario.blocks:,} blocks, "
        f"{scenario.queries:,} counted queries, worth {scenario.effective_queries:,.0f} independent ones; the intervals were "
        f"looked at {_counted(scenario.looks, 'time', 'times')}."
    )
    yield _statistics(result)
    yield (
        f"Seeds: images {result.seeds.inputs}, order of blocks {result.seeds.schedule}, bootstrap {result.seeds.bootstrap}. "
        f"Measured {result.created} with edgebert {result.edgebert}, run {result.run_id}."
    )


def _statistics(result: Result) -> str:
    text = (
        "Percentiles are nearest ranks of all counted queries; none was removed. Their intervals come from a bootstrap over "
        "launches and the blocks within them, the bound below p99 from the binomial distribution, that of "
        f"{measure_of(result)} is Wilson's."
    )
    if not result.comparisons:
        return text
    # The A/A control stands first, and claims nothing: what is said is said of the arms, where there are any.
    first = next((found for found in result.comparisons if found.noise_floor is not None), result.comparisons[0])
    within = (
        "They say how launches differ"
        if first.scope == "launches"
        else "They hold within this run: another launch may differ by more"
    )
    return (
        f"{text} Ratios are {first.method}, with intervals of {100 * first.confidence:.4g} % each. {within}. A difference of less "
        f"than δ = {delta_text(first.delta)} is not claimed (margin {delta_text(first.margin)})."
    )


def command_of(result: Result) -> str:
    """Return the command that repeats the measurement, as it is typed."""
    return shlex.join(result.command)


def files_table(result: Result) -> Table:
    """Return the hashes of everything that the result rests on."""
    rows: list[list[Cell | str]] = []
    if result.dataset is not None:
        rows.append(
            [Cell(text=result.dataset.name, below=f"data, {result.dataset.n:,} test images"), result.dataset.sha256]
        )
    rows += [
        [Cell(text=arm.artifact.name, below=f"{arm.artifact.kind} of {arm.id}"), arm.artifact.sha256]
        for arm in result.measured_arms
    ]
    rows += [[Cell(text=record.name, below=name), record.sha256] for name, record in sorted(result.files.items())]
    return table_of("Files", ("file", "SHA-256"), rows)


def check_table(result: Result) -> Table:
    """Return whether what was timed is what was judged, and whether it was computed at all."""
    rows = [_check_row(result, arm) for arm in result.arms]
    return table_of(
        "Checks of the answers",
        (
            "arm",
            "timed answers",
            "differ",
            "answers of later launches",
            "differ",
            "failed",
            "repeated / new input",
            "processor / wall time",
            "instant answers",
            "memory a query",
            "time in no query",
        ),
        rows,
        caption="A repeated input that is answered faster hints at remembered answers, little processor time at waiting instead of "
        "computing, an instant answer took less than a quarter of the lower quartile.",
        wide=True,
    )


def _check_row(result: Result, arm: Arm) -> list[Cell | str]:
    found, gap = arm.consistency, arm.scenarios[0].gap_ratio
    sensitivity = found.input_sensitivity
    return [
        arm_cell(result, arm),
        f"{found.timed_checked:,}",
        _count(found.mismatch),
        f"{found.rechecked:,}",
        _count(found.recheck_mismatch),
        Cell(text=f"{found.errors:,}", tone="bad" if found.errors else "", remark=found.first_error or ""),
        NONE
        if sensitivity is None
        else Cell(text=f"{sensitivity:.3f}", tone="bad" if sensitivity < _REPEATED_INPUT else ""),
        NONE if found.cpu_ratio is None else f"{found.cpu_ratio:.2f}",
        f"{100 * found.instant_share:.2g} %",
        NONE if found.rss_growth_per_query is None else f"{found.rss_growth_per_query:+.1f} B",
        NONE if gap is None else Cell(text=f"{100 * gap:.2f} %", tone="bad" if gap >= _GAP else ""),
    ]


def cost_table(result: Result) -> Table:
    """Return what the harness itself adds to a query, beside what a query takes."""
    rows: list[list[Cell | str]] = []
    for arm in result.arms:
        cost, p50 = arm.harness, arm.scenarios[0].latency.e2e.p50.value
        share = cost.recorder_ns / p50 if p50 else 0.0
        tone: Tone = "bad" if share > _TIMER_SHARE else ""
        rows.append(
            [
                arm_cell(result, arm),
                duration_text(cost.timer_overhead_ns),
                duration_text(cost.recorder_ns),
                duration_text(cost.recorder_p99_ns),
                Cell(text=f"{100 * share:.2g} %", tone=tone),
                duration_text(cost.lateness.p50),
                duration_text(cost.lateness.p99),
            ]
        )
    return table_of(
        "What the harness itself costs",
        (
            "arm",
            "two stamps",
            "empty query, p50",
            "empty query, p99",
            "of the arm's p50",
            "issued late, p50",
            "issued late, p99",
        ),
        rows,
        caption="An empty query goes through the recorder with a pipeline that does nothing. Lateness is that of an open loop of "
        "1,000 arrivals a second with nothing in its way.",
        wide=True,
    )


def _count(count: int) -> Cell:
    return Cell(text=f"{count:,}", tone="bad" if count else "")


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
