"""Looking into an artefact and checking it: checkpoint, graph, bundle or result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebert._files import read_input, sha256_of_path
from edgebert._json import JsonObject, JsonValue
from edgebert.archive import ARCHIVE_SUFFIX
from edgebert.bench.graph_card import graph_card
from edgebert.bench.result import read_result
from edgebert.bundle import read_bundle
from edgebert.card import ModelCard, Provenance
from edgebert.card_io import read_checkpoint_card
from edgebert.errors import BadDataError, EdgebertError, InputNotFoundError, UsageError
from edgebert.extras import require
from edgebert.install import installation_of, verify_installation
from edgebert.manifest import BundleForm
from edgebert.runtime.choice import misfits_of
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.instructions import int8_instructions, saturates
from edgebert.signing import SignaturePolicy, signature_text

_log = logging.getLogger("edgebert")

Kind = Literal["checkpoint", "graph", "bundle", "result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an artefact says of itself.

    Attributes:
        kind: what it is.
        path: where it is.
        sha256: of the file, or of a folder's names and contents.
        size_bytes: of the file, or of all files of the folder.
        card: class names, preprocessing and provenance; None for a result.
        details: what only this kind has.
    """

    kind: Kind
    path: Path
    sha256: str
    size_bytes: int
    card: ModelCard | None
    details: JsonObject

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object; of the images it has seen, only how many."""
        card: dict[str, JsonValue] = dict(self.card.to_json()) if self.card else {}
        if self.card:
            card["seen"] = len(self.card.seen)
        return {
            "kind": self.kind,
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            **({"card": card} if card else {}),
            **self.details,
        }

    def to_text(self) -> str:
        """Return the description for a terminal."""
        facts = [("kind", self.kind), ("sha256", self.sha256), ("size", f"{self.size_bytes:,} bytes")]
        if self.card:
            facts += _card_facts(self.card)
        facts += [(name, _short(value)) for name, value in self.details.items()]
        width = max(len(name) for name, _ in facts)
        return "\n".join([str(self.path), *(f"  {name:<{width}}  {value}" for name, value in facts)])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileAnswer:
    """What one image file was classified as; `error` says why where it was not.

    Attributes:
        file: as it was named.
        label: the class name, the surest one of a multi-label model, or None.
        labels: all that is said: the one class, or any number of them of a multi-label model; None where there is no answer.
        score: the probability of `label`, in [0, 1], or None.
        abstained: whether the score is too low for the bundle to answer, or None.
        error: what was wrong with the file, or None.
        exit_code: 0, or that of the error.
    """

    file: str
    label: str | None
    labels: tuple[str, ...] | None
    score: float | None
    abstained: bool | None
    error: str | None
    exit_code: int


def kind_of(path: Path) -> Kind:
    """Tell what a path holds: a folder by its files, a file by its suffix.

    Raises:
        InputNotFoundError: there is nothing at this path.
        BadDataError: it is no artefact of edgebert.
    """
    try:
        path.stat()
    except (OSError, ValueError) as error:  # also a name that is too long, or holds a NUL
        raise InputNotFoundError(f"no such file or folder: `{path}`", hint="edgebert inspect ARTEFACT") from error
    if path.is_dir():
        if (path / "manifest.json").exists() or (path / "SHA256SUMS").exists() or path.suffix == ".edgebert":
            return "bundle"
        if (path / "config.json").exists():
            return "checkpoint"
    elif path.suffix == ARCHIVE_SUFFIX:
        return "bundle"
    elif path.suffix == ".onnx":
        return "graph"
    elif path.suffix == ".json":
        return "result"
    raise BadDataError(
        f"`{path}` is no artefact",
        expected="a checkpoint folder (config.json), a graph (.onnx), a bundle (manifest.json, or a .zip of one) or a result (.json)",
    )


def describe(path: Path) -> Description:
    """Read an artefact's card and facts; a bundle's hashes are verified on the way.

    Raises:
        InputNotFoundError: there is nothing at this path.
        BadDataError: it is no artefact, or a malformed one.
        RefusedError: a bundle was changed, or a result's samples.
    """
    kind = kind_of(path)
    card, details = _READERS[kind](path)
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    return Description(
        kind=kind,
        path=path,
        sha256=sha256_of_path(path),
        size_bytes=sum(file.stat().st_size for file in files),
        card=card,
        details=details,
    )


def verify(path: Path, signers: SignaturePolicy | None = None) -> list[str]:
    """Check an artefact as its users would meet it, and return one line for each thing that held.

    A bundle: who signed it, hashes, manifest, and every canary on every form that can run here. An installation: its
    signature policy, and its current bundle. A graph: its structure, its card, and
    the INT8 rules where it is quantised. A checkpoint: it loads, and its weights are finite. A result: its schema, and
    that its samples are the ones it was made from.

    Args:
        path: the artefact.
        signers: whose signature a bundle must have; None only says which key signed it, if one did.

    Raises:
        EdgebertError: the first thing that did not hold.
    """
    installation = installation_of(path)
    if installation is not None:
        folder, which = installation
        bundle, held = verify_installation(folder, signers, which=which)
        return held + _verify_bundle(bundle)
    kind = kind_of(path)
    if kind == "bundle":
        return [signature_text(path, signers), *_VERIFIERS[kind](path)]
    if signers is not None:
        raise UsageError(f"`{path}` is a {kind}, which carries no signature", expected="a bundle")
    return _VERIFIERS[kind](path)


def predict_files(
    bundle: Path, files: Sequence[Path], *, target: str | None = None, threads: int = 0
) -> list[FileAnswer]:
    """Classify image files with a bundle; a file that cannot be read or decoded does not stop the others.

    Raises:
        EdgebertError: the bundle cannot be opened, or the model's answer is not finite.
    """
    with Classifier(bundle, target=target, threads=threads) as classifier:
        return [_answer(classifier, file) for file in files]


def text_of_answers(answers: Sequence[FileAnswer]) -> str:
    """Return one line for each file: its name, what is said of it, the score, and whether that is too low to answer."""
    return "\n".join(
        f"{answer.file}\t{'|'.join(answer.labels or ()) or '-'}\t{'-' if answer.score is None else format(answer.score, '.4f')}"
        + ("\tabstained" if answer.abstained else "")
        for answer in answers
    )


def _answer(classifier: Classifier, file: Path) -> FileAnswer:
    try:
        prediction = classifier.predict(file)
    except (BadDataError, InputNotFoundError) as error:
        _log.warning("`%s`: %s", file, error.what)
        return FileAnswer(
            file=str(file),
            label=None,
            labels=None,
            score=None,
            abstained=None,
            error=error.what,
            exit_code=error.exit_code,
        )
    return FileAnswer(
        file=str(file),
        label=prediction.label,
        labels=prediction.labels,
        score=prediction.score,
        abstained=prediction.abstained,
        error=None,
        exit_code=0,
    )


def _read_checkpoint(path: Path) -> tuple[ModelCard, JsonObject]:
    if (path / "preprocessing.json").exists():
        return read_checkpoint_card(path), {}
    # A Hugging Face folder from elsewhere has no card of its own; loading it makes one.
    require("torch")
    from edgebert.models.checkpoint import load_checkpoint

    return load_checkpoint(path).card, {}


def _read_graph(path: Path) -> tuple[ModelCard, JsonObject]:
    return graph_card(read_input(path, what="the graph"), what=f"`{path}`"), {}


def _read_bundle(path: Path) -> tuple[ModelCard, JsonObject]:
    bundle = read_bundle(path)
    manifest = bundle.manifest
    return manifest.card, {
        "digest": bundle.digest,
        "release": manifest.release,
        "signed": bundle.signature is not None,
        "made_by": manifest.made_by,
        "precision": manifest.precision,
        "forms": [form.to_json() for form in manifest.forms],
        "made_for": {form.target: form.conditions.to_text() for form in manifest.forms},
        "fits_here": {form.target: _fit(form) for form in manifest.forms},
        "canaries": {canary.file: "|".join(canary.labels) for canary in manifest.canaries},
    }


def _fit(form: BundleForm) -> str:
    """Return `yes`, or why a form does not fit this computer."""
    reasons = misfits_of(form)
    return f"no: {'; '.join(reasons)}" if reasons else "yes"


def _read_result(path: Path) -> tuple[None, JsonObject]:
    result = read_result(path)
    return None, {
        "created": result.created,
        "valid": result.status.valid,
        "arms": [arm.id for arm in result.arms],
        "partial": result.status.partial,
        "dataset": result.dataset.name if result.dataset is not None else None,
    }


def _verify_checkpoint(path: Path) -> list[str]:
    require("torch")
    from edgebert.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    return [f"loads, all weights are finite, {len(checkpoint.card.class_names)} classes (sha256 {checkpoint.sha256})"]


def _verify_graph(path: Path) -> list[str]:
    onnx = require("onnx")
    from edgebert.export.metadata import card_of_model, check_interface, parse_graph
    from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts

    model = parse_graph(path)
    card = card_of_model(model, what=f"`{path}`")
    check_interface(model, card, what=f"`{path}`")
    onnx.checker.check_model(model, full_check=True)
    held = [f"structure and card hold: uint8 images in, {len(card.class_names)} logits out"]
    if graph_precision(model) == "int8":
        check_int8_graph(model)
        counts = ", ".join(f"{count} {name}" for name, count in qdq_counts(model).items())
        held.append(f"INT8 rules hold: symmetric, zero point 0 ({counts})")
    return held


def _verify_bundle(path: Path) -> list[str]:
    bundle = read_bundle(path)
    held = [f"{len(bundle.files)} files match SHA256SUMS (digest {bundle.digest})"]
    answered = 0
    for form in bundle.manifest.forms:
        try:
            with Classifier(path, target=form.target):
                held.append(f"`{form.target}` answers all {len(bundle.manifest.canaries)} canaries")
                answered += 1
            if saturates(form.weight_bits, form.backend, form.device):
                held.append(
                    f"`{form.target}` has 8-bit weights, which saturate here ({int8_instructions(form.backend).to_text()}): "
                    "its accuracy is not what was measured; `edgebert compile --weights 7-bit` mends it"
                )
        except EdgebertError as error:
            if error.exit_code != 69:  # a form for another device is no fault of the bundle
                raise
            held.append(f"`{form.target}` cannot run here: {error.what}")
    if not answered:
        with Classifier(path) as classifier:
            held.append(f"the portable graph answers all canaries in {classifier.backend}")
    return held


def _verify_result(path: Path) -> list[str]:
    from edgebert.bench.comparison.validation import check_result

    return list(check_result(path))


_READERS: dict[Kind, Callable[[Path], tuple[ModelCard | None, JsonObject]]] = {
    "checkpoint": _read_checkpoint,
    "graph": _read_graph,
    "bundle": _read_bundle,
    "result": _read_result,
}
_VERIFIERS: dict[Kind, Callable[[Path], list[str]]] = {
    "checkpoint": _verify_checkpoint,
    "graph": _verify_graph,
    "bundle": _verify_bundle,
    "result": _verify_result,
}


def _card_facts(card: ModelCard) -> list[tuple[str, str]]:
    rule = card.preprocessing
    cut = f", shortest edge to {rule.shortest_edge}, centre" if rule.resize == "crop" else ""
    facts = [
        ("task", card.task + (f", thresholds {_listed(_fixed(card.thresholds))}" if card.thresholds else "")),
        ("classes", f"{len(card.class_names)}: {_listed(card.class_names)}"),
        ("input", f"{rule.height} x {rule.width} px RGB, {rule.resize}{cut}, {rule.interpolation}"),
        ("normalisation", f"mean {_numbers(rule.mean)}, std {_numbers(rule.std)}, {rule.channel_order} (in the graph)"),
        ("has seen", f"{len(card.seen):,} images, which `bench` refuses"),
        *([("confidence", card.confidence.to_text())] if card.confidence else []),
    ]
    return facts + [
        ("made by" if at == 0 else "from", _stage(entry)) for at, entry in enumerate(card.provenance.chain())
    ]


def _stage(provenance: Provenance) -> str:
    made_from = ", ".join(f"{role} {sha256[:12]}" for role, sha256 in provenance.made_from.items())
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in provenance.metrics.items())
    weights = f"{provenance.parameters:,} parameters" if provenance.parameters else ""
    return "; ".join(part for part in (provenance.stage, made_from, weights, metrics) if part)


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _fixed(values: Sequence[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _short(value: JsonValue) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(entry) for entry in value)
    if isinstance(value, dict):
        named = value.get("target")
        return (
            f"{named} ({value['backend']})" if named else "; ".join(f"{key}: {entry}" for key, entry in value.items())
        )
    return str(value)
