"""From a graph to OpenVINO's intermediate representation, in memory."""

from __future__ import annotations

from dataclasses import dataclass

from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.runtime.openvino_conversion import ir_of_model


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
    """Convert a graph. Equal graphs give equal bytes, in every process; see `ir_of_model`.

    Args:
        graph: an ONNX file, FP32 or INT8.

    Raises:
        BadDataError: no ONNX file, or OpenVINO cannot read it.
        UnavailableError: openvino is not installed.
    """
    return IrFiles(*ir_of_model(*model_for_ir(graph)))


def model_for_ir(graph: bytes) -> tuple[bytes, frozenset[str]]:
    """Return the model that OpenVINO is to convert, and the names in it that stay.

    Raises:
        BadDataError: no ONNX file.
    """
    model = parse_graph(graph)
    del model.metadata_props[:]  # OpenVINO would copy them: card and example images are the bundle's, not the network's
    given = {value.name for value in (*model.graph.initializer, *model.graph.input, *model.graph.output)}
    given.update(name for node in model.graph.node for name in (node.name, *node.output))
    return bytes_of_model(model), frozenset(given)
