"""Weights for CPUs whose int8 products saturate: the same graph with stored weights in [-63, 63].

Without VNNI or AMX a kernel adds two products of uint8 and int8 in 16 bits (`edgebert.runtime.instructions`). With at most 63
steps they fit, at the price of a bit: a weight's rounding error doubles. Everything else of the graph stays as it is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgebert.errors import UsageError
from edgebert.export.topology import Topology, attribute_of
from edgebert.runtime.instructions import Int8Instructions, int8_instructions
from edgebert.target import Target

Weights = Literal["auto", "8-bit", "7-bit"]

STEPS = 63  # the largest magnitude with which two products of uint8 and int8 fit 16 bits: 2 * 255 * 63 = 32,130


def weight_bits_for(target: Target, weights: Weights, *, instructions: Int8Instructions | None = None) -> int:
    """Return 7 where the INT8 weights for a target need 7 bits, else 8.

    Args:
        target: of the form.
        weights: `auto` takes 7 bits on a CPU whose int8 products saturate, and 8 wherever that is not known.
        instructions: of the computer that runs the form; this one's if None.

    Raises:
        UsageError: 7 bits for a GPU, an NPU or a TensorRT engine.
    """
    if weights == "7-bit" and target.device != "CPU":
        raise UsageError(
            f"`--weights 7-bit` for `{target.name}`",
            expected="a CPU: GPUs and NPUs add int8 products in 32 bits",
            hint="compile for it with a second call, which adds a form to the bundle",
        )
    if weights == "auto" and target.device == "CPU":
        return 7 if (instructions or int8_instructions(target.backend)).exact is False else 8
    return 7 if weights == "7-bit" else 8


def seven_bit_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a portable INT8 graph with weights in [-63, 63]: steps times 63/127, scales times 127/63.

    An output channel whose weights are that small already keeps them, bit by bit, so that a second call changes nothing.

    Args:
        model: as `edgebert.export.rules.check_int8_graph` has it; not changed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    topology = Topology(model)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for node in result.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        stored, scale = topology.array(node.input[0]), topology.array(node.input[1])
        if stored is None or scale is None or int(np.abs(stored.astype(np.int64)).max(initial=0)) <= STEPS:
            continue  # an activation, or a weight that fits already
        steps, scales = _rounded(stored, scale.astype(np.float32), attribute_of(node, "axis", 1))
        for position, values in ((0, steps), (1, scales)):
            name = f"{node.output[0]}.7bit.{position}"
            assert name not in taken, name
            result.graph.initializer.append(numpy_helper.from_array(values, name))
            node.input[position] = name
    used = {name for node in result.graph.node for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def _rounded(
    stored: NDArray[np.generic], scale: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 steps in [-63, 63] and float32 scales for them, a channel at a time where there are several scales."""
    wide = stored.astype(np.int64)
    others = tuple(side for side in range(wide.ndim) if scale.ndim == 0 or side != axis % wide.ndim)
    large = np.abs(wide).max(axis=others, keepdims=True, initial=0) > STEPS
    # Never halfway between two steps: 126 * step / 254 is no odd number of halves.
    steps = np.where(large, np.rint(wide * (STEPS / 127)), wide).astype(np.int8)
    scales = np.where(large.reshape(scale.shape), scale * np.float32(127 / STEPS), scale).astype(np.float32)
    return steps, scales
