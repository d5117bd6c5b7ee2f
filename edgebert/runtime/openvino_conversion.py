"""From the bytes of an ONNX model to OpenVINO's intermediate representation: the part of it that needs OpenVINO alone.

`edgebert.export.ir` prepares the model, here or on the computer that a device belongs to; a device does this with its own OpenVINO.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from edgebert.errors import BadDataError
from edgebert.extras import require


def ir_of_model(model: bytes, given: Collection[str]) -> tuple[bytes, bytes]:
    """Return structure (XML) and weights of a model.

    The weights keep their precision (OpenVINO's own default would store float32 as float16). OpenVINO names what it adds
    by a counter of the process; those names are replaced by the operator's place in the graph.

    Args:
        model: an ONNX file.
        given: names of nodes and tensors in it, which stay.

    Raises:
        BadDataError: OpenVINO cannot read it.
        UnavailableError: openvino is not installed.
    """
    require("openvino")
    import openvino

    try:
        converted = openvino.Core().read_model(model)
    except RuntimeError as error:  # what OpenVINO raises for everything
        raise BadDataError(f"OpenVINO cannot read the graph: {error}") from error
    for place, operator in enumerate(converted.get_ordered_ops()):
        if operator.get_friendly_name() not in given and operator.get_type_name() not in ("Parameter", "Result"):
            operator.set_friendly_name(f"{operator.get_type_name()}.{place}")
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(converted, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()
