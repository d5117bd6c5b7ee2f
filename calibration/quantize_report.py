"""What `edgebert quantize` did, as a record and in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert.calibration.guard import GuardResult
from edgebert.calibration.search import SearchResult
from edgebert.calibration.sensitivity import LayerSensitivity
from edgebert.card import ModelCard

_log = logging.getLogger("edgebert")

_WORTH_A_WARNING = 0.99  # of equal decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What was quantised, and what it changed on validation images.

    A decision of a multi-label model is all that it says of an image; the fields that begin with `top1` are then the shares of
    images of which exactly their labels are said.

    Attributes:
        path: the graph.
        sha256: of the file.
        size_bytes: of the file.
        calibration_images: how many training images the ranges were measured on.
        validation_images: how many images the shares below are of.
        agreement_onnxruntime: share of equal decisions of INT8 and FP32, both in ONNX Runtime.
        agreement_openvino: the same in OpenVINO, of the placement that OpenVINO gets.
        engines_agree: share of equal decisions of ONNX Runtime and OpenVINO, both INT8.
        max_engine_difference: largest |difference| of an INT8 logit between the two engines.
        top1_before: FP32, in ONNX Runtime.
        top1_after: INT8, in ONNX Runtime.
        top1_after_openvino: INT8, in OpenVINO.
        operators: quantised operators by type, and the number of QuantizeLinear and DequantizeLinear.
        kept_float: operators left in float, by reason: stem, attention, head, guard.
        macs_int8: share of all multiplications that the portable graph does in INT8, in [0, 1].
        wider: backend -> what it quantises beside that, and the share it does then.
        search: every candidate that was tried.
        guard: what the accuracy guard did; None without a promise.
        sensitivity: what each layer costs by itself; empty where nobody asked.
    """

    path: Path
    sha256: str
    size_bytes: int
    calibration_images: int
    validation_images: int
    agreement_onnxruntime: float
    agreement_openvino: float
    engines_agree: float
    max_engine_difference: float
    top1_before: float
    top1_after: float
    top1_after_openvino: float
    operators: Mapping[str, int]
    kept_float: Mapping[str, int]
    macs_int8: float
    wider: Mapping[str, str]
    search: SearchResult
    guard: GuardResult | None
    sensitivity: tuple[LayerSensitivity, ...]

    def to_text(self) -> str:
        """Return one line for a terminal; the comparison was logged."""
        return f"{self.path}: {self.size_bytes:,} bytes, sha256 {self.sha256}"


def say_report(report: QuantizeReport, card: ModelCard) -> None:
    """Log what was tried, what stayed in float, and how INT8 does beside FP32.

    Args:
        report: of the graph.
        card: its own, with its confidence.
    """
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    kept = ", ".join(f"{count} {reason}" for reason, count in report.kept_float.items())
    chosen = report.search.chosen
    _log.info(
        "tried %d candidates on %d training images that nothing was calibrated on: %s (KL %.2g, agreement %.2f %%)",
        len(report.search.trials),
        report.search.images,
        chosen.recipe.to_text(),
        chosen.score.divergence,
        100 * chosen.score.agreement,
    )
    _log.info("calibrated on %d training images; int8: %s; in float: %s", report.calibration_images, operators, kept)
    wider = "".join(f"; {backend}: {text}" for backend, text in report.wider.items())
    if report.guard is not None:
        _log.info("guard: %s", report.guard.to_text())
    _log.info("%.0f %% of the multiplications are in INT8%s", 100 * report.macs_int8, wider)
    _log.info(
        "on %d validation images INT8 decides as FP32: %.2f %% in ONNX Runtime, %.2f %% in OpenVINO; the two alike: %.2f %%",
        report.validation_images,
        100 * report.agreement_onnxruntime,
        100 * report.agreement_openvino,
        100 * report.engines_agree,
    )
    what = "top-1" if card.task == "single-label" else "exact match"
    _log.info("%s on them: %.2f %% before, %.2f %% after", what, 100 * report.top1_before, 100 * report.top1_after)
    if card.confidence:
        _log.info("confidence: %s", card.confidence.to_text())
    lowest = min(report.agreement_onnxruntime, report.agreement_openvino, report.engines_agree)
    if lowest < _WORTH_A_WARNING:
        _log.warning("only %.2f %% of the decisions are equal, less than 99 %%", 100 * lowest)
