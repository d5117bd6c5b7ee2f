"""The search on the trained student: how much is tried, that nothing is drawn, and which wider placements are worth it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgebert._json import dump_json
from edgebert.calibration.calibrate import Calibration, QuantizationRecipe, calibrated
from edgebert.calibration.cost import macs_by_node
from edgebert.calibration.held_out import HeldOut, Score
from edgebert.calibration.placement import Layout
from edgebert.calibration.ranges import ESTIMATORS
from edgebert.calibration.search import Effort, SearchResult, searched
from edgebert.calibration.smoothing import ALPHAS
from edgebert.data import Dataset
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.export.rules import check_int8_graph, qdq_counts

_CALIBRATING, _COMPARING = 64, 32


@pytest.fixture(scope="module")
def images(digits: Dataset) -> NDArray[np.uint8]:
    """uint8 (96, 8, 8, 3): training digits."""
    return np.stack([example.load() for example in digits.train[: _CALIBRATING + _COMPARING]])


@pytest.fixture(scope="module")
def model(trained_graph: Path) -> onnx.ModelProto:
    """The trained student."""
    return parse_graph(trained_graph)


@pytest.fixture(scope="module")
def measured(model: onnx.ModelProto, images: NDArray[np.uint8]) -> Calibration:
    """The student, measured."""
    return calibrated(model, lambda: iter(images[:_CALIBRATING]), _CALIBRATING)


@pytest.fixture(scope="module")
def compared(model: onnx.ModelProto, images: NDArray[np.uint8]) -> HeldOut:
    """Other images."""
    return HeldOut(model, card_of_model(model), lambda: iter(images[_CALIBRATING:]), _COMPARING)


@pytest.fixture(scope="module")
def found(model: onnx.ModelProto, measured: Calibration, compared: HeldOut) -> Mapping[Effort, SearchResult]:
    """What each effort finds."""
    efforts: tuple[Effort, ...] = ("fast", "standard", "best")
    return {effort: searched(measured, compared, macs_by_node(model), effort) for effort in efforts}


class _Scripted(HeldOut):
    """Scores by what is quantised beside the core: the worst of its parts, and 1e-3 where there is none."""

    def __init__(self, measured: Calibration, scores: Mapping[str, Score]) -> None:
        self.count = 8
        self._measured = measured
        self._scores = scores

    def score(self, model: onnx.ModelProto) -> Score:
        return max(
            (self._scores[part] for part in _parts(model, self._measured)),
            key=lambda score: score.divergence,
            default=_score(1e-3),
        )


def _parts(model: onnx.ModelProto, measured: Calibration) -> list[str]:
    """Return which parts beside the core a graph quantises."""
    quantised = {node.name for node in model.graph.node if any(name.endswith(".float") for name in node.input)}
    layouts = {
        "stem": Layout(stem=True),
        "head": Layout(head=True),
        "qk": Layout(attention="qk"),
        "full": Layout(attention="full"),
    }
    core = set(measured.places(Layout()))
    return [name for name, layout in layouts.items() if set(measured.places(layout)) - core <= quantised]


def _score(divergence: float, agreement: float = 1.0) -> Score:
    return Score(divergence=divergence, uncertainty=0.0, agreement=agreement, images=100)


def _many(model: onnx.ModelProto) -> Mapping[str, int]:
    """Return a hundred times the multiplications of the digits' student: enough for wider placements to be worth it."""
    return {name: 100 * count for name, count in macs_by_node(model).items()}


def _wider(model: onnx.ModelProto, measured: Calibration, **scores: Score) -> Mapping[str, Layout]:
    every = {name: scores.get(name, _score(1.0)) for name in ("stem", "head", "qk", "full")}
    result = searched(measured, _Scripted(measured, every), _many(model), "standard")
    return {backend: trial.layout for backend, trial in result.wider.items()}


def test_searched_widens_nothing_where_few_multiplications_move(model: onnx.ModelProto, measured: Calibration) -> None:
    equal = {name: _score(0.0) for name in ("stem", "head", "qk", "full")}
    assert searched(measured, _Scripted(measured, equal), macs_by_node(model), "standard").wider == {}
    assert _wider(model, measured, **equal)


@pytest.mark.parametrize("effort", ["fast", "standard"])
def test_searched_is_the_same_every_time(
    found: Mapping[Effort, SearchResult],
    model: onnx.ModelProto,
    measured: Calibration,
    compared: HeldOut,
    effort: Effort,
) -> None:
    again = searched(measured, compared, macs_by_node(model), effort)
    assert dump_json(again.to_json()) == dump_json(found[effort].to_json())


def test_searched_tries_more_with_more_effort(found: Mapping[Effort, SearchResult]) -> None:
    tried = [len(found[effort].trials) for effort in ("fast", "standard", "best")]
    assert tried[0] < tried[1] < tried[2]
    assert tried[0] == 2


def test_searched_finds_as_good_or_better_with_more_effort(found: Mapping[Effort, SearchResult]) -> None:
    fast, standard, best = (found[effort].chosen.score.divergence for effort in ("fast", "standard", "best"))
    assert best <= standard <= fast


