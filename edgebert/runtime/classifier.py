"""The embedding API: open a bundle, classify images.

with Classifier("widgets.edgebert") as classifier:
    prediction = classifier.predict("part.png")
    print(prediction.label, prediction.score)

A multi-label bundle says any number of classes: `prediction.labels`, the surest first.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgebert.bundle import Bundle, read_bundle
from edgebert.decisions import spoken
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError, UnavailableError
from edgebert.manifest import GRAPH_FILE, BundleForm, Canary, engine_name
from edgebert.preprocess import ImageSource
from edgebert.runtime.instructions import int8_instructions, saturates
from edgebert.runtime.pipeline import Pipeline, Prediction, tensor_sha256
from edgebert.runtime.runner import (
    InputSpec,
    ModelSource,
    Runner,
    RunnerOptions,
    check_device,
    check_process,
    open_runner,
)
from edgebert.target import resolve_target

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "PORTABLE",
    "PORTABLE_BACKENDS",
    "Choice",
    "Classifier",
    "Prediction",
    "check_canaries",
    "choices_for",
    "machine",
    "portable_choice",
]

_log = logging.getLogger("edgebert")

PORTABLE = "portable"  # what `Classifier.target` says where no compiled form fits this computer

# Both run the portable graph on a CPU; in this order where no form fits.
PORTABLE_BACKENDS = ("onnxruntime", "openvino")
_NOTABLE = 0.2  # share of the tolerance that another processor uses but the same one never does
_CHUNK = 32  # images decoded and run at a time: bounds the memory of a long list
_MACHINES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a bundle is run, and by what.

    Attributes:
        target: the form's target, or `portable`.
        backend: which runner.
        source: the verified bytes.
        options: how it is opened.
        weight_bits: 8 or 7 of an INT8 model, None of a float one.
    """

    target: str
    backend: str
    source: ModelSource
    options: RunnerOptions
    weight_bits: int | None = None

    @property
    def engine(self) -> str:
        """The key of its logits in `Canary.logits`."""
        return engine_name(self.backend, self.options.device)

    @property
    def saturates(self) -> bool:
        """Whether its int8 products saturate on this CPU, so that its accuracy is not what was measured elsewhere."""
        return saturates(self.weight_bits, self.backend, self.options.device)


