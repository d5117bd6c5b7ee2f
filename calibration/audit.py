"""The audit of calibration data: do these images stand for what the model will see, before anything is measured on them?

One image is in memory at a time; kept are counts, histograms of fixed size and 72 bytes of each image
(`edgebert.calibration.duplicates`). docs/calibration-audit.md says how to read an audit and where its thresholds come from.

>>> AuditOptions(images=8)
Traceback (most recent call last):
...
edgebert.errors.UsageError: images `8`
expected: 16 to 100,000 calibration images
hint: leave it at 512
"""

from __future__ import annotations

import base64
import heapq
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from PIL import Image

from edgebert._files import check_file_is_free, check_not_input, staged_file
from edgebert._progress import tracked
from edgebert.calibration.audit_findings import (
    Near,
    class_finding,
    copies_finding,
    count_finding,
    files_finding,
    leak_finding,
    near_findings,
    range_finding,
    real_finding,
    shift_finding,
)
from edgebert.calibration.audit_result import (
    SEVERITIES,
    VERDICTS,
    ActivationRange,
    AuditReport,
    ClassCoverage,
    Comparison,
    Picture,
)
from edgebert.calibration.duplicates import Pair, Sketches, distance, near_distance
from edgebert.calibration.images import (
    FEWEST_IMAGES,
    calibration_slices,
    leaked_pairs,
    one_per_picture,
)
from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.quantize_options import QuantizeOptions
from edgebert.calibration.source import float_graph
from edgebert.calibration.spreads import (
    Measure,
    Spread,
    Stratum,
    measures_of,
    shift_between,
)
from edgebert.calibration.statistics import ValueReader, Watched, not_finite
from edgebert.card import ModelCard
from edgebert.data import DataOptions, Dataset, Example, align_classes, load_dataset
from edgebert.errors import BadDataError, UsageError
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.export.rules import graph_precision
from edgebert.preprocess import Preprocessing, RgbImage, load_image, resize_image

_log = logging.getLogger("edgebert")

_STRATA = 256  # classes that are compared each for itself; rarer sets of labels are one group
_CONFIRMED = 500  # pairs of each kind that are decoded again
_SHOWN_PAIRS, _SHOWN_EXTREMES, _SHOWN_OF_CLASSES = 6, 4, 24
_THUMBNAIL = 112  # pixels of the longer side


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """How to audit; the same images are drawn as by `quantize` with the same options.

    Attributes:
        images: calibration images, 16 to 100,000.
        held_out: other training images that the activations are compared on.
        class_map: a class name in the data -> the model's name for it.
        max_skipped: share of unreadable images from which on the data are unusable.
        force: replace an existing page.
    """

    images: int = 512
    held_out: int = 512
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        if not FEWEST_IMAGES <= self.images <= 100_000:
            raise UsageError(
                f"images `{self.images}`",
                expected=f"{FEWEST_IMAGES} to 100,000 calibration images",
                hint="leave it at 512",
            )
        if not FEWEST_IMAGES <= self.held_out <= 100_000:
            raise UsageError(f"held_out `{self.held_out}`", expected=f"{FEWEST_IMAGES} to 100,000 training images")


def audit_options_from(options: QuantizeOptions) -> AuditOptions:
    """Return the options of `quantize` that an audit has as well.

    Raises:
        UsageError: another one was given, which an audit would leave without effect.
    """
    mine = {name: getattr(options, name) for name in ("images", "class_map", "max_skipped", "force")}
    default = QuantizeOptions()
    for field_ in fields(QuantizeOptions):
        if field_.name not in mine and getattr(options, field_.name) != getattr(default, field_.name):
            raise UsageError(
                f"`--{field_.name.replace('_', '-')}` with `--audit`",
                expected="nothing to be quantised: an audit only looks at the images",
                hint="leave it out, or leave `--audit` out",
            )
    return AuditOptions(**mine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """What one activation value of the graph reached over many images.

    Attributes:
        minimum: over all elements and images.
        maximum: the same.
        elements: how many numbers were seen.
        beyond: how many of them had a magnitude above the limit, where one was given.
    """

    minimum: float
    maximum: float
    elements: int
    beyond: int

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))


