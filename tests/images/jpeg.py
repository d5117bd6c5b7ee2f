"""JPEG: colour spaces, sampling, progressive and arithmetic coding, EXIF in all its oddities, and damage."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images.case import Case, encoded, near, refused, smooth, unseen
from tests.images.writers import Samples, cmyk_rgb, jpeg_patched, jpeg_with, stored, tiff_orientation

_MOST = 14  # of 255: what quality 95 with halved chroma takes from `smooth`, and libjpeg's versions differ by
# 16 x 16 pixels, by libjpeg-turbo's `cjpeg -quality 95 -sample 1x1 -arithmetic`, and with `-progressive`: Pillow cannot write it.
_ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkK"
    "Cgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQARCAAQABADAREAAhEB"
    "AxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANpETZW+yMgwR6yHWeYpjy5eBczFnKsG/wCUh4u8gzWJ0aZt7yQayhJwU7/x7e6XkihCSXAiNN+f"
    "K1MeToRkvfMJVUECcGBM/9k="
)
_ARITHMETIC_PROGRESSIVE = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkK"
    "Cgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/ygARCAAQABADAREAAhEB"
    "AxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8AtIrlZ/USVbwqVaIPpsiunkBg/8wABBAF/9oACAEBAAEFAhYDFNxolYsSb//MAAQRBf/aAAgBAwEBPwEW"
    "UHgy0FEcMaTR/FT/zAAEEQX/2gAIAQIBAT8BOpzKvt6npWcaHCgE/8wABBAF/9oACAEBAAY/AmCo2v/MAAQQBf/aAAgBAQABPyFUOMH1kPRg/9oADAMB"
    "AAIAAwAAABDKkP/MAAQRBf/aAAgBAwEBPxAfEcD/zAAEEQX/2gAIAQIBAT8Q00lF/8wABBAF/9oACAEBAAE/EKiz7aN5wP/Z"
)


def cases() -> Iterator[Case]:
    """Yield the cases of this format."""
    yield from _kinds()
    yield from _four_channels()
    yield from _orientations()
    yield from _odd_exif()
    yield from _metadata()
    yield from _damage()
    yield from _hostile_headers()


def _jpeg(image: Image.Image | Samples, **options: object) -> bytes:
    return encoded(image, "JPEG", **{"quality": 95, **options})


def _kinds() -> Iterator[Case]:
    rgb = smooth()
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        yield near(f"ycc-{name}.jpg", _jpeg(rgb, subsampling=sampling), rgb, _MOST)
        yield near(f"ycc-{name}-progressive.jpg", _jpeg(rgb, subsampling=sampling, progressive=True), rgb, _MOST)
    yield near("rgb.jpg", _jpeg(rgb, keep_rgb=True), rgb, _MOST)
    yield near("optimised.jpg", _jpeg(rgb, optimize=True), rgb, _MOST)
    yield near("restart-markers.jpg", _jpeg(rgb, restart_marker_blocks=1), rgb, _MOST)
    yield near("restart-markers-progressive.jpg", _jpeg(rgb, restart_marker_rows=1, progressive=True), rgb, _MOST)
    grey = rgb[:, :, 0]
    for progressive in (False, True):
        name = f"grey{'-progressive' if progressive else ''}.jpg"
        yield near(
            name, _jpeg(Image.fromarray(grey), progressive=progressive), np.repeat(grey[:, :, None], 3, 2), _MOST
        )
    rows, columns = np.mgrid[0:16, 0:16]
    ramp = np.stack([columns * 12 + 30, rows * 12 + 40, 200 - columns * 4 - rows * 4], axis=2).astype(np.uint8)
    for name, text in (("arithmetic", _ARITHMETIC), ("arithmetic-progressive", _ARITHMETIC_PROGRESSIVE)):
        yield near(f"{name}.jpg", base64.b64decode(text), ramp, _MOST)
    for height, width in ((1, 1), (1, 200), (200, 1), (7, 9), (8, 8), (17, 15)):
        part = smooth(height, width)
        yield near(f"size-{width}x{height}.jpg", _jpeg(part, subsampling=0), part, _MOST)
    yield near("named-png.png", _jpeg(rgb), rgb, _MOST)


def _four_channels() -> Iterator[Case]:
    cmyk = np.dstack([smooth(), smooth()[::-1, :, :1] // 2])
    image = Image.frombytes("CMYK", (cmyk.shape[1], cmyk.shape[0]), cmyk.tobytes())
    content = _jpeg(image, subsampling=0)
    yield near("cmyk.jpg", content, cmyk_rgb(cmyk), _MOST)
    yield near("cmyk-progressive.jpg", _jpeg(image, subsampling=0, progressive=True), cmyk_rgb(cmyk), _MOST)
    # Adobe's transform 2 says that the first three planes are luma and chroma of the inverted inks.
    at = content.index(b"Adobe")
    assert content[at + 11] == 0
    planes = 255 - cmyk.astype(np.float64)  # as Pillow stores them, inverted
    luma, blue, red = planes[:, :, 0], planes[:, :, 1] - 128, planes[:, :, 2] - 128
    inks = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    as_ycck = np.dstack([inks.round().clip(0, 255), cmyk[:, :, 3]]).astype(np.uint8)
    yield near("ycck.jpg", content[: at + 11] + b"\2" + content[at + 12 :], cmyk_rgb(as_ycck), 2 * _MOST)


def _orientations() -> Iterator[Case]:
    upright = smooth(16, 32)
    for orientation in range(1, 9):
        content = _jpeg(stored(upright, orientation), subsampling=0)
        for order, end in ((b"MM", ">"), (b"II", "<")):
            exif = b"Exif\0\0" + tiff_orientation(struct.pack(end + "HH", orientation, 0), order=order)
            yield near(f"exif-{orientation}-{order.decode()}.jpg", jpeg_with(content, 0xE1, exif), upright, _MOST)


def _odd_exif() -> Iterator[Case]:
    upright = smooth(16, 32)
    turned = _jpeg(stored(upright, 6), subsampling=0)
    straight = _jpeg(upright, subsampling=0)

    def exif(tiff: bytes) -> bytes:
        return b"Exif\0\0" + tiff

    for name, tiff in {  # an orientation of another type still says 6
        "long": tiff_orientation(struct.pack(">I", 6), kind=4),
        "signed-short": tiff_orientation(struct.pack(">hH", 6, 0), kind=8),
        "two-shorts": tiff_orientation(struct.pack(">HH", 6, 6), count=2),
        "float": tiff_orientation(struct.pack(">f", 6.0), kind=11),
    }.items():
        yield near(f"exif-{name}.jpg", jpeg_with(turned, 0xE1, exif(tiff)), upright, _MOST)
    for name, tiff in {  # and here nobody can say what is meant: as it lies
        "0": tiff_orientation(struct.pack(">HH", 0, 0)),
        "9": tiff_orientation(struct.pack(">HH", 9, 0)),
        "65535": tiff_orientation(struct.pack(">HH", 65535, 0)),
        "byte": tiff_orientation(b"\6\0\0\0", kind=1),
        "text": tiff_orientation(b"6\0\0\0", kind=2, count=2),
        "undefined": tiff_orientation(b"\6\0\0\0", kind=7),
        "count-of-zero": tiff_orientation(struct.pack(">HH", 6, 0), count=0),
        "rational-beyond-the-end": tiff_orientation(struct.pack(">I", 0xFF00), kind=5),
        "other-tag": tiff_orientation(struct.pack(">HH", 6, 0), tag=0x0111),
        "no-tiff": b"this is no TIFF header",
        "cut": tiff_orientation(struct.pack(">HH", 6, 0))[:15],
        "empty": b"",
        "loop": b"MM\0*" + struct.pack(">IHI", 8, 0, 8),
        "65535-entries": b"MM\0*" + struct.pack(">IH", 8, 65535),
    }.items():
        yield near(f"exif-{name}.jpg", jpeg_with(straight, 0xE1, exif(tiff)), upright, _MOST)
    twice = jpeg_with(turned, 0xE1, exif(tiff_orientation(struct.pack(">HH", 6, 0))))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="3"/>'
    yield near("exif-against-xmp.jpg", jpeg_with(twice, 0xE1, xmp), upright, _MOST)


def _metadata() -> Iterator[Case]:
    rgb = smooth()
    content = _jpeg(rgb)
    yield near("comment.jpg", jpeg_with(content, 0xFE, b"hello"), rgb, _MOST)
    yield near("profile.jpg", jpeg_with(content, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(200)), rgb, _MOST)
    yield near("profile-part-missing.jpg", jpeg_with(content, 0xE2, b"ICC_PROFILE\0\1\3" + bytes(200)), rgb, _MOST)
    yield near("photoshop.jpg", jpeg_with(content, 0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed" + bytes(40)), rgb, _MOST)
    yield near("unknown-segment.jpg", jpeg_with(content, 0xEB, b"anything"), rgb, _MOST)
    yield near("segment-of-length-0.jpg", content[:2] + b"\xff\xe5\0\0" + content[2:], rgb, _MOST)
    tables, scan = content.index(b"\xff\xc4"), content.index(b"\xff\xda")
    yield near("no-huffman-tables.jpg", content[:tables] + content[scan:], rgb, _MOST)  # as frames of motion JPEG
    yield near("fill-bytes.jpg", content[:2] + b"\xff\xff\xff" + content[2:], rgb, _MOST)
    yield near("trailing-garbage.jpg", content + b"garbage" * 40, rgb, _MOST)
    yield near("zip-behind.jpg", content + b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18), rgb, _MOST)
    preview = Image.fromarray(smooth(8, 8)[::-1].copy())
    two = encoded(Image.fromarray(rgb), "MPO", save_all=True, append_images=[preview], quality=95)
    yield near("two-pictures.jpg", two, rgb, _MOST)
    yield near("two-pictures-second-cut.jpg", two[:-60], rgb, _MOST)


def _damage() -> Iterator[Case]:
    content = _jpeg(smooth(64, 96), subsampling=0)
    progressive = _jpeg(smooth(64, 96), subsampling=0, progressive=True)
    for share in (1, 5, 20, 40, 60, 80, 95, 99):
        yield refused(f"cut-at-{share}-percent.jpg", content[: len(content) * share // 100], "")
        yield refused(f"progressive-cut-at-{share}-percent.jpg", progressive[: len(progressive) * share // 100], "")
    yield refused("cut-by-one-byte.jpg", content[:-1], "")
    yield refused("no-end-marker.jpg", content[:-2], "")
    half = len(content) * 6 // 10
    yield refused("zeros-from-the-middle.jpg", content[:half] + bytes(len(content) - half), "")
    yield refused("start-marker-only.jpg", b"\xff\xd8", "")
    yield refused("start-and-end-only.jpg", b"\xff\xd8\xff\xd9", "")
    scan = content.index(b"\xff\xda")
    yield refused("no-scan.jpg", content[:scan] + b"\xff\xd9", "")
    quantiser = content.index(b"\xff\xdb")
    yield refused("no-quantisation-tables.jpg", content[:quantiser] + content[content.index(b"\xff\xc0") :], "")
    for share in (30, 60, 80, 95):
        ended = content[: len(content) * share // 100] + b"\xff\xd9"
        yield refused(f"cut-at-{share}-percent-and-ended.jpg", ended, "")
    middle = (scan + len(content)) // 2
    yield refused("100-bytes-missing.jpg", content[:middle] + content[middle + 100 :], "data end")
    yield refused("higher-than-its-pixels.jpg", jpeg_patched(content, 5, struct.pack(">H", 160)), "data end")
    flat = _jpeg(np.full((64, 96, 3), 128, np.uint8))
    yield near("all-grey.jpg", flat, np.full((64, 96, 3), 128, np.uint8), 0)
    yield near("all-grey-trailing-garbage.jpg", flat + b"\xff\xd9 garbage", np.full((64, 96, 3), 128, np.uint8), 0)
    yield from _unseen(content, progressive)
    yield refused("segment-beyond-the-end.jpg", content[:2] + b"\xff\xe5\xff\xff" + content[2:], "")
    yield refused("scan-of-other-components.jpg", jpeg_patched(content, 5, b"\x77", segment=0xDA), "")


def _unseen(content: bytes, progressive: bytes) -> Iterator[Case]:
    """Damage that leaves a well-formed file: JPEG has no checksums."""
    at = (content.index(b"\xff\xda") + len(content)) // 2
    yield unseen("one-byte-changed.jpg", content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :], (64, 96))
    yield unseen("lower-than-its-pixels.jpg", jpeg_patched(content, 5, struct.pack(">H", 40)), (40, 96))
    yield unseen("progressive-cut-and-ended.jpg", progressive[: len(progressive) * 3 // 4] + b"\xff\xd9", (64, 96))


def _hostile_headers() -> Iterator[Case]:
    content = _jpeg(smooth(), subsampling=0)
    for name, at, value in (
        ("12-bits", 4, b"\x0c"),
        ("16-bits", 4, b"\x10"),
        ("no-height", 5, b"\0\0"),
        ("no-width", 7, b"\0\0"),
        ("bomb-20000x20000", 5, struct.pack(">HH", 20_000, 20_000)),
        ("bomb-65535x65535", 5, b"\xff\xff\xff\xff"),
        ("two-components", 9, b"\2"),
        ("five-components", 9, b"\5"),
        ("no-components", 9, b"\0"),
        ("sampling-of-5", 11, b"\x55"),
        ("sampling-of-0", 11, b"\0"),
        ("quantiser-9", 12, b"\x09"),
    ):
        yield refused(f"{name}.jpg", jpeg_patched(content, at, value), "")
    for frame, name in (
        (0xC3, "lossless"),
        (0xC5, "hierarchical"),
        (0xC7, "hierarchical-lossless"),
        (0xC8, "extension"),
    ):
        yield refused(f"{name}-frame.jpg", jpeg_patched(content, 1, bytes([frame])), "")
    yield refused("jpeg-ls.jpg", jpeg_patched(content, 1, b"\xf7"), "")
