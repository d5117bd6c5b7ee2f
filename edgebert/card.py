"""What every artefact says of itself: class names, preprocessing, and where it came from.

A checkpoint keeps its card in `preprocessing.json`, a graph in its metadata, a bundle in its manifest.

>>> images = ImageSet.from_hashes(["ab" * 32])
>>> "ab" * 32 in images, "cd" * 32 in images
(True, False)
"""

from __future__ import annotations

import base64
import binascii
import bisect
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgebert._json import Fields, JsonObject, JsonValue, is_plain_text, shown
from edgebert.confidence import Confidence
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing

CARD_SCHEMA = "edgebert.card/1"
MAX_CLASSES = 100_000

# One class of each image, by the largest logit; or any number of them, each by its own threshold.
Task = Literal["single-label", "multi-label"]

# Six bytes of each image's pixel hash. A million training images against ten thousand test images meet by chance with
# probability 10^6 * 10^4 / 2^48 = 4e-5, and a card for them stays at 8 MB.
_PREFIX_BYTES = 6


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The images an artefact has seen, by the first bytes of their pixel hashes.

    Attributes:
        packed: the entries one behind the other, sorted, each once: a set of a million takes 6 MB and not 100.
    """

    packed: bytes = b""

    @classmethod
    def from_hashes(cls, hashes: Iterable[str]) -> ImageSet:
        """Make a set from SHA-256 hashes of decoded pixels (`edgebert.preprocess.pixel_sha256`)."""
        return cls(_packed({bytes.fromhex(sha256[: 2 * _PREFIX_BYTES]) for sha256 in hashes}))

    def __contains__(self, sha256: str) -> bool:
        wanted = bytes.fromhex(sha256[: 2 * _PREFIX_BYTES])
        at = bisect.bisect_left(range(len(self)), wanted, key=self._entry)
        return at < len(self) and self._entry(at) == wanted

    def __len__(self) -> int:
        return len(self.packed) // _PREFIX_BYTES

    def __or__(self, other: ImageSet) -> ImageSet:
        if not self.packed or not other.packed:
            return self if self.packed else other
        return ImageSet(_packed({each._entry(at) for each in (self, other) for at in range(len(each))}))

    def _entry(self, at: int) -> bytes:
        return self.packed[at * _PREFIX_BYTES : (at + 1) * _PREFIX_BYTES]

    def to_text(self) -> str:
        """Return the set as base64, sorted: equal sets give equal text."""
        return base64.b64encode(self.packed).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> ImageSet:
        """Read what `to_text` wrote.

        Raises:
            BadDataError: not base64, or no whole number of entries.
        """
        try:
            packed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadDataError(f"the list of seen images is not base64: {error}") from error
        if len(packed) % _PREFIX_BYTES:
            raise BadDataError(
                f"the list of seen images has {len(packed)} bytes", expected=f"a multiple of {_PREFIX_BYTES}"
            )
        return cls(_packed({packed[at : at + _PREFIX_BYTES] for at in range(0, len(packed), _PREFIX_BYTES)}))


def _packed(entries: Iterable[bytes]) -> bytes:
    return b"".join(sorted(entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How an artefact was made. Holds no time and no path: the same inputs give the same provenance.

    Attributes:
        stage: the command that made it: `train`, `distill`, `export`, `quantize`, `compile`, or `import` for a
            model that came from elsewhere.
        made_from: role -> SHA-256 of each input, such as `{"data": …, "teacher": …}`.
        options: the options in effect, derived values included.
        versions: package -> version of what did the work.
        metrics: what was measured while making it, such as `{"val_top1": 0.991}`.
        parameters: the number of weights of the model, where known.
        source: the provenance of the artefact it was made from, back to the first.
    """

    stage: str
    made_from: Mapping[str, str] = field(default_factory=dict)
    options: JsonObject = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    source: Provenance | None = None

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "stage": self.stage,
            "made_from": dict(self.made_from),
            "options": dict(self.options),
            "versions": dict(self.versions),
            "metrics": dict(self.metrics),
            "parameters": self.parameters,
            "source": self.source.to_json() if self.source else None,
        }

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str = "provenance") -> Provenance:
        """Read what `to_json` wrote.

        Raises:
            BadDataError: a field is missing or of another type.
        """
        fields = Fields(value, what=what)
        made_from, versions, metrics = (fields.fields(key) for key in ("made_from", "versions", "metrics"))
        return cls(
            stage=fields.text("stage"),
            made_from={role: made_from.text(role) for role in made_from.value},
            options=dict(fields.fields("options").value),
            versions={name: versions.text(name) for name in versions.value},
            metrics={name: metrics.number(name) for name in metrics.value},
            parameters=None if fields.value.get("parameters") is None else fields.integer("parameters"),
            source=None if fields.value.get("source") is None else cls.from_json(fields.value["source"], what=what),
        )

    def chain(self) -> tuple[Provenance, ...]:
        """Return this and all it was made from, the newest first."""
        return (self, *(self.source.chain() if self.source else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What an artefact says of itself.

    Attributes:
        class_names: in the order of the logits.
        preprocessing: how images become its input.
        provenance: where it came from.
        seen: every image used to train, select or calibrate it; `bench` refuses these.
        task: whether an image has one class, or any number of them.
        thresholds: of a multi-label model, one for each class, in (0, 1): the class is said where the sigmoid of its logit
            reaches it, whatever the temperature of `confidence`. Empty for a single-label model.
        confidence: how its scores are calibrated and when it abstains; None where nothing was fitted, as for an FP32 graph.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Provenance
    seen: ImageSet = ImageSet()
    task: Task = "single-label"
    thresholds: tuple[float, ...] = ()
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        if self.task not in get_args(Task):
            raise BadDataError(f"task `{self.task}`", expected=" or ".join(get_args(Task)))
        wanted = len(self.class_names) if self.task == "multi-label" else 0
        if len(self.thresholds) != wanted:
            raise BadDataError(f"{len(self.thresholds)} thresholds of a {self.task} model", expected=str(wanted))
        odd = next((threshold for threshold in self.thresholds if not 0 < threshold < 1), None)
        if odd is not None:
            raise BadDataError(f"a threshold is `{odd}`", expected="above 0 and below 1")
        if self.task == "multi-label" and self.confidence and self.confidence.abstain_below is not None:
            raise BadDataError(
                f"a multi-label model abstains below `{self.confidence.abstain_below}`",
                expected="a threshold for each class, and none for the image",
            )

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object; a single-label model has no thresholds, and not every model a confidence."""
        thresholds: JsonObject = {"thresholds": list(self.thresholds)} if self.task == "multi-label" else {}
        return {
            "schema": CARD_SCHEMA,
            "task": self.task,
            **thresholds,
            **({"confidence": self.confidence.to_json()} if self.confidence else {}),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "provenance": self.provenance.to_json(),
            "seen": self.seen.to_text(),
        }

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str) -> ModelCard:
        """Read what `to_json` wrote; unknown fields are left alone, an unknown schema is refused.

        Raises:
            BadDataError: a field is missing, of another type or impossible.
        """
        fields = Fields(value, what=what)
        if fields.text("schema") != CARD_SCHEMA:
            raise BadDataError(
                f"{what} has schema `{fields.text('schema')}`",
                expected=f"`{CARD_SCHEMA}`",
                hint="use the version of edgebert that made it, or a newer one",
            )
        task = fields.text("task")
        if task not in get_args(Task):
            raise BadDataError(f"{what} has task `{task}`", expected=" or ".join(get_args(Task)))
        return cls(
            task=task,  # type: ignore[arg-type]  # just checked
            thresholds=fields.numbers("thresholds") if task == "multi-label" else (),
            class_names=fields.texts("class_names"),
            preprocessing=Preprocessing.from_json(
                fields.fields("preprocessing").value, what=f"{what}, `preprocessing`"
            ),
            provenance=Provenance.from_json(fields.fields("provenance").value, what=f"{what}, `provenance`"),
            seen=ImageSet.from_text(fields.text("seen")),
            confidence=None
            if fields.value.get("confidence") is None
            else Confidence.from_json(fields.fields("confidence").value, what=f"{what}, `confidence`"),
        )


def check_class_names(names: tuple[str, ...]) -> None:
    """Raise `BadDataError` unless there are at least two names, all different, none empty, none with control characters."""
    if len(names) < 2:
        raise BadDataError(f"{len(names)} class(es): {', '.join(names) or 'none'}", expected="at least two classes")
    if len(names) > MAX_CLASSES:
        raise BadDataError(f"{len(names):,} classes", expected=f"at most {MAX_CLASSES:,}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise BadDataError(f"class name `{shown(twice[0])}` appears more than once")
    if not all(name.strip() for name in names):
        raise BadDataError("a class name is empty")
    odd = next((name for name in names if not is_plain_text(name)), None)
    if odd is not None:
        raise BadDataError(f"a class is called `{shown(odd)}`", expected="a name without control characters")


def hash_of_hashes(hashes: Iterable[str]) -> str:
    """Return one SHA-256 for an ordered list of hashes, that of the lines joined by line feeds."""
    digest = hashlib.sha256()
    for number, entry in enumerate(hashes):  # one by one: a million of them joined would be a hundred megabytes
        digest.update(f"\n{entry}".encode() if number else entry.encode())
    return digest.hexdigest()
