"""What logits say: the class of the largest one, or every class whose probability reaches its threshold.

Thresholds stand in the card of a multi-label model (`ModelCard.thresholds`); of a single-label model there are none, and
that is how the functions here tell the two apart.

>>> logits = np.array([[2.0, -1.0, 0.5]], np.float32)
>>> decisions(logits, ()).tolist()
[[True, False, False]]
>>> decisions(logits, (0.5, 0.5, 0.6)).tolist()
[[True, False, True]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the softmax over the last axis in float64: exp(x - max) / sum(exp(x - max)), which cannot overflow."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def softmax_of_few(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the softmax of one row divided by `temperature`, without numpy; numbers differ from `softmax` by rounding alone.

    Ten classes take a fifth of what numpy takes right after a model ran, when the processor's caches hold nothing of either
    (docs/runtime-speed.md). A row that is not finite gives NaN, or 0 for what is minus infinity.
    """
    highest, exp = max(logits), math.exp
    powers = [exp((logit - highest) / temperature) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) in float64, with the exponential of a number that is never above 0: it cannot overflow."""
    wide = logits.astype(np.float64)
    power = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0, power) / (1.0 + power)


def decisions(logits: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Return bool (rows, classes): whether each class is said.

    Args:
        logits: (rows, classes).
        thresholds: one for each class: a class is said where its sigmoid reaches it. None of them: one class is said, that
            of the largest logit, the first where several are as large.
    """
    if not thresholds:
        said = np.zeros(logits.shape, np.bool_)
        said[np.arange(len(logits)), logits.argmax(axis=1)] = True
        return said
    return sigmoid(logits) >= np.asarray(thresholds, np.float64)


def margins(logits: NDArray[np.floating], thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return float64 (rows,): by how much a logit may change, the others as they are, before something else is said.

    Without thresholds that is how far the largest logit is above the second; with them, how far the nearest one is from
    its threshold.
    """
    wide = logits.astype(np.float64)
    if not thresholds:
        two = np.sort(wide, axis=1)[:, -2:]  # (rows, 2)
        return np.asarray(two[:, 1] - two[:, 0])
    return np.asarray(np.abs(wide - threshold_logits(thresholds)).min(axis=1))


def threshold_logits(thresholds: Sequence[float]) -> NDArray[np.float64]:
    """Return float64 (classes,): the logits whose sigmoids are the thresholds, log(t / (1 - t))."""
    limits = np.asarray(thresholds, np.float64)
    return np.asarray(np.log(limits / (1 - limits)))


def said_names(said: NDArray[np.bool_], class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes that one row, bool (classes,), says, in their order."""
    return tuple(name for name, yes in zip(class_names, said.tolist(), strict=True) if yes)


def spoken(names: Sequence[str]) -> str:
    """Return class names as an error message says them, in backticks, or `no label`."""
    return ", ".join(f"`{name}`" for name in names) or "no label"
