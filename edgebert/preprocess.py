"""From an image file to the uint8 RGB array a graph takes: the one implementation.

Training's evaluation, calibration, bench and runtime call this and nothing else, so their tensors are equal bit by bit.
Normalisation (mean, standard deviation, channel order) is *not* done here: it is inside the graph.

Decoding, by content and never by file name:

* JPEG, PNG, WebP and BMP; anything else, an animation, a truncated file or more than 50 megapixels is refused;
* the EXIF orientation is applied; ICC profiles are not;
* grey is repeated on three channels; 16-bit grey is divided by 257, so that 65,535 becomes 255 (never clipped);
* palettes are looked up; CMYK is converted by Pillow's formula;
* transparency, in any of its forms, is composited over white.

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
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgebert._json import Fields, JsonObject, dump_json
from edgebert.errors import BadDataError, InputNotFoundError

RgbImage: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = "Path | str | bytes | Image.Image | RgbImage"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 50_000_000  # reliability.md, fault 3: our own cap, checked in the header before any pixel is decoded
MAX_FILE_BYTES = 256 << 20
MAX_SIDE = 4096  # of the network's input; a larger one is a mistake in a manifest, not a classifier

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Resize = Literal["crop", "stretch"]
ChannelOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become the network's input; stored in every artefact.

    Attributes:
        height: rows of the network's input, in pixels.
        width: columns of the network's input, in pixels.
        resize: `crop` scales the shortest edge to `shortest_edge` and cuts the centre; `stretch` scales both edges.
        shortest_edge: pixels, for `crop`; at least as large as both `height` and `width`.
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
        if self.resize == "crop" and not max(self.height, self.width) <= (self.shortest_edge or 0) <= 2 * MAX_SIDE:
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
    if isinstance(source, Image.Image):
        return _rgb_from_pillow(source)
    if not source:
        raise BadDataError("the image is empty (0 bytes)")
    # What Pillow's parsers raise on hostile bytes was found by fuzzing (reliability.md, M6): more than OSError.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes that our own cap decides
            with Image.open(io.BytesIO(source), formats=FORMATS) as image:
                return _rgb_from_pillow(image)
    except Image.UnidentifiedImageError as error:
        raise BadDataError("not an image", expected="JPEG, PNG, WebP or BMP") from error
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError) as error:
        raise BadDataError(f"the image cannot be decoded: {error}") from error
    except Image.DecompressionBombError as error:
        raise BadDataError("the image is larger than 50 megapixels", expected="at most 50 megapixels") from error


def read_image_file(path: Path) -> bytes:
    """Return the bytes of a regular file; a FIFO, a socket or a device is refused instead of waited for.

    Raises:
        InputNotFoundError: there is no such file, or it cannot be read.
        BadDataError: no regular file, or longer than 256 MiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadDataError(f"`{path}` is no regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise BadDataError(f"`{path}` has {status.st_size:,} bytes", expected=f"at most {MAX_FILE_BYTES:,}")
            return stream.read()
    except OSError as error:
        raise InputNotFoundError(f"cannot read `{path}`: {error.strerror}") from error


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
    # As Hugging Face's image processors round: the short edge exactly, the long edge downwards.
    if rows <= columns:
        scaled = _resampled(image, edge, max(edge, edge * columns // rows), filter_)
    else:
        scaled = _resampled(image, max(edge, edge * rows // columns), edge, filter_)
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
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
    if image.width * image.height > MAX_PIXELS:
        raise BadDataError(f"the image has {image.width} x {image.height} pixels", expected="at most 50 megapixels")
    if getattr(image, "n_frames", 1) > 1:
        raise BadDataError(f"the image is animated ({getattr(image, 'n_frames', 1)} frames)", expected="one frame")
    image.load()  # all of it: a truncated file fails here, not in an epoch's middle
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return _grey_to_rgb(((grey + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadDataError(f"the image has 32-bit pixels (mode `{image.mode}`)", expected="8 bits, or 16-bit grey")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        opaque.alpha_composite(image.convert("RGBA"))
        return np.array(opaque.convert("RGB"))
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: NDArray[np.uint8]) -> RgbImage:
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
