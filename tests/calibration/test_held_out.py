"""Divergences by hand, and the score that tells candidates apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert._json import dump_json
from edgebert.calibration import held_out
from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.calibration.held_out import HeldOut, divergences
from edgebert.data import Dataset
from edgebert.errors import BadDataError
from edgebert.export.metadata import card_of_model, parse_graph

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def images(digits: Dataset) -> NDArray[np.uint8]:
    """uint8 (40, 8, 8, 3): training digits."""
    return np.stack([example.load() for example in digits.train[:40]])


@pytest.fixture(scope="module")
def forty(trained_graph: Path, images: NDArray[np.uint8]) -> HeldOut:
    """These digits with what the trained student answers."""
    model = parse_graph(trained_graph)
    return HeldOut(model, card_of_model(model), lambda: iter(images), len(images))


def test_divergences_of_one_label_are_kl_of_the_softmax() -> None:
    reference, logits = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    expected = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert divergences(reference + 3, logits - 7, ()).tolist() == pytest.approx([expected])


def test_divergences_of_several_labels_are_summed_over_them() -> None:
    reference, logits = np.array([[0.0, 0.0]]), np.log([[3.0, 1.0]])  # 1/2 and 1/2 against 3/4 and 1/2
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert divergences(reference, logits, (0.5, 0.5)).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5)])
def test_divergences_are_zero_for_equal_and_large_logits(thresholds: tuple[float, ...]) -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    assert divergences(logits, logits, thresholds).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5)])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_divergences_of_logits_that_are_not_finite_are_infinite(odd: float, thresholds: tuple[float, ...]) -> None:
    reference = np.array([[1.0, 2.0], [1.0, 2.0]], np.float32)
    logits = np.array([[odd, 2.0], [1.0, 2.0]], np.float32)
    assert divergences(reference, logits, thresholds).tolist() == [np.inf, 0.0]


def test_held_out_scores_fp32_itself_at_zero(forty: HeldOut, trained_graph: Path) -> None:
    score = forty.score(parse_graph(trained_graph))
    assert (score.divergence, score.uncertainty, score.agreement) == (0.0, 0.0, 1.0)


def test_held_out_score_is_the_mean_of_the_divergences(forty: HeldOut) -> None:
    moved = forty.reference.copy()
    moved[:20, 3] += 2
    each = divergences(forty.reference, moved, ())
    score = forty.score_of(moved)
    assert score.divergence == pytest.approx(each.mean())
    assert score.uncertainty == pytest.approx(1.96 * each.std() / np.sqrt(40))


def test_held_out_agreement_is_the_share_of_equal_decisions(forty: HeldOut) -> None:
    turned = forty.reference.copy()
    turned[:10] *= -1
    assert forty.score_of(turned).agreement == 0.75


def test_held_out_score_of_nan_is_infinite_and_can_be_written(forty: HeldOut) -> None:
    broken = forty.reference.copy()
    broken[0, 0] = np.nan
    score = forty.score_of(broken)
    assert score.divergence == np.inf
    assert json.loads(dump_json(score.to_json()))["kl"] is None


def test_held_out_answers_of_int8_are_the_portable_graph_s(
    forty: HeldOut, trained_graph: Path, images: NDArray[np.uint8]
) -> None:
    import onnxruntime

    int8 = unsearched_int8_graph(parse_graph(trained_graph), images)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(int8.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(None, {"image": images})[0])
    np.testing.assert_allclose(forty.answers(int8), expected, atol=0.02 * float(np.abs(expected).max()))


def test_held_out_decodes_again_what_it_may_not_keep(
    forty: HeldOut, trained_graph: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "_KEPT_BYTES", 0)
    model = parse_graph(trained_graph)
    again = HeldOut(model, card_of_model(model), lambda: iter(images), len(images))
    np.testing.assert_array_equal(again.reference, forty.reference)


def test_held_out_refuses_no_images(trained_graph: Path) -> None:
    model = parse_graph(trained_graph)
    with pytest.raises(BadDataError, match="no held-out images"):
        HeldOut(model, card_of_model(model), lambda: iter(()), 0)
