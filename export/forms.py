"""The table of compiled forms: what `compile` makes of a graph for each kind of target.

A new form is one function and one line in `FORMS`.

>>> sorted(FORMS)
['engine', 'ir', 'ort']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from edgebert.errors import UnavailableError
from edgebert.export.ir import IrFiles, model_for_ir
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.placements import graph_for_backend
from edgebert.export.rules import graph_precision
from edgebert.extras import installed_version
from edgebert.fingerprint import Fingerprint, at_least_release, machine
from edgebert.runtime.openvino_conversion import ir_of_model
from edgebert.target import Backend, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledForm:
    """A graph in the form that a target's backend opens.

    Attributes:
        target: what it was compiled for.
        files: name -> content: `model.onnx`, or `model.xml` and `model.bin`.
        backend: the runner that opens it.
        device: the backend's own name of the device.
        disabled_optimizers: graph optimisations it must be opened without (ONNX Runtime).
        versions: package -> version of what made it.
        notes: what a user should know, one line each.
        fingerprint: what it asks of the computer that runs it.
    """

    target: Target
    files: Mapping[str, bytes]
    backend: Backend
    device: str
    disabled_optimizers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=Fingerprint)


class Builder(Protocol):
    """The computer that a form is built for and by: this one, or a device (`edgebert.remote.compile`)."""

    @property
    def machine(self) -> str:
        """Its processor architecture, such as `aarch64`."""
        ...

    def version(self, module: str) -> str | None:
        """Return the version of a backend there."""
        ...

    def ir(self, model: bytes, given: frozenset[str], target: Target) -> IrFiles:
        """Convert a model with the OpenVINO that is there; see `edgebert.runtime.openvino_conversion`."""
        ...

    def engine(self, graph: bytes, target: Target) -> CompiledForm:
        """Build a TensorRT engine there.

        Raises:
            UnavailableError: it cannot be built there.
        """
        ...


class _Here:
    """This computer."""

    @property
    def machine(self) -> str:
        return machine()

    def version(self, module: str) -> str | None:
        return installed_version(module)

    def ir(self, model: bytes, given: frozenset[str], target: Target) -> IrFiles:
        return IrFiles(*ir_of_model(model, given))

    def engine(self, graph: bytes, target: Target) -> NoReturn:
        raise UnavailableError(
            f"`{target.name}` takes a TensorRT engine, which is built on the device and not by this version",
            expected="a target of `edgebert targets` that can be compiled for here; the graph itself is ready for TensorRT 10.3 "
            "and newer",
            hint="edgebert compile GRAPH --target cpu",
        )


HERE: Builder = _Here()


def machine_of(target: Target, builder: Builder = HERE) -> str:
    """Return the processor architecture of a compiled form: Intel's own, or that of the computer it is built for."""
    return "x86_64" if target.form == "ir" else builder.machine


def form_from_graph(graph: bytes, target: Target, builder: Builder = HERE) -> CompiledForm:
    """Compile a graph for a target.

    Args:
        graph: an ONNX file of edgebert's, FP32 or INT8.
        target: from `edgebert.target`.
        builder: the computer that it is built for and by.

    Raises:
        BadDataError: no graph of edgebert's, or one that the backend cannot read.
        EdgebertError: the compiled form is not what it must be.
        UnavailableError: this version cannot build the form, or the backend is not installed.
    """
    return FORMS[target.form](graph, target, builder)


def _ir(graph: bytes, target: Target, builder: Builder) -> CompiledForm:
    notes: tuple[str, ...] = ()
    model = parse_graph(graph)
    if target.device == "CPU" and graph_precision(model) == "int8":  # wider placements were measured on CPUs alone
        model, added = graph_for_backend(model, target.backend)
        graph = bytes_of_model(model)
        notes = (f"{len(added)} operators in int8 beyond the portable graph's",) if added else ()
    files = builder.ir(*model_for_ir(graph), target)
    return CompiledForm(
        target=target,
        files={"model.xml": files.xml, "model.bin": files.bin},
        backend=target.backend,
        device=target.device,
        versions=_versions("openvino", builder),
        notes=notes,
        # The format carries a version of each operator and none of its own that an older release would check, so that only the
        # release that wrote it, and newer ones, are known to read it: Intel publishes its own IR models so ("OpenVINO version
        # 2024.2.0 and higher"). The plugin picks its kernels when it loads the model: no CPU flag and no GPU is bound.
        fingerprint=Fingerprint(
            machine=machine_of(target, builder), backend_version=at_least_release(builder.version("openvino") or "0")
        ),
    )


def _ort(graph: bytes, target: Target, builder: Builder) -> CompiledForm:
    form = ort_form_from_graph(graph, machine=builder.machine)
    return CompiledForm(
        target=target,
        files={"model.onnx": form.model},
        backend=target.backend,
        device=target.device,
        disabled_optimizers=form.disabled_optimizers,
        versions=_versions("onnxruntime", builder),
        notes=form.notes,
        fingerprint=Fingerprint(
            machine=machine_of(target, builder), backend_version=f">= {_oldest_onnxruntime(form.model)}"
        ),
    )


def _engine(graph: bytes, target: Target, builder: Builder) -> CompiledForm:
    return builder.engine(graph, target)


def _oldest_onnxruntime(model: bytes) -> str:
    """Return the first release that reads an ONNX file; newer ones read it too (ONNX Runtime's compatibility page).

    An x86 form with uint8 activations asks for no CPU flag: the kernels are picked when it is loaded, and 8-bit weights that
    saturate are tried last rather than refused (`edgebert.runtime.instructions`).
    """
    parsed = parse_graph(model)
    opset = max(entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx"))
    found = [release for release, newest, ir in _READ_BY_ONNXRUNTIME if opset <= newest and parsed.ir_version <= ir]
    return found[0] if found else installed_version("onnxruntime") or "0"


def _versions(module: str, builder: Builder) -> dict[str, str]:
    return {module: builder.version(module) or "unknown"}


# ONNX Runtime release -> newest opset and newest ONNX IR version it reads: the version matrix of its compatibility page.
_READ_BY_ONNXRUNTIME = (("1.17", 20, 9), ("1.18", 21, 10))

FORMS: dict[str, Callable[[bytes, Target, Builder], CompiledForm]] = {"ir": _ir, "ort": _ort, "engine": _engine}
