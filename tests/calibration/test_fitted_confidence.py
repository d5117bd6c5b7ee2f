"""Temperature and abstaining: a known temperature is found, what is reported is out of sample, and luck is not shipped."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.bench.statistics.formulas import wilson_interval
from edgebert.calibration.confidence import fitted_confidence
from edgebert.card import Task
from edgebert.confidence import MAX_TEMPERATURE
from edgebert.decisions import sigmoid, softmax
from edgebert.errors import BadDataError, EdgebertError, UsageError
from edgebert.metrics import expected_calibration_error

Logits = NDArray[np.float64]
Labels = NDArray[np.bool_]
Drawn = Callable[[int], tuple[Logits, Labels]]


def drawn_single(images: int, *, spread: float = 2.0, seed: int = 0) -> tuple[Logits, Labels]:
    """Return logits (images, 6) and labels that are drawn from their softmax: calibrated at temperature 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (images, 6))
    said = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, np.eye(6, dtype=np.bool_)[said]


def drawn_several(images: int) -> tuple[Logits, Labels]:
    """Return logits (images, 4) and labels that are drawn from their sigmoids."""
    random = np.random.default_rng(1)
    logits = random.normal(-1, 2, (images, 4))
    return logits, random.random(logits.shape) < sigmoid(logits)


