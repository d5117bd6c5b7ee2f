"""From an image file to the uint8 RGB array a graph takes: the one implementation.

Training's evaluation, calibration, bench and runtime call this and nothing else, so their tensors are equal bit by bit.
Normalisation (mean, standard deviation, channel order) is *not* done here: it is inside the graph.

Decoding, by content and never by file name:

* JPEG, PNG, WebP and BMP; anything else, an animation, a truncated file, a wrong checksum, a pixel beyond its palette,
  more than 50 megapixels or a side of more than 65,535 pixels is refused (docs/images.md has the table); of a JPEG with
  several pictures (MPO, as phones write) the first, main one is taken;
* the EXIF orientation is applied, or else XMP's; an unreadable EXIF block counts as upright; ICC profiles are not applied;
* grey is repeated on three channels; 16-bit grey is divided by 257, so that 65,535 becomes 255 (never clipped);
  of 16-bit colour the high byte is kept;
* palettes are looked up; CMYK is converted by Pillow's formula;
* transparency, in any of its forms, is composited over white; the one form that Pillow mistakes, a colour key in a
  2- or 4-bit grey or a 16-bit colour PNG, is refused.

>>> import numpy as np
>>> preprocessing = Preprocessing(height=8, width=8)
>>> load_image(np.zeros((16, 16, 3), np.uint8), preprocessing).shape
(8, 8, 3)
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from edgebert._image_files import check_image_file, jpeg_with_more_data, png_pixels_are_missing
from edgebert._json import Fields, JsonObject, dump_json
from edgebert.errors import BadDataError, ImageError, InputNotFoundError, MemoryExhaustedError

RgbImage: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = "Path | str | bytes | Image.Image | RgbImage"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 50_000_000  # reliability.md, fault 3: our own cap, checked in the header before any pixel is decoded
MAX_EDGE = 65_535  # of an image, in pixels, as in JPEG: one longer than that makes resizing a memory bomb
MAX_FILE_BYTES = 256 << 20
MAX_SIDE = 4096  # of the network's input; a larger one is a mistake in a manifest, not a classifier

# What Pillow's parsers raise on hostile bytes, found by fuzzing (reliability.md, M6): more than OSError.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    struct.error,
)

_EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag 0x0112: stored rows and columns -> what brings them upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)

_SPARE = 2  # docs/runtime-speed.md has what 1 and 2 change in pixels and decisions

# `catch_warnings` swaps filters of the whole process: two threads inside it would restore each other's. Re-entrant, as a signal
# handler may open an image (those of a bundle that it swaps in) while its thread is inside. A fork waits until no other thread
# is: the child would find the lock taken for ever, and warnings switched off.
_WARNING_FILTERS = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_WARNING_FILTERS.acquire,
        after_in_parent=_WARNING_FILTERS.release,
        after_in_child=_WARNING_FILTERS.release,
    )

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Resize = Literal["crop", "stretch", "stretch-crop"]
ChannelOrder = Literal["rgb", "bgr"]
Decoding = Literal["exact", "reduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become the network's input; stored in every artefact.

    Attributes:
        height: rows of the network's input, in pixels.
        width: columns of the network's input, in pixels.
        resize: `crop` scales the shortest edge to `shortest_edge` and cuts the centre; `stretch` scales both edges to
            `height` and `width`; `stretch-crop` scales both edges to `shortest_edge` and cuts the centre, as DeiT does.
        shortest_edge: pixels, for `crop` and `stretch-crop`; at least as large as both `height` and `width`.
        interpolation: Pillow's filter of this name.
        mean: per channel, of values in [0, 1]; applied inside the graph, in `channel_order`.
        std: per channel, above 0; applied inside the graph: (value / 255 - mean) / std.
        channel_order: the order the network was trained in; images are RGB, a `bgr` graph turns them itself.
    """

    height: int
    width: int
    resize: Resize = "stretch"
    shortest_edge: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("resize", self.resize, get_args(Resize)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("channel_order", self.channel_order, get_args(ChannelOrder)),
        ):
            if value not in allowed:
                raise BadDataError(f"preprocessing has {name} `{value}`", expected=", ".join(allowed))
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= MAX_SIDE:
                raise BadDataError(f"preprocessing has {name} `{side}`", expected=f"1 to {MAX_SIDE} pixels")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise BadDataError(f"preprocessing has mean {self.mean}, std {self.std}", expected="three numbers each")
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or min(self.std) <= 0:
            raise BadDataError(
                f"preprocessing has mean {self.mean}, std {self.std}", expected="finite, and std above 0"
            )
        if self.resize == "stretch" and self.shortest_edge is not None:
            raise BadDataError(f"preprocessing has shortest_edge `{self.shortest_edge}`", expected="none for `stretch`")
        if self.resize != "stretch" and not max(self.height, self.width) <= (self.shortest_edge or 0) <= 2 * MAX_SIDE:
            raise BadDataError(
                f"preprocessing has shortest_edge `{self.shortest_edge}`",
                expected=f"at least {max(self.height, self.width)} pixels, so that the crop lies inside the image",
            )

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: JsonObject, *, what: str = "preprocessing") -> Preprocessing:
        """Read what `to_json` wrote.

        Raises:
            BadDataError: a field is missing, unknown, of another type or outside its range.
        """
        fields = Fields(value, what=what)
        unknown = sorted(set(value) - set(cls.__dataclass_fields__))
        if unknown:
            raise BadDataError(f"{what} holds `{unknown[0]}`", expected=", ".join(cls.__dataclass_fields__))
        mean, std = fields.numbers("mean"), fields.numbers("std")
        if len(mean) != 3 or len(std) != 3:
            raise BadDataError(f"{what} holds mean {mean}, std {std}", expected="three numbers each")
        return cls(
            height=fields.integer("height"),
            width=fields.integer("width"),
            resize=fields.text("resize"),  # type: ignore[arg-type]  # checked in __post_init__
            shortest_edge=None if value.get("shortest_edge") is None else fields.integer("shortest_edge"),
            interpolation=fields.text("interpolation"),  # type: ignore[arg-type]  # checked in __post_init__
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            channel_order=fields.text("channel_order"),  # type: ignore[arg-type]  # checked in __post_init__
        )

    def sha256(self) -> str:
        """Return the SHA-256 of the fields, 64 hexadecimal digits."""
        return hashlib.sha256(dump_json(self.to_json()).encode()).hexdigest()


