"""What is quantised: an FP32 graph, or a checkpoint that is exported first."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgebert._files import read_input
from edgebert.errors import InputNotFoundError


def float_graph(source: Path, data: str | Path, *, class_map: Mapping[str, str], max_skipped: float) -> bytes:
    """Return the graph's bytes; a checkpoint is exported into a temporary folder, and compared on the same data.

    Args:
        source: an `.onnx` file, or a checkpoint folder.
        data: DATA whose validation images join the comparison of a checkpoint with its graph.
        class_map: a class name in the data -> the model's name for it.
        max_skipped: largest share of unreadable images in the data.

    Raises:
        InputNotFoundError: there is nothing there, or it cannot be read.
        BadDataError: the checkpoint cannot be exported.
    """
    if source.is_file():
        return read_input(source, what="the graph")
    if not source.exists():
        raise InputNotFoundError(
            f"no such file or folder: `{source}`",
            expected="an FP32 graph (.onnx) or a checkpoint folder",
            hint="edgebert export CHECKPOINT -o GRAPH.onnx",
        )
    from edgebert.export.graph import ExportOptions, graph_from_checkpoint  # imports torch, which a graph does not need

    exporting = ExportOptions(data=str(data), class_map=class_map, max_skipped=max_skipped)
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        path = Path(folder) / "model.onnx"
        graph_from_checkpoint(source, path, exporting)
        return path.read_bytes()
