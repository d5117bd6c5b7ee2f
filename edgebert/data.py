"""Labelled images: what DATA may be, which images are usable, and which split each belongs to.

DATA is one of

* a folder `train|val|test/<class>/*` (`valid` and `validation` are `val`), or `<class>/*`, files at any depth;
* a folder with `labels.csv`: columns `file`, `labels`, optional `text` and `split`;
* a parquet file, or a folder of them: columns `image`, `label`, optional `text` and `split`;
* a folder written by `datasets.Dataset.save_to_disk`, or the id of a Hugging Face data set;
* `digits`: scikit-learn's 1,797 handwritten digits.

Class names come in plain order of their characters (so `10` before `2`); the order is part of every artefact. Every image
is decoded once, completely, by `edgebert.preprocess`; only its hash and where it lies are kept. What cannot be decoded is
skipped, named and counted, up to `DataOptions.max_skipped`. Nothing is written beside the data.

A split that the user supplies is kept as it is; a missing test split is 20 % of the whole and a missing val split 10 %
of train, by the rule of `edgebert._splits`.

>>> def example(label: int, pixels: str) -> Example:
...     return Example(id="a.png", label=label, pixel_sha256=pixels * 64, source=b"")
>>> dataset = Dataset(
...     name="pets", class_names=("cat", "dog"), train=(example(0, "a"), example(1, "b")), val=(), test=(), skipped=()
... )
>>> [example.label for example in align_classes(dataset, ("dog", "cat")).train]
[1, 0]
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from edgebert._splits import LabelledHash, choose_splits
from edgebert.card import check_class_names, hash_of_hashes
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.preprocess import RgbImage, pixel_sha256

__all__ = [
    "DataOptions",
    "Dataset",
    "Example",
    "ExampleSource",
    "SkippedFile",
    "SplitName",
    "align_classes",
    "load_dataset",
]

logger = logging.getLogger("edgebert")

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_LISTED = 20  # lines of a warning before the rest is only counted
_WINDOW = 1024  # images in flight while scanning, so that a million of them need no million of futures


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One usable image.

    Attributes:
        id: printable; the path below the data set's folder, or table and row.
        label: index into the data set's class names.
        pixel_sha256: identity of the decoded pixels (`edgebert.preprocess.pixel_sha256`).
        source: where it lies.
    """

    id: str
    label: int
    pixel_sha256: str
    source: ExampleSource = field(repr=False, compare=False)

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
    """

    max_skipped: float = 0.01
    class_map: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_skipped < 1:
            raise UsageError(f"max_skipped is `{self.max_skipped}`", expected="a share from 0 up to, not including, 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Labelled images in three splits; within a split in order of their hash."""

    name: str
    class_names: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: tuple[SkippedFile, ...]

    def split(self, name: SplitName) -> tuple[Example, ...]:
        """Return the examples of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def sha256(self) -> str:
        """Return the identity of class names, labels, splits and pixels; no names of files go in."""
        images = (
            f"{split} {example.label} {example.pixel_sha256}"
            for split in _SPLITS
            for example in sorted(self.split(split), key=_example_order)
        )
        return hash_of_hashes([*(f"class {name}" for name in self.class_names), *images])

    def summary(self) -> str:
        """Return one line with the images of each split, the classes and the skipped files."""
        used = len(self.train) + len(self.val) + len(self.test)
        return (
            f"{self.name}: {len(self.train):,} train, {len(self.val):,} val, {len(self.test):,} test images,"
            f" {len(self.class_names)} classes, {len(self.skipped):,} of {used + len(self.skipped):,} files skipped"
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
        BadDataError: too many unusable files, an empty or single class, several labels for an image, a bad table.
        InputNotFoundError: there is no such data, or it cannot be read, or the hub cannot be reached.
        UsageError: an option does not fit the data.
        UnavailableError: a package that reads this kind of data is not installed.
    """
    options = options or DataOptions()
    listing = _with_class_map(find_listing(data, options.revision), options.class_map)
    class_names = tuple(sorted(listing.classes))
    check_class_names(class_names)
    scanned, skipped = _scan(listing)
    _report_skipped(skipped, len(scanned) + len(skipped), options.max_skipped)
    _warn_of_equal_pixels(scanned)
    supplied = {entry.split for entry in listing.entries if entry.split}
    chosen = choose_splits(
        [LabelledHash(image.entry.class_name, image.sha256, image.entry.split) for image in scanned],
        class_names,
        missing=tuple(split for split in ("test", "val") if split not in supplied),
    )
    numbers = {name: number for number, name in enumerate(class_names)}
    splits: dict[SplitName, list[Example]] = {"train": [], "val": [], "test": []}
    for image in scanned:
        entry = image.entry
        split = entry.split if entry.split in ("val", "test") else chosen[image.sha256]
        example = Example(id=entry.id, label=numbers[entry.class_name], pixel_sha256=image.sha256, source=entry.source)
        splits[split].append(example)
    for split, examples in splits.items():
        _refuse_empty_class(split, examples, class_names, supplied=split in supplied)
    train, val, test = (tuple(sorted(splits[split], key=_example_order)) for split in _SPLITS)
    return Dataset(name=listing.name, class_names=class_names, train=train, val=val, test=test, skipped=tuple(skipped))


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
        return tuple(replace(example, label=numbers[example.label]) for example in examples)

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
    entries = tuple(replace(entry, class_name=renamed[entry.class_name]) for entry in listing.entries)
    return replace(listing, entries=entries, classes=frozenset(renamed.values()))


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


def _warn_of_equal_pixels(scanned: Iterable[_Scanned]) -> None:
    """Warn of the same pixels in two splits that the user made, and of the same pixels under two labels."""
    by_hash: dict[str, list[Entry]] = defaultdict(list)
    for image in scanned:
        by_hash[image.sha256].append(image.entry)
    leaks: dict[tuple[str, str], list[str]] = defaultdict(list)
    contradictions: list[str] = []
    for entries in by_hash.values():
        first, *others = sorted(entries, key=lambda entry: _SPLITS.index(entry.split or "train"))
        for other in others:
            if other.class_name != first.class_name:
                contradictions.append(f"{first.id} ({first.class_name}) = {other.id} ({other.class_name})")
            if first.split and other.split and other.split != first.split:
                leaks[first.split, other.split].append(f"{first.id} = {other.id}")
    for (one, two), pairs in sorted(leaks.items()):
        _warn_of_pairs(pairs, f"the same pixels in {one} and {two}, so what is measured there is too good")
    _warn_of_pairs(contradictions, "the same pixels under different labels")


def _warn_of_pairs(pairs: Sequence[str], what: str) -> None:
    if pairs:
        logger.warning("%s pair(s) of files have %s:%s", f"{len(pairs):,}", what, _list(sorted(pairs)))


def _refuse_empty_class(
    split: SplitName, examples: Iterable[Example], class_names: tuple[str, ...], *, supplied: bool
) -> None:
    present = {example.label for example in examples}
    empty = [name for number, name in enumerate(class_names) if number not in present]
    if empty:
        raise BadDataError(
            f"no usable image in {split} for class {shortened(empty)}",
            expected=f"images of all {len(class_names)} classes in each split",
            hint=f"add some, or leave `{split}` out and let it be taken from train" if supplied else None,
        )


def _example_order(example: Example) -> tuple[str, int, str]:
    return example.pixel_sha256, example.label, example.id


def _list(lines: Sequence[str]) -> str:
    more = f"\n  ... and {len(lines) - _LISTED:,} more" if len(lines) > _LISTED else ""
    return "".join(f"\n  {line}" for line in lines[:_LISTED]) + more
