"""What passes through a float graph on calibration images: ranges, moments and histograms, in memory that no image adds to.

Two passes: the first finds the extremes, the second counts magnitudes between zero and them. Values that can be smoothed
(`edgebert.calibration.smoothing`) are counted channel by channel, so that one measurement serves every smoothing strength:
dividing a channel by a factor only rescales its histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgebert._progress import Progress
from edgebert.errors import BadDataError
from edgebert.export.metadata import bytes_of_model
from edgebert.extras import require
from edgebert.runtime.runner import physical_cores

Images = Callable[
    [], Iterator[NDArray[np.uint8]]
]  # each call begins again: uint8 (height, width, 3), the network's input

CHANNEL_BINS = 512  # of one channel
TENSOR_BINS = 2048  # of a value that is counted as a whole
_SMALLEST_REACH = 1e-30  # far below the smallest scale that FP16 holds
_CHUNK_BYTES = 64 << 20  # of values held at a time: bounds the memory, whatever the network and however many images


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A value to measure.

    Attributes:
        axis: the axis that counts its channels; None takes it as one channel.
        by_channel: whether magnitudes are counted for each channel, or over all of them together.
    """

    axis: int | None
    by_channel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueStatistics:
    """What was measured of one value.

    Attributes:
        minimum: float64 (channels,).
        maximum: float64 (channels,).
        mean: float64 (channels,).
        mean_square: float64 (channels,).
        counts: int64 (channels, CHANNEL_BINS), or (1, TENSOR_BINS) where channels were not counted apart: how many
            magnitudes lie in each of as many equal parts from 0 to the row's `reach`.
        reach: float64 (channels,) or (1,): the largest magnitude of each row of `counts`.
        elements: how many numbers of each channel were seen.
    """

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    counts: NDArray[np.int64]
    reach: NDArray[np.float64]
    elements: int

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """The largest magnitude of each channel, float64 (channels,)."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))


def statistics_of_graph(
    model: onnx.ModelProto, watched: Mapping[str, Watched], images: Images, count: int
) -> dict[str, ValueStatistics]:
    """Measure values of a float graph on calibration images.

    Args:
        model: an FP32 graph of edgebert's.
        watched: name of a value -> how to measure it.
        images: gives the images, twice.
        count: how many there are, for the progress bar.

    Raises:
        BadDataError: a value is not finite on some image; the message names the operator and the image.
        UnavailableError: onnxruntime is not installed.
    """
    reader = ValueReader(model, watched)
    with Progress("measure ranges", 2 * count) as progress:
        moments = {name: _Moments() for name in watched}
        for first, size, rows in reader.read(images()):
            for name, channels in rows.items():
                moments[name].add(channels, name=name, model=model, first=first)
            progress.advance(size)
        histograms = {
            name: _Histogram(moments[name].magnitude, by_channel=watched[name].by_channel) for name in watched
        }
        for _, size, rows in reader.read(images()):
            for name, channels in rows.items():
                histograms[name].add(channels)
            progress.advance(size)
    return {name: moments[name].finished(histograms[name]) for name in watched}


def answers_of_graph(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes): what a float graph answers in ONNX Runtime."""
    reader = ValueReader(model, {model.graph.output[0].name: Watched(axis=-1, by_channel=False)})
    rows = [rows for _, _, chunk in reader.read(iter(images)) for rows in chunk.values()]
    return np.concatenate(rows)