@pytest.mark.parametrize("effort", ["fast", "standard", "best"])
def test_searched_is_never_worse_than_its_first_candidate(found: Mapping[Effort, SearchResult], effort: Effort) -> None:
    result = found[effort]
    assert result.trials[0].recipe == QuantizationRecipe()
    assert result.chosen.score.divergence <= result.trials[0].score.divergence
    narrow = [trial for trial in result.trials if trial.layout == Layout()]
    assert result.chosen.score.divergence == min(trial.score.divergence for trial in narrow)


@pytest.mark.parametrize("effort", ["fast", "standard", "best"])
def test_searched_tries_nothing_twice(found: Mapping[Effort, SearchResult], effort: Effort) -> None:
    trials = [(trial.recipe, trial.layout) for trial in found[effort].trials]
    assert all(trial not in trials[:place] for place, trial in enumerate(trials))


def test_searched_tries_every_smoothing_range_and_placement_in_standard(found: Mapping[Effort, SearchResult]) -> None:
    trials = found["standard"].trials
    assert {trial.recipe.alpha for trial in trials} == {None, *ALPHAS}
    assert {trial.recipe.estimator for trial in trials} == set(ESTIMATORS)
    layouts = {trial.layout for trial in trials if trial.stage == "placement"}
    assert layouts >= {Layout(stem=True), Layout(head=True), Layout(attention="qk"), Layout(attention="full")}
    assert any(trial.recipe.smooth_values for trial in trials)
    assert any(trial.recipe.correct_biases for trial in trials)


def test_searched_gives_values_ranges_of_their_own_in_best_alone(found: Mapping[Effort, SearchResult]) -> None:
    assert any(trial.recipe.exceptions for trial in found["best"].trials if trial.stage == "values")
    assert not any(trial.recipe.exceptions for trial in found["standard"].trials if trial.layout == Layout())


def test_searched_chooses_the_portable_placement(found: Mapping[Effort, SearchResult]) -> None:
    for result in found.values():
        assert result.chosen.layout == Layout()


def test_searched_counts_what_each_candidate_does_in_int8(
    found: Mapping[Effort, SearchResult], model: onnx.ModelProto
) -> None:
    trials = {trial.layout: trial for trial in found["standard"].trials}
    shares = [trials[Layout(attention=mode)].macs_int8 for mode in ("float", "qk", "full")]
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_search_result_says_all_in_json(found: Mapping[Effort, SearchResult]) -> None:
    value = found["standard"].to_json()
    assert value["held_out_images"] == _COMPARING
    trials = value["trials"]
    assert isinstance(trials, list)
    assert len(trials) == len(found["standard"].trials)
    assert value["chosen"] in trials


def test_every_candidate_s_portable_graph_keeps_the_rules(
    found: Mapping[Effort, SearchResult], measured: Calibration
) -> None:
    for trial in found["standard"].trials:
        if trial.layout.attention == "float":
            check_int8_graph(measured.scaled(trial.recipe).emitted(measured.places(trial.layout)))


def test_full_layout_quantises_every_linear_and_product(measured: Calibration) -> None:
    layout = Layout(attention="full", stem=True, head=True)
    graph = measured.scaled(QuantizationRecipe()).emitted(measured.places(layout))
    onnx.checker.check_model(graph, full_check=True)
    counts = qdq_counts(graph)
    assert {kind: count for kind, count in counts.items() if not kind.endswith("Linear")} == {
        "Conv": 2,
        "Gemm": 1,
        "MatMul": 16,
    }


def test_searched_gives_openvino_what_costs_at_most_a_quarter_more(
    model: onnx.ModelProto, measured: Calibration
) -> None:
    found = _wider(model, measured, stem=_score(1.25e-3), qk=_score(1.26e-3), full=_score(1.26e-3))
    assert found == {"openvino": Layout(stem=True), "tensorrt": Layout(stem=True)}


def test_searched_joins_the_parts_that_are_worth_it(model: onnx.ModelProto, measured: Calibration) -> None:
    found = _wider(model, measured, stem=_score(1.1e-3), qk=_score(1.1e-3), full=_score(1.1e-3))
    assert found["openvino"] == Layout(stem=True, attention="full")
    assert found["tensorrt"] == Layout(stem=True)  # its attention stays whole in float


def test_searched_keeps_the_portable_placement_where_a_decision_changes(
    model: onnx.ModelProto, measured: Calibration
) -> None:
    assert _wider(model, measured, stem=_score(1e-3, 0.875), full=_score(1e-3, 0.875), qk=_score(1e-3, 0.875)) == {}


def test_searched_gives_no_target_the_head(model: onnx.ModelProto, measured: Calibration) -> None:
    assert _wider(model, measured, head=_score(1e-3)) == {}


def test_searched_lets_parts_together_cost_no_more_than_one_may(model: onnx.ModelProto, measured: Calibration) -> None:
    """Two parts may each cost a quarter; a quarter on top of a quarter is more than was promised."""

    class Growing(_Scripted):
        def score(self, model: onnx.ModelProto) -> Score:
            costs = {"stem": 1.2, "full": 1.2, "head": 9.0}
            return _score(1e-3 * float(np.prod([costs.get(part, 1.0) for part in _parts(model, measured)])))

    result = searched(measured, Growing(measured, {}), _many(model), "standard")
    assert set(result.wider) == {"openvino", "tensorrt"}
    for trial in result.wider.values():
        assert trial.score.divergence <= 1.25e-3
        assert trial.layout != Layout(stem=True, attention="full")