def load_image(source: ImageSource, preprocessing: Preprocessing, decoding: Decoding = "exact") -> RgbImage:
    """Decode and resize one image.

    Args:
        source: a path, the bytes of a file, a Pillow image, or a uint8 (height, width, 3) RGB array.
        preprocessing: the rule stored in the artefact.
        decoding: `exact` gives the pixels of training, calibration and bench; `reduced` lets large JPEG files be decoded at a
            half, a quarter or an eighth of their size, see `_reduction`, and changes nothing else, refusals included.

    Returns:
        uint8 (preprocessing.height, preprocessing.width, 3) RGB, C-contiguous, owning its memory.

    Raises:
        ImageError: it is no image of an accepted kind.
        InputNotFoundError: the path cannot be read.
        MemoryExhaustedError: memory ran out while it was decoded.
    """
    return _owned(view_image(source, preprocessing, decoding), source)


def view_image(source: ImageSource, preprocessing: Preprocessing, decoding: Decoding = "exact") -> RgbImage:
    """Decode and resize one image, and copy nothing that need not be copied; the pixels are those of `load_image`.

    The runtime's way: an array whose size is right already costs nothing, one that is only to be cropped neither.

    Returns:
        uint8 (preprocessing.height, preprocessing.width, 3) RGB, of any strides, perhaps read-only, and perhaps a view of
        `source`: to be used before its owner writes to it again.

    Raises:
        ImageError: it is no image of an accepted kind.
        InputNotFoundError: the path cannot be read.
        MemoryExhaustedError: memory ran out while it was decoded.
    """
    if decoding == "exact" or isinstance(source, (np.ndarray, Image.Image)):
        return _resized_view(decode_image(source), preprocessing)
    with _opened(source) as (image, content):
        reduction = _reduction(image, preprocessing)
        if reduction > 1:
            return _from_reduced_jpeg(image, content, reduction, preprocessing)
        pixels = _rgb_from_pillow(image, content)
    return _resized_view(pixels, preprocessing)


