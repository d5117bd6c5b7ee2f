"""The table of compiled forms: what `compile` makes of a graph for each kind of target.

A new form is one function and one line in `FORMS`.

>>> sorted(FORMS)
['engine', 'ir', 'ort']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from edgebert.errors import UnavailableError
from edgebert.export.ir import ir_from_graph
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.placements import graph_for_backend
from edgebert.export.rules import graph_precision
from edgebert.extras import installed_version
from edgebert.fingerprint import Fingerprint, at_least_release, machine
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


def machine_of(target: Target) -> str:
    """Return the processor architecture of a compiled form: Intel's own, or this computer's."""
    return "x86_64" if target.form == "ir" else machine()


def form_from_graph(graph: bytes, target: Target) -> CompiledForm:
    """Compile a graph for a target.

    Args:
        graph: an ONNX file of edgebert's, FP32 or INT8.
        target: from `edgebert.target`.

    Raises:
        BadDataError: no graph of edgebert's, or one that the backend cannot read.
        EdgebertError: the compiled form is not what it must be.
        UnavailableError: this version cannot build the form, or the backend is not installed.
    """
    return FORMS[target.form](graph, target)


def _ir(graph: bytes, target: Target) -> CompiledForm:
    notes: tuple[str, ...] = ()
    model = parse_graph(graph)
    if target.device == "CPU" and graph_precision(model) == "int8":  # wider placements were measured on CPUs alone
        model, added = graph_for_backend(model, target.backend)
        graph = bytes_of_model(model)
        notes = (f"{len(added)} operators in int8 beyond the portable graph's",) if added else ()
    files = ir_from_graph(graph)
    return CompiledForm(
        target=target,
        files={"model.xml": files.xml, "model.bin": files.bin},
        backend=target.backend,
        device=target.device,
        versions=_versions("openvino"),
        notes=notes,
        # The format carries a version of each operator and none of its own that an older release would check, so that only the
        # release that wrote it, and newer ones, are known to read it: Intel publishes its own IR models so ("OpenVINO version
        # 2024.2.0 and higher"). The plugin picks its kernels when it loads the model: no CPU flag and no GPU is bound.
        fingerprint=Fingerprint(
            machine=machine_of(target), backend_version=at_least_release(installed_version("openvino") or "0")
        ),
    )


def _ort(graph: bytes, target: Target) -> CompiledForm:
    form = ort_form_from_graph(graph)
    return CompiledForm(
        target=target,
        files={"model.onnx": form.model},
        backend=target.backend,
        device=target.device,
        disabled_optimizers=form.disabled_optimizers,
        versions=_versions("onnxruntime"),
        notes=form.notes,
        fingerprint=Fingerprint(machine=machine_of(target), backend_version=f">= {_oldest_onnxruntime(form.model)}"),
    )


def _engine(graph: bytes, target: Target) -> NoReturn:
    raise UnavailableError(
        f"`{target.name}` takes a TensorRT engine, which is built on the device and not by this version",
        expected="a target of `edgebert targets` that can be compiled for here; the graph itself is ready for TensorRT 10.3 "
        "and newer",
        hint="edgebert compile GRAPH --target cpu",
    )


def _oldest_onnxruntime(model: bytes) -> str:
    """Return the first release that reads an ONNX file; newer ones read it too (ONNX Runtime's compatibility page).

    An x86 form with uint8 activations asks for no CPU flag: the kernels are picked when it is loaded, and 8-bit weights that
    saturate are tried last rather than refused (`edgebert.runtime.instructions`).
    """
    parsed = parse_graph(model)
    opset = max(entry.version for entry in parsed.opset_import if entry.domain in ("", "ai.onnx"))
    found = [release for release, newest, ir in _READ_BY_ONNXRUNTIME if opset <= newest and parsed.ir_version <= ir]
    return found[0] if found else installed_version("onnxruntime") or "0"


def _versions(module: str) -> dict[str, str]:
    return {module: installed_version(module) or "unknown"}


# ONNX Runtime release -> newest opset and newest ONNX IR version it reads: the version matrix of its compatibility page.
_READ_BY_ONNXRUNTIME = (("1.17", 20, 9), ("1.18", 21, 10))

FORMS: dict[str, Callable[[bytes, Target], CompiledForm]] = {"ir": _ir, "ort": _ort, "engine": _engine}
