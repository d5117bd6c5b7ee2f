"""What `compile` and `size` ask of a device: to build a form from a graph, to run it, and to open a bundle as a user would.

Engines have a room of their own: `edgebert.remote.device_engine`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.bench.codec import to_json
from edgebert.errors import BadDataError, UsageError
from edgebert.extras import installed_version
from edgebert.fingerprint import gpu_facts, machine
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.instructions import int8_instructions
from edgebert.runtime.openvino_conversion import ir_of_model
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_device, open_runner

if TYPE_CHECKING:
    from edgebert.remote.device_link import Link
    from edgebert.remote.device_store import Store
    from edgebert.remote.frames import Frame

_Answer = tuple[JsonObject, Mapping[str, bytes]]


def form(_link: Link, store: Store, request: Frame) -> _Answer:
    """Say whether a backend and its device are here, and build the form where one is to be built.

    The answer holds the device's `machine`, the `version` of the backend, `int8`: what it multiplies int8 with, and for TensorRT
    the number of the Jetson's `module`, empty where it is not known.
    """
    fields = request.fields
    backend, device = fields.text("backend"), fields.text("device")
    check_device(backend, device)
    built: dict[str, bytes] = {}
    if (builder := fields.optional_text("builder")) is not None:
        if builder not in BUILDERS:
            raise UsageError(f"no such builder: `{builder:.80}`", expected=", ".join(BUILDERS))
        built = BUILDERS[builder](store.path(fields.text("graph")).read_bytes(), fields)
    return {
        "machine": machine(),
        "version": installed_version(backend) or "",
        "module": (gpu_facts().module or "") if backend == "tensorrt" else "",
        "int8": to_json(int8_instructions(backend)),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in built.items()},
    }, built


def answers(_link: Link, store: Store, request: Frame) -> _Answer:
    """Run a model on images, one at a time and on one thread; the blob is float32 (images, classes)."""
    fields = request.fields
    spec = fields.fields("spec")
    source = ModelSource(
        spec=InputSpec(height=spec.integer("height"), width=spec.integer("width"), classes=spec.integer("classes")),
        files={entry.text("name"): store.path(entry.text("sha256")).read_bytes() for entry in _files(fields)},
    )
    options = RunnerOptions(
        device=fields.text("device"), threads=1, disabled_optimizers=fields.texts("disabled_optimizers")
    )
    pixels = np.frombuffer(store.path(fields.text("tensors")).read_bytes(), np.uint8)
    tensors = pixels.reshape(-1, source.spec.height, source.spec.width, 3)  # (images, height, width, 3)
    with open_runner(fields.text("backend"), source, options) as runner:
        rows = [np.asarray(runner.infer(tensor[np.newaxis]), np.float32) for tensor in tensors]
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.concatenate(rows), allow_pickle=False)
    return {}, {"rows": stream.getvalue()}


def opens(_link: Link, store: Store, request: Frame) -> _Answer:
    """Open one form of a bundle as a user would: its fingerprint, its backend and every canary."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as name:
        folder = Path(name) / "NAME.edgebert"
        store.lay_out(folder, [(entry.text("name"), entry.text("sha256")) for entry in _files(request.fields)])
        with Classifier(folder, target=request.fields.text("target")) as classifier:
            return {"target": classifier.target}, {}


def _files(fields: Fields) -> tuple[Fields, ...]:
    return fields.list_of_fields("files")


def _ir(graph: bytes, fields: Fields) -> dict[str, bytes]:
    named = json.loads(fields.text("given"))
    if not isinstance(named, list):
        raise BadDataError("the names in a graph are no list")
    xml, weights = ir_of_model(graph, frozenset(map(str, named)))
    return {"model.xml": xml, "model.bin": weights}


BUILDERS: Mapping[str, Callable[[bytes, Fields], dict[str, bytes]]] = {"ir": _ir}
