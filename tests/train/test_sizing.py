"""Sizing: MACs as the exported graph has them, a fit that recovers a device, a search on a fake one, and a real one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgebert.bench.environment.computer import read_environment
from edgebert.card import ModelCard, Provenance
from edgebert.cli import main
from edgebert.data import Dataset, load_dataset
from edgebert.errors import CannotWriteError, UnavailableError, UsageError
from edgebert.examples import example_images
from edgebert.export.graph import ExportOptions, graph_from_checkpoint
from edgebert.models.checkpoint import new_model, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing
from edgebert.train import sizing
from edgebert.train.sizing import ANCHORS, MAX_ROUNDS, SizeOptions, SizeReport, search, sizes_from_data
from edgebert.train.sizing_cost import (
    PRIOR,
    Candidate,
    Cost,
    LatencyModel,
    candidate_of,
    fitted_model,
    grid_of_candidates,
    next_candidates,
    spread_anchors,
)
from edgebert.train.sizing_measure import Latency, Timing

DEVICE = LatencyModel(
    (0.5, 0.05, 9.0, 6.0)
)  # of the fake: INT8; FP32 has no INT8 nodes and takes twice as long to multiply


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The digits, with test images that cannot be read."""
    loaded = load_dataset("digits")
    return replace(loaded, test=tuple(replace(example, source=b"") for example in loaded.test))


@pytest.mark.parametrize(("shape", "side"), [("d32-l2-h2-r2", 8), ("d64-l3-h2-r4-t16", 30)])
def test_cost_is_that_of_the_exported_graph(digits: Dataset, tmp_path: Path, shape: str, side: int) -> None:
    rule = Preprocessing(height=side, width=side)
    model = new_model(shape, preprocessing=rule, class_names=digits.class_names, seed=0)
    card = ModelCard(class_names=digits.class_names, preprocessing=rule, provenance=Provenance(stage="train"))
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, card, example_images(digits.val, digits.class_names, rule, 3))
    graph_from_checkpoint(tmp_path / "checkpoint", tmp_path / "model.onnx", ExportOptions(max_flips=3))
    cost = candidate_of(shape, side, classes=10).cost
    assert cost.macs == macs_of_graph(onnx.load(tmp_path / "model.onnx"))
    assert cost.tokens == 16


