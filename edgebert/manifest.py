"""What a bundle says of itself: `manifest.json`, schema `edgebert.bundle/1`.

Everything here is read before any model parser runs, and everything that can be checked without one is checked here.

>>> engine_name("openvino", "CPU"), engine_name("openvino", "GPU")
('openvino', 'openvino:GPU')
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from edgebert._json import Fields, JsonObject, JsonValue, depth_of, dump_json, shown
from edgebert.card import ModelCard
from edgebert.decisions import decisions, said_names, spoken
from edgebert.errors import BadDataError
from edgebert.examples import labels_from_json, labels_to_json
from edgebert.fingerprint import Fingerprint
from edgebert.target import FORM_TARGETS, Backend

BUNDLE_SCHEMA = "edgebert.bundle/1"
GRAPH_FILE = "model.onnx"
MIN_CANARIES = 3
MAX_CANARIES = 8
WEIGHT_BITS = (8, 7)
MAX_RELEASE = (1 << 53) - 1  # the largest integer that JSON means the same in every language (RFC 8259, section 6)
MAX_FORMS = 16
MAX_DEPTH = 16  # of objects and lists in each other; each stage of the provenance is counted on its own

# What a bundle may ask of its readers (`Manifest.requires`) and this version knows.
FEATURES: frozenset[str] = frozenset()

# The widest tolerance that is believed, as a share of a row's range: `tolerance_of` gives 10 % at most, and a self-test that lets
# every logit move by a quarter tests little.
_WIDEST_TOLERANCE = 0.25

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleForm:
    """What was compiled for one target.

    Attributes:
        target: the name that `--target` took.
        backend: the runner that executes it.
        device: the backend's own name of the device.
        files: names inside the bundle; the runner sees their last parts, such as `model.xml` and `model.bin`.
        machine: the processor architecture it fits, such as `x86_64`; None where it fits any. All that edgebert 0.1.0 asks, and
            the same as in `fingerprint` where there is one.
        disabled_optimizers: graph optimisations its backend must not do.
        versions: package -> version of what made it.
        notes: what the compiler said of it.
        weight_bits: of an INT8 form: 8 for weights in [-127, 127], 7 for [-63, 63], which no CPU's int8 products saturate
            with; None of an FP32 form.
        fingerprint: what it asks of a computer; None in a bundle of edgebert 0.1.0, which asks for `machine` alone.
    """

    target: str
    backend: Backend
    device: str
    files: tuple[str, ...]
    machine: str | None = None
    disabled_optimizers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weight_bits: int | None = None
    fingerprint: Fingerprint | None = None

    @property
    def engine(self) -> str:
        """The key of this form's logits in `Canary.logits`."""
        return engine_name(self.backend, self.device, beside=_beside(self.target))

    def precision(self, shipped: Precision) -> Precision:
        """Return the precision that it is measured as, in a bundle of this one: FP16 counts as the float that it was made of."""
        beside = _beside(self.target)
        return shipped if not beside else "int8" if beside == "int8" else "fp32"

    @property
    def conditions(self) -> Fingerprint:
        """What it asks of a computer, whichever version wrote it."""
        return Fingerprint(machine=self.machine) if self.fingerprint is None else self.fingerprint

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "target": self.target,
            "backend": self.backend,
            "device": self.device,
            "files": list(self.files),
            "machine": self.machine,
            "disabled_optimizers": list(self.disabled_optimizers),
            "versions": dict(self.versions),
            "notes": list(self.notes),
            **({} if self.weight_bits is None else {"weight_bits": self.weight_bits}),
            **({} if self.fingerprint is None else {"fingerprint": self.fingerprint.to_json()}),
        }

    @classmethod
    def from_fields(cls, fields: Fields, precision: Precision) -> BundleForm:
        """Read what `to_json` wrote; an INT8 form that says nothing of its weights has 8 bits.

        Raises:
            BadDataError: a field is missing, of another type or impossible.
        """
        backend = fields.text("backend")
        if backend not in get_args(Backend):
            raise BadDataError(f"{fields.what} has backend `{backend}`", expected=", ".join(get_args(Backend)))
        if (beside := _beside(fields.text("target"))) != "":
            precision = "int8" if beside == "int8" else "fp32"
        bits = 8 if precision == "int8" else None
        if "weight_bits" in fields.value:
            bits = fields.integer("weight_bits")
            if precision != "int8" or bits not in WEIGHT_BITS:
                raise BadDataError(
                    f"{fields.what} has {bits} bits in its weights, and it is {precision}",
                    expected="8 or 7 of an INT8 bundle, and none of an FP32 one",
                )
        machine, fingerprint = fields.optional_text("machine"), None
        if "fingerprint" in fields.value:
            fingerprint = Fingerprint.from_fields(fields.fields("fingerprint"))
            if fingerprint.machine != machine:
                raise BadDataError(
                    f"{fields.what} has machine `{machine}`, and `{fingerprint.machine}` in its fingerprint",
                    expected="the same in both",
                )
        versions = fields.fields("versions")
        return cls(
            target=fields.text("target"),
            backend=backend,  # type: ignore[arg-type]  # just checked
            device=fields.text("device"),
            files=fields.texts("files"),
            machine=machine,
            disabled_optimizers=fields.texts("disabled_optimizers"),
            versions={name: versions.text(name) for name in versions.value},
            notes=fields.texts("notes"),
            weight_bits=bits,
            fingerprint=fingerprint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """An image whose answer is known: the self-test of a bundle.

    In JSON each logit stands under its class name, so that class names which were put into another order no longer fit
    what the model answers.

    Attributes:
        file: a PNG inside the bundle.
        labels: the class names that the model says: one, or any number of them where its card has thresholds. Not always
            the true ones: canaries say that the model still answers as it did, not that it was right.
        input_sha256: SHA-256 of the uint8 tensor that the preprocessing makes of it (`tensor_sha256`).
        logits: engine (`engine_name`) -> what it answered when the bundle was made, in the order of the class names.
        tolerance: engine -> the largest difference of a logit that is no fault (`tolerance_of`).
    """

    file: str
    labels: tuple[str, ...]
    input_sha256: str
    logits: Mapping[str, tuple[float, ...]]
    tolerance: Mapping[str, float]

    def to_json(self, class_names: tuple[str, ...]) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "file": self.file,
            **labels_to_json(self.labels),
            "input_sha256": self.input_sha256,
            "logits": {engine: dict(zip(class_names, row, strict=True)) for engine, row in self.logits.items()},
            "tolerance": dict(self.tolerance),
        }

    @classmethod
    def from_fields(cls, fields: Fields, card: ModelCard) -> Canary:
        """Read what `to_json` wrote; the class names and thresholds are those of `card`.

        Raises:
            BadDataError: a field is missing or of another type, or the class names do not fit the logits.
        """
        class_names = card.class_names
        all_logits, tolerance = fields.fields("logits"), fields.fields("tolerance")
        canary = cls(
            file=fields.text("file"),
            labels=labels_from_json(fields),
            input_sha256=fields.text("input_sha256"),
            logits={engine: _row(all_logits.fields(engine), class_names) for engine in all_logits.value},
            tolerance={engine: tolerance.number(engine) for engine in tolerance.value},
        )
        if not canary.logits or set(canary.logits) != set(canary.tolerance):
            raise BadDataError(f"{fields.what} has logits of {sorted(canary.logits)}", expected="each with a tolerance")
        unknown = next((label for label in canary.labels if label not in class_names), None)
        if unknown is not None:
            raise BadDataError(f"{fields.what} has label `{unknown}`", expected=_listed(class_names))
        for engine, row in canary.logits.items():
            said = said_names(decisions(np.array([row]), card.thresholds)[0], class_names)
            widest = max(_WIDEST_TOLERANCE * (max(row) - min(row)), 1e-4)
            if said != canary.labels or not 0 < canary.tolerance[engine] <= widest:
                raise BadDataError(
                    f"{fields.what} has label {spoken(canary.labels)}, but its logits of `{engine}` say {spoken(said)} "
                    f"(tolerance {canary.tolerance[engine]:g})",
                    expected=f"the label that the logits give, and a tolerance above 0 and at most {widest:.3g}",
                )
        return canary


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`manifest.json`.

    Attributes:
        name: of the bundle's folder when it was made, without `.edgebert`.
        card: class names, preprocessing, provenance.
        precision: of the graph.
        made_from: SHA-256 of the graph file that was compiled; the bundle's own graph lacks its example images.
        forms: in the order in which they are tried.
        canaries: at least three.
        preprocessing_sha256: of the rule in effect when the canaries were recorded.
        sizes: bytes of every file but `manifest.json`, `SHA256SUMS` and its signature.
        measured: numbers measured on this bundle, by whom they were measured.
        release: orders the bundles of a product: a device refuses to go back to a lower one; 0 is not numbered.
        requires: features that a reader must know (`FEATURES`), or else refuse the bundle.
        recorded_with: what the canaries were answered with -> its SHA-256 (`recorded_with`); empty in bundles that were made
            before this was written.
        made_by: the program that wrote it, such as `edgebert 0.1.0`; may be empty.
        unknown_forms: forms for targets that a newer version knows; never run, and kept.
        extra: fields that this version does not know, wherever they stood; kept, and written again (`_beyond`).
    """

    name: str
    card: ModelCard
    precision: Precision
    made_from: str
    forms: tuple[BundleForm, ...]
    canaries: tuple[Canary, ...]
    preprocessing_sha256: str
    sizes: Mapping[str, int]
    measured: JsonObject = field(default_factory=dict)
    release: int = 0
    requires: tuple[str, ...] = ()
    recorded_with: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""
    unknown_forms: tuple[JsonObject, ...] = ()
    extra: JsonObject = field(default_factory=dict)

    def form(self, target: str) -> BundleForm | None:
        """Return the form of this target, or None."""
        return next((form for form in self.forms if form.target == target), None)

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        known = _merged(self._known_to_json(), self.extra)
        assert isinstance(known, dict)
        forms = known["forms"]
        assert isinstance(forms, list)
        return {**known, "forms": [*forms, *self.unknown_forms]}

    def _known_to_json(self) -> JsonObject:
        return {
            "schema": BUNDLE_SCHEMA,
            "name": self.name,
            "release": self.release,
            "made_by": self.made_by,
            "requires": list(self.requires),
            "card": self.card.to_json(),
            "precision": self.precision,
            "graph": GRAPH_FILE,
            "made_from": self.made_from,
            "forms": [form.to_json() for form in self.forms],
            "canaries": [canary.to_json(self.card.class_names) for canary in self.canaries],
            "preprocessing_sha256": self.preprocessing_sha256,
            "recorded_with": dict(self.recorded_with),
            "sizes": dict(self.sizes),
            "measured": dict(self.measured),
        }

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str) -> Manifest:
        """Read what `to_json` wrote, or a newer version of the same major did: what is unknown is kept and left alone.

        Raises:
            BadDataError: another major version of the schema, or a feature that is not known; a field that is missing, of another
                type or impossible; or parts that do not fit together.
        """
        fields = Fields(value, what=what)
        _check_schema(fields.text("schema"), fields.value, what)
        requires = fields.texts("requires") if "requires" in fields.value else ()
        _check_features(requires, fields.value, what)
        _check_depth(fields.value, what)
        card = ModelCard.from_json(fields.value.get("card"), what=f"{what}, `card`")
        precision = fields.text("precision")
        if precision not in get_args(Precision):
            raise BadDataError(f"{what} has precision `{precision}`", expected=", ".join(get_args(Precision)))
        known_forms, unknown_forms = _told_apart(fields, what)
        canaries = fields.list_of_fields("canaries")
        _check_count(len(canaries), MIN_CANARIES, MAX_CANARIES, "canaries", what)
        sizes, recorded = fields.fields("sizes"), fields.value.get("recorded_with", {})
        recorded_fields = Fields(recorded, what=f"{what}, `recorded_with`")
        manifest = cls(
            name=fields.text("name"),
            card=card,
            precision=precision,  # type: ignore[arg-type]  # just checked
            made_from=fields.text("made_from"),
            forms=tuple(
                BundleForm.from_fields(entry, precision)  # type: ignore[arg-type]  # just checked
                for entry in known_forms
            ),
            canaries=tuple(Canary.from_fields(entry, card) for entry in canaries),
            preprocessing_sha256=fields.text("preprocessing_sha256"),
            sizes={name: _size(sizes, name) for name in sizes.value},
            measured=dict(fields.fields("measured").value),
            release=_release(fields),
            requires=requires,
            recorded_with={name: recorded_fields.text(name) for name in recorded_fields.value},
            made_by=fields.text("made_by") if "made_by" in fields.value else "",
            unknown_forms=tuple(entry.value for entry in unknown_forms),
        )
        _check_parts(manifest, what)
        raw = {**fields.value, "forms": [entry.value for entry in known_forms]}
        extra = _beyond(raw, manifest._known_to_json())
        return replace(manifest, extra=extra if isinstance(extra, Mapping) else {})


def engine_name(backend: str, device: str, *, beside: str = "") -> str:
    """Return the name under which canary logits are kept: the backend, and its device where that is not the CPU.

    Args:
        backend: of the form.
        device: of the form.
        beside: precision of what is kept beside what ships, whose answers are others.
    """
    return (backend if device == "CPU" else f"{backend}:{device}") + (f":{beside}" if beside else "")


def _beside(target: str) -> str:
    return FORM_TARGETS[target].beside if target in FORM_TARGETS else ""


def tolerance_of(logits: tuple[float, ...], precision: Precision, device: str) -> float:
    """Return the largest difference of a logit that another computer may show, as a share of the range of these.

    * FP32 on a CPU: 0.1 %. Only the order of additions differs; AVX2 against AVX-512 changed logits by 1e-7 of the range.
    * FP32 elsewhere: 2 %, for devices that compute in 16 bits.
    * INT8: 10 %. Processors without VNNI saturate where others do not: the same INT8 student of the digits in OpenVINO
      with `ONEDNN_MAX_CPU_ISA=AVX2` moved a logit by 4.8 % of the range, and decided alike.

    Another class order, another model or zeroed weights move logits by much more.
    """
    share = 0.1 if precision == "int8" else 0.001 if device == "CPU" else 0.02
    return max(share * (max(logits) - min(logits)), 1e-5)


def recorded_with(card: ModelCard, files_sha256: Mapping[str, str]) -> dict[str, str]:
    """Return what canaries are answered with, each by its SHA-256: whatever of it changes later, their answers are of something else.

    Args:
        card: class names in their order; task, thresholds and confidence; preprocessing.
        files_sha256: of every file but `manifest.json`: graph, forms, canaries.
    """
    facts = card.to_json()
    decisions_made = {name: facts.get(name) for name in ("task", "thresholds", "confidence")}
    return {
        "class_names": _sha256(facts["class_names"]),
        "decisions": _sha256(decisions_made),
        "preprocessing": card.preprocessing.sha256(),
        **files_sha256,
    }


def _sha256(value: JsonValue) -> str:
    return hashlib.sha256(dump_json(value).encode()).hexdigest()


def _check_schema(schema: str, value: JsonObject, what: str) -> None:
    found = re.fullmatch(r"edgebert\.bundle/(\d{1,9})", schema, re.ASCII)
    if found is None:
        raise BadDataError(f"{what} has schema `{shown(schema)}`", expected=f"`{BUNDLE_SCHEMA}`")
    if schema != BUNDLE_SCHEMA:
        raise BadDataError(
            f"{what} has schema `{schema}`{_maker(value)}",
            expected=f"`{BUNDLE_SCHEMA}`, which this version reads",
            hint="use the version of edgebert that made it, or compile the graph again",
        )


def _check_features(requires: tuple[str, ...], value: JsonObject, what: str) -> None:
    unknown = [name for name in requires if name not in FEATURES]
    if unknown:
        raise BadDataError(
            f"{what} requires `{shown(unknown[0])}`{_maker(value)}",
            expected=", ".join(sorted(FEATURES)) or "nothing that this version would have to know",
            hint="use the version of edgebert that made it, or compile the graph again",
        )


def _maker(value: JsonObject) -> str:
    """Return who made it as part of a message, where it says so."""
    maker = value.get("made_by")
    return f" and was made by `{shown(maker)}`" if isinstance(maker, str) and maker else ""


def _check_depth(value: JsonObject, what: str) -> None:
    """Refuse deep nesting, each stage of the provenance on its own: a student that is distilled again and again has many."""
    card = value.get("card")
    stages: list[JsonValue] = [{**value, "card": {**card, "provenance": None}} if isinstance(card, Mapping) else value]
    stage = card.get("provenance") if isinstance(card, Mapping) else None
    while isinstance(stage, Mapping):
        stages.append({**stage, "source": None})
        stage = stage.get("source")
    if max(map(depth_of, stages)) > MAX_DEPTH:
        raise BadDataError(f"{what} is nested deeper than {MAX_DEPTH} levels")


def _told_apart(fields: Fields, what: str) -> tuple[list[Fields], list[Fields]]:
    """Return the forms for targets that are known here, and those for others."""
    forms = fields.list_of_fields("forms")
    _check_count(len(forms), 1, MAX_FORMS, "forms", what)
    known = [form for form in forms if form.text("target") in FORM_TARGETS]
    return known, [form for form in forms if form.text("target") not in FORM_TARGETS]


def _check_count(count: int, low: int, high: int, of: str, what: str) -> None:
    if not low <= count <= high:
        raise BadDataError(f"{what} has {count} {of}", expected=f"{low} to {high}")


def _release(fields: Fields) -> int:
    release = fields.integer("release") if "release" in fields.value else 0
    if not 0 <= release <= MAX_RELEASE:
        raise BadDataError(f"{fields.what} has release `{release}`", expected=f"0 to {MAX_RELEASE}")
    return release


def _size(sizes: Fields, name: str) -> int:
    size = sizes.integer(name)
    if size < 0:
        raise BadDataError(f"{sizes.what} says `{shown(name)}` has {size} bytes", expected="0 or more")
    return size


def _beyond(raw: JsonValue, known: JsonValue) -> JsonValue:
    """Return what `raw` has and `known` has not, as objects in objects; entries of a list by their place.

    >>> _beyond({"a": 1, "b": {"c": 2, "d": 3}, "e": [{"f": 4}]}, {"a": 1, "b": {"c": 2}, "e": [{}]})
    {'b': {'d': 3}, 'e': {'0': {'f': 4}}}
    """
    if raw == known:
        return {}
    if isinstance(raw, (list, tuple)) and isinstance(known, (list, tuple)) and len(raw) == len(known):
        raw, known = ({str(place): entry for place, entry in enumerate(entries)} for entries in (raw, known))
    if not isinstance(raw, Mapping) or not isinstance(known, Mapping):
        return {}
    new: dict[str, JsonValue] = {}
    for name, entry in raw.items():
        extra = _beyond(entry, known[name]) if name in known else entry
        if name not in known or extra:
            new[name] = extra
    return new


def _merged(known: JsonValue, extra: JsonValue) -> JsonValue:
    """Return `known` with what `_beyond` found.

    >>> _merged({"a": 1, "e": [{}, {}]}, {"b": 2, "e": {"0": {"f": 4}}})
    {'a': 1, 'e': [{'f': 4}, {}], 'b': 2}
    """
    if not isinstance(extra, Mapping):
        return known
    if isinstance(known, (list, tuple)):
        return [_merged(entry, extra.get(str(place))) for place, entry in enumerate(known)]
    if not isinstance(known, Mapping):
        return known
    new = {name: entry for name, entry in extra.items() if name not in known}
    return {**{name: _merged(entry, extra.get(name)) for name, entry in known.items()}, **new}


def _check_parts(manifest: Manifest, what: str) -> None:
    """Refuse parts that contradict each other."""
    if len({frozenset(canary.logits) for canary in manifest.canaries}) > 1:
        raise BadDataError(f"{what} has canaries with logits of different engines", expected="the same ones in each")
    targets = [form.target for form in manifest.forms]
    if len(set(targets)) < len(targets):
        raise BadDataError(f"{what} has forms for {targets}", expected="each target once")
    for form in manifest.forms:
        target = FORM_TARGETS[form.target]
        if (target.backend, target.device) != (form.backend, form.device):
            raise BadDataError(
                f"{what} has a form for target `{form.target:.80}` on `{form.backend}`, `{form.device:.80}`",
                expected="a target of `edgebert targets` on its own backend and device",
            )
        if not all(name.isidentifier() for name in form.disabled_optimizers):
            raise BadDataError(f"{what} disables `{form.disabled_optimizers}`", expected="names of graph optimisations")
        if form.engine not in manifest.canaries[0].logits:
            raise BadDataError(f"{what} has no canary logits of `{form.engine}`", expected="logits for every form")
    used = [GRAPH_FILE, *(canary.file for canary in manifest.canaries)]
    used += [name for form in manifest.forms for name in form.files]
    used += [name for form in manifest.unknown_forms for name in Fields(form, what=what).texts("files")]
    if set(used) != set(manifest.sizes):
        odd = sorted(set(used) ^ set(manifest.sizes))
        raise BadDataError(
            f"{what} lists `{shown(odd[0])}` in only one of its two places", expected="sizes of every file"
        )


def _row(fields: Fields, class_names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the logits in the order of the class names."""
    odd = sorted(set(fields.value) ^ set(class_names))
    if odd:
        raise BadDataError(
            f"{fields.what}: class `{odd[0]:.80}` is in only one of the class list ({len(class_names)} names) and the "
            f"canary's logits ({len(fields.value)})",
            expected="one logit per class name",
        )
    return tuple(fields.number(name) for name in class_names)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
