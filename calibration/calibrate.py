"""From calibration images to a table of scales: measured once, and turned into any recipe's table without another image.

>>> QuantizationRecipe(alpha=None, estimator="mse").to_text()
'smoothing off, range mse'
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from edgebert._json import JsonObject
from edgebert.calibration.emit import int8_graph, stored_weight
from edgebert.calibration.placement import Layout, Placement, placement_of_graph
from edgebert.calibration.ranges import Estimator, activation_scale, weight_scales
from edgebert.calibration.smoothing import (
    Plan,
    bias_of,
    drop_unused_initializers,
    input_weight,
    plans_of_graph,
    smoothed_graph,
    smoothing_factors,
)
from edgebert.calibration.statistics import Images, ValueStatistics, Watched, answers_of_graph, statistics_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.export.rules import MAX_SCALE, MIN_SCALE, weight_axis
from edgebert.export.topology import Topology, attribute_of

_SAME = 1e-3  # of the largest logit: folding reorders additions, and a wrong fold moves logits by more than itself


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRecipe:
    """How scales are made of what was measured.

    Attributes:
        alpha: smoothing strength in [0, 1]; None for none.
        estimator: of the ranges of activations.
        smooth_values: whether smoothing also moves between the value and the output projection of attention.
        correct_biases: whether biases of the core take up what rounding the weights changes on average.
        exceptions: name of a value -> another estimator for it alone.
    """

    alpha: float | None = None
    estimator: Estimator = "mse"
    smooth_values: bool = False
    correct_biases: bool = False
    exceptions: Mapping[str, Estimator] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return it in a few words."""
        parts = [f"smoothing {'off' if self.alpha is None else f'{self.alpha:g}'}", f"range {self.estimator}"]
        parts += ["values smoothed"] if self.smooth_values else []
        parts += ["biases corrected"] if self.correct_biases else []
        parts += [f"{len(self.exceptions)} ranges of their own"] if self.exceptions else []
        return ", ".join(parts)

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "smoothing": "off" if self.alpha is None else self.alpha,
            "range": self.estimator,
            "smooth_values": self.smooth_values,
            "correct_biases": self.correct_biases,
            "exceptions": dict(sorted(self.exceptions.items())),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledGraph:
    """A float graph with smoothing folded, and the scales of everything in it that may be quantised.

    Attributes:
        model: answers as the graph that was measured.
        table: its scales.
        corrections: name of a linear -> float32 (channels,) that its bias gets where it is quantised.
    """

    model: onnx.ModelProto
    table: ScaleTable
    corrections: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def emitted(self, places: Collection[str]) -> onnx.ModelProto:
        """Return the Q/DQ graph of one placement."""
        return int8_graph(self.settled(places).model, self.table, places)

    def settled(self, places: Collection[str]) -> ScaledGraph:
        """Return it with the biases of these operators corrected, and no further corrections."""
        if not self.corrections:
            return self
        chosen = {name: self.corrections[name] for name in places if name in self.corrections}
        return ScaledGraph(model=_corrected(self.model, chosen), table=self.table)