def audit_of_calibration(
    source: Path | str, data: str | Path, output: Path | None, options: AuditOptions | None = None
) -> AuditReport:
    """Audit the images that `quantize` would measure ranges on, and write the page.

    Args:
        source: an FP32 `.onnx` file of edgebert's, or a checkpoint folder.
        data: DATA; all its splits are looked at.
        output: the `.html` file to write; None for none.
        options: defaults where None.

    Returns:
        The report, unusable or not.

    Raises:
        InputNotFoundError, BadDataError: the source is no such thing, or the data cannot be read, or has fewer than 16
            different training images, or images of one class alone.
        UnavailableError: the extra `report` is not installed, and a page is asked for.
        CannotWriteError: the output exists without `force`, or cannot be written.
    """
    options = options or AuditOptions()
    if output is not None:
        check_not_input(output, source)
        check_file_is_free(output, force=options.force)
    model = parse_graph(float_graph(Path(source), data, class_map=options.class_map, max_skipped=0.999))
    card = card_of_model(model, what=f"`{source}`")
    if graph_precision(model) == "int8":
        raise BadDataError(f"`{source}` is quantised already", expected="an FP32 graph or a checkpoint")
    # Nothing is quantised here: unreadable files become a finding, and do not stop the audit.
    dataset = load_dataset(data, DataOptions(max_skipped=0.999, task=card.task))
    dataset = align_classes(dataset, card.class_names, class_map=options.class_map)
    report = audit_of_dataset(model, card, dataset, options)
    if output is None:
        return report
    from edgebert.calibration.audit_report import page_of  # needs the extra `report`, which an answer in JSON does not

    page = page_of(report)
    with staged_file(output, force=options.force) as staging:
        staging.write_text(page, encoding="utf-8")
    return replace(report, path=output)


def audit_of_dataset(model: onnx.ModelProto, card: ModelCard, dataset: Dataset, options: AuditOptions) -> AuditReport:
    """Audit a data set that is loaded and has its labels in the model's order.

    Args:
        model: an FP32 graph of edgebert's.
        card: the model's.
        dataset: any; it is not changed.
        options: how.

    Raises:
        BadDataError: as `audit_of_calibration`, or the graph has nothing to quantise.
    """
    leaks = leaked_pairs(dataset)
    leaked = {example.pixel_sha256 for example, _ in leaks}
    clean = replace(dataset, train=tuple(item for item in dataset.train if item.pixel_sha256 not in leaked))
    first, second = calibration_slices(clean, options.images, options.held_out)
    seen = _scan(dataset, first, card.preprocessing)
    near = _near_pairs(seen, card.preprocessing)
    ranges = _ranges(model, card.preprocessing, first, second)
    coverage = _coverage(dataset, first)
    comparisons = seen.comparisons()
    findings = (
        files_finding(dataset, options.max_skipped),
        count_finding(first),
        real_finding(dataset, first),
        class_finding(coverage),
        copies_finding(dataset),
        leak_finding(dataset, leaks),
        *near_findings(dataset, near),
        *(shift_finding(comparison) for comparison in comparisons),
        range_finding(ranges, len(first), len(second)),
    )
    worst = SEVERITIES[max(SEVERITIES.index(finding.severity) for finding in findings)]
    return AuditReport(
        path=None,
        data=dataset.name,
        verdict=VERDICTS[worst],
        findings=findings,
        calibration_images=len(first),
        held_out_images=len(second),
        images={split: len(dataset.split(split)) for split in ("train", "val", "test")},
        classes=coverage,
        comparisons=comparisons,
        ranges=ranges,
        skipped=dataset.skipped[:20],
        pictures=tuple(_pictures(dataset, first, seen, near, card.preprocessing)),
    )


