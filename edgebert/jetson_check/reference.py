"""The small graphs that the self-check builds engines from, and what ONNX Runtime answers to them on a computer that has it.

A Jetson has no ONNX Runtime, so its answers travel with the graphs: `reference.json` beside them. `tests/jetson_check/make_reference.py`
makes all of these files, and a test makes them again and compares. The network is a student in small, with random weights: a patch
stem, attention, layer norms, GELU and a head, and INT8 Q/DQ where `edgebert quantize` puts it. It says nothing about accuracy.

>>> reference = read_reference()
>>> [engine.name for engine in reference.engines]
['fp16', 'int8', 'int8 weak']
>>> reference.engines[0].logits.shape, pictures().shape
((8, 10), (8, 32, 32, 3))
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, parse_json_object
from edgebert.runtime.engine_manifest import EnginePrecision
from edgebert.runtime.runner import InputSpec
from edgebert.runtime.tensorrt_api import Typing

SCHEMA = "edgebert.jetson-reference/1"
REFERENCE_FILE = "reference.json"
SIDE, CLASSES, IMAGES = 32, 10, 8
SPEC = InputSpec(height=SIDE, width=SIDE, classes=CLASSES)

_TYPINGS: Mapping[str, Typing] = {"strong": "strong", "weak": "weak"}
_PRECISIONS: Mapping[str, EnginePrecision] = {"fp16": "fp16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceEngine:
    """One engine that is built from one graph.

    Attributes:
        name: in the names of the rungs, such as `int8 weak`.
        file: the graph's name in this folder.
        typing: of the network.
        precision: of the graph, and of the fastest kernels.
        logits: float32 (8, 10), what ONNX Runtime answers to `pictures()`, float32 between operators.
        control: by how much a logit moves where every value is rounded as coarsely as FP16 does, on another grid.
        allowed: by how much the engine may differ: ten times that. A tensor core that adds in FP16 rounds more often than the control;
            an engine that computes something else differs by as much as the logits themselves.
    """

    name: str
    file: str
    typing: Typing
    precision: EnginePrecision
    logits: NDArray[np.float32]
    control: float
    allowed: float

    def graph(self) -> bytes:
        """Return the ONNX file."""
        return files("edgebert.jetson_check").joinpath(self.file).read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Every engine, and what made the answers.

    Attributes:
        engines: in the order in which they are built.
        onnxruntime: version that answered.
    """

    engines: tuple[ReferenceEngine, ...]
    onnxruntime: str

    def engine(self, name: str) -> ReferenceEngine:
        """Return the engine of this name."""
        return next(engine for engine in self.engines if engine.name == name)


@functools.cache
def read_reference() -> Reference:
    """Return what is in this package's own files."""
    content = files("edgebert.jetson_check").joinpath(REFERENCE_FILE).read_bytes()
    fields = Fields(parse_json_object(content, what=REFERENCE_FILE), what=REFERENCE_FILE)
    assert fields.text("schema") == SCHEMA
    return Reference(
        engines=tuple(_engine(each) for each in fields.list_of_fields("engines")),
        onnxruntime=fields.text("onnxruntime"),
    )


def pictures() -> NDArray[np.uint8]:
    """Return uint8 (8, 32, 32, 3): waves of another length and direction in each image and colour, by integer arithmetic alone."""
    row, column = np.mgrid[0:SIDE, 0:SIDE]  # (height, width)
    planes = [
        [
            _wave(
                row * (1 + number % 3) + column * (1 + colour) * (number % 4),
                24 + 7 * number,
                37 * number + 80 * colour,
            )
        ]
        for number in range(IMAGES)
        for colour in range(3)
    ]
    found: NDArray[np.uint8] = np.array(planes, np.uint8).reshape(IMAGES, 3, SIDE, SIDE)
    return np.ascontiguousarray(found.transpose(0, 2, 3, 1))  # (images, height, width, 3)


def _wave(phase: NDArray[np.int64], length: int, start: int) -> NDArray[np.int64]:
    """Return values in [0, 255] that rise and fall over `length`."""
    position: NDArray[np.int64] = (phase * 8 + start) % (2 * length)
    found: NDArray[np.int64] = np.minimum(position, 2 * length - position) * 255 // length
    return found


def _engine(fields: Fields) -> ReferenceEngine:
    return ReferenceEngine(
        name=fields.text("name"),
        file=fields.text("file"),
        typing=_TYPINGS[fields.text("typing")],
        precision=_PRECISIONS[fields.text("precision")],
        logits=np.array(fields.rows_of_numbers("logits"), np.float32),
        control=fields.number("control"),
        allowed=fields.number("allowed"),
    )
