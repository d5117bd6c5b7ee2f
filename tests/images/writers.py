"""Writes image files by hand, from samples: kinds that Pillow cannot write, and damage at known places.

PNG: https://www.w3.org/TR/png-3/; BMP: `BITMAPCOREHEADER`, `BITMAPINFOHEADER`, `BITMAPV4HEADER` of the Windows documentation;
EXIF: CIPA DC-008. Nothing here uses edgebert.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.integer]  # (height, width, channels), each sample in its own depth

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG colour type -> samples of a pixel
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Return a PNG chunk with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@dataclass(frozen=True, kw_only=True)
class Png:
    """A PNG to be written.

    Attributes:
        samples: (height, width, channels), each below 2 ** depth.
        colour: colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        depth: bits of a sample.
        before: chunks between the header and the pixels.
        after: chunks between the pixels and the end.
        interlaced: Adam7.
        filters: filter type of each row, in turn.
        parts: lengths of the first IDAT chunks; the rest follows in one.
        level: of zlib.
    """

    samples: Samples
    colour: int
    depth: int = 8
    before: tuple[bytes, ...] = ()
    after: tuple[bytes, ...] = ()
    interlaced: bool = False
    filters: tuple[int, ...] = (0,)
    parts: tuple[int, ...] = ()
    level: int = 6

    def header(self, *, width: int | None = None, height: int | None = None) -> bytes:
        """Return the header chunk; other sizes than the true ones are lies."""
        rows, columns = self.samples.shape[:2]
        size = (columns if width is None else width, rows if height is None else height)
        return chunk(b"IHDR", struct.pack(">IIBBBBB", *size, self.depth, self.colour, 0, 0, int(self.interlaced)))

    def rows(self) -> bytes:
        """Return the filtered rows, of all passes, before compression."""
        if not self.interlaced:
            return self._rows(self.samples)
        passes = (self.samples[top::down, left::across] for left, top, across, down in _ADAM7)
        return b"".join(self._rows(part) for part in passes if part.size)

    def idat(self, compressed: bytes | None = None) -> bytes:
        """Return the chunks of the pixels."""
        data = zlib.compress(self.rows(), self.level) if compressed is None else compressed
        pieces, at = [], 0
        for length in self.parts:
            pieces.append(data[at : at + length])
            at += length
        return b"".join(chunk(b"IDAT", piece) for piece in (*pieces, data[at:]))

    def file(self, *, header: bytes | None = None, idat: bytes | None = None, end: bytes | None = None) -> bytes:
        """Return the file, with parts of it replaced."""
        parts = (
            SIGNATURE,
            self.header() if header is None else header,
            *self.before,
            self.idat() if idat is None else idat,
            *self.after,
            chunk(b"IEND") if end is None else end,
        )
        return b"".join(parts)

    def _rows(self, samples: Samples) -> bytes:
        bytes_per_pixel = max(1, self.depth * CHANNELS[self.colour] // 8)
        above = np.zeros(0, np.uint8)
        written = []
        for number, row in enumerate(samples):
            packed = self._packed(row)
            kind = self.filters[number % len(self.filters)]
            written.append(bytes([kind]) + _filtered(packed, above, kind, bytes_per_pixel).tobytes())
            above = packed
        return b"".join(written)

    def _packed(self, row: Samples) -> NDArray[np.uint8]:
        values = row.reshape(-1)
        if self.depth == 16:
            return np.frombuffer(values.astype(">u2").tobytes(), np.uint8)
        bits = (values[:, np.newaxis] >> np.arange(self.depth - 1, -1, -1)) & 1
        return np.packbits(bits.reshape(-1).astype(np.uint8))


def _filtered(row: NDArray[np.uint8], above: NDArray[np.uint8], kind: int, bytes_per_pixel: int) -> NDArray[np.uint8]:
    """Apply a PNG filter (section 9.2) to a row of bytes."""
    if kind == 0:
        return row
    now = row.astype(np.int64)
    up = above.astype(np.int64) if above.size else np.zeros_like(now)
    left = np.concatenate([np.zeros(bytes_per_pixel, np.int64), now])[: len(now)]
    corner = np.concatenate([np.zeros(bytes_per_pixel, np.int64), up])[: len(now)]
    estimate = left + up - corner
    near_left, near_up, near_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
    paeth = np.where(
        (near_left <= near_up) & (near_left <= near_corner), left, np.where(near_up <= near_corner, up, corner)
    )
    guess: NDArray[np.int64] = {1: left, 2: up, 3: (left + up) // 2, 4: paeth}.get(kind, np.zeros_like(now))
    return ((now - guess) % 256).astype(np.uint8)


def png_rgb(
    png: Png, palette: Samples | None = None, key: Sequence[int] = (), alphas: Sequence[int] = ()
) -> NDArray[np.uint8]:
    """Return what edgebert promises of a PNG's samples, in numpy: uint8 (height, width, 3).

    Args:
        png: the samples.
        palette: (colours, 3) uint8.
        key: the samples that are transparent, of grey and RGB.
        alphas: of the palette's first colours.
    """
    samples, most = png.samples.astype(np.int64), 2**png.depth - 1
    if png.colour == 3:
        assert palette is not None
        alpha = np.full(len(palette), 255)
        alpha[: len(alphas)] = alphas[: len(palette)]
        return over_white(palette[samples[:, :, 0]], alpha[samples[:, :, 0]])
    if png.depth == 16:
        grey = png.colour == 0
        shown = (samples + 128) // 257 if grey else samples >> 8
    else:
        shown = samples * 255 // most
    if png.colour in (4, 6):
        return over_white(np.broadcast_to(shown[:, :, :-1], (*shown.shape[:2], 3)), shown[:, :, -1])
    rgb = np.broadcast_to(shown, (*shown.shape[:2], 3))
    if key:
        rgb = np.where((samples == key).all(axis=2, keepdims=True), 255, rgb)
    return rgb.astype(np.uint8)


def over_white(rgb: Samples, alpha: Samples) -> NDArray[np.uint8]:
    """Composite uint8 (height, width, 3) over white, rounding to the nearest: uint8 (height, width, 3)."""
    weight = alpha.astype(np.int64)[:, :, np.newaxis]
    mixed: NDArray[np.int64] = rgb.astype(np.int64) * weight + 255 * (255 - weight)
    return ((2 * mixed + 255) // 510).astype(np.uint8)


def cmyk_rgb(cmyk: Samples) -> NDArray[np.uint8]:
    """Return uint8 (height, width, 3) of uint8 CMYK by Pillow's formula: (255 - K) * (255 - C) / 255, and so on."""
    values = cmyk.astype(np.int64)
    light = 255 - values[:, :, 3:]
    shown: NDArray[np.int64] = (2 * light * (255 - values[:, :, :3]) + 255) // 510
    return shown.astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Bmp:
    """A BMP to be written.

    Attributes:
        width: columns.
        height: rows; negative for top-down.
        bits: of a pixel.
        pixels: the pixel data as they lie in the file, rows padded to four bytes.
        palette: (colours, 3) uint8 RGB.
        compression: 0 none, 1 RLE8, 2 RLE4, 3 bit fields, 4 JPEG, 5 PNG, 6 bit fields with alpha.
        masks: of the bit fields, red first.
        header: size of the header: 12, 40, 52, 56, 64, 108 or 124.
        colours: stated; the palette's own number where None.
        offset: of the pixels; the true one where None.
        planes: 1 in every true file.
    """

    width: int
    height: int
    bits: int
    pixels: bytes
    palette: Samples | None = None
    compression: int = 0
    masks: tuple[int, ...] = ()
    header: int = 40
    colours: int | None = None
    offset: int | None = None
    planes: int = 1

    def file(self) -> bytes:
        """Return the file."""
        masks = struct.pack(f"<{len(self.masks)}I", *self.masks)
        if self.header == 12:
            head = struct.pack("<IHHHH", 12, self.width, self.height, self.planes, self.bits)
        else:
            count = (0 if self.palette is None else len(self.palette)) if self.colours is None else self.colours
            size = (self.header, self.width, self.height, self.planes, self.bits, self.compression)
            head = struct.pack("<IiiHHIIiiII", *size, len(self.pixels), 2835, 2835, count, 0)
            if self.header > 40:  # the masks lie inside
                head += (masks + bytes(self.header))[: self.header - 40]
                masks = b""
        body = head + masks + self._palette()
        offset = 14 + len(body) if self.offset is None else self.offset
        return b"BM" + struct.pack("<IHHI", 14 + len(body) + len(self.pixels), 0, 0, offset) + body + self.pixels

    def _palette(self) -> bytes:
        if self.palette is None:
            return b""
        gap = b"" if self.header == 12 else b"\0"
        return b"".join(bytes(colour[::-1].astype(np.uint8)) + gap for colour in self.palette)


