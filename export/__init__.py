"""From a checkpoint to a graph, and from a graph to the form a device runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebert.export.compile import CompileOptions as CompileOptions
    from edgebert.export.compile import CompileReport as CompileReport
    from edgebert.export.compile import bundle_from_graph as bundle_from_graph
    from edgebert.export.forms import CompiledForm as CompiledForm
    from edgebert.export.forms import form_from_graph as form_from_graph
    from edgebert.export.graph import ExportOptions as ExportOptions
    from edgebert.export.graph import ExportReport as ExportReport
    from edgebert.export.graph import graph_from_checkpoint as graph_from_checkpoint
    from edgebert.export.ir import IrFiles as IrFiles
    from edgebert.export.ir import ir_from_graph as ir_from_graph
    from edgebert.export.metadata import read_graph_card as read_graph_card
    from edgebert.export.metadata import read_graph_examples as read_graph_examples
    from edgebert.export.metadata import without_examples as without_examples
    from edgebert.export.ort_form import OrtForm as OrtForm
    from edgebert.export.ort_form import ort_form_from_graph as ort_form_from_graph
    from edgebert.export.rules import check_int8_graph as check_int8_graph
    from edgebert.export.rules import qdq_counts as qdq_counts

__all__ = [
    "CompileOptions",
    "CompileReport",
    "CompiledForm",
    "ExportOptions",
    "ExportReport",
    "IrFiles",
    "OrtForm",
    "bundle_from_graph",
    "check_int8_graph",
    "form_from_graph",
    "graph_from_checkpoint",
    "ir_from_graph",
    "ort_form_from_graph",
    "qdq_counts",
    "read_graph_card",
    "read_graph_examples",
    "without_examples",
]

_HOME = {
    "CompileOptions": "edgebert.export.compile",
    "CompileReport": "edgebert.export.compile",
    "CompiledForm": "edgebert.export.forms",
    "ExportOptions": "edgebert.export.graph",
    "ExportReport": "edgebert.export.graph",
    "IrFiles": "edgebert.export.ir",
    "OrtForm": "edgebert.export.ort_form",
    "bundle_from_graph": "edgebert.export.compile",
    "check_int8_graph": "edgebert.export.rules",
    "form_from_graph": "edgebert.export.forms",
    "graph_from_checkpoint": "edgebert.export.graph",
    "ir_from_graph": "edgebert.export.ir",
    "ort_form_from_graph": "edgebert.export.ort_form",
    "qdq_counts": "edgebert.export.rules",
    "read_graph_card": "edgebert.export.metadata",
    "read_graph_examples": "edgebert.export.metadata",
    "without_examples": "edgebert.export.metadata",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562): torch and onnx are loaded by who needs them."""
    if name not in _HOME:
        raise AttributeError(f"module `edgebert.export` has no attribute `{name}`")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
