"""From a float graph to a symmetric INT8 graph, with real calibration images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebert.calibration.audit import AuditOptions as AuditOptions
    from edgebert.calibration.audit import audit_of_calibration as audit_of_calibration
    from edgebert.calibration.audit_result import AuditReport as AuditReport
    from edgebert.calibration.calibrate import Calibration as Calibration
    from edgebert.calibration.calibrate import QuantizationRecipe as QuantizationRecipe
    from edgebert.calibration.calibrate import calibrated as calibrated
    from edgebert.calibration.images import calibration_examples as calibration_examples
    from edgebert.calibration.images import calibration_slices as calibration_slices
    from edgebert.calibration.images import check_images_are_real as check_images_are_real
    from edgebert.calibration.placement import Layout as Layout
    from edgebert.calibration.placement import Placement as Placement
    from edgebert.calibration.placement import placement_of_graph as placement_of_graph
    from edgebert.calibration.quantize import QuantizeOptions as QuantizeOptions
    from edgebert.calibration.quantize import QuantizeReport as QuantizeReport
    from edgebert.calibration.quantize import int8_graph_from_graph as int8_graph_from_graph

__all__ = [
    "AuditOptions",
    "AuditReport",
    "Calibration",
    "Layout",
    "Placement",
    "QuantizationRecipe",
    "QuantizeOptions",
    "QuantizeReport",
    "audit_of_calibration",
    "calibrated",
    "calibration_examples",
    "calibration_slices",
    "check_images_are_real",
    "int8_graph_from_graph",
    "placement_of_graph",
]

_HOME = {
    "AuditOptions": "edgebert.calibration.audit",
    "AuditReport": "edgebert.calibration.audit_result",
    "Calibration": "edgebert.calibration.calibrate",
    "Layout": "edgebert.calibration.placement",
    "Placement": "edgebert.calibration.placement",
    "QuantizationRecipe": "edgebert.calibration.calibrate",
    "QuantizeOptions": "edgebert.calibration.quantize",
    "QuantizeReport": "edgebert.calibration.quantize",
    "audit_of_calibration": "edgebert.calibration.audit",
    "calibrated": "edgebert.calibration.calibrate",
    "calibration_examples": "edgebert.calibration.images",
    "calibration_slices": "edgebert.calibration.images",
    "check_images_are_real": "edgebert.calibration.images",
    "int8_graph_from_graph": "edgebert.calibration.quantize",
    "placement_of_graph": "edgebert.calibration.placement",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562): torch and onnx are loaded by who needs them."""
    if name not in _HOME:
        raise AttributeError(f"module `edgebert.calibration` has no attribute `{name}`")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
