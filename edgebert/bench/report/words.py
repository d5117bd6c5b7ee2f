"""What a result says, in the words of bench.md, section 4.3: each verdict on speed with its accuracy beside it.

A difference is claimed only where the verdict of the comparison says so; "better" only where an arm is both faster and more
often right, each beyond its interval.
"""

from __future__ import annotations

from collections.abc import Callable

from edgebert.bench.report.quantities import (
    chance_text,
    factor_text,
    milliseconds,
    percent,
    points,
    rate_text,
    ratio_text,
)
from edgebert.bench.schema import AccuracyTwin, Arm, Comparison, MultiLabelAccuracy, Result, Scenario

SIGNIFICANT = 0.05

_METRICS = {
    "latency.e2e.p50": "p50 end to end",
    "latency.e2e.p90": "p90 end to end",
    "latency.e2e.p99": "p99 end to end",
    "throughput": "throughput",
}


def measure_of(result: Result) -> str:
    """Return what the share of right decisions is called: `top-1`, or `exact match` where there are several labels."""
    several = result.dataset is not None and result.dataset.task == "multi-label"
    return "exact match" if several else "top-1"


def map_text(several: MultiLabelAccuracy) -> str:
    """Return mean average precision in per cent, or a dash where no test image has any label."""
    return "–" if several.mean_average_precision is None else percent(several.mean_average_precision)


def verdicts_of(result: Result) -> list[Comparison]:
    """Return the comparisons that the verdict is about: p50 of single-stream, of every arm but the A/A control."""
    found = (result.comparison(arm.id) for arm in result.measured_arms)
    return [comparison for comparison in found if comparison is not None]


def headline(result: Result) -> str:
    """Return the one line that stands at the top."""
    if not result.arms:
        return "The run was cut short before anything was measured"
    if not result.status.valid:
        return "These numbers are not valid"
    verdicts = verdicts_of(result)
    if not verdicts:
        arm = result.measured_arms[0]
        return f"{arm.id} answers in {_p50(arm)} ms with {percent(arm.accuracy.top1.value)} % {measure_of(result)}"
    chosen = min(verdicts, key=lambda comparison: (_RANK[comparison.verdict], comparison.ratio))
    if len(verdicts) > 1 and chosen.verdict in ("equivalent", "inconclusive", "not comparable"):
        return _SEVERAL_HEADLINES[chosen.verdict].format(a=chosen.a, delta=_delta(chosen))
    ours, theirs = (percent(result.arm(name).accuracy.top1.value) for name in (chosen.b, chosen.a))
    what = measure_of(result)
    accuracy = f"at the same {what} of {ours} %" if ours == theirs else f"with {what} {ours} % against {theirs} %"
    if chosen.verdict in ("inconclusive", "not comparable"):
        return f"{_headline_words(chosen)}; {what} {ours} % against {theirs} %"
    return f"{_headline_words(chosen)}, {accuracy}"


# What is told first where there are several comparisons.
_RANK = {"faster": 0, "slower": 1, "equivalent": 2, "inconclusive": 3, "not comparable": 4}
_SEVERAL_HEADLINES = {
    "equivalent": "No arm was found to be faster or slower than {a} by more than {delta}",
    "inconclusive": "Whether any arm is faster or slower than {a} is open",
    "not comparable": "The arms cannot be compared with {a} from this run",
}


def _headline_words(comparison: Comparison) -> str:
    a, b = comparison.a, comparison.b
    if comparison.verdict == "faster":
        return f"{b} is {factor_text(comparison.speedup)} times as fast as {a}"
    if comparison.verdict == "slower":
        return f"{b} takes {factor_text(comparison.ratio)} times as long as {a}"
    if comparison.verdict == "equivalent":
        return f"{b} and {a} differ in time by no more than {_delta(comparison)}"
    if comparison.verdict == "inconclusive":
        return f"Whether {b} is faster or slower than {a} is open"
    return f"{b} and {a} cannot be compared from this run"


_INVALID = (
    "A run is valid only if every query was answered, every timed decision is one that accuracy was measured on, and the "
    "answers were computed."
)


def sentences(result: Result) -> list[str]:
    """Return the findings, one paragraph for each arm that was asked for, the baseline first."""
    if not result.arms:
        return ["Nothing of it can be used; what was found out about the computer stands below."]
    if not result.status.valid:
        return [_INVALID]
    by_role = sorted(result.measured_arms, key=lambda arm: arm.role != "baseline")
    return [_paragraph(result, arm) for arm in by_role]


