"""Does the strongly typed form answer as the graph it was made of? Asked of ONNX Runtime, with every value rounded to FP16.

ONNX Runtime has next to no FP16 arithmetic on a CPU: it puts Casts around each operator and keeps float32 between them. A graph
that overflows in FP16 answers correctly there, so that its answers say nothing about FP16. They say that the types are legal and
the rewriting is right, and are compared tightly. What a tensor core does (products and sums in float32, each result rounded to
FP16) is computed by `rounded_graph`: the same graph in float32, where a pair of Casts rounds every FP16 value where it is made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebert.decisions import decisions
from edgebert.errors import EdgebertError
from edgebert.export.graph_edits import add_constant, copy_of_model, element_types, name_of, set_nodes
from edgebert.export.half_precision import float32_names
from edgebert.export.metadata import INPUT_NAME, bytes_of_model
from edgebert.extras import require
from edgebert.runtime.runner import physical_cores

# They move numbers, or take one of several: what they give has been rounded already.
_EXACT = (
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Max",
    "MaxPool",
    "Neg",
    "Pad",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
)
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_UNIT_ROUNDOFF = 2.0**-11  # of FP16: 11 significant bits
_GRIDS = (1.37, 1.73)  # of the controls: rounding c * x and dividing by c puts as fine a grid elsewhere
# Two draws of the same noise: the largest of a few hundred differences was measured at 0.5 to 1.8 times the control's
# (docs/tensorrt-graph.md).
_OF_CONTROL = 3.0
_BATCH = 8


def rounded_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that answers as a strongly typed one where sums are float32 and every result is rounded to FP16.

    Args:
        model: as `edgebert.export.tensorrt_graph.strong_graph` makes it; not changed.
    """
    types = element_types(model)
    result = copy_of_model(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in result.graph.node:
        _widen_attributes(node)
    _round_values(result, {name for name, kind in types.items() if kind == _HALF}, grid=1.0)
    return result


def control_graph(model: onnx.ModelProto, *, grid: float, float32: Collection[str] = ()) -> onnx.ModelProto:
    """Return the source itself with every constant and every result rounded to 11 bits, on another grid than FP16's.

    It owes nothing to the rewriting. By how much it answers otherwise is what rounding of that size does to this network.

    Args:
        model: the FP32 graph or the INT8 graph; not changed.
        grid: what values are multiplied by before they are rounded, and divided by after.
        float32: names of nodes whose answers are not rounded.
    """
    result = copy_of_model(model)
    types = element_types(result)
    wide = float32_names(result, types, float32)
    readers = {name: name_of(node) for node in result.graph.node for name in node.input}
    for tensor in result.graph.initializer:
        if tensor.data_type == _FLOAT and readers.get(tensor.name) not in wide:
            values = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore", under="ignore"):
                exact = values.astype(np.float16) == values  # such as an exponent of 2: FP16 changes nothing of it
                rounded = (values * np.float32(grid)).astype(np.float16).astype(np.float32) / np.float32(grid)
            taken = np.isfinite(rounded) & (rounded != 0) & ~exact
            tensor.CopyFrom(numpy_helper.from_array(np.where(taken, rounded, values).astype(np.float32), tensor.name))
    made = {name for node in result.graph.node if name_of(node) not in wide for name in node.output}
    made -= {output.name for output in result.graph.output}
    _round_values(result, {name for name in made if types.get(name) == _FLOAT}, grid=grid)
    return result


def _round_values(model: onnx.ModelProto, values: Collection[str], *, grid: float) -> None:
    """Put Casts to FP16 and back behind each of these values where it is made, between a factor and its inverse."""
    factors = ("grid.up", "grid.down")
    for name, factor in zip(factors, (grid, 1.0 / grid), strict=True):
        add_constant(model, name, np.array(factor, np.float32))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in (*_EXACT, "Constant"):
            continue
        for name in [each for each in node.output if each in values]:
            node.output[:] = [f"{name}.exact" if each == name else each for each in node.output]
            nodes.extend(_rounding(name, factors))
    set_nodes(model, nodes)


def _rounding(name: str, factors: tuple[str, str]) -> list[NodeProto]:
    """Return the nodes from `NAME.exact` to `NAME`; a factor of 1 changes no bit, and no number that FP16 holds or not."""
    up, half, wide = f"{name}.up", f"{name}.half", f"{name}.wide"
    return [
        helper.make_node("Mul", [f"{name}.exact", factors[0]], [up], name=f"{name}.to_grid"),
        helper.make_node("Cast", [up], [half], name=f"{name}.to_half", to=_HALF),
        helper.make_node("Cast", [half], [wide], name=f"{name}.from_half", to=_FLOAT),
        helper.make_node("Mul", [wide, factors[1]], [name], name=f"{name}.from_grid"),
    ]


def _widen_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == _HALF:
            attribute.i = _FLOAT
        elif attribute.name == "value" and attribute.t.data_type == _HALF:
            values = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfParity:
    """How a strongly typed form answers beside the graph it was made of.

    Attributes:
        images: how many were answered.
        scale: the largest |logit| of the source.
        control: the largest difference that rounding of the same size on other grids makes to the source itself.
        typed_difference: the largest difference of a logit, the form as ONNX Runtime runs it: types and rewriting.
        rounded_difference: the same with every value rounded to FP16.
        flips: how many images get other classes from the rounded form.
        decided: how many images' decisions no difference within `allowed` can turn.
        decided_flips: how many of those get other classes.
    """

    images: int
    scale: float
    control: float
    typed_difference: float
    rounded_difference: float
    flips: int
    decided: int
    decided_flips: int

    @property
    def allowed(self) -> float:
        """The largest difference of a logit that rounding explains."""
        return allowed_difference(self.control, self.scale)

    @property
    def holds(self) -> bool:
        """Whether both differences are within `allowed` and every decided image keeps its classes; NaN does not hold."""
        largest = float(np.maximum(self.typed_difference, self.rounded_difference))
        return bool(largest <= self.allowed) and self.decided_flips == 0

    def to_text(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.images} images, |logit| up to {self.scale:.3g}: differs by {self.typed_difference:.2g} as ONNX Runtime runs it "
            f"and {self.rounded_difference:.2g} with every value in FP16, allowed {self.allowed:.2g}; "
            f"{self.flips} other decisions, {self.decided_flips} of the {self.decided} that are no near-ties"
        )


