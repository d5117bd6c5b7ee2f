"""The verdict on a ratio of times, and its exit code (bench.md, section 4.3).

A difference is claimed only beyond delta: the margin that matters to the user, or what two copies of the baseline differed by
in the same run, whichever is larger.

>>> verdict_of((1.04, 1.06), margin=0.01, noise_floor=(0.99, 1.015625))
('slower', 0.015625)
>>> verdict_of((0.999, 1.004), margin=0.01, noise_floor=None)
('equivalent', 0.01)
>>> verdict_of((0.9, 1.1), margin=0.01, noise_floor=(0.5, 1.5))
('inconclusive', 0.5)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol

from edgebert.bench.statistics.formulas import Interval
from edgebert.bench.statistics.launches import LaunchContrast

Verdict = Literal["faster", "slower", "equivalent", "inconclusive", "not comparable"]

DEFAULT_MARGIN = 0.01
MAX_EQUIVALENCE = (
    0.05  # beyond it "no difference larger than delta" says only that the run was noisy; bench.md's TOST has 5 %
)
MIN_CLAIM_LAUNCHES = 2  # one launch of identical arms is "faster" or "slower" too often: docs/bench-statistics.md

VERDICT_EXIT_CODES: Mapping[Verdict, int] = MappingProxyType(
    {"faster": 0, "equivalent": 0, "slower": 3, "inconclusive": 4, "not comparable": 5}
)


def verdict_of(
    ci: Interval | None, *, margin: float, noise_floor: Interval | None, obstacles: Sequence[str] = ()
) -> tuple[Verdict, float]:
    """Return the verdict on arm b and the delta it was reached with.

    Args:
        ci: interval of the time of b over that of a; None where none can be stated, which is inconclusive.
        margin: difference that does not matter, relative, at least 0.
        noise_floor: interval of the A/A control of the same run; None where the run had none.
        obstacles: why the two cannot be compared: fields that differ, an invalid run. Looked at first.
    """
    delta = margin_and_floor(margin, noise_floor)
    if obstacles:
        return "not comparable", delta
    if ci is None:
        return "inconclusive", delta
    low, high = ci
    if high < 1 - delta:
        return "faster", delta
    if low > 1 + delta:
        return "slower", delta
    if 1 - delta < low and high < 1 + delta and delta <= max(margin, MAX_EQUIVALENCE):
        return "equivalent", delta
    return "inconclusive", delta


class Control(Protocol):
    """An A/A control, whatever holds it: the interval of the ratio of two copies of the same thing."""

    @property
    def ci95(self) -> Interval | None: ...


def verdict_of_contrast(
    contrast: LaunchContrast, *, control: Control | None, margin: float, obstacles: Sequence[str] = ()
) -> tuple[Verdict, float]:
    """Return the verdict on a contrast and its delta; one launch, or a control without an interval, is inconclusive.

    What a process got at its start is the same in all rounds of a launch, so a single launch cannot tell it from a difference
    between the arms, and its A/A control cannot either.

    Args:
        contrast: of the arm against the baseline.
        control: of the baseline's copy against the baseline, from the same launches; None where the run had none.
        margin: as for `verdict_of`.
        obstacles: as for `verdict_of`.
    """
    interval, floor = contrast.ci95, control.ci95 if control else None
    if contrast.launches < MIN_CLAIM_LAUNCHES or (control is not None and floor is None):
        interval = None
    return verdict_of(interval, margin=margin, noise_floor=floor, obstacles=obstacles)


def margin_and_floor(margin: float, noise_floor: Interval | None) -> float:
    """Return delta: the larger of the margin and the farthest bound of the A/A interval from 1."""
    assert margin >= 0
    if noise_floor is None:
        return margin
    return max(margin, *(abs(bound - 1) for bound in noise_floor))
