"""Images and their labels: what DATA may be, which images are usable, and which split each belongs to.

DATA is one of

* a folder `train|val|test/<class>/*` (`valid` and `validation` are `val`), or `<class>/*`, files at any depth;
* a folder with `labels.csv`: columns `file`, `labels` (several joined by `|`), optional `text` and `split`;
* a parquet file, or a folder of them: columns `image`, `label` (or lists of them), optional `text` and `split`;
* a folder written by `datasets.Dataset.save_to_disk`, or the id of a Hugging Face data set;
* `digits`: scikit-learn's 1,797 handwritten digits.

Class names come in plain order of their characters (so `10` before `2`); the order is part of every artefact. Every image
is decoded once, completely, by `edgebert.preprocess`; only its hash and where it lies are kept. What cannot be decoded is
skipped, named and counted, up to `DataOptions.max_skipped`. Nothing is written beside the data.

The task is multi-label where an image has several labels or none, in a column called `labels` or in lists;
`DataOptions.task` says otherwise. `load_unlabelled` takes the images alone, of any of these and of a folder without classes.

A split that the user supplies is kept as it is; a missing test split is 20 % of the whole and a missing val split 10 %
of train, by the rule of `edgebert._splits`.

>>> def example(label: int, pixels: str) -> Example:
...     return Example(id="a.png", labels=(label,), pixel_sha256=pixels * 64, source=b"")
>>> dataset = Dataset(
...     name="pets", class_names=("cat", "dog"), train=(example(0, "a"), example(1, "b")), val=(), test=(), skipped=()
... )
>>> [example.label for example in align_classes(dataset, ("dog", "cat")).train]
[1, 0]
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgebert._find import find_listing
from edgebert._progress import Progress
from edgebert._sources import (
    Entry,
    ExampleSource,
    Listing,
    SplitName,
    decode_source,
    escape_text,
    shortened,
)
from edgebert._splits import LabelledHash, choose_multi_label_splits, choose_splits, choose_val
from edgebert.card import check_class_names, hash_of_hashes
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.preprocess import RgbImage, pixel_sha256

__all__ = [
    "DataOptions",
    "DataTask",
    "Dataset",
    "Example",
    "ExampleSource",
    "SkippedFile",
    "SplitName",
    "align_classes",
    "load_dataset",
    "load_unlabelled",
]

# What the labels of a data set say: one class of an image, any number of them, or nothing.
DataTask = Literal["single-label", "multi-label", "unlabelled"]

logger = logging.getLogger("edgebert")

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_LISTED = 20  # lines of a warning before the rest is only counted
_WINDOW = 1024  # images in flight while scanning, so that a million of them need no million of futures


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One usable image.

    Attributes:
        id: printable; the path below the data set's folder, or table and row.
        labels: indices into the data set's class names, ascending: one, or any number of them in a multi-label data
            set; none in an unlabelled one.
        pixel_sha256: identity of the decoded pixels (`edgebert.preprocess.pixel_sha256`).
        source: where it lies.
        text: what the data says of it in words, such as a caption or an inspection note; "" for nothing.
    """

    id: str
    labels: tuple[int, ...]
    pixel_sha256: str
    source: ExampleSource = field(repr=False, compare=False)
    text: str = ""

    @property
    def label(self) -> int:
        """The one label of an image of a single-label data set."""
        return self.labels[0]

    def load(self) -> RgbImage:
        """Decode the image again: uint8 (height, width, 3) RGB at its full size, owning its memory.

        Raises:
            BadDataError: it is not the image any more that was scanned.
            InputNotFoundError: it cannot be read any more.
        """
        image = decode_source(self.source)
        if pixel_sha256(image) != self.pixel_sha256:
            raise BadDataError(f"`{self.id}` changed while it was being used", hint="start again; nothing was written")
        return image


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFile:
    """One file that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How to read a data set.

    Attributes:
        max_skipped: largest share of unusable files, from 0 up to but not including 1, before the run stops.
        class_map: class name in the data -> class name to use; several may get the same.
        revision: branch, tag or commit, of a data set on the Hugging Face hub only.
        task: `auto` for what the labels say (see the top of this module); `single-label` refuses an image without
            exactly one label; `multi-label` lets every image have any number.
    """

    max_skipped: float = 0.01
    class_map: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    task: Literal["auto", "single-label", "multi-label"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.max_skipped < 1:
            raise UsageError(f"max_skipped is `{self.max_skipped}`", expected="a share from 0 up to, not including, 1")
        if self.task not in ("auto", "single-label", "multi-label"):
            raise UsageError(f"task is `{self.task}`", expected="auto, single-label or multi-label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images in three splits; within a split in order of their hash. An unlabelled one has no class names and no test."""

    name: str
    class_names: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: tuple[SkippedFile, ...]
    task: DataTask = "single-label"

    def split(self, name: SplitName) -> tuple[Example, ...]:
        """Return the examples of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def sha256(self) -> str:
        """Return the identity of task, class names, labels, texts, splits and pixels; no names of files go in."""
        images = (
            f"{split} {_labels_text(example)} {example.pixel_sha256}{_text_identity(example)}"
            for split in _SPLITS
            for example in sorted(self.split(split), key=_example_order)
        )
        # Single-label data without texts was hashed before there was anything else, and keeps its hashes.
        task = [] if self.task == "single-label" else [f"task {self.task}"]
        return hash_of_hashes([*task, *(f"class {name}" for name in self.class_names), *images])

    def summary(self) -> str:
        """Return one line with the images of each split, the classes and the skipped files."""
        used = len(self.train) + len(self.val) + len(self.test)
        classes = "no labels" if self.task == "unlabelled" else f"{len(self.class_names)} classes"
        if self.task == "multi-label":
            classes += " (multi-label)"
        return (
            f"{self.name}: {len(self.train):,} train, {len(self.val):,} val, {len(self.test):,} test images,"
            f" {classes}, {len(self.skipped):,} of {used + len(self.skipped):,} files skipped"
        )


@dataclass(frozen=True, slots=True)
class _Scanned:
    """A usable image before its split is decided."""

    entry: Entry
    sha256: str


def load_dataset(data: str | Path, options: DataOptions | None = None) -> Dataset:
    """List, decode and split a data set.

    Args:
        data: what the top of this module lists. A `Path` is never taken for `digits` or an id of the hub.
        options: see `DataOptions`.

    Raises:
        BadDataError: too many unusable files, an empty or single class, several labels where one is asked for, a bad table.
        InputNotFoundError: there is no such data, or it cannot be read, or the hub cannot be reached.
        UsageError: an option does not fit the data.
        UnavailableError: a package that reads this kind of data is not installed.
    """
    options = options or DataOptions()
    listing = _with_class_map(find_listing(data, options.revision), options.class_map)
    task = _task_of(listing, options.task)
    class_names = tuple(sorted(listing.classes))
    check_class_names(class_names)
    scanned, skipped = _scan(listing)
    _report_skipped(skipped, len(scanned) + len(skipped), options.max_skipped)
    _warn_of_equal_pixels(scanned)
    supplied = {entry.split for entry in listing.entries if entry.split}
    chosen = (choose_splits if task == "single-label" else choose_multi_label_splits)(
        [LabelledHash(image.entry.class_names, image.sha256, image.entry.split) for image in scanned],
        class_names,
        missing=tuple(split for split in ("test", "val") if split not in supplied),
    )
    numbers = {name: number for number, name in enumerate(class_names)}
    splits: dict[SplitName, list[Example]] = {"train": [], "val": [], "test": []}
    shared: dict[tuple[str, ...], tuple[int, ...]] = {}  # one tuple for all images of the same labels
    for image in scanned:
        entry = image.entry
        split = entry.split if entry.split in ("val", "test") else chosen[image.sha256]
        labels = shared.setdefault(entry.class_names, tuple(sorted(numbers[name] for name in entry.class_names)))
        splits[split].append(_example(image, labels))
    for split, examples in splits.items():
        _check_classes(split, examples, class_names, task, supplied=split in supplied)
    train, val, test = (tuple(sorted(splits[split], key=_example_order)) for split in _SPLITS)
    return Dataset(
        name=listing.name,
        class_names=class_names,
        train=train,
        val=val,
        test=test,
        skipped=tuple(skipped),
        task=task,
    )


def load_unlabelled(data: str | Path, options: DataOptions | None = None) -> Dataset:
    """List and decode images without their labels, which may be wrong, unknown or missing.

    Args:
        data: what the top of this module lists, or a folder of images at any depth. Folders called `train` and `val` at its
            top, and the splits of a table, are kept; what is called `test` is left out.
        options: see `DataOptions`; `class_map` and `task` have no meaning here.

    Returns:
        A data set of the task `unlabelled`: nine tenths train and one tenth val, by hash, or as the data says; no test
        images and no class names. Images of the same pixels come once, in val where one of them is there.

    Raises:
        BadDataError: too many unusable files, fewer than two different images, a bad table.
        InputNotFoundError: there is no such data, or it cannot be read, or the hub cannot be reached.
        UsageError: an option does not fit the data.
        UnavailableError: a package that reads this kind of data is not installed.
    """
    options = options or DataOptions()
    if options.class_map or options.task != "auto":
        raise UsageError("a class map or a task, and data whose labels are not read", expected="neither of them")
    listing = find_listing(data, options.revision, "ignored")
    listing = replace(listing, entries=tuple(entry for entry in listing.entries if entry.split != "test"))
    scanned, skipped = _scan(listing)
    _report_skipped(skipped, len(scanned) + len(skipped), options.max_skipped)
    unique = _once_each(scanned)
    supplied_val = any(entry.split == "val" for entry in listing.entries)
    val = {image.sha256 for image in unique if image.entry.split == "val"}
    if not supplied_val:
        val = choose_val([image.sha256 for image in unique])
    train = tuple(_example(image, ()) for image in unique if image.sha256 not in val)
    if not train or not val:
        raise BadDataError(
            f"`{listing.name}` has {len(train)} different image(s) for train and {len(val)} for val",
            expected="at least one for each",
        )
    return Dataset(
        name=listing.name,
        class_names=(),
        train=train,
        val=tuple(_example(image, ()) for image in unique if image.sha256 in val),
        test=(),
        skipped=tuple(skipped),
        task="unlabelled",
    )


def align_classes(
    dataset: Dataset, class_names: tuple[str, ...], *, class_map: Mapping[str, str] | None = None
) -> Dataset:
    """Return the data set with its labels in the order of an artefact's class names.

    The same names in another order are permuted, and said. Other names are refused, unless `class_map` maps them.

    Args:
        dataset: any data set.
        class_names: of the artefact.
        class_map: class name in the data -> the artefact's; several may map to one, and names left out stay as they are.

    Raises:
        BadDataError: the names differ; the message lists how.
        UsageError: `class_map` names a class that the data does not have.
    """
    mapped = _mapped_names(dataset.class_names, class_map or {})
    if mapped == class_names:
        return replace(dataset, class_names=class_names)
    extra, missing = sorted(set(mapped) - set(class_names)), sorted(set(class_names) - set(mapped))
    if extra or missing:
        raise BadDataError(
            f"the classes of `{dataset.name}` are not the model's: "
            f"only in the data {shortened(extra) or 'none'}, only in the model {shortened(missing) or 'none'}",
            expected=shortened(class_names, limit=20),
            hint=f"--class-map {(extra or ['THEIRS'])[0]}={(missing or ['OURS'])[0]}, once for each name that differs",
        )
    logger.info("the labels of `%s` are put into the model's order: %s", dataset.name, shortened(class_names, limit=20))
    positions = {name: number for number, name in enumerate(class_names)}
    numbers = [positions[name] for name in mapped]

    def aligned(examples: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(
            replace(example, labels=tuple(sorted({numbers[label] for label in example.labels}))) for example in examples
        )

    return replace(
        dataset,
        class_names=class_names,
        train=aligned(dataset.train),
        val=aligned(dataset.val),
        test=aligned(dataset.test),
    )


def _with_class_map(listing: Listing, class_map: Mapping[str, str]) -> Listing:
    if not class_map:
        return listing
    names = tuple(sorted(listing.classes))
    renamed = dict(zip(names, _mapped_names(names, class_map), strict=True))
    entries = tuple(
        replace(entry, class_names=tuple(sorted({renamed[name] for name in entry.class_names})))
        for entry in listing.entries
    )
    return replace(listing, entries=entries, classes=frozenset(renamed.values()))


def _task_of(listing: Listing, wanted: Literal["auto", "single-label", "multi-label"]) -> DataTask:
    """Return the task that the labels say, or the one asked for where they can be read so."""
    if wanted == "multi-label":
        return "multi-label"
    if not listing.not_single:
        return "single-label"
    if wanted == "single-label" or not listing.plural:
        raise BadDataError(
            listing.not_single,
            expected="one label for each image",
            hint=None if wanted == "single-label" else "for multi-label data, call the column `labels`",
        )
    logger.info("read as multi-label data: %s", listing.not_single)
    return "multi-label"


def _example(image: _Scanned, labels: tuple[int, ...]) -> Example:
    entry = image.entry
    return Example(id=entry.id, labels=labels, pixel_sha256=image.sha256, source=entry.source, text=entry.text)


def _once_each(scanned: Iterable[_Scanned]) -> list[_Scanned]:
    """Keep one image of each pixel hash, one of val before one of train, in the order of the hashes."""
    by_hash: dict[str, _Scanned] = {}
    ordered = sorted(scanned, key=lambda image: (image.sha256, image.entry.split != "val", image.entry.id))
    for image in ordered:
        by_hash.setdefault(image.sha256, image)
    if len(by_hash) < len(ordered):
        logger.info("%s images have the pixels of another one, and are left out", f"{len(ordered) - len(by_hash):,}")
    return list(by_hash.values())


def _mapped_names(names: tuple[str, ...], class_map: Mapping[str, str]) -> tuple[str, ...]:
    unknown = sorted(set(class_map) - set(names))
    if unknown:
        raise UsageError(f"the class map names `{unknown[0]}`", expected=shortened(names, limit=20))
    return tuple(class_map.get(name, name) for name in names)


def _scan(listing: Listing) -> tuple[list[_Scanned], list[SkippedFile]]:
    """Decode every image once, in threads (Pillow decodes outside the interpreter lock)."""
    scanned: list[_Scanned] = []
    skipped = [SkippedFile(id=identity, reason=reason) for identity, reason in listing.problems]
    entries = listing.entries
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="edgebert-scan") as threads,
        Progress("scan", len(entries)) as progress,
    ):
        for start in range(0, len(entries), _WINDOW):
            window = entries[start : start + _WINDOW]
            for entry, outcome in zip(window, threads.map(_hash_or_reason, window), strict=True):
                if isinstance(outcome, SkippedFile):
                    skipped.append(outcome)
                else:
                    scanned.append(_Scanned(entry, outcome))
                progress.advance()
    return scanned, skipped


def _hash_or_reason(entry: Entry) -> str | SkippedFile:
    try:
        return pixel_sha256(decode_source(entry.source))
    except (BadDataError, InputNotFoundError) as error:
        return SkippedFile(id=entry.id, reason=escape_text(error.what))


def _report_skipped(skipped: Sequence[SkippedFile], files: int, max_skipped: float) -> None:
    if not skipped:
        return
    lines = [f"{file.id}: {file.reason}" for file in skipped]
    counted = {"skipped_files": len(skipped)}  # the command line repeats the number in its last line
    logger.warning("skipped %s of %s files:%s", f"{len(skipped):,}", f"{files:,}", _list(lines), extra=counted)
    share = len(skipped) / files
    if share > max_skipped:
        allow = math.ceil(share * 100) / 100
        raise BadDataError(
            f"{len(skipped):,} of {files:,} files cannot be used ({share:.2%}), the first is `{skipped[0].id}`",
            expected=f"at most {max_skipped:.2%}",
            hint="repair or remove them" + (f", or allow them with `--max-skipped {allow}`" if allow < 1 else ""),
        )


def _warn_of_equal_pixels(scanned: Sequence[_Scanned]) -> None:
    """Warn of the same pixels in two splits that the user made, and of the same pixels under two labels."""
    known: set[str] = set()
    twice: set[str] = set()
    for image in scanned:
        (twice if image.sha256 in known else known).add(image.sha256)
    by_hash: dict[str, list[Entry]] = defaultdict(list)
    for image in scanned:
        if image.sha256 in twice:
            by_hash[image.sha256].append(image.entry)
    leaks: dict[tuple[str, str], list[str]] = defaultdict(list)
    contradictions: list[str] = []
    for entries in by_hash.values():
        first, *others = sorted(entries, key=lambda entry: _SPLITS.index(entry.split or "train"))
        for other in others:
            if other.class_names != first.class_names:
                contradictions.append(f"{first.id} ({_named(first)}) = {other.id} ({_named(other)})")
            if first.split and other.split and other.split != first.split:
                leaks[first.split, other.split].append(f"{first.id} = {other.id}")
    for (one, two), pairs in sorted(leaks.items()):
        _warn_of_pairs(pairs, f"the same pixels in {one} and {two}, so what is measured there is too good")
    _warn_of_pairs(contradictions, "the same pixels under different labels")


def _warn_of_pairs(pairs: Sequence[str], what: str) -> None:
    if pairs:
        logger.warning("%s pair(s) of files have %s:%s", f"{len(pairs):,}", what, _list(sorted(pairs)))


def _named(entry: Entry) -> str:
    return "|".join(entry.class_names) or "no label"


def _check_classes(
    split: SplitName, examples: Sequence[Example], class_names: tuple[str, ...], task: DataTask, *, supplied: bool
) -> None:
    """Refuse a split without images of some class; in multi-label data only train must have them all."""
    present = {label for example in examples for label in example.labels}
    empty = [name for number, name in enumerate(class_names) if number not in present]
    if empty and task == "multi-label" and split != "train" and examples:
        logger.warning("no image in %s has the label %s, so nothing is measured of it there", split, shortened(empty))
    elif empty:
        raise BadDataError(
            f"no usable image in {split} for class {shortened(empty)}",
            expected=f"images of all {len(class_names)} classes in each split",
            hint=f"add some, or leave `{split}` out and let it be taken from train" if supplied else None,
        )


def _example_order(example: Example) -> tuple[str, tuple[int, ...], str]:
    return example.pixel_sha256, example.labels, example.id


def _labels_text(example: Example) -> str:
    return "|".join(map(str, example.labels)) or "-"


def _text_identity(example: Example) -> str:
    return f" {hashlib.sha256(example.text.encode()).hexdigest()}" if example.text else ""


def _list(lines: Sequence[str]) -> str:
    more = f"\n  ... and {len(lines) - _LISTED:,} more" if len(lines) > _LISTED else ""
    return "".join(f"\n  {line}" for line in lines[:_LISTED]) + more
