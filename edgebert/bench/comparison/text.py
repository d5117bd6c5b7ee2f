"""The verdicts of a comparison in words, at most 100 columns wide (bench.md, section 4.3).

>>> percent_text(0.1234), percent_text(0.0004), points_text(-0.004)
('12.3', '0.04', '-0.4')
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from edgebert._console import printable
from edgebert.bench.comparison.comparability import deciding
from edgebert.bench.comparison.compare import SIGNIFICANT, ArmComparison, CompareReport, Guard, difference_text
from edgebert.bench.environment.difference import Difference
from edgebert.bench.schema import AccuracyTwin, Comparison

WIDTH = 100

_METRICS: Mapping[str, str] = {
    "latency.e2e.p50": "p50 end to end",
    "latency.e2e.p90": "p90 end to end",
    "latency.e2e.p99": "p99 end to end",
    "throughput": "time per image",
}
_GUARDS: Mapping[Guard, str] = {
    "kept": "no more than that is lost",
    "exceeded": "more than that is lost: the whole interval lies below",
    "inconclusive": "inconclusive: the interval holds both; more test images would decide",
}


def text_of_report(report: CompareReport) -> str:
    """Return the whole report as plain text."""
    return "\n".join(_wrapped(paragraphs_of(report)))


def sentence_of(arms: ArmComparison, comparison: Comparison) -> str:
    """Return the verdict as one sentence: `B is faster than A by 12.3 % [10.1, 14.2], p50 end to end, unpaired, …`."""
    a, b = names_of(arms)
    how = ", ".join(
        (
            _METRICS.get(comparison.metric, comparison.metric),
            *(() if comparison.scenario == "single-stream" else (comparison.scenario,)),
            "paired" if comparison.paired else "unpaired",
            *(("cross-device",) if arms.cross_device else ()),
            f"{comparison.launches} launch{'es' if comparison.launches != 1 else ''}"
            + ("" if comparison.paired else " each"),
            *(("within-run only",) if comparison.scope == "within-run only" else ()),
        )
    )
    ratio = f"{comparison.ratio:.4g}{_interval(comparison)}"
    if comparison.verdict in ("faster", "slower"):
        return f"{b} is {comparison.verdict} than {a} by {_change(comparison)}, {how}"
    if comparison.verdict == "equivalent":
        delta = percent_text(comparison.delta)
        return f"no difference larger than {delta} % between {b} and {a}: ratio {ratio}, {how}"
    return f"inconclusive whether {b} is faster or slower than {a}: ratio {ratio}, {how}{_more_launches(comparison)}"


def accuracy_sentence(twin: AccuracyTwin) -> str:
    """Return the accuracy twin of a speed verdict: `top-1 changes by -0.4 pp [-0.7, -0.1], McNemar exact p = 0.02`."""
    low, high = twin.delta_ci95
    chance = "p < 0.001" if twin.mcnemar_p < 0.001 else f"p = {twin.mcnemar_p:.2g}"
    counts = f"{twin.only_a_right} images right only before, {twin.only_b_right} only after"
    return (
        f"top-1 changes by {points_text(twin.delta_top1)} pp [{points_text(low)}, {points_text(high)}], "
        f"McNemar exact {chance} ({counts})"
    )


def names_of(arms: ArmComparison) -> tuple[str, str]:
    """Return what both sides are called: by the arm, and by the file as well where both arms have one name."""
    if arms.a.file == arms.b.file and arms.a.run_id == arms.b.run_id:
        return arms.a.arm, arms.b.arm
    return f"{arms.a.arm} ({arms.a.file})", f"{arms.b.arm} ({arms.b.file})"


def percent_text(share: float) -> str:
    """Return a share in per cent: one decimal, more where that would show less than two digits."""
    value = 100 * share
    return f"{value:.1f}" if abs(value) >= 0.95 or value == 0 else f"{value:.2g}"


def points_text(share: float) -> str:
    """Return a difference of shares in percentage points with its sign."""
    value = 100 * share
    return f"{value:+.1f}" if abs(value) >= 0.095 or value == 0 else f"{value:+.2f}"


def paragraphs_of(report: CompareReport) -> Iterator[tuple[int, str]]:
    """Yield the report's paragraphs, each with the indent it has on a terminal."""
    if report.obstacles:
        yield 0, "not comparable:"
        yield from ((2, line) for line in report.obstacles)
    for arms in report.arms:
        yield from _of_arms(arms, report.max_drop)
    told = [entry for entry in report.differences if entry not in deciding(report.differences)]
    if told:
        yield 0, "differences of the two runs:"
        yield from ((2, difference_text(entry)) for entry in told)
    yield from ((0, f"note: {note}") for note in report.notes)


