"""The self-test of a bundle: every canary image must become the recorded tensor, and get the recorded answer.

What it sees: another resize rule, filter, size or channel order (the tensor's hash), another model, class order or normalisation
(the logits), and another decision. Logits may differ by a tolerance, since processors do; that would hide two class names that
changed places where their logits are near each other. So the differences are looked at together as well: logits that are the
recorded ones in another order have been given other names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgebert.bundle import Bundle
from edgebert.decisions import spoken
from edgebert.errors import BadDataError, MalformedBundleError, NotFiniteError, RefusedBundleError
from edgebert.manifest import Canary
from edgebert.preprocess import load_image
from edgebert.runtime.pipeline import Pipeline, tensor_sha256

_PNG = b"\x89PNG\r\n\x1a\n"

# Names have changed places where sorting both rows takes away 95 % of their largest difference in all canaries together, and the
# difference is more than rounding (AVX2 against AVX-512 moved FP32 logits by 1e-7 of their range). Noise is not sorted away: the
# largest logit stands alone and keeps its own.
_EXPLAINED = 0.05
_ROUNDING = 1e-6


def check_canaries(bundle: Bundle, pipeline: Pipeline, engine: str) -> float:
    """Answer every canary and compare with what the bundle's maker got.

    Returns:
        How much of the tolerance was used, 0 to 1.

    Raises:
        RefusedBundleError: another input tensor, another logit, another decision, or the logits of other classes; the message
            says which of them.
        MalformedBundleError: a canary is no PNG, or the model answers with another shape than its class names ask for.
    """
    recorded, answered = [], []
    used = 0.0
    for canary in bundle.manifest.canaries:
        row = _answer(bundle, pipeline, canary)
        expected = np.array(canary.logits[engine])
        used = max(used, _check_answer(bundle, pipeline, canary, engine, row))
        recorded.append(expected)
        answered.append(row.astype(np.float64))
    _check_order(bundle, np.array(recorded), np.array(answered), engine)
    return used


def _answer(bundle: Bundle, pipeline: Pipeline, canary: Canary) -> NDArray[np.float32]:
    """Return float32 (classes,): the logits of a canary, whose input tensor was found right."""
    content = bundle.files[canary.file]
    if not content.startswith(_PNG):
        raise MalformedBundleError(
            f"canary `{canary.file}` of `{bundle.path}` is no PNG", hint="compile the graph again"
        )
    try:
        # Exact, however the pipeline decodes what it is asked about.
        tensor = load_image(content, pipeline.card.preprocessing)[np.newaxis]
        if tensor_sha256(tensor) != canary.input_sha256:
            raise RefusedBundleError(
                f"`{bundle.path}` is refused: preprocessing turns canary `{canary.file}` into another tensor than when the "
                "bundle was made",
                expected=f"SHA-256 {canary.input_sha256:.64}, found {tensor_sha256(tensor)}",
                hint="install the version of Pillow that made it, or compile the graph again",
            )
        row: NDArray[np.float32] = pipeline.infer(tensor)[0]
    except BadDataError as error:
        raise MalformedBundleError(
            f"canary `{canary.file}` of `{bundle.path}`: {error.what}", expected=error.expected, hint=error.hint
        ) from error
    return row


def _check_answer(bundle: Bundle, pipeline: Pipeline, canary: Canary, engine: str, row: NDArray[np.float32]) -> float:
    try:
        answer = pipeline.post(row[np.newaxis])[0]
    except NotFiniteError as error:
        raise RefusedBundleError(
            f"`{bundle.path}` is refused: {engine} answers canary `{canary.file}` with {row.tolist()!s:.200}",
            expected="finite logits",
            hint="compile the graph on this computer, or for another target",
        ) from error
    differences = np.abs(row.astype(np.float64) - np.array(canary.logits[engine]))
    worst = int(np.argmax(differences))
    if differences[worst] > canary.tolerance[engine] or set(answer.labels) != set(canary.labels):
        raise RefusedBundleError(
            f"`{bundle.path}` is refused: {engine} answers canary `{canary.file}` with {spoken(answer.labels)}, and the logit of "
            f"`{bundle.manifest.card.class_names[worst]}` is {row[worst]:.5g}; its input tensor is right",
            expected=f"{spoken(canary.labels)}, and {canary.logits[engine][worst]:.5g} within {canary.tolerance[engine]:.2g}",
            hint="compile the graph on this computer, or for another target",
        )
    return float(differences[worst]) / canary.tolerance[engine]


def _check_order(bundle: Bundle, recorded: NDArray[np.float64], answered: NDArray[np.float64], engine: str) -> None:
    """Refuse answers that are the recorded ones under other names; both are (canaries, classes)."""
    differences = np.abs(answered - recorded)
    by_size = np.abs(np.sort(answered, axis=1) - np.sort(recorded, axis=1))
    if differences.max() <= _ROUNDING * np.ptp(recorded) or by_size.max() > _EXPLAINED * differences.max():
        return
    odd = np.flatnonzero(differences.max(axis=0) > differences.max() / 2)
    names = spoken([bundle.manifest.card.class_names[place] for place in odd[:3]])
    raise RefusedBundleError(
        f"`{bundle.path}` is refused: {engine} answers its canaries with the recorded logits in another order ({names})",
        expected="the class names in the order of the model's logits",
        hint="compile the graph again: the class names of a bundle are not edited",
    )
