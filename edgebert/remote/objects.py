"""What a host sends to a device: images as they were encoded, and the files of artefacts, each by the SHA-256 of its content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from edgebert._files import read_input
from edgebert._json import JsonObject, JsonValue
from edgebert._sources import Row
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import to_json
from edgebert.data import Example
from edgebert.errors import UsageError
from edgebert.preprocess import RgbImage
from edgebert.remote.session import SentObject
from edgebert.remote.wire import KINDS, SentArm


def object_of_bytes(content: bytes) -> SentObject:
    """Return content as an object."""
    return SentObject(sha256=hashlib.sha256(content).hexdigest(), size=len(content), read=lambda: content)


def object_of_file(path: Path) -> SentObject:
    """Return a file as an object; it is read again where it is sent."""
    content = read_input(path, what="the file")
    return SentObject(
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        read=partial(read_input, path, what="the file"),
    )


def object_of_image(example: Example) -> SentObject:
    """Return an image as it lies in the data: the file's bytes; a PNG where the data holds pixels."""
    source = example.source
    if isinstance(source, Path):
        return object_of_file(source)
    if isinstance(source, bytes):
        return object_of_bytes(source)
    if isinstance(source, Row):
        content = source.images.encoded(source.index)
        return SentObject(
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            read=partial(source.images.encoded, source.index),
        )
    return object_of_bytes(png_of_image(source))


def object_without_loss(example: Example) -> SentObject:
    """Return an image as a PNG of the pixels that this computer decodes."""
    return object_of_bytes(png_of_image(example.load()))


def png_of_image(image: RgbImage) -> bytes:
    """Return a PNG of uint8 (height, width, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(stream, "PNG")
    return stream.getvalue()


def sent_arms(arms: Sequence[ArmRequest]) -> tuple[list[SentArm], list[SentObject]]:
    """Return arms as a device gets them, and the objects that they are made of.

    Raises:
        UsageError: a checkpoint: it runs in PyTorch, which no device is asked to have.
    """
    objects: dict[str, SentObject] = {}
    found = []
    files: dict[Path, tuple[tuple[str, str], ...]] = {}
    for arm in arms:
        if arm.kind not in KINDS:
            raise UsageError(
                f"arm `{arm.name}` is a {arm.kind}, which runs in PyTorch",
                expected="bundles and graphs on a device",
                hint="leave out `--host` to bench it here, or export it: edgebert export CHECKPOINT -o GRAPH.onnx",
            )
        if arm.path not in files:
            named = list(_files_of(arm.path))
            objects.update((entry.sha256, entry) for _, entry in named)
            files[arm.path] = tuple((name, entry.sha256) for name, entry in named)
        found.append(
            SentArm(
                name=arm.name,
                kind=arm.kind,
                target=arm.target,
                file=arm.path.resolve().name,
                files=files[arm.path],
                control=arm.control,
            )
        )
    return found, list(objects.values())


def arms_to_json(arms: Iterable[SentArm]) -> list[JsonValue]:
    """Return arms as a message holds them."""
    return [to_json(arm) for arm in arms]


def files_to_json(files: Mapping[str, SentObject]) -> list[JsonValue]:
    """Return named objects as a message holds them."""
    listed: list[JsonValue] = []
    for name, entry in files.items():
        described: JsonObject = {"name": name, "sha256": entry.sha256}
        listed.append(described)
    return listed


def _files_of(path: Path) -> Iterable[tuple[str, SentObject]]:
    if not path.is_dir():
        return [("", object_of_file(path))]
    below = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [(entry.relative_to(path).as_posix(), object_of_file(entry)) for entry in below]
