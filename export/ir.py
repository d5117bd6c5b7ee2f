"""From a graph to OpenVINO's intermediate representation, in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgebert.errors import BadDataError
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.extras import require


@dataclass(frozen=True, slots=True)
class IrFiles:
    """An OpenVINO model.

    Attributes:
        xml: the structure.
        bin: the weights.
    """

    xml: bytes
    bin: bytes


def ir_from_graph(graph: bytes) -> IrFiles:
    """Convert a graph. Equal graphs give equal bytes, in every process.

    The weights keep their precision (OpenVINO's own default would store float32 as float16). OpenVINO names what it adds
    by a counter of the process; those names are replaced by the operator's place in the graph.

    Args:
        graph: an ONNX file, FP32 or INT8.

    Raises:
        BadDataError: no ONNX file, or OpenVINO cannot read it.
        UnavailableError: openvino is not installed.
    """
    model = parse_graph(graph)
    del model.metadata_props[:]  # OpenVINO would copy them: card and example images are the bundle's, not the network's
    given = {value.name for value in (*model.graph.initializer, *model.graph.input, *model.graph.output)}
    given.update(name for node in model.graph.node for name in (node.name, *node.output))
    require("openvino")
    import openvino

    try:
        converted = openvino.Core().read_model(bytes_of_model(model))
    except RuntimeError as error:  # what OpenVINO raises for everything
        raise BadDataError(f"OpenVINO cannot read the graph: {error}") from error
    for place, operator in enumerate(converted.get_ordered_ops()):
        if operator.get_friendly_name() not in given and operator.get_type_name() not in ("Parameter", "Result"):
            operator.set_friendly_name(f"{operator.get_type_name()}.{place}")
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(converted, path, compress_to_fp16=False)
        return IrFiles(xml=path.read_bytes(), bin=path.with_suffix(".bin").read_bytes())