def sure_and_unsure(sure: int, unsure: int) -> tuple[Logits, Labels]:
    """Return answers of two classes: `sure` ones that are all right, `unsure` ones of which every second pair is."""
    random = np.random.default_rng(2)
    margins = np.concatenate([random.uniform(5, 6, sure), random.uniform(0.1, 0.5, unsure)])
    right = np.concatenate([np.ones(sure, np.bool_), np.arange(unsure) // 2 % 2 == 0])
    logits = np.stack([margins, np.zeros_like(margins)], axis=1)
    return logits, np.stack([right, ~right], axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize(("task", "drawn"), [("single-label", drawn_single), ("multi-label", drawn_several)])
def test_fitted_confidence_finds_the_temperature(task: Task, drawn: Drawn, temperature: float) -> None:
    logits, labels = drawn(8000)
    record = fitted_confidence(temperature * logits, labels, task=task)
    assert record.temperature == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(("task", "drawn"), [("single-label", drawn_single), ("multi-label", drawn_several)])
def test_fitted_confidence_measures_less_error_after_than_before(task: Task, drawn: Drawn) -> None:
    logits, labels = drawn(2000)
    record = fitted_confidence(3 * logits, labels, task=task)
    assert record.ece_before > 0.1
    assert record.ece_after < 0.04
    assert record.images == 2000


def test_error_before_is_that_of_the_logits_as_they_are() -> None:
    logits, labels = drawn_single(500)
    scores = softmax(2 * logits)
    right = labels[np.arange(500), scores.argmax(axis=1)]
    record = fitted_confidence(2 * logits, labels, task="single-label")
    assert record.ece_before == pytest.approx(expected_calibration_error(scores.max(axis=1), right), abs=1e-6)


def test_error_after_is_measured_with_the_other_half_s_temperature() -> None:
    # The even rows are calibrated at 1 and the odd ones at 3, so each half gets a temperature that is wrong for it.
    logits, labels = drawn_single(2000)
    logits[1::2] *= 3
    alike = fitted_confidence(np.repeat(logits[::2], 2, axis=0), np.repeat(labels[::2], 2, axis=0), task="single-label")
    assert fitted_confidence(logits, labels, task="single-label").ece_after > 0.1 > alike.ece_after


@pytest.mark.parametrize("images", [150, 2000])
def test_a_model_that_is_always_right_is_not_made_surer_than_the_images_show(images: int) -> None:
    labels = np.eye(4, dtype=np.bool_)[np.arange(images) % 4]
    logits = np.random.default_rng(0).uniform(2, 5, (images, 1)) * labels
    record = fitted_confidence(logits, labels, task="single-label")
    mean = softmax(logits / record.temperature).max(axis=1).mean()
    assert record.temperature < 1
    assert mean == pytest.approx((images + 1) / (images + 2), abs=1e-5)


def test_a_model_that_is_right_and_sure_is_left_alone() -> None:
    labels = np.eye(4, dtype=np.bool_)[np.arange(150) % 4]
    record = fitted_confidence(20.0 * labels, labels, task="single-label")
    assert record.temperature == 1


def test_a_model_that_is_always_wrong_is_said(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.eye(4, dtype=np.bool_)[np.arange(150) % 4]
    with caplog.at_level(logging.WARNING, "edgebert"):
        record = fitted_confidence(-20.0 * labels, labels, task="single-label")
    assert record.temperature == MAX_TEMPERATURE
    assert "at its bound" in caplog.text


def test_equal_logits_have_no_temperature_but_1() -> None:
    labels = np.eye(4, dtype=np.bool_)[np.arange(150) % 4]
    assert fitted_confidence(np.full((150, 4), 7.0), labels, task="single-label").temperature == 1


def test_few_images_calibrate_nothing_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = drawn_single(99)
    with caplog.at_level(logging.WARNING, "edgebert"):
        record = fitted_confidence(3 * logits, labels, task="single-label")
    assert (record.temperature, record.images) == (1, 99)
    assert record.ece_after == record.ece_before > 0
    assert "only 99 validation images" in caplog.text


def test_threshold_is_the_smallest_that_reaches_the_wanted_precision() -> None:
    logits, labels = sure_and_unsure(180, 120)
    record = fitted_confidence(logits, labels, task="single-label", wanted_precision=0.9)
    assert record.abstain_below is not None
    scores = softmax(logits / record.temperature).max(axis=1)
    kept = scores >= record.abstain_below
    assert labels[kept, 0].mean() >= 0.9
    for score in scores[~kept]:
        assert labels[scores >= score, 0].mean() < 0.9


def test_precision_and_coverage_are_those_of_the_other_half_s_threshold() -> None:
    logits, labels = sure_and_unsure(200, 100)
    record = fitted_confidence(logits, labels, task="single-label", wanted_precision=0.999)
    # Both halves have sure answers alone above their thresholds, or one more that was right by luck.
    assert record.precision is not None
    assert record.coverage is not None
    assert record.coverage == pytest.approx(2 / 3, abs=0.02)
    kept = round(record.coverage * 300)
    assert record.precision_low == wilson_interval(round(record.precision * kept), kept)[0] < record.precision


def test_threshold_is_0_where_every_answer_may_be_kept() -> None:
    logits, labels = drawn_single(400, spread=9)
    record = fitted_confidence(logits, labels, task="single-label", wanted_precision=0.6)
    assert (record.abstain_below, record.coverage) == (0, 1)
    assert "never abstains: precision" in record.to_text()


def test_a_precision_that_few_lucky_answers_reach_is_refused() -> None:
    # 29 right answers above all others: a threshold keeps 30 at least, and the thirtieth is wrong.
    right = np.r_[np.ones(29, np.bool_), np.arange(171) % 2 == 1]
    logits = np.stack([np.linspace(6, 0.1, 200), np.zeros(200)], axis=1)
    labels = np.stack([right, ~right], axis=1)
    with pytest.raises(BadDataError, match=r"precision of 99\.0%") as caught:
        fitted_confidence(logits, labels, task="single-label", wanted_precision=0.99)
    assert caught.value.expected is not None
    assert "at most 96.8%, reached on 15.5% of them" in caught.value.expected
    assert caught.value.hint == "--abstain-precision 0.96, or leave it out"
    assert fitted_confidence(logits, labels, task="single-label", wanted_precision=0.96).abstain_below


def test_a_threshold_that_only_one_half_knows_is_refused() -> None:
    # Sure and right are even rows only: the odd half finds no threshold, and the even half's keeps none of the odd ones.
    right = np.arange(400) % 4 == 0
    logits = np.stack([np.where(right, 6.0, 0.1) + np.linspace(0, 0.01, 400), np.zeros(400)], axis=1)
    labels = np.stack([right, ~right], axis=1)
    with pytest.raises(BadDataError, match="keep none of the other half"):
        fitted_confidence(logits, labels, task="single-label", wanted_precision=0.995)


def test_a_precision_that_the_other_half_does_not_have_is_said(caplog: pytest.LogCaptureFixture) -> None:
    # As above, but the even half's threshold lets a few of the unsure answers through, and in the odd half those are all wrong.
    right = np.arange(400) % 4 == 0
    logits = np.stack([np.where(right, 6.0, 0.1) + np.linspace(0, 0.01, 400), np.zeros(400)], axis=1)
    labels = np.stack([right, ~right], axis=1)
    with caplog.at_level(logging.WARNING, "edgebert"):
        record = fitted_confidence(logits, labels, task="single-label", wanted_precision=0.9)
    assert record.precision == 0
    assert "not the 90.0 % that are wanted" in caplog.text


def test_abstaining_needs_a_hundred_images() -> None:
    with pytest.raises(BadDataError, match="99 validation images for a precision of"):
        fitted_confidence(*drawn_single(99), task="single-label", wanted_precision=0.9)


def test_abstaining_is_refused_where_an_image_has_several_labels() -> None:
    with pytest.raises(UsageError, match="multi-label") as caught:
        fitted_confidence(*drawn_several(200), task="multi-label", wanted_precision=0.9)
    assert caught.value.hint == "leave out --abstain-precision"


@pytest.mark.parametrize("wanted", [0.5, 1.0, 99.0, float("nan")])
def test_a_precision_that_cannot_be_meant_is_refused(wanted: float) -> None:
    with pytest.raises(UsageError, match="abstain_precision"):
        fitted_confidence(*drawn_single(200), task="single-label", wanted_precision=wanted)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((200, 3)), np.zeros((200, 4), np.bool_)),
        (np.zeros((0, 3)), np.zeros((0, 3), np.bool_)),
        (np.zeros((200, 3)), np.zeros((200, 3), np.int64)),
        (np.zeros((200, 3)), np.zeros((200, 3), np.bool_)),
        (np.full((200, 3), np.nan), np.eye(3, dtype=np.bool_)[np.zeros(200, np.int64)]),
    ],
)
def test_fitted_confidence_refuses_arrays_that_do_not_fit(logits: Logits, labels: Labels) -> None:
    with pytest.raises(EdgebertError):
        fitted_confidence(logits, labels, task="single-label")