def value_extremes(
    model: onnx.ModelProto,
    names: Sequence[str],
    images: Iterable[RgbImage],
    limits: Mapping[str, float] | None = None,
) -> dict[str, Extremes]:
    """Run a graph in ONNX Runtime, a few images at a time, and return what values inside it reach.

    Args:
        model: an FP32 graph of edgebert's.
        names: of float32 values in it.
        images: uint8 (height, width, 3) each, at the network's size.
        limits: value -> magnitude above which elements are counted.

    Raises:
        BadDataError: a value is not finite for one of the images.
    """
    reader = ValueReader(model, {name: Watched(axis=None, by_channel=False) for name in names})
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    elements, beyond = Counter[str](), Counter[str]()
    for first, _, rows in reader.read(iter(images)):
        for name, values in rows.items():
            least, most = float(values.min()), float(values.max())
            if not np.isfinite((least, most)).all():
                raise not_finite(name, model, first)
            low[name], high[name] = min(low[name], least), max(high[name], most)
            elements[name] += values.size
            if limits is not None and max(-least, most) > limits[name]:
                beyond[name] += int(np.count_nonzero(np.abs(values) > limits[name]))
    return {
        name: Extremes(minimum=low[name], maximum=high[name], elements=elements[name], beyond=beyond[name])
        for name in names
    }