def takes_as_is(preprocessing: Preprocessing) -> bool:
    """Say whether a uint8 (preprocessing.height, preprocessing.width, 3) array is the network's input without any change."""
    square = preprocessing.height == preprocessing.width == preprocessing.shortest_edge
    return preprocessing.resize == "stretch" or square


def load_batch(sources: Iterable[ImageSource], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode and resize several images into uint8 (batch, height, width, 3) RGB."""
    images = [load_image(source, preprocessing) for source in sources]
    if not images:
        return np.empty((0, preprocessing.height, preprocessing.width, 3), np.uint8)
    return np.stack(images)


def decode_image(source: ImageSource) -> RgbImage:
    """Return an image's pixels as uint8 (height, width, 3) RGB, by the rules at the top of this module.

    An array is returned as it is (a view, not a copy).

    Raises:
        ImageError: truncated, no image of an accepted format, animated, too large, or an array of another kind.
        InputNotFoundError: the path cannot be read.
        MemoryExhaustedError: memory ran out while it was decoded.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    with _opened(source) as (image, content):
        return _rgb_from_pillow(image, content)


def read_image_file(path: Path) -> bytes:
    """Return the bytes of a regular file; a FIFO, a socket or a device is refused instead of waited for.

    Raises:
        InputNotFoundError: there is no such file, or it cannot be read.
        ImageError: no regular file, or longer than 256 MiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"`{path}` is no regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(f"`{path}` has {status.st_size:,} bytes", expected=f"at most {MAX_FILE_BYTES:,}")
            return stream.read()
    except OSError as error:
        raise InputNotFoundError(f"cannot read `{path}`: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise InputNotFoundError(f"cannot read `{path!r}`: {error}") from error


def resize_image(image: RgbImage, preprocessing: Preprocessing) -> RgbImage:
    """Resize uint8 (any height, any width, 3) to uint8 (preprocessing.height, preprocessing.width, 3).

    The result owns its memory, also where the size was right already.
    """
    return _owned(_resized_view(image, preprocessing), image)


def pixel_sha256(image: RgbImage) -> str:
    """Return the SHA-256 of decoded pixels and their shape: the identity of an image, whatever file holds it."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _resized_view(image: RgbImage, preprocessing: Preprocessing) -> RgbImage:
    """Return the resized image, a view of `image` where no pixel changes."""
    height, width = preprocessing.height, preprocessing.width
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    if preprocessing.resize == "stretch":
        return _resampled(image, height, width, filter_)
    rows, columns = image.shape[:2]
    scaled_rows, scaled_columns = _scaled_size(rows, columns, preprocessing)
    top, left = (scaled_rows - height) // 2, (scaled_columns - width) // 2
    if _is_ribbon(scaled_rows, scaled_columns):  # only the part that is kept is computed
        scale = min(rows, columns) / min(scaled_rows, scaled_columns)
        box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        return _resampled(image, height, width, filter_, box)
    scaled = _resampled(image, scaled_rows, scaled_columns, filter_)
    return scaled[top : top + height, left : left + width]


def _scaled_size(rows: int, columns: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the rows and columns that an image is scaled to, before anything is cut off."""
    edge = preprocessing.shortest_edge
    if edge is None:
        return preprocessing.height, preprocessing.width
    if preprocessing.resize == "stretch-crop":
        return edge, edge
    # As Hugging Face's image processors round: the short edge exactly, the long edge downwards.
    if rows > columns:
        return max(edge, edge * rows // columns), edge
    return edge, max(edge, edge * columns // rows)


def _is_ribbon(scaled_rows: int, scaled_columns: int) -> bool:
    """Say whether an image is so much longer than wide that scaling all of it would be a memory bomb."""
    return scaled_rows * scaled_columns > max(MAX_PIXELS, min(scaled_rows, scaled_columns) ** 2)


def _resampled(
    image: RgbImage,
    height: int,
    width: int,
    filter_: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> RgbImage:
    """Resize an image, or the part of it that `box` (left, top, right, bottom) cuts out: along the rows first, then along the columns.

    Pillow rounds to 8 bits in between, so that the order shows in the pixels. Up to 12.3, the last one for Python 3.10, it was
    always this one; 13.0 chooses by the shape (300 x 256 to 224 x 224 goes along the columns first, 640 x 480 does not). Two calls
    give the same pixels in every version.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width) and box is None:
        return image
    left, top, right, bottom = box or (0, 0, columns, rows)
    whole = Image.fromarray(np.ascontiguousarray(image))
    if filter_ is Image.Resampling.NEAREST:  # rounds nothing, and is one step in every version
        return np.asarray(whole.resize((width, height), filter_, (left, top, right, bottom)))
    wide = whole.resize((width, rows), filter_, (left, 0, right, rows))
    return np.asarray(wide.resize((width, height), filter_, (0, top, width, bottom)))


def _owned(image: RgbImage, source: object) -> RgbImage:
    """Return the image C-contiguous and in memory of its own: whoever has it may write to it, and nobody else does."""
    ready = image.flags.c_contiguous and image.flags.owndata and image.flags.writeable
    return image if ready and image is not source else np.array(image, order="C")


def _checked_array(array: NDArray[np.generic]) -> RgbImage:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"the array has shape {array.shape} and dtype {array.dtype}", expected="uint8 (height, width, 3), RGB"
        )
    return np.asarray(array, np.uint8)  # a masked array or a matrix as what it is; copies nothing


