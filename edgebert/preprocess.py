"""From an image file to the uint8 RGB array a graph takes: the one implementation.

Training's evaluation, calibration, bench and runtime call this and nothing else, so their tensors are equal bit by bit.
Normalisation (mean, standard deviation, channel order) is *not* done here: it is inside the graph.

Decoding, by content and never by file name:

* JPEG, PNG, WebP and BMP; anything else, an animation, a truncated file, more than 50 megapixels or a side of more
  than 65,535 pixels is refused; of a JPEG with several pictures (MPO, as phones write) the first, main one is taken;
* the EXIF orientation is applied, an unreadable EXIF block counts as upright; ICC profiles are not applied;
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

from edgebert._json import Fields, JsonObject, dump_json
from edgebert.errors import BadDataError, InputNotFoundError

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
    MemoryError,
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

# `catch_warnings` swaps filters of the whole process: two threads inside it would restore each other's.
_WARNING_FILTERS = threading.Lock()

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Resize = Literal["crop", "stretch", "stretch-crop"]
ChannelOrder = Literal["rgb", "bgr"]


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


def load_image(source: ImageSource, preprocessing: Preprocessing) -> RgbImage:
    """Decode and resize one image.

    Args:
        source: a path, the bytes of a file, a Pillow image, or a uint8 (height, width, 3) RGB array.
        preprocessing: the rule stored in the artefact.

    Returns:
        uint8 (preprocessing.height, preprocessing.width, 3) RGB, C-contiguous, owning its memory.

    Raises:
        BadDataError: it is no image of an accepted kind.
        InputNotFoundError: the path cannot be read.
    """
    return resize_image(decode_image(source), preprocessing)


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
        BadDataError: truncated, no image of an accepted format, animated, too large, or an array of another kind.
        InputNotFoundError: the path cannot be read.
    """
    if isinstance(source, np.ndarray):
        return _checked_array(source)
    if isinstance(source, (str, os.PathLike)):
        source = read_image_file(Path(source))
    if isinstance(source, bytes) and not source:
        raise BadDataError("the image is empty (0 bytes)")
    try:
        if isinstance(source, Image.Image):
            return _rgb_from_pillow(source)
        with _without_warnings():
            opened = Image.open(io.BytesIO(source), formats=FORMATS)
        with opened as image:
            return _rgb_from_pillow(image)
    except UnidentifiedImageError as error:
        raise BadDataError("not an image", expected="JPEG, PNG, WebP or BMP") from error
    except Image.DecompressionBombError as error:
        raise BadDataError("the image is larger than 50 megapixels", expected="at most 50 megapixels") from error
    except _PILLOW_ERRORS as error:
        raise BadDataError(f"the image cannot be decoded: {error}") from error


def read_image_file(path: Path) -> bytes:
    """Return the bytes of a regular file; a FIFO, a socket or a device is refused instead of waited for.

    Raises:
        InputNotFoundError: there is no such file, or it cannot be read.
        BadDataError: no regular file, or longer than 256 MiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadDataError(f"`{path}` is no regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise BadDataError(f"`{path}` has {status.st_size:,} bytes", expected=f"at most {MAX_FILE_BYTES:,}")
            return stream.read()
    except OSError as error:
        raise InputNotFoundError(f"cannot read `{path}`: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise InputNotFoundError(f"cannot read `{path!r}`: {error}") from error


def resize_image(image: RgbImage, preprocessing: Preprocessing) -> RgbImage:
    """Resize uint8 (any height, any width, 3) to uint8 (preprocessing.height, preprocessing.width, 3).

    The result owns its memory, also where the size was right already.
    """
    height, width = preprocessing.height, preprocessing.width
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    if preprocessing.resize == "stretch":
        return _resampled(image, height, width, filter_)
    rows, columns = image.shape[:2]
    edge = preprocessing.shortest_edge
    assert edge is not None  # checked when the rule was made
    if preprocessing.resize == "stretch-crop":
        rows = columns = edge
    # As Hugging Face's image processors round: the short edge exactly, the long edge downwards.
    scaled_rows = max(edge, edge * rows // columns) if rows > columns else edge
    scaled_columns = max(edge, edge * columns // rows) if rows <= columns else edge
    top, left = (scaled_rows - height) // 2, (scaled_columns - width) // 2
    if scaled_rows * scaled_columns > max(MAX_PIXELS, edge * edge):  # a ribbon: only the part that is kept is computed
        scale = min(rows, columns) / edge
        box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filter_, box))
    scaled = _resampled(image, scaled_rows, scaled_columns, filter_)
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def pixel_sha256(image: RgbImage) -> str:
    """Return the SHA-256 of decoded pixels and their shape: the identity of an image, whatever file holds it."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _resampled(image: RgbImage, height: int, width: int, filter_: Image.Resampling) -> RgbImage:
    if image.shape[:2] == (height, width):
        return np.array(image, order="C")
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filter_))


def _checked_array(array: NDArray[np.generic]) -> RgbImage:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise BadDataError(
            f"the array has shape {array.shape} and dtype {array.dtype}", expected="uint8 (height, width, 3), RGB"
        )
    return array  # type: ignore[return-value]  # the dtype was just checked


def _rgb_from_pillow(image: Image.Image) -> RgbImage:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_EDGE:
        raise BadDataError(
            f"the image has {image.width} x {image.height} pixels",
            expected=f"at most 50 megapixels, and {MAX_EDGE:,} on a side",
        )
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadDataError(f"the image is animated ({frames} frames)", expected="one frame")
    _refuse_mistaken_key(image)
    image.load()  # all of it: a truncated file fails here, not in an epoch's middle
    image = _upright(image)
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        grey = ((deep + 128) // 257).astype(np.uint8)
        return _grey_to_rgb(grey if key is None else np.where(deep == key, np.uint8(255), grey))
    if image.mode in ("I", "F"):
        raise BadDataError(f"the image has 32-bit pixels (mode `{image.mode}`)", expected="8 bits, or 16-bit grey")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or key is not None:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return np.array(opaque.convert("RGB"))
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. Not `ImageOps.exif_transpose`, which rewrites the whole block and fails on odd ones."""
    try:
        with _without_warnings():
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _refuse_mistaken_key(image: Image.Image) -> None:
    """Refuse a colour key that is given in the file's bit depth while Pillow compares it with 8-bit pixels."""
    if "transparency" not in image.info or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    if image.tile[0][3] in ("L;2", "L;4", "RGB;16B"):
        raise BadDataError(
            f"the image has a colour key in mode `{image.tile[0][3]}`", expected="8 bits, or 16-bit grey"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Pillow from warning about metadata, and about sizes that our own cap decides."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _grey_to_rgb(grey: NDArray[np.uint8]) -> RgbImage:
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
