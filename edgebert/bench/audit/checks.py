"""What an audit looks at, as pure functions: figures in, a verdict with the name of the fault out.

>>> print(check_memory(9.0, queries=4_000).state, check_memory(4_096.0, queries=4_000).state)
pass fail
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgebert._json import JsonObject
from edgebert.bench.audit.honesty import MAX_INSTANT_SHARE, MIN_INPUT_SENSITIVITY
from edgebert.bench.codec import to_json
from edgebert.bench.schema import NOT_COMPARABLE_EXIT_CODE, Interval
from edgebert.bench.statistics.formulas import Contrast

AUDIT_SCHEMA = "edgebert.bench-audit/1"

MIN_REPEATED_RATIO = 0.95  # bench.md, section 10: a repeated sample is not more than 5 % faster
MAX_ORDER_CHANGE = 0.05  # bench.md, section 10: another seed is within 5 %
# Of a query. Digits graphs on ONNX Runtime, OpenVINO and PyTorch, one and two threads, showed 0.0 % beside other work on two virtual
# cores of an AMD EPYC, 2026-11-25; a backend that sleeps for its whole time, about 100 %.
MAX_WAITING = 0.2
MAX_QUEUED = 0.5  # of the wall time; above it the times of undisturbed queries are the exception
MAX_GROWTH = 1_024.0  # bytes per query; honest backends stayed below 20 (`edgebert.bench.audit.honesty`)
MAX_HARNESS_SHARE = 0.01  # of p50; bench.md, section 5
GARBAGE_RATE = 0.001  # a fault that an audit must find: one wrong answer in 1,000
TARGET_QUERIES = 4_605  # 0.999^4605 = 1 %: the chance that a fault of that rate is missed

State = Literal["pass", "fail", "unclear", "not applicable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """One check of one arm.

    Attributes:
        name: short, the same in every audit.
        state: `unclear` where noise hides which it is.
        value: what was measured; None where it could not be.
        ci95: of the value, where it has one.
        figure: the value as it is read.
        bound: what it had to keep, as it is read.
        finding: a sentence that names the fault, or says what was found.
    """

    name: str
    state: State
    value: float | None
    ci95: Interval | None
    figure: str
    bound: str
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedArm:
    """All checks of one arm.

    Attributes:
        id: name of the arm.
        queries: that were timed.
        seconds: that the audit of this arm took.
        checks: in the order of the report.
    """

    id: str
    target: str
    backend: str
    device: str
    queries: int
    seconds: float
    checks: tuple[AuditCheck, ...]

    @property
    def failed(self) -> tuple[AuditCheck, ...]:
        """The checks that found a fault."""
        return tuple(check for check in self.checks if check.state == "fail")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What `edgebert bench --audit` found."""

    schema: str
    edgebert: str
    created: str
    arms: tuple[AuditedArm, ...]

    @property
    def exit_code(self) -> int:
        """Return 0, or 5 where a check found a fault: such an arm's numbers may not be compared."""
        return NOT_COMPARABLE_EXIT_CODE if any(arm.failed for arm in self.arms) else 0

    def to_json(self) -> JsonObject:
        """Return the report as JSON."""
        return to_json(self)

    def to_text(self) -> str:
        """Return the report as text of at most about 100 columns."""
        parts = [_arm_text(arm) for arm in self.arms]
        bad = [f"`{arm.id}`" for arm in self.arms if arm.failed]
        last = f"faults found in {', '.join(bad)}: its numbers may not be compared" if bad else "no fault found"
        return "\n\n".join([*parts, last])


def check_repeated(contrast: Contrast) -> AuditCheck:
    """Judge the time of one image asked for again and again, over that of images never asked for before."""
    low, high = contrast.ci95 or (contrast.ratio, contrast.ratio)
    state: State = "fail" if high < MIN_REPEATED_RATIO else "pass" if low > MIN_REPEATED_RATIO else "unclear"
    found = {
        "fail": f"a repeated image takes {1 - contrast.ratio:.0%} less time than a new one: answers or parts of them are "
        "remembered",
        "pass": "a repeated image is answered no faster than a new one",
        "unclear": "the times scatter too much to tell; audit again on a quieter computer",
    }
    return AuditCheck(
        name="repeated image",
        state=state,
        value=contrast.ratio,
        ci95=contrast.ci95,
        figure=_ratio_text(contrast),
        bound=f"> {MIN_REPEATED_RATIO}",
        finding=found[state],
    )


def check_order(contrast: Contrast) -> AuditCheck:
    """Judge the time of the images in one order over that in another."""
    low, high = contrast.ci95 or (contrast.ratio, contrast.ratio)
    least, most = 1 - MAX_ORDER_CHANGE, 1 + MAX_ORDER_CHANGE
    state: State = "fail" if high < least or low > most else "pass" if least < low and high < most else "unclear"
    found = {
        "fail": f"the order of the images changes the time by {abs(contrast.ratio - 1):.0%}: it is made for one order",
        "pass": "the order of the images does not matter",
        "unclear": "the times scatter too much to tell; audit again on a quieter computer",
    }
    return AuditCheck(
        name="other seed",
        state=state,
        value=contrast.ratio,
        ci95=contrast.ci95,
        figure=_ratio_text(contrast),
        bound=f"{least} to {most}",
        finding=found[state],
    )


def check_remembered(sensitivity: float | None) -> AuditCheck:
    """Judge the time of an input met before over that of one that differs in a single value."""
    state: State = (
        "not applicable" if sensitivity is None else "pass" if sensitivity >= MIN_INPUT_SENSITIVITY else "fail"
    )
    found = {
        "fail": "an input met before is answered from memory: answers are remembered",
        "pass": "an input met before is computed again",
        "not applicable": "queries failed",
    }
    return AuditCheck(
        name="remembered answers",
        state=state,
        value=sensitivity,
        ci95=None,
        figure="-" if sensitivity is None else f"{sensitivity:.3f}",
        bound=f">= {MIN_INPUT_SENSITIVITY}",
        finding=found[state],
    )


