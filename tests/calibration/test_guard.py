"""The guard's rule with made-up judges: what goes back, when it gives up, and how often it asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from edgebert.calibration.guard import GuardOptions, GuardResult, Judgement, guarded
from edgebert.errors import UsageError

_PLACES = tuple(f"layer{number}" for number in range(16))
_WORST_FIRST = (*reversed(_PLACES[8:]), *_PLACES[:8])  # an order of its own

Judge = Callable[[Sequence[str]], Judgement]


def _share(names: Sequence[str]) -> float:
    return len(names) / len(_PLACES)


def _needs(count: int) -> tuple[Judge, list[tuple[str, ...]]]:
    """Return a judge of whom each of the `count` worst layers costs a point of agreement, and what it was asked."""
    asked: list[tuple[str, ...]] = []

    def judge(names: Sequence[str]) -> Judgement:
        asked.append(tuple(names))
        bad = len(set(_WORST_FIRST[:count]) & set(names))
        return Judgement(drop=bad / 10, agreement=100.0 - bad)

    return judge, asked


def _guarded(judge: Judge, **options: float) -> GuardResult:
    return guarded(_PLACES, _WORST_FIRST, _share, judge, GuardOptions(**{"min_agreement": 100.0, **options}))


def test_guarded_asks_once_where_the_promise_holds() -> None:
    judge, asked = _needs(0)
    result = _guarded(judge)
    assert result.held
    assert (result.places, result.reverted, result.broken) == (_PLACES, (), "")
    assert asked == [_PLACES]


@pytest.mark.parametrize("count", range(1, 12))
def test_guarded_reverts_the_worst_and_no_more(count: int) -> None:
    judge, _ = _needs(count)
    result = _guarded(judge, min_int8_share=0.25)
    assert result.held
    assert result.reverted == _WORST_FIRST[:count]
    assert result.places == tuple(name for name in _PLACES if name not in _WORST_FIRST[:count])
    assert (result.before.agreement, result.after.agreement) == (100.0 - count, 100.0)


def test_guarded_result_is_one_that_was_judged() -> None:
    judge, asked = _needs(5)
    assert _guarded(judge).places in asked


@pytest.mark.parametrize("count", range(17))
def test_guarded_asks_as_often_as_halving_does(count: int) -> None:
    judge, asked = _needs(count)
    _guarded(judge)
    assert len(asked) <= 2 + math.ceil(math.log2(len(_PLACES)))
    assert len(asked) == len(set(asked))


def test_guarded_does_not_go_below_the_least_share() -> None:
    judge, asked = _needs(10)
    result = _guarded(judge, min_int8_share=0.5)
    assert not result.held
    assert min(len(names) for names in asked) == 8


def test_guarded_leaves_one_layer_however_small_the_share() -> None:
    judge, asked = _needs(16)
    assert not _guarded(judge, min_int8_share=1e-9).held
    assert min(len(names) for names in asked) == 1


def test_guarded_returns_the_best_where_the_promise_cannot_be_kept() -> None:
    judge, _ = _needs(16)
    result = _guarded(judge, min_int8_share=0.25)
    assert len(result.reverted) == 12
    assert result.after.agreement == 96.0
    assert result.broken == "agreement 96.00 % is below 100 %"


def test_guarded_returns_all_in_int8_where_reverting_does_not_help() -> None:
    result = _guarded(lambda names: Judgement(drop=3.0, agreement=90.0))
    assert not result.held
    assert (result.places, result.reverted) == (_PLACES, ())


def test_guarded_reverts_nothing_where_no_share_is_left_to_give() -> None:
    judge, asked = _needs(3)
    result = _guarded(judge, min_int8_share=1.0)
    assert not result.held
    assert asked == [_PLACES]
    assert result.reverted == ()


def test_guarded_holds_what_is_promised_of_the_drop() -> None:
    judge, _ = _needs(5)  # half a point
    options = GuardOptions(max_drop=0.25)
    result = guarded(_PLACES, _WORST_FIRST, _share, judge, options)
    assert result.held
    assert result.reverted == _WORST_FIRST[:3]
    assert result.after.drop == pytest.approx(0.2)


def test_guard_result_says_in_json_what_it_did() -> None:
    judge, _ = _needs(2)
    assert _guarded(judge).to_json() == {
        "held": True,
        "reverted": list(_WORST_FIRST[:2]),
        "drop_before": 0.2,
        "drop_after": 0.0,
        "agreement_before": 98.0,
        "agreement_after": 100.0,
    }


@pytest.mark.parametrize(
    ("judgement", "broken"),
    [
        (Judgement(drop=0.3, agreement=99.5), ""),
        (Judgement(drop=-1.0, agreement=100.0), ""),
        (Judgement(drop=0.31, agreement=99.5), "0.31 points lost are above 0.3"),
        (Judgement(drop=0.4, agreement=99.0), "0.40 points lost are above 0.3 and agreement 99.00 % is below 99.5 %"),
    ],
)
def test_broken_by_takes_limits_as_kept_and_says_what_is_not(judgement: Judgement, broken: str) -> None:
    assert GuardOptions(max_drop=0.3, min_agreement=99.5).broken_by(judgement) == broken


def test_guard_options_are_off_without_a_promise() -> None:
    assert not GuardOptions().on
    assert GuardOptions(max_drop=0.0).on
    assert GuardOptions(min_agreement=99.0).on


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": -0.1},
        {"max_drop": 101.0},
        {"max_drop": math.nan},
        {"min_agreement": 0.0},
        {"min_agreement": 100.1},
        {"min_agreement": math.nan},
        {"min_int8_share": 0.0},
        {"min_int8_share": 1.1},
    ],
)
def test_guard_options_refuse_what_cannot_be_meant(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(UsageError, match=name):
        GuardOptions(**options)
