"""Our builder on NVIDIA's own parser and builder, TensorRT for RTX, without a GPU; what that says and does not: `tests.tensorrt.rtx`."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnx
import pytest

from edgebert.calibration.placement import Layout
from edgebert.export.graph_edits import copy_of_model
from edgebert.export.tensorrt_graph import strong_graph
from tests.export.tensorrt_networks import float_network, int8_network
from tests.export.test_tensorrt_rules import PLANTED
from tests.tensorrt.rtx import Built, Rtx

ROOT = Path(__file__).parents[2]

# Rules that the parser holds itself: what it says of the planted violation. The others are of what is fast or right, or of TensorRT's
# other versions, and there it builds what was planted.
_REFUSED = {
    "_wrong_inputs": "Invalid Node - softmax",
    "_integer_product": "QLinearMatMul",
    "_fused_attention": "Invalid Node - softmax",
    "_moved_bytes": "first input has type UInt8",
    "_no_scale": "requires at least 2 inputs",
    "_asymmetric": "Non-zero zero point is not supported",
    "_two_zero_points": "The scale and zero point must have the same volume",
    "_no_scales": "Cannot have scale with no coefficients",
    "_float32_scales": "must have same input types",
    "_missing_channels": "The number of scales is not equal to the number of output channels",
    "_output_type": "Mismatch between attribute output_dtype",
    "_eight_bit_floats": "the engine could not be built",
    "_integer_bias": "input has type Int32",
    "_mean_of_norm": "LayerNormalization",
    "_mixed_types": "must have same input types",
}
_PLANTED = {change.__name__: (rule, change) for rule, change, _ in PLANTED}


def _built(rtx: Rtx, model: onnx.ModelProto, folder: Path, *, batches: tuple[int, int, int] = (1, 1, 1)) -> Built:
    graph = folder / "model.onnx"
    graph.write_bytes(model.SerializeToString())
    return rtx.build(graph, folder / "engine.plan", batches=batches)


@pytest.mark.parametrize("layout", [Layout(), Layout(stem=True), Layout(attention="full")])
def test_build_plan_builds_the_strongly_typed_form_of_an_int8_graph(rtx: Rtx, layout: Layout, tmp_path: Path) -> None:
    built = _built(rtx, strong_graph(int8_network(layout)), tmp_path)
    assert (built.error, built.plan_bytes > 0) == ("", True)


def test_build_plan_builds_the_strongly_typed_form_of_a_float_graph(rtx: Rtx, tmp_path: Path) -> None:
    assert _built(rtx, strong_graph(float_network(norm="pieces")), tmp_path).error == ""


@pytest.mark.parametrize("name", ["nano", "resnet"])
def test_build_plan_builds_a_classifier_for_several_batches(
    rtx: Rtx, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    subject = importlib.import_module("_tensorrt_subjects").subject(name, tmp_path, full=False, calibrate=4, judge=4)
    built = _built(rtx, strong_graph(subject.int8(Layout(stem=True))), tmp_path, batches=(1, 4, 8))
    assert built.error == ""


def test_build_plan_tells_how_much_is_done(rtx: Rtx, tmp_path: Path) -> None:
    shares = _built(rtx, strong_graph(float_network()), tmp_path).shares
    assert shares
    assert list(shares) == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_build_plan_keeps_the_times_of_kernels(rtx: Rtx, tmp_path: Path) -> None:
    assert _built(rtx, strong_graph(float_network()), tmp_path).timing_cache > 0


def test_build_plan_refuses_batches_that_tensorrt_does_not_take(rtx: Rtx, tmp_path: Path) -> None:
    error = _built(rtx, strong_graph(float_network()), tmp_path, batches=(8, 4, 1)).error
    assert error.startswith("EdgebertError: TensorRT takes no profile of these batches")
    assert "addOptimizationProfile" in error


def test_build_plan_refuses_batches_that_no_number_of_tensorrts_holds(rtx: Rtx, tmp_path: Path) -> None:
    most = 1 << 31
    error = _built(rtx, strong_graph(float_network()), tmp_path, batches=(1, most, most)).error
    assert error.startswith(f"BadDataError: TensorRT takes no batches of 1 to {most}")


def test_build_plan_says_what_the_parser_says_of_a_file_that_is_no_graph(rtx: Rtx, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    error = rtx.build(tmp_path / "model.onnx", tmp_path / "engine.plan").error
    assert "Failed to parse the ONNX model" in error
    assert error.startswith("BadDataError")


@pytest.mark.parametrize("change", _REFUSED)
def test_parser_refuses_what_a_rule_says_it_refuses(rtx: Rtx, change: str, tmp_path: Path) -> None:
    model = copy_of_model(strong_graph(int8_network(Layout(stem=True))))
    _PLANTED[change][1](model)
    error = _built(rtx, model, tmp_path).error
    assert _REFUSED[change] in error
