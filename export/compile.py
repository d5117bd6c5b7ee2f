"""From a graph to a bundle: compile it for each target, record what it answers, and open the result before it gets its name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgebert
from edgebert._files import (
    Output,
    check_can_be_written,
    check_file_is_free,
    check_folder_is_free,
    check_not_input,
    claimed,
    names_in,
    read_input,
    staged_together,
)
from edgebert.bundle import BUNDLE_FOLDER, SUMS_FILE, Bundle, read_bundle, write_bundle
from edgebert.card import ModelCard, Provenance
from edgebert.decisions import decisions, margins, said_names, spoken, threshold_logits
from edgebert.errors import (
    CannotWriteError,
    EdgebertError,
    LinkLostError,
    LockedError,
    RefusedBundleError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.export.canaries import (
    SYNTHETIC,
    Candidate,
    blind_spots,
    canary_candidates,
    chosen_canaries,
    synthetic_candidates,
)
from edgebert.export.compile_options import CompileOptions, check_request
from edgebert.export.engine_choice import Trial, expected_of
from edgebert.export.forms import CompiledForm, form_from_graph
from edgebert.export.metadata import examples_of_model, parse_graph
from edgebert.export.place import HERE, Place, Rows
from edgebert.export.precision import Beside, SourceGraph, chosen_graph, weight_bits_of
from edgebert.export.reference import portable_answers, reference_place
from edgebert.export.verdict import Verdict, merged_choice
from edgebert.export.verdict_report import check_report_can_be_made, page_of_verdict
from edgebert.manifest import (
    GRAPH_FILE,
    MAX_CANARIES,
    BundleForm,
    Canary,
    Manifest,
    Precision,
    engine_name,
    recorded_with,
    tolerance_of,
)
from edgebert.preprocess import load_batch
from edgebert.runtime.pipeline import tensor_sha256
from edgebert.runtime.runner import InputSpec
from edgebert.target import resolve_target

__all__ = ["CompileOptions", "CompileReport", "bundle_from_graph"]

_log = logging.getLogger("edgebert")

_CHOICE = "precision_choice"  # of `Manifest.measured`


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What `bundle_from_graph` made.

    Attributes:
        path: of the bundle.
        digest: SHA-256 of its `SHA256SUMS`.
        precision: of its graph.
        size_bytes: of all its files but `SHA256SUMS`.
        forms: all of them, those that were there before included.
        added: the targets that were compiled now.
        verified: the targets whose form answered every canary on this computer.
        canaries: how many.
        verdict: what was measured of both precisions and why this one ships, in one sentence; empty where nothing was.
    """

    path: Path
    digest: str
    precision: Precision
    size_bytes: int
    forms: tuple[BundleForm, ...]
    added: tuple[str, ...]
    verified: tuple[str, ...]
    canaries: int
    verdict: str = ""

    def to_text(self) -> str:
        """Return one line for a terminal, after the verdict where there is one."""
        forms = ", ".join(form.target for form in self.forms)
        line = f"{self.path}: {self.precision}, {forms}, {self.size_bytes:,} bytes, digest {self.digest}"
        return f"{self.verdict}\n{line}" if self.verdict else line


def bundle_from_graph(graph: Path, output: Path, options: CompileOptions, place: Place = HERE) -> CompileReport:
    """Compile a graph into a bundle. Onto a bundle of the same graph it adds forms and keeps the others.

    Every form is opened and its answers recorded on this computer, or on the device that it is for; the finished bundle is
    opened there as a user would before it gets its name.

    Args:
        graph: an ONNX file of edgebert's, FP32 or INT8.
        output: the bundle's folder, by custom `NAME.edgebert`.
        options: targets, canaries, and which precision ships.
        place: the computer that the forms are for, built by and answered on.

    Raises:
        CannotWriteError: `output` exists and is no bundle of this graph, or has a form for one of the targets already.
        UnavailableError: a target's backend or device is not on this computer; said before any work is done.
        UsageError: the graph holds no example images and no other canaries were named; or a precision is to be chosen, and
            the FP32 graph or the data are not named.
        BadDataError: no graph of edgebert's; or the FP32 graph is not the one that the INT8 graph was made from.
        EdgebertError: forms decide differently on a canary.
        LockedError: another process compiles into `output`.
    """
    with claimed(output, *([] if options.report is None else [options.report])):
        return _bundle_from_graph(graph, output, options, place)


