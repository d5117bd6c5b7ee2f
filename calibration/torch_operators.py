"""What the operators of a float graph compute, in torch and with gradients: the semantics of opset 19 and 20.

Each is a function of a node's inputs and attributes. An input that a node leaves out is None, or not there. What decides a
shape (`Reshape`, `Slice`, ...) is a whole-number tensor, as it is in the graph.

>>> relu = OPERATORS["Relu"]
>>> relu([torch.tensor([-1.0, 2.0])], Attributes({}))
tensor([0., 2.])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from edgebert.errors import BadDataError

Inputs = Sequence[Tensor | None]

# The types of ONNX that a classifier computes with.
_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


class Attributes:
    """The attributes of a node, each read as the type that the operator asks for.

    Args:
        values: name -> value, text decoded.
    """

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    @classmethod
    def of(cls, node: NodeProto) -> Attributes:
        """Read those of a node."""
        values: dict[str, object] = {}
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            values[attribute.name] = value.decode("utf-8") if isinstance(value, bytes) else value
        return cls(values)

    def integer(self, name: str, default: int) -> int:
        """Return a whole number, or `default` where the node does not have it."""
        value = self._values.get(name, default)
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float) -> float:
        """Return a number, or `default`."""
        value = self._values.get(name, default)
        assert isinstance(value, (int, float))
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Return a text, or `default`."""
        return str(self._values.get(name, default))

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return whole numbers, or `default`."""
        value = self._values.get(name, default)
        assert isinstance(value, Sequence)
        return [int(entry) for entry in value]

    def constant(self) -> Tensor:
        """Return what a `Constant` or a `ConstantOfShape` holds, float32 0 where it says nothing."""
        for name, value in self._values.items():
            if isinstance(value, TensorProto):
                return tensor_of(value)
            if name in ("value_float", "value_floats"):
                return torch.tensor(value, dtype=torch.float32)
            if name in ("value_int", "value_ints"):
                return torch.tensor(value, dtype=torch.int64)
        return torch.zeros(1)


Operator = Callable[[Inputs, Attributes], "Tensor | Sequence[Tensor]"]


def tensor_of(stored: TensorProto) -> Tensor:
    """Return a copy of a stored tensor."""
    return torch.from_numpy(np.array(numpy_helper.to_array(stored)))


def given(inputs: Inputs, position: int) -> Tensor:
    """Return an input that the operator cannot do without."""
    value = inputs[position]
    assert value is not None  # onnx.checker has looked at the graph
    return value


def optional(inputs: Inputs, position: int) -> Tensor | None:
    """Return an input that may be left out."""
    return inputs[position] if position < len(inputs) else None


def whole_numbers(inputs: Inputs, position: int) -> list[int] | None:
    """Return a whole-number input as a list, None where it is left out."""
    value = optional(inputs, position)
    return None if value is None else [int(entry) for entry in value.reshape(-1).tolist()]


def _each(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda inputs, _: function(given(inputs, 0))


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda inputs, _: function(given(inputs, 0), given(inputs, 1))


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(inputs: Inputs, _: Attributes) -> Tensor:
        result = given(inputs, 0)
        for position in range(1, len(inputs)):
            result = function(result, given(inputs, position))
        return result

    return operator


def _quotient(left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, weight, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    sides = weight.ndim - 2
    values, padding = _padded(values, attributes, sides, filling=0.0)
    compute = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[sides]
    result: Tensor = compute(
        values,
        weight,
        bias,
        stride=attributes.integers("strides", [1] * sides),
        padding=padding,
        dilation=attributes.integers("dilations", [1] * sides),
        groups=attributes.integer("group", 1),
    )
    return result


def _padded(values: Tensor, attributes: Attributes, sides: int, *, filling: float) -> tuple[Tensor, list[int]]:
    """Return the values and the padding left to do: that of sides of one width is left to the operator itself."""
    if attributes.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise BadDataError(f"auto_pad `{attributes.text('auto_pad', '')}`", expected="padding as numbers")
    pads = attributes.integers("pads", [0] * (2 * sides))
    begins, ends = pads[:sides], pads[sides:]
    if begins == ends:
        return values, begins
    widths = [width for pair in zip(reversed(begins), reversed(ends), strict=True) for width in pair]
    return functional.pad(values, widths, value=filling), [0] * sides


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    left, right, addend = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    left = left.T if attributes.integer("transA", 0) else left
    right = right.T if attributes.integer("transB", 0) else right
    result = attributes.number("alpha", 1.0) * (left @ right)
    return result if addend is None else result + attributes.number("beta", 1.0) * addend


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = given(inputs, 0)
    shape = values.shape[attributes.integer("axis", -1) :]
    scale, bias = given(inputs, 1).expand(shape), optional(inputs, 2)
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(values, shape, scale, bias, attributes.number("epsilon", 1e-5))


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, scale, bias, mean, variance = (given(inputs, position) for position in range(5))
    return functional.batch_norm(values, mean, variance, scale, bias, eps=attributes.number("epsilon", 1e-5))


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.gelu(given(inputs, 0), approximate=attributes.text("approximate", "none"))


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = given(inputs, 0)
    sides = values.ndim - 2
    kernel = attributes.integers("kernel_shape")
    values, padding = _padded(values, attributes, sides, filling=-math.inf)
    compute = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[sides]
    result: Tensor = compute(
        values,
        kernel,
        stride=attributes.integers("strides", [1] * sides),
        padding=padding,
        dilation=attributes.integers("dilations", [1] * sides),
        ceil_mode=bool(attributes.integer("ceil_mode", 0)),
    )
    return result


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = given(inputs, 0)
    sides = values.ndim - 2
    pads = attributes.integers("pads", [0] * (2 * sides))
    counts_zeros = bool(attributes.integer("count_include_pad", 0))
    if pads[:sides] != pads[sides:] or set(attributes.integers("dilations", [1])) != {1}:
        raise BadDataError("an AveragePool with uneven padding or dilation", expected="the same padding on both sides")
    compute = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[sides]
    result: Tensor = compute(
        values,
        attributes.integers("kernel_shape"),
        stride=attributes.integers("strides", [1] * sides),
        padding=pads[:sides],
        ceil_mode=bool(attributes.integer("ceil_mode", 0)),
        count_include_pad=counts_zeros,
    )
    return result


def _over_the_image(function: Callable[..., Tensor]) -> Operator:
    def operator(inputs: Inputs, _: Attributes) -> Tensor:
        values = given(inputs, 0)
        return function(values, dim=tuple(range(2, values.ndim)), keepdim=True)

    return operator


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def operator(inputs: Inputs, attributes: Attributes) -> Tensor:
        values = given(inputs, 0)
        axes = whole_numbers(inputs, 1) or attributes.integers("axes")
        if not axes:
            if attributes.integer("noop_with_empty_axes", 0):
                return values
            axes = list(range(values.ndim))
        return function(values, dim=tuple(axes), keepdim=bool(attributes.integer("keepdims", 1)))

    return operator


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = given(inputs, 0)
    return values.permute(attributes.integers("perm", list(reversed(range(values.ndim)))))


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, shape = given(inputs, 0), whole_numbers(inputs, 1) or []
    if not attributes.integer("allowzero", 0):
        shape = [values.shape[axis] if side == 0 else side for axis, side in enumerate(shape)]
    return values.reshape(shape)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = given(inputs, 0)
    axis = attributes.integer("axis", 1)
    axis = axis + values.ndim if axis < 0 else axis
    return values.reshape(math.prod(values.shape[:axis]), -1)


def _squeeze(inputs: Inputs, _: Attributes) -> Tensor:
    values, axes = given(inputs, 0), whole_numbers(inputs, 1)
    return values.squeeze() if axes is None else values.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, _: Attributes) -> Tensor:
    values, axes = given(inputs, 0), whole_numbers(inputs, 1) or []
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values


def _concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat([given(inputs, position) for position in range(len(inputs))], dim=attributes.integer("axis", 0))


def _split(inputs: Inputs, attributes: Attributes) -> Sequence[Tensor]:
    values, sizes, axis = given(inputs, 0), whole_numbers(inputs, 1), attributes.integer("axis", 0)
    if sizes is None:
        return torch.split(values, -(-values.shape[axis] // attributes.integer("num_outputs", 1)), dim=axis)
    return torch.split(values, sizes, dim=axis)


def _slice(inputs: Inputs, _: Attributes) -> Tensor:
    values = given(inputs, 0)
    starts, ends = whole_numbers(inputs, 1) or [], whole_numbers(inputs, 2) or []
    axes = whole_numbers(inputs, 3) or list(range(len(starts)))
    steps = whole_numbers(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(values.shape[axis])[start:end:step]  # ends beyond the side mean the same in Python
        if step == 1:
            values = values.narrow(axis, chosen.start, len(chosen))
        else:
            values = values.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return values


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, indices = given(inputs, 0), given(inputs, 1).long()
    axis = attributes.integer("axis", 0) % values.ndim
    indices = torch.where(indices < 0, indices + values.shape[axis], indices)
    taken = values.index_select(axis, indices.reshape(-1))
    return taken.reshape([*values.shape[:axis], *indices.shape, *values.shape[axis + 1 :]])


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    shape = list(given(inputs, 0).shape)
    return torch.tensor(shape[attributes.integer("start", 0) : attributes.integer("end", len(shape))])


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    kind = _TYPES.get(attributes.integer("to", 0))
    if kind is None:
        raise BadDataError(
            f"a Cast to the type `{attributes.integer('to', 0)}` of ONNX",
            expected=", ".join(str(known).removeprefix("torch.") for known in _TYPES.values()),
        )
    return given(inputs, 0).to(kind)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    return attributes.constant().reshape(()).repeat(whole_numbers(inputs, 0) or [])


def _expand(inputs: Inputs, _: Attributes) -> Tensor:
    values, shape = given(inputs, 0), whole_numbers(inputs, 1) or []
    missing = len(shape) - values.ndim
    shape = [1] * -missing + shape  # either may have fewer sides than the other
    sides = [1] * missing + list(values.shape)
    return values.expand([own if wanted == 1 else wanted for own, wanted in zip(sides, shape, strict=True)])


def _range(inputs: Inputs, _: Attributes) -> Tensor:
    start, limit, step = (given(inputs, position).item() for position in range(3))
    return torch.arange(start, limit, step, dtype=given(inputs, 0).dtype)


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, pads, filling = given(inputs, 0), whole_numbers(inputs, 1) or [], optional(inputs, 2)
    axes = whole_numbers(inputs, 3) or list(range(values.ndim))
    widths = [(0, 0)] * values.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (pads[place], pads[place + len(axes)])
    mode = attributes.text("mode", "constant")
    while mode != "constant" and widths[0] == (0, 0):
        widths = widths[1:]  # torch pads by reflection on the last axes alone
    flat = [width for pair in reversed(widths) for width in pair]
    if mode == "constant":
        return functional.pad(values, flat, value=0.0 if filling is None else float(filling))
    return functional.pad(values, flat, mode={"edge": "replicate"}.get(mode, mode))


def _clip(inputs: Inputs, _: Attributes) -> Tensor:
    return torch.clamp(given(inputs, 0), optional(inputs, 1), optional(inputs, 2))


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return (attributes.number("alpha", 0.2) * given(inputs, 0) + attributes.number("beta", 0.5)).clamp(0.0, 1.0)


OPERATORS: dict[str, Operator] = {
    "Abs": _each(torch.abs),
    "Add": _pair(torch.add),
    "And": _pair(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _each(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda _, attributes: attributes.constant(),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Div": _pair(_quotient),
    "Dropout": _each(lambda values: values),
    "Elu": lambda inputs, attributes: functional.elu(given(inputs, 0), attributes.number("alpha", 1.0)),
    "Equal": _pair(torch.eq),
    "Erf": _each(torch.erf),
    "Exp": _each(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _each(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _over_the_image(torch.mean),
    "GlobalMaxPool": _over_the_image(torch.amax),
    "Greater": _pair(torch.gt),
    "GreaterOrEqual": _pair(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _each(functional.hardswish),
    "Identity": _each(lambda values: values),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: functional.leaky_relu(given(inputs, 0), attributes.number("alpha", 0.01)),
    "Less": _pair(torch.lt),
    "LessOrEqual": _pair(torch.le),
    "Log": _each(torch.log),
    "MatMul": _pair(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _fold(torch.minimum),
    "Mish": _each(functional.mish),
    "Mul": _pair(torch.mul),
    "Neg": _each(torch.neg),
    "Not": _each(torch.logical_not),
    "Or": _pair(torch.logical_or),
    "Pad": _pad,
    "Pow": _pair(torch.pow),
    "Range": _range,
    "Reciprocal": _each(torch.reciprocal),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _each(functional.relu),
    "Reshape": _reshape,
    "Round": _each(torch.round),
    "Shape": _shape,
    "Sigmoid": _each(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: functional.softmax(given(inputs, 0), attributes.integer("axis", -1)),
    "Softplus": _each(functional.softplus),
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _pair(torch.sub),
    "Tanh": _each(torch.tanh),
    "Tile": lambda inputs, _: given(inputs, 0).repeat(whole_numbers(inputs, 1) or []),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, _: torch.where(given(inputs, 0), given(inputs, 1), given(inputs, 2)),
}
"""Operator -> what it computes. Those that a graph of edgebert's holds, and their near relations."""


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse a graph that holds an operator not in the table.

    Raises:
        BadDataError: the message names the operator and the node.
    """
    for node in model.graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise BadDataError(
                f"fine-tuning does not know the operator `{node.op_type}` of node `{node.name or node.output[0]}`",
                expected=f"one of the {len(OPERATORS)} operators that it knows",
                hint="quantise without --finetune",
            )
