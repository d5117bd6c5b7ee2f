"""WebP: lossy, lossless, alpha, orientation, animations, and damage."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.images.case import Case, encoded, exact, near, noise, refused, smooth, unseen
from tests.images.writers import Samples, over_white, stored, tiff_orientation

_MOST = 24  # of 255: chroma is always halved


def cases() -> Iterator[Case]:
    """Yield the cases of this format."""
    rgb = noise(13, 11, 3).astype(np.uint8)
    plain = encoded(rgb, "WEBP", lossless=True)
    yield exact("lossless.webp", plain, rgb)
    yield exact("lossless-slow.webp", encoded(rgb, "WEBP", lossless=True, method=6, quality=100), rgb)
    yield exact("lossless-one-pixel.webp", encoded(rgb[:1, :1], "WEBP", lossless=True), rgb[:1, :1])
    grey = np.repeat(rgb[:, :, :1], 3, axis=2)
    yield exact("lossless-grey.webp", encoded(grey, "WEBP", lossless=True), grey)
    rgba = noise(13, 11, 4, seed=1).astype(np.uint8)
    transparent = encoded(rgba, "WEBP", lossless=True, exact=True)
    yield exact("lossless-alpha.webp", transparent, over_white(rgba[:, :, :3], rgba[:, :, 3]))
    hidden = np.dstack([rgb, np.zeros((13, 11), np.uint8)])
    yield exact("lossless-all-transparent.webp", encoded(hidden, "WEBP", lossless=True), np.full_like(rgb, 255))
    flat = smooth(48, 64)
    lossy = encoded(flat, "WEBP", quality=95)
    yield near("lossy.webp", lossy, flat, _MOST)
    alpha = np.full((48, 64, 1), 128, np.uint8)
    half = encoded(np.dstack([flat, alpha]), "WEBP", quality=95)
    yield near("lossy-alpha.webp", half, over_white(flat, alpha[:, :, 0]), _MOST)
    yield exact("profile.webp", encoded(rgb, "WEBP", lossless=True, icc_profile=bytes(128)), rgb)
    yield exact("trailing-garbage.webp", plain + b"garbage" * 9, rgb)
    yield exact("named-jpeg.jpeg", plain, rgb)
    yield from _orientations(rgb)
    yield from _animations(rgb)
    yield from _damage(plain, lossy, transparent)


def _orientations(rgb: Samples) -> Iterator[Case]:
    for orientation in range(1, 9):
        exif = tiff_orientation(struct.pack("<HH", orientation, 0), order=b"II")
        content = encoded(stored(rgb, orientation).astype(np.uint8), "WEBP", lossless=True, exif=exif)
        yield exact(f"exif-{orientation}.webp", content, rgb)
    yield exact("exif-that-is-none.webp", encoded(rgb, "WEBP", lossless=True, exif=b"no TIFF header"), rgb)


def _animations(rgb: Samples) -> Iterator[Case]:
    first, second = Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())
    one = encoded(first, "WEBP", lossless=True, save_all=True, append_images=[first])  # the encoder merges equal frames
    yield exact("animation-of-one-frame.webp", one, rgb)
    two = encoded(first, "WEBP", lossless=True, save_all=True, append_images=[second])
    yield refused("animation.webp", two, "animated")


def _damage(plain: bytes, lossy: bytes, transparent: bytes) -> Iterator[Case]:
    for name, content in (("lossless", plain), ("lossy", lossy), ("alpha", transparent)):
        for share in (5, 30, 60, 90, 99):
            yield refused(f"{name}-cut-at-{share}-percent.webp", content[: len(content) * share // 100], "")
    zeroed = lossy[: len(lossy) // 2] + bytes(len(lossy) - len(lossy) // 2)
    yield unseen("lossy-zeros-from-the-middle.webp", zeroed, (48, 64))
    yield refused("riff-of-another-kind.webp", plain.replace(b"WEBP", b"WAVE", 1), "not an image")
    yield refused("riff-too-long.webp", plain[:4] + b"\xff\xff\xff\x7f" + plain[8:], "")
    at = plain.index(b"VP8L") + 8
    yield refused("no-signature-byte.webp", plain[:at] + b"\0" + plain[at + 1 :], "")
    large = struct.pack("<I", 16_383 | 16_383 << 14)
    yield refused("bomb-16384x16384.webp", plain[: at + 1] + large + plain[at + 5 :], "")
