"""Every operator in torch computes what ONNX Runtime does, forms that our exports do not use included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgebert.calibration.torch_operators import OPERATORS, Attributes, check_operators
from edgebert.errors import BadDataError

_DRAW = np.random.default_rng(0)


def _floats(*shape: int, low: float = -2.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return _DRAW.uniform(low, 2.0, shape).astype(np.float32)


def _whole(*numbers: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


_NO = np.zeros(0, np.float32)  # an input that is left out
_IMAGE = _floats(2, 3, 5, 6)
_TRUTHS = np.array([True, False, True])
_ONE = numpy_helper.from_array(np.array([7], np.int64))


@dataclass(frozen=True)
class Case:
    """One node."""

    operator: str
    inputs: Sequence[np.ndarray[Any, np.dtype[Any]]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    def __str__(self) -> str:
        return f"{self.operator}{sorted(self.attributes)}{[list(value.shape) for value in self.inputs]}"


_CASES = [
    *(Case(name, [_IMAGE]) for name in ("Abs", "Ceil", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg")),
    *(Case(name, [_IMAGE]) for name in ("Dropout", "Elu", "Gelu", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid")),
    *(Case(name, [_IMAGE]) for name in ("GlobalAveragePool", "GlobalMaxPool", "Softmax", "Softplus", "Tanh", "Flatten")),
    *(Case(name, [_floats(3, 4, low=0.1)]) for name in ("Log", "Reciprocal", "Sqrt")),
    *(Case(name, [_floats(2, 3), _floats(4, 1, 3)]) for name in ("Add", "Div", "Mul", "Sub")),
    *(Case(name, [_TRUTHS, ~_TRUTHS[:1]]) for name in ("And", "Or")),
    *(Case(name, [_whole(1, 2, 3), _whole(2)]) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(name, [_floats(2, 3), _floats(3), _floats(2, 1)]) for name in ("Max", "Min")),
    *(Case(name, [_IMAGE, _whole(-1, 1)], {"keepdims": 0}) for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")),
    Case("AveragePool", [_IMAGE], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}),
    Case("AveragePool", [_IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("BatchNormalization", [_IMAGE, _floats(3), _floats(3), _floats(3), _floats(3, low=0.1)], {"epsilon": 1e-3}),
    Case("Cast", [_IMAGE], {"to": TensorProto.INT64}),
    Case("Clip", [_IMAGE, np.array(-0.5, np.float32), np.array(1.0, np.float32)]),
    Case("Clip", [_IMAGE, _NO, np.array(1.0, np.float32)]),
    Case("Concat", [_floats(2, 3), _floats(2, 1)], {"axis": -1}),
    Case("Constant", [], {"value_ints": [3, 4]}),
    Case("Constant", [], {"value_float": 0.5}),
    Case("ConstantOfShape", [_whole(2, 3)], {"value": _ONE}),
    Case("ConstantOfShape", [_whole(2)]),
    Case("Conv", [_IMAGE, _floats(4, 3, 3, 3), _floats(4)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    Case("Conv", [_IMAGE, _floats(6, 1, 2, 2)], {"group": 3, "pads": [1, 1, 1, 1], "dilations": [2, 2]}),
    Case("Conv", [_floats(2, 3, 7), _floats(4, 3, 3)]),
    Case("Div", [_whole(-7, 7, 9), _whole(2, 2, -4)]),
    Case("Expand", [_floats(3, 1), _whole(2, 1, 4)]),
    Case("Expand", [_floats(2, 3, 4), _whole(4)]),
    Case("Flatten", [_IMAGE], {"axis": -1}),
    Case("Gather", [_IMAGE, np.array([[0, -1], [2, 1]], np.int64)], {"axis": 1}),
    Case("Gather", [_whole(4, 5, 6), np.array(1, np.int64)]),
    Case("Gelu", [_IMAGE], {"approximate": "tanh"}),
    Case("Gemm", [_floats(3, 2), _floats(4, 3), _floats(4)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [_floats(2, 3), _floats(3, 4)]),
    Case("HardSigmoid", [_IMAGE], {"alpha": 1 / 6, "beta": 0.5}),
    Case("LayerNormalization", [_IMAGE, _floats(5, 6), _floats(5, 6)], {"axis": 2, "epsilon": 1e-2}),
    Case("LayerNormalization", [_IMAGE, _floats(6)]),
    Case("MatMul", [_floats(2, 3, 4), _floats(4, 5)]),
    Case("MaxPool", [_IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [-np.abs(_IMAGE)], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("Not", [_TRUTHS]),
    Case("Pad", [_IMAGE, _whole(0, 0, 1, 2, 0, 0, 0, 1), np.array(3.0, np.float32)]),
    Case("Pad", [_IMAGE, _whole(1, 2, 0, 1), _NO, _whole(2, 3)], {"mode": "reflect"}),
    Case("Pad", [_IMAGE, _whole(1, 2, 0, 1), _NO, _whole(-2, -1)], {"mode": "edge"}),
    Case("Pow", [_floats(2, 3, low=0.1), np.array(2.5, np.float32)]),
    Case("Range", [np.array(1, np.int64), np.array(8, np.int64), np.array(3, np.int64)]),
    Case("ReduceMean", [_IMAGE]),
    Case("ReduceMean", [_IMAGE], {"noop_with_empty_axes": 1}),
    Case("Reshape", [_IMAGE, _whole(0, -1, 6)]),
    Case("Reshape", [_floats(0, 3), _whole(3, 0)], {"allowzero": 1}),
    Case("Round", [np.array([0.5, 1.5, -0.5, 2.4], np.float32)]),
    Case("Shape", [_IMAGE], {"start": 1, "end": -1}),
    Case("Slice", [_IMAGE, _whole(4, -1), _whole(0, -9), _whole(2, 3), _whole(-2, -1)]),
    Case("Slice", [_IMAGE, _whole(1), _whole(2**63 - 1), _whole(-1)]),
    Case("Slice", [_IMAGE, _whole(0, 1), _whole(1, 9)]),
    Case("Softmax", [_IMAGE], {"axis": 1}),
    Case("Split", [_IMAGE, _whole(1, 4)], {"axis": 2}, 2),
    Case("Split", [_IMAGE], {"axis": 3, "num_outputs": 2}, 2),
    Case("Squeeze", [_floats(1, 3, 1), _whole(-1)]),
    Case("Squeeze", [_floats(1, 3, 1)]),
    Case("Tile", [_floats(2, 3), _whole(1, 2)]),
    Case("Transpose", [_IMAGE], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [_IMAGE]),
    Case("Unsqueeze", [_floats(2, 3), _whole(0, -1)]),
    Case("Where", [np.array([[True], [False]]), _floats(2, 3), _floats(3)]),
]  # fmt: skip


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_operator_computes_what_onnx_runtime_does(case: Case) -> None:
    names = ["" if value is _NO else f"input_{at}" for at, value in enumerate(case.inputs)]
    given = {name: value for name, value in zip(names, case.inputs, strict=True) if name}
    outputs = [f"output_{at}" for at in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, **case.attributes)
    graph = helper.make_graph(
        [node],
        "case",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    answers = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)
    expected = [np.asarray(answer) for answer in answers]

    inputs = [None if value is _NO else torch.from_numpy(np.array(value)) for value in case.inputs]
    result = OPERATORS[case.operator](inputs, Attributes.of(node))
    found = [result] if isinstance(result, torch.Tensor) else list(result)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)


def test_every_operator_is_compared() -> None:
    assert {case.operator for case in _CASES} == OPERATORS.keys()


def test_check_operators_names_operator_and_node() -> None:
    node = helper.make_node("Einsum", ["a"], ["b"], name="/mixer/Einsum", equation="ij->ji")
    with pytest.raises(BadDataError, match="the operator `Einsum` of node `/mixer/Einsum`") as caught:
        check_operators(helper.make_model(helper.make_graph([node], "case", [], [])))
    assert caught.value.hint == "quantise without --finetune"


def test_padding_by_name_is_refused() -> None:
    with pytest.raises(BadDataError, match="auto_pad `SAME_UPPER`"):
        OPERATORS["Conv"]([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)], Attributes({"auto_pad": "SAME_UPPER"}))
