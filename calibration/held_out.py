"""Candidates are told apart by what they answer on training images that nothing was calibrated on.

>>> reference = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
>>> divergences(reference, reference, ()).tolist()
[0.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebert._json import JsonObject
from edgebert.calibration.statistics import Images
from edgebert.card import ModelCard
from edgebert.decisions import decisions
from edgebert.errors import BadDataError
from edgebert.export.metadata import bytes_of_model
from edgebert.export.ort_form import kernel_form
from edgebert.export.rules import graph_precision
from edgebert.metrics import exact_match
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

Logits = NDArray[np.float32]  # (images, classes)

_CHUNK = 32
_KEPT_BYTES = 256 << 20  # images up to here are kept; more are decoded again for every candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far a candidate is from FP32 on the held-out images.

    Attributes:
        divergence: mean KL(FP32 || INT8) of the class probabilities, in nats; of a multi-label model the sum over its labels.
        uncertainty: half the width of the 95 % interval of that mean, in nats.
        agreement: share of images that are decided as FP32 decides them, in [0, 1].
        images: how many there are.
    """

    divergence: float
    uncertainty: float
    agreement: float
    images: int

    @property
    def flips(self) -> int:
        """How many images are decided otherwise."""
        return round((1 - self.agreement) * self.images)

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object; null for infinitely far, which JSON has no number for."""
        far, unsure = (value if np.isfinite(value) else None for value in (self.divergence, self.uncertainty))
        return {"kl": far, "kl_uncertainty": unsure, "agreement": self.agreement}


class HeldOut:
    """Held-out images with what the FP32 graph answers.

    Args:
        model: the FP32 graph.
        card: its class names, input size and thresholds.
        images: gives them, as often as asked: uint8 (height, width, 3).
        count: how many there are.

    Raises:
        BadDataError: there is none, or FP32 answers one with NaN or infinity.
    """

    def __init__(self, model: onnx.ModelProto, card: ModelCard, images: Images, count: int) -> None:
        if not count:
            raise BadDataError("there are no held-out images to choose by", expected="at least one")
        rule = card.preprocessing
        self._images = images
        self._kept: NDArray[np.uint8] | None = None
        if count * rule.height * rule.width * 3 <= _KEPT_BYTES:
            self._kept = np.stack(list(images()))
        self._thresholds = card.thresholds
        self._spec = InputSpec(height=rule.height, width=rule.width, classes=len(card.class_names))
        self.count = count
        self.reference = self.answers(model)
        if not np.isfinite(self.reference).all():
            raise BadDataError("FP32 answers a training image with NaN or infinity", expected="finite logits")

    def answers(self, model: onnx.ModelProto) -> Logits:
        """Return the logits of a graph, FP32 or INT8, in ONNX Runtime."""
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.metadata_props[:]
        disabled: tuple[str, ...] = ()
        if graph_precision(bare) == "int8":
            bare, disabled = kernel_form(bare)
        source = ModelSource(spec=self._spec, files={"model.onnx": bytes_of_model(bare)})
        with open_runner("onnxruntime", source, RunnerOptions(disabled_optimizers=disabled)) as runner:
            return np.concatenate([runner.infer(batch) for batch in self._batches()])

    def score(self, model: onnx.ModelProto) -> Score:
        """Compare a candidate with FP32."""
        return self.score_of(self.answers(model))

    def score_of(self, logits: Logits) -> Score:
        """Compare answers with FP32's."""
        each = divergences(self.reference, logits, self._thresholds)
        said = (decisions(rows, self._thresholds) for rows in (self.reference, logits))
        return Score(
            divergence=float(each.mean()),
            uncertainty=float(1.96 * each.std() / np.sqrt(len(each))) if np.isfinite(each).all() else np.inf,
            agreement=exact_match(*said),
            images=self.count,
        )

    def _batches(self) -> Iterator[NDArray[np.uint8]]:
        if self._kept is not None:
            for start in range(0, len(self._kept), _CHUNK):
                yield self._kept[start : start + _CHUNK]
            return
        batch: list[NDArray[np.uint8]] = []
        for image in self._images():
            batch.append(image)
            if len(batch) == _CHUNK:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def divergences(reference: Logits, logits: Logits, thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return float64 (images,): KL(reference || logits) in nats, of the softmax, or summed over the sigmoids of several labels.

    Args:
        reference: float32 (images, classes).
        logits: as many. One that is not finite is infinitely far away.
        thresholds: of a multi-label model; empty for a single-label one.
    """
    wide = reference.astype(np.float64)
    finite = np.isfinite(logits)
    other = np.where(finite, logits, 0.0).astype(np.float64)
    if thresholds:
        chance = np.exp(_log_sigmoid(wide))
        each = chance * (_log_sigmoid(wide) - _log_sigmoid(other))
        each += (1 - chance) * (_log_sigmoid(-wide) - _log_sigmoid(-other))
        total = each.sum(axis=1)
    else:
        logs, other_logs = _log_softmax(wide), _log_softmax(other)
        total = (np.exp(logs) * (logs - other_logs)).sum(axis=1)
    return np.where(finite.all(axis=1), np.maximum(total, 0.0), np.inf)


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _log_sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.logaddexp(0.0, -values)