class _Seen:
    """What the pass over all images keeps: nothing of it grows with the images but 72 bytes of each.

    Args:
        dataset: what is passed over.
    """

    def __init__(self, dataset: Dataset) -> None:
        splits = ((split, one_per_picture(dataset.split(split))) for split in ("train", "val", "test"))
        # A picture that lies in two splits is a leak, and not a near duplicate as well.
        known: set[str] = set()
        self.examples: list[tuple[str, Example]] = []
        for split, examples in splits:
            self.examples += [(split, example) for example in examples if example.pixel_sha256 not in known]
            known.update(example.pixel_sha256 for example in examples)
        self.sketches = Sketches(len(self.examples))
        self.spreads: dict[tuple[str, Measure], dict[Stratum, Spread]] = {}
        self.darkest: list[tuple[float, int]] = []  # heaps of (-brightness, number)
        self.brightest: list[tuple[float, int]] = []

    def count(self, group: str, labels: tuple[int, ...], measured: Mapping[Measure, float]) -> None:
        """Count one image in a group."""
        for measure, value in measured.items():
            strata = self.spreads.setdefault((group, measure), {})
            # The training images come first, and decide which classes are compared each for itself.
            own = self.spreads["training", measure]
            stratum = labels if labels in own or (group == "training" and len(own) < _STRATA) else None
            if stratum not in strata:
                strata[stratum] = Spread(measure)
            strata[stratum].add(value)

    def rank(self, brightness: float, number: int) -> None:
        """Keep the numbers of the darkest and the brightest."""
        for heap, key in ((self.darkest, -brightness), (self.brightest, brightness)):
            heapq.heappush(heap, (key, number))
            if len(heap) > _SHOWN_EXTREMES:
                heapq.heappop(heap)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Return the calibration images against the training images, and the validation images against these."""
        found = []
        for sample in ("calibration", "validation"):
            for measure in get_args(Measure):
                reference = self.spreads["training", measure]
                shared = {
                    stratum: spread
                    for stratum, spread in self.spreads.get((sample, measure), {}).items()
                    if stratum in reference
                }
                if shared:
                    shift = shift_between(reference, shared)
                    found.append(Comparison(sample=sample, reference="training", shift=shift))
        return tuple(found)


def _scan(dataset: Dataset, calibration: Sequence[Example], rule: Preprocessing) -> _Seen:
    """Pass over all images once, one in memory at a time."""
    seen = _Seen(dataset)
    chosen = {example.pixel_sha256 for example in calibration}
    groups = {"train": "training", "val": "validation", "test": "test"}
    for split, example in tracked(seen.examples, what="audit", total=len(seen.examples)):
        image = example.load()
        small = resize_image(image, rule)
        number = seen.sketches.add(small)
        measured = measures_of(image, small)
        seen.count(groups[split], example.labels, measured)
        if example.pixel_sha256 in chosen and split == "train":
            seen.count("calibration", example.labels, measured)
        if split == "train":
            seen.rank(measured["brightness"], number)
    return seen


def _near_pairs(seen: _Seen, rule: Preprocessing) -> Near:
    near = near_distance(rule.height, rule.width)
    by_split: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in seen.sketches.pairs(near):
        one, other = seen.examples[pair.first][0], seen.examples[pair.second][0]
        if one == "train":  # the splits follow one another, and the first number is the lower
            by_split[other].append(pair)
    confirmed: dict[str, list[tuple[Example, Example, float]]] = {}
    for split, pairs in by_split.items():
        found = []
        for pair in pairs[:_CONFIRMED]:
            first, second = seen.examples[pair.first][1], seen.examples[pair.second][1]
            apart = distance(load_image(first.load(), rule), load_image(second.load(), rule))
            if apart <= near:
                found.append((first, second, apart))
        confirmed[split] = sorted(found, key=lambda entry: entry[2])
    return Near(pairs=confirmed, more={split: len(pairs) > _CONFIRMED for split, pairs in by_split.items()})


def _ranges(
    model: onnx.ModelProto, rule: Preprocessing, first: Sequence[Example], second: Sequence[Example]
) -> tuple[ActivationRange, ...]:
    places = set(placement_of_graph(model).quantised)
    names = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in places))
    if not names:
        raise BadDataError("the graph has nothing to quantise", expected="linears between its stem and its head")

    def pixels(examples: Sequence[Example], what: str) -> Iterator[RgbImage]:
        for example in tracked(examples, what=what, total=len(examples)):
            yield load_image(example.load(), rule)

    measured = value_extremes(model, names, pixels(first, "activations of calibration images"))
    limits = {name: extremes.absmax for name, extremes in measured.items()}
    others = value_extremes(model, names, pixels(second, "activations of held-out images"), limits)
    return tuple(
        ActivationRange(
            name=name,
            calibration_absmax=limits[name],
            held_out_absmax=others[name].absmax,
            beyond_share=others[name].beyond / others[name].elements,
        )
        for name in names
    )


def _coverage(dataset: Dataset, calibration: Sequence[Example]) -> tuple[ClassCoverage, ...]:
    training = Counter(label for example in dataset.train for label in example.labels)
    drawn = Counter(label for example in calibration for label in example.labels)
    return tuple(
        ClassCoverage(
            name=name,
            training=training[label],
            calibration=drawn[label],
            training_share=training[label] / max(len(dataset.train), 1),
            calibration_share=drawn[label] / len(calibration),
        )
        for label, name in enumerate(dataset.class_names)
    )


def _pictures(
    dataset: Dataset, first: Sequence[Example], seen: _Seen, near: Near, rule: Preprocessing
) -> Iterator[Picture]:
    """Decode again what the page shows, a few dozen images."""
    each = max(_SHOWN_OF_CLASSES // max(len(dataset.class_names), 1), 1)
    shown = Counter[tuple[int, ...]]()
    for example in first:
        if shown.total() < _SHOWN_OF_CLASSES and shown[example.labels] < each:
            shown[example.labels] += 1
            names = ", ".join(dataset.class_names[label] for label in example.labels) or "no label"
            yield _picture("calibration", example.load(), names)
    pairs = [(split, pair) for split in ("test", "val", "train") for pair in near.pairs[split][:_SHOWN_PAIRS]]
    for split, (one, other, apart) in pairs[: 2 * _SHOWN_PAIRS]:
        yield _picture("duplicates", load_image(one.load(), rule), f"train: {one.id}")
        yield _picture("duplicates", load_image(other.load(), rule), f"{split}: {other.id} ({apart:.3f} apart)")
    extremes: tuple[tuple[Literal["darkest", "brightest"], list[tuple[float, int]], Callable[[float], float]], ...] = (
        ("darkest", seen.darkest, lambda key: -key),
        ("brightest", seen.brightest, lambda key: key),
    )
    for group, heap, brightness in extremes:
        for key, number in sorted(heap, reverse=True):
            example = seen.examples[number][1]
            yield _picture(group, example.load(), f"{brightness(key):.0f}: {example.id}")


def _picture(
    group: Literal["calibration", "duplicates", "darkest", "brightest"], image: RgbImage, caption: str
) -> Picture:
    """Return a thumbnail: a small image pixel by pixel, a large one as JPEG."""
    picture = Image.fromarray(image)
    small = max(picture.size) <= _THUMBNAIL // 2
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    longest = max(picture.size)
    return Picture(
        group=group,
        caption=caption,
        kind="image/png" if small else "image/jpeg",
        content=base64.b64encode(buffer.getvalue()).decode("ascii"),
        wide=max(_THUMBNAIL * picture.width // longest, 1),
        high=max(_THUMBNAIL * picture.height // longest, 1),
    )
