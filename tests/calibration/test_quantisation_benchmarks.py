"""The comparison of quantisers: outliers change nothing in FP32, the paired statistics are right, the verdicts say what they claim."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgebert.data import Dataset
from edgebert.errors import BadDataError
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph
from edgebert.export.topology import Topology
from edgebert.preprocess import load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def outliers(benchmarks: None) -> ModuleType:
    return importlib.import_module("outliers")


@pytest.fixture
def paired(benchmarks: None) -> ModuleType:
    return importlib.import_module("_paired")


@pytest.fixture
def quantisation(benchmarks: None) -> ModuleType:
    return importlib.import_module("quantisation")


def _answers(model: onnx.ModelProto, digits: Dataset) -> NDArray[np.float32]:
    """Return float32 (64, 10): the logits of test images."""
    images = load_batch([example.load() for example in digits.test[:64]], card_of_model(model).preprocessing)
    source = ModelSource(spec=InputSpec(height=8, width=8, classes=10), files={"model.onnx": bytes_of_model(model)})
    with open_runner("onnxruntime", source, RunnerOptions(threads=1)) as runner:
        return runner.infer(images)


def _tapped(model: onnx.ModelProto, value: str, digits: Dataset) -> NDArray[np.float32]:
    """Return an inner value of the graph, float32 (batch, tokens, channels)."""
    onnxruntime = pytest.importorskip("onnxruntime")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.add(name=value)
    session = onnxruntime.InferenceSession(bytes_of_model(copy), providers=["CPUExecutionProvider"])
    images = load_batch([example.load() for example in digits.test[:8]], card_of_model(model).preprocessing)
    found: NDArray[np.float32] = session.run([value], {"image": images})[0]
    return found


def test_with_outliers_leaves_the_answers_as_they_are(
    outliers: ModuleType, trained_graph: Path, digits: Dataset
) -> None:
    model = parse_graph(trained_graph)
    before, after = _answers(model, digits), _answers(outliers.with_outliers(model), digits)
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def test_with_outliers_multiplies_four_channels_behind_every_norm_that_linears_alone_read(
    outliers: ModuleType, trained_graph: Path, digits: Dataset
) -> None:
    model = parse_graph(trained_graph)
    changed = outliers.with_outliers(model)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    grown = []
    for norm in norms:
        before, after = (_tapped(each, norm.output[0], digits) for each in (model, changed))
        growth = np.abs(after).max(axis=(0, 1)) / np.abs(before).max(axis=(0, 1))  # (channels,)
        grown.append(int((growth > 49).sum()))
        assert np.all((growth > 49) | (growth < 1.01))
    assert grown == [4, 4, 4, 4, 0]  # the last is read by the pooling


def test_with_outliers_keeps_card_and_examples(outliers: ModuleType, trained_graph: Path) -> None:
    model = parse_graph(trained_graph)
    changed = outliers.with_outliers(model)
    assert card_of_model(changed) == card_of_model(model)
    assert examples_of_model(changed) == examples_of_model(model) != ()


def test_with_outliers_does_not_change_its_argument(outliers: ModuleType, trained_graph: Path) -> None:
    model = parse_graph(trained_graph)
    outliers.with_outliers(model)
    assert bytes_of_model(model) == bytes_of_model(parse_graph(trained_graph))


def test_with_outliers_takes_the_row_that_a_transposed_weight_keeps_as_a_column(outliers: ModuleType) -> None:
    model = _norm_and_gemm()
    changed = outliers.with_outliers(model, channels=1, factor=8.0)
    weight = Topology(changed).array(changed.graph.node[1].input[1])
    assert weight is not None
    assert weight.tolist() == [[1.0, 0.125, 1.0], [1.0, 0.125, 1.0]]  # gamma is largest in channel 1


def test_with_outliers_refuses_a_graph_without_a_norm_that_linears_alone_read(outliers: ModuleType) -> None:
    model = _norm_and_gemm()
    model.graph.output.add(name="normed")
    with pytest.raises(BadDataError, match="no layer norm"):
        outliers.with_outliers(model)


def _norm_and_gemm() -> onnx.ModelProto:
    """Return LayerNormalization of three channels, then Gemm with a weight stored as (out, in)."""
    helper, constant = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["normed"], name="norm"),
        helper.make_node("Gemm", ["normed", "weight"], ["y"], name="linear", transB=1),
    ]
    constants = {
        "gamma": np.array([1, 3, 2], np.float32),
        "beta": np.zeros(3, np.float32),
        "weight": np.ones((2, 3), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [constant(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_kl_by_image_is_the_divergence_of_the_softmax(paired: ModuleType) -> None:
    before, after = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    # A number added to all logits of an image changes no probability.
    assert paired.kl_by_image(before, after + 100.0) == pytest.approx([expected, 0.0], abs=1e-12)


def test_kl_by_image_stays_finite_where_a_probability_underflows(paired: ModuleType) -> None:
    before, after = np.array([[0.0, -2000.0]], np.float32), np.array([[-2000.0, 0.0]], np.float32)
    assert paired.kl_by_image(before, after) == pytest.approx([2000.0])


def test_agreement_by_image_compares_the_largest_logits(paired: ModuleType) -> None:
    before, after = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), np.array([[5.0, 6.0], [1.0, 2.0], [1.0, 2.0]])
    assert paired.agreement_by_image(before, after).tolist() == [1.0, 0.0, 1.0]


def test_mean_interval_is_as_wide_as_the_normal_one_on_many_images(paired: ModuleType) -> None:
    values = np.random.default_rng(3).normal(2.0, 0.5, 4000)
    interval = paired.mean_interval(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_mean_interval_of_a_paired_difference_is_narrower_than_of_either(paired: ModuleType) -> None:
    rng = np.random.default_rng(5)
    hard = rng.exponential(1.0, 500)  # the same image is hard for both
    ours, theirs = hard + rng.normal(0.0, 0.01, 500), hard + rng.normal(0.1, 0.01, 500)
    difference, alone = paired.mean_interval(ours - theirs, seed=0), paired.mean_interval(ours, seed=0)
    assert difference.high < 0.0
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)


def test_mean_interval_is_the_same_for_the_same_seed(paired: ModuleType) -> None:
    values = np.random.default_rng(1).normal(size=300)
    assert paired.mean_interval(values, seed=7) == paired.mean_interval(values, seed=7)
    assert paired.mean_interval(values, seed=7) != paired.mean_interval(values, seed=8)


@pytest.mark.parametrize(
    ("kl_difference", "agreement_difference", "passed"),
    [
        ((-2e-3, -3e-3, -1e-3), (0.01, 0.0, 0.02), True),
        ((1e-3, -1e-3, 3e-3), (-0.01, -0.02, 0.0), True),  # worse, but not beyond doubt
        ((2e-3, 1e-3, 3e-3), (0.01, 0.0, 0.02), False),
        ((2e-6, 1e-6, 3e-6), (0.0, 0.0, 0.0), False),  # little, and beyond doubt
        ((-2e-3, -3e-3, -1e-3), (-0.02, -0.03, -0.01), False),
    ],
    ids=["better", "within the interval", "worse KL", "little worse KL", "worse agreement"],
)
def test_accuracy_verdict_fails_only_where_an_interval_is_wholly_on_the_bad_side(
    quantisation: ModuleType,
    paired: ModuleType,
    kl_difference: tuple[float, float, float],
    agreement_difference: tuple[float, float, float],
    passed: bool,
) -> None:
    row = _row(quantisation, paired, kl_difference, agreement_difference, ratio=(1.0, 1.0, 1.0))
    good = _row(quantisation, paired, (-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), ratio=(1.0, 1.0, 1.0))
    assert quantisation.accuracy_verdict("digits", "peer", [good, row]).passed is passed


@pytest.mark.parametrize(
    ("ratio", "passed"), [((0.9, 0.8, 1.0), True), ((1.02, 1.0, 1.3), True), ((1.05, 1.02, 1.06), False)]
)
def test_latency_verdict_fails_above_three_per_cent(
    quantisation: ModuleType, paired: ModuleType, ratio: tuple[float, float, float], passed: bool
) -> None:
    row = _row(quantisation, paired, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), ratio=ratio)
    assert quantisation.latency_verdict("digits", "peer", row).passed is passed


@pytest.mark.parametrize(("difference", "asked"), [((0.01, -0.01, 0.02), True), ((0.01, 0.005, 0.02), False)])
def test_latency_is_asked_where_the_peer_may_agree_as_well(
    quantisation: ModuleType, paired: ModuleType, difference: tuple[float, float, float], asked: bool
) -> None:
    row = _row(quantisation, paired, (0.0, 0.0, 0.0), difference, ratio=(1.0, 1.0, 1.0))
    assert quantisation.as_accurate(row) is asked


def _row(
    quantisation: ModuleType,
    paired: ModuleType,
    kl_difference: tuple[float, float, float],
    agreement_difference: tuple[float, float, float],
    ratio: tuple[float, float, float],
) -> object:
    def interval(values: tuple[float, float, float]) -> object:
        return paired.Interval(value=values[0], low=values[1], high=values[2])

    return quantisation.Row(
        quantiser="peer",
        engine="openvino",
        top1=0.9,
        kl=interval((0.01, 0.009, 0.011)),
        agreement=interval((0.98, 0.97, 0.99)),
        kl_difference=interval(kl_difference),
        agreement_difference=interval(agreement_difference),
        latency_ms=1.0,
        ratio=interval((1.0, 1.0, 1.0)),
        ours_ratio=interval(ratio),
        quantise_seconds=None,
        size_bytes=1,
    )


def test_run_compares_all_quantisers_in_both_engines(
    quantisation: ModuleType, trained_graph: Path, tmp_path: Path
) -> None:
    options = quantisation.ComparisonOptions(
        graphs=("digits",), ready={"digits": trained_graph}, images=32, test_images=64, rounds=5
    )
    found = quantisation.run(tmp_path, tmp_path, options)
    (result,) = found.graphs
    names = {(row.quantiser, row.engine) for row in result.rows}
    assert names == {(name, engine) for name in ("fp32", *quantisation.QUANTISERS) for engine in quantisation.ENGINES}
    for row in result.rows:
        assert 0.0 < row.latency_ms < 1000.0
        assert row.agreement.value == 1.0 if row.quantiser == "fp32" else 0.7 < row.agreement.value <= 1.0
    assert [verdict.peer for verdict in result.verdicts if verdict.kind == "accuracy"] == list(quantisation.JUDGED)
    stored = json.loads((tmp_path / "quantisation.json").read_text())
    assert stored["passed"] is found.passed
    assert len(list((tmp_path / "peers").glob("*.onnx"))) == len(quantisation.QUANTISERS) - 1
    assert "| openvino | nncf-default |" in (tmp_path / "quantisation.md").read_text()


def test_memory_ratio_is_of_the_medians(benchmarks: None) -> None:
    memory = importlib.import_module("calibration_memory")
    measured = tuple(
        memory.Measured(quantiser=quantiser, images=images, peak_bytes=peaks, seconds=(1.0, 1.0, 1.0))
        for quantiser, images, peaks in (
            ("edgebert", 500, (100, 300, 110)),
            ("edgebert", 10_000, (132, 90, 900)),
            ("nncf", 500, (100, 100, 100)),
            ("nncf", 10_000, (200, 200, 200)),
        )
    )
    found = memory.Memory(measured=measured)
    assert found.ratio("edgebert") == pytest.approx(1.2)
    assert not found.passed
    assert "FAIL" in found.to_text()
    assert "(NNCF alone: 2.000)" in found.to_text()
