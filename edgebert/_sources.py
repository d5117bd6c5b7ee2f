"""Lists the images of folders, `labels.csv` and the built-in digits, without decoding any.

What a listing does not hold: hidden files and folders (a name that starts with `.`, `Thumbs.db`, `desktop.ini`,
`__MACOSX`), which file managers leave behind, and files beside the class folders, which are named in a note.
Everything else below a class folder, at any depth, is an image of that class, or becomes a skipped file.

>>> escape_text("caf\\udce9\\n")
'caf\\\\xe9\\\\n'
"""

from __future__ import annotations

import csv
import io
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, TypeAlias

import numpy as np

from edgebert.errors import BadDataError, InputNotFoundError
from edgebert.extras import require
from edgebert.preprocess import RgbImage, decode_image, read_image_file

logger = logging.getLogger("edgebert")

SplitName = Literal["train", "val", "test"]

# Folder, file and column spellings of the three splits; compared in lower case.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

# Whether labels must be there, or the images alone are wanted.
LabelUse = Literal["needed", "ignored"]

_LEFT_BY_FILE_MANAGERS = {"thumbs.db", "desktop.ini", "__macosx"}

LAYOUTS = "train|val|test/<class>/*, <class>/*, labels.csv, a parquet file, or a folder of `save_to_disk`"


class EncodedImages(Protocol):
    """The image column of a table."""

    def encoded(self, row: int) -> bytes:
        """Return the file bytes of one row's image; raises `BadDataError` or `InputNotFoundError` where it has none."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a table, read when it is needed."""

    images: EncodedImages
    index: int


# Where an image lies: a file, the bytes of one, uint8 (height, width, 3) RGB pixels, or a row of a table.
ExampleSource: TypeAlias = "Path | bytes | RgbImage | Row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One listed image.

    Attributes:
        id: printable; where it lies in the data.
        class_names: of its labels, sorted, none twice; empty where it has none.
        split: None where the user leaves the split to us.
        source: where it lies.
        text: what the data says of it in words, "" for nothing.
    """

    id: str
    class_names: tuple[str, ...]
    split: SplitName | None
    source: ExampleSource
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a source holds.

    Attributes:
        name: for people, and never a path.
        entries: the images, not yet decoded.
        classes: all class names, those without any image included.
        problems: (id, reason) of what cannot be an image, such as a folder that contains itself.
        not_single: the first image that has not exactly one label, in words; "" where each has one.
        plural: whether the column of the labels announces several: `labels`, or lists.
    """

    name: str
    entries: tuple[Entry, ...]
    classes: frozenset[str]
    problems: tuple[tuple[str, str], ...] = ()
    not_single: str = ""
    plural: bool = False


@dataclass
class _Found:
    """What has been listed so far."""

    entries: list[Entry] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)  # class name -> the folder name it was made of
    problems: list[tuple[str, str]] = field(default_factory=list)

    def listing(self, name: str, *, not_single: str = "", plural: bool = False) -> Listing:
        return Listing(
            name=name,
            entries=tuple(self.entries),
            classes=frozenset(self.classes),
            problems=tuple(self.problems),
            not_single=not_single,
            plural=plural,
        )


def decode_source(source: ExampleSource) -> RgbImage:
    """Return the pixels of a listed image, uint8 (height, width, 3) RGB, owning their memory.

    Raises:
        BadDataError: it cannot be decoded.
        InputNotFoundError: it cannot be read.
    """
    if isinstance(source, Row):
        return decode_image(source.images.encoded(source.index))
    return decode_image(source).copy() if isinstance(source, np.ndarray) else decode_image(source)


