"""Example images: a few real images that travel with a checkpoint and a graph.

`export` compares graph and checkpoint on them, and `compile` makes a bundle's canaries of them, so neither needs the data
again. They come from the images the user trains with; `--examples 0` keeps them all at home.

>>> examples_from_json([], what="a graph")
()
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgebert._json import Fields, JsonValue
from edgebert.errors import BadDataError, UsageError
from edgebert.preprocess import Preprocessing, RgbImage, decode_image

if TYPE_CHECKING:
    from edgebert.data import Example

MIN_EXAMPLES = 3  # a bundle holds at least three canaries
MAX_EXAMPLES = 64
MAX_EXAMPLE_BYTES = 64 << 20  # a lossless image of the largest size that is kept


@dataclass(frozen=True, slots=True)
class ExampleImage:
    """One real image with its class.

    Attributes:
        label: the name of its class.
        png: a PNG file, uint8 RGB.
    """

    label: str
    png: bytes

    def load(self) -> RgbImage:
        """Decode to uint8 (height, width, 3) RGB.

        Raises:
            BadDataError: it is no image.
        """
        return decode_image(self.png)


def check_example_count(count: int) -> None:
    """Raise `UsageError` unless `count` is 0, or 3 to 64."""
    if count != 0 and not MIN_EXAMPLES <= count <= MAX_EXAMPLES:
        raise UsageError(
            f"`--examples {count}`",
            expected=f"0 for none, or {MIN_EXAMPLES} to {MAX_EXAMPLES}: a bundle holds at least {MIN_EXAMPLES} canary images",
        )


def example_images(
    examples: Sequence[Example], class_names: tuple[str, ...], preprocessing: Preprocessing, count: int = 4
) -> tuple[ExampleImage, ...]:
    """Choose and encode example images: the same images on every machine, spread over the classes.

    Args:
        examples: the split to choose from.
        class_names: in the order of the labels.
        preprocessing: the rule of the artefact; larger images are shrunk until their shortest edge is twice the network's
            larger side, smaller ones are kept as they are.
        count: 0 for none, or 3 to 64.

    Returns:
        `count` images, or all there are, in the order of their classes.

    Raises:
        UsageError: `count` is 1, 2, negative or above 64.
        BadDataError: fewer than three images to choose from, or one cannot be decoded.
    """
    check_example_count(count)
    if count == 0:
        return ()
    if len(examples) < MIN_EXAMPLES:
        raise BadDataError(f"{len(examples)} images to choose examples from", expected=f"at least {MIN_EXAMPLES}")
    return tuple(
        ExampleImage(class_names[example.label], example_png(example.load(), preprocessing))
        for example in _spread(examples, count)
    )


def example_png(image: RgbImage, preprocessing: Preprocessing) -> bytes:
    """Encode uint8 (height, width, 3) RGB as PNG, its shortest edge at most twice the network's larger side."""
    stream = io.BytesIO()
    shrunk = _shrunk(image, 2 * max(preprocessing.height, preprocessing.width))
    Image.fromarray(np.ascontiguousarray(shrunk)).save(stream, format="PNG", compress_level=9)
    return stream.getvalue()


def examples_to_json(examples: Sequence[ExampleImage]) -> JsonValue:
    """Return the images as a JSON list, PNG files in base64."""
    return [{"label": example.label, "png": base64.b64encode(example.png).decode("ascii")} for example in examples]


def examples_from_json(value: JsonValue, *, what: str) -> tuple[ExampleImage, ...]:
    """Read what `examples_to_json` wrote.

    Raises:
        BadDataError: a field is missing or of another type, too many images, or one that is no PNG.
    """
    entries = Fields({"examples": value}, what=what).list_of_fields("examples")
    if len(entries) > MAX_EXAMPLES:
        raise BadDataError(f"{what} holds {len(entries)} example images", expected=f"at most {MAX_EXAMPLES}")
    return tuple(checked_example(entry.text("label"), _from_base64(entry), what=what) for entry in entries)


def checked_example(label: str, png: bytes, *, what: str) -> ExampleImage:
    """Return an example image whose bytes were found to be a whole PNG file.

    Raises:
        BadDataError: they are not.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) > MAX_EXAMPLE_BYTES:
        raise BadDataError(
            f"an example image of {what} is no PNG file", expected=f"PNG, at most {MAX_EXAMPLE_BYTES:,} bytes"
        )
    example = ExampleImage(label, png)
    try:
        example.load()
    except BadDataError as error:
        raise BadDataError(f"an example image of {what} cannot be read: {error.what}") from error
    return example


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Take the lowest pixel hash of each class, then the second lowest, and so on: no class twice before each came once."""
    by_class: dict[int, list[Example]] = {}
    for example in sorted(examples, key=lambda example: (example.pixel_sha256, example.label)):
        by_class.setdefault(example.label, []).append(example)
    rounds = [
        (rank, example.pixel_sha256, label, example)
        for label, ranked in by_class.items()
        for rank, example in enumerate(ranked)
    ]
    chosen = sorted(rounds, key=lambda entry: entry[:3])[:count]
    return [example for _, _, _, example in sorted(chosen, key=lambda entry: (entry[2], entry[1]))]


def _shrunk(image: RgbImage, most: int) -> RgbImage:
    rows, columns = image.shape[:2]
    edge = min(rows, columns)
    if edge <= most:
        return image
    size = (max(1, columns * most // edge), max(1, rows * most // edge))
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))


def _from_base64(entry: Fields) -> bytes:
    try:
        return base64.b64decode(entry.text("png"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadDataError(f"{entry.what}, `png`, is not base64: {error}") from error
