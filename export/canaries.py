"""The images of a bundle's self-test: where they come from, and which are taken.

A canary's expected class is what the model decides, not what is true: it says that the model still answers as it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.card import ModelCard
from edgebert.decisions import decisions, margins, said_names
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.examples import ExampleImage, example_png
from edgebert.manifest import MAX_CANARIES, MIN_CANARIES
from edgebert.preprocess import Preprocessing, RgbImage, decode_image

SYNTHETIC = "synthetic"
_SYNTHETIC_COUNT = 4
_MAX_CANDIDATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image that may become a canary.

    Attributes:
        png: the file.
        labels: its true class names, or None where nobody says.
    """

    png: bytes
    labels: tuple[str, ...] | None


def canary_candidates(canary: str | None, examples: Sequence[ExampleImage], card: ModelCard) -> tuple[Candidate, ...]:
    """Return the images to choose canaries from.

    Args:
        canary: None takes the example images in the graph; `synthetic` makes images; anything else is a folder of
            images, or of one folder of images per class.
        examples: those of the graph.
        card: the graph's.

    Raises:
        UsageError: the graph holds fewer than three example images and `canary` is None.
        InputNotFoundError: there is no such folder.
        BadDataError: fewer than three images, or one that cannot be decoded.
    """
    if canary == SYNTHETIC:
        return tuple(Candidate(png=example_png(image, card.preprocessing), labels=None) for image in _synthetic(card))
    if canary is not None:
        return _from_folder(Path(canary), card)
    if len(examples) < MIN_CANARIES:
        raise UsageError(
            f"the graph holds {len(examples)} example images",
            expected=f"at least {MIN_CANARIES}, to make canaries of them",
            hint="`--canary DIR` takes images of yours, `--canary synthetic` makes some",
        )
    return tuple(Candidate(png=example.png, labels=example.labels) for example in examples)


def chosen_canaries(
    candidates: Sequence[Candidate],
    logits: NDArray[np.float32],
    class_names: tuple[str, ...],
    thresholds: tuple[float, ...] = (),
) -> list[int]:
    """Return the places of at most eight candidates: rightly and clearly decided ones first, spread over the answers.

    Args:
        candidates: as many as rows.
        logits: float32 (candidates, classes) of the portable graph.
        class_names: in the order of the logits.
        thresholds: those of a multi-label card.
    """
    answers = [said_names(row, class_names) for row in decisions(logits, thresholds)]
    clearness = margins(logits, thresholds)
    wrong = [
        candidate.labels is not None and set(candidate.labels) != set(answer)
        for candidate, answer in zip(candidates, answers, strict=True)
    ]
    by_clearness = sorted(range(len(candidates)), key=lambda place: (wrong[place], -clearness[place], place))
    met: dict[tuple[str, ...], int] = {}  # answer -> how many clearer canaries have it
    rank = {}
    for place in by_clearness:
        rank[place] = met.get(answers[place], 0)
        met[answers[place]] = rank[place] + 1
    best = sorted(by_clearness, key=lambda place: (wrong[place], rank[place], -clearness[place], place))
    return sorted(best[:MAX_CANARIES])


def _from_folder(folder: Path, card: ModelCard) -> tuple[Candidate, ...]:
    if not folder.is_dir():
        raise InputNotFoundError(
            f"no such folder: `{folder}`", expected="a folder of images", hint="`--canary synthetic` needs none"
        )
    entries = sorted(folder.iterdir())
    files: list[tuple[tuple[str, ...] | None, Path]] = [(None, path) for path in entries if path.is_file()]
    for name in card.class_names:
        inside = folder / name
        if inside in entries and inside.is_dir():
            # One folder cannot say all that an image of several labels shows.
            labels = (name,) if card.task == "single-label" else None
            files += [(labels, path) for path in sorted(inside.iterdir()) if path.is_file()]
    if not MIN_CANARIES <= len(files) <= _MAX_CANDIDATES:
        raise BadDataError(
            f"`{folder}` holds {len(files)} files (in folders named as the classes included)",
            expected=f"{MIN_CANARIES} to {_MAX_CANDIDATES} images",
        )
    return tuple(Candidate(png=_png(path, card.preprocessing), labels=labels) for labels, path in files)


def _png(path: Path, preprocessing: Preprocessing) -> bytes:
    try:
        return example_png(decode_image(path), preprocessing)
    except BadDataError as error:
        raise BadDataError(f"`{path}`: {error.what}", expected=error.expected, hint=error.hint) from error


def _synthetic(card: ModelCard) -> list[RgbImage]:
    """Return images that show nothing: smooth waves of different frequency and colour, the same on every machine.

    Half again as large as the network's input, so that a changed resize rule changes the tensor.
    """
    rows = np.arange(card.preprocessing.height * 3 // 2 + 1)[:, np.newaxis, np.newaxis]  # (height, 1, 1)
    columns = np.arange(card.preprocessing.width * 3 // 2 + 1)[np.newaxis, :, np.newaxis]  # (1, width, 1)
    colour = np.array([0, 85, 170])  # (3,)
    # Integer triangle waves: no floating point that two machines could round differently.
    phases = [(rows * (7 + 11 * n) + columns * (13 + 5 * n) + colour * (n + 1)) % 510 for n in range(_SYNTHETIC_COUNT)]
    return [np.abs(phase - 255).astype(np.uint8) for phase in phases]
