"""From the portable graph, FP32 or INT8, to the two forms that TensorRT builds from.

The strongly typed form says every type itself: FP16 casts, FP16 constants, and FP16 Q/DQ scales, since a DQ's output is of its
scale's type (tensorrt_jetson.md, fact 6); TensorRT 11 knows no other. The weakly typed form, for TensorRT 10 with the flags FP16
and INT8, stays in float32 and leaves the types to the builder. Both are rewritten alike in what does not change an answer
(`edgebert.export.tensorrt_rewrites`), and neither leaves here with a finding of `edgebert.export.tensorrt_rules`.

A FP32 graph gives the FP16 engine, an INT8 graph the INT8 one: what `compile --precision auto` measures against each other.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from edgebert.errors import BadDataError
from edgebert.export.graph_edits import copy_of_model
from edgebert.export.half_precision import half_graph
from edgebert.export.tensorrt_operator_rules import OPSETS
from edgebert.export.tensorrt_rewrites import (
    cast_pixels_first,
    drop_idle_gathers,
    drop_idle_masks,
    scale_on_queries,
    whole_norms,
)
from edgebert.export.tensorrt_rules import check_tensorrt_graph


def strong_graph(model: onnx.ModelProto, *, float32: Collection[str] = ()) -> onnx.ModelProto:
    """Return the strongly typed form: FP16, with INT8 where the graph has Q/DQ; `image` and `logits` keep their types.

    Args:
        model: the FP32 graph, the portable INT8 graph, or that with TensorRT's placements
            (`edgebert.export.placements.graph_for_backend`); not changed.
        float32: names of nodes that stay in float32, such as those that `edgebert.export.half_overflow` names.

    Raises:
        BadDataError: a constant does not fit FP16, or the result breaks a rule of TensorRT's parser; the message names the
            rule, the node and the remedy.
    """
    result = half_graph(rewritten_graph(model), float32=float32)
    check_tensorrt_graph(result, typing="strong", float32=float32)
    return result


def weak_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the weakly typed form, for TensorRT 10: float32 with the same Q/DQ, rewritten where TensorRT asks for it.

    Args:
        model: as `strong_graph` takes it; not changed.

    Raises:
        BadDataError: the result breaks a rule of TensorRT's parser.
    """
    result = rewritten_graph(model)
    check_tensorrt_graph(result, typing="weak")
    return result


def rewritten_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with everything rewritten that both forms share; no rule is checked."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version not in OPSETS:
            raise BadDataError(
                f"a graph of opset {entry.version} for TensorRT",
                expected="opset 19 or 20: FP16 scales need 19, TensorRT 10.3 reads no newer than 20",
                hint="edgebert export CHECKPOINT --opset 20 -o GRAPH.onnx",
            )
    result = copy_of_model(model)
    cast_pixels_first(result)
    drop_idle_gathers(result)
    drop_idle_masks(result)
    whole_norms(result)
    scale_on_queries(result)
    return result
