"""PNG: every colour type, depth and interlacing, every form of transparency, metadata, and damage."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from tests.images.case import Case, encoded, exact, noise, refused
from tests.images.writers import CHANNELS, SIGNATURE, Png, Samples, chunk, png_rgb, stored, tiff_orientation

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_KINDS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey-alpha", 6: "rgba"}
_PALETTE = noise(256, 3, 1, seed=5)[:, :, 0]  # (256, 3)


def cases() -> Iterator[Case]:
    """Yield the cases of this format."""
    yield from _kinds()
    yield from _transparency()
    yield from _encodings()
    yield from _metadata()
    yield from _orientations()
    yield from _sizes()
    yield from _damaged_chunks()
    yield from _damaged_pixels()
    yield from _hostile_headers()


def _png(colour: int, depth: int, height: int = 13, width: int = 11) -> Png:
    palette = (_plte(2**depth),) if colour == 3 else ()
    return Png(samples=noise(height, width, CHANNELS[colour], depth), colour=colour, depth=depth, before=palette)


def _plte(colours: int) -> bytes:
    return chunk(b"PLTE", _PALETTE[:colours].astype(np.uint8).tobytes())


def _rgb8() -> Png:
    return _png(2, 8)


def _expected(png: Png, **transparency: tuple[int, ...]) -> Samples:
    return png_rgb(png, _PALETTE, **transparency)


def _kinds() -> Iterator[Case]:
    for colour, depths in _DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                png = replace(_png(colour, depth), interlaced=interlaced)
                name = f"{_KINDS[colour]}-{depth}{'-interlaced' if interlaced else ''}.png"
                yield exact(name, png.file(), _expected(png))
    ramp = Png(samples=np.arange(65536).reshape(256, 256, 1), colour=0, depth=16)
    yield exact("grey-16-every-value.png", ramp.file(), _expected(ramp))
    value, alpha = np.mgrid[0:256, 0:256]
    table = Png(samples=np.stack([value, value, 255 - value, alpha], axis=2), colour=6)
    yield exact("rgba-every-value-at-every-alpha.png", table.file(), _expected(table))
    for colour, depth in ((0, 3), (2, 4), (3, 16), (4, 4), (6, 1), (1, 8), (5, 8), (7, 8)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, 0))
        content = SIGNATURE + header + _plte(16) + chunk(b"IDAT", zlib.compress(bytes(600))) + chunk(b"IEND")
        yield refused(f"colour-{colour}-of-depth-{depth}.png", content, "")


def _transparency() -> Iterator[Case]:
    for depth in (1, 8, 16):
        png = _png(0, depth)
        key: tuple[int, ...] = (int(png.samples[3, 4, 0]),)
        keyed = replace(png, before=(chunk(b"tRNS", struct.pack(">H", *key)),))
        yield exact(f"grey-{depth}-with-key.png", keyed.file(), _expected(png, key=key))
    png = _rgb8()
    key = tuple(int(value) for value in png.samples[3, 4])
    keyed = replace(png, before=(chunk(b"tRNS", struct.pack(">3H", *key)),))
    yield exact("rgb-8-with-key.png", keyed.file(), _expected(png, key=key))
    high = replace(png, before=(chunk(b"tRNS", struct.pack(">3H", *(0x5500 + value for value in key))),))
    # PNG, section 11.3.1: of a key only the low bits count.
    yield exact("rgb-8-with-key-beyond-its-depth.png", high.file(), _expected(png, key=key))
    nowhere = replace(_png(0, 16), before=(chunk(b"tRNS", struct.pack(">H", 1)),))
    assert not (nowhere.samples == 1).any()
    yield exact("grey-16-with-key-of-no-pixel.png", nowhere.file(), _expected(nowhere))
    for depth in (2, 4):
        keyed = replace(_png(0, depth), before=(chunk(b"tRNS", struct.pack(">H", 1)),))
        yield refused(f"grey-{depth}-with-key.png", keyed.file(), "colour key")
    keyed = replace(_png(2, 16), before=(chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)),))
    yield refused("rgb-16-with-key.png", keyed.file(), "colour key")
    for depth in (1, 2, 4, 8):
        png = _png(3, depth)
        alphas = tuple(int(value) for value in noise(1, 2**depth, 1, seed=9)[0, :, 0])
        for name, given in (("alphas", alphas), ("some-alphas", alphas[: max(1, 2**depth // 2)]), ("one-hole", (0,))):
            seen = replace(png, before=(*png.before, chunk(b"tRNS", bytes(given))))
            yield exact(f"palette-{depth}-with-{name}.png", seen.file(), _expected(png, alphas=given))
    png = _png(3, 1)
    longer = replace(png, before=(*png.before, chunk(b"tRNS", bytes([0, 255, 7, 8, 9]))))
    yield exact("palette-1-with-more-alphas-than-colours.png", longer.file(), _expected(png, alphas=(0, 255)))
    ignored = replace(_png(6, 8), before=(chunk(b"tRNS", bytes(6)),))
    yield exact("rgba-8-with-key-that-means-nothing.png", ignored.file(), _expected(ignored))


def _encodings() -> Iterator[Case]:
    png = _rgb8()
    for filter_ in range(5):
        yield exact(f"filter-{filter_}.png", replace(png, filters=(filter_,)).file(), _expected(png))
    for colour, depth in ((0, 1), (0, 16), (4, 8), (6, 16)):
        mixed = replace(_png(colour, depth), filters=(4, 3, 2, 1, 0), interlaced=True)
        yield exact(f"all-filters-{_KINDS[colour]}-{depth}.png", mixed.file(), _expected(mixed))
    for level in (0, 1, 9):
        yield exact(f"deflate-level-{level}.png", replace(png, level=level).file(), _expected(png))
    yield exact("pixels-in-many-chunks.png", replace(png, parts=(1,) * 60).file(), _expected(png))
    yield exact("pixels-with-empty-chunks.png", replace(png, parts=(0, 9, 0, 0, 40, 0)).file(), _expected(png))
    small = Png(samples=noise(5, 7, 1, 3), colour=3, before=(_plte(8),))
    yield exact("palette-of-eight.png", small.file(), _expected(small))
    suggested = replace(png, before=(_plte(17),))
    yield exact("rgb-with-suggested-palette.png", suggested.file(), _expected(png))
    yield exact("more-pixels-than-the-header-says.png", png.file(header=png.header(height=9)), _expected(png)[:9])
    yield exact("black.png", Png(samples=np.zeros((9, 9, 3), int), colour=2).file(), np.zeros((9, 9, 3), np.uint8))
    black = Png(samples=np.zeros((9, 9, 3), int), colour=2, interlaced=True)
    yield exact("black-interlaced.png", black.file(), np.zeros((9, 9, 3), np.uint8))
    yield exact("trailing-garbage.png", png.file() + b"\0garbage" * 50, _expected(png))
    yield exact("zip-behind.png", png.file() + b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18), _expected(png))
    yield exact("named-jpeg.jpg", png.file(), _expected(png))
    yield exact("named-text.txt", png.file(), _expected(png))


def _metadata() -> Iterator[Case]:
    png = _rgb8()
    profile = zlib.compress(b"\0\0\0\x80ADBEnot a profile")
    for name, extra in {
        "gamma": chunk(b"gAMA", struct.pack(">I", 100000)),
        "gamma-of-zero": chunk(b"gAMA", bytes(4)),
        "chromaticities": chunk(b"cHRM", struct.pack(">8I", *range(10000, 90000, 10000))),
        "srgb": chunk(b"sRGB", b"\1"),
        "profile": chunk(b"iCCP", b"wide\0\0" + profile),
        "broken-profile": chunk(b"iCCP", b"wide\0\0zzz"),
        "significant-bits": chunk(b"sBIT", b"\5\6\5"),
        "background": chunk(b"bKGD", bytes([0, 255, 0, 0, 0, 0])),
        "density": chunk(b"pHYs", struct.pack(">IIB", 1, 7, 1)),
        "time": chunk(b"tIME", bytes([7, 230, 1, 1, 0, 0, 0])),
        "text": chunk(b"tEXt", b"Comment\0hello"),
        "compressed-text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello" * 100)),
        "international-text": chunk(b"iTXt", b"Comment\0\0\0\0\0h\xc3\xa9"),
        "colour-code-points": chunk(b"cICP", b"\1\r\0\1"),
        "unknown-chunk": chunk(b"abCd", b"anything"),
        "exif-that-is-none": chunk(b"eXIf", b"this is no TIFF header"),
    }.items():
        yield exact(f"with-{name}.png", replace(png, before=(extra,)).file(), _expected(png))
    rgba = replace(_png(6, 8), before=(chunk(b"bKGD", bytes([0, 255, 0, 0, 0, 0])),))
    yield exact("rgba-with-background.png", rgba.file(), _expected(rgba))  # composited over white all the same
    for name, extra in {
        "zTXt": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))),
        "iTXt": chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        "iCCP": chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 << 20))),
    }.items():
        yield refused(f"bomb-in-{name}.png", replace(png, before=(extra,)).file(), "too large")
    for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs"):
        content = replace(png, before=(chunk(kind),)).file()
        yield refused(f"empty-{kind.decode()}.png", content, f"Truncated {kind.decode()}")


def _orientations() -> Iterator[Case]:
    upright = noise(6, 9, 3)
    for orientation in range(1, 9):
        exif = chunk(b"eXIf", tiff_orientation(struct.pack(">HH", orientation, 0)))
        png = Png(samples=stored(upright, orientation), colour=2, before=(exif,))
        yield exact(f"exif-{orientation}.png", png.file(), upright.astype(np.uint8))
    exif = chunk(b"eXIf", tiff_orientation(struct.pack("<HH", 6, 0), order=b"II"))
    behind = Png(samples=stored(upright, 6), colour=2, after=(exif,))
    yield exact("exif-behind-the-pixels.png", behind.file(), upright.astype(np.uint8))
    for name, samples in (("grey-16", noise(6, 9, 1, 16)), ("grey-1", noise(6, 9, 1, 1))):
        depth = int(name.rpartition("-")[2])
        turned = Png(samples=stored(samples, 8), colour=0, depth=depth, before=(_exif(8),))
        yield exact(f"exif-8-{name}.png", turned.file(), png_rgb(Png(samples=samples, colour=0, depth=depth)))
    samples, alphas = noise(6, 9, 1, 4), (0, 90, 180)
    turned = Png(
        samples=stored(samples, 5), colour=3, depth=4, before=(_plte(16), chunk(b"tRNS", bytes(alphas)), _exif(5))
    )
    upright_palette = Png(samples=samples, colour=3, depth=4)
    yield exact("exif-5-palette-with-alphas.png", turned.file(), _expected(upright_palette, alphas=alphas))
    xmp = b'<rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF>'
    with_xmp = Png(samples=stored(upright, 6), colour=2, before=(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),))
    yield exact("orientation-in-xmp.png", with_xmp.file(), upright.astype(np.uint8))


def _exif(orientation: int) -> bytes:
    return chunk(b"eXIf", tiff_orientation(struct.pack(">HH", orientation, 0)))


def _sizes() -> Iterator[Case]:
    for height, width in ((1, 1), (1, 300), (300, 1), (1, 65535), (65535, 1), (3, 8), (8, 3)):
        png = Png(samples=noise(height, width, 1), colour=0)
        yield exact(f"size-{width}x{height}.png", png.file(), _expected(png))
        if width < 1000 > height:
            twin = replace(png, interlaced=True)
            yield exact(f"size-{width}x{height}-interlaced.png", twin.file(), _expected(png))


def _damaged_chunks() -> Iterator[Case]:
    png = _rgb8()
    whole = png.file()
    for share in (3, 10, 25, 50, 75, 90, 97):
        yield refused(f"cut-at-{share}-percent.png", whole[: len(whole) * share // 100], "")
    for left_out in (1, 4, 12, 13, 17):
        yield refused(f"cut-by-{left_out}-bytes.png", whole[:-left_out], "truncated")
    yield refused("signature-only.png", SIGNATURE, "truncated")
    yield refused("signature-of-a-text-transfer.png", whole.replace(b"\r\n", b"\n"), "not an image")
    yield refused("header-only.png", SIGNATURE + png.header(), "truncated")
    yield refused("no-pixel-chunk.png", png.file(idat=b""), "")
    yield refused("no-header.png", png.file(header=b""), "header")
    yield refused("header-twice.png", png.file(header=png.header() + png.header(width=4, height=4)), "header")
    yield refused("header-too-short.png", png.file(header=chunk(b"IHDR", bytes(9))), "header")
    yield refused("text-before-header.png", png.file(header=chunk(b"tEXt", b"a\0b") + png.header()), "header")
    palette = _png(3, 4)
    yield refused("no-palette.png", replace(palette, before=()).file(), "no palette")
    yield refused("palette-behind-the-pixels.png", replace(palette, before=(), after=(_plte(16),)).file(), "no palette")
    yield refused("palette-twice.png", replace(palette, before=(_plte(16), _plte(8))).file(), "twice")
    yield refused("palette-too-small.png", replace(palette, before=(_plte(9),)).file(), "palette of 9")
    yield refused("palette-of-7-bytes.png", replace(palette, before=(chunk(b"PLTE", bytes(7)),)).file(), "palette of 7")
    yield refused("palette-of-no-bytes.png", replace(palette, before=(chunk(b"PLTE"),)).file(), "palette of 0")
    yield refused("palette-of-257.png", replace(palette, before=(chunk(b"PLTE", bytes(771)),)).file(), "palette of 771")
    key = chunk(b"tRNS", bytes(6))
    yield refused("key-twice.png", replace(png, before=(key, key)).file(), "twice")
    yield refused("key-behind-the-pixels.png", replace(png, after=(key,)).file(), "after its pixels")
    yield refused("key-too-short.png", replace(png, before=(chunk(b"tRNS", b"\0"),)).file(), "tRNS")
    half = png.idat()
    split = png.file(
        idat=replace(png, parts=(20,)).idat().replace(_second(png), chunk(b"tEXt", b"a\0b") + _second(png))
    )
    assert half in whole
    yield refused("pixels-interrupted.png", split, "interrupted")
    yield refused(
        "unknown-critical-chunk.png", replace(png, before=(chunk(b"ABCD", b"x"),)).file(), "cannot be understood"
    )
    yield refused("apple-cgbi.png", replace(png, before=(chunk(b"CgBI", bytes(4)),)).file(), "cannot be understood")
    for kind in (b"IHDR", b"IDAT", b"IEND"):
        at = whole.index(kind)
        length = struct.unpack(">I", whole[at - 4 : at])[0]
        check = at + 4 + length
        bad = whole[:check] + bytes([whole[check] ^ 1]) + whole[check + 1 :]
        yield refused(f"wrong-checksum-of-{kind.decode()}.png", bad, "checksum")
    noted = replace(png, before=(chunk(b"tEXt", b"Comment\0hello"),)).file()
    yield refused("damaged-comment.png", noted.replace(b"hello", b"jello"), "checksum")
    at = whole.index(b"IDAT") - 4
    for name, length in (("2-gigabytes", 0x80000010), ("4-gigabytes", 0xFFFFFFFF), ("beyond-the-end", 0x7FFF)):
        bad = whole[:at] + struct.pack(">I", length) + whole[at + 4 :]
        yield refused(f"chunk-of-{name}.png", bad, "truncated")
    yield refused("chunk-too-short.png", whole[:at] + struct.pack(">I", 6) + whole[at + 4 :], "checksum")


def _second(png: Png) -> bytes:
    """Return the second pixel chunk of a PNG whose first one holds 20 bytes."""
    return chunk(b"IDAT", zlib.compress(png.rows(), png.level)[20:])


def _damaged_pixels() -> Iterator[Case]:
    png = _rgb8()
    rows = png.rows()
    for share in (0, 20, 50, 90, 99):
        short = zlib.compress(rows[: len(rows) * share // 100])
        yield refused(f"pixels-end-at-{share}-percent.png", png.file(idat=chunk(b"IDAT", short)), "")
    woven = replace(png, interlaced=True)
    for share in (50, 90, 99):
        short = zlib.compress(woven.rows()[: len(woven.rows()) * share // 100])
        yield refused(f"interlaced-pixels-end-at-{share}-percent.png", woven.file(idat=chunk(b"IDAT", short)), "")
    stored_rows = bytearray(zlib.compress(rows, 0))
    stored_rows[40] ^= 1
    yield refused("wrong-adler.png", png.file(idat=chunk(b"IDAT", bytes(stored_rows))), "")
    yield refused("not-deflated.png", png.file(idat=chunk(b"IDAT", rows)), "")
    yield refused("filter-5.png", replace(png, filters=(0, 5)).file(), "")
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    yield refused("deflate-without-zlib.png", png.file(idat=chunk(b"IDAT", raw.compress(rows) + raw.flush())), "")
    for name, method in (("compression", 0), ("filter", 1), ("interlace", 2)):
        header = bytearray(png.header())
        header[18 + method] = 2
        header[21:] = struct.pack(">I", zlib.crc32(header[4:21]))
        yield refused(f"unknown-{name}-method.png", png.file(header=bytes(header)), "header")


def _hostile_headers() -> Iterator[Case]:
    png = Png(samples=noise(4, 4, 3), colour=2)
    for width, height in ((20_000, 20_000), (12_000, 12_000), (7_200, 7_200), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)):
        yield refused(f"bomb-{width}x{height}.png", png.file(header=png.header(width=width, height=height)), "")
    yield refused("65536-wide.png", png.file(header=png.header(width=65_536, height=1)), "65,535 on a side")
    yield refused("65536-high.png", png.file(header=png.header(width=1, height=65_536)), "65,535 on a side")
    yield refused("no-width.png", png.file(header=png.header(width=0)), "")
    yield refused("no-height.png", png.file(header=png.header(height=0)), "")
    yield refused("higher-than-its-pixels.png", png.file(header=png.header(height=5)), "")
    yield refused("wider-than-its-pixels.png", png.file(header=png.header(width=5)), "")
    packed = zlib.compress(bytes(7_000 * 901), 9)
    large = chunk(b"IHDR", struct.pack(">IIBBBBB", 7_200, 7_000, 1, 0, 0, 0, 0))
    yield refused(
        "small-file-of-50.4-megapixels.png", SIGNATURE + large + chunk(b"IDAT", packed) + chunk(b"IEND"), "50"
    )
    still = replace(png, before=(chunk(b"acTL", struct.pack(">II", 1, 0)), _frame(0)))
    yield exact("animation-of-one-frame.png", still.file(), _expected(png))
    first, second = Image.fromarray(noise(4, 4, 3).astype(np.uint8)), Image.new("RGB", (4, 4))
    moving = encoded(first, "PNG", save_all=True, append_images=[second])
    yield refused("animation.png", moving, "animated")
    lying = replace(png, before=(chunk(b"acTL", struct.pack(">II", 5, 0)),))
    yield refused("animation-that-lies.png", lying.file(), "animated")
    yield refused("animation-chunk-too-short.png", replace(png, before=(chunk(b"acTL", b"\0"),)).file(), "acTL")


def _frame(number: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 4, 4, 0, 0, 1, 10, 0, 0))