def bmp_rows(rows: Sequence[bytes]) -> bytes:
    """Pad rows, given from the top, to four bytes each and put the lowest first."""
    return b"".join(row + bytes(-len(row) % 4) for row in reversed(rows))


def packed(indices: Samples, bits: int) -> list[bytes]:
    """Pack (height, width) indices into rows of bytes, the first pixel in the highest bits."""
    spread = (indices[:, :, np.newaxis] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in spread]


def tiff_orientation(value: bytes, *, kind: int = 3, count: int = 1, order: bytes = b"MM", tag: int = 0x0112) -> bytes:
    """Return a TIFF block with one entry, the orientation; `value` are the four bytes of its field."""
    end = ">" if order == b"MM" else "<"
    return order + struct.pack(end + "HIHHHI", 42, 8, 1, tag, kind, count) + value + bytes(4)


def stored(upright: Samples, orientation: int) -> Samples:
    """Return the pixels that an EXIF orientation of 1 to 8 brings upright."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turned[orientation])


def jpeg_with(content: bytes, marker: int, payload: bytes) -> bytes:
    """Return a JPEG with one more segment, directly after its start."""
    return content[:2] + bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload + content[2:]


def jpeg_patched(content: bytes, at: int, value: bytes, *, segment: int = 0xC0) -> bytes:
    """Return a JPEG with bytes of a segment replaced, counted from the segment's marker."""
    start = content.index(bytes([0xFF, segment]))
    return content[: start + at] + value + content[start + at + len(value) :]
