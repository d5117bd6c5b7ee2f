"""What host and device both know of a measurement: arms, images and launches as messages, and arrays as bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.artefact import Kind
from edgebert.bench.columns import read_npz
from edgebert.bench.samples import MAX_SAMPLES_BYTES, IntArray
from edgebert.bench.schema import Excluded
from edgebert.bench.selection import Selection
from edgebert.card import Task
from edgebert.data import Example
from edgebert.errors import BadDataError

KINDS: Mapping[str, Kind] = {"bundle": "bundle", "graph": "graph"}
_TASKS: Mapping[str, Task] = {"single-label": "single-label", "multi-label": "multi-label"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentArm:
    """An arm as a device gets it.

    Attributes:
        name: unique in the run.
        kind: `bundle` or `graph`.
        target: None where the runtime is to pick.
        file: the artefact's own name.
        files: name below it and SHA-256 of each of its files; one of the name "" where it is a file itself.
        control: whether this is the A/A control.
    """

    name: str
    kind: str
    target: str | None
    file: str
    files: tuple[tuple[str, str], ...]
    control: bool = False


def selection_to_json(selection: Selection, objects: Mapping[str, str]) -> JsonObject:
    """Return the test images as a message.

    Args:
        selection: of the host.
        objects: pixel SHA-256 -> SHA-256 of the encoded image that was pushed.
    """
    return {
        "name": selection.name,
        "task": selection.task,
        "skipped": selection.skipped,
        "class_names": list(selection.class_names),
        "orders": [order.tolist() for order in selection.orders],
        "excluded": [
            {"id": entry.id, "pixel_sha256": entry.pixel_sha256, "seen_by": list(entry.seen_by)}
            for entry in selection.excluded
        ],
        "examples": [
            [example.id, list(example.labels), example.pixel_sha256, objects[example.pixel_sha256]]
            for example in selection.examples
        ],
    }


def selection_from_json(fields: Fields, path_of: Callable[[str], Path]) -> Selection:
    """Read the test images of a message; `path_of` gives the file of an object."""
    examples = []
    listed: Any = fields.value.get("examples")
    assert isinstance(listed, list)
    for identity, labels, pixels, sha256 in listed:
        examples.append(
            Example(id=str(identity), labels=tuple(labels), pixel_sha256=str(pixels), source=path_of(str(sha256)))
        )
    orders: Any = fields.value.get("orders")
    assert isinstance(orders, list)
    return Selection(
        examples=tuple(examples),
        class_names=fields.texts("class_names"),
        orders=tuple(np.array(order, np.int64) for order in orders),
        excluded=tuple(
            Excluded(id=entry.text("id"), pixel_sha256=entry.text("pixel_sha256"), seen_by=entry.texts("seen_by"))
            for entry in fields.list_of_fields("excluded")
        ),
        name=fields.text("name"),
        skipped=fields.integer("skipped"),
        task=_TASKS[fields.text("task")],
    )


def names_of_times(forms: int, rounds: int) -> dict[str, tuple[int, int, int]]:
    """Return the names of the columns that `edgebert.bench.rounds.Times` are sent as: of each form, round and block of two.

    >>> list(names_of_times(2, 1))
    ['0-0-0', '0-0-1', '1-0-0', '1-0-1']
    """
    return {
        f"{form}-{round_}-{block}": (form, round_, block)
        for form in range(forms)
        for round_ in range(rounds)
        for block in range(2)
    }


def columns_to_bytes(columns: Mapping[str, IntArray]) -> bytes:
    """Return arrays as the bytes of a compressed `.npz`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in sorted(columns.items()):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(column, np.int64), allow_pickle=False)
    return stream.getvalue()


def columns_from_bytes(content: bytes, *, what: str) -> dict[str, IntArray]:
    """Read what `columns_to_bytes` wrote; nothing is unpickled, and nothing huge is unpacked.

    Raises:
        BadDataError: it is something else.
    """
    try:
        columns = read_npz(io.BytesIO(content), max_bytes=MAX_SAMPLES_BYTES)
    except BadDataError as error:
        raise BadDataError(f"{what} is no archive of columns: {error.what}", expected=error.expected) from error
    for name, column in columns.items():
        if column.ndim != 1:
            raise BadDataError(f"{what}, `{name:.80}`: {column.dtype} {column.shape}", expected="int64 (n,)")
    return columns
