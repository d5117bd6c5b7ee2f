"""What the arms answer, untimed: on the whole test split in the first launch, on the timed images in every later one.

It is the same process and the same opened model that is timed afterwards, so that every timed answer has one to be held
against.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject
from edgebert._progress import Progress
from edgebert.bench.accuracy import logit_bits, logits_of_bits, ranks_of
from edgebert.bench.images import chunks, write_images
from edgebert.bench.recorder import NO_CLASS
from edgebert.bench.samples import LOGITS, MAX_LOGITS, IntArray
from edgebert.bench.selection import Selection
from edgebert.bench.several import code_of_names, several_columns, truth_of
from edgebert.errors import EdgebertError

if TYPE_CHECKING:
    from edgebert.bench.session import OpenArm

_FIRST_TIMEOUT_S = 300.0  # for the first image of a launch; some backends compile then
_ANSWER_TIMEOUT_S, _TIMEOUT_FACTOR = 120.0, 20  # bench.md, section 10: as for a block, by the pace of the first image
_VERIFY = "edgebert verify ARTEFACT"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyPass:
    """The columns of the accuracy pass, and the first error of each arm."""

    columns: Mapping[str, IntArray]
    first_errors: tuple[str | None, ...]


def accuracy_pass(arms: Sequence[OpenArm], selection: Selection, folder: Path) -> AccuracyPass:
    """Ask every arm for every image of the test split, in chunks that all arms see before the next is decoded.

    Args:
        arms: opened.
        selection: the test images.
        folder: temporary; images and answers pass through it.

    Raises:
        EdgebertError: an arm failed on every image.
    """
    count, classes = len(selection.examples), len(selection.class_names)
    answers = _Answers.empty(len(arms), selection)
    first_errors: list[str | None] = [None] * len(arms)
    file = folder / "answers.npz"
    with Progress("accuracy", count) as progress:
        for positions, message in chunks_of(selection, folder):
            for index, arm in enumerate(arms):
                answer = _classified(arm, {**message, "answers": str(file)}, len(positions))
                answers.fill(index, positions, answer, file, selection)
                first_errors[index] = first_errors[index] or answer.optional_text("first_error")
            progress.advance(len(positions), note=f"{len(arms)} arms")
    for index, arm in enumerate(arms):
        check_answers(arm, answers.decisions[index], first_errors[index])
    labels = _truth_codes(selection)
    columns = {
        "accuracy_arm": np.repeat(np.arange(len(arms), dtype=np.int64), count),
        "accuracy_sample": np.tile(np.arange(count, dtype=np.int64), len(arms)),
        "accuracy_label": np.tile(labels, len(arms)),
        "accuracy_pred": answers.decisions.reshape(-1),  # (arms * images,)
        "accuracy_confidence": answers.confidences.reshape(-1),
        **answers.columns(labels, keep_logits=len(arms) * count * classes <= MAX_LOGITS),
    }
    return AccuracyPass(columns=columns, first_errors=tuple(first_errors))


def recheck_pass(
    arms: Sequence[OpenArm], selection: Selection, timed: IntArray, message: JsonObject, folder: Path, launch: int
) -> dict[str, IntArray]:
    """Ask every arm of a later launch for the timed images, and return the columns.

    Args:
        arms: opened.
        selection: the test images.
        timed: int64, their numbers among the test images, in the order of `message`.
        message: where the timed images lie.
        folder: temporary.
        launch: its number.
    """
    parts: list[dict[str, IntArray]] = []
    for index, arm in enumerate(arms):
        answer = _classified(arm, {**message, "answers": str(folder / "answers.npz")}, len(timed))
        parts.append(
            {
                "recheck_arm": np.full_like(timed, index),
                "recheck_launch": np.full_like(timed, launch),
                "recheck_sample": timed,
                "recheck_pred": in_data_order(_integers(answer, "predictions"), selection, index),
                "recheck_confidence": _integers(answer, "confidences"),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_data_order(predictions: IntArray, selection: Selection, arm: int) -> IntArray:
    """Return class numbers of an arm as class numbers of the data; a failed query stays `NO_CLASS`.

    The number of a set of labels is made of their names, and needs no translation.
    """
    if selection.task == "multi-label":
        return predictions
    return np.where(predictions == NO_CLASS, NO_CLASS, selection.orders[arm][np.maximum(predictions, 0)])


def check_answers(arm: OpenArm, decisions: IntArray, error: str | None) -> None:
    """Raise where every query failed: there is nothing to make statistics of."""
    if (decisions == NO_CLASS).all():
        raise EdgebertError(f"arm `{arm.name}` failed on every image: {error}", expected="an answer", hint=_VERIFY)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the arms said, in the data's class order: (arms, images), and (arms, images, classes) of what has classes.

    Single-label arms fill `logits`, multi-label ones `said` and `scores`; the others have no entries.
    """

    truth: NDArray[np.bool_]
    decisions: IntArray
    confidences: IntArray
    logits: NDArray[np.float32]
    said: NDArray[np.bool_]
    scores: NDArray[np.float64]

    @classmethod
    def empty(cls, arms: int, selection: Selection) -> _Answers:
        images, classes = len(selection.examples), len(selection.class_names)
        several = selection.task == "multi-label"
        full, none = (arms, images, classes), (0, 0, 0)
        return cls(
            truth=truth_of([example.labels for example in selection.examples], classes),
            decisions=np.full((arms, images), NO_CLASS, np.int64),
            confidences=np.full((arms, images), NO_CLASS, np.int64),
            logits=np.full(none if several else full, np.nan, np.float32),
            said=np.zeros(full if several else none, np.bool_),
            scores=np.zeros(full if several else none),
        )

    def fill(self, arm: int, positions: range, answer: Fields, file: Path, selection: Selection) -> None:
        """Take what a worker said of a chunk of images."""
        chunk, order = slice(positions.start, positions.stop), selection.orders[arm]
        self.decisions[arm, chunk] = in_data_order(_integers(answer, "predictions"), selection, arm)
        self.confidences[arm, chunk] = _integers(answer, "confidences")
        shape = (len(positions), len(order))  # the arm's class number i is the data's order[i]
        with np.load(file, allow_pickle=False) as archive:
            if selection.task == "single-label":
                self.logits[arm, chunk, order] = logits_of_bits(archive["logit"]).reshape(shape).T
            else:
                self.said[arm, chunk, order] = (archive["said"] == 1).reshape(shape).T
                self.scores[arm, chunk, order] = archive["score"].view(np.float64).reshape(shape).T

    def columns(self, labels: IntArray, *, keep_logits: bool) -> dict[str, IntArray]:
        """Return the columns that depend on the task."""
        if self.said.size:
            ranks = np.full(self.decisions.size, NO_CLASS, np.int64)
            return {"accuracy_rank": ranks, **several_columns(self.truth, self.said, self.scores)}
        ranks = ranks_of(self.logits, labels).reshape(-1)  # (arms * images,)
        return {"accuracy_rank": ranks, **({LOGITS: logit_bits(self.logits)} if keep_logits else {})}


