"""An entry of the image corpus: how its bytes are made, and what must become of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels: TypeAlias = NDArray[np.uint8]  # (height, width, 3) RGB


@dataclass(frozen=True, slots=True)
class Exactly:
    """These pixels, bit by bit; from the samples that were written, never from a decoder."""

    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Nearly:
    """These pixels, each within `most` of 255: what a lossy encoder was given, since decoders differ in rounding."""

    pixels: Pixels
    most: int


@dataclass(frozen=True, slots=True)
class Refused:
    """`ImageError`, with these words in what it says."""

    words: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """Pixels of this size, whatever they are: lossy formats have no checksum, and the damage left a well-formed file."""

    height: int
    width: int


Expected: TypeAlias = "Exactly | Nearly | Refused | Unseen"


@dataclass(frozen=True, slots=True)
class Case:
    """One file of the corpus.

    Attributes:
        name: unique; its last part is the file's extension, which may lie.
        make: returns the bytes, the same at every call.
        expected: returns what must become of them.
    """

    name: str
    make: Callable[[], bytes]
    expected: Callable[[], Expected]


def exact(name: str, content: bytes, pixels: NDArray[np.integer]) -> Case:
    """Return a case of exact pixels, (height, width, 3) in [0, 255]."""
    return Case(name, lambda: content, lambda: Exactly(pixels.astype(np.uint8)))


def near(name: str, content: bytes, pixels: NDArray[np.integer], most: int) -> Case:
    """Return a case of pixels within a tolerance, (height, width, 3) in [0, 255]."""
    return Case(name, lambda: content, lambda: Nearly(pixels.astype(np.uint8), most))


def refused(name: str, content: bytes, words: str) -> Case:
    """Return a case that must be refused."""
    return Case(name, lambda: content, lambda: Refused(words))


def unseen(name: str, content: bytes, size: tuple[int, int]) -> Case:
    """Return a case of damage that nobody can see; `size` is height and width."""
    return Case(name, lambda: content, lambda: Unseen(*size))


def smooth(height: int = 24, width: int = 32) -> Pixels:
    """Return waves that a lossy encoder hardly changes."""
    rows, columns, channel = np.mgrid[0:height, 0:width, 0:3]
    waves: NDArray[np.float64] = 128 + 80 * np.sin(rows / 9 + channel) * np.cos(columns / 11 - channel)
    pixels: Pixels = waves.round().astype(np.uint8)
    return pixels


def noise(height: int, width: int, channels: int, depth: int = 8, seed: int = 0) -> NDArray[np.integer]:
    """Return samples of every value: (height, width, channels) below 2 ** depth."""
    return np.random.default_rng(seed).integers(0, 2**depth, (height, width, channels))


def encoded(image: Image.Image | NDArray[np.integer], format_: str, **options: object) -> bytes:
    """Return what Pillow writes."""
    stream = io.BytesIO()
    (Image.fromarray(image.astype(np.uint8)) if isinstance(image, np.ndarray) else image).save(
        stream, format_, **options
    )
    return stream.getvalue()
