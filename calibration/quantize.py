"""From a float graph to the portable INT8 graph: ranges from training images, choices by held-out ones, proof on validation."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

import edgebert
from edgebert._files import Output, check_file_is_free, check_not_input, claimed, staged_together
from edgebert._json import JsonObject
from edgebert.calibration.calibrate import Calibration, ScaledGraph, calibrated
from edgebert.calibration.comparison import ENGINES, Comparison, Validation
from edgebert.calibration.confidence import check_abstaining, fitted_confidence
from edgebert.calibration.cost import macs_by_node, share_of_macs
from edgebert.calibration.guard import GuardOptions, GuardResult, Judgement, guarded
from edgebert.calibration.held_out import HeldOut
from edgebert.calibration.images import calibration_slices, check_images_are_real, images_of, spread_over_classes
from edgebert.calibration.quantize_options import QuantizeOptions
from edgebert.calibration.quantize_report import QuantizeReport, say_report
from edgebert.calibration.search import Effort, SearchResult, is_as_good, searched
from edgebert.calibration.sensitivity import LayerSensitivity, sensitivities
from edgebert.calibration.source import float_graph
from edgebert.calibration.table import ScaleTable
from edgebert.card import ImageSet, ModelCard, Provenance, hash_of_hashes
from edgebert.data import DataOptions, Dataset, Example, align_classes, load_dataset
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.export.placements import Placements, placements_text
from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts
from edgebert.export.topology import Topology
from edgebert.extras import installed_version, require

if TYPE_CHECKING:
    from edgebert.calibration.finetune import FinetuneResult

__all__ = ["QuantizeOptions", "QuantizeReport", "int8_graph_from_graph"]

_log = logging.getLogger("edgebert")

_TABLES = (".json", ".svg")  # of the sensitivity
_VALIDATION_IMAGES = 2000  # a share of 99 % is known to ± 0.4 points then; more would only take longer
# How many images compare the candidates: twice as many know a mean to 0.7 of the interval.
_HELD_OUT_IMAGES: Mapping[Effort, int] = {"fast": 128, "standard": 512, "best": 1024}


def int8_graph_from_graph(
    source: Path | str, data: str | Path, output: Path, options: QuantizeOptions | None = None
) -> QuantizeReport:
    """Quantise a graph, or a checkpoint, which is exported first. The same inputs and options give the same bytes.

    Args:
        source: an FP32 `.onnx` file of edgebert's, or a checkpoint folder.
        data: DATA; its training split gives the calibration images, its validation split the comparison, its test split
            is not touched.
        output: the `.onnx` file to write.
        options: defaults where None.

    Raises:
        InputNotFoundError, BadDataError: the source or the data are not what they must be, or the images are not real.
        EdgebertError: a linear could not be quantised, or the engines disagree; nothing is written.
        CannotWriteError: the output exists without `force`, or cannot be written.
        LockedError: another process writes it.
    """
    options = options or QuantizeOptions()
    with claimed(output, *_beside(output, options)):
        return _int8_graph_from_graph(source, data, output, options)


def _int8_graph_from_graph(
    source: Path | str, data: str | Path, output: Path, options: QuantizeOptions
) -> QuantizeReport:
    check_not_input(output, source)
    _check_outputs(output, options)
    graph = float_graph(Path(source), data, class_map=options.class_map, max_skipped=options.max_skipped)
    model = parse_graph(graph)
    card = card_of_model(model, what=f"`{source}`")
    if graph_precision(model) == "int8":
        raise BadDataError(f"`{source}` is quantised already", expected="an FP32 graph or a checkpoint")
    check_abstaining(card.task, options.abstain_precision)
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped, task=card.task))
    dataset = align_classes(dataset, card.class_names, class_map=options.class_map)
    chosen, choosing = calibration_slices(dataset, options.images, _HELD_OUT_IMAGES[options.effort])
    check_images_are_real([example.load() for example in chosen[:64]], name=dataset.name)
    calibration = calibrated(model, images_of(chosen, card.preprocessing), len(chosen))
    if not calibration.placement.quantised:
        raise BadDataError(f"`{source}` has nothing to quantise", expected="linears between its stem and its head")
    held_out = HeldOut(model, card, images_of(choosing, card.preprocessing), len(choosing))
    validating = spread_over_classes(dataset.val, _VALIDATION_IMAGES)
    validation = Validation(model, card, validating)
    search = searched(calibration, held_out, macs_by_node(model), options.effort)
    scaled = calibration.scaled(search.recipe).settled(calibration.places(search.chosen.layout))
    tuned = _tuned(scaled, calibration.places(search.chosen.layout), card, data, dataset, options)
    if tuned is not None:
        scaled = ScaledGraph(model=tuned.model, table=tuned.table)
    decided = _decided(calibration, scaled, search, held_out, validation, options)
    comparison = validation.compared(decided.portable, decided.for_backend("openvino"))
    comparison.check_engines()
    new_card = _card(card, graph, dataset, (*chosen, *choosing), len(chosen), decided, comparison, tuned)
    new_card = _with_confidence(new_card, comparison, validating, options)
    placements = placements_text(decided.placements) if decided.placements.added else None
    content = bytes_of_model(with_metadata(decided.portable, new_card, examples_of_model(model), placements=placements))
    kept = decided.guard is None or decided.guard.held
    path = output if kept else _aside(output)
    _write(path, content, decided.layers, options)
    report = _report(path, content, decided, len(chosen), comparison)
    say_report(report, new_card)
    if decided.guard is not None and not decided.guard.held:
        raise EdgebertError(
            f"the promise cannot be kept: {decided.guard.broken}, with {len(decided.guard.reverted)} layers in float",
            expected=f"it to hold with {options.min_int8_share:.0%} of the layers' multiplications in INT8; the best graph "
            f"found is kept aside as `{path}`",
            hint="`--finetune DATA` trains it to answer as FP32 does; or promise less, or ship FP32",
        )
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """What was decided about a model."""

    scaled: ScaledGraph
    portable: onnx.ModelProto
    places: tuple[str, ...]
    kept_float: Mapping[str, str]
    placements: Placements
    macs: Mapping[str, int]
    search: SearchResult
    guard: GuardResult | None
    layers: tuple[LayerSensitivity, ...]

    def for_backend(self, backend: str) -> onnx.ModelProto:
        """Return what a backend gets: the portable graph itself where that adds nothing."""
        added = self.placements.added.get(backend, ())
        return self.scaled.emitted((*self.places, *added)) if added else self.portable

    def options(self) -> JsonObject:
        """Return what the provenance keeps."""
        return {
            "search": self.search.to_json(),
            "kept_float": dict(sorted(Counter(self.kept_float.values()).items())),
            "macs_int8": share_of_macs(self.macs, self.places),
            "guard": None if self.guard is None else self.guard.to_json(),
        }


def _decided(
    calibration: Calibration,
    scaled: ScaledGraph,
    search: SearchResult,
    held_out: HeldOut,
    validation: Validation,
    options: QuantizeOptions,
) -> _Decided:
    """Keep the promise, and prove the graph."""
    macs = macs_by_node(calibration.model)
    places = calibration.places(search.chosen.layout)
    layers: tuple[LayerSensitivity, ...] = ()
    if options.guard.on or options.sensitivity:
        every = dict.fromkeys((*places, *calibration.placement.kept_float))
        wanted = [name for name, why in calibration.placement.kept_float.items() if why != "constant"]
        layers = sensitivities(
            calibration, scaled, held_out, macs, [name for name in every if name in (*places, *wanted)]
        )
    guard = None
    wider = {backend: calibration.places(trial.layout) for backend, trial in search.wider.items()}
    if options.finetune is not None:  # its weights are not those that the search tried
        narrow = held_out.score(scaled.emitted(places))
        wider = {
            name: each
            for name, each in wider.items()
            if is_as_good(
                held_out.score(scaled.emitted(each)), narrow, share_of_macs(macs, each) - share_of_macs(macs, places)
            )
        }
    if options.guard.on:
        guard = _guarded(scaled, places, layers, validation, macs, options.guard)
        places = guard.places
        wider = {
            backend: names
            for backend, names in _without(wider, guard.reverted).items()
            if not any(
                options.guard.broken_by(validation.judged(engine, scaled.emitted(names)))
                for engine in ((backend,) if backend in ENGINES else ENGINES)
            )
        }
    kept_float: dict[str, str] = dict(calibration.placement.kept_float)
    kept_float.update(dict.fromkeys(guard.reverted if guard else (), "guard"))
    portable = scaled.emitted(places)
    onnx.checker.check_model(portable, full_check=True)
    check_int8_graph(portable)
    added = {backend: tuple(name for name in names if name not in places) for backend, names in wider.items()}
    return _Decided(
        scaled=scaled,
        portable=portable,
        places=places,
        kept_float=kept_float,
        placements=_placements(scaled, added),
        macs=macs,
        search=search,
        guard=guard,
        layers=layers,
    )


def _tuned(
    scaled: ScaledGraph,
    places: tuple[str, ...],
    card: ModelCard,
    data: str | Path,
    dataset: Dataset,
    options: QuantizeOptions,
) -> FinetuneResult | None:
    """Fine-tune as the options say; None where they do not ask for it. `dataset` is what `data` names."""
    if options.finetune is None:
        return None
    for module in ("torch", "transformers", "accelerate"):
        require(module)
    from edgebert.calibration.finetune import FinetuneOptions, finetuned

    if options.finetune != str(data):
        loaded = load_dataset(options.finetune, DataOptions(max_skipped=options.max_skipped, task=card.task))
        dataset = align_classes(loaded, card.class_names, class_map=options.class_map)
    tuning = FinetuneOptions(
        epochs=options.finetune_epochs,
        learning_rate=options.finetune_learning_rate,
        scales=options.finetune_scales,
        teacher=options.teacher,
    )
    return finetuned(scaled.model, scaled.table, places, dataset, card, tuning)


def _without(wider: Mapping[str, tuple[str, ...]], reverted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {backend: tuple(name for name in names if name not in reverted) for backend, names in wider.items()}


def _guarded(
    scaled: ScaledGraph,
    places: tuple[str, ...],
    layers: Sequence[LayerSensitivity],
    validation: Validation,
    macs: Mapping[str, int],
    options: GuardOptions,
) -> GuardResult:
    """Keep the promise on validation images, in the worse of the two engines."""
    worst = sorted((layer for layer in layers if layer.name in places), key=lambda layer: -layer.score.divergence)
    whole = share_of_macs(macs, places)

    def judge(names: Sequence[str]) -> Judgement:
        model = scaled.emitted(names) if names else scaled.model
        judgements = [validation.judged(engine, model) for engine in ENGINES]
        return Judgement(
            drop=max(each.drop for each in judgements), agreement=min(each.agreement for each in judgements)
        )

    result = guarded(
        places,
        [layer.name for layer in worst],
        lambda names: share_of_macs(macs, names) / whole if whole else 0.0,
        judge,
        options,
    )
    latency = {}
    if result.reverted:
        models = (scaled.emitted(places), scaled.emitted(result.places))
        for engine in ENGINES:
            before, after = validation.times(engine, models)
            latency[engine] = before, after
    return replace(result, macs_before=whole, macs_after=share_of_macs(macs, result.places), latency_ms=latency)


def _placements(scaled: ScaledGraph, added: Mapping[str, tuple[str, ...]]) -> Placements:
    """Return the scales of what single targets quantise as well."""
    topology = Topology(scaled.model)
    nodes = {node.name: node for node in scaled.model.graph.node}
    names = sorted({name for each in added.values() for name in each})
    values = {nodes[name].input[0] for name in names}
    values |= {nodes[name].input[1] for name in names if not topology.is_weight(nodes[name].input[1])}
    table = ScaleTable(
        activations={value: scaled.table.activations[value] for value in sorted(values)},
        weights={name: scaled.table.weights[name] for name in names if name in scaled.table.weights},
    )
    return Placements(table=table, added={backend: each for backend, each in added.items() if each})


def _check_outputs(output: Path, options: QuantizeOptions) -> None:
    """Refuse, before any work, every file that will be in the way."""
    check_file_is_free(output, force=options.force)
    if options.guard.on:
        check_file_is_free(_aside(output), force=options.force)
    if options.sensitivity is not None:
        require("matplotlib")
        for suffix in _TABLES:
            check_file_is_free(Path(options.sensitivity).with_suffix(suffix), force=options.force)


def _aside(output: Path) -> Path:
    """Return the name of a graph that broke its promise."""
    return output.with_name(f"{output.name.removesuffix('.onnx')}.guard-failed.onnx")


def _beside(output: Path, options: QuantizeOptions) -> list[Path]:
    """Return the names of what may be written with the graph."""
    tables = [] if options.sensitivity is None else [Path(options.sensitivity).with_suffix(end) for end in _TABLES]
    return [*([_aside(output)] if options.guard.on else []), *tables]


def _write(path: Path, graph: bytes, layers: tuple[LayerSensitivity, ...], options: QuantizeOptions) -> None:
    """Write the graph and what is asked for beside it: all or none."""
    files = {path: graph}
    if options.sensitivity is not None:
        from edgebert.calibration.sensitivity_chart import sensitivity_files

        files.update(sensitivity_files(layers, Path(options.sensitivity)))
    with staged_together(*(Output(path=each, force=options.force) for each in files)) as stagings:
        for staging, content in zip(stagings, files.values(), strict=True):
            staging.write_bytes(content)


def _card(
    card: ModelCard,
    graph: bytes,
    dataset: Dataset,
    seen: tuple[Example, ...],
    calibrating: int,
    decided: _Decided,
    comparison: Comparison,
    tuned: FinetuneResult | None,
) -> ModelCard:
    """Return the card of the INT8 graph.

    Args:
        seen: the calibration images, then those that chose between candidates.
        calibrating: how many of them are calibration images.
    """
    hashes = [example.pixel_sha256 for example in seen]
    packages = ("onnx", "onnxruntime", "openvino", *(() if tuned is None else ("torch",)))
    return replace(
        card,
        provenance=Provenance(
            stage="quantize",
            made_from={
                "graph": hashlib.sha256(graph).hexdigest(),
                "data": dataset.sha256(),
                "calibration": hash_of_hashes(hashes[:calibrating]),
                "held_out": hash_of_hashes(hashes[calibrating:]),
                **({} if tuned is None else tuned.made_from),
            },
            options={
                "images": calibrating,
                **decided.options(),
                **({} if tuned is None else {"finetune": tuned.provenance()}),
            },
            versions={
                "edgebert": edgebert.__version__,
                **{package: installed_version(package) or "unknown" for package in packages},
            },
            metrics=comparison.metrics(),
            parameters=card.provenance.parameters,
            source=card.provenance,
        ),
        seen=card.seen | ImageSet.from_hashes(hashes) | (ImageSet() if tuned is None else tuned.seen),
    )


def _with_confidence(
    card: ModelCard, comparison: Comparison, validating: tuple[Example, ...], options: QuantizeOptions
) -> ModelCard:
    """Return the card with its temperature and threshold, and with the images they were fitted on among those it has seen."""
    confidence = fitted_confidence(
        comparison.after["onnxruntime"],
        comparison.validation.labels,
        task=card.task,
        wanted_precision=options.abstain_precision,
    )
    seen = ImageSet.from_hashes(example.pixel_sha256 for example in validating)
    return replace(card, confidence=confidence, seen=card.seen | seen)


def _report(
    output: Path, content: bytes, decided: _Decided, calibrating: int, comparison: Comparison
) -> QuantizeReport:
    validation = comparison.validation
    added = decided.placements.added
    return QuantizeReport(
        path=output,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        calibration_images=calibrating,
        validation_images=len(validation.labels),
        agreement_onnxruntime=comparison.agreement("onnxruntime"),
        agreement_openvino=comparison.agreement("openvino"),
        engines_agree=comparison.engines_agree(),
        max_engine_difference=comparison.engine_difference(),
        top1_before=validation.right(validation.before["onnxruntime"]),
        top1_after=validation.right(comparison.after["onnxruntime"]),
        top1_after_openvino=validation.right(comparison.openvino),
        operators=qdq_counts(decided.portable),
        kept_float=dict(sorted(Counter(decided.kept_float.values()).items())),
        macs_int8=share_of_macs(decided.macs, decided.places),
        wider={
            backend: f"{decided.search.wider[backend].layout.to_text()}: "
            f"{share_of_macs(decided.macs, (*decided.places, *names)):.0%} of the multiplications"
            for backend, names in sorted(added.items())
        },
        search=decided.search,
        guard=decided.guard,
        sensitivity=decided.layers,
    )