class Calibration:
    """What was measured of a float graph.

    Args:
        model: the FP32 graph.
        placement: which of its operators may be quantised.
        plans: where smoothing can be folded.
        statistics: of every value that such an operator reads.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        placement: Placement,
        plans: tuple[Plan, ...],
        statistics: Mapping[str, ValueStatistics],
    ) -> None:
        self.model = model
        self.placement = placement
        self.plans = plans
        self.statistics = statistics
        self._topology = Topology(model)
        self._nodes = {node.name: node for node in model.graph.node}
        self._linears = _quantisable(placement, self._topology)

    @property
    def values(self) -> tuple[str, ...]:
        """The values that were measured, in graph order."""
        return tuple(self.statistics)

    def scaled(self, recipe: QuantizationRecipe) -> ScaledGraph:
        """Return the graph and the table of one recipe; no image is looked at."""
        plans = [plan for plan in self.plans if recipe.smooth_values or plan.kind == "norm"]
        factors: dict[str, NDArray[np.float64]] = {}
        if recipe.alpha is not None:
            factors = {plan.maker: self._factors(plan, recipe.alpha) for plan in plans}
        model = smoothed_graph(self.model, factors, plans) if factors else self.model
        divisors = {value: factors[plan.maker] for plan in plans if plan.maker in factors for value in plan.values}
        divisors.update(
            {plan.projected: factors[plan.maker] for plan in plans if plan.projected and plan.maker in factors}
        )
        activations = {
            value: activation_scale(
                statistics,
                recipe.exceptions.get(value, recipe.estimator),
                divisor=divisors.get(value),
                importance=self._importance(value),
            )
            for value, statistics in self.statistics.items()
        }
        # What attention's product reads was measured as a whole; its channels were, where they are still the last side.
        activations.update({plan.passed: activations[plan.projected] for plan in plans if plan.projected in divisors})
        activations = {value: float(np.clip(scale, MIN_SCALE, MAX_SCALE)) for value, scale in activations.items()}
        topology = Topology(model)
        nodes = {node.name: node for node in model.graph.node}
        weights, corrections = {}, {}
        core = set(self.placement.quantised)
        for name in self._linears:
            node = nodes[name]
            weight = topology.floats(node.input[1])
            assert weight is not None  # it has one, or it would be a product
            statistics, divisor = self.statistics[node.input[0]], divisors.get(node.input[0], 1.0)
            grouped = attribute_of(node, "group", 1) > 1
            axis = weight_axis(node) % weight.ndim
            scale = weight_scales(
                weight, axis=axis, mean_square=None if grouped else statistics.mean_square / np.square(divisor)
            )
            weights[name] = np.clip(scale, np.float32(MIN_SCALE), np.float32(MAX_SCALE))  # as it is emitted
            # What a target quantises beside the core is added to the finished graph by `compile`, which has its scales alone.
            if recipe.correct_biases and name in core:
                corrections[name] = _correction(node, weight, weights[name], axis, statistics.mean / divisor)
        table = ScaleTable(activations=activations, weights=weights)
        return ScaledGraph(model=model, table=table, corrections=corrections)

    def core_values(self) -> tuple[str, ...]:
        """Return the values that every layout quantises, in graph order."""
        core = {self._nodes[name].input[0] for name in self.placement.quantised}
        return tuple(value for value in self.statistics if value in core)

    def values_of(self, places: Collection[str]) -> tuple[str, ...]:
        """Return the measured values that these operators read, in graph order."""
        read = {value for name in places for value in self._nodes[name].input[:2]}
        return tuple(value for value in self.statistics if value in read)

    def places(self, layout: Layout) -> tuple[str, ...]:
        """Return the operators that a layout quantises."""
        return self.placement.places(layout)

    def _factors(self, plan: Plan, alpha: float) -> NDArray[np.float64]:
        magnitude = np.max([self.statistics[value].magnitude for value in plan.values], axis=0)
        weights = [input_weight(self._nodes[name], self._topology) for name in plan.readers]
        return smoothing_factors(magnitude, [weight for weight in weights if weight is not None], alpha)

    def _importance(self, value: str) -> NDArray[np.float64] | None:
        """Return the sum of squared weights that each channel meets; None where that is not known by channel."""
        if len(self.statistics[value].reach) == 1:
            return None
        weights = [
            input_weight(node, self._topology)
            for node in self._topology.consumers.get(value, [])
            if node.name in self._linears
        ]
        squares = [np.square(weight.astype(np.float64)).sum(axis=1) for weight in weights if weight is not None]
        return np.sum(squares, axis=0) if squares else None


def calibrated(model: onnx.ModelProto, images: Images, count: int) -> Calibration:
    """Measure a float graph on calibration images.

    Args:
        model: an FP32 graph of edgebert's.
        images: gives the images, as often as asked: uint8 (height, width, 3), the network's input.
        count: how many there are.

    Raises:
        BadDataError: an activation is not finite.
    """
    placement, plans = placement_of_graph(model), _proven(model, plans_of_graph(model))
    topology = Topology(model)
    smoothable = {value for plan in plans for value in plan.values}
    watched = {plan.projected: Watched(axis=-1, by_channel=True) for plan in plans if plan.projected}
    linears = _quantisable(placement, topology)
    for node in model.graph.node:
        if node.name in linears:
            axis = 1 if node.op_type == "Conv" else -1
            watched.setdefault(node.input[0], Watched(axis=axis, by_channel=node.input[0] in smoothable))
        elif node.name in placement.products:
            for value in node.input[:2]:
                watched.setdefault(value, Watched(axis=None, by_channel=False))
    return Calibration(model, placement, plans, statistics_of_graph(model, watched, images, count))


def unsearched_int8_graph(model: onnx.ModelProto, images: NDArray[np.uint8]) -> onnx.ModelProto:
    """Return the portable INT8 graph of the plainest recipe: enough where only its form or its latency matters.

    Args:
        model: an FP32 graph of edgebert's.
        images: uint8 (images, height, width, 3).
    """
    measured = calibrated(model, lambda: iter(images), len(images))
    return measured.scaled(QuantizationRecipe()).emitted(measured.places(Layout()))


def _proven(model: onnx.ModelProto, plans: tuple[Plan, ...]) -> tuple[Plan, ...]:
    """Return the plans that leave the answers as they are, by folding random factors and comparing.

    Plans are found by following operators, and a Reshape on the way may mix channels in a way no one wrote down.
    """
    if not plans or _answers_alike(model, plans):
        return plans
    return tuple(plan for plan in plans if _answers_alike(model, (plan,)))


def _answers_alike(model: onnx.ModelProto, plans: tuple[Plan, ...]) -> bool:
    rng = np.random.default_rng(0)
    factors = {plan.maker: np.exp(rng.uniform(-1, 1, plan.channels)) for plan in plans}
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim][1:]
    noise = rng.integers(0, 256, (2, *sides), np.uint8)  # compares two graphs, and calibrates nothing
    before, after = (answers_of_graph(each, noise) for each in (model, smoothed_graph(model, factors, plans)))
    return bool(np.abs(before - after).max() <= _SAME * float(np.abs(before).max()))  # an untrained head answers 0.01


def _quantisable(placement: Placement, topology: Topology) -> tuple[str, ...]:
    """Return the names of the linears with weights of their own that some layout quantises."""
    every = {*placement.quantised, *(name for name, why in placement.kept_float.items() if why in ("head", "stem"))}
    return tuple(node.name for node in topology.weighted_linears() if node.name in every)


def _correction(
    node: NodeProto, weight: NDArray[np.float64], scale: NDArray[np.float32], axis: int, mean: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return by how much the layer's mean answer falls when its weights are rounded, float32 (channels,).

    The analytic bias correction of Nagel et al. 2019 (arXiv 1906.04721, section 4.2), with measured means.
    """
    shape = [1] * weight.ndim
    shape[axis] = -1
    lost = weight - stored_weight(weight, scale, axis) * scale.astype(np.float64).reshape(shape)
    rows = np.moveaxis(lost, axis, 0)  # (outputs, inputs, ...)
    if node.op_type == "Conv":
        rows = rows.reshape(*rows.shape[:2], -1).sum(axis=2)  # every place of the kernel meets the same mean
        groups = attribute_of(node, "group", 1)
        means = mean.reshape(groups, -1)[np.arange(len(rows)) * groups // len(rows)]  # (outputs, inputs / groups)
        return np.asarray((rows * means).sum(axis=1), np.float32)
    return np.asarray(rows @ mean, np.float32)


def _corrected(model: onnx.ModelProto, corrections: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Return the graph with corrections added to biases; a linear without a bias keeps none."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(result)
    for node in result.graph.node:
        found = bias_of(node, topology) if node.name in corrections else None
        if found is None:
            continue
        holder, place = found
        bias = topology.floats(holder.input[place])
        assert bias is not None  # `bias_of` looked
        name = f"{node.name}.bias.corrected"
        result.graph.initializer.append(
            numpy_helper.from_array((bias + corrections[node.name]).astype(np.float32), name)
        )
        holder.input[place] = name
    drop_unused_initializers(result)
    return result
