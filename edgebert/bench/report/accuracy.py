"""What a report shows of accuracy: confusions, classes, calibration, and the images that an arm decides otherwise."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from edgebert.bench.report.parts import MAX_LISTED, Cell, Table, arm_cell, colour_of, plain, table_of
from edgebert.bench.report.quantities import NONE, percent, range_text
from edgebert.bench.report.words import measure_of
from edgebert.bench.schema import Arm, FlippedImage, Interval, Result, Share

MAX_MATRIX_CLASSES = 20  # more do not fit a page; then the most frequent confusions are listed
MAX_FLIPPED = 24  # of one arm
MAX_THUMBNAIL_BYTES = 24 << 10
_THUMBNAIL_PIXELS = 64
_PLAIN_BYTES = 3_000  # a larger thumbnail is shown with fewer colours: there are dozens on a page
_COLOURS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """A count of a confusion matrix, and the share of its row in per cent."""

    count: int
    share: int
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusions:
    """Where an arm goes wrong: the matrix, or for many classes the most frequent pairs (true, decided, images)."""

    arm: str
    colour: int
    errors: int
    total: int
    matrix: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    pairs: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An image that an arm decides otherwise; `image` is a PNG in base64, empty where there is none that can be shown."""

    name: str
    image: str
    label: str
    ours: str
    ours_right: bool
    theirs: str
    theirs_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The images that an arm decides otherwise than its reference; `count` may be more than are shown."""

    arm: str
    colour: int
    reference: str
    count: int
    flips: tuple[Flip, ...]


def confusions_of(result: Result, class_names: tuple[str, ...]) -> Iterator[Confusions]:
    """Yield where each arm goes wrong; nothing where an image has several labels, as none is taken for another there."""
    for arm in result.measured_arms:
        if arm.accuracy.multi_label is None:
            yield _confusions(result, arm, class_names)


def _confusions(result: Result, arm: Arm, names: tuple[str, ...]) -> Confusions:
    confusion = arm.accuracy.confusion
    wrong = sorted(
        (
            (count, names[true], names[decided])
            for true, row in enumerate(confusion)
            for decided, count in enumerate(row)
            if count and true != decided
        ),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    matrix: list[tuple[str, tuple[MatrixCell, ...]]] = []
    if len(names) <= MAX_MATRIX_CLASSES:
        for true, row in enumerate(confusion):
            total = max(1, sum(row))
            cells = (
                MatrixCell(count=count, share=round(100 * count / total), right=true == decided)
                for decided, count in enumerate(row)
            )
            matrix.append((names[true], tuple(cells)))
    return Confusions(
        arm=plain(arm.id),
        colour=colour_of(result, arm),
        errors=sum(count for count, _, _ in wrong),
        total=sum(sum(row) for row in confusion),
        matrix=tuple(matrix),
        pairs=() if matrix else tuple((true, decided, count) for count, true, decided in wrong[:MAX_LISTED]),
    )


def class_rows(result: Result) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return name, images, and for each arm F1, precision and recall; of many classes those with the lowest F1."""
    if result.dataset is None:
        return []
    rows = []
    for index, name in enumerate(result.dataset.class_names):
        found = [arm.accuracy.per_class[index] for arm in result.measured_arms]
        numbers = tuple(
            text for row in found for text in (percent(row.f1), percent(row.precision), percent(row.recall))
        )
        rows.append((min(row.f1 for row in found), (plain(name), result.dataset.per_class[index], numbers)))
    if len(rows) > MAX_LISTED:
        rows = sorted(rows, key=lambda entry: entry[0])[:MAX_LISTED]
    return [row for _, row in rows]


def calibration_table(result: Result) -> Table:
    """Return how well each arm is calibrated, and the measures of accuracy that the first table has no room for."""
    rows: list[list[Cell | str]] = []
    for arm in result.measured_arms:
        accuracy = arm.accuracy
        calibration, gap = accuracy.calibration, accuracy.logit_gap
        rows.append(
            [
                arm_cell(result, arm),
                _share_cell(accuracy.top1),
                NONE if accuracy.top5 is None else _share_cell(accuracy.top5),
                Cell(text=percent(accuracy.macro_f1), below=_interval_text(accuracy.macro_f1_ci95)),
                NONE if accuracy.auc is None else f"{accuracy.auc:.4f}",
                NONE if calibration is None else percent(calibration.ece),
                NONE if calibration is None else percent(calibration.mean_confidence),
                f"{arm.temperature:.3g}",
                NONE if gap is None else f"{gap.max_abs:.3g}",
                NONE if gap is None else f"{gap.kl:.2g}",
            ]
        )
    measure = measure_of(result)
    return table_of(
        "Accuracy and calibration",
        (
            "arm",
            f"{measure}, %",
            "top-5, %",
            "macro-F1, %",
            "AUC",
            "ECE, %",
            "confidence, %",
            "temperature",
            "largest logit gap",
            "KL, nats",
        ),
        rows,
        caption=f"On every test image. ECE: mean gap between confidence and {measure}, 15 bins. Logit gap and KL divergence are from the reference.",
        wide=True,
    )


def galleries_of(result: Result) -> Iterator[Gallery]:
    """Yield, for each arm with a reference, the images that it decides otherwise, as many as fit."""
    for arm in result.measured_arms:
        accuracy = arm.accuracy
        if accuracy.agreement is not None and accuracy.flipped_count:
            yield Gallery(
                arm=plain(arm.id),
                colour=colour_of(result, arm),
                reference=plain(accuracy.agreement.reference),
                count=accuracy.flipped_count,
                flips=tuple(_flip(flipped) for flipped in accuracy.flipped[:MAX_FLIPPED]),
            )


def _flip(flipped: FlippedImage) -> Flip:
    return Flip(
        name=plain(flipped.id),
        image=checked_thumbnail(flipped.thumbnail),
        label=plain(flipped.label),
        ours=plain(f"{flipped.decision}, {percent(flipped.confidence)} %"),
        ours_right=flipped.decision == flipped.label,
        theirs=plain(f"{flipped.reference_decision}, {percent(flipped.reference_confidence)} %"),
        theirs_right=flipped.reference_decision == flipped.label,
    )


def checked_thumbnail(text: str | None) -> str:
    """Return the base64 of a PNG of at most 64 x 64 pixels, written anew from its pixels, of a large one with 64 colours.

    Empty for anything else.

    A result may come from elsewhere: only pixels get into the page, not whatever else the bytes hold.
    """
    if text is None or len(text) > 4 * MAX_THUMBNAIL_BYTES // 3 + 4:
        return ""
    try:
        encoded = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(encoded), formats=["PNG"]) as image:
            if max(image.size) > _THUMBNAIL_PIXELS:
                return ""
            pixels = image.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError):  # Pillow reports a broken PNG as SyntaxError
        return ""
    clean = Image.frombytes("RGB", pixels.size, pixels.tobytes())
    found = _png(clean)
    if len(found) > _PLAIN_BYTES:
        found = _png(clean.quantize(_COLOURS, dither=Image.Dither.NONE))
    return base64.b64encode(found).decode("ascii")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _share_cell(share: Share) -> Cell:
    return Cell(text=percent(share.value), below=_interval_text(share.ci95))


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else range_text(f"{100 * interval[0]:.1f}", f"{100 * interval[1]:.1f}")