def _of_arms(arms: ArmComparison, max_drop: float | None) -> Iterator[tuple[int, str]]:
    a, b = names_of(arms)
    if arms.obstacles:
        yield 0, f"{b} and {a} are not comparable:"
        yield from ((2, line) for line in arms.obstacles)
    for comparison in arms.comparisons:
        yield 0, sentence_of(arms, comparison)
        yield 2, f"{_ratio_text(comparison)}; {_threshold(comparison)}"
    if arms.comparisons:
        yield 2, accuracy_sentence(arms.comparisons[0].accuracy)
        yield 2, _dominance(arms)
    if max_drop is not None and arms.guard is not None:
        yield 2, f"at most {max_drop:g} points of top-1 may be lost: {_GUARDS[arms.guard]}"
    yield from ((2, f"differs: {difference_text(entry)}") for entry in _told(arms))


def _told(arms: ArmComparison) -> tuple[Difference, ...]:
    decisive = deciding(arms.differences)
    return tuple(entry for entry in arms.differences if entry not in decisive)


def _dominance(arms: ArmComparison) -> str:
    a, b = names_of(arms)
    winner = arms.better
    if winner is not None:
        return f"{b if winner == 'b' else a} is better: ahead in speed or accuracy, behind in neither"
    twin = arms.comparisons[0].accuracy
    if twin.mcnemar_p < SIGNIFICANT:
        return "neither is better: speed and accuracy do not agree, or one of them is open"
    return "neither is called better: that takes a lead in one of speed and accuracy, and no loss in the other"


def _change(comparison: Comparison) -> str:
    """Return the per cent less (or more) time with its interval."""
    assert comparison.ci95 is not None  # there is no such verdict without one
    low, high = comparison.ci95
    bounds = (1 - high, 1 - low) if comparison.verdict == "faster" else (low - 1, high - 1)
    shift = abs(1 - comparison.ratio)
    return f"{percent_text(shift)} % [{percent_text(bounds[0])}, {percent_text(bounds[1])}]"


def _ratio_text(comparison: Comparison) -> str:
    if comparison.verdict not in ("faster", "slower"):
        return comparison.method
    return f"ratio of times {comparison.ratio:.4g}{_interval(comparison)}"


def _interval(comparison: Comparison) -> str:
    if comparison.ci95 is None:
        return " (no interval)"
    low, high = comparison.ci95
    return f" [{low:.4g}, {high:.4g}]"


def _threshold(comparison: Comparison) -> str:
    """Return what a difference had to exceed, and why that much."""
    floor = comparison.noise_floor
    if floor is None or floor.ci95 is None:
        why = "no A/A control" if floor is None else "the A/A control has no interval"
        return f"claimed beyond {percent_text(comparison.delta)} % (the margin; {why})"
    noise = max(abs(bound - 1) for bound in floor.ci95)
    return (
        f"claimed beyond {percent_text(comparison.delta)} % "
        f"(margin {percent_text(comparison.margin)} %, A/A noise {percent_text(noise)} %)"
    )


def _more_launches(comparison: Comparison) -> str:
    if comparison.launches_needed is None:
        return ""
    more = comparison.launches_needed - comparison.launches
    if more <= 0:
        return f"; the ratio lies at the border of {percent_text(comparison.delta)} %"
    return f"; about {more} more launches would resolve {percent_text(comparison.delta)} %"


def _wrapped(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for indent, line in lines:
        yield from textwrap.wrap(
            printable(line).replace("\n", " "),
            WIDTH,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 2),
            break_on_hyphens=False,
        )
