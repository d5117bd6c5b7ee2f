"""What a student costs, before and after a few were measured: the grid of shapes, their MACs, and a model of latency.

The model is linear with coefficients that are never negative:

    milliseconds = fixed + per block x blocks + per GMAC of the stem x stem + per GMAC of the blocks x rest

Its first coefficients are the analytic ones of compression.md, section 6.4, with the overheads that section 7 measured; they
only rank shapes. As soon as shapes were measured, the coefficients are fitted to this device by least squares.

>>> candidate_of("nano", image_size=8, classes=10).cost.macs
396608
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import UsageError
from edgebert.models.student import MAX_TOKENS, StudentConfig, shape_name, student_shape

# The grid. Widths are multiples of 64 (32 for the smallest), as INT8 tiles want them, heads are 32 wide (compression.md, 12).
_WIDTHS = (32, 64, 128, 192, 256, 320, 384, 512, 640, 768)
_LAYERS = (2, 3, 4, 6, 8, 10, 12)
_MLP_RATIOS = (2, 4)
_HEAD_WIDTH = 32
# Width over depth: 16 (DeiT-Ti, nano) to 64 (ViT-B) in the families that were trained with success; a shape far outside
# may have many MACs and learn little, and MACs are all that this search knows of capacity.
_LEAST_ASPECT, _LARGEST_ASPECT = 8, 64
_LEAST_TOKENS = 9  # 3 x 3: fewer is no grid

_RIDGE = 1e-12  # of the least squares: keeps the normal equations solvable where shapes were too alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Multiply-accumulates of one image, by the part of the student, and what else decides its latency.

    Attributes:
        tokens: length of the sequence.
        layers: transformer blocks.
        stem_macs: of the convolutions.
        block_macs: of the blocks: linears and both products of attention.
        head_macs: of the classifier.
    """

    tokens: int
    layers: int
    stem_macs: int
    block_macs: int
    head_macs: int

    @property
    def macs(self) -> int:
        """All of them."""
        return self.stem_macs + self.block_macs + self.head_macs

    @property
    def features(self) -> tuple[float, float, float, float]:
        """What latency is linear in: one, blocks, GMACs of the stem, GMACs of the rest."""
        return 1.0, float(self.layers), self.stem_macs / 1e9, (self.block_macs + self.head_macs) / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A shape of the grid: its name, as `--student` takes it, and its cost."""

    shape: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Milliseconds as a linear function of `Cost.features`.

    Attributes:
        coefficients: ms, ms per block, ms per GMAC of the stem, ms per GMAC of the rest; each at least 0.
    """

    coefficients: tuple[float, float, float, float]

    def milliseconds(self, cost: Cost) -> float:
        """Return the predicted latency."""
        return sum(factor * value for factor, value in zip(self.coefficients, cost.features, strict=True))


# Section 6.4: 2.5 GHz, 75 % of 32 FMA per cycle in FP32, 60 % of 128 in INT8: 60 and 192 GMAC/s on one core. Section 7:
# 0.4 ms for the smallest nets, whose two or three blocks explain a few hundredths each, and INT8 takes twice its model's time.
PRIOR = LatencyModel((0.35, 0.03, 1e3 / 60, 1e3 / 96))