def escape_text(text: str) -> str:
    """Return `text` with everything that does not print, bytes that are no UTF-8 included, as backslash escapes."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def class_name_of(text: str) -> str:
    """Return a class name that is equal wherever it was typed: composed (NFC) and printable."""
    return escape_text(unicodedata.normalize("NFC", text))


def folder_listing(folder: Path) -> Listing:
    """List `train|val|test/<class>/*`, or `<class>/*` where no split folder holds class folders.

    Raises:
        BadDataError: neither layout, or a layout that can be read in two ways.
        InputNotFoundError: a folder cannot be read.
    """
    folders, files = children(folder)
    named = [name for name in folders if name.lower() in SPLIT_NAMES]
    if any(children(folder / name)[0] for name in named):
        return _listing_of_splits(folder, named, [name for name in folders if name not in named])
    if named and named == folders:
        raise BadDataError(
            f"`{folder / named[0]}` holds no class folders", expected=f"{named[0]}/<class>/*", hint="or a labels.csv"
        )
    if not folders:
        what = f"holds {len(files)} file(s) but no class folders" if files else "is empty"
        raise BadDataError(f"`{folder}` {what}", expected=LAYOUTS)
    if files:
        logger.info("not used, as they lie beside the class folders: %s", shortened(files))
    found = _Found()
    for name in folders:
        inner = [child for child in children(folder / name)[0] if child.lower() in SPLIT_NAMES]
        if inner:
            raise BadDataError(
                f"class folder `{folder / name}` holds `{inner[0]}/`, so it looks like a data set of its own",
                expected=LAYOUTS,
                hint=f"give `{folder / name}` instead of `{folder}`",
            )
        _list_class(found, folder, (name,), None)
    return found.listing(name_of(folder))


def unlabelled_folder_listing(folder: Path) -> Listing:
    """List every file at any depth of a folder, whatever its folders are called.

    Of the folders at its top, `val` (or `valid`, `validation`) and `train` are those splits, and `test` is left out.

    Raises:
        BadDataError: the folder holds no files.
        InputNotFoundError: a folder cannot be read.
    """
    folders, files = children(folder)
    found = _Found(entries=[_unlabelled(folder, folder / name, None) for name in files])
    above = frozenset(_identity(parent) for parent in (*folder.resolve().parents, folder))
    for name in folders:
        split = SPLIT_NAMES.get(name.lower())
        if split == "test":
            logger.info("`%s` is left out, so that it can still judge what is trained here", folder / name)
            continue
        for path, problem in _files_below(folder / name, above):
            entry = _unlabelled(folder, path, split)
            if problem:
                found.problems.append((entry.id, problem))
            else:
                found.entries.append(entry)
    if not found.entries:
        raise BadDataError(f"`{folder}` holds no files", expected="images, at any depth")
    return found.listing(name_of(folder))


def csv_listing(folder: Path, labels: LabelUse = "needed") -> Listing:
    """List the images that `labels.csv` names: columns `file`, `labels`, optional `text` and `split`.

    `file` is relative to the folder and stays inside it. Several labels of one image are joined by `|`; an empty cell says
    that it has none.

    Args:
        folder: the one that holds `labels.csv`.
        labels: `ignored` where the images alone are wanted: then the column may be missing, and none is read.

    Raises:
        BadDataError: no CSV in UTF-8, a column or value is missing, a file twice, a label twice for one image.
        InputNotFoundError: it cannot be read.
    """
    path = folder / "labels.csv"
    try:
        reader = csv.DictReader(io.StringIO(read_image_file(path).decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
        columns = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadDataError(f"`{path}` cannot be read as CSV: {error}", expected="UTF-8 with commas") from error
    label_column = label_column_of(columns, what=str(path)) if labels == "needed" else None
    if "file" not in columns:
        raise BadDataError(f"`{path}` has the columns {', '.join(columns) or 'none'}", expected="file, labels")
    splits = given_splits([row.get("split") for _, row in rows], what=str(path))
    found, lines, not_single = _Found(), dict[str, int](), ""
    for (line, row), split in zip(rows, splits, strict=True):
        where = f"`{path}`, line {line},"
        if None in row or None in row.values():
            raise BadDataError(f"{where} has another number of fields than the header")
        file, cell = row["file"], row[label_column] if label_column else ""
        if file in lines:
            raise BadDataError(f"{where} names `{file}` again, first in line {lines[file]}")
        lines[file] = line
        names = _csv_classes(cell, where)
        if len(names) != 1 and not not_single:
            not_single = f"{where} has {f'several labels: `{escape_text(cell)}`' if names else 'no label'}"
        found.entries.append(
            Entry(
                id=escape_text(file),
                class_names=names,
                split=split,
                source=inside(folder, file),
                text=row.get("text", ""),
            )
        )
        found.classes.update(dict.fromkeys(names, cell))
    return found.listing(
        name_of(folder), not_single=not_single if label_column else "", plural=label_column == "labels"
    )


def digits_listing() -> Listing:
    """List scikit-learn's 1,797 handwritten digits: 8x8 grey, 0 to 16, brought to 0 to 255.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Raises:
        UnavailableError: scikit-learn is not installed.
    """
    digits = require("sklearn.datasets").load_digits()
    grey = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)  # (images, 8, 8)
    images = np.repeat(grey[:, :, :, np.newaxis], 3, axis=3)  # (images, 8, 8, 3)
    entries = tuple(
        Entry(id=f"digits/{index:04d}", class_names=(str(int(label)),), split=None, source=image)
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True))
    )
    return Listing(name="digits", entries=entries, classes=frozenset(str(digit) for digit in range(10)))


def label_column_of(columns: Sequence[str], *, what: str) -> str:
    """Return the column that holds the labels, `label` or `labels`; raises `BadDataError` where there is none, or both."""
    present = [name for name in ("label", "labels") if name in columns]
    if len(present) != 1:
        raise BadDataError(f"{what} has the columns {', '.join(columns) or 'none'}", expected="`label` or `labels`")
    return present[0]


def distinct_names(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return the class names of one image, sorted; raises `BadDataError` where one comes twice."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadDataError(f"{where} names the label `{twice}` twice", expected="each label of an image once")
    return tuple(sorted(names))


def given_splits(values: Sequence[object], *, what: str) -> list[SplitName | None]:
    """Return the split of each row of an optional `split` column: all filled in, or none."""
    if all(value is None or value == "" for value in values):
        return [None] * len(values)
    splits: list[SplitName | None] = []
    for number, value in enumerate(values):
        split = SPLIT_NAMES.get(value.lower()) if isinstance(value, str) else None
        if split is None:
            raise BadDataError(f"{what}, row {number}, has split `{value}`", expected=", ".join(SPLIT_NAMES))
        splits.append(split)
    return splits


def inside(folder: Path, file: str) -> Path:
    """Return `folder / file`; raises `BadDataError` where a table's path leaves the folder that the user named."""
    relative = PurePosixPath(file)
    if not file or "\0" in file or relative.is_absolute() or ".." in relative.parts:
        raise BadDataError(f"file name `{escape_text(file)}`", expected=f"a path inside `{folder}`, relative to it")
    return folder / relative


