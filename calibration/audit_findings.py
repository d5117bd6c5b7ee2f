"""What an audit finds, one sentence each: the rules and their limits, apart from the passes over the images.

docs/calibration-audit.md says where the limits come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgebert._console import printable
from edgebert.calibration.audit_result import ActivationRange, ClassCoverage, Comparison, Finding
from edgebert.calibration.images import FEW_IMAGES, look_at_images
from edgebert.calibration.spreads import Severity, shown_value
from edgebert.data import Dataset, Example

_FEW_OF_CLASS = 5  # images: the ranges of a class are then those of a handful of pictures
_MANY_COPIES = (
    0.05  # of the training images: they count twice in every average, and the slices are less different than they look
)
_MANY_LEAKS = 0.001  # of the images that INT8 is judged on; a single one of 732 blood cells is more than that

# 512 held-out images of digits and blood cells go beyond the largest of 512 calibration images by 1.04 times at most, and of
# 32 by 1.27 times, with 2e-5 and 3e-4 of their values (2026-11-25). Percentile estimators cut off 1e-4 on purpose.
_BEYOND_WARNING, _BEYOND_BAD = 1e-3, 1e-2
_RATIO_WARNING, _RATIO_BAD = 1.5, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """Near duplicates of training images, confirmed at the network's size, by the split of the other image.

    Attributes:
        pairs: the training image, the other one, and their distance, the closest first.
        more: whether there may be more than were looked at.
    """

    pairs: Mapping[str, list[tuple[Example, Example, float]]]
    more: Mapping[str, bool]


def files_finding(dataset: Dataset, max_skipped: float) -> Finding:
    """Say how many files cannot be used."""
    skipped = len(dataset.skipped)
    files = skipped + len(dataset.train) + len(dataset.val) + len(dataset.test)
    share = skipped / files
    severity: Severity = "ok" if not skipped else "warning" if share <= max_skipped else "bad"
    return Finding(
        name="unreadable files",
        severity=severity,
        text=f"{skipped:,} of {files:,} files cannot be used ({share:.2%})",
        expected=f"none, and at most {max_skipped:.2%}",
        hint="repair or remove the files listed" if skipped else "",
    )


def count_finding(calibration: Sequence[Example]) -> Finding:
    """Say how many images would calibrate."""
    few = len(calibration) < FEW_IMAGES
    return Finding(
        name="calibration images",
        severity="warning" if few else "ok",
        text=f"{len(calibration):,} different training images would calibrate",
        expected=f"{FEW_IMAGES} or more",
        hint="add training images, or raise `--images`" if few else "",
    )


def real_finding(dataset: Dataset, calibration: Sequence[Example]) -> Finding:
    """Say whether they are photographs of something."""
    look = look_at_images(example.load() for example in calibration)
    fault, doubt = look.fault(dataset.name), look.doubt()
    correlation = "-" if look.correlation is None else f"{look.correlation:.2f}"
    return Finding(
        name="real images",
        severity="bad" if fault else "warning" if doubt else "ok",
        text=fault.what
        if fault
        else doubt or f"neighbouring pixels correlate by {correlation} in {look.images} of them",
        expected="photographs of what the model was trained on: not of one colour, not noise",
        hint="look at the files: a covered lens, a failed conversion, generated data?" if fault or doubt else "",
    )


def class_finding(coverage: Sequence[ClassCoverage]) -> Finding:
    """Say which classes they show, and how often."""
    missing = [entry.name for entry in coverage if not entry.calibration]
    few = [entry for entry in coverage if 0 < entry.calibration < _FEW_OF_CLASS]
    least = min(coverage, key=lambda entry: entry.calibration)
    text = f"all {len(coverage)} classes are shown, {_quoted(least.name)} least often, by {least.calibration} images"
    if missing:
        text = f"{len(missing)} of {len(coverage)} classes are shown by no calibration image: {_listed(missing)}"
    elif few:
        named = ", ".join(f"{_quoted(entry.name)} by {entry.calibration}" for entry in few[:5])
        text = f"{len(few)} of {len(coverage)} classes are shown by fewer than {_FEW_OF_CLASS} images: {named}"
    return Finding(
        name="classes",
        severity="bad" if missing else "warning" if few else "ok",
        text=text,
        expected=f"at least {_FEW_OF_CLASS} calibration images of each class",
        hint="add training images of these classes, or raise `--images`" if missing or few else "",
    )


def copies_finding(dataset: Dataset) -> Finding:
    """Say how many training images are copies."""
    labels: dict[str, set[tuple[int, ...]]] = {}
    for example in dataset.train:
        labels.setdefault(example.pixel_sha256, set()).add(example.labels)
    copies = len(dataset.train) - len(labels)
    contradictions = sum(len(found) > 1 for found in labels.values())
    share = copies / len(dataset.train)
    text = f"{copies:,} of {len(dataset.train):,} training images have the pixels of another one ({share:.2%})"
    if contradictions:
        text += f", {contradictions:,} of these pictures under different labels"
    bad = share > _MANY_COPIES or contradictions > 0
    return Finding(
        name="exact duplicates",
        severity="warning" if bad else "ok",
        text=text,
        expected=f"at most {_MANY_COPIES:.0%}, under one label; each picture calibrates once, whatever its copies",
        hint="remove the copies from the training split" if bad else "",
    )


def leak_finding(dataset: Dataset, leaks: Sequence[tuple[Example, Example]]) -> Finding:
    """Say which training images are in another split as well."""
    text = "no training image has the pixels of a test or validation image"
    if leaks:
        train, other = leaks[0]
        text = (
            f"{len(leaks):,} training images have the pixels of a test or validation image,"
            f" the first is {_quoted(train.id)} = {_quoted(other.id)}"
        )
    return Finding(
        name="leaks",
        severity="bad" if leaks else "ok",
        text=text,
        expected=f"none of {len(dataset.train):,}; `quantize` refuses such data",
        hint="remove them from the training split" if leaks else "",
    )


def near_findings(dataset: Dataset, near: Near) -> Iterator[Finding]:
    """Say how many images of each split are close to a training image."""
    for split, name, allowed in (
        ("train", "near duplicates in training", _MANY_COPIES),
        ("val", "near duplicates of validation", _MANY_LEAKS),
        ("test", "near duplicates of test", _MANY_LEAKS),
    ):
        others = dataset.train if split == "train" else dataset.val if split == "val" else dataset.test
        if not others:
            continue
        pairs = near.pairs[split]
        touched = {second.pixel_sha256 for _, second, _ in pairs}
        if split == "train":
            touched |= {first.pixel_sha256 for first, _, _ in pairs}
        share = len(touched) / len(others)
        what = {"train": "training", "val": "validation", "test": "test"}[split]
        least = "at least " if near.more[split] else ""
        text = f"{least}{len(touched):,} of {len(others):,} {what} images are close to a training image ({share:.2%})"
        if pairs:
            text += f", the closest {_quoted(pairs[0][0].id)} and {_quoted(pairs[0][1].id)}"
        bad = share > allowed
        mend = "remove one of each pair" if split == "train" else "keep images of one source in one split"
        yield Finding(
            name=name,
            severity="warning" if bad else "ok",
            text=text,
            expected=f"at most {allowed:.1%}",
            hint=f"{mend}; look at the closest pairs on the page" if bad else "",
        )


def shift_finding(comparison: Comparison) -> Finding:
    """Say whether two groups of images are of one kind."""
    shift = comparison.shift
    measure = shift.measure
    sample, reference = shown_value(measure, shift.sample_mean), shown_value(measure, shift.reference_mean)
    hint = "calibrate and judge on images of one kind: were some taken with another camera, light or conversion?"
    return Finding(
        name=f"{measure} of {comparison.sample} images",
        severity=shift.severity,
        text=(
            f"mean {sample} against {reference} in {comparison.reference} images of the same classes:"
            f" {shift.standardised:+.2f} standard deviations, distributions {shift.step:.2f} apart"
        ),
        expected=shift.allowed,
        hint="" if shift.severity == "ok" else hint,
    )


def range_finding(ranges: Sequence[ActivationRange], calibration: int, held_out: int) -> Finding:
    """Say how far held-out images go beyond the ranges of the calibration images."""
    beyond = max(ranges, key=lambda entry: entry.beyond_share)
    widest = max(ranges, key=lambda entry: entry.ratio)
    severity: Severity = "ok"
    if beyond.beyond_share > _BEYOND_BAD or widest.ratio > _RATIO_BAD:
        severity = "bad"
    elif beyond.beyond_share > _BEYOND_WARNING or widest.ratio > _RATIO_WARNING:
        severity = "warning"
    return Finding(
        name="activation ranges",
        severity=severity,
        text=(
            f"of {held_out:,} other training images at most {100 * beyond.beyond_share:.2g} % of an activation's values lie beyond"
            f" what {calibration:,} calibration images reach, and the largest is {widest.ratio:.2f} times as large"
        ),
        expected=f"at most {_BEYOND_WARNING:.1%} and {_RATIO_WARNING} times, in {len(ranges)} activations",
        hint="" if severity == "ok" else "calibrate on more images: raise `--images`",
    )


def _quoted(name: str) -> str:
    return f"`{printable(name)}`"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(_quoted, names[:5])) + more
