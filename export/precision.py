"""Which of two graphs a bundle is made of: the one that was named, the one that was asked for, or the better one by measurement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.rounds import TIMED_IMAGES
from edgebert.calibration.confidence import fitted_confidence
from edgebert.calibration.images import spread_over_classes
from edgebert.card import ImageSet, ModelCard
from edgebert.confidence import Confidence
from edgebert.data import DataOptions, Example, align_classes, load_dataset
from edgebert.decisions import decisions
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    LinkLostError,
    LockedError,
    RefusedError,
    UnavailableError,
    UnreadableError,
    UsageError,
)
from edgebert.export.compile_options import CompileOptions
from edgebert.export.engine_choice import Trial
from edgebert.export.engine_form import EngineAsked
from edgebert.export.forms import CompiledForm, form_from_graph
from edgebert.export.metadata import bytes_of_model, card_of_model, parse_graph, with_metadata, without_examples
from edgebert.export.place import HERE, Place
from edgebert.export.placements import without_placements
from edgebert.export.reference import portable_answers, reference_place
from edgebert.export.rules import check_int8_graph, graph_precision
from edgebert.export.seven_bit import seven_bit_weights, weight_bits_for
from edgebert.export.verdict import Asked, Limits, Verdict
from edgebert.export.verdict_measure import MAX_IMAGES, Contender, labels_of, verdict_from_forms
from edgebert.manifest import Precision
from edgebert.metrics import exact_match
from edgebert.preprocess import load_image
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.runner import InputSpec
from edgebert.target import Target, beside_of, resolve_target

_log = logging.getLogger("edgebert")

_MAX_NOTE = 500
_LEAST_SECONDS = 0.1  # where answers alone are wanted
_ROUNDING = 1e-9  # so that 0.5 points are 0.5 points in binary, too
# Errors that say nothing of whether a graph can be built.
_NOT_OF_THE_GRAPH = (
    *(CannotWriteError, LinkLostError, LockedError, RefusedError),
    *(UnavailableError, UnreadableError, UsageError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGraph:
    """A graph to compile, taken apart."""

    content: bytes  # the file as it was given
    portable: bytes  # the same without its example images: what the bundle holds
    card: ModelCard
    precision: Precision

    @classmethod
    def of(cls, path: Path, content: bytes) -> SourceGraph:
        """Take the content of a file apart."""
        model = parse_graph(content)
        return cls(
            content=content,
            portable=without_examples(content),
            card=card_of_model(model, what=f"`{path}`"),
            precision=graph_precision(model),
        )

    def for_bits(self, bits: int | None) -> bytes:
        """Return the graph to compile: as it is, or with 7-bit weights."""
        if bits != 7:
            return self.content
        model = parse_graph(self.content)
        check_int8_graph(model)
        # Wider placements were chosen with 8-bit weights, for processors that gain by them.
        return bytes_of_model(without_placements(seven_bit_weights(model)))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def spec(self) -> InputSpec:
        rule = self.card.preprocessing
        return InputSpec(height=rule.height, width=rule.width, classes=len(self.card.class_names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The engines of the precision that does not ship, where both are to be kept."""

    graph: SourceGraph
    forms: tuple[CompiledForm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What ships, and what was made on the way there.

    Attributes:
        graph: that ships.
        forms: target name -> its form, of those that are made already.
        verdict: why; None where nothing was measured.
        trial: the images for engines that are still to be made; None where no data were named.
        beside: what is kept beside what ships.
    """

    graph: SourceGraph
    forms: Mapping[str, CompiledForm] = field(default_factory=dict)
    verdict: Verdict | None = None
    trial: Trial | None = None
    beside: Beside | None = None


def chosen_graph(
    given: SourceGraph,
    floats: SourceGraph | None,
    targets: Sequence[Target],
    options: CompileOptions,
    place: Place = HERE,
) -> Chosen:
    """Return the graph that ships, the forms of it that are made already, and why.

    Raises:
        UsageError: the precision that was asked for is not there.
        BadDataError: the two graphs do not belong together.
    """
    if options.precision == "as-given":
        if options.weights == "7-bit" and given.precision == "fp32":
            raise UsageError("`--weights 7-bit` for an FP32 graph", expected="an INT8 graph", hint="edgebert quantize")
        return Chosen(graph=given, trial=_trial_of_data(given, options, place))
    if floats is None:
        if options.precision != given.precision:
            raise UsageError(
                f"`--precision {options.precision}`, and the graph is {given.precision.upper()}",
                expected="that graph" if options.precision == "int8" else "the FP32 graph as well",
                hint="edgebert quantize" if options.precision == "int8" else "--float FP32.onnx",
            )
        _log.info("%s ships, as asked; nothing was measured", given.precision.upper())
        return Chosen(graph=given, trial=_trial_of_data(given, options, place))
    _check_pair(given, floats)
    if options.data is None:
        _log.info("%s ships, as asked; nothing was measured: `--data DATA` measures both", options.precision.upper())
        return Chosen(graph=given if options.precision == "int8" else floats)
    return _measured(given, floats, targets, options, place, _validation(options.data, given.card, options, place))


def _measured(
    given: SourceGraph,
    floats: SourceGraph,
    targets: Sequence[Target],
    options: CompileOptions,
    place: Place,
    examples: Sequence[Example],
) -> Chosen:
    """Compile both graphs, measure them where they are to run, and return the one that ships."""
    trial = _trial(floats, examples, options, place) if options.takes_engine else None
    bits = {
        target.name: weight_bits_for(target, options.weights, instructions=place.int8(target.backend))
        for target in targets
    }
    try:
        asked = options.engine_asked(trial)
        fp32 = Contender(
            precision="fp32",
            forms={target.name: form_from_graph(floats.content, target, place.builder, asked) for target in targets},
        )
    except EdgebertError as error:
        if not _is_survived(error, options, ships="int8"):
            raise
        return _without_float(given, targets, bits, options, place, trial, error)
    try:
        # What INT8 may lose against FP16 is the verdict's to say, so that a typing is held against the other one alone.
        asked = options.engine_asked(None if trial is None else replace(trial, floor=0.0))
        int8 = Contender(precision="int8", forms=_int8_forms(given, targets, bits, place, asked), weight_bits=bits)
    except EdgebertError as error:
        if not _is_survived(error, options, ships="fp32"):
            raise
        return _without_int8(given, floats, fp32, targets, options, place, examples, error)
    verdict = verdict_from_forms(
        fp32,
        int8,
        given.card,
        examples,
        place,
        asked=_asked(options),
        limits=Limits(max_drop=options.max_drop, min_agreement=options.min_agreement),
        max_seconds=options.max_seconds,
    )
    if verdict.precision == "int8":
        return Chosen(graph=given, forms=int8.forms, verdict=verdict, beside=_beside(floats, fp32, targets, options))
    beside = _beside(given, int8, targets, options)
    logits = verdict.measurements[0].float_logits
    if given.card.confidence is None or logits is None:
        return Chosen(graph=floats, forms=fp32.forms, verdict=verdict, beside=beside)
    floats = _confident(floats, given.card.confidence, examples, logits)
    return Chosen(graph=floats, forms=_with_card(floats, fp32, targets, place), verdict=verdict, beside=beside)


def _is_survived(error: EdgebertError, options: CompileOptions, *, ships: Precision) -> bool:
    """Say whether the other precision ships where an engine of this one cannot be built.

    It does where it was asked for. `auto` measures, and takes it unmeasured only where nothing but engines is asked for: a processor
    that runs both graphs is to be measured.
    """
    if isinstance(error, _NOT_OF_THE_GRAPH) or not options.takes_engine:
        return False
    engines_alone = all(resolve_target(name).form == "engine" for name in options.targets)
    return options.precision == ships or (options.precision == "auto" and engines_alone)


def _warn_of_what_is_not_made(options: CompileOptions) -> None:
    """Say what was asked for and needs both precisions, where one is there."""
    if options.report is not None:
        _log.warning("`--report %s`: nothing could be compared, so that no page is written", options.report)
    if options.keep_both:
        _log.warning("`--keep-both`: one precision could be compiled, and is kept")


def _int8_forms(
    given: SourceGraph, targets: Sequence[Target], bits: Mapping[str, int], place: Place, asked: EngineAsked
) -> dict[str, CompiledForm]:
    return {
        target.name: form_from_graph(given.for_bits(bits[target.name]), target, place.builder, asked)
        for target in targets
    }


def _with_card(
    floats: SourceGraph, fp32: Contender, targets: Sequence[Target], place: Place
) -> dict[str, CompiledForm]:
    """Return the forms of a float graph whose card was changed; an engine holds nothing of it, and takes minutes to build."""
    return {
        target.name: fp32.forms[target.name]
        if target.form == "engine"
        else form_from_graph(floats.portable, target, place.builder)
        for target in targets
    }


def _asked(options: CompileOptions) -> Asked:
    assert options.precision != "as-given", "nothing is measured then"
    return options.precision


def _without_int8(
    given: SourceGraph,
    floats: SourceGraph,
    fp32: Contender,
    targets: Sequence[Target],
    options: CompileOptions,
    place: Place,
    examples: Sequence[Example],
    error: EdgebertError,
) -> Chosen:
    """Return the float graph where no engine can be built of the INT8 one, and say so in every form."""
    _log.warning("INT8 cannot be compiled, so that the float graph ships unmeasured: %s", error.what)
    _warn_of_what_is_not_made(options)
    forms: Mapping[str, CompiledForm] = fp32.forms
    if given.card.confidence is not None:
        images = np.stack([load_image(example.load(), given.card.preprocessing) for example in examples])
        first = fp32.forms[targets[0].name]
        (logits,) = place.compared([first], floats.spec, images, max_seconds=_LEAST_SECONDS).rows
        floats = _confident(floats, given.card.confidence, examples, logits)
        forms = _with_card(floats, fp32, targets, place)
    note = f"INT8 could not be compiled: {error.what}"[:_MAX_NOTE]
    return Chosen(graph=floats, forms={name: replace(form, notes=(*form.notes, note)) for name, form in forms.items()})


def _without_float(
    given: SourceGraph,
    targets: Sequence[Target],
    bits: Mapping[str, int],
    options: CompileOptions,
    place: Place,
    trial: Trial | None,
    error: EdgebertError,
) -> Chosen:
    """Return the INT8 graph where the float one has no engine: under `auto`, if INT8 holds what the float graph is worth here."""
    _log.warning(
        "the float graph has no engine that can ship, so that INT8 does, and how often both would decide alike was not measured: %s",
        error.what,
    )
    _warn_of_what_is_not_made(options)
    note = f"not held against the float graph, which has no engine that can ship: {error.what}"[:_MAX_NOTE]
    if options.precision == "int8" and trial is not None:
        trial = replace(trial, floor=0.0)  # it ships as asked, whatever it is worth
    forms = _int8_forms(given, targets, bits, place, options.engine_asked(trial))
    return Chosen(graph=given, forms={name: replace(form, notes=(*form.notes, note)) for name, form in forms.items()})


def _beside(
    graph: SourceGraph, contender: Contender, targets: Sequence[Target], options: CompileOptions
) -> Beside | None:
    """Return the engines of the precision that does not ship, each for a target of its own name."""
    if not options.keep_both:
        return None
    wanted = "int8" if contender.precision == "int8" else "fp16"
    forms = [
        replace(contender.forms[target.name], target=other)
        for target in targets
        for other in beside_of(target)
        if other.beside == wanted
    ]
    return Beside(graph=graph, forms=tuple(forms))


def _trial_of_data(graph: SourceGraph, options: CompileOptions, place: Place) -> Trial | None:
    """Return the validation images that engines are measured on, where data were named."""
    if options.data is None or not options.takes_engine:
        return None
    return _trial(graph, _validation(options.data, graph.card, options, place), options, place)


def _trial(graph: SourceGraph, examples: Sequence[Example], options: CompileOptions, place: Place) -> Trial:
    """Return validation images with the least accuracy that an engine must have: that of the portable graph, less what may be lost."""
    card = graph.card
    chosen = spread_over_classes(examples, TIMED_IMAGES)
    images = np.stack([load_image(example.load(), card.preprocessing) for example in chosen])
    labels = labels_of(chosen, card)
    (rows,) = portable_answers(graph, images, reference_place(place), most=1).values()
    accuracy = exact_match(labels, decisions(rows, card.thresholds))
    max_drop = options.max_drop / 100
    return Trial(
        spec=graph.spec,
        tensors=images,
        expected=labels,
        thresholds=card.thresholds,
        floor=max(0.0, accuracy - max_drop - _ROUNDING),
        max_drop=max_drop,
    )


def _confident(
    floats: SourceGraph, asked: Confidence, examples: Sequence[Example], logits: NDArray[np.float32]
) -> SourceGraph:
    """Return FP32 with scores calibrated as those of INT8 were, and an abstain threshold where INT8 has one.

    What was asked of `quantize` must not be lost because FP32 ships.

    Args:
        floats: FP32.
        asked: what INT8 has.
        examples: validation images.
        logits: float32 (images, classes): what the compiled form answers to them.
    """
    card = floats.card
    confidence = fitted_confidence(
        logits, labels_of(examples, card), task=card.task, wanted_precision=asked.wanted_precision
    )
    seen = ImageSet.from_hashes(example.pixel_sha256 for example in examples)
    card = replace(card, confidence=confidence, seen=card.seen | seen)
    model = with_metadata(parse_graph(floats.portable), card, ())
    return replace(floats, portable=bytes_of_model(model), card=card)


def _check_pair(given: SourceGraph, floats: SourceGraph) -> None:
    """Refuse two graphs of which one was not made from the other.

    Raises:
        BadDataError: the first is not INT8, the second not FP32, or the first was made from another graph.
    """
    hint = "edgebert quantize FP32.onnx --calibration DATA -o INT8.onnx"
    for graph, wanted, what in ((given, "int8", "the graph"), (floats, "fp32", "the graph of `--float`")):
        if graph.precision != wanted:
            raise BadDataError(f"{what} is {graph.precision.upper()}", expected=f"one in {wanted.upper()}", hint=hint)
    made_from = given.card.provenance.made_from.get("graph", "nothing it names")
    if made_from != floats.sha256:
        raise BadDataError(
            f"the INT8 graph was not made from the graph of `--float`, whose SHA-256 is {floats.sha256}",
            expected=f"the graph that it was made from: {made_from:.64}",
            hint=hint,
        )


def _validation(data: str, card: ModelCard, options: CompileOptions, place: Place) -> tuple[Example, ...]:
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped, task=card.task))
    dataset = align_classes(dataset, card.class_names, class_map=options.class_map)
    rule = card.preprocessing
    most = max(1, min(MAX_IMAGES, place.max_image_bytes // (rule.height * rule.width * 3)))
    return spread_over_classes(dataset.val, most)


def weight_bits_of(
    graph: SourceGraph, target: Target, options: CompileOptions, instructions: Int8Instructions
) -> int | None:
    """Return the bits of a form's weights, None for FP32, and say where nobody knows whether 8 are right.

    Args:
        graph: that ships.
        target: of the form.
        options: what was asked for.
        instructions: of the computer that runs it.
    """
    if graph.precision == "fp32":
        return None
    if options.weights == "auto" and target.device == "CPU" and instructions.exact is None:
        _log.info("`%s`: 8-bit weights; %s", target.name, instructions.to_text())
    return weight_bits_for(target, options.weights, instructions=instructions)
