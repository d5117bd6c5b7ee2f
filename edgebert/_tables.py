"""Lists the images of parquet files and of Hugging Face data sets, without decoding any.

Images stay encoded until our own decoder sees their bytes. A parquet file cannot be read row by row, so its encoded images
are copied into a file without a name in the temporary folder (TMPDIR) and read from there; those of a Hugging Face data set
are read from its memory-mapped files. Memory holds neither.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgebert._json import Fields, parse_json_object
from edgebert._sources import (
    SPLIT_NAMES,
    Entry,
    LabelUse,
    Listing,
    Row,
    SplitName,
    children,
    class_name_of,
    distinct_names,
    given_splits,
    inside,
    label_column_of,
    name_of,
    shortened,
)
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError, UnavailableError
from edgebert.extras import install_command, require
from edgebert.preprocess import read_image_file

if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet

logger = logging.getLogger("edgebert")

_LOCAL_WAY = "edgebert train FOLDER, with FOLDER/train/<class>/*, or a folder written by `save_to_disk`"

_ROWS = 256  # of a parquet file read at a time

_HUB_SECONDS = 10.0  # it answers in well under one


class _ParquetImages:
    """The image column of a parquet file: bytes, or a struct of `bytes` and `path`."""

    def __init__(self, parquet: pyarrow.parquet.ParquetFile, folder: Path) -> None:
        self._folder = folder
        self._ends = array.array("Q", [0])
        self._others: dict[int, object] = {}  # rows that hold no bytes: paths, and what is no image
        with tempfile.TemporaryFile(prefix="edgebert-images-") as file:
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=["image"]):
                for value in batch.column(0).to_pylist():
                    held = value.get("bytes") if isinstance(value, Mapping) else value
                    encoded = held if isinstance(held, bytes) else b""
                    if not encoded:
                        self._others[len(self._ends) - 1] = value
                    file.write(encoded)
                    self._ends.append(self._ends[-1] + len(encoded))
            file.flush()
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def encoded(self, row: int) -> bytes:
        if row not in self._others:
            start, end = self._ends[row], self._ends[row + 1]
            return os.pread(self._descriptor, end - start, start)
        value = _bytes_or_path(self._others[row])
        return value if isinstance(value, bytes) else read_image_file(inside(self._folder, value))


class _HuggingFaceImages:
    """The image column of a Hugging Face data set, its decoding switched off."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        self._dataset, self._column = dataset.select_columns([column]), column

    def encoded(self, row: int) -> bytes:
        value = _bytes_or_path(self._dataset[row][self._column])
        return value if isinstance(value, bytes) else read_image_file(Path(value))


def parquet_listing(path: Path, labels: LabelUse = "needed") -> Listing:
    """List one parquet file: columns `image`, `label`, optional `text` and `split`.

    `image` holds bytes, or a struct of `bytes` and `path`; `label` holds names, or numbers that the file's own Hugging
    Face metadata names, or a list of either for several labels.

    Raises:
        BadDataError: no parquet file, or a column or label is missing or of another type.
        InputNotFoundError: it cannot be read.
        UnavailableError: pyarrow is not installed.
    """
    return _listing_of(name_of(path), _parquet_entries(path, path.name, None, labels), labels)


def parquet_folder_listing(folder: Path, labels: LabelUse = "needed") -> Listing:
    """List a folder of parquet files; `train-….parquet`, `validation-….parquet`, `test-….parquet` are splits.

    Raises:
        BadDataError: as `parquet_listing`, or some names say a split and others do not.
    """
    files = [name for name in children(folder)[1] if name.endswith(".parquet")]
    splits: list[SplitName | None] = [
        SPLIT_NAMES.get(re.split(r"[-_.]", name, maxsplit=1)[0].lower()) for name in files
    ]
    if len({split is None for split in splits}) > 1:
        raise BadDataError(f"`{folder}` holds {shortened(files)}", expected="all names to begin with a split, or none")
    entries = [
        entry
        for name, split in zip(files, splits, strict=True)
        for entry in _parquet_entries(folder / name, name, split, labels)
    ]
    return _listing_of(name_of(folder), entries, labels)


def saved_listing(folder: Path, labels: LabelUse = "needed") -> Listing:
    """List a folder that `datasets.Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        BadDataError: it cannot be loaded, or has no image or label column.
        UnavailableError: the `datasets` library is not installed.
    """
    library = require("datasets")
    try:
        loaded = library.load_from_disk(str(folder))
    except _library_errors() as error:
        raise BadDataError(f"`{folder}` cannot be loaded as a saved data set: {error}") from error
    return _listing_of_tables(name_of(folder), _tables_by_name(loaded), labels)


