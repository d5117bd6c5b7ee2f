"""Multi-label arms: what stands in the columns of a run where an image has any number of labels.

A decision is all that is said of an image. In `pred`, `accuracy_label` and `accuracy_pred` it is a number made of its class
names, so that two decisions are equal where the numbers are, whatever order an arm keeps its classes in. What the numbers
were made of stands beside them, and the classes are the data's:

`truth_sample`, `truth_class`: one entry for each label of each test image.
`said_arm`, `said_sample`, `said_class`: one entry for each class that an arm said of an image.
`score`: the probability of each class of each image of each arm, in this order, as the bits of a float64; 0 where the
query failed.

>>> code_of_names(("bee", "ant")) == code_of_names(("ant", "bee")) != code_of_names(())
True
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.samples import IntArray, Samples
from edgebert.card import ModelCard
from edgebert.runtime.pipeline import Prediction


def code_of_names(names: Iterable[str]) -> int:
    """Return a number for a set of class names, 0 to 2^63 - 1: the first bits of the SHA-256 of the sorted names."""
    text = "\0".join(sorted(names))  # no class name holds one: they are printable
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def answer_code(card: ModelCard) -> Callable[[Prediction], int]:
    """Return what makes the number of an answer: its class number, or, of a multi-label arm, that of the set it says."""
    if card.task == "single-label":
        return operator.attrgetter("index")
    known: dict[tuple[str, ...], int] = {}

    def code(prediction: Prediction) -> int:
        if prediction.labels not in known:
            known[prediction.labels] = code_of_names(prediction.labels)
        return known[prediction.labels]

    return code


def answer_columns(predictions: Sequence[Prediction | None], card: ModelCard) -> dict[str, IntArray]:
    """Return what a worker writes of some images: `said` and `score`, int64 (images * classes,), in the arm's class order.

    A query that failed says nothing, with probability 0.
    """
    classes = len(card.class_names)
    said, scores = np.zeros((len(predictions), classes), np.int64), np.zeros((len(predictions), classes))
    places = {name: place for place, name in enumerate(card.class_names)}
    for row, prediction in enumerate(predictions):
        if prediction is not None:
            said[row, [places[name] for name in prediction.labels]] = 1
            scores[row] = prediction.scores
    return {"said": said.reshape(-1), "score": scores.reshape(-1).view(np.int64)}


def truth_of(labels: Sequence[Sequence[int]], classes: int) -> NDArray[np.bool_]:
    """Return bool (images, classes) of each image's label numbers."""
    truth = np.zeros((len(labels), classes), np.bool_)
    for row, numbers in enumerate(labels):
        truth[row, list(numbers)] = True
    return truth


def several_columns(
    truth: NDArray[np.bool_], said: NDArray[np.bool_], scores: NDArray[np.float64]
) -> dict[str, IntArray]:
    """Return the columns that the top of this module lists.

    Args:
        truth: bool (images, classes).
        said: bool (arms, images, classes).
        scores: float64 (arms, images, classes).
    """
    truth_sample, truth_class = np.nonzero(truth)
    said_arm, said_sample, said_class = np.nonzero(said)
    found = {
        "truth_sample": truth_sample,
        "truth_class": truth_class,
        "said_arm": said_arm,
        "said_sample": said_sample,
        "said_class": said_class,
    }
    columns: dict[str, IntArray] = {name: entries.astype(np.int64) for name, entries in found.items()}
    columns["score"] = np.ascontiguousarray(scores).reshape(-1).view(np.int64)
    return columns


def several_of(
    samples: Samples, arm: int, classes: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Return what is true, what an arm said and its probabilities, each (images, classes)."""
    images = int(np.count_nonzero(samples["accuracy_arm"] == arm))
    truth, said = np.zeros((images, classes), np.bool_), np.zeros((images, classes), np.bool_)
    truth[samples["truth_sample"], samples["truth_class"]] = True
    own = samples["said_arm"] == arm
    said[samples["said_sample"][own], samples["said_class"][own]] = True
    scores = samples["score"].view(np.float64).reshape(-1, images, classes)[arm]
    return truth, said, scores
