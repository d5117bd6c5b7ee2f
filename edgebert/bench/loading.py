"""Opens one arm inside its worker: a form of a bundle, a graph, or a checkpoint in eager PyTorch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert._files import read_input
from edgebert._fusion import refuse_fusion_folder
from edgebert.artefact import Kind
from edgebert.bench.graph_card import graph_card
from edgebert.bench.schema import Precision
from edgebert.bundle import MANIFEST_FILE, read_bundle
from edgebert.card import ModelCard
from edgebert.card_io import CARD_FILE, checkpoint_sha256, read_checkpoint_card
from edgebert.errors import UnavailableError
from edgebert.extras import require
from edgebert.manifest import GRAPH_FILE
from edgebert.runtime.choice import Choice, choices_for
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_device, open_runner
from edgebert.target import TARGETS, resolve_target

DEFAULT_GRAPH_TARGET = "cpu"
_EXECUTED = (".json", ".safetensors")  # of a checkpoint folder: config, card and weights; examples and texts are not
EAGER_TARGET = "pytorch"  # what a checkpoint's arm says instead of a target


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """What a worker is to open.

    Attributes:
        path: the artefact.
        kind: what it is.
        target: form of a bundle, or backend of a graph; None for what the runtime would pick.
        threads: intra-op threads, at least 1.
    """

    path: str
    kind: Kind
    target: str | None
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArm:
    """An opened arm, and what is known of it.

    Attributes:
        pipeline: what is judged and timed.
        target: form or target in effect.
        backend: the runner's name.
        device: the backend's own name of the device.
        files: name -> bytes of what this arm executes, class names and preprocessing included.
        precision: of the model.
        source_model: SHA-256 of the checkpoint it was made from, where the provenance names one.
        bundle_digest: of a bundle.
        import_ns: time to import the backend.
        load_ns: time to load and compile, one inference that checks the model included.
    """

    pipeline: Pipeline
    target: str
    backend: str
    device: str
    files: Mapping[str, int]
    precision: Precision
    source_model: str | None
    bundle_digest: str | None
    import_ns: int
    load_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Readable:
    """The verified parts of an arm, before any backend is imported; the best choice first."""

    choices: list[Choice]
    card: ModelCard
    precision: Precision
    source_model: str | None
    other_files: Mapping[str, int]
    bundle_digest: str | None = None


def load_arm(request: LoadRequest, before_loading: Callable[[], None]) -> LoadedArm:
    """Open an arm.

    Args:
        request: what to open.
        before_loading: called when the backend is imported and the model is not yet loaded.

    Raises:
        UnavailableError: its target cannot run here.
        InputNotFoundError, BadDataError, RefusedError: as the reader of this kind of artefact.
    """
    _check_engines_run_here(request)
    readable = _READERS[request.kind](request)
    started = time.perf_counter_ns()
    choice = _first_available(readable.choices)
    imported = time.perf_counter_ns()
    before_loading()
    loading = time.perf_counter_ns()
    runner = open_runner(choice.backend, choice.source, choice.options)
    loaded = time.perf_counter_ns()
    return LoadedArm(
        pipeline=Pipeline(runner, readable.card),
        target=choice.target,
        backend=choice.backend,
        device=choice.options.device,
        files={**{name: len(content) for name, content in choice.source.files.items()}, **readable.other_files},
        precision=readable.precision,
        source_model=readable.source_model,
        bundle_digest=readable.bundle_digest,
        import_ns=imported - started,
        load_ns=loaded - loading,
    )


def _check_engines_run_here(request: LoadRequest) -> None:
    """Tell a computer that runs no engines how to get to one that does, before it is told to compile one."""
    if request.target is None or request.kind == "checkpoint":
        return
    target = resolve_target(request.target)
    if target.form == "engine":
        check_device(target.backend, target.device)


def _first_available(choices: list[Choice]) -> Choice:
    """Return the first choice whose backend and device are here; this imports the backend."""
    reasons: list[UnavailableError] = []
    for choice in choices:
        try:
            check_device(choice.backend, choice.options.device)
            return choice
        except UnavailableError as error:
            reasons.append(error)
    raise reasons[0]


def _read_bundle(request: LoadRequest) -> _Readable:
    bundle = read_bundle(Path(request.path))
    manifest = bundle.manifest
    form = None if request.target is None else manifest.form(request.target)
    return _Readable(
        choices=choices_for(bundle, request.target, request.threads),
        card=manifest.card,
        precision=manifest.precision if form is None else form.precision(manifest.precision),
        source_model=_source_model(manifest.card),
        other_files={MANIFEST_FILE: len(bundle.files[MANIFEST_FILE])},
        bundle_digest=bundle.digest,
    )


def _read_graph(request: LoadRequest) -> _Readable:
    content = read_input(Path(request.path), what="the graph")
    card = graph_card(content, what=f"`{request.path}`")
    target = resolve_target(request.target or DEFAULT_GRAPH_TARGET)
    if target.form == "engine":
        raise UnavailableError(
            f"a graph cannot run as `{target.name}`: {target.backend} takes a compiled form only",
            expected=", ".join(sorted(name for name, known in TARGETS.items() if known.form != "engine")),
            hint=f"edgebert compile {request.path} --target {target.name} -o NAME.edgebert",
        )
    choice = Choice(
        target=target.name,
        backend=target.backend,
        source=ModelSource(spec=_spec(card), files={GRAPH_FILE: content}),
        options=RunnerOptions(device=target.device, threads=request.threads),
    )
    return _Readable(
        choices=[choice], card=card, precision=_precision(card), source_model=_source_model(card), other_files={}
    )


def _read_checkpoint(request: LoadRequest) -> _Readable:
    folder = Path(request.path)
    refuse_fusion_folder(folder)
    card = read_checkpoint_card(folder) if (folder / CARD_FILE).exists() else _card_of_foreign_checkpoint(folder)
    choice = Choice(
        target=EAGER_TARGET,
        backend="torch",
        source=ModelSource(spec=_spec(card), folder=folder),
        options=RunnerOptions(threads=request.threads),
    )
    return _Readable(
        choices=[choice],
        card=card,
        precision=_precision(card),
        source_model=checkpoint_sha256(folder),
        other_files={path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.suffix in _EXECUTED},
    )


def _card_of_foreign_checkpoint(folder: Path) -> ModelCard:
    """Return the card that is made for a model of somebody else's; only the eager reference meets torch here."""
    require("torch")
    card = importlib.import_module("edgebert.models.checkpoint").load_checkpoint(folder).card
    assert isinstance(card, ModelCard)
    return card


_READERS: dict[Kind, Callable[[LoadRequest], _Readable]] = {
    "bundle": _read_bundle,
    "graph": _read_graph,
    "checkpoint": _read_checkpoint,
}


def _precision(card: ModelCard) -> Precision:
    return "int8" if any(step.stage == "quantize" for step in card.provenance.chain()) else "fp32"


def _source_model(card: ModelCard) -> str | None:
    """Return the SHA-256 of the checkpoint that an artefact was made from: the newest that its provenance names."""
    named = (step.made_from.get("checkpoint") for step in card.provenance.chain())
    return next((sha256 for sha256 in named if sha256), None)


def _spec(card: ModelCard) -> InputSpec:
    preprocessing = card.preprocessing
    return InputSpec(height=preprocessing.height, width=preprocessing.width, classes=len(card.class_names))
