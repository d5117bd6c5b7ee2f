"""Every text of TensorRT's that is known, exactly as it was seen, and what a user is told for it."""

from __future__ import annotations

import pytest

from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError, UnavailableError
from edgebert.runtime.tensorrt_errors import KNOWN, error_from_texts, explained

# Texts of tensorrt_jetson.md, sections 1.3, 2.3, 3, 5.1 and 11.1; where they come from is said there.
VERSION = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
    "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 237, Serialized Engine Version: 239)"
)
OLD_VERSION = "Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match."
PATCH = (
    "The engine plan file is not compatible with this version of TensorRT, expecting library version 8.0.0 got 8.0.1, "
    "please rebuild."
)
DEVICE = "The engine plan file is generated on an incompatible device, expecting compute 7.5 got compute 8.6, please rebuild."
MODULE = (
    "Using an engine plan file across different models of devices is not recommended and is likely to affect performance "
    "or even cause errors."
)
NODE = "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[…]})"
QUANTISED = (
    "Error Code 9: Internal Error (Could not infer output types for operation: 12: dequantize: … No matching rules found for "
    "input operand types)"
)
SHARED = "NvMapMemAllocInternalTagged: 1075072515 error 12"
NO_LIBRARY = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
NO_SYMBOL = "/x/tensorrt.so: undefined symbol: getNvOnnxParserVersion"
GPU_MEMORY = (
    "Requested amount of GPU memory (272573440 bytes) could not be allocated. There may not be enough free memory for "
    "allocation to succeed."
)
FP16_FLAG = "Invalid usage, setting fp16 mode is not allowed if graph is strongly typed. Disabling BuilderFlag::kFP16."
DYNAMIC_SCALE = "Dynamic shape for scale tensor is not supported."
UINT8_ZERO = (
    "TensorRT doesn't support QuantizeLinear/DequantizeLinear with UINT8 zero_point. TensorRT will use INT8 instead."
)
NONZERO = (
    "TensorRT only supports symmetric quantization. The zero point for the QuantizeLinear/DequantizeLinear operator must be "
    "all zeros."
)
VOLUME = "The scale and zero point must have the same volume. Size of zero point = 1, size of the scale = 64."
CHANNELS = (
    "The number of scales is not equal to the number of output channels. Number of output channels = 64, number of scales = "
    "32."
)
TWO_INPUTS = "This version of TensorRT requires at least 2 inputs for the QuantizeLinear/DequantizeLinear operator."
OUTPUT_TYPE = "Mismatch between attribute output_dtype INT8 and zero-point data type UINT8."

