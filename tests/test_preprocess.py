"""Decoding and resizing: exact pixels by the documented rule, or a typed refusal; never a third thing."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from edgebert import preprocess
from edgebert._json import JsonObject
from edgebert.errors import BadDataError, InputNotFoundError, MemoryExhaustedError
from edgebert.preprocess import (
    MAX_EDGE,
    Preprocessing,
    decode_image,
    load_batch,
    load_image,
    pixel_sha256,
    read_image_file,
    resize_image,
)

GRADIENT = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Write a PNG by hand, to reach what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})], ids=lambda o: o[0])
def test_decode_image_returns_exact_pixels(options: tuple[str, dict[str, object]]) -> None:
    decoded = decode_image(encoded(Image.fromarray(GRADIENT), options[0], **options[1]))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, GRADIENT)


def test_decode_image_goes_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(Image.fromarray(GRADIENT)))
    assert np.array_equal(decode_image(path), GRADIENT)
    assert np.array_equal(decode_image(str(path)), GRADIENT)


def test_decode_image_scales_16_bit_grey() -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_decode_image_spreads_16_bit_grey_over_the_whole_range() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = decode_image(encoded(Image.fromarray(ramp)))[:, :, 1].astype(np.float64)
    assert np.abs(grey - ramp / 257).max() <= 0.5


def test_decode_image_makes_the_colour_key_of_16_bit_grey_white() -> None:
    deep = np.array([[0, 514, 30000]], np.uint16)
    assert decode_image(encoded(Image.fromarray(deep), transparency=514))[0, :, 2].tolist() == [0, 255, 117]


def test_decode_image_keeps_the_high_byte_of_16_bit_colour() -> None:
    row = b"\0" + struct.pack(">3H", 0x1234, 0xFFFF, 0x00FF)
    assert decode_image(png(1, 1, 16, 2, row)).tolist() == [[[0x12, 0xFF, 0x00]]]


def test_decode_image_repeats_grey_and_one_bit() -> None:
    grey = np.array([[0, 100, 255]], np.uint8)
    assert decode_image(encoded(Image.fromarray(grey)))[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
    one_bit = Image.fromarray(grey > 99)
    assert one_bit.mode == "1"
    assert decode_image(encoded(one_bit))[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


def test_decode_image_composites_alpha_over_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert decode_image(encoded(Image.fromarray(rgba)))[0].tolist() == [[10, 20, 30], [255] * 3, [127] * 3]


def test_decode_image_composites_grey_alpha_over_white() -> None:
    grey_alpha = Image.merge("LA", (Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)))
    assert decode_image(encoded(grey_alpha)).tolist() == [[[204, 204, 204]]]


def test_decode_image_composites_a_palette_with_transparency_over_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert decode_image(encoded(image))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    keyed = encoded(image, transparency=1)
    assert decode_image(keyed)[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    half = encoded(image, transparency=bytes([255, 255, 0]))
    assert decode_image(half)[0].tolist() == [[255, 0, 0], [0, 255, 0], [255, 255, 255]]


@pytest.mark.parametrize(("mode", "key"), [("L", 100), ("RGB", (100, 100, 100))])
def test_decode_image_makes_a_colour_key_white(mode: str, key: object) -> None:
    image = Image.fromarray(np.array([[7, 100, 200]], np.uint8)).convert(mode)
    assert decode_image(encoded(image, transparency=key))[0, :, 0].tolist() == [7, 255, 200]


@pytest.mark.parametrize(
    "hostile",
    [
        png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")),
        png(2, 1, 4, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")),
        png(1, 1, 16, 2, b"\0" + bytes(6), chunk(b"tRNS", bytes(6))),
    ],
    ids=["grey-2", "grey-4", "colour-16"],
)
def test_decode_image_refuses_the_colour_keys_that_pillow_mistakes(hostile: bytes) -> None:
    with pytest.raises(BadDataError, match="colour key"):
        decode_image(hostile)


def test_decode_image_converts_cmyk() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = decode_image(encoded(cmyk, "JPEG", quality=100))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_decode_image_applies_the_exif_orientation(orientation: int, format_: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # one white corner, top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), format_, exif=exif))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 8  # JPEG and WebP lose a little


def test_decode_image_takes_an_unreadable_exif_block_for_upright() -> None:
    jpeg = encoded(Image.fromarray(GRADIENT), "JPEG", exif=b"Exif\0\0this is no TIFF header")
    assert decode_image(jpeg).shape == GRADIENT.shape


def test_decode_image_takes_the_main_picture_of_a_multi_picture_jpeg() -> None:
    preview = Image.new("RGB", (8, 8), "blue")
    photo = encoded(Image.new("RGB", (16, 8), "red"), "MPO", save_all=True, append_images=[preview])
    decoded = decode_image(photo)
    assert decoded.shape == (8, 16, 3)
    assert decoded[0, 0, 0] > 250
    assert decoded[0, 0, 2] < 5


def truncated(format_: str) -> bytes:
    whole = encoded(Image.fromarray(noise(64, 64)), format_)
    return whole[: len(whole) * 2 // 3]


HOSTILE = {
    "empty": b"",
    "text": b"this is a text file, named .jpg",
    "truncated PNG": truncated("PNG"),
    "truncated JPEG": truncated("JPEG"),
    "truncated WebP": truncated("WEBP"),
    "truncated BMP": truncated("BMP"),
    "header only": encoded(Image.fromarray(GRADIENT))[:8],
    "GIF": encoded(Image.fromarray(GRADIENT), "GIF"),
    "TIFF": encoded(Image.fromarray(GRADIENT), "TIFF"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "animated WebP": encoded(
        Image.fromarray(GRADIENT), "WEBP", save_all=True, append_images=[Image.new("RGB", (6, 4))]
    ),
    "APNG": encoded(Image.fromarray(GRADIENT), "PNG", save_all=True, append_images=[Image.new("RGB", (6, 4))]),
    "bomb of 400 megapixels": png(20_000, 20_000, 8, 2, b""),
    "bomb of 144 megapixels": png(12_000, 12_000, 8, 2, b""),
    "bomb of 51 megapixels": png(7_200, 7_200, 8, 0, b""),
    "ribbon": png(MAX_EDGE + 1, 1, 8, 0, b""),
    "no pixels": png(4, 4, 8, 2, b""),
    "wrong checksum": encoded(Image.fromarray(noise(32, 32)))[:-40] + bytes(40),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_decode_image_refuses_what_is_no_whole_still_image(content: bytes) -> None:
    with pytest.raises(BadDataError):
        decode_image(content)


def test_decode_image_reads_no_pixel_of_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise AssertionError("the pixels were loaded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(BadDataError, match="12000 x 12000"):
        decode_image(HOSTILE["bomb of 144 megapixels"])


@pytest.mark.parametrize("mode", ["F", "I", "La"])
def test_decode_image_refuses_pillow_images_of_other_depths(mode: str) -> None:
    with pytest.raises(BadDataError):
        decode_image(Image.new(mode, (2, 2)))


def test_decode_image_refuses_a_truncated_pillow_image() -> None:
    with Image.open(io.BytesIO(truncated("PNG"))) as lazy, pytest.raises(BadDataError, match="cannot be decoded"):
        decode_image(lazy)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.shape}{array.dtype}",
)
def test_decode_image_refuses_other_arrays(array: NDArray[np.uint8]) -> None:
    with pytest.raises(BadDataError, match="uint8"):
        decode_image(array)


def test_decode_image_leaves_warning_filters_alone_when_many_threads_decode() -> None:
    before = list(warnings.filters)
    jpeg = encoded(Image.fromarray(noise(16, 16)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    threads = [threading.Thread(target=lambda: [decode_image(jpeg) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_decode_image_in_a_signal_handler_that_interrupted_another_decoding() -> None:
    def interrupted() -> None:
        with preprocess._without_warnings():
            decode_image(encoded(Image.fromarray(GRADIENT)))

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
def test_decode_image_works_in_a_child_that_is_forked_while_a_thread_decodes() -> None:
    script = """
