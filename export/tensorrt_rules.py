"""The rules of TensorRT's ONNX parser and of a good INT8 or FP16 engine, as a table; each finding has rule, node and remedy.

A graph without a finding breaks no known rule. It is not proven that TensorRT builds it: only a build proves that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import onnx

from edgebert.errors import BadDataError
from edgebert.export import tensorrt_operator_rules as operators
from edgebert.export import tensorrt_pair_rules as pairs
from edgebert.export.typed_graph import TypedGraph, Typing, Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place where a graph breaks a rule.

    Attributes:
        rule: name of the rule, a key of `RULES`.
        node: operator and name, such as "MatMul `fc1`".
        remedy: what mends it.
        found: what is wrong with the node, to be read behind its name.
        expected: the rule in words.
        parser_says: what TensorRT's parser says to it, where that is known.
    """

    rule: str
    node: str
    remedy: str
    found: str
    expected: str
    parser_says: str = ""

    def to_text(self) -> str:
        """Return it in one line.

        >>> Finding(rule="bias", node="DequantizeLinear `b`", found="dequantises INT32", expected="-", remedy="quantize").to_text()
        'bias: DequantizeLinear `b` dequantises INT32; quantize'
        """
        return f"{self.rule}: {self.node} {self.found}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        check: yields what breaks it; its docstring is the rule in words.
        remedy: what mends it.
        parser_says: the parser's own words (onnx-tensorrt 10.1), "" where it says nothing or that is not known.
    """

    check: Callable[[TypedGraph], Iterator[Violation]]
    remedy: str
    parser_says: str = ""

    @property
    def expected(self) -> str:
        """The rule in words."""
        return (self.check.__doc__ or "").strip().rstrip(".")


_QUANTIZE = "quantise the FP32 graph with `edgebert quantize`"
_STRONG = "make the form with `edgebert.export.tensorrt_graph`"
_EXPORT = "export it with `edgebert export`, opset 20"

RULES: dict[str, Rule] = {
    "opset": Rule(operators.opset, _EXPORT),
    "valid": Rule(operators.valid, _EXPORT),
    "domain": Rule(operators.domain, _EXPORT),
    "quantised-operators": Rule(operators.quantised_operators, f"write it as Q/DQ: {_QUANTIZE}"),
    "attention-operator": Rule(operators.attention_operator, 'export with `attn_implementation="eager"`'),
    "pixels": Rule(operators.pixels, f"cast the input first: {_STRONG}", "Found unsupported input type of UINT8"),
    "interface": Rule(operators.interface, _STRONG),
    "inputs": Rule(
        pairs.inputs,
        _QUANTIZE,
        "This version of TensorRT requires at least 2 inputs for the QuantizeLinear/DequantizeLinear operator.",
    ),
    "uint8": Rule(pairs.uint8, f"use int8 with zero point 0: {_QUANTIZE}", "Found unsupported input type of UINT8"),
    "symmetric": Rule(
        pairs.symmetric,
        f"use symmetric ranges: {_QUANTIZE}",
        "TensorRT only supports symmetric quantization. The zero point for the QuantizeLinear/DequantizeLinear operator "
        "must be all zeros.",
    ),
    "zero-point-size": Rule(
        pairs.zero_point_size, _QUANTIZE, "The scale and zero point must have the same volume. Size of zero point = "
    ),
    "scale-constant": Rule(
        pairs.scale_constant,
        f"measure ranges beforehand: {_QUANTIZE}",
        "Dynamic shape for scale tensor is not supported.",
    ),
    "scale-values": Rule(
        pairs.scale_values,
        f"measure the range again, or leave the operator in float: {_QUANTIZE}",
        "Scale coefficients must all be positive",
    ),
    "scale-type": Rule(pairs.scale_type, _STRONG),
    "channels": Rule(pairs.channels, _QUANTIZE, "The number of scales is not equal to the number of output channels."),
    "axis": Rule(pairs.axis_written, "write the axis: " + _QUANTIZE),
    "blocks": Rule(
        pairs.blocks,
        f"use one scale for each output channel: {_QUANTIZE}",
        "Only a single blocking dimension is allowed.",
    ),
    "output-type": Rule(
        pairs.output_type, "leave output_dtype out, or set it to INT8", "Mismatch between attribute output_dtype "
    ),
    "int8-only": Rule(pairs.int8_only, _QUANTIZE, "TensorRT only allows FP8, INT8, and INT4 quantization."),
    "bias": Rule(
        pairs.bias,
        f"keep biases in float: {_QUANTIZE}, or ONNX Runtime's quantiser with QuantizeBias=False",
        "only activation types allowed as input to this layer.",
    ),
    "per-channel": Rule(pairs.per_channel_weights, f"use one scale for an activation: {_QUANTIZE}"),
    "pair-scale": Rule(pairs.pair_scale, _QUANTIZE),
    "adjacent": Rule(
        pairs.adjacent,
        "put Q and DQ directly at the inputs of Conv, Gemm and MatMul (NVIDIA/TensorRT#4832)",
        "Could not infer output types for operation: ",
    ),
    "both-operands": Rule(pairs.both_operands, f"quantise both operands or none: {_QUANTIZE}"),
    "norm-outputs": Rule(operators.norm_outputs, "compute mean and deviation apart, where they are needed"),
    "norm-whole": Rule(operators.norm_whole, f"write it as one LayerNormalization: {_EXPORT}"),
    "norm-sums": Rule(operators.norm_sums, "set stash_type to 1"),
    "one-type": Rule(operators.one_type, f"cast one of them: {_STRONG}"),
    "half-region": Rule(
        operators.half_region, "make it with `strong_graph`, or name the node in `float32` where float32 is meant"
    ),
    "constants": Rule(
        operators.constants, "name the node in `float32`, or write a smaller number (a mask of -10000 does as well)"
    ),
    "attention-scale": Rule(operators.attention_scale, f"multiply the queries instead: {_STRONG}"),
    "attention-int8": Rule(
        operators.attention_int8,
        f"leave attention in FP16, or quantise both its products up to {operators.MAX_INT8_TOKENS} tokens",
    ),
}


def findings(model: onnx.ModelProto, *, typing: Typing, float32: Collection[str] = ()) -> tuple[Finding, ...]:
    """Return every place where a graph breaks a rule, rule by rule.

    Args:
        model: a graph in the form that TensorRT is to read.
        typing: `strong` or `weak`.
        float32: names of the nodes that are float32 on purpose in a strongly typed graph.
    """
    graph = TypedGraph(model, typing, float32)
    return tuple(
        Finding(
            rule=name,
            node=node,
            found=found,
            remedy=rule.remedy,
            expected=rule.expected,
            parser_says=rule.parser_says,
        )
        for name, rule in RULES.items()
        for node, found in rule.check(graph)
    )


def check_tensorrt_graph(model: onnx.ModelProto, *, typing: Typing, float32: Collection[str] = ()) -> None:
    """Prove that a graph breaks no rule.

    Raises:
        BadDataError: it does; the message names the rule, the first node, how many more there are, and the remedy.
    """
    found = findings(model, typing=typing, float32=float32)
    if not found:
        return
    first = found[0]
    more = f" ({len(found) - 1} more: {', '.join(sorted({each.rule for each in found[1:]}))})" if found[1:] else ""
    raise BadDataError(
        f"TensorRT's rule `{first.rule}`: {first.node} {first.found}{more}", expected=first.expected, hint=first.remedy
    )