def verdict_sentence(result: Result, comparison: Comparison) -> str:
    """Return the verdict of one comparison with its interval, what it is made of, and what it had to exceed."""
    a, b, basis = comparison.a, comparison.b, _basis(comparison)
    if comparison.verdict == "not comparable":
        reasons = [reason.rstrip(".") for reason in result.status.reasons] or ["the run says no reason"]
        return f"{b} and {a} are not comparable ({basis}): {'; '.join(reasons)}."
    if comparison.verdict == "faster":
        less = _percent_of(1 - comparison.ratio)
        bounds = _bounds(comparison, lambda ratio: 1 - ratio)
        return (
            f"{b} is faster than {a} by {less} %{bounds} of its time, {factor_text(comparison.speedup)} times as fast "
            f"({basis}); {_beyond(comparison)}."
        )
    if comparison.verdict == "slower":
        more = _percent_of(comparison.ratio - 1)
        bounds = _bounds(comparison, lambda ratio: ratio - 1)
        return f"{b} is slower than {a} by {more} %{bounds} ({basis}); {_beyond(comparison)}."
    interval = _ratio_interval(comparison)
    if comparison.verdict == "equivalent":
        return f"{b} and {a} do not differ by more than {_delta(comparison)}: ratio of times {interval} ({basis})."
    return (
        f"Inconclusive: whether {b} is faster or slower than {a} by more than {_delta(comparison)} is open, ratio of times "
        f"{interval} ({basis}){_more_launches(comparison)}."
    )


def accuracy_sentence(twin: AccuracyTwin, measure: str) -> str:
    """Return the change of accuracy that goes with a verdict on speed."""
    name = measure[0].upper() + measure[1:]
    if twin.only_a_right == twin.only_b_right == 0:
        return f"{name} is the same, image by image."
    seen = "" if twin.mcnemar_p < SIGNIFICANT else ": no more than chance would do"
    low, high = twin.delta_ci95
    return (
        f"{name} changes by {points(twin.delta_top1)} percentage points [{points(low)}, {points(high)}] "
        f"(McNemar's exact {chance_text(twin.mcnemar_p)}{seen})."
    )


def noise_sentence(result: Result) -> str:
    """Return what the baseline differed from itself by, or that it was not measured."""
    aa = next((arm for arm in result.arms if arm.role == "aa"), None)
    control = result.comparison(aa.id) if aa is not None else None
    floors = [comparison.noise_floor for comparison in verdicts_of(result) if comparison.noise_floor is not None]
    if control is None and not floors:
        return "No A/A control was measured: how far the baseline differs from itself in this run is not known."
    ratio, ci95 = (control.ratio, control.ci95) if control is not None else (floors[0].ratio, floors[0].ci95)
    interval = "no interval" if ci95 is None else f"95 % interval {ratio_text(ci95[0])} to {ratio_text(ci95[1])}"
    return f"A/A control: the baseline against itself gave a ratio of p50 of {ratio_text(ratio)} ({interval})."


def _paragraph(result: Result, arm: Arm) -> str:
    measure, top1, e2e = measure_of(result), arm.accuracy.top1, arm.scenarios[0].latency.e2e
    comparison = result.comparison(arm.id)
    parts = []
    if comparison is not None:
        parts += [verdict_sentence(result, comparison), accuracy_sentence(comparison.accuracy, measure)]
        if _dominates(comparison):
            parts.append(f"In both it is better than {comparison.a}.")
    subject = arm.id if comparison is None else "It"
    parts.append(
        f"{subject} answers in {_p50(arm)} ms at the median"
        + (f" and {milliseconds(e2e.p99.value)} ms at p99" if e2e.p99.value is not None else "")
        + f", and is right on {percent(top1.value)} % of {top1.n:,} test images "
        f"(95 % interval {100 * top1.ci95[0]:.1f} to {100 * top1.ci95[1]:.1f} %)."
    )
    if (several := arm.accuracy.multi_label) is not None:
        parts.append(
            "Right means that exactly the labels of an image are said; "
            f"F1 is {percent(several.micro_f1)} % over all decisions and {percent(several.macro_f1)} % over the classes, "
            f"mean average precision {map_text(several)} %."
        )
    if arm.accuracy.agreement is not None:
        agreement = arm.accuracy.agreement
        parts.append(f"It decides as {agreement.reference} does on {percent(agreement.share.value)} % of the images.")
    return " ".join(parts)