def hub_listing(data_id: str, revision: str | None, labels: LabelUse = "needed") -> Listing:
    """List a data set of the Hugging Face hub, downloaded into the library's own cache; no remote code is run.

    Where the hub does not answer, a copy in the cache is used, and said, unless a revision was asked for: the cache
    cannot tell which one it holds.

    Raises:
        InputNotFoundError: the hub does not answer or has no such data set, and the cache has no copy.
        BadDataError: it has no image or label column, or several configurations.
        RefusedError: it needs code of its own.
        UnavailableError: the `datasets` library is not installed.
    """
    library = require("datasets")
    commit = _commit_on_hub(data_id, revision)
    try:
        with contextlib.nullcontext() if commit else _only_from_cache(data_id):
            loaded = library.load_dataset(data_id, revision=commit)
    except _library_errors() as error:
        if "scripts are no longer supported" in str(error):
            raise RefusedError(f"the data set `{data_id}` needs code of its own", hint=_LOCAL_WAY) from error
        if isinstance(error, OSError):
            raise InputNotFoundError(f"cannot get the data set `{data_id}`: {error}", hint=_LOCAL_WAY) from error
        raise BadDataError(f"the data set `{data_id}` cannot be used: {error}", hint=_LOCAL_WAY) from error
    return _listing_of_tables(data_id, _tables_by_name(loaded), labels)


def _parquet_entries(path: Path, prefix: str, split: SplitName | None, labels: LabelUse) -> list[Entry]:
    with path.open("rb") as stream:
        if stream.read(4) != b"PAR1":
            raise BadDataError(
                f"`{path}` is no parquet file",
                expected="a parquet file, or a folder",
                hint="unpack it, give its folder",
            )
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnavailableError(f"`pyarrow` is not installed ({error})", hint=install_command("train")) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            label = label_column_of(columns, what=f"`{path}`") if labels == "needed" else None
            if "image" not in columns:
                raise BadDataError(f"`{path}` has the columns {', '.join(columns)}", expected="image, label")
            table = file.read(columns=[name for name in (label, "split", "text") if name in columns])
            images = _ParquetImages(file, path.parent)
        pyarrow.default_memory_pool().release_unused()  # reading takes several times what stays, and would keep it
    except (OSError, pyarrow.ArrowException) as error:
        raise BadDataError(f"`{path}` cannot be read as parquet: {error}") from error
    splits: Sequence[SplitName | None] = [split for _ in range(len(images))]
    if "split" in columns and split is None:
        splits = given_splits(table.column("split").to_pylist(), what=f"`{path}`")
    texts = _texts(table.column("text").to_pylist() if "text" in columns else [], len(images), prefix)
    classes: Sequence[tuple[str, ...]] = [() for _ in range(len(images))]
    if label is not None:
        names = _names_in_metadata(table.schema.metadata or {}, label, what=f"`{path}`")
        classes = _classes_of_rows(prefix, table.column(label).to_pylist(), names)
    return _entries(prefix, images, classes, splits, texts)


def _names_in_metadata(metadata: Mapping[bytes, bytes], label: str, *, what: str) -> tuple[str, ...] | None:
    """Return the class names that the `datasets` library writes into a parquet file, if it did."""
    if b"huggingface" not in metadata:
        return None
    features = parse_json_object(metadata[b"huggingface"], what=f"the metadata of {what}")
    for key in ("info", "features", label):
        inner = features.get(key)
        if not isinstance(inner, dict):
            return None
        features = inner
    if isinstance(features.get("feature"), dict):  # a list: what its elements are stands one level deeper
        features = dict(Fields(features, what=f"the metadata of {what}, `{label}`").fields("feature").value)
    return Fields(features, what=f"the metadata of {what}, `{label}`").texts("names") if "names" in features else None


def _listing_of_tables(name: str, tables: Mapping[str, datasets.Dataset], labels: LabelUse) -> Listing:
    splits: dict[str, SplitName | None] = {
        key: SPLIT_NAMES[key.lower()] for key in tables if key.lower() in SPLIT_NAMES
    }
    if len(tables) == 1:
        splits = dict.fromkeys(tables)  # one table is the whole, whatever its name
    elif "train" not in splits.values() and labels == "needed":
        raise BadDataError(f"`{name}` has the splits {shortened(list(tables))}", expected="`train` among them")
    others = [key for key in tables if key not in splits]
    if others:
        logger.warning("`%s`: not used, as they are no split: %s", name, shortened(others))
    entries = [
        entry
        for key, split in splits.items()
        for entry in _table_entries(tables[key], f"{name}, split `{key}`", key, split, labels)
    ]
    return _listing_of(name, entries, labels)


def _listing_of(name: str, entries: Sequence[Entry], labels: LabelUse) -> Listing:
    """Return the listing of a table: lists in its column of labels announce several, and only they can be other than one."""
    several = next((entry for entry in entries if len(entry.class_names) != 1), None) if labels == "needed" else None
    return Listing(
        name=name,
        entries=tuple(entries),
        classes=frozenset(name for entry in entries for name in entry.class_names),
        not_single=f"`{several.id}` has the labels {shortened(several.class_names) or 'none'}" if several else "",
        plural=True,
    )


