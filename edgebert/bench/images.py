"""Decoded images on their way to the workers: raw pixels in a file of a temporary folder, sizes in the message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.bench.scratch import writing_to
from edgebert.data import Example
from edgebert.preprocess import RgbImage

CHUNK_IMAGES = 256
CHUNK_BYTES = 32 << 20  # of decoded pixels on their way at a time, unless one image alone is larger
TIMED_BYTES = 256 << 20  # of decoded pixels that a worker holds while it is timed


def chunks(examples: Sequence[Example]) -> Iterator[tuple[range, list[RgbImage]]]:
    """Yield the images of a split in chunks, decoded, each with the range of their positions."""
    start, images, size = 0, list[RgbImage](), 0
    for index, example in enumerate(examples):
        image = example.load()
        if images and (len(images) == CHUNK_IMAGES or size + image.nbytes > CHUNK_BYTES):
            yield range(start, index), images
            start, images, size = index, [], 0
        images.append(image)
        size += image.nbytes
    if images:
        yield range(start, len(examples)), images


def first_that_fit(examples: Iterable[Example]) -> list[RgbImage]:
    """Decode examples until `TIMED_BYTES` are reached; at least one."""
    images: list[RgbImage] = []
    size = 0
    for example in examples:
        image = example.load()
        size += image.nbytes
        if images and size > TIMED_BYTES:
            break
        images.append(image)
    return images


def write_images(path: Path, images: Sequence[RgbImage]) -> JsonObject:
    """Write images one after the other, and return what `read_images` needs.

    Raises:
        CannotWriteError: the folder is full.
    """
    with writing_to(path.parent), path.open("wb") as stream:
        for image in images:
            stream.write(np.ascontiguousarray(image).tobytes())
    heights, widths = [image.shape[0] for image in images], [image.shape[1] for image in images]
    return {"file": str(path), "heights": heights, "widths": widths}


def read_images(message: Fields) -> list[RgbImage]:
    """Read what `write_images` wrote: uint8 (height, width, 3) RGB, each owning its memory."""
    pixels = np.fromfile(message.text("file"), np.uint8)
    images, start = [], 0
    for height, width in zip(message.numbers("heights"), message.numbers("widths"), strict=True):
        size = int(height) * int(width) * 3
        images.append(pixels[start : start + size].reshape(int(height), int(width), 3).copy())  # (height, width, 3)
        start += size
    return images
