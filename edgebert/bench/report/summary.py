"""The first table of a report: every arm with its size, accuracy, times and memory, and intervals wherever there are any."""

from __future__ import annotations

from collections.abc import Callable

from edgebert.bench.report.parts import Cell, Table, colour_of, table_of
from edgebert.bench.report.quantities import (
    NONE,
    count_text,
    duration_range,
    duration_text,
    milliseconds,
    percent,
    points,
    range_text,
    rate_text,
    size_text,
)
from edgebert.bench.report.table import (
    agreement_gap,
    map_text,
    quantile_bound,
    quantile_interval,
    share_interval,
    speedup_interval,
    speedup_of,
)
from edgebert.bench.report.words import measure_of
from edgebert.bench.schema import Arm, Interval, MultiLabelAccuracy, Quantile, Result, ScenarioName

_SEVERAL = ("micro-F1, %", "macro-F1, %", "mAP, %", "exact match, %")
_CAPTION = (
    "Latency is end to end from a decoded image, one image at a time. Small print: 95 % intervals; ≤: an upper bound at 95 % "
    "confidence. Bold: the best of its column, and told apart from every other arm by its interval. Change: of accuracy, from the "
    "arm that agreement is with. Peak RSS: resident memory of the process. Start: cold, from a fresh process to its first answer; "
    "warm, import, load and first query."
)


def summary_table(result: Result) -> Table:
    """Return the table of the arms that were asked for."""
    several = measure_of(result) != "top-1"
    headers = (
        "arm",
        "size",
        *(_SEVERAL if several else ("top-1, %",)),
        "change, pp",
        "agreement, %",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "p99.9, ms",
        "images/s",
        "speed-up",
        "peak RSS",
        "start",
    )
    best = {
        "p50": best_arm(result, _less_time("latency.e2e.p50", "single-stream")),
        "p90": best_arm(result, _less_time("latency.e2e.p90", "single-stream")),
        "p99": best_arm(result, _less_time("latency.e2e.p99", "single-stream")),
        "throughput": best_arm(result, _less_time("throughput", "offline")),
        "top1": best_arm(result, _more_right),
    }
    rows = [
        _row(result, arm, {name for name, found in best.items() if found == arm.id}) for arm in result.measured_arms
    ]
    return table_of("", headers, rows, caption=_CAPTION, wide=True, cards=True)


def best_arm(result: Result, beats: Callable[[Result, Arm, Arm], bool]) -> str | None:
    """Return the arm that beats every other one; None where there is none, or no other."""
    arms = result.measured_arms
    for arm in arms if len(arms) > 1 else ():
        if all(beats(result, arm, other) for other in arms if other is not arm):
            return arm.id
    return None


def _less_time(metric: str, scenario: ScenarioName) -> Callable[[Result, Arm, Arm], bool]:
    """Return what says whether one arm is faster than another by the verdicts against the baseline.

    Two candidates are told apart where the intervals of their ratios do not meet.
    """

    def beats(result: Result, arm: Arm, other: Arm) -> bool:
        ours, theirs = (result.comparison(each.id, metric, scenario) for each in (arm, other))
        if other.role == "baseline":
            return ours is not None and ours.verdict == "faster"
        if arm.role == "baseline":
            return theirs is not None and theirs.verdict == "slower"
        if ours is None or theirs is None:
            return False
        usable = all(each.verdict != "not comparable" for each in (ours, theirs))
        return usable and _below(ours.ci95, theirs.ci95)

    return beats


def _below(first: Interval | None, second: Interval | None) -> bool:
    return first is not None and second is not None and first[1] < second[0]


def _more_right(result: Result, arm: Arm, other: Arm) -> bool:
    """Say whether one arm is right more often: by the paired interval where the two were compared, else by their own."""
    for comparison in result.comparisons:
        low, high = comparison.accuracy.delta_ci95
        if (comparison.a, comparison.b) == (other.id, arm.id):
            return low > 0
        if (comparison.a, comparison.b) == (arm.id, other.id):
            return high < 0
    return _below(other.accuracy.top1.ci95, arm.accuracy.top1.ci95)


