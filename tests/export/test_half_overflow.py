"""The largest activations of a network, and what FP16 does not hold of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgebert.errors import BadDataError
from edgebert.export.half_overflow import check_half_range, half_peaks
from tests.export.tensorrt_networks import float_network, images, int8_network


def test_half_peaks_are_the_largest_magnitudes_of_the_graphs_values() -> None:
    model = float_network(gain=100.0)
    peak = next(each for each in half_peaks(model, images()) if each.value == "stream")
    opened = onnx.ModelProto.FromString(model.SerializeToString())
    opened.graph.output.append(onnx.helper.make_tensor_value_info("stream", onnx.TensorProto.FLOAT, None))
    answers = ReferenceEvaluator(opened).run(None, {"image": images()})
    assert isinstance(answers, list)
    by_image = np.abs(answers[1]).reshape(len(images()), -1).max(axis=1)
    assert peak.largest == pytest.approx(by_image.max(), rel=1e-5)
    assert peak.image == by_image.argmax()


def test_half_peaks_come_largest_first() -> None:
    sizes = [peak.largest for peak in half_peaks(float_network(), images(2))]
    assert sizes == sorted(sizes, reverse=True)


def test_half_peaks_leave_the_normalisation_of_pixels_out() -> None:
    assert not {"scaled", "image.values"} & {peak.value for peak in half_peaks(float_network(), images(2))}


def test_half_peaks_name_the_product_and_not_the_pair_that_reads_a_value() -> None:
    peak = next(each for each in half_peaks(int8_network(), images(2)) if each.value == "norm")
    assert peak.float32 == ("norm", "query", "key", "value")


def test_half_peaks_know_what_was_measured_before_and_after_a_node_that_stays_in_float32() -> None:
    """What a float32 node gives to FP16 ones is held in FP16 as well."""
    values = {peak.value for peak in half_peaks(float_network(), images(2), float32=("stream",))}
    assert "stream" in values
    assert "stream" not in {peak.value for peak in half_peaks(float_network(), images(2), float32=("stream", "norm2"))}


def test_check_half_range_names_node_value_image_and_remedy() -> None:
    with pytest.raises(BadDataError) as caught:
        check_half_range(float_network(gain=6e4), images())
    assert caught.value.what.startswith("Mul `stream` gives ")
    assert caught.value.hint == "keep these nodes in float32: strong_graph(..., float32=('norm2', 'stream',))"


def test_check_half_range_says_what_is_left_when_nodes_are_kept() -> None:
    peaks = check_half_range(float_network(gain=6e4), images(), float32=("norm2", "stream"))
    assert peaks[0].largest < 65504


def test_check_half_range_refuses_what_is_not_finite_in_float32() -> None:
    model = float_network(gain=3e38)
    with pytest.raises(BadDataError, match="NaN or infinity"):
        check_half_range(model, images())


def test_half_peak_says_the_remedy_where_it_overflows() -> None:
    peak = half_peaks(float_network(gain=6e4), images())[0]
    assert peak.overflows
    assert peak.to_text().endswith("keep in float32: `stream`, `norm2`")
