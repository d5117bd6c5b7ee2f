"""Which compiled form of a bundle runs on this computer; nothing is loaded to find out.

The first form whose fingerprint fits, and whose backend and device are here, is taken; one whose int8 products would saturate on
this CPU only where nothing else fits. Where no form fits, the portable graph runs. That, and a form that was made for this kind
of computer and no longer fits, is said in one warning for each bundle and process, with every reason.

A form that fits and cannot be loaded is refused, and nothing else is tried: its bytes are those that were measured, on what
its fingerprint asks for, so that something is broken here, and an answer from another form would hide it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgebert._json import Fields
from edgebert.bundle import Bundle
from edgebert.errors import UnavailableError
from edgebert.extras import found_version, install_command
from edgebert.fingerprint import computer_facts, is_for_another_kind, machine, misfits
from edgebert.manifest import GRAPH_FILE, BundleForm, engine_name
from edgebert.runtime.instructions import int8_instructions, saturates
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, check_device, open_runner
from edgebert.target import resolve_target

_log = logging.getLogger("edgebert")

PORTABLE = "portable"  # what `Classifier.target` says where no compiled form fits this computer

# Both run the portable graph on a CPU; in this order where no form fits.
PORTABLE_BACKENDS = ("onnxruntime", "openvino")
_said: set[tuple[str, str]] = set()  # path and digest of the bundles whose fallback was said, in this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of a bundle is run, and by what.

    Attributes:
        target: the form's target, or `portable`.
        backend: which runner.
        source: the verified bytes.
        options: how it is opened.
        weight_bits: 8 or 7 of an INT8 model, None of a float one.
        beside: precision of a form that is kept beside what ships; else empty.
    """

    target: str
    backend: str
    source: ModelSource
    options: RunnerOptions
    weight_bits: int | None = None
    beside: str = ""

    @property
    def engine(self) -> str:
        """The key of its logits in `Canary.logits`."""
        return engine_name(self.backend, self.options.device, beside=self.beside)

    @property
    def saturates(self) -> bool:
        """Whether its int8 products saturate on this CPU, so that its accuracy is not what was measured elsewhere."""
        return saturates(self.weight_bits, self.backend, self.options.device)


