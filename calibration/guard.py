"""The accuracy guard: the layers that hurt most go back to float until the promise holds on validation images.

>>> GuardOptions(min_agreement=99.5).broken_by(Judgement(drop=0.1, agreement=99.2))
'agreement 99.20 % is below 99.5 %'
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgebert._json import JsonObject
from edgebert.errors import UsageError

_log = logging.getLogger("edgebert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How an INT8 graph does on validation images, in the worse of two engines.

    Attributes:
        drop: top-1 (exact matches of several labels) lost against FP32, in points; negative where INT8 is better.
        agreement: images decided as FP32 decides them, in percent.
    """

    drop: float
    agreement: float

    def to_text(self) -> str:
        """Return both in words."""
        change = f"{-self.drop:.2f} points gained" if self.drop < 0 else f"{self.drop:.2f} points lost"
        return f"{change}, agreement {self.agreement:.2f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """What must hold.

    Attributes:
        max_drop: in points, 0 or above; None for no such limit.
        min_agreement: in percent, up to 100; None for no such limit.
        min_int8_share: the share of the layers' multiplications below which nothing more goes back to float, in (0, 1].
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_int8_share: float = 0.25

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"max_drop `{self.max_drop}`", expected="points from 0 to 100", hint="--max-drop 0.3")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 100:
            raise UsageError(
                f"min_agreement `{self.min_agreement}`",
                expected="percent above 0, up to 100",
                hint="--min-agreement 99.5",
            )
        if not 0 < self.min_int8_share <= 1:
            raise UsageError(f"min_int8_share `{self.min_int8_share}`", expected="a share above 0, up to 1")

    @property
    def on(self) -> bool:
        """Whether anything is promised."""
        return self.max_drop is not None or self.min_agreement is not None

    def broken_by(self, judgement: Judgement) -> str:
        """Return what does not hold, in words; empty where all does."""
        broken = []
        if self.max_drop is not None and judgement.drop > self.max_drop + 1e-9:
            broken.append(f"{judgement.drop:.2f} points lost are above {self.max_drop:g}")
        if self.min_agreement is not None and judgement.agreement < self.min_agreement - 1e-9:
            broken.append(f"agreement {judgement.agreement:.2f} % is below {self.min_agreement:g} %")
        return " and ".join(broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardResult:
    """What the guard did.

    Attributes:
        held: whether the promise holds.
        places: the operators left in INT8: the ones that hold, or the best that was found.
        reverted: those that went back to float, the worst first.
        before: with all of them in INT8.
        after: with `places` in INT8.
        broken: what does not hold, in words; empty where `held`.
        macs_before: share of all multiplications in INT8 before, in [0, 1].
        macs_after: and with `places`.
        latency_ms: engine -> median time of one image before and after, on this computer; empty where nothing went back.
    """

    held: bool
    places: tuple[str, ...]
    reverted: tuple[str, ...]
    before: Judgement
    after: Judgement
    broken: str
    macs_before: float = 0.0
    macs_after: float = 0.0
    latency_ms: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return what it did and what that costs, in one sentence."""
        if not self.reverted:
            return f"the promise holds with every layer in INT8: {self.after.to_text()}"
        costs = ", ".join(
            f"{engine} {after / before:.2f} times the time ({before:.3f} to {after:.3f} ms)"
            for engine, (before, after) in self.latency_ms.items()
        )
        return (
            f"{len(self.reverted)} of {len(self.reverted) + len(self.places)} layers went back to float: "
            f"{self.before.to_text()} before, {self.after.to_text()} after; {100 * self.macs_after:.0f} % of the "
            f"multiplications stay in INT8, of {100 * self.macs_before:.0f} %; {costs}"
        )

    def to_json(self) -> JsonObject:
        """Return what the provenance keeps; not the latency, since equal inputs give equal graphs."""
        return {
            "held": self.held,
            "reverted": list(self.reverted),
            "drop_before": self.before.drop,
            "drop_after": self.after.drop,
            "agreement_before": self.before.agreement,
            "agreement_after": self.after.agreement,
        }


def guarded(
    places: Sequence[str],
    worst_first: Sequence[str],
    share: Callable[[Sequence[str]], float],
    judge: Callable[[Sequence[str]], Judgement],
    options: GuardOptions,
) -> GuardResult:
    """Return as many operators in INT8 as the promise allows.

    The number that go back is found by halving, so that a network of 72 layers is judged seven times and not 72; the
    result is one that was judged to hold, though a luckier choice might keep a layer more.

    Args:
        places: the operators in INT8 at first, in graph order.
        worst_first: the same, the one that hurts most first.
        share: operators -> their share of the multiplications of `places`.
        judge: operators in INT8 -> how the graph does.
        options: what must hold.
    """
    judged: dict[int, Judgement] = {}

    def left(reverted: int) -> tuple[str, ...]:
        gone = set(worst_first[:reverted])
        return tuple(name for name in places if name not in gone)

    def holds(reverted: int) -> bool:
        judged[reverted] = judge(left(reverted))
        broken = options.broken_by(judged[reverted])
        _log.info(
            "%d of %d layers in float: %s%s",
            reverted,
            len(places),
            judged[reverted].to_text(),
            "" if broken else ", holds",
        )
        return not broken

    most = max(count for count in range(len(places)) if count == 0 or share(left(count)) >= options.min_int8_share)
    if holds(0):
        best = 0
    elif most == 0 or not holds(most):
        best = max(judged, key=lambda count: (judged[count].agreement, -judged[count].drop, -count))
    else:
        low, best = 0, most  # `low` breaks it, `best` holds
        while best - low > 1:
            middle = (low + best) // 2
            low, best = (low, middle) if holds(middle) else (middle, best)
    broken = options.broken_by(judged[best])
    return GuardResult(
        held=not broken,
        places=left(best),
        reverted=tuple(worst_first[:best]),
        before=judged[0],
        after=judged[best],
        broken=broken,
    )
