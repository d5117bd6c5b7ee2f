"""The quantisers that edgebert is compared with: one function each, from an FP32 graph and calibration images to an INT8 graph.

All of them get the same training images, one at a time (a batch would mix statistics over tokens), and all of them that the
user would give: NNCF's own default of 300 images is overruled. What else they do is theirs.

* `nncf-default`: `nncf.quantize` with nothing said: the PERFORMANCE preset, every operator that OpenVINO's CPU plugin can
  quantise;
* `nncf-transformer`: `model_type=TRANSFORMER`, what NNCF's documentation recommends for transformers: the MIXED preset, and
  SmoothQuant (alpha 0.95 at products with a weight);
* `nncf-performance`: NNCF as edgebert called it until it measured ranges itself: PERFORMANCE preset, no smoothing, and stem,
  attention and head in float. Plain min-max;
* `onnxruntime`: `quant_pre_process` and `quantize_static` with nothing said: Q/DQ, int8 activations and weights, per tensor;
* `onnxruntime-s8s8`: what ONNX Runtime's documentation says to try first where the default loses accuracy on x86: Q/DQ, S8S8,
  weights per channel.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.extras import require

OURS, BASELINE = "edgebert", "nncf-default"  # whose quantiser is judged, and whose latency is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a quantiser gets.

    Attributes:
        graph: FP32, an ONNX file of edgebert's.
        images: of the training split, uint8 (images, height, width, 3), as `calibration_examples` chose them from `data`.
        data: DATA that they are from; edgebert chooses the same ones itself, and more to try its settings on.
    """

    graph: bytes
    images: NDArray[np.uint8]
    data: str


def nncf_default(task: Task) -> bytes:
    """Return the INT8 graph of `nncf.quantize` with its defaults."""
    return _nncf(task, {})


def nncf_transformer(task: Task) -> bytes:
    """Return the INT8 graph of `nncf.quantize` with `model_type=TRANSFORMER`."""
    require("nncf")
    import nncf

    return _nncf(task, {"model_type": nncf.ModelType.TRANSFORMER})


def nncf_performance(task: Task) -> bytes:
    """Return the INT8 graph of `nncf.quantize` with plain min-max ranges, no smoothing, at edgebert's default places."""
    require("nncf")
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )

    kept_float = sorted(placement_of_graph(parse_graph(task.graph)).kept_float)
    return _nncf(
        task,
        {
            "preset": nncf.QuantizationPreset.PERFORMANCE,
            "model_type": nncf.ModelType.TRANSFORMER,
            "ignored_scope": nncf.IgnoredScope(names=kept_float),
            "advanced_parameters": AdvancedQuantizationParameters(
                batchwise_statistics=False,
                activations_quantization_params=QuantizationParameters(per_channel=False),
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
        },
    )


def onnxruntime_static(task: Task) -> bytes:
    """Return the INT8 graph of ONNX Runtime's `quantize_static` with its defaults."""
    return _onnxruntime(task, {})


def onnxruntime_s8s8(task: Task) -> bytes:
    """Return the INT8 graph of ONNX Runtime's `quantize_static`, S8S8 with weights per channel."""
    require("onnxruntime")
    from onnxruntime.quantization import QuantType

    return _onnxruntime(task, {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True})


def edgebert(task: Task) -> bytes:
    """Return the INT8 graph of `edgebert quantize` with its defaults, and as many images as the others get."""
    with tempfile.TemporaryDirectory(prefix="quantisers-") as name:
        source, output = Path(name) / "graph.onnx", Path(name) / "graph.int8.onnx"
        source.write_bytes(task.graph)
        int8_graph_from_graph(source, task.data, output, QuantizeOptions(images=len(task.images)))
        return output.read_bytes()


# In the order of the table; a new row is one function and one line.
QUANTISERS: dict[str, Callable[[Task], bytes]] = {
    BASELINE: nncf_default,
    "nncf-transformer": nncf_transformer,
    "nncf-performance": nncf_performance,
    "onnxruntime": onnxruntime_static,
    "onnxruntime-s8s8": onnxruntime_s8s8,
    OURS: edgebert,
}
PEERS = tuple(name for name in QUANTISERS if name != OURS)
# Judged are what a user of NNCF or of ONNX Runtime gets; `nncf-performance` is plain min-max at edgebert's places, to look at.
JUDGED = tuple(name for name in PEERS if name != "nncf-performance")
PACKAGES = ("nncf", "onnx", "onnxruntime")  # that a peer's graph depends on


def _nncf(task: Task, settings: dict[str, Any]) -> bytes:
    require("nncf")  # switches its telemetry off before the import
    import nncf

    def feed(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        return {"image": image[np.newaxis]}  # (1, height, width, 3)

    with _quiet("nncf"):
        model: onnx.ModelProto = nncf.quantize(
            _bare(task.graph), nncf.Dataset(list(task.images), feed), subset_size=len(task.images), **settings
        )
    return bytes_of_model(model)


def _onnxruntime(task: Task, settings: dict[str, Any]) -> bytes:
    require("onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its package ships no types
        """Gives one image after the other, and None at the end."""

        def __init__(self) -> None:
            self._images = iter(task.images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[np.newaxis]}  # (1, height, width, 3)

    with tempfile.TemporaryDirectory(prefix="quantisers-") as name, _quiet(""):
        source, ready, output = (Path(name) / f"{step}.onnx" for step in ("source", "ready", "output"))
        source.write_bytes(bytes_of_model(_bare(task.graph)))
        quant_pre_process(source, ready)
        quantize_static(ready, output, Reader(), **settings)
        return output.read_bytes()


def _bare(graph: bytes) -> onnx.ModelProto:
    """Return the graph without its card and its example images, which no quantiser needs."""
    model = parse_graph(graph)
    del model.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Keep progress bars and notes of a quantiser off the benchmark's output."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