def _bundle_from_graph(graph: Path, output: Path, options: CompileOptions, place: Place) -> CompileReport:
    targets = [resolve_target(name) for name in options.targets]
    check_request(options)
    if options.report is not None:
        check_not_input(options.report, graph, *([] if options.float_graph is None else [options.float_graph]))
        check_file_is_free(options.report, force=options.force)
        check_report_can_be_made()
        if output.absolute() in options.report.absolute().parents:
            raise UsageError(f"the report `{options.report}` lies in the bundle", hint="--report NAME.html")
    for path in (output, *([] if options.report is None else [options.report])):
        check_can_be_written(path)
    contents = [(graph, read_input(graph, what="the graph"))]
    if options.float_graph is not None:
        contents.append((options.float_graph, read_input(options.float_graph, what="the FP32 graph")))
    hashes = [hashlib.sha256(content).hexdigest() for _, content in contents]
    new = _existing_bundle(output, hashes, options) is None
    for target in targets:
        place.check(target)
    given, *floats = [SourceGraph.of(path, content) for path, content in contents]
    candidates: Sequence[Candidate] = ()
    if new:
        examples = examples_of_model(parse_graph(given.content), what=f"`{graph}`")
        candidates = canary_candidates(options.canary, examples, given.card)
    found = chosen_graph(given, floats[0] if floats else None, targets, options, place)
    parts, verdict = found.graph, found.verdict
    existing = _existing_bundle(output, [parts.sha256], options)
    if existing is None:
        manifest, files = _new_bundle(parts, _name(output), candidates, place, canary_source=options.canary)
    else:
        manifest, files = existing.manifest, {name: existing.files[name] for name in existing.manifest.sizes}
    asked = options.engine_asked(found.trial or _canary_trial(manifest, files) if options.takes_engine else None)
    for target in targets:
        bits = weight_bits_of(parts, target, options, place.int8(target.backend))
        form = found.forms.get(target.name) or form_from_graph(parts.for_bits(bits), target, place.builder, asked)
        manifest, files = _with_form(manifest, files, form, parts, bits, place)
    if found.beside is not None:
        manifest, files = _with_those_beside(manifest, files, found.beside, place)
    if verdict is not None:
        before = manifest.measured.get(_CHOICE)
        choice = merged_choice(before if isinstance(before, Mapping) else None, verdict)
        manifest = replace(manifest, measured={**manifest.measured, _CHOICE: choice})
    return _written(output, manifest, files, existing, options, verdict, place)


def _existing_bundle(output: Path, graphs_sha256: Sequence[str], options: CompileOptions) -> Bundle | None:
    """Return the bundle that forms are added to, or None where a new one is made; refuse everything else at once.

    Args:
        output: the bundle's folder.
        graphs_sha256: of the graphs that it may have been made from: both, as long as nobody knows which one ships.
        options: `force`, targets and canaries.
    """
    occupied = output.is_dir() and bool(names_in(output))
    if options.force or not occupied or not (output / SUMS_FILE).is_file():
        check_folder_is_free(output, force=options.force, kind=BUNDLE_FOLDER)
        return None
    existing = read_bundle(output)
    hint = "add `--force` to replace the whole bundle, or choose another name with `-o`"
    if existing.manifest.made_from not in graphs_sha256:
        raise CannotWriteError(
            f"`{output}` was made from another graph", expected=f"SHA-256 {existing.manifest.made_from:.64}", hint=hint
        )
    there = [name for name in options.targets if existing.manifest.form(name)]
    if there:
        raise CannotWriteError(f"`{output}` has a form for `{there[0]}` already", hint=hint)
    if options.canary is not None:
        raise UsageError(f"`--canary {options.canary}`, but `{output}` has its canaries already", hint=hint)
    return existing