def grid_of_candidates(image_size: int, classes: int) -> list[Candidate]:
    """Return every shape that is worth a thought at this image size, in order of its MACs.

    Two token counts: the student's own (at most 64), and the one that a stem which halves once more gives.

    Args:
        image_size: side of the square input in pixels.
        classes: of the data.
    """
    side = StudentConfig(image_size=image_size).token_grid[0]
    fewer = (-(-side // 2)) ** 2  # halved once more, an odd side is rounded up
    limits = [MAX_TOKENS, *([fewer] if fewer >= _LEAST_TOKENS else [])]
    found = []
    for width, layers, ratio, tokens in itertools.product(_WIDTHS, _LAYERS, _MLP_RATIOS, limits):
        if _LEAST_ASPECT * layers <= width <= _LARGEST_ASPECT * layers:
            config = StudentConfig(
                image_size=image_size,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=max(2, width // _HEAD_WIDTH),
                mlp_ratio=ratio,
                max_tokens=tokens,
            )
            found.append(Candidate(shape=shape_name(config), cost=cost_of(config, classes)))
    return sorted(found, key=lambda candidate: (candidate.cost.macs, candidate.shape))


def candidate_of(shape: str, image_size: int, classes: int) -> Candidate:
    """Return a shape or preset with its cost.

    Raises:
        UsageError: no such shape.
    """
    named = student_shape(shape)
    if named is None:
        raise UsageError(f"no such student: `{shape}`", expected="a preset, or a shape such as `d64-l3-h2-r2`")
    return Candidate(shape=shape, cost=cost_of(named.config((image_size, image_size)), classes))


def cost_of(config: StudentConfig, classes: int) -> Cost:
    """Return what a student costs; a test counts the same in its exported graph.

    Args:
        config: of the student.
        classes: rows of its head; the config's own number is not looked at.
    """
    return Cost(
        tokens=config.tokens,
        layers=config.num_hidden_layers,
        stem_macs=_stem_macs(config),
        block_macs=config.num_hidden_layers * _block_macs(config),
        head_macs=config.hidden_size * classes,
    )


def fitted_model(measured: Sequence[tuple[Cost, float]]) -> LatencyModel:
    """Return the model that explains measured milliseconds best, in relative terms.

    Non-negative least squares by trying every set of features: with four of them that is exact and needs no solver. A set
    has fewer features than there are measurements, so that nothing is explained by memory; with one measurement the prior
    is scaled to it.

    Args:
        measured: cost and milliseconds (above 0) of each; at least one.
    """
    features = np.array([cost.features for cost, _ in measured])  # (measurements, features)
    times = np.array([time for _, time in measured])
    if len(times) < 2:
        scale = times[0] / PRIOR.milliseconds(measured[0][0])
        return _model_of(scale * np.array(PRIOR.coefficients))
    weighted = features / times[:, np.newaxis]  # relative: a millisecond matters more to a fast shape
    best, best_error = np.zeros(features.shape[1]), np.inf
    for size in range(1, min(features.shape[1], len(times) - 1) + 1):
        for chosen in itertools.combinations(range(features.shape[1]), size):
            solution = _least_squares(weighted[:, chosen])
            error = float(np.square(weighted[:, chosen] @ solution - 1).sum())
            if (solution >= 0).all() and error < best_error - 1e-12:
                best, best_error = np.zeros(features.shape[1]), error
                best[list(chosen)] = solution
    return _model_of(best)


def _model_of(coefficients: NDArray[np.float64]) -> LatencyModel:
    fixed, per_block, per_stem, per_rest = (float(factor) for factor in coefficients)
    return LatencyModel((fixed, per_block, per_stem, per_rest))


def spread_anchors(candidates: Sequence[Candidate], budget_ms: float, count: int) -> list[Candidate]:
    """Return shapes to measure first: the cheapest, and others around the budget that differ as much as they can.

    Args:
        candidates: the grid.
        budget_ms: the prior decides which shapes may lie around it.
        count: how many.
    """
    cheapest = min(candidates, key=lambda candidate: PRIOR.milliseconds(candidate.cost))
    chosen = [cheapest]
    for share in _anchor_shares(count - 1):
        left = [candidate for candidate in candidates if candidate not in chosen]
        left.sort(key=lambda candidate: abs(np.log(PRIOR.milliseconds(candidate.cost) / (share * budget_ms))))
        near = left[: max(1, len(candidates) // 10)]
        if near:
            chosen.append(max(near, key=lambda candidate: min(_distance(candidate, other) for other in chosen)))
    return chosen


def next_candidates(
    candidates: Sequence[Candidate], models: Collection[LatencyModel], budget_ms: float, count: int
) -> list[Candidate]:
    """Return the shapes worth measuring next: those with the most MACs that are predicted to fit, or nearly.

    The first is predicted to fit exactly, the second with 10 % to spare, the third beyond the budget by up to 8 %, since the
    prediction errs both ways. None where all are predicted to be far beyond.

    Args:
        candidates: not measured yet.
        models: of each precision; a shape takes the time of its faster form.
        budget_ms: what p90 may be.
        count: how many at most.
    """
    predicted = {
        candidate.shape: min(model.milliseconds(candidate.cost) for model in models) for candidate in candidates
    }
    chosen: list[Candidate] = []
    for share in (1.0, 0.9, 1.08)[:count]:
        fitting = [
            candidate
            for candidate in candidates
            if candidate not in chosen and predicted[candidate.shape] <= share * budget_ms
        ]
        if fitting:
            chosen.append(max(fitting, key=lambda candidate: (candidate.cost.macs, candidate.shape)))
    return chosen


def _anchor_shares(count: int) -> list[float]:
    """Return shares of the budget from a third to five quarters, evenly spread in ratio."""
    return [float(share) for share in np.geomspace(1.25, 0.33, max(count, 1))[:count]]


def _distance(one: Candidate, other: Candidate) -> float:
    """Return how much two shapes differ: in tokens, depth and both kinds of MACs, each by its ratio."""
    return float(np.abs(np.log(_ratios(one.cost)) - np.log(_ratios(other.cost))).sum())


def _ratios(cost: Cost) -> NDArray[np.float64]:
    return np.array([cost.tokens, cost.layers, cost.stem_macs, cost.block_macs], np.float64)


def _least_squares(weighted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve `weighted @ x = 1`; columns are scaled, so that GMACs and ones count alike."""
    scale = np.linalg.norm(weighted, axis=0)
    unit = weighted / scale
    normal = unit.T @ unit + _RIDGE * np.eye(unit.shape[1])
    solution: NDArray[np.float64] = np.linalg.solve(normal, unit.sum(axis=0)) / scale
    return solution


def _stem_macs(config: StudentConfig) -> int:
    """Return the MACs of the 3x3 convolutions; the last `halvings` of them have stride 2."""
    total, inputs = 0, 3
    height, width = config.image_size
    first = len(config.stem_channels) - config.halvings  # the first that halves
    for index, channels in enumerate(config.stem_channels):
        if index >= first:
            height, width = -(-height // 2), -(-width // 2)
        total += height * width * channels * inputs * 9
        inputs = channels
    return total


def _block_macs(config: StudentConfig) -> int:
    width, tokens = config.hidden_size, config.tokens
    linears = tokens * (4 + 2 * config.mlp_ratio) * width**2  # queries, keys, values, output; expand and contract
    return linears + 2 * tokens**2 * width  # scores, and their product with the values
