"""What is none of the four formats, most of it under a name of one of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images.case import Case, encoded, refused, smooth


def cases() -> Iterator[Case]:
    """Yield the cases."""
    yield refused("empty.png", b"", "empty")
    yield refused("empty.jpg", b"", "empty")
    yield refused("one-byte.png", b"\x89", "not an image")
    yield refused("text.jpg", b"this is a text file, named .jpg", "not an image")
    yield refused("zeros.bmp", bytes(4096), "not an image")
    yield refused("ones.webp", b"\xff" * 4096, "not an image")
    yield refused("noise.png", np.random.default_rng(0).bytes(4096), "not an image")
    image = Image.fromarray(smooth())
    for format_ in ("GIF", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "QOI", "JPEG2000", "PDF", "AVIF"):
        for extension in ("png", "jpg"):
            yield refused(f"{format_.lower()}.{extension}", encoded(image, format_), "not an image")
    moving = encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)])
    yield refused("animated-gif.webp", moving, "not an image")
    for name, content in {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
        "photoshop": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + bytes(200),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "jpeg-xl": b"\xff\x0a" + bytes(200),
        "jpeg-xl-box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
        "html": b"<!DOCTYPE html><html><script>alert(1)</script></html>",
        "zip": b"PK\x05\x06" + bytes(18),
        "elf": b"\x7fELF" + bytes(200),
        "script": b"#!/bin/sh\nexit 1\n",
        "pickle": b"cos\nsystem\n(S'false'\ntR.",
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
        "fits": b"SIMPLE  =                    T" + bytes(2880),
        "dib-without-file-header": struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 24, 0, 16, 0, 0, 0, 0) + bytes(16),
    }.items():
        yield refused(f"{name}.jpg", content, "not an image")
    yield refused("bmp-in-an-icon.bmp", encoded(image, "ICO", bitmap_format="bmp"), "not an image")
    yield refused("mng.png", b"\x8aMNG\r\n\x1a\n" + bytes(100), "not an image")
