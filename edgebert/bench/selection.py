"""Which test images are used: the test split, in the arms' class names, less every image that an arm has seen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.schema import DatasetRecord, Excluded
from edgebert.card import ModelCard, Task, hash_of_hashes
from edgebert.data import Dataset, Example, align_classes
from edgebert.errors import BadDataError

_log = logging.getLogger("edgebert")

MAX_SEEN = 0.01  # of the test split; more is no accident but another data set than the artefact was made for


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The images that accuracy is measured on.

    Attributes:
        examples: the labels refer to `class_names`.
        class_names: in the order of the first arm.
        orders: for each arm, int64 (classes,): its class number -> the number in `class_names`.
        excluded: what was left out.
        name: of the data set.
        skipped: files of the data set that could not be read.
        task: of the arms and the data.
    """

    examples: tuple[Example, ...]
    class_names: tuple[str, ...]
    orders: tuple[NDArray[np.int64], ...]
    excluded: tuple[Excluded, ...]
    name: str
    skipped: int
    task: Task = "single-label"

    def record(self, timed: int) -> DatasetRecord:
        """Return what the result says of them; `timed` of them are used for latency."""
        labels = [label for example in self.examples for label in example.labels]
        counts = np.bincount(np.array(labels, np.int64), minlength=len(self.class_names))
        identity = [
            f"{'|'.join(self.class_names[label] for label in example.labels)} {example.pixel_sha256}"
            for example in self.examples
        ]
        return DatasetRecord(
            name=self.name,
            split="test",
            n=len(self.examples),
            timed=timed,
            sha256=hash_of_hashes([*self.class_names, *identity]),
            class_names=self.class_names,
            per_class=tuple(int(count) for count in counts),
            excluded=self.excluded,
            skipped=self.skipped,
            task=self.task,
        )


def common_task(names: Sequence[str], cards: Sequence[ModelCard]) -> Task:
    """Return the task of all arms.

    Raises:
        BadDataError: they differ.
    """
    for name, card in zip(names, cards, strict=True):
        if card.task != cards[0].task:
            raise BadDataError(
                f"arm `{name}` is a {card.task} model, and arm `{names[0]}` a {cards[0].task} one",
                expected="arms of one task",
                hint="bench artefacts of different tasks in calls of their own",
            )
    return cards[0].task


def select_images(dataset: Dataset, names: Sequence[str], cards: Sequence[ModelCard]) -> Selection:
    """Return the test images that every arm may be judged on.

    Args:
        dataset: its test split is used; read as the arms' task asks for.
        names: of the arms.
        cards: of the arms: their class names must be the same, in any order.

    Raises:
        BadDataError: the classes differ, or more than 1 % of the test images, or all of a class, were seen by an arm.
    """
    aligned = align_classes(dataset, cards[0].class_names)
    orders = [
        _class_order(aligned.class_names, card.class_names, name) for name, card in zip(names, cards, strict=True)
    ]
    kept, excluded = [], []
    for example in aligned.test:
        seen_by = tuple(name for name, card in zip(names, cards, strict=True) if example.pixel_sha256 in card.seen)
        if seen_by:
            excluded.append(Excluded(id=example.id, pixel_sha256=example.pixel_sha256, seen_by=seen_by))
        else:
            kept.append(example)
    _report_excluded(excluded, kept, aligned)
    return Selection(
        examples=tuple(kept),
        class_names=aligned.class_names,
        orders=tuple(orders),
        excluded=tuple(excluded),
        name=aligned.name,
        skipped=len(aligned.skipped),
        task=common_task(names, cards),
    )


def _class_order(names: tuple[str, ...], arm_names: tuple[str, ...], arm: str) -> NDArray[np.int64]:
    if sorted(names) != sorted(arm_names):
        only_first = sorted(set(names) - set(arm_names))
        only_arm = sorted(set(arm_names) - set(names))
        raise BadDataError(
            f"arm `{arm}` has other classes than the first arm: {_listed(only_arm)}",
            expected=f"the same names in any order; it lacks {_listed(only_first)}",
            hint="bench artefacts of different tasks in calls of their own",
        )
    return np.array([names.index(name) for name in arm_names], np.int64)


def _report_excluded(excluded: Sequence[Excluded], kept: Sequence[Example], dataset: Dataset) -> None:
    if not excluded:
        return
    total = len(excluded) + len(kept)
    arms = ", ".join(sorted({name for entry in excluded for name in entry.seen_by}))
    said = f"{len(excluded)} of {total} test images were used to make {arms}"
    listed = ", ".join(entry.id for entry in excluded[:5])
    present = {label for example in kept for label in example.labels}
    there = {label for example in dataset.test for label in example.labels}
    empty = [dataset.class_names[label] for label in sorted(there - present)]
    if len(excluded) > MAX_SEEN * total or empty:
        rest = f"class `{empty[0]}` has no other test image" if empty else f"that is more than {MAX_SEEN:.0%}"
        raise BadDataError(
            f"{said} ({listed}, …): {rest}",
            expected="test images that no artefact was trained, selected or calibrated on",
            hint="name the data that the artefacts were made from, or other test images",
        )
    _log.warning("%s and are left out of accuracy and timing: %s", said, listed)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name:.60}`" for name in names[:10]) + (", …" if len(names) > 10 else "") if names else "none"