def _new_bundle(
    graph: SourceGraph, name: str, candidates: Sequence[Candidate], place: Place, *, canary_source: str | None
) -> tuple[Manifest, dict[str, bytes]]:
    """Return a bundle without forms: the portable graph, and canaries with its answers in each backend that is there."""
    place = reference_place(place)
    answers, tensors = _portable_answers(graph, candidates, place)
    reference = next(iter(answers.values()))
    chosen = chosen_canaries(candidates, reference, graph.card.class_names, graph.card.thresholds)
    blind = blind_spots([candidates[place].png for place in chosen], graph.card.preprocessing)
    added = _seeing_candidate(graph, blind, place) if blind and canary_source != SYNTHETIC else None
    if added is not None:
        candidates = (*(candidates[place] for place in chosen[: MAX_CANARIES - 1]), added)
        chosen = list(range(len(candidates)))
        answers, tensors = _portable_answers(graph, candidates, place)
        reference = next(iter(answers.values()))
    backends = list(answers)
    answered = _said(reference, graph.card)
    canaries = tuple(
        Canary(
            file=f"canary/{number}.png",
            labels=answered[place],
            input_sha256=tensor_sha256(tensors[place]),
            logits={},
            tolerance={},
        )
        for number, place in enumerate(chosen)
    )
    for engine, rows in answers.items():
        canaries = _recorded(canaries, engine, "CPU", rows[chosen], graph)
    _warn_of_narrow_margins(canaries, backends[0], reference[chosen], graph.card)
    files = {GRAPH_FILE: graph.portable}
    files.update({f"canary/{number}.png": candidates[place].png for number, place in enumerate(chosen)})
    manifest = Manifest(
        name=name,
        card=replace(graph.card, provenance=_provenance(graph, canary_source, added=added is not None)),
        precision=graph.precision,
        made_from=graph.sha256,
        forms=(),
        canaries=canaries,
        preprocessing_sha256=graph.card.preprocessing.sha256(),
        sizes={},
    )
    return manifest, files


def _portable_answers(
    graph: SourceGraph, candidates: Sequence[Candidate], place: Place
) -> tuple[dict[str, Rows], NDArray[np.uint8]]:
    """Return what the portable graph answers in each backend that is here, and the tensors it was given."""
    tensors = load_batch([candidate.png for candidate in candidates], graph.card.preprocessing)
    return portable_answers(graph, tensors, place), tensors


def _seeing_candidate(graph: SourceGraph, blind: Sequence[str], place: Place) -> Candidate | None:
    """Return a made image that sees what the chosen ones are blind to, clearly decided by every engine; None where none is.

    An image that is decided by a hair would make another computer refuse a good bundle: rather no such canary than that.
    """
    candidates = synthetic_candidates(graph.card.preprocessing)
    answers, _ = _portable_answers(graph, candidates, place)
    rows = next(iter(answers.values()))
    tolerances = np.array([tolerance_of(tuple(row.tolist()), graph.precision, "CPU") for row in rows])
    clearness = margins(rows, graph.card.thresholds) / tolerances
    said = [_said(each, graph.card) for each in answers.values()]
    agreed = [len(set(labels)) == 1 for labels in zip(*said, strict=True)]
    order = [int(at) for at in np.argsort(-clearness, kind="stable")]
    for at in (at for at in order if agreed[at] and clearness[at] > 2):
        if not set(blind_spots([candidates[at].png], graph.card.preprocessing)) & set(blind):
            _log.info("no canary would show %s: a made image is added", ", ".join(blind))
            return candidates[at]
    _log.warning(
        "no canary would show %s; `--canary DIR` takes images of yours: coloured, and larger than %d x %d pixels",
        ", ".join(blind),
        graph.card.preprocessing.width,
        graph.card.preprocessing.height,
    )
    return None


