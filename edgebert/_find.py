"""Finds out what the user's DATA means, and lists it."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

from edgebert._sources import (
    LAYOUTS,
    LabelUse,
    Listing,
    children,
    csv_listing,
    digits_listing,
    folder_listing,
    shortened,
    unlabelled_folder_listing,
)
from edgebert._tables import hub_listing, parquet_folder_listing, parquet_listing, saved_listing
from edgebert.errors import InputNotFoundError, UsageError

logger = logging.getLogger("edgebert")


def find_listing(data: str | Path, revision: str | None, labels: LabelUse = "needed") -> Listing:
    """List what DATA names: `digits`, a folder or file that is here, or a data set of the Hugging Face hub, in this order.

    Args:
        data: what the user wrote.
        revision: of a data set of the hub.
        labels: `ignored` where the images alone are wanted; then a folder of images needs no class folders, and a table
            no column of labels.

    Raises:
        BadDataError: it is there and cannot be used.
        InputNotFoundError: it is not there; the nearest name is suggested, never taken.
        UsageError: a revision, and not an id of the hub.
        UnavailableError: a package that reads this kind of data is not installed.
    """
    if not str(data).strip():
        raise UsageError("DATA is empty", expected=LAYOUTS)
    path = Path(data)
    there = _exists(path)
    if data == "digits" and isinstance(data, str):
        if there:
            logger.warning("`digits` is the built-in data set; write `./digits` for the folder")
        _refuse_revision(revision, data)
        return digits_listing()
    if there:
        _refuse_revision(revision, data)
        return _local_listing(path, labels)
    if isinstance(data, str) and _may_be_on_hub(data):
        try:
            return hub_listing(data, revision, labels)
        except InputNotFoundError as error:
            local = _not_there(path)
            raise InputNotFoundError(
                f"no folder or file `{data}` is here; {error.what}",
                expected=error.expected,
                hint=local.hint or error.hint,
            ) from error
    raise _not_there(path)


def _local_listing(path: Path, labels: LabelUse) -> Listing:
    if path.is_file():
        return parquet_listing(path, labels)
    if not path.is_dir():
        raise InputNotFoundError(f"`{path}` is neither a folder nor a regular file", expected=LAYOUTS)
    folders, files = children(path)
    if "labels.csv" in files:
        return csv_listing(path, labels)
    if "dataset_info.json" in files or "dataset_dict.json" in files:
        return saved_listing(path, labels)
    if not folders and any(name.endswith(".parquet") for name in files):
        return parquet_folder_listing(path, labels)
    return folder_listing(path) if labels == "needed" else unlabelled_folder_listing(path)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except ValueError:  # a NUL in the name
        return False
    except OSError as error:
        if isinstance(error, PermissionError):
            raise InputNotFoundError(f"cannot read `{path}`: {error.strerror}") from error
        return False
    return True


def _may_be_on_hub(data: str) -> bool:
    """Say whether this is `name` or `owner/name` and not the path of something missing in a folder that is here."""
    owner, _, name = data.rpartition("/")
    fits = re.fullmatch(r"(?:\w[\w.-]*/)?\w[\w.-]*", data, re.ASCII) is not None
    return fits and Path(name).suffix not in (".parquet", ".csv", ".zip") and not (owner and Path(owner).exists())


def _not_there(path: Path) -> InputNotFoundError:
    parent = next((above for above in path.absolute().parents if above.is_dir()), Path("/"))
    folders, files = children(parent)
    missing = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(missing, [*folders, *files], n=1)
    inside = f"`{parent}` holds {shortened(folders)}" if folders else LAYOUTS
    hint = f"did you mean `{parent / near[0]}`?" if near else None
    return InputNotFoundError(f"no such data: `{path}`", expected=inside, hint=hint)


def _refuse_revision(revision: str | None, data: str | Path) -> None:
    if revision is not None:
        raise UsageError(
            f"`{data}` has no revision `{revision}`", expected="a revision only with an id of the Hugging Face hub"
        )