def choices_for(bundle: Bundle, target: str | None, threads: int) -> list[Choice]:
    """Return what of a bundle could run on a computer like this one, the best first; no backend is imported.

    What saturates on this CPU comes last, else the order is the bundle's own.

    Raises:
        UsageError: no such target.
        UnavailableError: the bundle has no form for `target`, or one that does not fit; or nothing in it fits.
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
        _check_fits(bundle, form)
        return [_form_choice(bundle, form, threads)]
    # What is kept beside what ships is for who asks for it by name.
    shipped = [form for form in forms if not resolve_target(form.target).beside]
    fitting = [_form_choice(bundle, form, threads) for form in shipped if not misfits_of(form)]
    recorded = bundle.manifest.canaries[0].logits
    portable = [portable_choice(bundle, backend, threads) for backend in PORTABLE_BACKENDS if backend in recorded]
    if not fitting and not portable:
        raise _nothing_runs(bundle, [], None)
    return sorted(fitting, key=_saturates) + sorted(portable, key=_saturates)


def misfits_of(form: BundleForm) -> tuple[str, ...]:
    """Return why a form does not fit this computer, both sides named; empty where it fits.

    A backend that no package manager brought is imported, to ask it for its version, where all else fits: where it would be
    loaded anyway.
    """
    asked = form.conditions
    facts = computer_facts(form.backend, with_gpu=asked.asks_of_gpu)
    if (
        facts.backend_version is None
        and facts.backend_found
        and not misfits(replace(asked, backend_version=None), facts)
    ):
        facts = replace(facts, backend_version=found_version(form.backend))
    return misfits(asked, facts)


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


def open_first(bundle: Bundle, choices: list[Choice]) -> tuple[Choice, Runner]:
    """Open the first choice whose backend and device are here.

    Raises:
        UnavailableError: none is.
        BadDataError: the backend cannot load it.
    """
    reasons: dict[str, UnavailableError] = {}
    for choice in choices:
        try:
            check_device(choice.backend, choice.options.device)
        except UnavailableError as error:
            reasons[f"{choice.target} {choice.backend}"] = error
            continue
        _say_of_fallback(bundle, choice, {key.partition(" ")[0]: error.what for key, error in reasons.items()})
        return choice, open_runner(choice.backend, choice.source, choice.options)
    if len(reasons) == 1:
        raise next(iter(reasons.values()))
    raise _nothing_runs(bundle, [error.what for error in reasons.values()], _first_hint(reasons))


def say_of_weights(bundle: Bundle, choice: Choice) -> None:
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


def _form_choice(bundle: Bundle, form: BundleForm, threads: int) -> Choice:
    options = RunnerOptions(device=form.device, threads=threads, disabled_optimizers=form.disabled_optimizers)
    source = ModelSource(spec=_spec(bundle), files=bundle.form_files(form))
    return Choice(
        target=form.target,
        backend=form.backend,
        source=source,
        options=options,
        weight_bits=form.weight_bits,
        beside=resolve_target(form.target).beside,
    )


def _saturates(choice: Choice) -> bool:
    return choice.saturates


def _spec(bundle: Bundle) -> InputSpec:
    card = bundle.manifest.card
    return InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))


def _check_fits(bundle: Bundle, form: BundleForm) -> None:
    reasons = misfits_of(form)
    if not reasons:
        return
    facts = computer_facts(form.backend)
    raise UnavailableError(
        f"the form of `{bundle.path}` for `{form.target}` does not fit this computer: {'; '.join(reasons)}",
        expected=f"a computer with {form.conditions.to_text()}",
        hint=install_command(form.backend)
        if not facts.has_backend
        else "leave the target out to use whatever fits, or compile the graph again on this computer",
    )


def _say_of_fallback(bundle: Bundle, choice: Choice, not_here: Mapping[str, str]) -> None:
    """Warn once of a bundle whose portable graph is used though it has forms, or whose better form for this computer no longer fits.

    Args:
        bundle: whose forms were looked at.
        choice: what is used.
        not_here: target -> what its backend lacks here.
    """
    passed: dict[str, str] = {}
    stale = choice.target == PORTABLE
    for form in bundle.manifest.forms:
        if form.target == choice.target:
            break
        reasons = misfits_of(form)
        if reasons:
            facts = computer_facts(form.backend)
            stale = stale or not is_for_another_kind(form.conditions, facts)
            passed[form.target] = "; ".join(reasons)
        elif form.target in not_here:
            passed[form.target] = not_here[form.target]
    if choice.target == PORTABLE:
        passed.update(dict.fromkeys(_unknown_targets(bundle), "a target that this version of edgebert does not know"))
    key = (str(bundle.path), bundle.digest)
    if not passed or not stale or key in _said:
        return
    _said.add(key)
    listed = "; ".join(f"`{target}`: {reason}" for target, reason in passed.items())
    if choice.target == PORTABLE:
        what = f"no compiled form of `{bundle.path}` fits this computer: its portable graph runs in {choice.backend}"
    else:
        what = f"`{bundle.path}` runs its form for `{choice.target}`, not the first one"
    _log.warning("%s (%s)", what, listed)


def _unknown_targets(bundle: Bundle) -> list[str]:
    return [Fields(form, what="a form").text("target") for form in bundle.manifest.unknown_forms]


def _nothing_runs(bundle: Bundle, reasons: Sequence[str], hint: str | None) -> UnavailableError:
    forms = bundle.manifest.forms
    targets = [form.target for form in forms] + _unknown_targets(bundle)
    found = [f"`{form.target}`: {'; '.join(misfits_of(form))}" for form in forms if misfits_of(form)]
    return UnavailableError(
        f"nothing in `{bundle.path}` (forms: {', '.join(targets) or 'none'}) can run on this computer ({machine()})",
        expected="; or ".join(dict.fromkeys([*found, *reasons])) or "a form for it",
        hint=hint or "edgebert doctor",
    )


def _first_hint(reasons: Mapping[str, UnavailableError]) -> str | None:
    return next((error.hint for error in reasons.values() if error.hint), None)