@contextmanager
def _opened(source: Path | str | bytes | Image.Image) -> Iterator[tuple[Image.Image, bytes | None]]:
    """Open an image whose kind and size are accepted, and say what file it is; whatever fails inside the block as well becomes an `ImageError`.

    A Pillow image of the caller's is not closed.
    """
    if isinstance(source, (str, os.PathLike)):
        source = read_image_file(Path(source))
    if isinstance(source, bytes) and not source:
        raise ImageError("the image is empty (0 bytes)")
    try:
        if isinstance(source, Image.Image):
            _check_picture(source)
            yield source, None
            return
        check_image_file(source)
        with _without_warnings():
            opened = Image.open(io.BytesIO(source), formats=FORMATS)
        with opened as image:
            _check_picture(image)
            yield image, source
    except UnidentifiedImageError as error:
        raise ImageError("not an image", expected="JPEG, PNG, WebP or BMP") from error
    except Image.DecompressionBombError as error:
        raise ImageError("the image is larger than 50 megapixels", expected="at most 50 megapixels") from error
    except MemoryError as error:  # of the computer, not of this image, whose size was found right
        raise MemoryExhaustedError(
            "memory ran out while an image was decoded",
            expected="4 bytes for each pixel, twice",
            hint="free some memory",
        ) from error
    except _PILLOW_ERRORS as error:
        raise ImageError(f"the image cannot be decoded: {error}") from error


def _check_picture(image: Image.Image) -> None:
    """Refuse by the header alone what is too large, animated, or mistaken by Pillow."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_EDGE:
        raise ImageError(
            f"the image has {image.width} x {image.height} pixels",
            expected=f"at most 50 megapixels, and {MAX_EDGE:,} on a side",
        )
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"the image is animated ({frames} frames)", expected="one frame")
    _refuse_mistaken_key(image)


def _rgb_from_pillow(image: Image.Image, content: bytes | None) -> RgbImage:
    image.load()  # all of it: a truncated file fails here, not in an epoch's middle
    _refuse_missing_pixels(image, content)
    _refuse_missing_colours(image)
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        grey = ((deep + 128) // 257).astype(np.uint8)
        return _grey_to_rgb(grey if key is None else np.where(deep == key, np.uint8(255), grey))
    if image.mode in ("I", "F"):
        raise ImageError(f"the image has 32-bit pixels (mode `{image.mode}`)", expected="8 bits, or 16-bit grey")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or key is not None:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return np.array(opaque.convert("RGB"))
    return np.array(image.convert("RGB"))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what brings an image upright by its EXIF orientation; None where it is, or where that cannot be read.

    Not `ImageOps.exif_transpose`, which rewrites the whole block and fails on odd ones.
    """
    try:
        with _without_warnings():
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return None
    return _UPRIGHT.get(orientation)


