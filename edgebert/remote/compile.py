"""`edgebert compile ... --host USER@HOST`: forms for a device, converted and answered there, into a bundle that is written here.

What needs the workbench (placements, 7-bit weights, the uint8 form of ONNX Runtime, the graphs of TensorRT's typings) is done on this
computer; OpenVINO's conversion, the build of an engine, what is measured, every answer of a form that the bundle records, and the
opening of the finished bundle happen on the device, with its own backend.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert._console import printable
from edgebert._json import JsonObject
from edgebert.bench.codec import from_json
from edgebert.errors import BadDataError, RefusedError, UnavailableError
from edgebert.export.compile import CompileReport, bundle_from_graph
from edgebert.export.compile_options import CompileOptions
from edgebert.export.engine_choice import ChosenEngine, EngineSettings, Trial
from edgebert.export.forms import Builder, CompiledForm
from edgebert.export.ir import IrFiles
from edgebert.export.place import Compared, Place, Rows
from edgebert.remote.agent import plain_text
from edgebert.remote.engine import array_of, compared_on, engine_on
from edgebert.remote.objects import files_to_json, object_of_bytes, object_of_file
from edgebert.remote.session import DeviceSession, Reply
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.runner import InputSpec
from edgebert.runtime.tensorrt_api import Typing
from edgebert.target import Target, check_module

_log = logging.getLogger("edgebert")

_SECONDS = 900.0  # of one conversion, or of the answers to all canaries
_MAX_IMAGE_BYTES = 256 << 20  # of the validation images that a device is sent: 1,783 of 224 x 224
_MAX_IR_GROWTH = 4  # an IR holds what its ONNX file holds; more is not one


def bundle_on(
    transport: Transport,
    graph: Path,
    output: Path,
    options: CompileOptions,
    *,
    keep: bool = False,
    ssh: SshOptions | None = None,
) -> CompileReport:
    """Compile a graph for a device; see `edgebert.export.compile.bundle_from_graph`.

    Args:
        transport: how the device is reached.
        graph: an ONNX file of edgebert's.
        output: the bundle's folder, on this computer.
        options: targets, canaries, weights, and which precision ships: what is measured for that is measured on the device.
        keep: leave what is pushed on the device.
        ssh: how it is reached, over SSH.

    Raises:
        LinkLostError: the device cannot be reached, or the link broke; no bundle was written.
        RefusedError: a host key, a login or an answer cannot be trusted.
        EdgebertError: what `bundle_from_graph` raises, here or there.
    """
    with DeviceSession(transport, ssh=ssh, keep=keep) as session:
        return bundle_from_graph(graph, output, options, DevicePlace(session, keep=keep))


class DevicePlace(Place):
    """A device, as `compile` and `size` ask it.

    Args:
        session: with it.
        keep: leave the times of kernels there, for the next engine.
    """

    max_image_bytes = _MAX_IMAGE_BYTES

    def __init__(self, session: DeviceSession, *, keep: bool = False) -> None:
        self._session = session
        self._builder = _DeviceBuilder(session, keep=keep)

    @property
    def builder(self) -> Builder:
        """What builds forms there."""
        return self._builder

    def check(self, target: Target) -> None:
        """Return only where a target can be compiled for and run there."""
        reply = self._builder.ask(target.backend, target.device)
        if target.form == "engine":
            check_module(target, self._builder.module(reply), self._session.name)
        if target.form == "ir" and self._builder.machine != "x86_64":
            raise UnavailableError(
                f"`{target.name}` needs an x86_64 processor, and `{self._session.name}` has {self._builder.machine}",
                expected="a target of that device, such as `cpu`",
                hint=f"edgebert devices check {self._session.name}",
            )

    def has(self, backend: str) -> None:
        """Return only where a backend runs on the CPU there."""
        self._builder.ask(backend, "CPU")

    def int8(self, backend: str) -> Int8Instructions:
        """Return what a backend multiplies int8 with there."""
        return self._builder.int8(backend)

    def answers(
        self,
        backend: str,
        device: str,
        files: Mapping[str, bytes],
        disabled_optimizers: tuple[str, ...],
        spec: InputSpec,
        tensors: NDArray[np.uint8],
    ) -> Rows:
        """Return what a model answers there.

        Raises:
            RefusedError: it answers with something else than a row of logits for each image.
        """
        objects = {name: object_of_bytes(content) for name, content in files.items()}
        pixels = object_of_bytes(np.ascontiguousarray(tensors).tobytes())
        self._session.push([*objects.values(), pixels])
        request: JsonObject = {
            "backend": backend,
            "device": device,
            "files": files_to_json(objects),
            "disabled_optimizers": list(disabled_optimizers),
            "spec": {"height": spec.height, "width": spec.width, "classes": spec.classes},
            "tensors": pixels.sha256,
        }
        reply = self._session.ask("answers", request, timeout_s=_SECONDS)
        return array_of(self._session.name, reply.blobs.get("rows", b""), (len(tensors), spec.classes))

    def compared(
        self, forms: Sequence[CompiledForm], spec: InputSpec, images: NDArray[np.uint8], *, max_seconds: float
    ) -> Compared:
        """Ask forms of all images there, and time them in interleaved blocks.

        Raises:
            RefusedError: it answers with something else.
        """
        return compared_on(self._session, forms, spec, images, max_seconds=max_seconds)

    def opens(self, folder: Path, target: str) -> bool:
        """Open one form of a bundle there; False where it cannot run there."""
        names = sorted(entry for entry in folder.rglob("*") if entry.is_file())
        objects = {entry.relative_to(folder).as_posix(): object_of_file(entry) for entry in names}
        self._session.push(list(objects.values()))
        try:
            self._session.ask("open", {"files": files_to_json(objects), "target": target}, timeout_s=_SECONDS)
        except UnavailableError as error:
            _log.info("the form for `%s` is kept unverified: %s", target, error.what)
            return False
        return True


class _DeviceBuilder:
    """What builds forms on a device, and what is known of it."""

    def __init__(self, session: DeviceSession, *, keep: bool) -> None:
        self._session, self._keep = session, keep
        self._known: dict[str, Reply] = {}

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def machine(self) -> str:
        return self._session.device.machine

    def version(self, module: str) -> str | None:
        return self._session.device.modules.get(module)

    def ask(self, backend: str, device: str) -> Reply:
        """Ask whether a backend and its device are there."""
        key = f"{backend} {device}"
        if key not in self._known:
            request: JsonObject = {"backend": backend, "device": device, "builder": None}
            self._known[key] = self._session.ask("form", request, timeout_s=_SECONDS)
        return self._known[key]

    def module(self, reply: Reply) -> str | None:
        """Return the number of the Jetson's module, as the device says."""
        try:
            return reply.fields.text("module") or None
        except BadDataError as error:
            raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error

    def int8(self, backend: str) -> Int8Instructions:
        reply = next((known for key, known in self._known.items() if key.startswith(f"{backend} ")), None)
        reply = reply or self.ask(backend, "CPU")
        try:
            said = from_json(Int8Instructions, reply.fields.fields("int8").value, what="what the device says")
        except BadDataError as error:
            raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error
        return Int8Instructions(name=printable(said.name)[:40], exact=said.exact, limit=printable(said.limit)[:40])

    def ir(self, model: bytes, given: frozenset[str], target: Target) -> IrFiles:
        files = self._built("ir", model, target, {"given": json.dumps(sorted(given))}, ("model.xml", "model.bin"))
        if sum(map(len, files.values())) > _MAX_IR_GROWTH * len(model) + (16 << 20):
            raise RefusedError(f"`{self._session.name}` makes an IR of {sum(map(len, files.values())):,} bytes")
        return IrFiles(xml=files["model.xml"], bin=files["model.bin"])

    def engine(self, graphs: Mapping[Typing, bytes], settings: EngineSettings, trial: Trial) -> ChosenEngine:
        return engine_on(self._session, graphs, settings, trial, keep=self._keep)

    def _built(
        self, builder: str, graph: bytes, target: Target, more: JsonObject, names: tuple[str, ...]
    ) -> Mapping[str, bytes]:
        entry = object_of_bytes(graph)
        self._session.push([entry])
        request: JsonObject = {
            "backend": target.backend,
            "device": target.device,
            "builder": builder,
            "graph": entry.sha256,
            **more,
        }
        reply = self._session.ask("form", request, timeout_s=_SECONDS)
        if set(reply.blobs) != set(names):
            said = ", ".join(printable(name)[:40] for name in reply.blobs) or "nothing"
            raise RefusedError(f"`{self._session.name}` makes {said}", expected=", ".join(names))
        return reply.blobs
