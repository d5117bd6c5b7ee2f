"""The sensitivity of layers as files: JSON for programs, a chart for people."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from edgebert._files import Output, check_file_is_free, staged_together
from edgebert._json import JsonValue, dump_json
from edgebert.calibration.sensitivity import LayerSensitivity
from edgebert.extras import require

SENSITIVITY_SCHEMA = "edgebert.sensitivity/1"

_COLOURS = {"core": "#2b6cb0", "stem": "#b7791f", "attention": "#805ad5", "head": "#718096"}
_FLOOR = 1e-9  # nats; a layer that changes nothing at all has no place on a logarithmic axis


def write_sensitivity(layers: Sequence[LayerSensitivity], path: Path, *, force: bool) -> tuple[Path, Path]:
    """Write `path` (.json) and the chart beside it (.svg), and return both.

    Raises:
        CannotWriteError: one exists without `force`, or cannot be written.
        UnavailableError: matplotlib is not installed.
    """
    files = sensitivity_files(layers, path)
    for each in files:
        check_file_is_free(each, force=force)
    with staged_together(*(Output(path=each, force=force) for each in files)) as stagings:
        for staging, content in zip(stagings, files.values(), strict=True):
            staging.write_bytes(content)
    path, chart = files
    return path, chart


def sensitivity_files(layers: Sequence[LayerSensitivity], path: Path) -> dict[Path, bytes]:
    """Return the contents of `path` (.json) and of the chart beside it (.svg), in this order.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    rows: list[JsonValue] = [layer.to_json() for layer in layers]
    table = dump_json({"schema": SENSITIVITY_SCHEMA, "layers": rows}) + "\n"
    return {path: table.encode(), path.with_suffix(".svg"): sensitivity_svg(layers).encode()}


def sensitivity_svg(layers: Sequence[LayerSensitivity]) -> str:
    """Return a bar for each layer: the KL divergence from FP32 when it alone is quantised, and its share of the time."""
    require("matplotlib")
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style the user prefers: the same layers give the same chart
        matplotlib.rcParams["svg.hashsalt"] = "edgebert-sensitivity"
        return _drawn(layers)


def _drawn(layers: Sequence[LayerSensitivity]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.22 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    places = range(len(layers))
    colours = [_COLOURS.get(layer.part, "#718096") for layer in layers]
    left.barh(places, [max(layer.score.divergence, _FLOOR) for layer in layers], color=colours)
    left.set_xscale("log")
    left.set_xlabel("KL(FP32 || this layer in INT8), nats")
    left.set_yticks(places, [f"{layer.name} ({layer.operator})" for layer in layers], fontsize=7)
    left.invert_yaxis()
    right.barh(places, [100 * (layer.latency_share or 0) for layer in layers], color=colours)
    right.set_xlabel("FP32 time, %")
    for part in dict.fromkeys(layer.part for layer in layers):
        left.barh([0], [0], color=_COLOURS.get(part, "#718096"), label=part)
    left.legend(loc="lower right", fontsize=7)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