def _with_form(
    manifest: Manifest,
    files: Mapping[str, bytes],
    form: CompiledForm,
    graph: SourceGraph,
    weight_bits: int | None,
    place: Place,
) -> tuple[Manifest, dict[str, bytes]]:
    """Add a form and what it answers."""
    added: dict[str, bytes] = {}
    if set(form.files.values()) != {graph.portable}:  # else nothing was compiled: the portable graph is the form
        added = {f"forms/{form.target.name}/{name}": content for name, content in sorted(form.files.items())}
    tensors = load_batch([files[canary.file] for canary in manifest.canaries], graph.card.preprocessing)
    rows = place.answers(form.backend, form.device, form.files, form.disabled_optimizers, graph.spec, tensors)
    engine = engine_name(form.backend, form.device, beside=form.target.beside)
    # The portable graph runs on every architecture; what was compiled, only on its own.
    fingerprint = form.fingerprint if added else replace(form.fingerprint, machine=None)
    entry = BundleForm(
        target=form.target.name,
        backend=form.backend,
        device=form.device,
        files=tuple(added) or (GRAPH_FILE,),
        machine=fingerprint.machine,
        disabled_optimizers=form.disabled_optimizers,
        versions=form.versions,
        notes=form.notes,
        weight_bits=weight_bits,
        fingerprint=fingerprint,
    )
    canaries = _recorded(manifest.canaries, engine, form.device, rows, graph)
    return replace(manifest, forms=(*manifest.forms, entry), canaries=canaries), {**files, **added}


def _with_those_beside(
    manifest: Manifest, files: dict[str, bytes], beside: Beside, place: Place
) -> tuple[Manifest, dict[str, bytes]]:
    """Add the engines of the other precision, but those that decide a canary otherwise: they are nothing to compare with."""
    for form in beside.forms:
        try:
            manifest, files = _with_form(manifest, files, form, beside.graph, None, place)
        except (LinkLostError, RefusedError):
            raise
        except EdgebertError as error:
            _log.warning("`%s` is not kept: %s", form.target.name, error.what)
    return manifest, files


def _canary_trial(manifest: Manifest, files: Mapping[str, bytes]) -> Trial:
    """Return the canaries as images that engines are measured on: they must all be decided as they were."""
    card = manifest.card
    rule = card.preprocessing
    return Trial(
        spec=InputSpec(height=rule.height, width=rule.width, classes=len(card.class_names)),
        tensors=load_batch([files[canary.file] for canary in manifest.canaries], rule),
        expected=expected_of([canary.labels for canary in manifest.canaries], card.class_names),
        thresholds=card.thresholds,
        floor=1.0,
    )


def _recorded(
    canaries: tuple[Canary, ...], engine: str, device: str, rows: Rows, graph: SourceGraph
) -> tuple[Canary, ...]:
    """Return the canaries with what an engine answered, after a check against what is known.

    Raises:
        EdgebertError: the engine decides otherwise, answers no finite number, or answers differently than it did.
    """
    return tuple(_recorded_one(canary, engine, device, row, graph) for canary, row in zip(canaries, rows, strict=True))


def _recorded_one(canary: Canary, engine: str, device: str, row: Rows, graph: SourceGraph) -> Canary:
    answer = tuple(float(value) for value in row)
    (said,) = _said(row[np.newaxis], graph.card)
    if not np.isfinite(row).all():
        raise EdgebertError(f"{engine} answers `{canary.file}` with {list(answer)!s:.200}", expected="finite logits")
    if said != canary.labels:
        first = min(canary.logits, default=engine)
        known = canary.logits.get(first, answer)
        raise EdgebertError(
            f"engines disagree on `{canary.file}`: {first} says {spoken(canary.labels)} "
            f"({_telling(known, graph.card)}), {engine} says {spoken(said)} ({_telling(answer, graph.card)})",
            expected="the same decision from every engine on every canary",
            hint="`--canary DIR` with clearer images, or quantise with other images",
        )
    if engine in canary.logits:
        difference = float(np.abs(np.subtract(answer, canary.logits[engine])).max())
        if difference > canary.tolerance[engine]:
            raise EdgebertError(
                f"the compiled form answers `{canary.file}` differently than the portable graph in {engine}: "
                f"a logit differs by {difference:.3g}",
                expected=f"at most {canary.tolerance[engine]:.3g}",
            )
    return replace(
        canary,
        logits={**canary.logits, engine: answer},
        tolerance={**canary.tolerance, engine: tolerance_of(answer, graph.precision, device)},
    )


