"""The images of a bundle's self-test: where they come from, and which are taken.

A canary's expected class is what the model decides, not what is true: it says that the model still answers as it did.

Images can be blind: grey ones show no swapped channels, and those that have the network's size already show no resize filter.
Where the images at hand are, a made one that is neither is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgebert.card import ModelCard
from edgebert.decisions import decisions, margins, said_names
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.examples import ExampleImage, example_png
from edgebert.manifest import MAX_CANARIES, MIN_CANARIES
from edgebert.preprocess import Interpolation, Preprocessing, RgbImage, decode_image, resize_image

SYNTHETIC = "synthetic"
_SYNTHETIC_COUNT = 4
_ADDED_COUNT = 16  # synthetic images to choose one from, where those at hand are blind
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
        return synthetic_candidates(card.preprocessing, _SYNTHETIC_COUNT)
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


def synthetic_candidates(preprocessing: Preprocessing, count: int = _ADDED_COUNT) -> tuple[Candidate, ...]:
    """Return as many made images, which are coloured and larger than the network's input."""
    images = _synthetic(preprocessing, count)
    return tuple(Candidate(png=example_png(image, preprocessing), labels=None) for image in images)


def blind_spots(pngs: Sequence[bytes], preprocessing: Preprocessing) -> list[str]:
    """Return what could be changed in the preprocessing without any of these images becoming another tensor.

    >>> from edgebert.examples import example_png
    >>> rule = Preprocessing(height=8, width=8)
    >>> blind_spots([candidate.png for candidate in synthetic_candidates(rule, 1)], rule)
    []
    >>> blind_spots([example_png(np.full((8, 8, 3), 99, np.uint8), rule)], rule)[:2]
    ['red and blue swapped', 'interpolation `nearest`']
    """
    images = [decode_image(png) for png in pngs]
    tensors = [resize_image(image, preprocessing) for image in images]
    blind = []
    if all(np.array_equal(tensor, tensor[..., ::-1]) for tensor in tensors):
        blind.append("red and blue swapped")
    for name, other in _other_rules(preprocessing):
        pairs = zip(images, tensors, strict=True)
        if all(np.array_equal(resize_image(image, other), tensor) for image, tensor in pairs):
            blind.append(name)
    return blind


def _other_rules(rule: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    """Yield the mistakes that are made with resize rules: another filter, another way to fit, another edge."""
    for filter_ in get_args(Interpolation):
        if filter_ != rule.interpolation:
            yield f"interpolation `{filter_}`", replace(rule, interpolation=filter_)
    edge = rule.shortest_edge or max(rule.height, rule.width)
    if rule.resize != "stretch":
        yield "resize `stretch`", replace(rule, resize="stretch", shortest_edge=None)
        yield "another shortest edge", replace(rule, shortest_edge=edge + max(1, edge // 8))
    if rule.resize != "crop":
        yield "resize `crop`", replace(rule, resize="crop", shortest_edge=edge)
    if rule.resize == "crop":
        yield "resize `stretch-crop`", replace(rule, resize="stretch-crop")


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


def _synthetic(preprocessing: Preprocessing, count: int) -> list[RgbImage]:
    """Return images that show nothing: smooth waves of different frequency and colour, the same on every machine.

    Half again as high as the network's input and three quarters wider, so that every other resize rule changes the tensor.
    """
    rows = np.arange(preprocessing.height * 3 // 2 + 1)[:, np.newaxis, np.newaxis]  # (height, 1, 1)
    columns = np.arange(preprocessing.width * 7 // 4 + 1)[np.newaxis, :, np.newaxis]  # (1, width, 1)
    colour = np.array([0, 85, 170])  # (3,)
    # Integer triangle waves: no floating point that two machines could round differently.
    phases = [(rows * (7 + 11 * n) + columns * (13 + 5 * n) + colour * (n + 1)) % 510 for n in range(count)]
    return [np.abs(phase - 255).astype(np.uint8) for phase in phases]
