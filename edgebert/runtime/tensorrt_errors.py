"""What TensorRT says when something fails, and what it means for the user.

Nothing in TensorRT raises on failure: a call gives None or False and the reason goes to the logger. The texts here are those
that were seen (tensorrt_jetson.md, sections 1.3, 2.3, 3 and 5.1); one that is not here is shown as it is.

>>> said = ["[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)"]
>>> error_from_texts(said, doing="the engine could not be built").exit_code
75
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgebert._json import shown
from edgebert.errors import BadDataError, EdgebertError, MemoryExhaustedError, UnavailableError

SUPPORTED = "TensorRT 10.3 to 10.16 (JetPack 6.1 to 7.2), or 11.4.1 and newer"
REBUILD = "compile the graph again on this device: edgebert compile GRAPH --target jetson -o NAME.edgebert"
FREE_MEMORY = (
    "stop the desktop and other programs (sudo systemctl isolate multi-user.target), or add swap on NVMe; a smaller "
    "`--workspace-mb` and a lower `--optimization-level` take less"
)

_MOST_SHOWN = 300  # characters of a text of TensorRT's
_LAST_SHOWN = 3  # texts that are shown where none is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A text of TensorRT's that is understood.

    Attributes:
        pattern: found anywhere in the text.
        kind: what is raised.
        means: in our words.
        expected: what would be right.
        hint: what mends it.
    """

    pattern: re.Pattern[str]
    kind: type[EdgebertError]
    means: str
    expected: str
    hint: str


def _known(pattern: str, kind: type[EdgebertError], means: str, *, expected: str, hint: str) -> Known:
    return Known(pattern=re.compile(pattern), kind=kind, means=means, expected=expected, hint=hint)


_QDQ_HINT = "quantize the graph again with this edgebert, whose graphs keep to these rules: edgebert quantize"
_WEAK_HINT = "build it weakly typed, which TensorRT 10.x can: `--typing weak`"

