"""What passes through a graph is measured as numpy would, whatever the chunks, and NaN is refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.calibration import statistics
from edgebert.calibration.statistics import (
    CHANNEL_BINS,
    TENSOR_BINS,
    ValueStatistics,
    Watched,
    answers_of_graph,
    statistics_of_graph,
)
from edgebert.errors import BadDataError

_IMAGES = np.random.default_rng(0).integers(0, 256, (13, 4, 4, 3), np.uint8)
_WATCHED = {
    "shifted": Watched(axis=-1, by_channel=True),
    "turned": Watched(axis=1, by_channel=False),
    "ratio": Watched(axis=None, by_channel=False),
}


def _model(divisor: float | None = 2.0) -> onnx.ModelProto:
    """Return a graph with a few float values on the way: `shifted`, `turned` and `ratio`; None divides by the brightest."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "middle"], ["shifted"], name="shift"),
        helper.make_node("Transpose", ["shifted"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMax", ["floats", "pixels"], ["brightest"], name="brightest"),
        helper.make_node("Div", ["turned", "divisor" if divisor else "brightest"], ["ratio"], name="divide"),
        helper.make_node("ReduceMean", ["ratio", "axes"], ["logits"], name="mean", keepdims=0),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "middle": np.array([100, 0, 200], np.float32),
        "divisor": np.array(divisor or 1, np.float32),
        "pixels": np.array([1, 2, 3], np.int64),
        "axes": np.array([2, 3], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "measured",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _measured(images: NDArray[np.uint8] = _IMAGES, *, divisor: float | None = 2.0) -> Mapping[str, ValueStatistics]:
    return statistics_of_graph(_model(divisor), _WATCHED, lambda: iter(images), len(images))


def _expected(name: str) -> NDArray[np.float64]:
    """Return float64 (elements, channels)."""
    shifted = _IMAGES.astype(np.float64) - [100, 0, 200]
    return shifted.reshape(-1, 1) / 2 if name == "ratio" else shifted.reshape(-1, 3)


@pytest.mark.parametrize("name", sorted(_WATCHED))
def test_statistics_of_graph_are_numpy_s(name: str) -> None:
    found, rows = _measured()[name], _expected(name)
    np.testing.assert_allclose(found.minimum, rows.min(axis=0))
    np.testing.assert_allclose(found.maximum, rows.max(axis=0))
    np.testing.assert_allclose(found.mean, rows.mean(axis=0))
    np.testing.assert_allclose(found.mean_square, (rows**2).mean(axis=0))
    np.testing.assert_allclose(found.magnitude, np.abs(rows).max(axis=0))
    assert found.elements == len(rows)


@pytest.mark.parametrize(("name", "bins"), [("shifted", CHANNEL_BINS), ("turned", TENSOR_BINS), ("ratio", TENSOR_BINS)])
def test_statistics_of_graph_count_every_magnitude_where_it_lies(name: str, bins: int) -> None:
    found, rows = _measured()[name], np.abs(_expected(name))
    if not _WATCHED[name].by_channel:
        rows = rows.reshape(-1, 1)
    assert found.counts.shape == (rows.shape[1], bins)
    for channel, column in enumerate(rows.T):
        assert found.reach[channel] == column.max()
        # Steps of a half against parts that are no multiple of them: float32 may put a value on the border next door.
        lowest = np.cumsum(np.histogram(column, bins=bins, range=(0, column.max()))[0])
        assert int(found.counts[channel].sum()) == len(column)
        assert np.abs(np.cumsum(found.counts[channel]) - lowest).max() <= 0.02 * len(column)


def test_statistics_of_graph_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    together = _measured()
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 1)  # one image at a time
    alone = _measured()
    for name in _WATCHED:
        np.testing.assert_array_equal(together[name].counts, alone[name].counts)
        np.testing.assert_allclose(together[name].mean, alone[name].mean, rtol=1e-12)
        np.testing.assert_array_equal(together[name].maximum, alone[name].maximum)
        assert together[name].elements == alone[name].elements


def test_statistics_of_graph_keep_as_much_of_200_images_as_of_20() -> None:
    def kept(count: int) -> dict[str, int]:
        images = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), np.uint8)
        return {
            name: sum(array.nbytes for array in (each.minimum, each.maximum, each.mean, each.counts, each.reach))
            for name, each in _measured(images).items()
        }

    assert kept(20) == kept(200)


def test_statistics_of_graph_hold_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 3 * 4 * 4 * 4 * 3 * 3)  # three images with three values each
    batches = []
    stack = np.stack

    def recorded(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        batches.append(len(images))
        return stack(images)

    monkeypatch.setattr(np, "stack", recorded)
    _measured()
    assert max(batches) == 3


def test_statistics_of_graph_name_operator_and_image_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 1)
    images = np.ones_like(_IMAGES)
    images[5] = 0  # divided by its brightest
    with pytest.raises(BadDataError, match=r"Div `divide` gives NaN or infinity on a calibration image \(number 5 "):
        _measured(images, divisor=None)


def test_statistics_of_graph_count_a_value_that_is_all_but_zero() -> None:
    found = _measured(divisor=3e38)["ratio"]  # its magnitudes are near 1e-36, and float32 holds no inverse of that
    assert 0 < found.reach[0] < 1e-35
    assert int(found.counts.sum()) == found.elements


def test_answers_of_graph_are_the_logits_of_every_image() -> None:
    shifted = _IMAGES.astype(np.float64) - [100, 0, 200]
    np.testing.assert_allclose(answers_of_graph(_model(), _IMAGES), shifted.mean(axis=(1, 2)) / 2, rtol=1e-5)