def _row(result: Result, arm: Arm, best: set[str]) -> list[Cell | str]:
    scenario, accuracy, e2e = arm.scenarios[0], arm.accuracy, arm.scenarios[0].latency.e2e
    agreement = accuracy.agreement
    return [
        Cell(
            text=arm.id,
            below=f"{arm.artifact.name} on {arm.backend}, target {arm.target}",
            colour=colour_of(result, arm),
        ),
        Cell(
            text=size_text(arm.artifact.bytes),
            below=arm.artifact.precision,
            remark=f"{count_text(arm.artifact.parameters)} parameters" if arm.artifact.parameters else "",
        ),
        *_several_cells(accuracy.multi_label),
        Cell(text=percent(accuracy.top1.value), below=share_interval(accuracy.top1), strong="top1" in best),
        _change(arm),
        Cell(
            text=percent(agreement.share.value) if agreement else agreement_gap(result, arm),
            remark=f"with {agreement.reference}" if agreement else "",
        ),
        quantile_cell(e2e.p50, scenario.queries, strong="p50" in best),
        quantile_cell(e2e.p90, scenario.queries, strong="p90" in best),
        quantile_cell(e2e.p99, scenario.queries, strong="p99" in best, bounded=True),
        quantile_cell(e2e.p99_9, scenario.queries, bounded=True),
        _throughput(arm, strong="throughput" in best),
        Cell(text=speedup_of(result, arm), below=speedup_interval(result, arm)),
        _memory(arm),
        _startup(arm),
    ]


def quantile_cell(quantile: Quantile, queries: int, *, strong: bool = False, bounded: bool = False) -> Cell:
    """Return a percentile with its interval, `bounded` also its upper bound, or how many queries it would take."""
    if quantile.value is None:
        return Cell(text=NONE, remark=f"not estimable: needs {quantile.needs:,}, has {queries:,}")
    bound, below = quantile_bound(quantile) if bounded else "", quantile_interval(quantile)
    return Cell(text=milliseconds(quantile.value), below=below or bound, remark=bound if below else "", strong=strong)


def _change(arm: Arm) -> Cell:
    accuracy = arm.accuracy
    if accuracy.delta_top1 is None:
        return Cell(text=NONE)
    interval = accuracy.delta_top1_ci95
    below = "" if interval is None else range_text(points(interval[0]), points(interval[1]))
    return Cell(text=points(accuracy.delta_top1), below=below)


def _several_cells(several: MultiLabelAccuracy | None) -> tuple[Cell, ...]:
    """Return what stands before the share of right decisions."""
    if several is None:
        return ()
    return (
        Cell(text=percent(several.micro_f1)),
        Cell(text=percent(several.macro_f1)),
        Cell(text=map_text(several)),
    )


def _throughput(arm: Arm, *, strong: bool) -> Cell:
    scenario = arm.scenario("offline")
    where = "one at a time"
    if scenario is None:
        scenario = arm.scenarios[0]
    else:
        best = max(scenario.curve, key=lambda point: point.throughput, default=None)
        where = "offline" if best is None else f"offline, {best.batch}×{best.inflight}"
    interval = scenario.throughput_ci95
    below = "" if interval is None else range_text(rate_text(interval[0]), rate_text(interval[1]))
    return Cell(text=rate_text(scenario.throughput), below=below, remark=where, strong=strong)


def _memory(arm: Arm) -> Cell:
    memory = arm.memory
    if memory.peak is None:
        return Cell(text=NONE)
    grown = None if memory.rss_before_load is None else memory.peak - memory.rss_before_load
    return Cell(text=size_text(memory.peak), remark="" if grown is None else f"{size_text(max(0, grown))} by the model")


def _startup(arm: Arm) -> Cell:
    cold = arm.startup.cold
    if cold is not None:
        spread = duration_range(min(cold.total.values), max(cold.total.values))
        return Cell(text=duration_text(cold.total.median), below=spread, remark="cold")
    startup = arm.startup
    return Cell(
        text=duration_text(startup.import_ns.median + startup.load_ns.median + startup.first_query_ns.median),
        remark="warm",
    )