import io, os, signal, sys, threading, warnings
import numpy as np
from PIL import Image, PngImagePlugin
from edgebert.preprocess import _without_warnings, decode_image
there, go = threading.Event(), threading.Event()
def decode():
    with _without_warnings():
        there.set()
        go.wait()
filters = list(warnings.filters)
threading.Thread(target=decode).start()
there.wait()
threading.Timer(0.05, go.set).start()
child = os.fork()
if child == 0:
    signal.alarm(20)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    decode_image(file.getvalue())
    os._exit(41 if warnings.filters == filters else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        script,
    ]  # forking with threads is what is tested
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (41, "")


@pytest.mark.parametrize("step", ["open", "load", "getexif", "convert"])
def test_decode_image_does_not_blame_an_image_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    content = encoded(Image.fromarray(GRADIENT))
    if step == "open":
        monkeypatch.setattr(Image, "open", exhausted)
    for kind in (Image.Image, PngImagePlugin.PngImageFile):
        if step in vars(kind):
            monkeypatch.setattr(kind, step, exhausted)
    with pytest.raises(MemoryExhaustedError, match="memory ran out"):
        decode_image(content)


def test_read_image_file_refuses_what_is_no_regular_file_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    with pytest.raises(BadDataError, match="no regular file"):
        read_image_file(fifo)
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    for name in (loop, tmp_path / "missing.png", tmp_path, tmp_path / "a\0b"):
        with pytest.raises((InputNotFoundError, BadDataError)):
            read_image_file(name)