SEEN: tuple[tuple[str, type[EdgebertError], str, str], ...] = (
    (VERSION, UnavailableError, "another version of TensorRT", "edgebert compile"),
    (OLD_VERSION, UnavailableError, "another version of TensorRT", "edgebert compile"),
    (PATCH, UnavailableError, "another version of TensorRT", "edgebert compile"),
    (DEVICE, UnavailableError, "another compute capability", "edgebert compile"),
    (MODULE, UnavailableError, "another module", "edgebert compile"),
    ("Error Code 1: Cuda Runtime (out of memory)", MemoryExhaustedError, "memory ran out", "swap on NVMe"),
    (
        "Error Code 2: OutOfMemory (Requested size was 268438528 bytes.)",
        MemoryExhaustedError,
        "memory ran out",
        "swap on NVMe",
    ),
    (GPU_MEMORY, MemoryExhaustedError, "memory ran out", "swap on NVMe"),
    (SHARED, MemoryExhaustedError, "shared memory ran out", "swap on NVMe"),
    (
        "Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use tactic.",
        MemoryExhaustedError,
        "memory ran out",
        "--workspace-mb",
    ),
    (
        "Try decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit().",
        MemoryExhaustedError,
        "larger than what is free",
        "--workspace-mb",
    ),
    ("Killed", MemoryExhaustedError, "memory ran out", "swap on NVMe"),
    (NODE, EdgebertError, "no kernel for a node", "--workspace-mb"),
    ("Engine could not be created from network", EdgebertError, "does not say why", "--optimization-level"),
    (QUANTISED, BadDataError, "no type that TensorRT's rules give", "--typing weak"),
    (
        "Calibration failure occurred with no scaling factors detected.",
        BadDataError,
        "holds no scale",
        "edgebert quantize",
    ),
    (
        "BuilderFlag::kFP16 is not compatible with a strongly typed network",
        EdgebertError,
        "precision flag",
        "report this",
    ),
    (FP16_FLAG, EdgebertError, "precision flag", "report this"),
    ("pybind11::init(): factory function returned nullptr", UnavailableError, "no NVIDIA driver or no GPU", "--host"),
    ("Cannot create DLA engine, 0 not available", UnavailableError, "no DLA", "--dla-core"),
    (NO_LIBRARY, UnavailableError, "its libraries are not", "python3-libnvinfer"),
    (NO_SYMBOL, UnavailableError, "its libraries are not", "python3-libnvinfer"),
    (TWO_INPUTS, BadDataError, "a scale is not", "edgebert quantize"),
    ("Found unsupported input type of UINT8", BadDataError, "symmetric INT8 only", "edgebert quantize"),
    (UINT8_ZERO, BadDataError, "symmetric INT8 only", "edgebert quantize"),
    (NONZERO, BadDataError, "symmetric INT8 only", "edgebert quantize"),
    (VOLUME, BadDataError, "symmetric INT8 only", "edgebert quantize"),
    ("Scale coefficients must all be positive", BadDataError, "a scale is not", "edgebert quantize"),
    ("Cannot have scale with no coefficients.", BadDataError, "a scale is not", "edgebert quantize"),
    (DYNAMIC_SCALE, BadDataError, "a scale is not", "edgebert quantize"),
    (CHANNELS, BadDataError, "a scale is not", "edgebert quantize"),
    ("Only a single blocking dimension is allowed.", BadDataError, "a scale is not", "edgebert quantize"),
    ("Invalid rank for the scale tensor. Rank = 3.", BadDataError, "a scale is not", "edgebert quantize"),
    (OUTPUT_TYPE, BadDataError, "other than INT8", "edgebert quantize"),
    ("TensorRT only allows FP8, INT8, and INT4 quantization. …", BadDataError, "other than INT8", "edgebert quantize"),
    (
        "bias: only activation types allowed as input to this layer.",
        BadDataError,
        "other than INT8",
        "edgebert quantize",
    ),
)


@pytest.mark.parametrize(("text", "kind", "means", "hint"), SEEN)
def test_a_seen_text_becomes_an_error_of_three_parts(
    text: str, kind: type[EdgebertError], means: str, hint: str
) -> None:
    error = error_from_texts([text], doing="it failed")
    assert type(error) is kind
    assert error.what.startswith("it failed: ")
    assert means in error.what
    assert f"`{text[:40]}" in error.what
    assert error.expected
    assert hint in str(error.hint)


def test_every_known_text_was_seen() -> None:
    assert {id(explained(text)) for text, *_ in SEEN} == {id(known) for known in KNOWN}


def test_the_most_telling_of_several_texts_counts() -> None:
    said = ["a warning", NODE, GPU_MEMORY, "Engine could not be created from network"]
    assert "272573440" in error_from_texts(said, doing="it failed").what


def test_unknown_texts_are_shown_as_they_are_the_last_three() -> None:
    error = error_from_texts(["first", "second", "third", "fourth"], doing="it failed", hint="try it again")
    assert type(error) is EdgebertError
    assert error.what == "it failed: `second`; `third`; `fourth`"
    assert error.hint == "try it again"


def test_silence_is_said_to_be_silence() -> None:
    assert error_from_texts([], doing="it failed").what == "it failed: TensorRT gave no reason"


def test_a_text_of_an_engine_cannot_steer_a_terminal() -> None:
    error = error_from_texts(["\x1b[2Jgone\n\nVersion tag does not match." + "x" * 5000], doing="it failed")
    assert "\x1b" not in error.what
    assert len(error.what) < 600
