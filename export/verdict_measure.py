"""Measures both precisions as they would ship: accuracy, agreement and latency of the compiled forms, on this computer.

Images are those of the validation split, the test split is not read. Latency is that of `Runner.infer`, one image at a time, on
distinct preprocessed images: decoding and resizing are the same for both and would only dilute the difference.
`edgebert bench` measures end to end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.environment.computer import read_environment
from edgebert.bench.statistics.formulas import interleaved_ratio, percentile
from edgebert.card import ModelCard, hash_of_hashes
from edgebert.data import Example
from edgebert.decisions import decisions, said_names
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.forms import CompiledForm
from edgebert.export.verdict import Asked, Figures, Flip, IntArray, Limits, Measurement, Verdict, verdict_of
from edgebert.manifest import Precision
from edgebert.metrics import exact_match
from edgebert.preprocess import load_image
from edgebert.runtime.instructions import int8_instructions
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, open_runner

MAX_IMAGES = 2_000  # as many as `quantize` compares on
TIMED_IMAGES = 256  # distinct ones, so that no cache is filled by repetition

_BATCH = 32
_BLOCK_NS = 100_000_000
_MIN_QUERIES, _MAX_QUERIES = 3, 5_000  # of a block
_ROUNDS, _MIN_ROUNDS = 12, 5  # ABBA or BAAB each; below five there is no interval (edgebert.bench.statistics.formulas)
_WARMUP_NS, _MIN_WARMUP = 300_000_000, 3


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
        _measured(target, (fp32, int8), card, examples, images, max_seconds=max_seconds) for target in int8.forms
    )
    return verdict_of(measurements, asked, limits)


def _measured(
    target: str,
    candidates: tuple[Contender, Contender],
    card: ModelCard,
    examples: Sequence[Example],
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
) -> Measurement:
    """Open both forms in this process, compare what they say, and time them in turn."""
    forms = [candidate.forms[target] for candidate in candidates]
    runners: list[Runner] = []
    try:
        for form in forms:
            runners.append(_opened(form, card))
        said = [
            _said(runner, card, images, what=f"{candidate.precision.upper()} on `{target}`")
            for runner, candidate in zip(runners, candidates, strict=True)
        ]
        times = timed_rounds([runner.infer for runner in runners], images[:TIMED_IMAGES], max_seconds=max_seconds)
        properties = runners[1].properties()
    finally:
        for runner in runners:
            runner.close()
    labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = True
    first, second = (np.array([[np.median(block) for block in round_] for round_ in arm]) for arm in times)
    contrast = interleaved_ratio(first, second, seed=0)
    figures = [
        _figures(float(exact_match(labels, rows)), arm, form, candidate.weight_bits.get(target))
        for rows, arm, form, candidate in zip(said, times, forms, candidates, strict=True)
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
        hardware=read_environment().device.cpu.model or "unknown",
        instructions=int8_instructions(forms[1].backend).to_text() if forms[1].device == "CPU" else forms[1].device,
        versions={**forms[0].versions, **forms[1].versions},
        threads=properties.get("threads", "unknown"),
    )


def answers_of_form(form: CompiledForm, card: ModelCard, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes): the logits of a compiled form, of uint8 (images, height, width, 3)."""
    with _opened(form, card) as runner:
        parts = [runner.infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def _opened(form: CompiledForm, card: ModelCard) -> Runner:
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    options = RunnerOptions(device=form.device, disabled_optimizers=form.disabled_optimizers)
    return open_runner(form.backend, ModelSource(spec=spec, files=form.files), options)


def _said(runner: Runner, card: ModelCard, images: NDArray[np.uint8], *, what: str) -> NDArray[np.bool_]:
    """Return bool (images, classes): what a form says of every image."""
    parts = [runner.infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    logits = np.concatenate(parts)  # (images, classes)
    if not np.isfinite(logits).all():
        raise EdgebertError(f"{what} answers with numbers that are not finite", expected="finite logits")
    return decisions(logits, card.thresholds)


def timed_rounds(
    infers: Sequence[Callable[[NDArray[np.uint8]], object]],
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[list[IntArray]]]:
    """Time two models in interleaved blocks: A B B A, then B A A B, and so on.

    How much is timed is decided after the warm-up, before anything is timed: there is no looking at results and going on. Both
    blocks of a pair take the same images. The first tenth of a block, in which the other model's traces leave the
    caches, is not counted.

    Args:
        infers: two models, each called with uint8 (1, height, width, 3).
        images: uint8 (images, height, width, 3).
        max_seconds: of all blocks, at most, as far as the warm-up tells; one round is always timed.
        clock: gives nanoseconds.

    Returns:
        by model, round and block (two in each round): int64 (queries,) nanoseconds.
    """
    single = [images[index : index + 1] for index in range(len(images))]
    medians = [_warmed_up(infer, single, clock) for infer in infers]
    queries = [min(_MAX_QUERIES, max(_MIN_QUERIES, math.ceil(_BLOCK_NS / median))) for median in medians]
    round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    if round_ns * _MIN_ROUNDS > max_seconds * 1e9:  # slow models: smaller blocks before fewer rounds
        share = max_seconds * 1e9 / (round_ns * _MIN_ROUNDS)
        queries = [max(_MIN_QUERIES, math.floor(count * share)) for count in queries]
        round_ns = 2 * sum(count * median for count, median in zip(queries, medians, strict=True))
    rounds = max(1, min(_ROUNDS, math.floor(max_seconds * 1e9 / round_ns)))
    times: list[list[list[IntArray]]] = [[], []]
    for number in range(rounds):
        for arm in times:
            arm.append([])
        for half, order in enumerate(((0, 1), (1, 0)) if number % 2 == 0 else ((1, 0), (0, 1))):
            start = (2 * number + half) * max(queries)
            for arm_index in order:
                block = _block(infers[arm_index], single, start, queries[arm_index], clock)
                times[arm_index][-1].append(block[math.ceil(len(block) / 10) :])
    return times


def _warmed_up(
    infer: Callable[[NDArray[np.uint8]], object], single: Sequence[NDArray[np.uint8]], clock: Callable[[], int]
) -> int:
    """Run a model until it is warm and return the median of the later half, in nanoseconds, at least 1."""
    taken: list[int] = []
    while len(taken) < _MIN_WARMUP or sum(taken) < _WARMUP_NS:
        taken.append(int(_block(infer, single, len(taken), 1, clock)[0]))
        if len(taken) >= _MAX_QUERIES:
            break
    return max(1, int(np.median(taken[len(taken) // 2 :])))


def _block(
    infer: Callable[[NDArray[np.uint8]], object],
    single: Sequence[NDArray[np.uint8]],
    start: int,
    queries: int,
    clock: Callable[[], int],
) -> IntArray:
    taken = np.empty(queries, np.int64)
    for query in range(queries):
        image = single[(start + query) % len(single)]
        began = clock()
        infer(image)
        taken[query] = clock() - began
    return taken


def _figures(accuracy: float, rounds: list[list[IntArray]], form: CompiledForm, weight_bits: int | None) -> Figures:
    times = np.concatenate([block for blocks in rounds for block in blocks])
    return Figures(
        accuracy=accuracy,
        p50_ns=percentile(times, 0.5),
        p90_ns=percentile(times, 0.9),
        size_bytes=sum(len(content) for content in form.files.values()),
        weight_bits=weight_bits,
        times_ns=times,
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
