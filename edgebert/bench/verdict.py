"""What a result says, in words. Every sentence holds for this run only, and says how sure it is."""

from __future__ import annotations

from edgebert.bench.schema import AccuracyTwin, Arm, Comparison, Result
from edgebert.bench.table import factor_text, map_text, measure_of, milliseconds, percent

SIGNIFICANT = 0.05


def headline(result: Result) -> str:
    """Return the one line that stands at the top."""
    if not result.status.valid:
        return "These numbers are not valid"
    if not result.comparisons:
        arm = result.arms[0]
        return f"{arm.id} answers in {_p50(arm)} ms with {percent(arm.accuracy.top1.value)} % {measure_of(result)}"
    best = max(result.comparisons, key=lambda comparison: comparison.speedup)
    ours, theirs = (percent(result.arm(name).accuracy.top1.value) for name in (best.b, best.a))
    what = measure_of(result)
    accuracy = f"at the same {what} of {ours} %" if ours == theirs else f"with {what} {ours} % against {theirs} %"
    return f"{best.b} is {_times(best)} {best.a}, {accuracy}"


def sentences(result: Result) -> list[str]:
    """Return the findings, one paragraph for each arm, the baseline first."""
    if not result.status.valid:
        return [
            "A run is valid only if every query was answered and every timed decision is one that accuracy was measured on."
        ]
    by_name = {comparison.b: comparison for comparison in result.comparisons}
    return [_paragraph(arm, by_name.get(arm.id), measure_of(result)) for arm in result.arms]


def _paragraph(arm: Arm, comparison: Comparison | None, measure: str) -> str:
    top1, e2e = arm.accuracy.top1, arm.scenarios[0].latency.e2e
    parts = [
        f"{arm.id} answers in {_p50(arm)} ms at the median"
        + (f" and {milliseconds(e2e.p99.value)} ms at p99" if e2e.p99.value is not None else "")
        + f", and is right on {percent(top1.value)} % of {top1.n} test images "
        f"(95 % interval {100 * top1.ci95[0]:.1f} to {100 * top1.ci95[1]:.1f} %)."
    ]
    if (several := arm.accuracy.multi_label) is not None:
        parts.append(
            "Right means that exactly the labels of an image are said; "
            f"F1 is {percent(several.micro_f1)} % over all decisions and {percent(several.macro_f1)} % over the classes, "
            f"mean average precision {map_text(several)} %."
        )
    if comparison is not None:
        interval = _interval(comparison)
        parts.append(
            f"That is {_times(comparison)} {comparison.a}{interval}. {_accuracy_change(comparison.accuracy, measure)}"
        )
    if arm.accuracy.agreement is not None:
        agreement = arm.accuracy.agreement
        parts.append(f"It decides as {agreement.reference} does on {percent(agreement.share.value)} % of the images.")
    return " ".join(parts)


def _times(comparison: Comparison) -> str:
    """Return `4.2 times as fast as`, or that no difference was seen."""
    if comparison.ci95 is not None and comparison.ci95[0] <= 1 <= comparison.ci95[1]:
        return "not told apart in speed from"
    return f"{factor_text(comparison.speedup)} times as fast as"


def _interval(comparison: Comparison) -> str:
    if comparison.ci95 is None:
        return ""
    low, high = comparison.ci95
    return f" (95 % interval {factor_text(1 / high)} to {factor_text(1 / low)}, within this run)"


def _accuracy_change(twin: AccuracyTwin, measure: str) -> str:
    name = measure[0].upper() + measure[1:]
    points = 100 * twin.delta_top1
    if twin.only_a_right == twin.only_b_right == 0:
        return f"{name} is the same, image by image."
    seen = "" if twin.mcnemar_p < SIGNIFICANT else ": no more than chance would do"
    chance = "p < 0.001" if twin.mcnemar_p < 0.001 else f"p = {twin.mcnemar_p:.2g}"
    change = f"{points:+.2f}".replace("-", "−")
    return f"{name} changes by {change} percentage points (McNemar's exact {chance}{seen})."


def _p50(arm: Arm) -> str:
    value = arm.scenarios[0].latency.e2e.p50.value
    return "?" if value is None else milliseconds(value)
