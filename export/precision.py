"""Which of two graphs a bundle is made of: the one that was named, the one that was asked for, or the better one by measurement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgebert.calibration.confidence import fitted_confidence
from edgebert.calibration.images import spread_over_classes
from edgebert.card import ImageSet, ModelCard
from edgebert.confidence import Confidence
from edgebert.data import DataOptions, Example, align_classes, load_dataset
from edgebert.errors import BadDataError, UsageError
from edgebert.export.compile_options import CompileOptions
from edgebert.export.forms import CompiledForm, form_from_graph
from edgebert.export.metadata import bytes_of_model, card_of_model, parse_graph, with_metadata, without_examples
from edgebert.export.placements import without_placements
from edgebert.export.rules import check_int8_graph, graph_precision
from edgebert.export.seven_bit import seven_bit_weights, weight_bits_for
from edgebert.export.verdict import Limits, Verdict
from edgebert.export.verdict_measure import MAX_IMAGES, Contender, answers_of_form, verdict_from_forms
from edgebert.manifest import Precision
from edgebert.preprocess import load_image
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.runner import InputSpec
from edgebert.target import Target

_log = logging.getLogger("edgebert")


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


def chosen_graph(
    given: SourceGraph, floats: SourceGraph | None, targets: Sequence[Target], options: CompileOptions
) -> tuple[SourceGraph, Mapping[str, CompiledForm], Verdict | None]:
    """Return the graph that ships, the forms of it that are made already, and why.

    Raises:
        UsageError: the precision that was asked for is not there.
        BadDataError: the two graphs do not belong together.
    """
    if options.precision == "as-given":
        if options.weights == "7-bit" and given.precision == "fp32":
            raise UsageError("`--weights 7-bit` for an FP32 graph", expected="an INT8 graph", hint="edgebert quantize")
        return given, {}, None
    if floats is None:
        if options.precision != given.precision:
            raise UsageError(
                f"`--precision {options.precision}`, and the graph is {given.precision.upper()}",
                expected="that graph" if options.precision == "int8" else "the FP32 graph as well",
                hint="edgebert quantize" if options.precision == "int8" else "--float FP32.onnx",
            )
        _log.info("%s ships, as asked; nothing was measured", given.precision.upper())
        return given, {}, None
    _check_pair(given, floats)
    if options.data is None:
        _log.info("%s ships, as asked; nothing was measured: `--data DATA` measures both", options.precision.upper())
        return (given if options.precision == "int8" else floats), {}, None
    examples = _validation(options.data, given.card, options)
    bits = {target.name: weight_bits_for(target, options.weights) for target in targets}
    fp32 = Contender(
        precision="fp32", forms={target.name: form_from_graph(floats.content, target) for target in targets}
    )
    int8 = Contender(
        precision="int8",
        forms={target.name: form_from_graph(given.for_bits(bits[target.name]), target) for target in targets},
        weight_bits=bits,
    )
    verdict = verdict_from_forms(
        fp32,
        int8,
        given.card,
        examples,
        asked=options.precision,
        limits=Limits(max_drop=options.max_drop, min_agreement=options.min_agreement),
        max_seconds=options.max_seconds,
    )
    if verdict.precision == "int8":
        return given, int8.forms, verdict
    if given.card.confidence is None:
        return floats, fp32.forms, verdict
    floats = _confident(floats, given.card.confidence, examples, fp32.forms[targets[0].name])
    return floats, {target.name: form_from_graph(floats.portable, target) for target in targets}, verdict


def _confident(floats: SourceGraph, asked: Confidence, examples: Sequence[Example], form: CompiledForm) -> SourceGraph:
    """Return FP32 with scores calibrated as those of INT8 were, and an abstain threshold where INT8 has one.

    What was asked of `quantize` must not be lost because FP32 ships.
    """
    card = floats.card
    labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = True
    images = np.stack([load_image(example.load(), card.preprocessing) for example in examples])
    confidence = fitted_confidence(
        answers_of_form(form, card, images), labels, task=card.task, wanted_precision=asked.wanted_precision
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


def _validation(data: str, card: ModelCard, options: CompileOptions) -> tuple[Example, ...]:
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped, task=card.task))
    dataset = align_classes(dataset, card.class_names, class_map=options.class_map)
    return spread_over_classes(dataset.val, MAX_IMAGES)


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
