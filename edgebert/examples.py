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

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError, UsageError
from edgebert.preprocess import Preprocessing, RgbImage, decode_image

if TYPE_CHECKING:
    from edgebert.data import Example

MIN_EXAMPLES = 3  # a bundle holds at least three canaries
MAX_EXAMPLES = 64
MAX_EXAMPLE_BYTES = 64 << 20  # a lossless image of the largest size that is kept


@dataclass(frozen=True, slots=True)
class ExampleImage:
    """One real image with its labels.

    Attributes:
        labels: the names of its classes: one, or any number of them in multi-label data.
        png: a PNG file, uint8 RGB.
    """

    labels: tuple[str, ...]
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
        class_names: which the labels are numbers of.
        preprocessing: the rule of the artefact; larger images are shrunk until their shortest edge is twice the network's
            larger side, smaller ones are kept as they are.
        count: 0 for none, or 3 to 64.

    Returns:
        `count` images, or all there are, in the order of their labels.

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
        ExampleImage(tuple(class_names[label] for label in example.labels), example_png(example.load(), preprocessing))
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
    return [
        {**labels_to_json(example.labels), "png": base64.b64encode(example.png).decode("ascii")} for example in examples
    ]


def examples_from_json(value: JsonValue, *, what: str) -> tuple[ExampleImage, ...]:
    """Read what `examples_to_json` wrote.

    Raises:
        BadDataError: a field is missing or of another type, too many images, or one that is no PNG.
    """
    entries = Fields({"examples": value}, what=what).list_of_fields("examples")
    if len(entries) > MAX_EXAMPLES:
        raise BadDataError(f"{what} holds {len(entries)} example images", expected=f"at most {MAX_EXAMPLES}")
    return tuple(checked_example(labels_from_json(entry), _from_base64(entry), what=what) for entry in entries)


def labels_to_json(labels: tuple[str, ...]) -> JsonObject:
    """Return the labels as fields of an object: `label` where there is one, as it always was, else a list as `labels`."""
    return {"label": labels[0]} if len(labels) == 1 else {"labels": list(labels)}


def labels_from_json(fields: Fields) -> tuple[str, ...]:
    """Read what `labels_to_json` wrote.

    Raises:
        BadDataError: neither a name nor a list of names.
    """
    return fields.texts("labels") if "labels" in fields.value else (fields.text("label"),)


def checked_example(labels: tuple[str, ...], png: bytes, *, what: str) -> ExampleImage:
    """Return an example image whose bytes were found to be a whole PNG file.

    Raises:
        BadDataError: they are not.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) > MAX_EXAMPLE_BYTES:
        raise BadDataError(
            f"an example image of {what} is no PNG file", expected=f"PNG, at most {MAX_EXAMPLE_BYTES:,} bytes"
        )
    example = ExampleImage(labels, png)
    try:
        example.load()
    except BadDataError as error:
        raise BadDataError(f"an example image of {what} cannot be read: {error.what}") from error
    return example


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """Take the lowest pixel hash of each class, then the second lowest, and so on: no class twice before each came once.

    Where images have several labels, the same labels together count as a class.
    """
    by_class: dict[tuple[int, ...], list[Example]] = {}
    for example in sorted(examples, key=lambda example: (example.pixel_sha256, example.labels)):
        by_class.setdefault(example.labels, []).append(example)
    rounds = [
        (rank, example.pixel_sha256, labels, example)
        for labels, ranked in by_class.items()
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
