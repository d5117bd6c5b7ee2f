"""Fashion-MNIST as a DATA folder: 60,000 training and 10,000 test images of clothing, 28 x 28 grey, ten classes.

Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747), MIT licence, from github.com/zalandoresearch/fashion-mnist: four gzipped idx
files. They become two parquet files of PNG images, `train-0.parquet` and `test-0.parquet`, with the class names in their
metadata as the `datasets` library writes them, so that every command reads them as it reads a user's own data. The same
source gives the same bytes, with the same versions of Pillow and pyarrow.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

from edgebert._files import FolderKind, read_input, staged_folder
from edgebert.errors import BadDataError, UsageError

# In the order of the numbers, as the README of the data set names them.
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Of the unpacked files; a .gz differs by who packed it.
_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
_SIDE = 28
_TRAIN_OVER_TEST = 6  # 60,000 over 10,000

_FOLDER = FolderKind(marker="train-0.parquet", schema="", holds=("train-0.parquet", "test-0.parquet"))


def fashion_data(source: Path, output: Path, images: int | None = None) -> Path:
    """Write Fashion-MNIST as a DATA folder and return it.

    Args:
        source: the folder of the four `.gz` files.
        output: the folder to write; one that this function wrote is replaced.
        images: so many training images, the first of each class, and a sixth as many test images. None: all.

    Raises:
        BadDataError: a file is not the published one.
        CannotWriteError: `output` is something else, or cannot be written.
        InputNotFoundError: a file is not there.
        UsageError: `images` is below one test image a class or above what there is.
    """
    fewest, most = _TRAIN_OVER_TEST * len(CLASS_NAMES), 60_000
    if images is not None and not fewest <= images <= most:
        raise UsageError(f"images `{images}`", expected=f"{fewest} to {most:,}")
    counts = {"train": images, "test": None if images is None else images // _TRAIN_OVER_TEST}
    with staged_folder(output, force=True, kind=_FOLDER) as staging:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            labels = np.frombuffer(_unpacked(source, f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
            pixels = np.frombuffer(_unpacked(source, f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16)
            rows = _first_of_each_class(labels, counts[split])
            _write(staging / f"{split}-0.parquet", pixels.reshape(-1, _SIDE, _SIDE)[rows], labels[rows])
    return output


def _unpacked(source: Path, name: str) -> bytes:
    path = source / f"{name}.gz"
    try:
        content = gzip.decompress(read_input(path, what="Fashion-MNIST's"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadDataError(f"`{path}` cannot be unpacked: {error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MD5[name]:
        raise BadDataError(f"`{path}` is not the published file, its content has MD5 {found}", expected=_MD5[name])
    return content


def _first_of_each_class(labels: NDArray[np.uint8], count: int | None) -> NDArray[np.int64]:
    """Return `count` positions in rising order, as many of each class, give or take one; all where it is None."""
    if count is None:
        return np.arange(len(labels))
    ranks = np.empty(len(labels), np.int64)  # of an image within its class
    for number in range(len(CLASS_NAMES)):
        mine = np.flatnonzero(labels == number)
        ranks[mine] = np.arange(len(mine))
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def _write(path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    encoded = pyarrow.array([{"bytes": _png(image), "path": None} for image in images], image_type)
    table = pyarrow.table({"image": encoded, "label": pyarrow.array(labels.astype(np.int64))})
    # PNG is packed already.
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path, compression="none")


def _png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()
