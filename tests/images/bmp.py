"""BMP: every depth, header and compression that is accepted, and those that are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tests.images.case import Case, exact, noise, refused
from tests.images.writers import Bmp, Samples, bmp_rows, over_white, packed

_PALETTE = noise(256, 3, 1, seed=6)[:, :, 0]  # (256, 3)
_888 = (0xFF0000, 0xFF00, 0xFF)
_ALPHA = 0xFF000000


def cases() -> Iterator[Case]:
    """Yield the cases of this format."""
    yield from _colour()
    yield from _palettes()
    yield from _run_lengths()
    yield from _refusals()


def _rgb() -> Samples:
    return noise(5, 7, 3)


def _bmp24() -> Bmp:
    return Bmp(width=7, height=5, bits=24, pixels=_rows24(_rgb()))


def _rows24(rgb: Samples) -> bytes:
    return bmp_rows([row[:, ::-1].astype(np.uint8).tobytes() for row in rgb])


def _rows32(rgba: Samples) -> bytes:
    return bmp_rows([row[:, [2, 1, 0, 3]].astype(np.uint8).tobytes() for row in rgba])


def _colour() -> Iterator[Case]:
    rgb, pixels = _rgb(), _rgb().astype(np.uint8)
    for header in (12, 40, 52, 56, 64, 108, 124):
        yield exact(f"rgb-24-header-{header}.bmp", replace(_bmp24(), header=header).file(), pixels)
    yield exact("rgb-24-top-down.bmp", replace(_bmp24(), height=-5, pixels=_rows24(rgb[::-1])).file(), pixels)
    gap = _bmp24().file()
    yield exact(
        "rgb-24-gap-before-pixels.bmp", gap[:10] + bytes([64, 0, 0, 0]) + gap[14:54] + bytes(10) + gap[54:], pixels
    )
    yield exact("trailing-garbage.bmp", gap + b"garbage" * 30, pixels)
    yield exact("planes-of-zero.bmp", replace(_bmp24(), planes=0).file(), pixels)
    rgba = np.concatenate([rgb, noise(5, 7, 1, seed=3)], axis=2)
    deep = Bmp(width=7, height=5, bits=32, pixels=_rows32(rgba))
    yield exact("rgb-32.bmp", deep.file(), pixels)  # the fourth byte means nothing there
    yield exact("rgb-32-top-down.bmp", replace(deep, height=-5, pixels=_rows32(rgba[::-1])).file(), pixels)
    fields = replace(deep, compression=3, masks=_888)
    yield exact("rgb-32-fields.bmp", fields.file(), pixels)
    for header in (56, 108, 124):
        alpha = replace(fields, header=header, masks=(*_888, _ALPHA))
        yield exact(f"rgba-32-fields-header-{header}.bmp", alpha.file(), over_white(rgb, rgba[:, :, 3]))
    five = noise(5, 7, 3, 5)
    words = five[:, :, 0] << 10 | five[:, :, 1] << 5 | five[:, :, 2]
    rows = bmp_rows([row.astype("<u2").tobytes() for row in words])
    sixteen = Bmp(width=7, height=5, bits=16, pixels=rows)
    yield exact("rgb-16-555.bmp", sixteen.file(), (five * 255 // 31).astype(np.uint8))
    fields16 = replace(sixteen, compression=3, masks=(0x7C00, 0x3E0, 0x1F))
    yield exact("rgb-16-555-fields.bmp", fields16.file(), (five * 255 // 31).astype(np.uint8))
    six = np.stack([words >> 11, words >> 5 & 63, words & 31], axis=2)
    expected = (six * 255 // np.array([31, 63, 31])).astype(np.uint8)
    yield exact("rgb-16-565-fields.bmp", replace(fields16, masks=(0xF800, 0x7E0, 0x1F)).file(), expected)


def _palettes() -> Iterator[Case]:
    for bits in (1, 4, 8):
        indices = noise(5, 11, 1, bits)[:, :, 0]
        palette = _PALETTE[: 2**bits]
        bmp = Bmp(width=11, height=5, bits=bits, pixels=bmp_rows(packed(indices, bits)), palette=palette)
        pixels = palette[indices].astype(np.uint8)
        yield exact(f"palette-{bits}.bmp", bmp.file(), pixels)
        yield exact(f"palette-{bits}-header-12.bmp", replace(bmp, header=12).file(), pixels)
        yield exact(f"palette-{bits}-colours-not-stated.bmp", replace(bmp, colours=0).file(), pixels)
        top_down = replace(bmp, height=-5, pixels=bmp_rows(packed(indices[::-1], bits)))
        yield exact(f"palette-{bits}-top-down.bmp", top_down.file(), pixels)
    grey = np.repeat(np.arange(256)[:, np.newaxis], 3, axis=1)
    indices = noise(5, 11, 1, 8)[:, :, 0]
    bmp = Bmp(width=11, height=5, bits=8, pixels=bmp_rows(packed(indices, 8)), palette=grey)
    yield exact("grey-8.bmp", bmp.file(), grey[indices].astype(np.uint8))
    one = noise(5, 11, 1, 1)[:, :, 0]
    for name, two in (("black-white", [[0] * 3, [255] * 3]), ("white-black", [[255] * 3, [0] * 3])):
        colours = np.array(two)
        bmp = Bmp(width=11, height=5, bits=1, pixels=bmp_rows(packed(one, 1)), palette=colours)
        yield exact(f"one-bit-{name}.bmp", bmp.file(), colours[one].astype(np.uint8))
    few = Bmp(width=3, height=1, bits=8, pixels=bmp_rows([bytes([0, 3, 1])]), palette=_PALETTE[:4])
    yield exact("palette-8-of-four-colours.bmp", few.file(), _PALETTE[[[0, 3, 1]]].astype(np.uint8))
    yield refused("palette-8-too-small.bmp", replace(few, pixels=bmp_rows([bytes([0, 9, 1])])).file(), "palette of 4")
    yield refused("palette-of-5000.bmp", replace(few, colours=5000).file(), "palette of 5000")
    yield refused("palette-of-4-billion.bmp", replace(few, colours=2**32 - 1).file(), "palette of 4294967295")


def _run_lengths() -> Iterator[Case]:
    def indexed(rows: list[list[int]], data: list[int], bits: int = 8) -> tuple[bytes, Samples]:
        indices = np.array(rows)
        bmp = Bmp(
            width=indices.shape[1], height=len(rows), bits=bits, pixels=bytes(data), compression=1 if bits == 8 else 2,
            palette=_PALETTE[: 2**bits],
        )  # fmt: skip
        return bmp.file(), _PALETTE[indices].astype(np.uint8)

    runs = [5, 7, 0, 0, 0, 3, 1, 2, 3, 0, 2, 9, 0, 1]  # bottom row: five of 7; then three literal ones and two of 9
    yield exact("run-length-8.bmp", *indexed([[1, 2, 3, 9, 9], [7] * 5], runs))
    yield exact("run-length-8-delta.bmp", *indexed([[0, 0, 0, 9, 9], [7, 7, 0, 0, 0]], [2, 7, 0, 2, 1, 1, 2, 9, 0, 1]))
    yield exact("run-length-8-short-row.bmp", *indexed([[9] * 5, [7, 7, 0, 0, 0]], [2, 7, 0, 0, 5, 9, 0, 1]))
    nibbles = [5, 0x12, 0, 0, 0, 5, 0x12, 0x34, 0x50, 0, 0, 1]
    yield exact("run-length-4.bmp", *indexed([[1, 2, 3, 4, 5], [1, 2, 1, 2, 1]], nibbles, 4))
    for name, data in (("cut", [5, 7]), ("one-row", [5, 7, 0, 0, 0, 1]), ("empty", [0, 1])):
        yield refused(f"run-length-8-{name}.bmp", indexed([[0] * 5, [0] * 5], data)[0], "")


def _refusals() -> Iterator[Case]:
    bmp = _bmp24()
    whole = bmp.file()
    for length in (2, 13, 17, 30, 53, 54, 100, len(whole) - 4):
        yield refused(f"cut-at-{length}-bytes.bmp", whole[:length], "")
    yield refused("pixels-inside-the-header.bmp", replace(bmp, offset=20).file(), "inside its header")
    yield refused("pixels-at-zero.bmp", replace(bmp, offset=0).file(), "inside its header")
    yield refused("pixels-beyond-the-end.bmp", replace(bmp, offset=5000).file(), "")
    yield refused("header-of-41.bmp", whole[:14] + bytes([41]) + whole[15:], "")
    yield refused("header-of-4-gigabytes.bmp", whole[:14] + b"\xff\xff\xff\xff" + whole[18:], "inside its header")
    for compression in (4, 5, 6, 11, 99):
        yield refused(f"compression-{compression}.bmp", replace(bmp, compression=compression).file(), "")
    for bits in (0, 2, 3, 64):
        yield refused(f"depth-{bits}.bmp", replace(bmp, bits=bits).file(), "")
    ten = Bmp(width=1, height=1, bits=32, pixels=bytes(4), compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF))
    yield refused("rgb-32-fields-of-ten-bits.bmp", ten.file(), "bitfields")
    twelve = Bmp(width=2, height=1, bits=16, pixels=bytes(4), compression=3, masks=(0xF00, 0xF0, 0xF))
    yield refused("rgb-16-fields-444.bmp", twelve.file(), "bitfields")
    for width, height in ((20_000, 20_000), (65_536, 1), (1, -65_536), (-7, 5), (0, 5), (7, 0), (2**31 - 1, 2**31 - 1)):
        yield refused(f"size-{width}x{height}.bmp", replace(bmp, width=width, height=height).file(), "")
    yield refused("higher-than-its-pixels.bmp", replace(bmp, height=6).file(), "truncated")