def scenario_sentences(result: Result) -> list[str]:
    """Return what the scenarios beside single-stream came to, one paragraph for each arm."""
    if not result.status.valid:
        return []
    told = [
        (arm, [text for scenario in arm.scenarios[1:] if (text := scenario_sentence(scenario))])
        for arm in result.measured_arms
    ]
    return [f"{arm.id}: {' '.join(texts)}" for arm, texts in told if texts]


def scenario_sentence(scenario: Scenario) -> str:
    """Return what one scenario beside single-stream came to; empty where the table says it all."""
    params = scenario.params
    if scenario.name == "offline":
        best = max(scenario.curve, key=lambda point: point.throughput, default=None)
        where = "" if best is None else f" (batch {best.batch}, {best.inflight} in flight)"
        return f"Offline it answers {rate_text(scenario.throughput)} images per second{where}."
    if scenario.name == "paced" and scenario.deadlines is not None and params.fps is not None:
        found = scenario.deadlines
        return (
            f"At {params.fps:g} frames per second {percent(found.miss_rate.value)} % of {found.frames:,} frames are late or "
            f"dropped ({found.missed:,} late, {found.dropped:,} dropped)."
        )
    if scenario.name == "server" and scenario.server is not None and params.bound_ns is not None:
        bound = f"{milliseconds(params.bound_ns)} ms for {100 * (params.bound_share or 0):g} % of the queries"
        if scenario.server.rate is None:
            return f"It keeps {bound} at none of the {scenario.server.probes} rates tried."
        confirmed = "confirmed by another run" if scenario.server.confirmed else "not confirmed by another run"
        return f"It keeps {bound} up to {rate_text(scenario.server.rate)} queries per second, {confirmed}."
    if scenario.name == "soak" and scenario.soak is not None:
        drift = scenario.soak
        return (
            f"Over a long run p50 goes from {milliseconds(drift.first_p50)} to {milliseconds(drift.last_p50)} ms, "
            f"{ratio_text(drift.ratio)} times the first."
        )
    if scenario.energy is not None:
        energy = scenario.energy
        return (
            f"An image takes {1e3 * energy.above_idle_j_per_image:.3g} mJ above idle ({' + '.join(energy.rails)}, {energy.scope}; idle "
            f"{energy.idle_w:.3g} W)."
        )
    return ""


def _basis(comparison: Comparison) -> str:
    metric = _METRICS.get(comparison.metric, comparison.metric)
    paired = "paired" if comparison.paired else "unpaired, cross-device"
    scope = "" if comparison.scope == "launches" else ", within this run only"
    launches = f"{comparison.launches} launch" + ("es" if comparison.launches != 1 else "")
    where = "" if comparison.scenario == "single-stream" else f", {comparison.scenario}"
    return f"{metric}{where}, {paired}, {launches}{scope}"


def _beyond(comparison: Comparison) -> str:
    if comparison.noise_floor is not None and comparison.delta > comparison.margin:
        return f"that is beyond {_delta(comparison)}, by which the baseline differs from itself"
    return f"that is beyond the margin of {_delta(comparison)}"


def _more_launches(comparison: Comparison) -> str:
    if comparison.launches_needed is None:
        return ""
    more = max(1, comparison.launches_needed - comparison.launches)
    return f"; about {more} more launch{'es' if more > 1 else ''} would resolve it"


def _dominates(comparison: Comparison) -> bool:
    return comparison.verdict == "faster" and comparison.accuracy.delta_ci95[0] > 0


def _delta(comparison: Comparison) -> str:
    return delta_text(comparison.delta)


def delta_text(delta: float) -> str:
    """Return a margin or a noise floor in per cent, two significant digits."""
    return f"{100 * delta:.2g} %" if delta < 0.995 else f"{100 * delta:.0f} %"


def _percent_of(share: float) -> str:
    return f"{100 * share:.1f}"


def _bounds(comparison: Comparison, of: Callable[[float], float]) -> str:
    if comparison.ci95 is None:
        return ""
    low, high = sorted(of(bound) for bound in comparison.ci95)
    return f" [{_percent_of(low)}, {_percent_of(high)}]"


def _ratio_interval(comparison: Comparison) -> str:
    ratio = ratio_text(comparison.ratio)
    if comparison.ci95 is None:
        return f"{ratio}, no interval"
    return f"{ratio} [{ratio_text(comparison.ci95[0])}, {ratio_text(comparison.ci95[1])}]"


def _p50(arm: Arm) -> str:
    value = arm.scenarios[0].latency.e2e.p50.value
    return "?" if value is None else milliseconds(value)
