from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from PIL import Image

from edgebert._json import JsonValue
from edgebert.errors import BadDataError, UsageError
from edgebert.examples import (
    MAX_EXAMPLES,
    ExampleImage,
    example_images,
    examples_from_json,
    examples_to_json,
)
from edgebert.preprocess import Preprocessing, RgbImage, pixel_sha256

if TYPE_CHECKING:
    from edgebert.data import Example

RULE = Preprocessing(height=8, width=10)
CLASSES = ("cat", "dog", "hen")


@dataclass(frozen=True)
class FakeExample:
    """What `example_images` needs of a data set's example."""

    labels: tuple[int, ...]
    pixels: RgbImage

    @property
    def pixel_sha256(self) -> str:
        return pixel_sha256(self.pixels)

    def load(self) -> RgbImage:
        return self.pixels


def fakes(labels: list[int], size: tuple[int, int] = (12, 15)) -> list[Example]:
    random = np.random.default_rng(0)
    made = [FakeExample((label,), random.integers(0, 256, (*size, 3), np.uint8)) for label in labels]
    return cast("list[Example]", made)


def test_example_images_does_not_depend_on_the_order_of_the_data() -> None:
    examples = fakes([0, 1, 2] * 5)
    assert example_images(examples, CLASSES, RULE) == example_images(examples[::-1], CLASSES, RULE)


def test_example_images_spreads_over_the_classes() -> None:
    examples = fakes([0] * 50 + [1] * 3 + [2])
    assert [image.labels[0] for image in example_images(examples, CLASSES, RULE, 3)] == ["cat", "dog", "hen"]
    labels = [image.labels[0] for image in example_images(examples, CLASSES, RULE, 7)]
    assert (labels.count("cat"), labels.count("dog"), labels.count("hen")) == (3, 3, 1)


def test_example_images_takes_the_lowest_pixel_hashes() -> None:
    examples = fakes([0] * 9)
    chosen = [pixel_sha256(image.load()) for image in example_images(examples, CLASSES, RULE, 4)]
    assert chosen == sorted(example.pixel_sha256 for example in examples)[:4]


def test_example_images_keeps_small_images_bit_for_bit() -> None:
    examples = fakes([0, 1, 2], size=(20, 33))  # twice the larger side of the network's input
    kept = {pixel_sha256(image.load()) for image in example_images(examples, CLASSES, RULE)}
    assert kept == {example.pixel_sha256 for example in examples}


@pytest.mark.parametrize(("size", "shrunk"), [((40, 60), (20, 30)), ((99, 21), (94, 20)), ((21, 21), (20, 20))])
def test_example_images_shrinks_large_images(size: tuple[int, int], shrunk: tuple[int, int]) -> None:
    images = example_images(fakes([0, 1, 2], size=size), CLASSES, RULE)
    assert [image.load().shape for image in images] == [(*shrunk, 3)] * 3


def test_example_images_gives_none_when_asked_for_none() -> None:
    assert example_images(fakes([0, 1, 2]), CLASSES, RULE, 0) == ()


def test_example_images_gives_all_there_are_when_asked_for_more() -> None:
    assert len(example_images(fakes([0, 1, 2, 0, 1]), CLASSES, RULE, 8)) == 5


@pytest.mark.parametrize("count", [-1, 1, 2, MAX_EXAMPLES + 1])
def test_example_images_refuses_other_counts(count: int) -> None:
    with pytest.raises(UsageError, match="--examples"):
        example_images(fakes([0, 1, 2]), CLASSES, RULE, count)


def test_example_images_refuses_fewer_than_three_images() -> None:
    with pytest.raises(BadDataError, match="2 images"):
        example_images(fakes([0, 1]), CLASSES, RULE)


def test_examples_survive_json() -> None:
    images = example_images(fakes([0, 1, 2]), CLASSES, RULE)
    assert examples_from_json(examples_to_json(images), what="a graph") == images
    assert examples_from_json([], what="a graph") == ()


def png(image: RgbImage, file_format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format=file_format)
    return stream.getvalue()


RED = np.full((2, 2, 3), (255, 0, 0), np.uint8)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"label": "cat"}, "`examples`"),
        ([{"label": "cat"}], "`png`"),
        ([{"label": 7, "png": ""}], "`label`"),
        ([{"labels": ["cat", 7], "png": ""}], "`labels`"),
        ([{"label": "cat", "png": "%"}], "base64"),
        ([{"label": "cat", "png": ""}], "no PNG file"),
        ([{"label": "cat", "png": base64.b64encode(png(RED, "BMP")).decode()}], "no PNG file"),
        ([{"label": "cat", "png": base64.b64encode(png(RED)[:40]).decode()}], "cannot be read"),
        ([{"label": "cat", "png": base64.b64encode(png(RED)).decode()}] * (MAX_EXAMPLES + 1), "65 example images"),
    ],
)
def test_examples_from_json_refuses_malformed_lists(value: JsonValue, found: str) -> None:
    with pytest.raises(BadDataError) as raised:
        examples_from_json(value, what="a graph")
    assert found in str(raised.value)


def test_example_image_loads_its_pixels() -> None:
    assert np.array_equal(ExampleImage(("cat",), png(RED)).load(), RED)
