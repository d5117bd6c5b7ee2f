"""What Pillow does not look at in the bytes of an image file: checksums, missing rows, and what a format forbids.

Pillow gives pixels for a PNG whose data end early (the missing rows are black), whose checksums are wrong, whose header comes twice
or whose palette is missing, for a BMP whose pixels begin inside its header, and for a JPEG that ends early with an end marker (the
rest is grey). Each of these is a damaged or a lying file.

>>> check_image_file(b"BM" + bytes(20))
Traceback (most recent call last):
...
edgebert.errors.ImageError: the BMP begins its pixels at byte `0`, inside its header
expected: a whole image file
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from edgebert.errors import ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel (PNG, section 11.2.1)
# Adam7 (PNG, section 8.2): of each pass the first column and row, and the steps between columns and rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATED = 1 << 20  # bytes at a time, so that a bomb is counted and not held
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # of a JPEG, within its data: neither stuffing nor a restart
_WHOLE = "a whole image file"


def check_image_file(content: bytes) -> None:
    """Refuse a PNG or BMP that is damaged in a way Pillow does not see; other formats are left to their decoders.

    Args:
        content: all bytes of the file.

    Raises:
        ImageError: what is wrong, and where.
    """
    if content.startswith(_PNG):
        _check_png(content)
    elif content.startswith(b"BM"):
        _check_bmp(content)


def png_pixels_are_missing(content: bytes) -> bool:
    """Whether a PNG holds fewer pixels than its header says, or broken ones. It costs what decoding costs, and is asked of suspects only.

    Args:
        content: all bytes of a PNG that `check_image_file` let pass.
    """
    chunks = list(_chunks(content))
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", chunks[0][1])
    bits = depth * _CHANNELS[colour]
    needed: int = sum(
        rows * (1 + (columns * bits + 7) // 8)
        for columns, rows in _passes(width, height, interlace)
        if columns and rows
    )
    inflate = zlib.decompressobj()
    found: int = 0
    for kind, data in chunks:
        if kind != b"IDAT":
            continue
        while data and not inflate.eof and found < needed:
            try:
                found += len(inflate.decompress(data, _INFLATED))
            except zlib.error:
                return True
            data = inflate.unconsumed_tail
    return found < needed


def jpeg_with_more_data(content: bytes) -> bytes:
    """Return a JPEG with a few more bytes before its end marker.

    Where its data were complete, its decoder skips them and gives the same pixels; where they ended early, it decodes them in
    place of the first missing block, which was grey.

    Args:
        content: all bytes of a JPEG that could be decoded.
    """
    at = content.index(b"\xff\xda")
    while True:
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        marker = _MARKER.search(content, at)
        if marker is None or marker[1] == b"\xd9":
            end = len(content) if marker is None else marker.start()
            return content[:end] + bytes(64) + content[end:]
        at = marker.start()


def _passes(width: int, height: int, interlace: int) -> Iterator[tuple[int, int]]:
    if not interlace:
        yield width, height
        return
    for left, top, across, down in _ADAM7:
        yield (width - left + across - 1) // across, (height - top + down - 1) // down


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each chunk of a PNG, IEND included; what follows it is not looked at."""
    view, at = memoryview(content), len(_PNG)
    while True:
        if at + 12 > len(content):
            raise ImageError("the PNG ends before its end chunk: it is truncated", expected=_WHOLE)
        length, kind = struct.unpack_from(">I4s", content, at)
        if at + 12 + length > len(content):
            raise ImageError(f"the PNG ends inside its chunk `{_name(kind)}`: it is truncated", expected=_WHOLE)
        (checksum,) = struct.unpack_from(">I", content, at + 8 + length)
        if zlib.crc32(view[at + 4 : at + 8 + length]) != checksum:
            raise ImageError(
                f"the checksum of the PNG's chunk `{_name(kind)}` is wrong: it is damaged", expected=_WHOLE
            )
        yield kind, content[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length


def _check_png(content: bytes) -> None:
    before = b""
    seen: set[bytes] = set()
    for kind, data in _chunks(content):
        if (kind == b"IHDR") != (not before):
            raise ImageError("the PNG does not begin with one header chunk (`IHDR`)", expected=_WHOLE)
        if kind == b"IHDR" and (len(data) != 13 or data[9] not in _CHANNELS or any(data[10:12]) or data[12] > 1):
            raise ImageError("the PNG's header names a colour type, compression or interlacing that no PNG has")
        if kind == b"PLTE" and (not 3 <= len(data) <= 768 or len(data) % 3):
            raise ImageError(
                f"the PNG has a palette of {len(data)} bytes", expected="three for each of 1 to 256 colours"
            )
        if kind in (b"PLTE", b"tRNS") and (kind in seen or b"IDAT" in seen):
            raise ImageError(f"the PNG has a chunk `{_name(kind)}` twice, or after its pixels", expected=_WHOLE)
        if kind == b"IDAT" and before != b"IDAT":
            if b"IDAT" in seen:
                raise ImageError("the PNG's pixels are interrupted by another chunk", expected=_WHOLE)
            if b"PLTE" not in seen and content[25] == 3:
                raise ImageError("the PNG has no palette before its pixels", expected=_WHOLE)
        if kind[:1].isupper() and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ImageError(f"the PNG has a chunk `{_name(kind)}`, without which it cannot be understood")
        seen.add(kind)
        before = kind


def _check_bmp(content: bytes) -> None:
    if len(content) < 18:
        raise ImageError("the BMP ends inside its header: it is truncated", expected=_WHOLE)
    offset, header = struct.unpack_from("<II", content, 10)
    if header >= 40 and len(content) >= 50:
        (colours,) = struct.unpack_from("<I", content, 46)
        if colours > 256 and struct.unpack_from("<H", content, 28)[0] <= 8:
            raise ImageError(f"the BMP states a palette of {colours} colours", expected="at most 256")
    if offset < 14 + header:
        raise ImageError(f"the BMP begins its pixels at byte `{offset}`, inside its header", expected=_WHOLE)


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")
