"""Measures accuracy and latency of the same artefact in the same process, and shows what came of it.

>>> sorted(__all__)[:2]
['BenchOptions', 'CompareOptions']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebert.bench.audit.audit import audit_arms
    from edgebert.bench.comparison.compare import CompareOptions, compare_results
    from edgebert.bench.comparison.validation import validate_results
    from edgebert.bench.harness import result_from_arms
    from edgebert.bench.options import BenchOptions, ReportOptions
    from edgebert.bench.report.page import report_from_results
    from edgebert.bench.report.table import markdown_table, text_table
    from edgebert.bench.result import read_result
    from edgebert.bench.schema import Result

# Public name -> where it lies. Resolved on use: a worker must not import what it does not need.
_PLACES = {
    "BenchOptions": "edgebert.bench.options",
    "CompareOptions": "edgebert.bench.comparison.compare",
    "ReportOptions": "edgebert.bench.options",
    "Result": "edgebert.bench.schema",
    "audit_arms": "edgebert.bench.audit.audit",
    "compare_results": "edgebert.bench.comparison.compare",
    "markdown_table": "edgebert.bench.report.table",
    "read_result": "edgebert.bench.result",
    "report_from_results": "edgebert.bench.report.page",
    "result_from_arms": "edgebert.bench.harness",
    "text_table": "edgebert.bench.report.table",
    "validate_results": "edgebert.bench.comparison.validation",
}

__all__ = [
    "BenchOptions",
    "CompareOptions",
    "ReportOptions",
    "Result",
    "audit_arms",
    "compare_results",
    "markdown_table",
    "read_result",
    "report_from_results",
    "result_from_arms",
    "text_table",
    "validate_results",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(importlib.import_module(_PLACES[name]), name)