def chunks_of(selection: Selection, folder: Path) -> Iterator[tuple[range, JsonObject]]:
    """Yield the positions of each chunk of the test images, and the message that says where its pixels lie."""
    for positions, images in chunks(selection.examples):
        yield positions, write_images(folder / "chunk", images)


def _classified(arm: OpenArm, request: JsonObject, images: int) -> Fields:
    """Ask for some images; the first alone, so that a worker that hangs is not waited for by the hour."""
    if arm.image_s is None:
        sizes = Fields(request, what="the images")
        first = {**request, "heights": [sizes.integers("heights")[0]], "widths": [sizes.integers("widths")[0]]}
        started = time.monotonic()
        arm.worker.ask("classify", first, timeout_s=_FIRST_TIMEOUT_S)
        arm.image_s = time.monotonic() - started
    return arm.worker.ask("classify", request, timeout_s=_ANSWER_TIMEOUT_S + _TIMEOUT_FACTOR * arm.image_s * images)


def _integers(answer: Fields, key: str) -> IntArray:
    return np.array(answer.integers(key), np.int64)


def _truth_codes(selection: Selection) -> IntArray:
    """Return int64 (images,): the class of each test image, or the number of its set of labels."""
    if selection.task == "single-label":
        return np.array([example.label for example in selection.examples], np.int64)
    names = selection.class_names
    return np.array(
        [code_of_names(names[label] for label in example.labels) for example in selection.examples], np.int64
    )