def children(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of everything else in `folder`, sorted by byte, hidden ones left out.

    Raises:
        InputNotFoundError: the folder cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _LEFT_BY_FILE_MANAGERS:
                    continue
                (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise InputNotFoundError(f"cannot read the folder `{folder}`: {error.strerror}") from error
    return sorted(folders, key=os.fsencode), sorted(files, key=os.fsencode)


def shortened(names: Sequence[str], limit: int = 10) -> str:
    """Return names joined by commas, printable, the rest counted."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(f"`{escape_text(name)}`" for name in names[:limit]) + more


def name_of(path: Path) -> str:
    """Return what to call a data set that lies at `path`: its last name, never the whole path."""
    return escape_text(path.resolve().name or "data")


def _listing_of_splits(folder: Path, names: list[str], others: list[str]) -> Listing:
    if others:
        logger.warning("`%s`: not used, as they are no split: %s", folder, shortened(others))
    by_split: dict[SplitName, str] = {}
    for name in names:
        split = SPLIT_NAMES[name.lower()]
        if split in by_split:
            raise BadDataError(f"`{folder}` holds `{by_split[split]}` and `{name}`", expected=f"one folder for {split}")
        by_split[split] = name
    if "train" not in by_split:
        raise BadDataError(f"`{folder}` holds {shortened(names)} but no `train`", expected="train/<class>/*")
    found = _Found()
    for split, name in by_split.items():
        classes, files = children(folder / name)
        if not classes:
            raise BadDataError(
                f"`{folder / name}` holds {len(files)} file(s) but no class folders",
                expected=f"{name}/<class>/*",
                hint=f"without `{name}`, a {split} split is taken out of train",
            )
        if files:
            logger.info("not used, as they lie beside the class folders of %s: %s", name, shortened(files))
        for class_folder in classes:
            _list_class(found, folder, (name, class_folder), split)
    return found.listing(name_of(folder))


def _list_class(found: _Found, root: Path, parts: tuple[str, ...], split: SplitName | None) -> None:
    class_name = class_name_of(parts[-1])
    twin = found.classes.setdefault(class_name, parts[-1])
    if twin != parts[-1]:
        raise BadDataError(
            f"two class folders are both called `{class_name}`, written with different bytes: {twin!a}, {parts[-1]!a}"
        )
    above = frozenset(_identity(parent) for parent in (*root.resolve().parents, *_prefixes(root, parts)))
    for path, problem in _files_below(root.joinpath(*parts), above):
        identity = escape_text(path.relative_to(root).as_posix())
        if problem:
            found.problems.append((identity, problem))
        else:
            found.entries.append(Entry(id=identity, class_names=(class_name,), split=split, source=path))


def _files_below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, str]]:
    """Yield (file, "") for every file at any depth, and (folder, reason) where symbolic links make a loop."""
    waiting = [(folder, above)]
    while waiting:
        here, above = waiting.pop()
        identity = _identity(here)
        if identity in above:
            yield here, "a symbolic link to a folder that contains it"
            continue
        folders, files = children(here)
        yield from ((here / name, "") for name in files)
        waiting.extend((here / name, above | {identity}) for name in reversed(folders))


def _unlabelled(root: Path, path: Path, split: SplitName | None) -> Entry:
    return Entry(id=escape_text(path.relative_to(root).as_posix()), class_names=(), split=split, source=path)


def _prefixes(root: Path, parts: tuple[str, ...]) -> list[Path]:
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts))]


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise InputNotFoundError(f"cannot read the folder `{folder}`: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself: reading it will say so
        return False


def _csv_classes(cell: str, where: str) -> tuple[str, ...]:
    """Return the class names of one cell, sorted: none for an empty one."""
    if not cell.strip():
        return ()
    labels = cell.split("|")
    if not all(label.strip() for label in labels):
        raise BadDataError(
            f"{where} has an empty label: `{escape_text(cell)}`", expected="names with one `|` between two of them"
        )
    # Blanks beside a `|` are typing, not part of a name; one name alone stays as it is written, as it always did.
    names = [class_name_of(label.strip() if len(labels) > 1 else label) for label in labels]
    return distinct_names(names, where=where)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python hands it over (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
