"""Bundles that take as long as wanted: convolutions at 224 x 224 pixels into ten classes, as many as that takes on this computer.

Weights are random, canaries synthetic: only its time means anything. Made for one processor thread and kept under a name with the
time, so that a benchmark's repeats measure the same bundle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebert.card import ModelCard, Provenance
from edgebert.errors import EdgebertError
from edgebert.export import CompileOptions, bundle_from_graph
from edgebert.export.metadata import bytes_of_model, with_metadata
from edgebert.preprocess import Preprocessing
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

TARGETS: Mapping[str, str] = {"cpu": "onnxruntime", "intel-cpu": "openvino"}
CLASSES, CHANNELS, SIDE = 10, 16, 224
_TRIES = 5
_CALLS = 30


def timed_bundle(milliseconds: float, folder: Path) -> Path:
    """Return a bundle whose inference takes `milliseconds` or more in each backend on one thread; made where it is not there.

    Args:
        milliseconds: what the faster backend takes, at least; the other may take more.
        folder: where it is kept.

    Raises:
        EdgebertError: no number of layers takes that long, because the computer's speed changes too much meanwhile.
    """
    bundle = folder / f"conv-{milliseconds:g}ms.edgebert"
    if bundle.exists():
        return bundle
    folder.mkdir(parents=True, exist_ok=True)
    graph = bundle.with_suffix(".onnx")
    graph.write_bytes(_timed_graph(milliseconds))
    bundle_from_graph(graph, bundle, CompileOptions(targets=tuple(TARGETS), canary="synthetic"))
    return bundle


def _timed_graph(milliseconds: float) -> bytes:
    layers = 1
    for _ in range(_TRIES):
        content = conv_graph(layers)
        took = min(_fastest_ms(content, backend) for backend in TARGETS.values())
        if took >= milliseconds:
            return content
        layers = math.ceil(layers * max(1.1, min(20.0, 1.15 * milliseconds / took)))
    raise EdgebertError(
        f"{layers} convolutions do not take {milliseconds:g} ms", expected="a computer of constant speed", hint="again"
    )


def conv_graph(layers: int) -> bytes:
    """Return an ONNX graph of edgebert's: a stem that divides the image into 56 x 56, then `layers` 3 x 3 convolutions."""
    random = np.random.default_rng(layers)
    weights: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "scale": np.full(1, 1 / 255, np.float32),
        "stem": random.normal(0, 0.15, (CHANNELS, 3, 4, 4)).astype(np.float32),
        "head": random.normal(0, 1, (CHANNELS, CLASSES)).astype(np.float32),
        "places": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "stem"], ["x0"], strides=[4, 4]),
    ]
    for layer in range(layers):
        weights[f"w{layer}"] = random.normal(0, math.sqrt(2 / (9 * CHANNELS)), (CHANNELS, CHANNELS, 3, 3)).astype(
            np.float32
        )
        nodes.append(helper.make_node("Conv", [f"x{layer}", f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"x{layers}", "places"], ["features"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    card = ModelCard(
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        preprocessing=Preprocessing(height=SIDE, width=SIDE),
        provenance=Provenance(stage="export"),
    )
    onnx.checker.check_model(model)
    return bytes_of_model(with_metadata(model, card, ()))


def _fastest_ms(graph: bytes, backend: str) -> float:
    """Return the fastest of some inferences: what a quiet computer takes."""
    spec = InputSpec(height=SIDE, width=SIDE, classes=CLASSES)
    batch = np.full((1, SIDE, SIDE, 3), 127, np.uint8)
    with open_runner(backend, ModelSource(spec=spec, files={"model.onnx": graph}), RunnerOptions(threads=1)) as runner:
        times = []
        for _ in range(_CALLS):
            started = time.perf_counter()
            runner.infer(batch)
            times.append(time.perf_counter() - started)
    return min(times) * 1000
