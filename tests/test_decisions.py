"""From logits to what is said: one class, or every class that reaches its threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgebert.card import ModelCard, Provenance
from edgebert.confidence import Confidence
from edgebert.decisions import decisions, margins, said_names, sigmoid, softmax, spoken, threshold_logits
from edgebert.errors import EdgebertError
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, -2.0, -1.0]], np.float32)


def test_decisions_say_the_class_of_the_largest_logit_without_thresholds() -> None:
    assert decisions(LOGITS, ()).tolist() == [[True, False, False], [False, False, True]]
    tied = np.array([[1.0, 1.0]], np.float32)
    assert decisions(tied, ()).tolist() == [[True, False]]


def test_decisions_say_every_class_that_reaches_its_threshold_or_none() -> None:
    assert decisions(LOGITS, (0.5, 0.5, 0.5)).tolist() == [[True, False, True], [False, False, False]]
    assert decisions(LOGITS, (0.9, 0.2, 0.9)).tolist() == [[False, True, False], [False, False, False]]
    assert decisions(np.zeros((1, 1), np.float32), (0.5,)).tolist() == [[True]]  # a threshold that is reached exactly


def test_margins_are_how_far_a_logit_is_from_another_decision() -> None:
    assert margins(LOGITS, ()).tolist() == [1.5, 1.0]
    assert margins(LOGITS, (0.5, 0.5, 0.5)).tolist() == [0.5, 1.0]
    limits = (0.9, 0.2, 0.9)
    nearest = [min(abs(row - threshold_logits(limits))) for row in LOGITS.astype(np.float64)]
    assert margins(LOGITS, limits).tolist() == pytest.approx(nearest)
    assert sigmoid(threshold_logits(limits)).tolist() == pytest.approx(limits)


def test_sigmoid_and_softmax_neither_overflow_nor_lose_what_float64_can_tell() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e4, -30.0, 0.0, 30.0, 1e4], np.float32)).tolist() == pytest.approx(
            [0.0, 9.357622968840175e-14, 0.5, 1 - 9.357622968840175e-14, 1.0], rel=1e-12
        )
        assert softmax(np.array([[1e4, 0.0]], np.float32)).tolist() == [[1.0, 0.0]]


def test_said_names_and_spoken_keep_the_order_of_the_classes() -> None:
    assert said_names(np.array([True, False, True]), ("a", "b", "c")) == ("a", "c")
    assert (spoken(("a", "c")), spoken(())) == ("`a`, `c`", "no label")


def test_post_says_labels_with_the_surest_first() -> None:
    card = ModelCard(
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(height=4, width=4),
        provenance=Provenance(stage="export"),
        task="multi-label",
        thresholds=(0.5, 0.2, 0.5),
    )
    pipeline = Pipeline(FakeRunner(InputSpec(height=4, width=4, classes=3)), card)
    both, none = pipeline.post(np.array([[0.1, -1.0, 2.0], [-3.0, -2.0, -1.0]], np.float32))
    assert both.labels == ("c", "a", "b")
    assert (both.label, both.index) == ("c", 2)
    assert both.scores == pytest.approx(tuple(1 / (1 + np.exp(-np.array([0.1, -1.0, 2.0])))))
    assert both.score == both.scores[2]
    assert (none.labels, none.label) == ((), "c")
    with pytest.raises(EdgebertError, match="answered image 0"):
        pipeline.post(np.array([[np.nan, 0.0, 0.0]], np.float32))


@pytest.mark.parametrize("temperature", [0.05, 0.7, 20.0])
def test_post_says_the_same_labels_at_any_temperature(temperature: float) -> None:
    card = ModelCard(
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(height=4, width=4),
        provenance=Provenance(stage="export"),
        task="multi-label",
        thresholds=(0.5, 0.2, 0.9),
    )
    confidence = Confidence(temperature=temperature, ece_before=0.1, ece_after=0.1, images=100)
    runner = FakeRunner(InputSpec(height=4, width=4, classes=3))
    logits = np.random.default_rng(0).normal(0, 4, (200, 3)).astype(np.float32)
    logits[0] = 40, 50, 45  # sigmoids that float64 cannot tell from 1
    plain = Pipeline(runner, card).post(logits)
    calibrated = Pipeline(runner, replace(card, confidence=confidence)).post(logits)
    for before, after, row in zip(plain, calibrated, logits, strict=True):
        assert (after.labels, after.label, after.index) == (before.labels, before.label, before.index)
        assert after.scores == pytest.approx(sigmoid(row.astype(np.float64) / temperature).tolist())
        assert after.score == max(after.scores)
        assert not after.abstained