def half_parity(
    source: onnx.ModelProto,
    form: onnx.ModelProto,
    images: NDArray[np.uint8],
    *,
    thresholds: Sequence[float] = (),
    float32: Collection[str] = (),
) -> HalfParity:
    """Compare a strongly typed form with the graph it was made of.

    What is allowed is measured, on the same images: the source itself, every value rounded as coarsely on other grids
    (`control_graph`). Rounding errors are no constant of a network: they add up along its depth, and in an INT8 graph each moves
    some activations over the border of two INT8 steps, which is far more than the rounding itself.

    Args:
        source: the FP32 graph or the INT8 graph.
        form: what `edgebert.export.tensorrt_graph.strong_graph` made of it.
        images: uint8 (images, height, width, 3).
        thresholds: of a multi-label model, as its card has them.
        float32: what the form was told to keep in float32.

    Raises:
        UnavailableError: onnxruntime is not installed.
    """
    reference = answers_in_float32(source, images)
    controls = [answers_in_float32(control_graph(source, grid=grid, float32=float32), images) for grid in _GRIDS]
    typed, rounded = answers_in_float32(form, images), answers_in_float32(rounded_graph(form), images)
    scale = float(np.abs(reference).max())
    control = max(float(np.abs(each - reference).max()) for each in controls)
    allowed = allowed_difference(control, scale)
    differ = (decisions(reference, thresholds) != decisions(rounded, thresholds)).any(axis=1)
    decided = _margins(reference, thresholds) > 2 * allowed
    return HalfParity(
        images=len(images),
        scale=scale,
        control=control,
        typed_difference=float(np.abs(typed - reference).max()),
        rounded_difference=float(np.abs(rounded - reference).max()),
        flips=int(differ.sum()),
        decided=int(decided.sum()),
        decided_flips=int((differ & decided).sum()),
    )


def allowed_difference(control: float, scale: float) -> float:
    """Return by how much a logit may differ: three times the control's largest difference, and one rounding of the logit itself.

    Args:
        control: the largest difference that rounding on another grid makes.
        scale: the largest |logit|.
    """
    return _OF_CONTROL * control + _UNIT_ROUNDOFF * scale


def check_half_parity(parity: HalfParity) -> None:
    """Refuse a form that answers otherwise than rounding explains.

    Raises:
        EdgebertError: it does.
    """
    if parity.holds:
        return
    raise EdgebertError(
        f"the strongly typed graph answers otherwise than the graph it was made of: {parity.to_text()}",
        expected=f"logits within {parity.allowed:.2g}, which is what rounding to FP16 explains",
        hint="where it is not finite, `edgebert.export.half_overflow` names the nodes that FP16 does not hold",
    )


def _margins(logits: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return float64 (images,): by how much the nearest other decision is missed, the sum of what two logits may move."""
    wide = logits.astype(np.float64)
    if thresholds:
        limits = np.asarray(thresholds, np.float64)
        found: NDArray[np.float64] = 2 * np.abs(wide - np.log(limits / (1 - limits))).min(axis=1)
        return found
    if wide.shape[1] < 2:
        return np.full(len(wide), np.inf)
    highest = np.sort(wide, axis=1)[:, -2:]
    margin: NDArray[np.float64] = highest[:, 1] - highest[:, 0]
    return margin


def answers_in_float32(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes): a graph as it is written, unoptimised, since integer kernels of some CPUs saturate.

    Args:
        model: a graph of edgebert's, in any form.
        images: uint8 (images, height, width, 3).

    Raises:
        UnavailableError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = physical_cores()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(bytes_of_model(model), settings, providers=["CPUExecutionProvider"])
    rows = [
        np.asarray(session.run(None, {INPUT_NAME: images[start : start + _BATCH]})[0], np.float32)
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(rows)
