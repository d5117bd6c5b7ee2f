"""Measures accuracy and latency of the same artefact in the same process, and shows what came of it.

>>> sorted(__all__)[:2]
['BenchOptions', 'ReportOptions']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebert.bench.harness import result_from_arms
    from edgebert.bench.options import BenchOptions, ReportOptions
    from edgebert.bench.report import report_from_results
    from edgebert.bench.result import read_result
    from edgebert.bench.schema import Result
    from edgebert.bench.table import markdown_table, text_table

# Public name -> where it lies. Resolved on use: a worker must not import what it does not need.
_PLACES = {
    "BenchOptions": "edgebert.bench.options",
    "ReportOptions": "edgebert.bench.options",
    "Result": "edgebert.bench.schema",
    "markdown_table": "edgebert.bench.table",
    "read_result": "edgebert.bench.result",
    "report_from_results": "edgebert.bench.report",
    "result_from_arms": "edgebert.bench.harness",
    "text_table": "edgebert.bench.table",
}

__all__ = [
    "BenchOptions",
    "ReportOptions",
    "Result",
    "markdown_table",
    "read_result",
    "report_from_results",
    "result_from_arms",
    "text_table",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(importlib.import_module(_PLACES[name]), name)
