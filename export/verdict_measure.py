"""Measures both precisions as they would ship: accuracy, agreement and latency of the compiled forms, where they are to run.

Images are those of the validation split, the test split is not read. Latency is that of `Runner.infer`, one image at a time, on
distinct preprocessed images: decoding and resizing are the same for both and would only dilute the difference.
`edgebert bench` measures end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.rounds import IntArray
from edgebert.bench.statistics.formulas import interleaved_ratio, percentile
from edgebert.card import ModelCard, hash_of_hashes
from edgebert.data import Example
from edgebert.decisions import decisions, said_names
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.forms import CompiledForm
from edgebert.export.place import HERE, Place
from edgebert.export.verdict import Asked, Figures, Flip, Limits, Measurement, Verdict, verdict_of
from edgebert.manifest import Precision
from edgebert.metrics import exact_match
from edgebert.preprocess import load_image
from edgebert.runtime.runner import InputSpec

MAX_IMAGES = 2_000  # as many as `quantize` compares on


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One precision, compiled.

    Attributes:
        precision: of the graph.
        forms: target name -> form.
        weight_bits: target name -> 8 or 7; empty for FP32.
    """

    precision: Precision
    forms: Mapping[str, CompiledForm]
    weight_bits: Mapping[str, int] = field(default_factory=dict)


def verdict_from_forms(
    fp32: Contender,
    int8: Contender,
    card: ModelCard,
    examples: Sequence[Example],
    place: Place = HERE,
    *,
    asked: Asked,
    limits: Limits,
    max_seconds: float,
) -> Verdict:
    """Measure both precisions on every target and decide.

    Args:
        fp32: FP32's forms.
        int8: INT8's, for the same targets in the same order.
        card: class names, preprocessing and thresholds of both.
        examples: validation images, with labels in the card's order.
        place: the computer that the forms are for and are measured on.
        asked: `auto`, or what ships in any case.
        limits: what INT8 may cost.
        max_seconds: timed on each target, at most; accuracy takes what it takes.

    Raises:
        BadDataError: there is no image.
        EdgebertError: a form answers with numbers that are not finite.
    """
    if not examples:
        raise BadDataError("there are no validation images to measure on", expected="a validation split")
    images = np.stack([load_image(example.load(), card.preprocessing) for example in examples])
    measurements = tuple(
        _measured(target, (fp32, int8), card, examples, images, place, max_seconds=max_seconds) for target in int8.forms
    )
    return verdict_of(measurements, asked, limits)


def labels_of(examples: Sequence[Example], card: ModelCard) -> NDArray[np.bool_]:
    """Return bool (images, classes): the true classes of each image."""
    labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = True
    return labels


def _measured(
    target: str,
    candidates: tuple[Contender, Contender],
    card: ModelCard,
    examples: Sequence[Example],
    images: NDArray[np.uint8],
    place: Place,
    *,
    max_seconds: float,
) -> Measurement:
    """Open both forms side by side where they are to run, compare what they say, and time them in turn."""
    forms = [candidate.forms[target] for candidate in candidates]
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    found = place.compared(forms, spec, images, max_seconds=max_seconds)
    said = [
        _said(rows, card, what=f"{candidate.precision.upper()} on `{target}`")
        for rows, candidate in zip(found.rows, candidates, strict=True)
    ]
    labels = labels_of(examples, card)
    first, second = (np.array([[np.median(block) for block in round_] for round_ in arm]) for arm in found.times)
    contrast = interleaved_ratio(first, second, seed=0)
    figures = [
        _figures(float(exact_match(labels, rows)), arm, form, candidate.weight_bits.get(target))
        for rows, arm, form, candidate in zip(said, found.times, forms, candidates, strict=True)
    ]
    return Measurement(
        target=target,
        metric="exact match" if card.thresholds else "top-1",
        images=len(examples),
        images_sha256=hash_of_hashes([example.pixel_sha256 for example in examples]),
        fp32=figures[0],
        int8=figures[1],
        agreement=float(exact_match(said[0], said[1])),
        flips=_flips(examples, labels, said[0], said[1], card),
        ratio=contrast.ratio,
        ratio_ci95=contrast.ci95,
        hardware=found.hardware,
        instructions=place.int8(forms[1].backend).to_text() if forms[1].device == "CPU" else forms[1].device,
        versions={**forms[0].versions, **forms[1].versions},
        threads=found.threads,
        float_name="FP16" if forms[0].label.endswith("fp16") else "FP32",
        float_logits=found.rows[0],
    )


def _said(logits: NDArray[np.float32], card: ModelCard, *, what: str) -> NDArray[np.bool_]:
    """Return bool (images, classes): what a form says of every image."""
    if not np.isfinite(logits).all():
        raise EdgebertError(f"{what} answers with numbers that are not finite", expected="finite logits")
    return decisions(logits, card.thresholds)


def _figures(accuracy: float, rounds: list[list[IntArray]], form: CompiledForm, weight_bits: int | None) -> Figures:
    times = np.concatenate([block for blocks in rounds for block in blocks])
    return Figures(
        accuracy=accuracy,
        p50_ns=percentile(times, 0.5),
        p90_ns=percentile(times, 0.9),
        size_bytes=sum(len(content) for content in form.files.values()),
        weight_bits=weight_bits,
        times_ns=times,
        form=form.label,
    )


def _flips(
    examples: Sequence[Example],
    labels: NDArray[np.bool_],
    fp32: NDArray[np.bool_],
    int8: NDArray[np.bool_],
    card: ModelCard,
) -> tuple[Flip, ...]:
    """Return what is decided otherwise: first what INT8 alone gets wrong, then what both do, then what it alone gets right."""
    names = card.class_names
    found = []
    for row in np.flatnonzero((fp32 != int8).any(axis=1)).tolist():
        right = bool((int8[row] == labels[row]).all()), not bool((fp32[row] == labels[row]).all())
        flip = Flip(
            example=examples[row],
            true=said_names(labels[row], names),
            fp32=said_names(fp32[row], names),
            int8=said_names(int8[row], names),
        )
        found.append((right, row, flip))
    return tuple(flip for _, _, flip in sorted(found, key=lambda entry: entry[:2]))
