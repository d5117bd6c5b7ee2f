"""What turns a quantised model's logits into scores that can be believed, and from which score on it abstains.

The record is fitted on validation images when a graph is quantised (`edgebert.calibration.confidence`), travels in the card
of the graph and the bundle, and is applied by the runtime.

>>> record = Confidence(
...     temperature=1.25, ece_before=0.031, ece_after=0.012, images=2000, abstain_below=0.87, wanted_precision=0.99,
...     precision=0.989, precision_low=0.983, coverage=0.93
... )
>>> record.abstains(0.6), record.abstains(0.87)
(True, False)
>>> print(record.to_text())
temperature 1.25, expected calibration error 0.031 before, 0.012 after, on 2,000 validation images; abstains below 0.87: precision 98.9 % (at least 98.3 %) on 93.0 % of them
"""

from __future__ import annotations

from dataclasses import dataclass

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError

# A model that wants more than a twentieth or twenty times of its logits is not one to be calibrated but to be looked at.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

_ABSTAINING = ("abstain_below", "wanted_precision", "precision", "precision_low", "coverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """How scores are made of logits, when to abstain, and what was measured of both.

    Everything measured is out of sample: of each half of the validation images with what was fitted on the other half. What
    ships is fitted on all of them.

    Attributes:
        temperature: the logits are divided by it before the softmax or the sigmoid, 0.05 to 20.
        ece_before: expected calibration error (`edgebert.metrics.expected_calibration_error`) of the undivided logits, in [0, 1].
        ece_after: the same with the temperature.
        images: how many validation images all of this is of.
        abstain_below: a score below it abstains, in [0, 1]; None where it was not asked for, as are the fields that follow.
        wanted_precision: what it was chosen for, above 0.5 and below 1.
        precision: share of right answers among those that do not abstain, in [0, 1].
        precision_low: the lower end of its 95 % Wilson interval.
        coverage: share of the images that are answered without abstaining, in [0, 1].
    """

    temperature: float
    ece_before: float
    ece_after: float
    images: int
    abstain_below: float | None = None
    wanted_precision: float | None = None
    precision: float | None = None
    precision_low: float | None = None
    coverage: float | None = None

    def __post_init__(self) -> None:
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            raise BadDataError(
                f"temperature `{self.temperature}`", expected=f"{MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
            )
        if self.images < 1:
            raise BadDataError(f"confidence measured on `{self.images}` images", expected="at least one")
        present = [name for name in _ABSTAINING if getattr(self, name) is not None]
        if present and len(present) < len(_ABSTAINING):
            missing = next(name for name in _ABSTAINING if name not in present)
            raise BadDataError(f"confidence has `{present[0]}` without `{missing}`", expected="all of them, or none")
        for name in ("ece_before", "ece_after", *present):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise BadDataError(f"{name} `{value}`", expected="0 to 1")
        if self.wanted_precision is not None and not 0.5 < self.wanted_precision < 1:
            raise BadDataError(f"wanted_precision `{self.wanted_precision}`", expected="above 0.5 and below 1")

    def abstains(self, score: float) -> bool:
        """Say whether an answer of this score is not to be relied upon; never where there is no threshold."""
        return self.abstain_below is not None and score < self.abstain_below

    def to_text(self) -> str:
        """Return one line for a log or a terminal."""
        calibrated = (
            f"temperature {self.temperature:.4g}, expected calibration error {self.ece_before:.3f} before, "
            f"{self.ece_after:.3f} after, on {self.images:,} validation images"
        )
        if self.precision is None or self.precision_low is None or self.coverage is None:
            return calibrated
        abstains = f"abstains below {self.abstain_below:.6g}" if self.abstain_below else "never abstains"
        return (
            f"{calibrated}; {abstains}: precision {100 * self.precision:.1f} % "
            f"(at least {100 * self.precision_low:.1f} %) on {100 * self.coverage:.1f} % of them"
        )

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object; without a threshold those that belong to it are left out."""
        measured = {"ece_before": self.ece_before, "ece_after": self.ece_after}
        abstaining = {name: getattr(self, name) for name in _ABSTAINING if getattr(self, name) is not None}
        return {"temperature": self.temperature, "images": self.images, **measured, **abstaining}

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str) -> Confidence:
        """Read what `to_json` wrote; unknown fields are left alone.

        Raises:
            BadDataError: a field is missing, of another type or impossible.
        """
        fields = Fields(value, what=what)
        return cls(
            temperature=fields.number("temperature"),
            ece_before=fields.number("ece_before"),
            ece_after=fields.number("ece_after"),
            images=fields.integer("images"),
            **{name: fields.number(name) for name in _ABSTAINING if fields.value.get(name) is not None},
        )
