"""The images of a split, decoded once and kept in memory when small, else decoded again by threads as they are needed."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgebert._progress import Progress
from edgebert.preprocess import Preprocessing, RgbImage, load_image
from edgebert.runtime.runner import physical_cores

if TYPE_CHECKING:
    from edgebert.data import Example

RAM_BYTES = 2 << 30  # of resized pixels: 13,000 images of 224 px, or 700,000 of 32 px
_BATCHES_AHEAD = 2  # decoded while the network works on the current one


class ImageBatches:
    """Resized images of a split, to be read in any order.

    Args:
        examples: of the split.
        preprocessing: the rule; `edgebert.preprocess` applies it, as it does everywhere else.
        workers: threads that decode; 0 for one by physical core. Pillow decodes outside the interpreter's lock.
        ram_bytes: what the resized pixels may take in memory.
        what: shown while decoding.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocessing: Preprocessing,
        *,
        workers: int = 0,
        ram_bytes: int = RAM_BYTES,
        what: str = "decode",
    ) -> None:
        self._examples, self._preprocessing = examples, preprocessing
        self._workers = workers or physical_cores()
        self.labels: NDArray[np.int64] = np.array([example.label for example in examples], np.int64)
        size = len(examples) * preprocessing.height * preprocessing.width * 3
        self._kept = self._decoded(what) if size <= ram_bytes else None

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def in_memory(self) -> bool:
        """Whether the resized pixels are kept."""
        return self._kept is not None

    def read(self, parts: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each array of positions, uint8 (batch, height, width, 3) and int64 labels (batch,)."""
        if self._kept is None:
            yield from self._read_ahead(parts)
            return
        for positions in parts:
            yield torch.from_numpy(self._kept[positions]), torch.from_numpy(self.labels[positions])

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in the order of the split."""
        yield from self.read(np.split(np.arange(len(self)), range(batch_size, len(self), batch_size)))

    def _load(self, position: int) -> RgbImage:
        return load_image(self._examples[position].load(), self._preprocessing)

    def _decoded(self, what: str) -> NDArray[np.uint8]:
        shape = (len(self), self._preprocessing.height, self._preprocessing.width, 3)
        pixels = np.empty(shape, np.uint8)
        with ThreadPoolExecutor(self._workers) as pool, Progress(what, len(self)) as progress:
            for position, image in enumerate(pool.map(self._load, range(len(self)))):
                pixels[position] = image
                progress.advance()
        return pixels

    def _read_ahead(self, parts: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        coming: collections.deque[list[Future[RgbImage]]] = collections.deque()
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for index, positions in enumerate(parts):
                    for ahead in parts[index + len(coming) : index + 1 + _BATCHES_AHEAD]:
                        coming.append([pool.submit(self._load, int(position)) for position in ahead])
                    images = np.stack([future.result() for future in coming.popleft()])
                    yield torch.from_numpy(images), torch.from_numpy(self.labels[positions])
            finally:
                pool.shutdown(cancel_futures=True)


def shuffled_batches(
    images: int, batch_size: int, *, seed: int, share: tuple[int, int] = (0, 1)
) -> list[NDArray[np.int64]]:
    """Cut a random order of all images into the fewest batches of at most `batch_size`, of equal size give or take one.

    There is no small last batch whose gradient would weigh as much as a full one's, and no image is left out.

    Args:
        images: how many there are.
        batch_size: images of a batch, over all processes together.
        seed: decides the order.
        share: (rank, number of processes); every process gets as many batches, of its own images.
    """
    order = np.random.default_rng(seed).permutation(images)
    rank, processes = share
    batches = [batch[rank::processes] for batch in np.array_split(order, -(-images // batch_size))]
    assert all(len(batch) for batch in batches)  # a batch holds at least one image for every process
    return batches