def macs_of_graph(model: onnx.ModelProto) -> int:
    """Count multiply-accumulates of one image in Conv, MatMul and Gemm, from inferred shapes."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [max(1, side.dim_value) for side in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    shapes.update({tensor.name: list(tensor.dims) for tensor in inferred.initializer})
    total = 0
    for node in inferred.node:
        made = int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            total += made * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type == "MatMul":
            total += made * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            total += made * shapes[node.input[0]][0 if turned else -1]
    return total


@pytest.mark.parametrize("side", [8, 28, 32, 224, 384])
def test_grid_holds_only_shapes_that_students_can_have(side: int) -> None:
    grid = grid_of_candidates(side, classes=5)
    assert len({candidate.shape for candidate in grid}) == len(grid) > 50
    assert [candidate.cost.macs for candidate in grid] == sorted(candidate.cost.macs for candidate in grid)
    assert all(candidate_of(candidate.shape, side, classes=5) == candidate for candidate in grid)
    assert all(1 <= candidate.cost.tokens <= 64 for candidate in grid)


def test_candidate_refuses_a_name_that_is_no_student() -> None:
    with pytest.raises(UsageError, match="no such student: `bert-nano`"):
        candidate_of("bert-nano", 32, classes=5)


def test_fitted_model_recovers_a_device() -> None:
    grid = grid_of_candidates(224, classes=5)
    model = fitted_model([(entry.cost, DEVICE.milliseconds(entry.cost)) for entry in grid[::20]])
    assert model.coefficients == pytest.approx(DEVICE.coefficients, rel=1e-3)


def test_fitted_model_has_no_negative_coefficient_where_plain_least_squares_has() -> None:
    grid = grid_of_candidates(224, classes=5)[::16]
    rng = np.random.default_rng(1)
    times = [2.0 + entry.cost.block_macs / 1e9 * rng.uniform(0.2, 3) for entry in grid]
    plain, *_ = np.linalg.lstsq(np.array([entry.cost.features for entry in grid]), np.array(times), rcond=None)
    assert plain.min() < 0
    assert min(fitted_model([(entry.cost, time) for entry, time in zip(grid, times, strict=True)]).coefficients) >= 0


def test_fitted_model_scales_the_prior_to_a_single_measurement() -> None:
    cost = candidate_of("small", 224, classes=5).cost
    assert fitted_model([(cost, 7.0)]).milliseconds(cost) == pytest.approx(7.0)


def test_spread_anchors_begin_with_the_cheapest_and_differ() -> None:
    grid = grid_of_candidates(224, classes=5)
    anchors = spread_anchors(grid, 3.0, ANCHORS)
    assert anchors[0].shape == grid[0].shape
    assert len({anchor.shape for anchor in anchors}) == ANCHORS
    assert len({anchor.cost.tokens for anchor in anchors}) == 2
    assert all(PRIOR.milliseconds(anchor.cost) < 3 * 1.6 for anchor in anchors)


def test_next_candidates_take_the_largest_that_are_predicted_to_fit() -> None:
    grid = grid_of_candidates(224, classes=5)
    chosen = next_candidates(grid, [DEVICE], 3.0, 3)
    fitting = [entry for entry in grid if DEVICE.milliseconds(entry.cost) <= 3.0]
    assert chosen[0] == max(fitting, key=lambda entry: entry.cost.macs)
    assert DEVICE.milliseconds(chosen[1].cost) <= 0.9 * 3.0
    assert DEVICE.milliseconds(chosen[2].cost) <= 1.08 * 3.0
    assert next_candidates(grid, [DEVICE], 0.1, 3) == []


class FakeDevice:
    """Measures by formula; a clock that moves by `seconds` for each shape that is built for the first time."""

    def __init__(self, grid: Sequence[Candidate], seconds: float = 10.0, noise: float = 0.0) -> None:
        self.costs = {candidate.shape: candidate.cost for candidate in grid}
        self.rounds: list[list[str]] = []
        self.seconds, self.noise, self.now = seconds, noise, 0.0
        self._rng = np.random.default_rng(0)

    def milliseconds(self, shape: str) -> float:
        cost = self.costs[shape]
        return DEVICE.milliseconds(cost) * (
            1 + 0.1 * math.sin(cost.block_macs % 97)
        )  # not what any linear model can learn

    def measure(self, shapes: Sequence[str]) -> list[Timing]:
        known = set(itertools.chain.from_iterable(self.rounds))
        self.now += self.seconds * len(set(shapes) - known)
        self.rounds.append(list(shapes))
        return [self._timing(shape) for shape in shapes]

    def clock(self) -> float:
        return self.now

    def _timing(self, shape: str) -> Timing:
        int8 = self.milliseconds(shape) * (1 + self.noise * self._rng.standard_normal())
        fp32 = 0.9 * int8 if self.costs[shape].macs < 2e7 else 1.7 * int8
        return Timing(
            shape=shape,
            parameters=self.costs[shape].block_macs // 49,
            latencies={"fp32": _latency(fp32), "int8": _latency(int8)},
        )


def _latency(p90: float) -> Latency:
    return Latency(p50=0.9 * p90, p90=p90, p90_low=p90, p90_high=p90, queries=200, size_bytes=1000)


@pytest.mark.parametrize("budget", [1.0, 3.0, 12.0])
def test_search_comes_close_to_the_best_of_the_grid_in_a_few_rounds(budget: float) -> None:
    grid = grid_of_candidates(224, classes=5)
    device = FakeDevice(grid)
    found = search(grid, device.measure, budget, limit_s=1e9, clock=device.clock)
    assert found.proposed is not None
    assert found.rounds == len(device.rounds) <= MAX_ROUNDS
    assert len(found.rows) <= 15
    possible = [entry for entry in grid if device.milliseconds(entry.shape) <= budget]
    assert device.costs[found.proposed].macs >= 0.75 * max(entry.cost.macs for entry in possible)
    best = next(row for row in found.rows if row.shape == found.proposed)
    assert best.inside
    assert best.latency.p90 <= budget
    assert best.macs == max(row.macs for row in found.rows if row.inside)


def test_search_measures_the_best_again_beside_what_may_replace_it() -> None:
    grid = grid_of_candidates(224, classes=5)
    device = FakeDevice(grid, noise=0.02)
    search(grid, device.measure, 3.0, limit_s=1e9, clock=device.clock)
    assert len(device.rounds) > 1
    for earlier, later in itertools.pairwise(device.rounds):
        assert len(set(earlier) & set(later)) == 1


def test_search_stops_at_the_time_limit_after_one_round() -> None:
    grid = grid_of_candidates(224, classes=5)
    device = FakeDevice(grid)
    found = search(grid, device.measure, 3.0, limit_s=55.0, clock=device.clock)
    assert (found.rounds, found.stopped) == (1, "time")
    assert found.proposed is not None


def test_search_proposes_nothing_where_nothing_fits() -> None:
    grid = grid_of_candidates(224, classes=5)
    device = FakeDevice(grid)
    found = search(grid, device.measure, 0.2, limit_s=1e9, clock=device.clock)
    assert (found.proposed, found.stopped) == (None, "found")
    assert found.rows[0].latency.p90 == min(row.latency.p90 for row in found.rows)


def test_rows_say_which_form_ships_and_which_shapes_no_other_beats() -> None:
    grid = [candidate_of(shape, 224, classes=5) for shape in ("d32-l2-h2-r2", "d128-l8-h4-r2", "d256-l6-h8-r4")]
    device = FakeDevice(grid)
    rows = search(grid, device.measure, 3.0, limit_s=1e9, fixed=True).rows
    assert [row.precision for row in rows] == ["fp32", "int8", "int8"]
    for row in rows:
        beaten = any(other.macs >= row.macs and other.latency.p90 < row.latency.p90 for other in rows)
        assert row.pareto is not beaten


def test_sizes_from_data_measures_real_students(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "load_dataset", lambda data, options: digits)
    monkeypatch.setattr("edgebert.train.sizing_measure._QUERIES", 40)
    monkeypatch.setattr("edgebert.train.sizing_measure._SECONDS", 0.0)
    monkeypatch.setattr("edgebert.train.sizing_measure._MAX_WARMUP_SECONDS", 0.1)
    shapes = ("d32-l2-h2-r2", "d64-l2-h2-r2")
    options = SizeOptions(image_size=8, target="cpu", budget_ms=1000.0, shapes=shapes, threads=1, timed_images=8)
    report = sizes_from_data("digits", options, tmp_path / "size.json")
    assert {row.shape for row in report.rows} == set(shapes)
    assert report.proposed == "d64-l2-h2-r2"
    assert report.exit_code == 0
    assert (report.calibration_images, report.timed_images) == (16, 8)
    for row in report.rows:
        rule = Preprocessing(height=8, width=8)
        model = new_model(row.shape, preprocessing=rule, class_names=digits.class_names, seed=0)
        assert row.parameters == parameter_count(model)
        assert set(row.latencies) == {"fp32", "int8"}
        for latency in row.latencies.values():
            assert 0 < latency.p50 <= latency.p90
            assert latency.queries >= 30
            assert latency.size_bytes > row.parameters
    written = json.loads((tmp_path / "size.json").read_text())
    assert written["schema"] == "edgebert.size/1"
    assert written["environment"]["device"]["cpu"]["threads"] >= 1
    assert [row["shape"] for row in written["rows"]] == [row.shape for row in report.rows]
    text = report.to_text()
    assert 'student = "d64-l2-h2-r2"\nimage_size = 8' in text
    assert "edgebert distill digits --teacher TEACHER --student d64-l2-h2-r2 --image-size 8 -o student/" in text
    assert "accuracy does" in text
    with pytest.raises(CannotWriteError, match="exists"):
        sizes_from_data("digits", options, tmp_path / "size.json")
    busy = replace(report, rows=tuple(replace(row, other_busy=0.5) for row in report.rows))
    assert "used up to 50% of the processors" in busy.to_text()
    none = replace(report, proposed=None, budget_ms=0.001)
    assert none.exit_code == 1
    assert f"the fastest, {report.rows[0].shape}, has p90 {report.rows[0].latency.p90:.3f} ms" in none.to_text()


def test_sizes_from_data_refuses_a_target_that_is_not_here_before_it_reads_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(sizing, "load_dataset")
    with pytest.raises(UnavailableError) as refused:
        sizes_from_data("digits", SizeOptions(image_size=8, target="jetson", budget_ms=1.0))
    assert refused.value.exit_code == 69


def test_command_gives_what_the_options_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [candidate_of(shape, 224, classes=5) for shape in ("d64-l2-h2-r2", "d256-l6-h8-r4")]
    seen: list[tuple[str, SizeOptions, Path | None]] = []

    def fake(data: str, options: SizeOptions, output: Path | None) -> SizeReport:
        seen.append((data, options, output))
        device = FakeDevice(grid)
        found = search(grid, device.measure, options.budget_ms, limit_s=1e9, fixed=True)
        return SizeReport(
            data=data,
            target=options.target,
            image_size=options.image_size,
            budget_ms=options.budget_ms,
            threads=1,
            rows=found.rows,
            proposed=found.proposed,
            rounds=found.rounds,
            stopped=found.stopped,
            grid=len(grid),
            calibration_images=16,
            timed_images=64,
            minutes=0.1,
            environment=read_environment(),
            path=output,
        )

    monkeypatch.setattr(sizing, "sizes_from_data", fake)
    words = ["size", "my photos", "--image-size", "224", "--target", "cpu", "--budget-ms"]
    for budget, code, said in (
        ("30", 0, "distill 'my photos' --teacher"),
        ("0.1", 1, "the fastest, d64-l2-h2-r2, has"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*words, budget, "--shape", "d64-l2-h2-r2", "--threads", "1", "-o", "size.json"])
        assert left.value.code == code
        assert said in capsys.readouterr().out
    expected = SizeOptions(image_size=224, target="cpu", budget_ms=30.0, shapes=("d64-l2-h2-r2",), threads=1)
    assert seen[0] == ("my photos", expected, Path("size.json"))
    with pytest.raises(SystemExit):
        main([*words, "30", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["proposed"] == "d256-l6-h8-r4"
    assert answer["command"].endswith("--student d256-l6-h8-r4 --image-size 224 -o student/")
    assert seen[-1][1] == SizeOptions(image_size=224, target="cpu", budget_ms=30.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": "toaster"}, "toaster"),
        ({"budget_ms": 0.0}, "budget_ms"),
        ({"image_size": 2}, "image_size"),
        ({"shapes": ("nano", "nano")}, "each once"),
        ({"calibration_images": 3}, "calibration_images"),
    ],
)
def test_size_options_refuse(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        SizeOptions(**{"image_size": 8, "target": "cpu", "budget_ms": 1.0, **change})  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_cost_counts_all_parts() -> None:
    cost = Cost(tokens=1, layers=2, stem_macs=3, block_macs=4, head_macs=5)
    assert cost.macs == 12
    assert cost.features == (1.0, 2.0, 3e-9, 9e-9)
