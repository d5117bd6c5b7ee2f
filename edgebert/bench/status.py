"""Whether a run's numbers may be used, and what may have disturbed it."""

from __future__ import annotations

from collections.abc import Sequence

from edgebert.bench.audit.honesty import reasons_of, warnings_of
from edgebert.bench.comparisons import NARROW, wide_comparisons
from edgebert.bench.environment.jetson.findings import SlowDown
from edgebert.bench.options import BenchOptions, budget_of
from edgebert.bench.schema import Arm, Comparison, Interference, Status
from edgebert.bench.statistics.stopping import relative_half_width

MAX_STEAL = 0.02  # share of processor time taken by other guests from which a note is made
MAX_OTHERS = 0.10  # the same for other programs of this computer; this process and the kernel stay below
_MAX_GAP = 0.01  # bench.md, section 5
_MAX_TIMER_SHARE = 0.01  # of p50; bench.md, section 5
_MAX_LATENESS_NS = 1_000_000  # p99 of an open loop that is issued later is told
_MAX_THROTTLED = 0.05  # of the blocks; bench.md, section 12


def status_of(
    arms: Sequence[Arm],
    comparisons: Sequence[Comparison],
    interference: Interference,
    *,
    options: BenchOptions,
    images: tuple[int, int],
    throttle: tuple[int | None, int | None],
    virtualised: bool | None,
    notes: Sequence[str],
    interrupted: str | None,
    slow_downs: Sequence[SlowDown] = (),
) -> Status:
    """Return the status of a run.

    Args:
        arms: all of them.
        comparisons: their intervals say whether the run converged.
        interference: what else ran.
        options: of the run.
        images: how many distinct ones were timed, and how many there are.
        throttle: the counter before and after; None where there is none.
        virtualised: whether this is a virtual machine.
        notes: of the scenarios.
        interrupted: why the run was cut short.
        slow_downs: what the sensors of a Jetson saw while timing.
    """
    before, after = throttle
    counted = None if before is None or after is None else after > before
    slowed = [arm.id for arm in arms if _throttled_share(arm) > _MAX_THROTTLED]
    known = counted is not None or any(arm.scenarios[0].throttled_blocks is not None for arm in arms)
    proven = [found.text for found in slow_downs if found.throttled]
    throttled = (bool(counted) or bool(slowed) or bool(proven)) if known or proven else None
    invalid = [reason for arm in arms for reason in reasons_of(arm)]
    wide = _wide_intervals(comparisons, options)
    reasons = [*invalid, *wide]
    if throttled:
        reasons.append(": ".join(filter(None, ("the processor was throttled while timing", "; ".join(proven)))))
    if interrupted is not None:
        reasons.append(f"the run was cut short: {interrupted}")
    return Status(
        valid=not invalid,
        converged=not wide and all(arm.scenarios[0].warmup.converged for arm in arms),
        throttled=throttled,
        virtualised=virtualised,
        partial=interrupted is not None,
        reasons=tuple(reasons),
        warnings=(
            *_restless(arms),
            *_disturbances(interference),
            *(found.text for found in slow_downs if not found.throttled),
            *_limits(arms, options, images),
            *notes,
            *(warning for arm in arms for warning in warnings_of(arm)),
        ),
    )


def _wide_intervals(comparisons: Sequence[Comparison], options: BenchOptions) -> list[str]:
    """Return which intervals stayed wider than the rigor asks for."""
    goal = budget_of(options).half_width
    return [
        f"not converged: {found.metric.rpartition('.')[2]} of `{found.b}` against `{found.a}` "
        + ("has no interval" if found.ci95 is None else f"is known to {relative_half_width(found):.1%}")
        + f", and {NARROW[found.metric] * goal:.1%} was asked for"
        for found in wide_comparisons(comparisons, goal)
    ]


def _throttled_share(arm: Arm) -> float:
    scenario = arm.scenarios[0]
    return (scenario.throttled_blocks or 0) / max(1, scenario.blocks)


def _restless(arms: Sequence[Arm]) -> list[str]:
    return [
        f"arm `{arm.id}` did not become steady in every warm-up (windows differ by more than 2 %, or have a trend)"
        for arm in arms
        if not arm.scenarios[0].warmup.converged
    ]


def _disturbances(interference: Interference) -> list[str]:
    found = []
    if interference.steal_ratio is not None and interference.steal_ratio > MAX_STEAL:
        found.append(f"the hypervisor gave {interference.steal_ratio:.1%} of the processor time to others while timing")
    if interference.other_busy_ratio is not None and interference.other_busy_ratio > MAX_OTHERS:
        found.append(
            f"other programs used {interference.other_busy_ratio:.0%} of the processor time while timing: "
            "take the latencies as upper bounds"
        )
    return found


def _limits(arms: Sequence[Arm], options: BenchOptions, images: tuple[int, int]) -> list[str]:
    found = []
    if images[0] < min(options.images, images[1]):
        found.append(f"{images[0]} images are timed: more do not fit the memory set aside for them")
    for arm in arms:
        scenario, cost = arm.scenarios[0], arm.harness
        p50 = scenario.latency.e2e.p50.value
        if scenario.gap_ratio is not None and scenario.gap_ratio > _MAX_GAP:
            found.append(f"arm `{arm.id}`: {scenario.gap_ratio:.1%} of the block time belongs to no query")
        if p50 is not None and cost.recorder_ns > _MAX_TIMER_SHARE * p50:
            found.append(f"arm `{arm.id}`: the recorder's own {cost.recorder_ns} ns are more than 1 % of p50")
        open_loops = [entry for entry in arm.scenarios if entry.lateness is not None]
        if open_loops and cost.lateness.p99 > _MAX_LATENESS_NS:
            found.append(f"arm `{arm.id}`: arrivals were issued up to {cost.lateness.p99 / 1e6:.1f} ms late (p99)")
    return found