def _reduction(image: Image.Image, preprocessing: Preprocessing) -> int:
    """Return by how much a JPEG may be reduced while it is decoded: 8, 4 or 2, or 1 where it may not.

    What is left has at least `_SPARE` times the rows and the columns that the image is then scaled to.
    """
    if image.format not in ("JPEG", "MPO"):
        return 1
    columns, rows = image.size
    if _turn(image) in _SIDEWAYS:
        columns, rows = rows, columns
    scaled_rows, scaled_columns = _scaled_size(rows, columns, preprocessing)
    if _is_ribbon(scaled_rows, scaled_columns):
        return 1
    spare = min(rows / scaled_rows, columns / scaled_columns) / _SPARE
    return next((reduction for reduction in (8, 4, 2) if spare >= reduction), 1)


def _from_reduced_jpeg(
    image: Image.Image, content: bytes | None, reduction: int, preprocessing: Preprocessing
) -> RgbImage:
    """Decode a JPEG at a fraction of its size and resize it by the rule, to the very size that the whole one would get."""
    assert isinstance(image, ImageFile.ImageFile)  # it was opened here
    turn = _turn(image)
    columns, rows = image.size
    drafted = (columns // reduction, rows // reduction)
    image.draft(None, drafted)
    image.load()
    _refuse_missing_pixels(image, content, drafted)
    # The decoder rounds upwards: its last row and column may lie outside in part.
    box = (0, 0, columns / reduction, rows / reduction)
    sideways = turn in _SIDEWAYS
    upright = (columns, rows) if sideways else (rows, columns)
    height, width = scaled = _scaled_size(*upright, preprocessing)
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    resized = image.convert("RGB").resize(scaled if sideways else (width, height), filter_, box)
    pixels = np.asarray(resized if turn is None else resized.transpose(turn))
    top, left = (height - preprocessing.height) // 2, (width - preprocessing.width) // 2
    return pixels[top : top + preprocessing.height, left : left + preprocessing.width]


def _refuse_mistaken_key(image: Image.Image) -> None:
    """Refuse a colour key that is given in the file's bit depth while Pillow compares it with 8-bit pixels."""
    if "transparency" not in image.info or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    if image.tile[0][3] in ("L;2", "L;4", "RGB;16B"):
        raise ImageError(f"the image has a colour key in mode `{image.tile[0][3]}`", expected="8 bits, or 16-bit grey")


def _refuse_missing_pixels(image: Image.Image, content: bytes | None, drafted: tuple[int, int] | None = None) -> None:
    """Refuse a file whose pixels end early. Pillow leaves the rest black or grey, and only those get a second look.

    Args:
        image: decoded.
        content: its file; None for a Pillow image of the caller's, which is taken as it is.
        drafted: columns and rows that were asked for where a JPEG was decoded at a reduced size.
    """
    if content is None:
        return
    if image.format == "PNG":
        last_row = image.crop((0, image.height - 1, image.width, image.height))
        suspect = bool(image.info.get("interlace")) or not np.asarray(last_row).any()
        missing = suspect and png_pixels_are_missing(content)
    else:
        corner = image.crop((max(0, image.width - 8), max(0, image.height - 8), image.width, image.height))
        suspect = image.format == "JPEG" and set(np.unique(np.asarray(corner))) <= {127, 128}
        missing = suspect and _changes_with_more_data(image, content, drafted)
    if missing:
        raise ImageError(
            f"the {image.format}'s data end before its last row: it is truncated", expected="a whole image file"
        )


def _changes_with_more_data(image: Image.Image, content: bytes, drafted: tuple[int, int] | None) -> bool:
    with _without_warnings():
        again = Image.open(io.BytesIO(jpeg_with_more_data(content)), formats=FORMATS)
    with again:
        if drafted is not None:
            again.draft(None, drafted)
        return again.tobytes() != image.tobytes()


def _refuse_missing_colours(image: Image.Image) -> None:
    """Refuse pixels beyond the end of their palette: Pillow makes them black."""
    if image.mode != "P" or image.palette is None:
        return
    highest = np.asarray(image).max()
    colours = len(image.palette.palette) // len(image.palette.mode)
    if highest >= colours:
        raise ImageError(f"a pixel has colour {highest} of a palette of {colours}", expected="a colour that is there")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Pillow from warning about metadata, and about sizes that our own cap decides."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _grey_to_rgb(grey: NDArray[np.uint8]) -> RgbImage:
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