def _table_entries(
    table: datasets.Dataset, what: str, prefix: str, split: SplitName | None, labels: LabelUse
) -> list[Entry]:
    library = require("datasets")
    features = table.features
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    if "image" in features:
        images = ["image"]
    if len(images) != 1:
        raise BadDataError(f"{what} has the columns {', '.join(features)}", expected="one column of images, or `image`")
    classes: Sequence[tuple[str, ...]] = [() for _ in range(len(table))]
    if labels == "needed":
        named = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
        label = named[0] if len(named) == 1 else label_column_of(list(features), what=what)
        element = getattr(features[label], "feature", features[label])  # of a list, what its elements are
        class_names = element.names if isinstance(element, library.ClassLabel) else None
        classes = _classes_of_rows(prefix, list(table.select_columns([label])[label]), class_names)
    texts = _texts(list(table.select_columns(["text"])["text"]) if "text" in features else [], len(table), prefix)
    if isinstance(features[images[0]], library.Image):
        table = table.cast_column(images[0], library.Image(decode=False))
    return _entries(prefix, _HuggingFaceImages(table, images[0]), classes, [split for _ in classes], texts)


def _entries(
    prefix: str,
    images: _ParquetImages | _HuggingFaceImages,
    classes: Sequence[tuple[str, ...]],
    splits: Sequence[SplitName | None],
    texts: Sequence[str],
) -> list[Entry]:
    return [
        Entry(id=f"{prefix}#{row}", class_names=names, split=split, source=Row(images, row), text=text)
        for row, (names, split, text) in enumerate(zip(classes, splits, texts, strict=True))
    ]


def _texts(values: Sequence[object], rows: int, prefix: str) -> list[str]:
    """Return the text of each row: "" where the table has no such column, or nothing in it."""
    if not values:
        return [""] * rows
    for row, value in enumerate(values):
        if not isinstance(value, (str, type(None))):
            raise BadDataError(f"`{prefix}#{row}` has text `{value!r:.80}`", expected="text, or nothing")
    return [str(value or "") for value in values]


def _classes_of_rows(prefix: str, labels: Sequence[object], names: Sequence[str] | None) -> list[tuple[str, ...]]:
    return [_classes_of(label, names, where=f"{prefix}#{row}") for row, label in enumerate(labels)]


def _classes_of(label: object, names: Sequence[str] | None, *, where: str) -> tuple[str, ...]:
    if isinstance(label, (list, tuple)):
        return distinct_names([_class_of(each, names, where=where) for each in label], where=f"`{where}`")
    return (_class_of(label, names, where=where),)


def _class_of(label: object, names: Sequence[str] | None, *, where: str) -> str:
    if isinstance(label, str) and label.strip():
        return class_name_of(label)
    if isinstance(label, int) and not isinstance(label, bool):
        if names is None:
            return str(label)
        if 0 <= label < len(names):
            return class_name_of(names[label])
    raise BadDataError(f"`{where}` has label `{label!r:.80}`", expected="a class name, or the number of one")


def _bytes_or_path(value: object) -> bytes | str:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, str)) and value:
        return value
    raise BadDataError(f"the row holds {type(value).__name__} as its image", expected="bytes of an image file")


def _tables_by_name(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    return cast("dict[str, datasets.Dataset]", dict(loaded)) if isinstance(loaded, dict) else {"data": loaded}


def _commit_on_hub(data_id: str, revision: str | None) -> str | None:
    """Return the commit to load, or None where the hub does not answer and only the cache can help.

    The question is asked once. The library alone would retry for 24 seconds before it says that nobody answers.
    """
    import huggingface_hub  # comes with `datasets`
    from huggingface_hub import errors

    try:
        return str(huggingface_hub.HfApi().dataset_info(data_id, revision=revision, timeout=_HUB_SECONDS).sha)
    except errors.HFValidationError as error:
        raise InputNotFoundError(f"no such data: `{data_id}`", expected=str(error), hint=_LOCAL_WAY) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.DisabledRepoError) as error:
        raise InputNotFoundError(
            f"the Hugging Face hub gives no data set `{data_id}`" + (f" at revision `{revision}`" if revision else ""),
            expected="a public data set, or one that `hf auth login` gives access to",
            hint=_LOCAL_WAY,
        ) from error
    except _connection_errors() as error:
        if revision:
            raise InputNotFoundError(
                f"the Hugging Face hub does not answer, asked for `{data_id}` at revision `{revision}`: {error}",
                hint=_LOCAL_WAY,
            ) from error
        return None


@contextlib.contextmanager
def _only_from_cache(data_id: str) -> Iterator[None]:
    """Let the library look into its cache only; there is no parameter for it."""
    config = require("datasets").config
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    except OSError as error:
        raise InputNotFoundError(
            f"the Hugging Face hub does not answer, and the cache has no copy of `{data_id}`", hint=_LOCAL_WAY
        ) from error
    finally:
        config.HF_HUB_OFFLINE = before
    logger.warning("the Hugging Face hub does not answer; `%s` is the copy in the cache", data_id)


def _library_errors() -> tuple[type[Exception], ...]:
    """Return what the `datasets` library raises on a data set that it cannot load."""
    from pyarrow import ArrowException  # comes with `datasets`

    own = require("datasets").exceptions.DatasetsError
    return (*_connection_errors(), ValueError, TypeError, KeyError, RuntimeError, ArrowException, own)


def _connection_errors() -> tuple[type[Exception], ...]:
    """Return OSError and the root error of the HTTP library that the hub's client uses, which is no OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