def check_waiting(waiting: float | None, *, device: str) -> AuditCheck:
    """Judge the time of a query in which the backend neither computed nor was in the queue for a processor.

    Args:
        waiting: that time, all threads together, over what a query takes undisturbed.
        device: the backend's name of the device; an accelerator is waited for.
    """
    state: State = "pass"
    if device.upper() != "CPU" or waiting is None:
        state = "not applicable"
    elif waiting > MAX_WAITING:
        state = "fail"
    found = {
        "fail": f"for {waiting or 0:.0%} of the time that a query takes, the backend does not compute: it sleeps or waits",
        "pass": "the backend computes all the time",
        "not applicable": f"the device is `{device}`" if waiting is not None else "the system does not tell",
    }
    return AuditCheck(
        name="sleeping backend",
        state=state,
        value=waiting,
        ci95=None,
        figure="-" if waiting is None else f"{waiting:.1%}",
        bound=f"<= {MAX_WAITING:.0%}",
        finding=found[state],
    )


def check_skipped(instant: int, queries: int, *, queued: float = 0.0) -> AuditCheck:
    """Judge how many queries took less than a quarter of their block's lower quartile.

    Args:
        instant: how many did.
        queries: all of them.
        queued: time in the queue for a processor over the wall time. Where it is most of it, the median is that of disturbed
            queries, and an undisturbed one looks as if it had been skipped.
    """
    share = instant / queries
    state: State = "pass" if share <= MAX_INSTANT_SHARE else "unclear" if queued > MAX_QUEUED else "fail"
    found = {
        "pass": f"{instant:,} of {queries:,} queries took less than a quarter of the lower quartile",
        "fail": f"{instant:,} of {queries:,} queries were answered at once: work is skipped on some",
        "unclear": f"{instant:,} of {queries:,} queries took less than a quarter of the lower quartile: work is skipped on some, or other "
        f"programs disturbed the rest (in the queue for {queued:.0%} of the time)",
    }
    return AuditCheck(
        name="skipped work",
        state=state,
        value=share,
        ci95=None,
        figure=f"{share:.2%}",
        bound=f"<= {MAX_INSTANT_SHARE:.0%}",
        finding=found[state],
    )


def check_answers(checked: int, mismatch: int, errors: int, first_error: str | None) -> AuditCheck:
    """Judge whether timed answers are those that accuracy is measured on."""
    missed = (1 - GARBAGE_RATE) ** checked
    found = f"every answer is that of the accuracy pass; a wrong one in 1,000 would be missed with {missed:.1%}"
    if mismatch:
        found = f"{mismatch:,} of {checked:,} timed answers differ from the accuracy pass: what is fast is not what is right"
    if errors:
        found = f"{errors:,} queries failed; the first: {first_error}"
    return AuditCheck(
        name="timed answers",
        state="fail" if mismatch or errors else "pass",
        value=float(mismatch),
        ci95=None,
        figure=f"{mismatch + errors:,} of {checked:,}",
        bound="0",
        finding=found,
    )


def check_memory(growth: float | None, *, queries: int) -> AuditCheck:
    """Judge the trend of the resident memory, in bytes per query."""
    bad = growth is not None and growth > MAX_GROWTH
    found = "the resident memory has no trend to speak of"
    if growth is None:
        found = "the resident memory cannot be read here"
    elif bad:
        found = f"the resident memory grows by {growth:,.0f} bytes with every query, {growth * queries / 2**20:,.0f} MiB in all: a leak"
    return AuditCheck(
        name="memory",
        state="not applicable" if growth is None else "fail" if bad else "pass",
        value=growth,
        ci95=None,
        figure="-" if growth is None else f"{growth:,.0f} B/query",
        bound=f"<= {MAX_GROWTH:,.0f}",
        finding=found,
    )


def check_harness(recorder_ns: int, p50_ns: int) -> AuditCheck:
    """Judge what the harness itself adds to a query: the end-to-end time of a pipeline that does nothing."""
    share = recorder_ns / p50_ns
    bad = share > MAX_HARNESS_SHARE
    return AuditCheck(
        name="harness cost",
        state="fail" if bad else "pass",
        value=share,
        ci95=None,
        figure=f"{share:.2%}",
        bound=f"<= {MAX_HARNESS_SHARE:.0%}",
        finding=f"the harness adds {recorder_ns:,} ns to a p50 of {p50_ns:,} ns"
        + (": the arm is too fast to be measured query by query" if bad else ""),
    )


def _ratio_text(contrast: Contrast) -> str:
    interval = "" if contrast.ci95 is None else f" [{contrast.ci95[0]:.3f}, {contrast.ci95[1]:.3f}]"
    return f"{contrast.ratio:.3f}{interval}"


def _arm_text(arm: AuditedArm) -> str:
    lines = [f"arm `{arm.id}` ({arm.backend}, {arm.device}): {arm.queries:,} queries in {arm.seconds:.0f} s"]
    states = {"pass": "PASS", "fail": "FAIL", "unclear": "UNCLEAR", "not applicable": "-"}
    for check in arm.checks:
        lines.append(f"  {states[check.state]:<8}{check.name:<20}{check.figure:<24}{check.bound:<14}".rstrip())
        if check.state != "pass" or check.name == "timed answers":
            lines.append(f"          {check.finding}")
    return "\n".join(lines)
