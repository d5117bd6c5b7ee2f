"""Which values of a network FP16 does not hold, measured on real images in float32, each with its node and a remedy."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from edgebert.calibration.statistics import not_finite
from edgebert.errors import BadDataError
from edgebert.export.graph_edits import copy_of_model, element_types, name_of, named
from edgebert.export.half_precision import HALF_MAX, float32_names
from edgebert.export.metadata import INPUT_NAME, bytes_of_model
from edgebert.export.tensorrt_graph import rewritten_graph
from edgebert.export.topology import Topology
from edgebert.extras import require
from edgebert.runtime.runner import physical_cores

# They give only numbers that they took: whoever made those is named instead.
_MOVES = (
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfPeak:
    """The largest magnitude of one value over all images.

    Attributes:
        node: operator and name of what makes the value.
        value: the value's name.
        largest: the largest magnitude.
        image: the number of the image that it was met on.
        float32: names of the nodes that would have to stay in float32 for it: what makes it, and what reads it.
    """

    node: str
    value: str
    largest: float
    image: int
    float32: tuple[str, ...]

    @property
    def overflows(self) -> bool:
        """Whether FP16 does not hold it."""
        return self.largest > HALF_MAX

    def to_text(self) -> str:
        """Return it in one line, with the remedy where it overflows."""
        text = f"{self.node} gives {self.largest:.6g} on image {self.image}"
        if not self.overflows:
            return text
        return (
            f"{text}, and FP16 holds {HALF_MAX:.0f}; keep in float32: {', '.join(f'`{name}`' for name in self.float32)}"
        )


def half_peaks(
    model: onnx.ModelProto, images: NDArray[np.uint8], *, float32: Collection[str] = ()
) -> tuple[HalfPeak, ...]:
    """Measure every value that the strongly typed form holds in FP16, the largest first.

    Args:
        model: the FP32 graph or the INT8 graph, as `edgebert.export.tensorrt_graph.strong_graph` takes it.
        images: uint8 (images, height, width, 3): real ones, since noise does not make the outliers that photographs make.
        float32: names of nodes that stay in float32.

    Raises:
        BadDataError: a value is not finite in float32 already.
        UnavailableError: onnxruntime is not installed.
    """
    rewritten = rewritten_graph(model)
    topology, types = Topology(rewritten), element_types(rewritten)
    wide = float32_names(rewritten, types, float32)
    makers = {
        name: node
        for node in rewritten.graph.node
        if node.op_type not in (*_MOVES, *_PAIR, "Constant", "ConstantOfShape")
        for name in node.output
        if types.get(name) == TensorProto.FLOAT and _held_in_half(node, name, topology, wide)
    }
    if not makers:  # all of it stays in float32
        return ()
    largest = _largest(rewritten, tuple(makers), images)
    peaks = [
        HalfPeak(
            node=named(makers[name]),
            value=name,
            largest=value,
            image=image,
            float32=_around(makers[name], name, topology),
        )
        for name, (value, image) in largest.items()
    ]
    return tuple(sorted(peaks, key=lambda peak: -peak.largest))


def check_half_range(
    model: onnx.ModelProto, images: NDArray[np.uint8], *, float32: Collection[str] = ()
) -> tuple[HalfPeak, ...]:
    """Return `half_peaks`, and refuse a network of which FP16 does not hold a value.

    Raises:
        BadDataError: the message names the node, the value, how many more there are and what to keep in float32.
    """
    peaks = half_peaks(model, images, float32=float32)
    beyond = [peak for peak in peaks if peak.overflows]
    if beyond:
        names = sorted({*float32, *(name for peak in beyond for name in peak.float32)})
        raise BadDataError(
            f"{beyond[0].node} gives {beyond[0].largest:.6g} on image {beyond[0].image}"
            + (f", and {len(beyond) - 1} more values are as large" if len(beyond) > 1 else ""),
            expected=f"activations within {HALF_MAX:.0f}, which is all that FP16 holds",
            hint=f"keep these nodes in float32: strong_graph(..., float32=({', '.join(repr(name) for name in names)},))",
        )
    return peaks


def _held_in_half(node: NodeProto, value: str, topology: Topology, wide: set[str]) -> bool:
    """Say whether a value is FP16 where it is made or where it is read."""
    return name_of(node) not in wide or any(name_of(reader) not in wide for reader in _readers(value, topology))


def _around(node: NodeProto, value: str, topology: Topology) -> tuple[str, ...]:
    """Return the names of what makes a value and of all that compute with it."""
    return tuple(dict.fromkeys((name_of(node), *(name_of(reader) for reader in _readers(value, topology)))))


def _readers(value: str, topology: Topology) -> list[NodeProto]:
    """Return who reads a value, and who reads it moved; behind a Q/DQ pair, the product and not the pair."""
    found: list[NodeProto] = []
    for node in topology.consumers.get(value, []):
        if node.op_type in _PAIR:
            found.extend(_readers(node.output[0], topology))
        elif node.op_type in _MOVES:
            found.extend((node, *(each for output in node.output for each in _readers(output, topology))))
        elif node.op_type not in ("Shape", "Size"):
            found.append(node)
    return found


def _largest(
    model: onnx.ModelProto, values: tuple[str, ...], images: NDArray[np.uint8]
) -> dict[str, tuple[float, int]]:
    """Run a graph image by image, and return the largest magnitude of each value with the image's number."""
    require("onnxruntime")
    import onnxruntime

    opened = copy_of_model(model)
    del opened.metadata_props[:]
    given = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values if name not in given
    )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = physical_cores()
    session = onnxruntime.InferenceSession(bytes_of_model(opened), settings, providers=["CPUExecutionProvider"])
    found: dict[str, tuple[float, int]] = dict.fromkeys(values, (0.0, 0))
    for number in range(len(images)):
        answers = session.run(list(values), {INPUT_NAME: images[number : number + 1]})
        for name, answer in zip(values, answers, strict=True):
            magnitude = float(np.abs(np.asarray(answer)).max(initial=0.0))
            if not np.isfinite(magnitude):
                raise not_finite(name, model, number)
            if magnitude > found[name][0]:
                found[name] = (magnitude, number)
    return found
