"""The table of compiled forms: what `compile` makes of a graph for each kind of target.

A new form is one function and one line in `FORMS`.

>>> sorted(FORMS)
['engine', 'ir', 'ort']
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edgebert.bench.device_lock import device_lock
from edgebert.export.engine_choice import ChosenEngine, EngineSettings, Trial, chosen_engine, noise_trial
from edgebert.export.engine_form import EngineAsked, checked_engine, engine_notes
from edgebert.export.engine_graphs import engine_graphs
from edgebert.export.ir import IrFiles, model_for_ir
from edgebert.export.metadata import bytes_of_model, parse_graph, read_graph_card
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.placements import graph_for_backend
from edgebert.export.rules import graph_precision
from edgebert.extras import installed_version
from edgebert.fingerprint import Fingerprint, at_least_release, machine
from edgebert.runtime.openvino_conversion import ir_of_model
from edgebert.runtime.runner import InputSpec, check_device
from edgebert.runtime.tensorrt_api import Typing
from edgebert.target import Backend, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledForm:
    """A graph in the form that a target's backend opens.

    Attributes:
        target: what it was compiled for.
        files: name -> content: `model.onnx`, or `model.xml` and `model.bin`, or `engine.plan` and `engine.json`.
        backend: the runner that opens it.
        device: the backend's own name of the device.
        disabled_optimizers: graph optimisations it must be opened without (ONNX Runtime).
        versions: package -> version of what made it.
        notes: what a user should know, one line each.
        fingerprint: what it asks of the computer that runs it.
        label: of an engine, such as `strong-fp16`; else empty.
    """

    target: Target
    files: Mapping[str, bytes]
    backend: Backend
    device: str
    disabled_optimizers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    label: str = ""


class Builder(Protocol):
    """The computer that a form is built for and by: this one, or a device (`edgebert.remote.compile`)."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

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

    def engine(self, graphs: Mapping[Typing, bytes], settings: EngineSettings, trial: Trial) -> ChosenEngine:
        """Build TensorRT engines there and keep the better one; see `edgebert.export.engine_choice.chosen_engine`.

        Raises:
            UnavailableError: none can be built there.
        """
        ...


class _Here:
    """This computer."""

    name = "this computer"

    @property
    def machine(self) -> str:
        return machine()

    def version(self, module: str) -> str | None:
        return installed_version(module)

    def ir(self, model: bytes, given: frozenset[str], target: Target) -> IrFiles:
        return IrFiles(*ir_of_model(model, given))

    def engine(self, graphs: Mapping[Typing, bytes], settings: EngineSettings, trial: Trial) -> ChosenEngine:
        check_device("tensorrt", "GPU")
        # Kernels are chosen by their times, so that nothing else may be measured meanwhile.
        with device_lock(), tempfile.TemporaryDirectory(prefix="edgebert-engine-") as folder:
            return chosen_engine(graphs, settings, trial, Path(folder))


HERE: Builder = _Here()


def machine_of(target: Target, builder: Builder = HERE) -> str:
    """Return the processor architecture of a compiled form: Intel's own, or that of the computer it is built for."""
    return "x86_64" if target.form == "ir" else builder.machine


def form_from_graph(
    graph: bytes, target: Target, builder: Builder = HERE, asked: EngineAsked | None = None
) -> CompiledForm:
    """Compile a graph for a target.

    Args:
        graph: an ONNX file of edgebert's, FP32 or INT8.
        target: from `edgebert.target`.
        builder: the computer that it is built for and by.
        asked: of an engine; nothing of other forms.

    Raises:
        BadDataError: no graph of edgebert's, or one that the backend cannot read.
        EdgebertError: the compiled form is not what it must be.
        UnavailableError: this version cannot build the form, or the backend is not installed.
    """
    return FORMS[target.form](graph, target, builder, asked or EngineAsked())


def _ir(graph: bytes, target: Target, builder: Builder, _asked: EngineAsked) -> CompiledForm:
    notes: tuple[str, ...] = ()
    model = parse_graph(graph)
    if target.device == "CPU" and graph_precision(model) == "int8":  # wider placements were measured on CPUs alone
        model, added = graph_for_backend(model, target.backend)
        graph = bytes_of_model(model)
        notes = (f"{len(added)} operators in int8 beyond the portable graph's",) if added else ()
    content, given = model_for_ir(graph)
    files = builder.ir(content, given, target)
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


def _ort(graph: bytes, target: Target, builder: Builder, _asked: EngineAsked) -> CompiledForm:
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


def _engine(graph: bytes, target: Target, builder: Builder, asked: EngineAsked) -> CompiledForm:
    given = asked.trial
    images = None if given is None else given.tensors
    made = engine_graphs(graph, asked.typing, images, thresholds=() if given is None else given.thresholds)
    settings = asked.settings(made.typing, made.precision)
    chosen = builder.engine(made.graphs, settings, given or noise_trial(_spec(graph)))
    manifest = checked_engine(chosen, made.graphs, settings, machine=builder.machine, where=builder.name)
    refused = tuple(f"{typing} was not built: {why}" for typing, why in made.failures.items())
    return CompiledForm(
        target=target,
        files=chosen.files,
        backend=target.backend,
        device=target.device,
        versions=manifest.versions,
        notes=(*engine_notes(chosen, manifest.label), *(" ".join(note.split()) for note in refused), *made.notes),
        fingerprint=manifest.fingerprint,
        label=manifest.label,
    )


def _spec(graph: bytes) -> InputSpec:
    card = read_graph_card(graph)
    return InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))


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

FORMS: dict[str, Callable[[bytes, Target, Builder, EngineAsked], CompiledForm]] = {
    "ir": _ir,
    "ort": _ort,
    "engine": _engine,
}