class Classifier:
    """An opened bundle that answers for images.

    Opening verifies every hash, picks the form that fits this computer, and answers every canary; a bundle that
    fails any of it is refused. A form whose int8 products would saturate on this CPU is used only where nothing else
    fits, and that is said in a warning. Safe to call from many threads at once. The caller's arrays are never written, and a
    forked child gets `ForkedRuntimeError` instead of a hang.

    Args:
        path: a bundle, `NAME.edgebert`.
        target: use the form of this target and no other; None picks the first form that fits, and where none does
            the portable graph, which is said in a warning of the logger `edgebert`.
        threads: for each answer; 0 means the physical cores this process may use.

    Raises:
        InputNotFoundError: there is nothing at `path`.
        BadDataError: it is no bundle, or a malformed one.
        RefusedError: a file was changed, or a canary is not answered as it was when the bundle was made.
        UnavailableError: nothing in it can run on this computer.
        UsageError: no such target.
    """

    def __init__(self, path: str | os.PathLike[str], *, target: str | None = None, threads: int = 0) -> None:
        self._opened_in = os.getpid()
        bundle = read_bundle(Path(path))
        choices = choices_for(bundle, target, threads)
        choice, runner = _open_first(bundle, choices)
        _say_of_weights(bundle, choice)
        self._pipeline = Pipeline(runner, bundle.manifest.card)
        try:
            used = check_canaries(bundle, self._pipeline, choice.engine)
        except BaseException:
            runner.close()
            raise
        if used > _NOTABLE:
            _log.warning(
                "`%s` answers its canaries rightly but not exactly as where it was made (%.0f %% of the tolerance): its "
                "accuracy here may differ from what was measured; `edgebert bench` tells",
                bundle.path,
                100 * used,
            )
        self.path = bundle.path
        self.digest = bundle.digest
        self.class_names = bundle.manifest.card.class_names
        self.input_spec = runner.input_spec
        self.target = choice.target
        self.backend = choice.backend

    def predict(self, image: ImageSource) -> Prediction:
        """Classify one image.

        Args:
            image: a path, the bytes of a file, a Pillow image, or a uint8 (height, width, 3) RGB array.

        Raises:
            BadDataError: it is no image of an accepted kind.
            InputNotFoundError: the path cannot be read.
            ForkedRuntimeError: called in a forked child.
            EdgebertError: the classifier is closed, or the model's answer is not finite.
        """
        check_process(self._opened_in)
        pipeline = self._pipeline
        return pipeline.post(pipeline.infer(pipeline.pre(image)))[0]

    def predict_batch(self, images: Sequence[ImageSource]) -> list[Prediction]:
        """Classify several images; any number, also none. Each gets the answer that `predict` gives it.

        Raises:
            BadDataError: one is no image of an accepted kind; the message says which. The others are not answered.
            InputNotFoundError: a path cannot be read.
            ForkedRuntimeError: called in a forked child.
            EdgebertError: the classifier is closed, or the model's answer is not finite.
        """
        check_process(self._opened_in)
        answers: list[Prediction] = []
        for start in range(0, len(images), _CHUNK):
            batch = np.concatenate(list(self._preprocessed(images, start)))  # (chunk, height, width, 3)
            answers += self._pipeline.post(self._pipeline.infer(batch))
        return answers

    def properties(self) -> Mapping[str, str]:
        """Return what the backend really uses: version, threads, precision, device."""
        return self._pipeline.runner.properties()

    def close(self) -> None:
        """Free the model; further calls fail. Closing twice is allowed."""
        self._pipeline.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _preprocessed(self, images: Sequence[ImageSource], start: int) -> Iterator[np.ndarray]:
        for index, image in enumerate(images[start : start + _CHUNK], start):
            try:
                yield self._pipeline.pre(image)
            except (BadDataError, InputNotFoundError) as error:
                where = f"image {index} of {len(images)}: {error.what}"
                raise type(error)(where, expected=error.expected, hint=error.hint) from error


def choices_for(bundle: Bundle, target: str | None, threads: int) -> list[Choice]:
    """Return what of a bundle could run on a computer like this one, the best first; no backend is imported.

    What saturates on this CPU comes last, else the order is the bundle's own.

    Raises:
        UsageError: no such target.
        UnavailableError: the bundle has no form for `target`, or one for other machines.
    """
    forms = bundle.manifest.forms
    if target is not None:
        form = bundle.manifest.form(resolve_target(target).name)
        if form is None:
            raise UnavailableError(
                f"`{bundle.path}` has no form for `{target}`",
                expected=", ".join(form.target for form in forms),
                hint=f"edgebert compile GRAPH --target {target} -o {bundle.path}",
            )
        if not _fits_machine(form):
            raise UnavailableError(
                f"the form of `{bundle.path}` for `{target}` is made for {form.machine}",
                expected=f"one for this machine, {machine()}",
                hint="leave the target out to use whatever fits",
            )
        return [_form_choice(bundle, form, threads)]
    fitting = [_form_choice(bundle, form, threads) for form in forms if _fits_machine(form)]
    recorded = bundle.manifest.canaries[0].logits
    portable = [portable_choice(bundle, backend, threads) for backend in PORTABLE_BACKENDS if backend in recorded]
    return sorted(fitting, key=_saturates) + sorted(portable, key=_saturates)


def portable_choice(bundle: Bundle, backend: str, threads: int) -> Choice:
    """Return the portable graph, to be run by `backend` on the CPU."""
    source = ModelSource(spec=_spec(bundle), files={GRAPH_FILE: bundle.files[GRAPH_FILE]})
    return Choice(
        target=PORTABLE,
        backend=backend,
        source=source,
        options=RunnerOptions(threads=threads),
        weight_bits=8 if bundle.manifest.precision == "int8" else None,
    )


