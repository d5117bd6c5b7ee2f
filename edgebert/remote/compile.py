"""`edgebert compile ... --host USER@HOST`: forms for a device, converted and answered there, into a bundle that is written here.

What needs the workbench (placements, 7-bit weights, the uint8 form of ONNX Runtime) is done on this computer; OpenVINO's conversion,
every answer that the bundle records, and the opening of the finished bundle happen on the device, with its own backend.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edgebert._console import printable
from edgebert._json import JsonObject
from edgebert.bench.codec import from_json
from edgebert.errors import BadDataError, RefusedError, UnavailableError, UsageError
from edgebert.export.compile import CompileReport, bundle_from_graph
from edgebert.export.compile_options import CompileOptions
from edgebert.export.forms import Builder
from edgebert.export.ir import IrFiles
from edgebert.export.place import Place, Rows
from edgebert.remote.agent import plain_text
from edgebert.remote.objects import files_to_json, object_of_bytes, object_of_file
from edgebert.remote.session import DeviceSession, Reply
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.runner import InputSpec
from edgebert.target import Target

_log = logging.getLogger("edgebert")

_SECONDS = 900.0  # of one conversion, or of the answers to all canaries
_ENGINE_SECONDS = 7200.0  # a TensorRT engine is timed tactic by tactic
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
        options: targets, canaries, weights; a precision cannot be chosen by measurement on a device.
        keep: leave what is pushed on the device.
        ssh: how it is reached, over SSH.

    Raises:
        UsageError: a precision is to be chosen by measurement.
        LinkLostError: the device cannot be reached, or the link broke; no bundle was written.
        RefusedError: a host key, a login or an answer cannot be trusted.
        EdgebertError: what `bundle_from_graph` raises, here or there.
    """
    if options.precision == "auto" or options.data is not None:
        raise UsageError(
            "`--precision` with `--data` measures on this computer, and `--host` compiles for another one",
            expected="--host with the graph that ships",
            hint="compile both graphs with --host, then: edgebert bench A.edgebert B.edgebert --data DATA --host USER@HOST",
        )
    with DeviceSession(transport, ssh=ssh, keep=keep) as session:
        return bundle_from_graph(graph, output, options, DevicePlace(session))


class DevicePlace(Place):
    """A device, as `compile` and `size` ask it.

    Args:
        session: with it.
    """

    def __init__(self, session: DeviceSession) -> None:
        self._session = session
        self._builder = _DeviceBuilder(session)

    @property
    def builder(self) -> Builder:
        """What builds forms there."""
        return self._builder

    def check(self, target: Target) -> None:
        """Return only where a target can be compiled for and run there."""
        self._builder.ask(target.backend, target.device)
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
        return self._rows(reply, len(tensors), spec.classes)

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

    def _rows(self, reply: Reply, images: int, classes: int) -> Rows:
        try:
            rows = np.lib.format.read_array(io.BytesIO(reply.blobs.get("rows", b"")), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise RefusedError(f"`{self._session.name}` answers with no array") from error
        if rows.dtype != np.float32 or rows.shape != (images, classes):
            raise RefusedError(
                f"`{self._session.name}` answers with {rows.dtype} {rows.shape}",
                expected=f"float32 ({images}, {classes})",
            )
        return np.array(rows, np.float32)


class _DeviceBuilder:
    """What builds forms on a device, and what is known of it."""

    def __init__(self, session: DeviceSession) -> None:
        self._session = session
        self._known: dict[str, Reply] = {}

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

    def engine(self, graph: bytes, target: Target) -> NoReturn:
        """The seam for TensorRT: the builder of the device makes the files; here they become a form, with its fingerprint."""
        self._built("engine", graph, target, {}, ("model.plan",))
        raise UnavailableError(f"`{target.name}`: this version makes no form of an engine")

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
        reply = self._session.ask("form", request, timeout_s=_ENGINE_SECONDS if builder == "engine" else _SECONDS)
        if set(reply.blobs) != set(names):
            said = ", ".join(printable(name)[:40] for name in reply.blobs) or "nothing"
            raise RefusedError(f"`{self._session.name}` makes {said}", expected=", ".join(names))
        return reply.blobs
