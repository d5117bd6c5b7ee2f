"""From a portable INT8 graph to the form that ONNX Runtime's x86 kernels take.

Measured (compression.md, section 7: 49 tokens, width 256, six layers, one thread): FP32 9.0 ms; the portable graph as it is
38.3 ms; with uint8 activations 38.2; without MatMulAddFusion 14.4; with both 6.2 ms, every linear an integer product, and
the same answers bit by bit. On other processors the kernels take int8 activations as they are.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgebert.errors import EdgebertError
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, without_examples
from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts
from edgebert.export.topology import LINEAR_OPERATORS, Topology, attribute_of
from edgebert.extras import require
from edgebert.preprocess import load_image

if TYPE_CHECKING:
    import onnxruntime

_X86 = ("amd64", "i386", "i686", "x86", "x86_64")
# MatMul + Add becomes Gemm before the Q/DQ patterns are looked for, and none of them takes a Gemm with a float bias.
_DISABLED_OPTIMIZERS = ("MatMulAddFusion",)
# Integer sums are exact, and the answers were bit-equal wherever this was measured. What may differ on another computer is
# the order in which the float rest is added up, and a value on the border of two int8 steps may then take the other one:
# far less than the error of quantisation itself.
_RELATIVE_TOLERANCE = 1e-2
_PROBES = 4  # noise images beside the graph's own examples; they compare two graphs and calibrate nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtForm:
    """A graph for ONNX Runtime.

    Attributes:
        model: an ONNX file.
        disabled_optimizers: graph optimisations it must be opened without.
        notes: what a user should know, one line each.
    """

    model: bytes
    disabled_optimizers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def ort_form_from_graph(graph: bytes, *, machine: str | None = None) -> OrtForm:
    """Rewrite an INT8 graph for ONNX Runtime's CPU kernels and prove the result; an FP32 graph only loses its example images.

    Args:
        graph: an ONNX file of edgebert's.
        machine: the processor to compile for, as `platform.machine` names it; this computer's by default.

    Raises:
        BadDataError: no graph of edgebert's, or a quantised one that breaks the rules of `edgebert.export.rules`.
        EdgebertError: ONNX Runtime left a quantised MatMul in float, or the rewritten graph answers differently.
        UnavailableError: onnxruntime is not installed.
    """
    model = parse_graph(graph)
    card_of_model(model)
    if graph_precision(model) == "fp32":
        return OrtForm(model=without_examples(graph))
    check_int8_graph(model)
    if (machine or platform.machine()).lower() not in _X86:
        return OrtForm(
            model=without_examples(graph), notes=("int8 activations, as this processor's kernels take them",)
        )
    rewritten = _uint8_activations(model)
    notes = _float_weights_of_convolutions(rewritten)
    del rewritten.metadata_props[:]  # the bundle's manifest says it all, and its portable graph carries the examples
    content = bytes_of_model(rewritten)
    _check_operators(content, expected=qdq_counts(model).get("MatMul", 0))
    notes += _check_answers(model, graph, content)
    return OrtForm(model=content, disabled_optimizers=_DISABLED_OPTIMIZERS, notes=notes)


def kernel_form(model: onnx.ModelProto, *, machine: str | None = None) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return an INT8 graph as ONNX Runtime's kernels take it, unproven, and the optimisations it must be opened without.

    The answers are those of the graph itself; candidates are compared in this form, because it is several times quicker.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return model, ()
    rewritten = _uint8_activations(model)
    _float_weights_of_convolutions(rewritten)
    return rewritten, _DISABLED_OPTIMIZERS


def _uint8_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shift activations from int8 with zero point 0 to uint8 with zero point 128: the same steps, the same range."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    topology = Topology(copy)
    shifted: dict[str, str] = {}
    for node in copy.graph.node:
        stored = node.op_type == "DequantizeLinear" and topology.constant(node.input[0]) is not None
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or stored:
            continue
        old = node.input[2]
        if old not in shifted:
            shifted[old] = f"{old}.uint8"
            copy.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), shifted[old]))
        node.input[2] = shifted[old]
    _drop_unused_initializers(copy)
    return copy


def _float_weights_of_convolutions(model: onnx.ModelProto) -> tuple[str, ...]:
    """Store the weights of Conv and Gemm as float again, and say so.

    ONNX Runtime has no integer kernel for them when their output is not quantised. Dequantised once here they give the same
    answers as dequantised at every run. Their inputs keep Q and DQ.
    """
    topology = Topology(model)
    nodes = {node.name: node for node in model.graph.node}
    stored = [
        (node, topology.producers.get(node.input[1]))
        for node in nodes.values()
        if node.op_type in LINEAR_OPERATORS and node.op_type != "MatMul"
    ]
    pairs = [(node, weight) for node, weight in stored if weight is not None and weight.op_type == "DequantizeLinear"]
    for node, dequantiser in pairs:
        values, scale = topology.array(dequantiser.input[0]), topology.array(dequantiser.input[1])
        assert values is not None  # `check_int8_graph` looked
        assert scale is not None
        shape = [1] * values.ndim
        if scale.ndim:
            shape[attribute_of(dequantiser, "axis", 1)] = -1
        name = f"{node.name}.weight.dequantized"
        floats = values.astype(np.float32) * scale.astype(np.float32).reshape(shape)
        model.graph.initializer.append(numpy_helper.from_array(floats, name))
        node.input[1] = name
    if not pairs:
        return ()
    gone = {dequantiser.output[0] for _, dequantiser in pairs}
    kept = [node for node in model.graph.node if not gone & set(node.output)]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused_initializers(model)
    kinds = " and ".join(sorted({node.op_type for node, _ in pairs}))
    return (f"{len(pairs)} quantised {kinds} run in float: ONNX Runtime has no integer kernel for them in this place",)


def _drop_unused_initializers(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _check_operators(content: bytes, *, expected: int) -> None:
    """Let ONNX Runtime optimise the graph, and count its integer products."""
    require("onnxruntime")
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        path = Path(folder) / "optimized.onnx"
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(path)
        settings.log_severity_level = 3  # a warning says that the file suits this computer alone: it is only counted
        _open(content, settings, _DISABLED_OPTIMIZERS)
        topology = Topology(onnx.load(path))
    integer = sum(node.op_type == "MatMulIntegerToFloat" for node in topology.graph.node)
    left = [
        f"{consumer.op_type} `{consumer.name}`"
        for node in topology.graph.node
        if node.op_type == "DequantizeLinear" and topology.constant(node.input[0]) is not None
        for consumer in topology.consumers.get(node.output[0], [])
        if consumer.op_type == "MatMul"
    ]
    if left or integer != expected:
        raise EdgebertError(
            f"ONNX Runtime {onnxruntime.__version__} runs {expected - integer} of {expected} quantised products in float"
            + (f": {', '.join(left[:5])}" if left else ""),
            expected="all of them as MatMulIntegerToFloat",
            hint="edgebert doctor",
        )


def _check_answers(model: onnx.ModelProto, graph: bytes, content: bytes) -> tuple[str, ...]:
    """Compare the rewritten graph with the portable one, on the graph's examples and on noise."""
    require("onnxruntime")
    import onnxruntime

    images = _probe_images(model)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    portable = np.asarray(_open(graph, settings, ()).run(None, {"image": images})[0])
    rewritten = np.asarray(_open(content, settings, _DISABLED_OPTIMIZERS).run(None, {"image": images})[0])
    difference = float(np.abs(portable - rewritten).max())
    allowed = _RELATIVE_TOLERANCE * max(1.0, float(np.abs(portable).max()))
    if not difference <= allowed:
        raise EdgebertError(
            f"the form for ONNX Runtime answers differently: logits differ by {difference:.3g}",
            expected=f"at most {allowed:.1g} from the portable graph",
            hint="compile with `--weights 7-bit` or for `--target intel-cpu`, or quantize again",
        )
    same = "bit-equal to" if difference == 0 else f"within {difference:.1g} of"
    return (f"answers {same} the portable graph's on {len(images)} images",)


def _probe_images(model: onnx.ModelProto) -> NDArray[np.uint8]:
    """Return uint8 (images, height, width, 3): the examples that travel with the graph, and seeded noise."""
    card = card_of_model(model)
    noise = np.random.default_rng(0).integers(
        0, 256, (_PROBES, card.preprocessing.height, card.preprocessing.width, 3), dtype=np.uint8
    )
    examples = [load_image(example.png, card.preprocessing) for example in examples_of_model(model)]
    return np.concatenate([np.stack(examples), noise]) if examples else noise


def _open(content: bytes, settings: object, disabled: Sequence[str]) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(
        content, settings, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled) or None
    )
