"""From a graph of edgebert's to the graphs that TensorRT builds an engine of, one for each typing, checked before any device sees them.

Order: the placements that TensorRT gains by (INT8 only), the form of each typing with the rules of TensorRT's parser, the range of
FP16 on real activations, and the answers beside the source's. What breaks a rule of one typing leaves the other; nodes whose values
FP16 does not hold stay in float32 in the strongly typed form, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebert.errors import EdgebertError
from edgebert.export.engine import TypingChoice
from edgebert.export.half_overflow import check_half_range, half_peaks
from edgebert.export.half_parity import check_half_parity, half_parity
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.export.placements import graph_for_backend
from edgebert.export.rules import graph_precision
from edgebert.export.tensorrt_graph import strong_graph, weak_graph
from edgebert.extras import is_importable
from edgebert.runtime.engine_manifest import EnginePrecision
from edgebert.runtime.tensorrt_api import Typing

_BACKEND = "tensorrt"
_RANGE_IMAGES = 32  # outliers differ from image to image
_PARITY_IMAGES = 8  # as benchmarks/tensorrt_graphs.py
_SHOWN = 3  # names of nodes in a note


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGraphs:
    """What engines are built of.

    Attributes:
        graphs: an ONNX file without metadata for each typing that the graph can be built in.
        typing: which of them are to be built.
        precision: `int8` of a graph with Q and DQ, `fp16` of a float one.
        failures: typing -> why the graph cannot be built in it.
        notes: what a user should know, one line each.
    """

    graphs: Mapping[Typing, bytes]
    typing: TypingChoice
    precision: EnginePrecision
    failures: Mapping[Typing, str]
    notes: tuple[str, ...]


def engine_graphs(
    graph: bytes, typing: TypingChoice, images: NDArray[np.uint8] | None, *, thresholds: Sequence[float] = ()
) -> EngineGraphs:
    """Return the graphs of the typings that were asked for; with `auto`, of those that the graph can be built in.

    Args:
        graph: an ONNX file of edgebert's, FP32 or INT8.
        typing: `strong`, `weak`, or `auto` for both.
        images: uint8 (images, height, width, 3): real ones; None to leave the checks out that need some.
        thresholds: of a multi-label model, as its card has them.

    Raises:
        BadDataError: no ONNX file, or one that breaks a rule of TensorRT's parser in every typing that was asked for.
        EdgebertError: the form answers otherwise than rounding to FP16 explains.
    """
    model = parse_graph(graph)
    notes: list[str] = []
    precision: EnginePrecision = "fp16"
    if graph_precision(model) == "int8":
        precision = "int8"
        model, added = graph_for_backend(model, _BACKEND)
        notes += [f"{len(added)} operators in int8 beyond the portable graph's"] if added else []
    if images is not None and not is_importable("onnxruntime"):
        notes.append("range and answers in FP16 were not checked: that takes onnxruntime")
        images = None
    makers: dict[Typing, Callable[[], onnx.ModelProto]] = {
        "weak": lambda: weak_graph(model),
        "strong": lambda: _strong(model, images, thresholds, notes),
    }
    made: dict[Typing, bytes] = {}
    errors: dict[Typing, EdgebertError] = {}
    for each, make in makers.items():
        if typing not in (each, "auto"):
            continue
        try:
            made[each] = _without_metadata(make())
        except EdgebertError as error:
            errors[each] = error
    if not made:
        raise next(iter(errors.values()))
    both = len(made) == len(makers)
    return EngineGraphs(
        graphs=made,
        typing="auto" if both else next(iter(made)),
        precision=precision,
        failures={each: str(error) for each, error in errors.items()},
        notes=tuple(notes),
    )


def _strong(
    model: onnx.ModelProto, images: NDArray[np.uint8] | None, thresholds: Sequence[float], notes: list[str]
) -> onnx.ModelProto:
    """Return the strongly typed form, in float32 where FP16 does not hold what was measured."""
    if images is None:
        return strong_graph(model)
    measured = images[:_RANGE_IMAGES]
    beyond = [peak for peak in half_peaks(model, measured) if peak.overflows]
    float32 = tuple(sorted({name for peak in beyond for name in peak.float32}))
    if float32:
        check_half_range(model, measured, float32=float32)
        listed = ", ".join(float32[:_SHOWN]) + (f" and {len(float32) - _SHOWN} more" if len(float32) > _SHOWN else "")
        notes.append(
            f"strongly typed, {len(float32)} nodes stay in float32: FP16 does not hold {beyond[0].largest:.6g} ({listed})"
        )
    form = strong_graph(model, float32=float32)
    check_half_parity(half_parity(model, form, images[:_PARITY_IMAGES], thresholds=thresholds, float32=float32))
    return form


def _without_metadata(model: onnx.ModelProto) -> bytes:
    """Return the file: class names and example images are the bundle's, and two graphs that compute alike make one engine."""
    del model.metadata_props[:]
    return bytes_of_model(model)
