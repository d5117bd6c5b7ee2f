"""The images of a split and the order in which training goes through them.

Small splits are kept in memory. Larger ones are decoded once into a file, whose rows are read as they are needed, so that
memory does not grow with the data; what would be too large for that, too, is decoded again by threads, ahead of its use.
"""

from __future__ import annotations

import collections
import logging
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert._files import staged_file
from edgebert._progress import Progress
from edgebert.card import hash_of_hashes
from edgebert.errors import CannotWriteError
from edgebert.preprocess import Preprocessing, RgbImage, load_image
from edgebert.runtime.runner import physical_cores

if TYPE_CHECKING:
    from edgebert.data import Example

_log = logging.getLogger("edgebert")

RAM_BYTES = 8 << 20  # of resized pixels: 55 images of 224 px, or 2,700 of 32 px
FILE_BYTES = 64 << 30  # 457,000 images of 224 px
_FREE_SHARE = 0.5  # of the free disk that the file may take
_BATCHES_AHEAD = 2  # decoded while the network works on the current one


class ImageBatches:
    """Resized images of a split, to be read in any order.

    Args:
        examples: of the split.
        preprocessing: the rule; `edgebert.preprocess` applies it, as it does everywhere else.
        classes: how many there are.
        folder: where a file of the pixels may be kept; None for no file. Processes that share the folder share the file:
            the first one makes it, and the others must come after it.
        workers: threads that decode; 0 for one by physical core. Pillow decodes outside the interpreter's lock.
        ram_bytes: what the resized pixels may take in memory.
        what: shown while decoding.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessing: Preprocessing,
        *,
        classes: int,
        folder: Path | None = None,
        workers: int = 0,
        ram_bytes: int = RAM_BYTES,
        what: str = "decode",
    ) -> None:
        self._examples, self._preprocessing, self._classes = examples, preprocessing, classes
        self._workers = workers or physical_cores()
        self.keys: NDArray[np.uint64] = np.array(
            [int(example.pixel_sha256[:16], 16) for example in examples], np.uint64
        )
        counts = [len(example.labels) for example in examples]
        self._label_ends = np.cumsum([0, *counts])
        self._labels: NDArray[np.int64] = np.array(
            [label for example in examples for label in example.labels], np.int64
        )
        shape = (len(examples), preprocessing.height, preprocessing.width, 3)
        size = int(np.prod(shape, dtype=np.int64))
        self._rows: _Rows | None = None
        if size <= ram_bytes:
            pixels = np.empty(shape, np.uint8)
            for position, image in self._decoded(what):
                pixels[position] = image
            self._rows = _MemoryRows(pixels)
        elif folder is not None:
            self._rows = self._file_rows(folder, shape, what)

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def decodes_once(self) -> bool:
        """Whether the resized pixels are kept, in memory or in a file."""
        return self._rows is not None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers (images,) of single-label data."""
        assert len(self._labels) == len(self)
        return self._labels

    def sha256(self) -> str:
        """Return the identity of what is read here: the rule, the images in their order, and their texts."""
        images = (f"{example.pixel_sha256} {example.text}" for example in self._examples)
        return hash_of_hashes([self._preprocessing.sha256(), *images])

    def class_counts(self) -> NDArray[np.int64]:
        """Return how many images have each class, (classes,)."""
        return np.bincount(self._labels, minlength=self._classes).astype(np.int64)

    def labels_of(self, position: int) -> NDArray[np.int64]:
        """Return the class numbers of one image."""
        return self._labels[self._label_ends[position] : self._label_ends[position + 1]]

    def name_of(self, position: int) -> str:
        """Return what to call an image in a message."""
        return self._examples[position].id

    def text_of(self, position: int) -> str:
        """Return the text of an image; empty where it has none."""
        return self._examples[position].text

    def targets(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return float32 (batch, classes): 1 where an image has the class, else 0."""
        targets = np.zeros((len(positions), self._classes), np.float32)
        for row, position in enumerate(positions):
            targets[row, self.labels_of(int(position))] = 1.0
        return targets

    def read(self, parts: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Yield, for each array of positions, uint8 (batch, height, width, 3)."""
        if self._rows is None:
            yield from self._read_ahead(parts)
            return
        for positions in parts:
            yield torch.from_numpy(self._rows.take(positions))

    def in_order(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield positions and pixels of all images in the order of the split."""
        parts = np.split(np.arange(len(self)), range(batch_size, len(self), batch_size))
        yield from zip(parts, self.read(parts), strict=True)

    def _load(self, position: int) -> RgbImage:
        return load_image(self._examples[position].load(), self._preprocessing)

    def _decoded(self, what: str) -> Iterator[tuple[int, RgbImage]]:
        with ThreadPoolExecutor(self._workers) as pool, Progress(what, len(self)) as progress:
            window = 64 * self._workers  # images in flight: a million of them need no million of futures
            for start in range(0, len(self), window):
                positions = range(start, min(start + window, len(self)))
                for position, image in zip(positions, pool.map(self._load, positions), strict=True):
                    yield position, image
                    progress.advance()

    def _file_rows(self, folder: Path, shape: tuple[int, ...], what: str) -> _FileRows | None:
        path = folder / f"pixels-{self.sha256()[:16]}.bin"
        if not path.exists():  # what is there is used, however little room there is now
            if int(np.prod(shape, dtype=np.int64)) > min(FILE_BYTES, _FREE_SHARE * _free_bytes(folder)):
                return None
            try:
                with staged_file(path, force=False) as staging, staging.open("wb") as stream:
                    for _, image in self._decoded(what):
                        stream.write(image.tobytes())
            except CannotWriteError as error:
                _log.warning("the decoded images are not kept, and decoded again in each epoch: %s", error.what)
                return None
        return _FileRows(path, shape)

    def _read_ahead(self, parts: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        coming: collections.deque[list[Future[RgbImage]]] = collections.deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for index in range(len(parts)):
                    for ahead in range(index + len(coming), min(index + 1 + _BATCHES_AHEAD, len(parts))):
                        coming.append([pool.submit(self._load, int(position)) for position in parts[ahead]])
                    yield torch.from_numpy(np.stack([future.result() for future in coming.popleft()]))
            finally:
                pool.shutdown(cancel_futures=True)


class _Rows(Protocol):
    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]: ...


class _MemoryRows:
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._pixels[positions]


class _FileRows:
    """Rows of a file, read and not mapped: mapped pages would count as this process's memory until others need them."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._shape = shape[1:]
        self._bytes = int(np.prod(self._shape))
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        assert os.fstat(self._file).st_size == shape[0] * self._bytes, path

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        rows = np.empty((len(positions), *self._shape), np.uint8)
        for row, position in zip(rows, positions, strict=True):
            read = os.preadv(self._file, [row.reshape(-1)], int(position) * self._bytes)
            assert read == self._bytes
        return rows


def shuffled_batches(
    images: int,
    batch_size: int,
    *,
    seed: int,
    share: tuple[int, int] = (0, 1),
    weights: NDArray[np.float64] | None = None,
) -> list[NDArray[np.int64]]:
    """Cut a random order of all images into the fewest batches of at most `batch_size`, of equal size give or take one.

    There is no small last batch whose gradient would weigh as much as a full one's, and no image is left out.

    Args:
        images: how many there are.
        batch_size: images of a batch, over all processes together.
        seed: decides the order.
        share: (rank, number of processes); every process gets as many batches, of its own images.
        weights: (images,) the relative frequency of each; as many are drawn, with replacement. None: each once.
    """
    draws = np.random.default_rng(seed)
    if weights is None:
        order = draws.permutation(images)
    else:
        order = draws.choice(images, size=images, p=weights / weights.sum())
    rank, processes = share
    batches = [batch[rank::processes] for batch in np.array_split(order, -(-images // batch_size))]
    assert all(len(batch) for batch in batches)  # a batch holds at least one image for every process
    return batches


def balancing_weights(images: ImageBatches) -> NDArray[np.float64]:
    """Return (images,) frequencies at which every class is drawn as often as any other.

    An image of several classes has the frequency of its rarest one; an image of none that of the most frequent one.
    """
    per_class = 1.0 / np.maximum(images.class_counts(), 1)
    return np.array(
        [
            per_class[labels].max() if len(labels := images.labels_of(at)) else per_class.min()
            for at in range(len(images))
        ]
    )


def _free_bytes(folder: Path) -> int:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
