"""JPEG files decoded at a fraction of their size: nearly the same pixels, the same size, orientation and refusals."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.errors import ImageError
from edgebert.preprocess import Preprocessing, load_image, view_image
from edgebert.runtime.pipeline import Pipeline
from edgebert.testing import FakeRunner

RULES = [
    Preprocessing(height=24, width=32),
    Preprocessing(height=24, width=24, resize="crop", shortest_edge=30, interpolation="bicubic"),
    Preprocessing(height=24, width=24, resize="stretch-crop", shortest_edge=28),
]


def landscape(height: int, width: int) -> Image.Image:
    """Return waves with a bright corner: smooth as photographs are, and different from every side."""
    rows, columns, channel = np.mgrid[0:height, 0:width, 0:3]
    waves = 110 + 70 * np.sin(rows / height * 9 + channel) * np.cos(columns / width * 7 - channel)
    waves[: height // 4, : width // 4] += 60
    return Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, format_: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, quality=95, **options)
    return stream.getvalue()


def both(source: Any, rule: Preprocessing) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    exact, reduced = load_image(source, rule), load_image(source, rule, "reduced")
    assert reduced.shape == exact.shape
    assert reduced.flags.c_contiguous
    assert reduced.flags.owndata
    return exact.astype(np.int64), reduced.astype(np.int64)


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What size each JPEG had when its pixels were decoded."""
    sizes: list[tuple[int, int]] = []
    whole: Callable[..., Any] = Image.Image.convert

    def convert(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(image.size)
        converted: Image.Image = whole(image, *arguments, **options)
        return converted

    monkeypatch.setattr(Image.Image, "convert", convert)
    return sizes


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.resize)
@pytest.mark.parametrize("size", [(512, 640), (517, 643), (801, 500)])
def test_a_large_jpeg_becomes_nearly_the_same_pixels(rule: Preprocessing, size: tuple[int, int]) -> None:
    exact, reduced = both(jpeg(landscape(*size)), rule)
    assert not np.array_equal(exact, reduced)  # it was decoded otherwise
    assert np.abs(exact - reduced).max() <= 4
    assert np.abs(exact - reduced).mean() < 0.6


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((63, 63), (63, 63)),  # of 64 = 2 x 2 x 16 nothing is to spare
        ((64, 64), (32, 32)),
        ((127, 300), (64, 150)),
        ((128, 128), (32, 32)),
        ((256, 257), (32, 33)),
        ((2048, 2048), (256, 256)),  # an eighth is the least
        ((2048, 64), (1024, 32)),
    ],
)
def test_a_jpeg_keeps_twice_the_rows_and_columns_that_it_is_scaled_to(
    size: tuple[int, int], decoded: tuple[int, int], decoded_sizes: list[tuple[int, int]]
) -> None:
    load_image(jpeg(landscape(*size[::-1])), Preprocessing(height=16, width=16), "reduced")
    assert decoded_sizes == [decoded]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.resize)
def test_a_reduced_jpeg_is_upright(orientation: int, rule: Preprocessing) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact, reduced = both(jpeg(landscape(401, 523), exif=exif), rule)
    assert not np.array_equal(exact, reduced)
    assert np.abs(exact - reduced).mean() < 0.6


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_reduced_jpeg_is_converted_as_a_whole_one(mode: str) -> None:
    exact, reduced = both(jpeg(landscape(400, 400).convert(mode)), RULES[0])
    assert np.abs(exact - reduced).mean() < 1


def test_the_main_picture_of_a_multi_picture_jpeg_is_reduced() -> None:
    photo = jpeg(landscape(400, 500), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    exact, reduced = both(photo, RULES[0])
    assert not np.array_equal(exact, reduced)
    assert np.abs(exact - reduced).mean() < 0.6


def test_a_progressive_jpeg_is_reduced() -> None:
    exact, reduced = both(jpeg(landscape(400, 500), progressive=True), RULES[0])
    assert not np.array_equal(exact, reduced)
    assert np.abs(exact - reduced).mean() < 0.6


def test_what_is_no_large_jpeg_file_has_exact_pixels(tmp_path: Path) -> None:
    image = landscape(400, 500)
    small = jpeg(landscape(47, 63))
    png = tmp_path / "image.png"
    image.save(png)
    opened = Image.open(io.BytesIO(jpeg(image)))
    for source in (png, small, np.asarray(image), image, opened):
        exact, reduced = both(source, RULES[0])
        np.testing.assert_array_equal(exact, reduced)
    assert opened.size == (500, 400)  # a Pillow image is the caller's: nothing in it was changed


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_ribbon_has_exact_pixels(shape: tuple[int, int]) -> None:
    exact, reduced = both(jpeg(Image.new("RGB", shape, (9, 99, 199))), RULES[1])
    np.testing.assert_array_equal(exact, reduced)


def test_every_refusal_is_the_same() -> None:
    whole = jpeg(landscape(400, 500))
    huge = bytearray(whole)
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = b"\xff\x00\xff\x00"  # 65,280 x 65,280 pixels, says the header
    hostile = [
        b"",
        b"no image",
        whole[:200],
        whole[: len(whole) // 2],
        whole[:-50],
        bytes(huge),
        jpeg(Image.new("1", (9, 9)), "GIF"),
    ]
    for content in hostile:
        refusals = []
        for decoding in ("exact", "reduced"):
            with pytest.raises(ImageError) as refused:
                view_image(content, RULES[0], decoding)
            refusals.append(refused.value.what)
        assert refusals[0] == refusals[1]


def test_a_pipeline_that_reduces_says_so_once(toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = jpeg(landscape(400, 500))
    with caplog.at_level(logging.WARNING, logger="edgebert"):
        exact = Pipeline(FakeRunner(toy.spec), toy.card)
        assert not caplog.messages
        reduced = Pipeline(FakeRunner(toy.spec), toy.card, decoding="reduced")
        for _ in range(3):
            reduced.pre(content)
    assert len(caplog.messages) == 1
    assert "accuracy was measured with" in caplog.messages[0]
    np.testing.assert_array_equal(exact.pre(content)[0], load_image(content, toy.card.preprocessing))
    np.testing.assert_array_equal(reduced.pre(content)[0], load_image(content, toy.card.preprocessing, "reduced"))
    assert not np.array_equal(exact.pre(content), reduced.pre(content))