def _written(
    output: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    existing: Bundle | None,
    options: CompileOptions,
    verdict: Verdict | None,
    place: Place = HERE,
) -> CompileReport:
    """Write the bundle beside its name, and the page; open it as a user would, and let them have their names."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = replace(
        manifest,
        sizes={name: len(content) for name, content in files.items()},
        release=options.release or manifest.release,
        made_by=f"edgebert {edgebert.__version__}",
        recorded_with=recorded_with(manifest.card, hashes),
    )
    outputs = [Output(path=output, force=options.force or existing is not None, kind=BUNDLE_FOLDER)]
    page = None
    if options.report is not None and verdict is not None:
        page = page_of_verdict(verdict, _name(output))
        outputs.append(Output(path=options.report, force=options.force))
    with staged_together(*outputs) as (staging, *beside):
        if page is not None:
            beside[0].write_bytes(page)
        if existing is not None and read_bundle(output).digest != existing.digest:
            raise LockedError(f"`{output}` was changed by another process meanwhile", hint="try again")
        digest = write_bundle(staging, manifest, files)
        try:
            verified = tuple(form.target for form in manifest.forms if place.opens(staging, form.target))
        except RefusedBundleError as error:
            if isinstance(error.__cause__, OSError):
                raise CannotWriteError(f"cannot write `{output}`: what was written cannot be read: {error}") from error
            raise
    missing = sorted(set(options.targets) - set(verified))
    if (
        missing
    ):  # their devices were found at the start and their answers recorded just now, so that it is the fingerprint
        raise UnavailableError(
            f"the form for `{missing[0]}` does not fit the computer that it was made on",
            expected="a backend that tells the same version when it is asked and when it is loaded",
            hint="edgebert doctor",
        )
    for form in manifest.forms:
        notes = "".join(f"; {note}" for note in form.notes)
        off = f", without {', '.join(form.disabled_optimizers)}" if form.disabled_optimizers else ""
        bits = ", 7-bit weights" if form.weight_bits == 7 else ""
        precision = f"{form.precision(manifest.precision)}{bits}"
        _log.info("form `%s`: %s on %s, %s%s%s", form.target, form.backend, form.device, precision, off, notes)
    _log.info("`%s`: %d forms, %d canaries", output, len(manifest.forms), len(manifest.canaries))
    return CompileReport(
        path=output,
        digest=digest,
        precision=manifest.precision,
        size_bytes=sum(manifest.sizes.values()),
        forms=manifest.forms,
        added=options.targets,
        verified=verified,
        canaries=len(manifest.canaries),
        verdict="" if verdict is None else verdict.sentence,
    )


def _provenance(graph: SourceGraph, canary: str | None, *, added: bool) -> Provenance:
    source = "examples" if canary is None else "synthetic" if canary == "synthetic" else "folder"
    return Provenance(
        stage="compile",
        made_from={"graph": graph.sha256},
        options={"canary": f"{source} and synthetic" if added else source},
        versions={"edgebert": edgebert.__version__},
        parameters=graph.card.provenance.parameters,
        source=graph.card.provenance,
    )


def _said(rows: Rows, card: ModelCard) -> list[tuple[str, ...]]:
    """Return the class names that each row of logits says."""
    return [said_names(row, card.class_names) for row in decisions(rows, card.thresholds)]


def _warn_of_narrow_margins(canaries: Sequence[Canary], engine: str, rows: Rows, card: ModelCard) -> None:
    # Two logits decide between two classes, and each may move by the tolerance; one alone decides on a threshold.
    moves, what = (2, "above the next class") if card.task == "single-label" else (1, "from a threshold")
    for canary, gap in zip(canaries, margins(rows, card.thresholds), strict=True):
        if gap < moves * canary.tolerance[engine]:
            _log.warning(
                "`%s` is decided by a hair (%s, %.3g %s): another computer may decide otherwise and refuse the bundle; "
                "`--canary DIR` takes clearer images",
                canary.file,
                spoken(canary.labels),
                gap,
                what,
            )


def _name(output: Path) -> str:
    name = output.name.removesuffix(".edgebert") or output.name
    return "".join(char if char.isprintable() else "?" for char in name)  # a manifest holds no other ones


def _telling(answer: Sequence[float], card: ModelCard) -> str:
    """Return the two logits that tell most: the largest, or those nearest to their thresholds."""
    order = np.argsort(answer)[::-1]
    if card.thresholds:
        order = np.argsort(np.abs(np.subtract(answer, threshold_logits(card.thresholds))))
    return ", ".join(f"`{card.class_names[index]}` {answer[index]:.4g}" for index in order[:2])