def check_canaries(bundle: Bundle, pipeline: Pipeline, engine: str) -> float:
    """Answer every canary and compare with what the bundle's maker got.

    Returns:
        How much of the tolerance was used, 0 to 1.

    Raises:
        RefusedError: another input tensor, another logit, or another decision; the message says which of them.
    """
    used = 0.0
    for canary in bundle.manifest.canaries:
        tensor = pipeline.pre(bundle.files[canary.file])
        if tensor_sha256(tensor) != canary.input_sha256:
            raise RefusedError(
                f"`{bundle.path}` is refused: preprocessing turns canary `{canary.file}` into another tensor than when the "
                "bundle was made",
                expected=f"SHA-256 {canary.input_sha256:.64}, found {tensor_sha256(tensor)}",
                hint="install the version of Pillow that made it, or compile the graph again",
            )
        used = max(used, _check_answer(bundle, pipeline, canary, engine, tensor))
    return used


def machine() -> str:
    """Return this computer's processor architecture by one name on every system, such as `x86_64` or `aarch64`."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def _check_answer(bundle: Bundle, pipeline: Pipeline, canary: Canary, engine: str, tensor: np.ndarray) -> float:
    logits = pipeline.infer(tensor)
    answer = pipeline.post(logits)[0]
    differences = np.abs(logits[0].astype(np.float64) - np.array(canary.logits[engine]))
    worst = int(np.argmax(differences))
    if differences[worst] > canary.tolerance[engine] or set(answer.labels) != set(canary.labels):
        raise RefusedError(
            f"`{bundle.path}` is refused: {engine} answers canary `{canary.file}` with {spoken(answer.labels)}, and the logit of "
            f"`{bundle.manifest.card.class_names[worst]}` is {logits[0][worst]:.5g}; its input tensor is right",
            expected=f"{spoken(canary.labels)}, and {canary.logits[engine][worst]:.5g} within {canary.tolerance[engine]:.2g}",
            hint="compile the graph on this computer, or for another target",
        )
    return float(differences[worst]) / canary.tolerance[engine]


def _open_first(bundle: Bundle, choices: list[Choice]) -> tuple[Choice, Runner]:
    """Open the first choice whose backend and device are here."""
    reasons: list[UnavailableError] = []
    for choice in choices:
        try:
            check_device(choice.backend, choice.options.device)
        except UnavailableError as error:
            reasons.append(error)
            continue
        if choice.target == PORTABLE:
            _log.warning(
                "no compiled form of `%s` fits this computer: its portable graph runs in %s",
                bundle.path,
                choice.backend,
            )
        return choice, open_runner(choice.backend, choice.source, choice.options)
    if len(reasons) == 1:
        raise reasons[0]
    forms = ", ".join(form.target for form in bundle.manifest.forms)
    raise UnavailableError(
        f"nothing in `{bundle.path}` (forms: {forms}) can run on this computer ({machine()})",
        expected="; or ".join(dict.fromkeys(error.what for error in reasons)) or "a form for it",
        hint=next((error.hint for error in reasons if error.hint), "edgebert doctor"),
    )


def _form_choice(bundle: Bundle, form: BundleForm, threads: int) -> Choice:
    options = RunnerOptions(device=form.device, threads=threads, disabled_optimizers=form.disabled_optimizers)
    source = ModelSource(spec=_spec(bundle), files=bundle.form_files(form))
    return Choice(
        target=form.target, backend=form.backend, source=source, options=options, weight_bits=form.weight_bits
    )


def _saturates(choice: Choice) -> bool:
    return choice.saturates


def _say_of_weights(bundle: Bundle, choice: Choice) -> None:
    """Warn where int8 products saturate; say so where 7 bits are used and 8 would do."""
    if choice.saturates:
        target = "" if choice.target == PORTABLE else f" --target {choice.target}"
        _log.warning(
            "`%s` has 8-bit weights for `%s`, and this CPU has no VNNI or AMX (%s): its accuracy here is not what was "
            "measured. Compile it again: edgebert compile GRAPH --weights 7-bit%s -o NAME.edgebert",
            bundle.manifest.name,
            choice.target,
            int8_instructions(choice.backend).to_text(),
            target,
        )
    elif choice.weight_bits == 7 and int8_instructions(choice.backend).exact:
        _log.info(
            "`%s` has 7-bit weights for `%s`, for CPUs without VNNI or AMX; this one would take 8",
            bundle.manifest.name,
            choice.target,
        )


def _spec(bundle: Bundle) -> InputSpec:
    card = bundle.manifest.card
    return InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))


def _fits_machine(form: BundleForm) -> bool:
    return form.machine is None or form.machine == machine()
