"""What an audit of calibration images says: its findings, its verdict, and what the page shows beside them.

>>> Finding(name="classes", severity="ok", text="all 3 classes are shown", expected="all of them").hint
''
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgebert._console import columns, plain
from edgebert._json import JsonObject, JsonValue
from edgebert.calibration.spreads import Severity, Shift
from edgebert.data import SkippedFile
from edgebert.errors import BadDataError

Verdict = Literal["good", "usable", "unusable"]

SEVERITIES: tuple[Severity, ...] = ("ok", "warning", "bad")  # the worst last

VERDICTS: dict[Severity, Verdict] = {"ok": "good", "warning": "usable", "bad": "unusable"}
_WORDS: dict[Verdict, str] = {
    "good": "good: these images stand for the data, nothing speaks against measuring ranges on them",
    "usable": "usable: ranges can be measured on these images, but look at the warnings first",
    "unusable": "unusable: ranges measured on these images would not be those of the data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, and what came out.

    Attributes:
        name: what was looked at.
        severity: `ok`, `warning` or `bad`.
        text: one sentence, with numbers.
        expected: what would have been nothing to mention.
        hint: what mends it; "" where nothing needs to be.
    """

    name: str
    severity: Severity
    text: str
    expected: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCoverage:
    """Images of one class; where images have several labels, each counts for all of them."""

    name: str
    training: int
    calibration: int
    training_share: float
    calibration_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRange:
    """One activation that is to be quantised, on the calibration images and on others of the training split.

    Attributes:
        name: of the value in the graph.
        calibration_absmax: largest magnitude on the calibration images.
        held_out_absmax: on the others.
        beyond_share: share of the others' elements above `calibration_absmax`.
    """

    name: str
    calibration_absmax: float
    held_out_absmax: float
    beyond_share: float

    @property
    def ratio(self) -> float:
        """How many times as far the held-out images reach."""
        return self.held_out_absmax / max(self.calibration_absmax, 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One measure in two groups of images, by their names."""

    sample: str
    reference: str
    shift: Shift


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A thumbnail for the page.

    Attributes:
        group: `calibration`, `duplicates`, `darkest` or `brightest`; of duplicates, two after one another are a pair.
        caption: printed below.
        kind: MIME type.
        content: of the file, in base64.
        wide: pixels.
        high: pixels.
    """

    group: Literal["calibration", "duplicates", "darkest", "brightest"]
    caption: str
    kind: str
    content: str
    wide: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All that an audit found.

    Attributes:
        path: the page; None where none was written.
        data: name of the data set.
        verdict: the worst finding's.
        findings: in the order of the page.
        calibration_images: how many ranges would be measured on.
        held_out_images: training images that the activations were compared on.
        images: in the three splits.
        classes: of the model.
        comparisons: brightness, contrast and size.
        ranges: of the activations to be quantised.
        skipped: unreadable files, at most 20.
        pictures: not in the JSON.
    """

    path: Path | None
    data: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    calibration_images: int
    held_out_images: int
    images: Mapping[str, int]
    classes: tuple[ClassCoverage, ...]
    comparisons: tuple[Comparison, ...]
    ranges: tuple[ActivationRange, ...]
    skipped: tuple[SkippedFile, ...]
    pictures: tuple[Picture, ...] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """0 where ranges can be measured on these images, else that of bad data."""
        return BadDataError.exit_code if self.verdict == "unusable" else 0

    def finding(self, name: str) -> Finding:
        """Return the finding of this name."""
        return next(finding for finding in self.findings if finding.name == name)

    def to_json(self) -> JsonObject:
        """Return everything but the pictures and histograms."""
        comparisons: list[JsonValue] = []
        for comparison in self.comparisons:
            shift = comparison.shift
            numbers = {name: value for name, value in plain(shift).items() if name not in ("reference", "sample")}
            about = {"sample": comparison.sample, "reference": comparison.reference, "severity": shift.severity}
            comparisons.append({**about, **numbers})
        others = plain(replace(self, pictures=(), comparisons=()))
        answer: dict[str, JsonValue] = {name: value for name, value in others.items() if name != "pictures"}
        answer["comparisons"] = comparisons
        return answer

    def to_text(self) -> str:
        """Return the findings as a table, and the verdict in words."""
        rows = [[finding.severity, finding.name, finding.text] for finding in self.findings]
        page = f"\n{self.path}" if self.path else ""
        return f"{columns(['', 'looked at', 'found'], rows)}\n{self.data}: {_WORDS[self.verdict]}{page}"


def words_of(verdict: Verdict) -> str:
    """Return a verdict as a sentence."""
    return _WORDS[verdict]