class ValueReader:
    """Runs a graph whose watched values are outputs as well, a few images at a time.

    Args:
        model: an FP32 graph of edgebert's; not changed.
        watched: name of a value -> how to measure it.

    Raises:
        UnavailableError: onnxruntime is not installed.
    """

    def __init__(self, model: onnx.ModelProto, watched: Mapping[str, Watched]) -> None:
        require("onnxruntime")
        import onnxruntime

        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        del opened.metadata_props[:]
        given = {value.name for value in (*opened.graph.input, *opened.graph.output)}
        for name in watched:
            if name not in given:
                opened.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = physical_cores()
        settings.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bytes_of_model(opened), settings, providers=["CPUExecutionProvider"]
        )
        self._watched = dict(watched)
        self.chunk_size = 1

    def read(self, images: Iterator[NDArray[np.uint8]]) -> Iterator[tuple[int, int, dict[str, NDArray[np.float32]]]]:
        """Yield chunk by chunk the number of its first image, how many, and float32 (elements, channels) of every value."""
        first = 0
        chunk: list[NDArray[np.uint8]] = []
        for image in images:
            chunk.append(image)
            if len(chunk) >= self.chunk_size:
                yield first, len(chunk), self._rows(chunk)
                first += len(chunk)
                chunk = []
        if chunk:
            yield first, len(chunk), self._rows(chunk)

    def _rows(self, chunk: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        values = [np.asarray(value) for value in self._session.run(list(self._watched), {"image": np.stack(chunk)})]
        if len(chunk) == 1:  # the first: now it is known how much one image takes
            self.chunk_size = int(np.clip(_CHUNK_BYTES // max(1, sum(value.nbytes for value in values)), 1, 64))
        rows = {}
        for (name, watch), value in zip(self._watched.items(), values, strict=True):
            if watch.axis is None:
                rows[name] = value.reshape(-1, 1)
            else:
                rows[name] = np.moveaxis(value, watch.axis, -1).reshape(-1, value.shape[watch.axis])
        return rows


class _Moments:
    """Extremes and the first two moments by channel."""

    def __init__(self) -> None:
        self.minimum = self.maximum = np.zeros(0)
        self.sum = self.sum_of_squares = np.zeros(0)
        self.elements = 0

    def add(self, rows: NDArray[np.float32], *, name: str, model: onnx.ModelProto, first: int) -> None:
        wide = rows.astype(np.float64)  # (elements, channels)
        low, high = wide.min(axis=0), wide.max(axis=0)  # NaN stays NaN
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise not_finite(name, model, first)
        if self.elements:
            low, high = np.minimum(low, self.minimum), np.maximum(high, self.maximum)
        self.minimum, self.maximum = low, high
        self.sum = wide.sum(axis=0) + (self.sum if self.elements else 0.0)
        self.sum_of_squares = np.square(wide).sum(axis=0) + (self.sum_of_squares if self.elements else 0.0)
        self.elements += len(rows)

    @property
    def magnitude(self) -> NDArray[np.float64]:
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def finished(self, histogram: _Histogram) -> ValueStatistics:
        return ValueStatistics(
            minimum=self.minimum,
            maximum=self.maximum,
            mean=self.sum / self.elements,
            mean_square=self.sum_of_squares / self.elements,
            counts=histogram.counts,
            reach=histogram.reach,
            elements=self.elements,
        )


class _Histogram:
    """Counts magnitudes between zero and the largest one that the first pass met."""

    def __init__(self, magnitude: NDArray[np.float64], *, by_channel: bool) -> None:
        self.reach = magnitude if by_channel else magnitude.max(keepdims=True)
        self._bins = CHANNEL_BINS if by_channel else TENSOR_BINS
        self.counts = np.zeros((len(self.reach), self._bins), np.int64)
        # A channel that is all but dead is counted as zeros: float32 could not hold the inverse of its reach.
        self._factor = (self._bins / np.where(self.reach > _SMALLEST_REACH, self.reach, 1.0)).astype(np.float32)

    def add(self, rows: NDArray[np.float32]) -> None:
        places = np.abs(rows)  # (elements, channels)
        places *= self._factor
        bins = places.astype(np.int64)
        np.minimum(bins, self._bins - 1, out=bins)
        if len(self.reach) > 1:
            bins += np.arange(len(self.reach)) * self._bins
        self.counts += np.bincount(bins.ravel(), minlength=self.counts.size).reshape(self.counts.shape)


def not_finite(name: str, model: onnx.ModelProto, first: int) -> BadDataError:
    """Return the error for a value that is NaN or infinite for image `first` or one of the same chunk."""
    producer = next((node for node in model.graph.node if name in node.output), None)
    where = f"{producer.op_type} `{producer.name}`" if producer is not None else f"`{name}`"
    return BadDataError(
        f"{where} gives NaN or infinity on a calibration image (number {first} or soon after it)",
        expected="finite activations: ranges cannot be measured on others",
        hint="look at the checkpoint with `edgebert bench`; training that diverged leaves NaN weights",
    )
