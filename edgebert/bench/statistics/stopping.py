"""When a run has launches enough. Decided by precision, never by what the comparison says, and only a few times.

Stopping when two windows agree selects quiet stretches, and testing after every launch finds differences that are not there;
a rule on the width of the interval does neither by much. What it does cost is in docs/bench-statistics.md.

>>> rule = StoppingRule(min_launches=5, max_launches=10, half_width=0.01)
>>> rule.decide([], launches=5, looks=1), rule.decide([], launches=4, looks=1)
('enough', 'go on')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edgebert.bench.statistics.formulas import Interval

Decision = Literal["go on", "enough", "budget spent"]


class Stated(Protocol):
    """A ratio with its interval, whatever holds it."""

    @property
    def ratio(self) -> float: ...

    @property
    def ci95(self) -> Interval | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """Stop once every interval is narrow enough, or the budget is spent (bench.md, section 4.2).

    Attributes:
        min_launches: before the first look.
        max_launches: the budget.
        half_width: relative half-width of a ratio that is narrow enough: 0.01 for p50, 0.02 for p90.
        max_looks: how often the rule may be asked.
        min_queries: of every arm, below which the percentiles asked for cannot be bounded.
    """

    min_launches: int
    max_launches: int
    half_width: float
    max_looks: int = 10
    min_queries: int = 0

    def __post_init__(self) -> None:
        assert 1 <= self.min_launches <= self.max_launches
        assert self.half_width > 0
        assert self.max_looks >= 1

    def decide(self, contrasts: Sequence[Stated], launches: int, looks: int, *, queries: int | None = None) -> Decision:
        """Return what to do after a complete round of launches.

        `budget spent` means that the run ends and has not converged.

        Args:
            contrasts: all that the run states, the A/A control among them; a contrast without an interval is never narrow.
            launches: of every arm so far.
            looks: times the rule was asked, this one included.
            queries: of the arm that has fewest; None where that is not to count.
        """
        counted = queries is None or queries >= self.min_queries
        narrow = all(relative_half_width(contrast) <= self.half_width for contrast in contrasts)
        if launches >= self.min_launches and counted and narrow:
            return "enough"
        if launches >= self.max_launches or looks >= self.max_looks:
            return "budget spent"
        return "go on"


def relative_half_width(contrast: Stated) -> float:
    """Return half the width of the interval over the ratio; infinite where there is no interval."""
    if contrast.ci95 is None:
        return float("inf")
    low, high = contrast.ci95
    return (high - low) / (2 * contrast.ratio)