def test_resize_image_stretches_by_hand_computation() -> None:
    checker = np.array([[0, 100], [200, 60]], np.uint8)[:, :, np.newaxis].repeat(3, axis=2)
    one = resize_image(checker, Preprocessing(height=1, width=1, interpolation="box"))
    assert one.tolist() == [[[90, 90, 90]]]
    # Bilinear, twice as wide: sample centres at -0.25, 0.25, 0.75, 1.25 of the two columns; 25 and 75 % between them.
    wide = resize_image(checker[:1], Preprocessing(height=1, width=4))
    assert wide[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize(
    ("rows", "columns", "edge", "top", "left"),
    [(4, 4, 4, 1, 1), (4, 9, 4, 1, 3), (9, 4, 4, 3, 1), (4, 5, 4, 1, 1), (4, 8, 4, 1, 3)],
)
def test_resize_image_cuts_the_centre(rows: int, columns: int, edge: int, top: int, left: int) -> None:
    image = noise(rows, columns)
    cut = resize_image(image, Preprocessing(height=2, width=2, resize="crop", shortest_edge=edge))
    assert np.array_equal(cut, image[top : top + 2, left : left + 2])


def test_resize_image_rounds_the_long_edge_downwards() -> None:
    image = noise(10, 15)  # shortest edge 7: 7 x floor(10.5) = 7 x 10
    preprocessing = Preprocessing(height=7, width=7, resize="crop", shortest_edge=7)
    scaled = np.asarray(Image.fromarray(image).resize((10, 7), Image.Resampling.BILINEAR))
    assert np.array_equal(resize_image(image, preprocessing), scaled[:, 1:8])


@pytest.mark.parametrize("shape", [(1, MAX_EDGE), (MAX_EDGE, 1)])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_resize_image_stays_small_when_the_image_is_a_ribbon(shape: tuple[int, int], resize: str) -> None:
    ribbon = np.full((*shape, 3), 77, np.uint8)
    rule = Preprocessing(height=224, width=224, shortest_edge=256, resize="crop")
    preprocessing = rule if resize == "crop" else Preprocessing(height=224, width=224)
    assert np.array_equal(resize_image(ribbon, preprocessing), np.full((224, 224, 3), 77, np.uint8))


def test_resize_image_cuts_the_same_part_out_of_a_ribbon(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(9, 60)
    preprocessing = Preprocessing(height=12, width=16, resize="crop", shortest_edge=18)
    whole = resize_image(image, preprocessing).astype(int)
    monkeypatch.setattr("edgebert.preprocess.MAX_PIXELS", 1)
    assert np.abs(resize_image(image, preprocessing) - whole).max() <= 1


@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_resize_image_owns_its_memory(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    kept = image.copy()
    resized = resize_image(image, Preprocessing(height=8, width=8))
    resized[:] = 0
    assert resized.flags.c_contiguous
    assert np.array_equal(image, kept)


def test_load_image_is_equal_from_every_kind_of_source(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(GRADIENT))
    path = tmp_path / "image.png"
    path.write_bytes(content)
    preprocessing = Preprocessing(height=3, width=3)
    expected = load_image(GRADIENT, preprocessing)
    for source in (path, str(path), content, Image.fromarray(GRADIENT), GRADIENT[:, ::-1][:, ::-1]):
        assert np.array_equal(load_image(source, preprocessing), expected)
    batch = load_batch([path, content], preprocessing)
    assert batch.shape == (2, 3, 3, 3)
    assert load_batch([], preprocessing).shape == (0, 3, 3, 3)


def test_pixel_sha256_goes_by_pixels_and_shape() -> None:
    assert pixel_sha256(GRADIENT) == pixel_sha256(GRADIENT[:, ::-1][:, ::-1])
    assert pixel_sha256(GRADIENT) != pixel_sha256(GRADIENT.reshape(6, 4, 3))


def test_preprocessing_survives_json() -> None:
    for preprocessing in (
        Preprocessing(height=8, width=9),
        Preprocessing(height=8, width=9, resize="crop", shortest_edge=12, mean=(0.1, 0.2, 0.3), channel_order="bgr"),
    ):
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
        assert Preprocessing.from_json(preprocessing.to_json()).sha256() == preprocessing.sha256()
    assert Preprocessing(height=8, width=9).sha256() != Preprocessing(height=9, width=8).sha256()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 0),
        ("height", 4097),
        ("width", "8"),
        ("width", True),
        ("width", None),
        ("resize", "pad"),
        ("shortest_edge", 12),
        ("interpolation", "cubic"),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "x"]),
        ("std", [0.5, 0.0, 0.5]),
        ("std", [0.5, -1, 0.5]),
        ("mean", [0.5, math.inf, 0.5]),
        ("channel_order", "gbr"),
        ("colour", "grey"),
    ],
)
def test_preprocessing_from_json_refuses(field: str, value: object) -> None:
    fields: dict[str, object] = {**Preprocessing(height=8, width=8).to_json(), field: value}
    with pytest.raises(BadDataError, match="preprocessing"):
        Preprocessing.from_json(fields)  # type: ignore[arg-type]  # the point of the test


def test_preprocessing_from_json_refuses_a_missing_field() -> None:
    whole = Preprocessing(height=8, width=8).to_json()
    for field in whole:
        fields: JsonObject = {key: value for key, value in whole.items() if key != field}
        if field == "shortest_edge":
            continue  # optional: `stretch` has none
        with pytest.raises(BadDataError, match=field):
            Preprocessing.from_json(fields)


def test_preprocessing_refuses_a_crop_that_is_larger_than_the_scaled_image() -> None:
    with pytest.raises(BadDataError, match="shortest_edge"):
        Preprocessing(height=8, width=16, resize="crop", shortest_edge=12)