# In the order of what explains most: what lies below is often said as well where something above is the reason.
KNOWN: tuple[Known, ...] = (
    _known(
        r"Version tag does not match|expecting library version",
        UnavailableError,
        "the engine was built by another version of TensorRT",
        expected="an engine built by the TensorRT that loads it, to the patch level",
        hint=REBUILD,
    ),
    _known(
        r"generated on an incompatible device",
        UnavailableError,
        "the engine was built on a GPU of another compute capability",
        expected="an engine built on this device",
        hint=REBUILD,
    ),
    _known(
        r"engine plan file across different models of devices",
        UnavailableError,
        "the engine was built on another module with the same kind of GPU, and is tuned for that one",
        expected="an engine built on this device",
        hint=REBUILD,
    ),
    _known(
        r"NvMapMemAllocInternalTagged.*error 12",
        MemoryExhaustedError,
        "the Jetson's shared memory ran out",
        expected="free memory, for one large piece also contiguous (`CmaTotal` in /proc/meminfo)",
        hint=FREE_MEMORY,
    ),
    _known(
        r"Cuda Runtime \(out of memory\)|Error Code 2: OutOfMemory|GPU memory \(\d+ bytes\) could not be allocated"
        r"|Device memory is insufficient to use tactic|^Killed$",
        MemoryExhaustedError,
        "memory ran out",
        expected="free memory, which the CPU and the GPU of a Jetson share",
        hint=FREE_MEMORY,
    ),
    _known(
        r"Try decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit",
        MemoryExhaustedError,
        "the workspace is larger than what is free",
        expected="a workspace that fits into free memory",
        hint="`--workspace-mb` with less",
    ),
    _known(
        r"Could not infer output types for operation",
        BadDataError,
        "a quantised operator has no type that TensorRT's rules give",
        expected="Q and DQ directly at the inputs of the operator they serve, and one float type around it (the scale's): "
        "NVIDIA/TensorRT#4832",
        hint=_WEAK_HINT,
    ),
    _known(
        r"(?i)no scaling factors",
        BadDataError,
        "INT8 was asked for, and the graph holds no scale",
        expected="a graph with QuantizeLinear and DequantizeLinear; TensorRT's own calibration is never used",
        hint="edgebert quantize, and compile what it makes",
    ),
    _known(
        r"is not compatible with a strongly typed network|not allowed if graph is strongly typed",
        EdgebertError,
        "a precision flag was set on a strongly typed network, whose graph alone decides",
        expected="no precision flag with `--typing strong`",
        hint="report this: edgebert sets none",
    ),
    _known(
        r"Cannot create DLA engine, 0 not available",
        UnavailableError,
        "this device has no DLA, or this TensorRT does not support it",
        expected="an Orin NX or AGX with TensorRT 10.3, or an AGX Orin with 11.4.1",
        hint="leave `--dla-core` out",
    ),
    _known(
        r"factory function returned nullptr",
        UnavailableError,
        "TensorRT finds no NVIDIA driver or no GPU",
        expected="an NVIDIA driver, and a GPU that this process may use",
        hint="in a container: docker run --runtime nvidia; elsewhere add `--host USER@HOST`",
    ),
    _known(
        r"libnvinfer\S* cannot open shared object file|undefined symbol: \w*[Nn]v\w*",
        UnavailableError,
        "the Python part of TensorRT is here, and its libraries are not, or of another version",
        expected=SUPPORTED,
        hint="on a Jetson: sudo apt-get install python3-libnvinfer libnvinfer-bin",
    ),
    _known(
        r"must be all zeros|same volume\. Size of zero point|UINT8 zero_point|unsupported input type of UINT8",
        BadDataError,
        "TensorRT takes symmetric INT8 only",
        expected="int8 zero points that are all 0, as many as scales",
        hint=_QDQ_HINT,
    ),
    _known(
        r"Scale coefficients must all be positive|Cannot have scale with no coefficients|Dynamic shape for scale"
        r"|number of scales is not equal|single blocking dimension|Invalid rank for the scale tensor"
        r"|requires at least 2 inputs for the QuantizeLinear/DequantizeLinear",
        BadDataError,
        "a scale is not one that TensorRT takes",
        expected="constant scales above 0: one of an activation, one for each output channel of a weight, `axis` written out",
        hint=_QDQ_HINT,
    ),
    _known(
        r"attribute output_dtype|only allows FP8, INT8, and INT4|only activation types allowed",
        BadDataError,
        "something other than INT8 is quantised",
        expected="int8 activations and weights; biases in float",
        hint=_QDQ_HINT,
    ),
    _known(
        r"Could not find any implementation for node",
        EdgebertError,
        "TensorRT has no kernel for a node, or none that fits into the workspace and the free memory",
        expected="more free memory, or a graph without that node",
        hint="a larger `--workspace-mb` where memory is free; " + FREE_MEMORY,
    ),
    _known(
        r"Engine could not be created from network",
        EdgebertError,
        "TensorRT could not make an engine and does not say why",
        expected="a graph that keeps to the rules of TensorRT's parser, and free memory",
        hint=FREE_MEMORY,
    ),
)


def explained(text: str) -> Known | None:
    """Return what a text of TensorRT's means, or None where it is not known.

    >>> explained("Serialization assertion failed.Version tag does not match. Note: Current Version: 237").kind.exit_code
    69
    """
    return next((known for known in KNOWN if known.pattern.search(text)), None)


def error_from_texts(texts: Sequence[str], *, doing: str, hint: str | None = None) -> EdgebertError:
    """Return the error for what TensorRT said.

    Args:
        texts: its messages, oldest first.
        doing: what failed, such as `the engine could not be built`.
        hint: of a text that is not known.

    Returns:
        An error of the kind that the most telling text asks for, which shows that text; with the last texts where none is known.
    """
    for known in KNOWN:
        for text in texts:
            if known.pattern.search(text):
                said = f"{doing}: {known.means}: `{_cut(text)}`"
                return known.kind(said, expected=known.expected, hint=known.hint)
    said = "; ".join(f"`{_cut(text)}`" for text in texts[-_LAST_SHOWN:]) or "TensorRT gave no reason"
    return EdgebertError(f"{doing}: {said}", hint=hint)


def _cut(text: str) -> str:
    return shown(" ".join(text.split()), _MOST_SHOWN)
