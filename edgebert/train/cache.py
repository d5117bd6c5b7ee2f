"""The teacher's answers in files: made once, read by every run, process and student that sees the same views.

    FOLDER/
        cache.json          schema, what the answers depend on, and their form
        bank-00000.npy      answers for view 0 of every image: float16 (images, classes) logits up to 100 classes
        bank-00000.top.npy  above that, two files: int32 (images, 10) classes, and float16 (images, 10) log-probabilities in
                            the file above; the rest of the probability is spread evenly over the other classes

Seeded views of many draws, and not one answer for each image: answers for a single view make a student overfit to it
(Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent", figure 3; compression.md, section 12).
Ten classes of a thousand hold nearly all of the probability (Wu et al. 2022, "TinyViT", section 3.1).

Files are mapped into memory, so that memory does not grow with the data. A bank is written beside, synced and renamed, so
that an interrupted build goes on with the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgebert._files import read_input, staged_file
from edgebert._json import Fields, JsonObject, dump_json, flat, parse_json_object
from edgebert._progress import Progress
from edgebert.card import Task
from edgebert.errors import BadDataError, CannotWriteError, RefusedError
from edgebert.train.batches import ImageBatches
from edgebert.train.feed import ViewBatch, ViewFeed
from edgebert.train.teacher import Answers, Teacher, check_answers

_log = logging.getLogger("edgebert")

_SCHEMA = "edgebert.teacher-cache/1"
_CARD = "cache.json"

FULL_CLASSES = 100  # up to here all logits are stored: 200 bytes an answer at most
TOP_CLASSES = 10
RECHECKED = 64
DEFAULT_VIEWS = 16  # compression.md, section 12: 16 banks, or the epochs where these are fewer

_BATCH_SIZE = 256

# How far a stored answer may lie from one made again, in units of the largest logit of both. float16 keeps 11 bits; bfloat16
# matrix products keep 8, and their rounding changes with the size of the batch.
_TOLERANCE = {"no": 0.005, "fp16": 0.02, "bf16": 0.06}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """All that the answers depend on.

    Attributes:
        teacher: SHA-256 of the teacher, or of the list of teachers.
        data: SHA-256 of the images, in their order, and of their texts.
        views: how an image becomes a view, and the seed.
        precision: of the teacher's arithmetic: `no`, `bf16`, `fp16`.
    """

    teacher: str
    data: str
    views: JsonObject
    precision: str

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {"teacher": self.teacher, "data": self.data, "views": self.views, "precision": self.precision}

    def sha256(self) -> str:
        """Return one SHA-256 for all of it."""
        return hashlib.sha256(dump_json(self.to_json()).encode()).hexdigest()


class TeacherCache:
    """A folder of answers for one teacher, one data set and one way of making views.

    Args:
        folder: where it is, or will be.
        key: what its answers must depend on.
        images: of the split.
        classes: of the teacher.
        task: with several labels to an image all logits are stored, however many there are.

    Raises:
        RefusedError: the folder holds answers of another teacher, other data or other views; the message says which.
        BadDataError: the folder is no cache, or damaged.
    """

    def __init__(self, folder: Path, key: CacheKey, *, images: int, classes: int, task: Task) -> None:
        self.folder, self._key = folder, key
        self._images, self._classes = images, classes
        self._task: Task = task
        self._full = classes <= FULL_CLASSES or task == "multi-label"
        self._width = classes if self._full else TOP_CLASSES
        # One at a time: pages that were read count as this process's memory for as long as they are mapped.
        self._mapped: tuple[int, NDArray[np.float16], NDArray[np.int32] | None] | None = None
        self._card: JsonObject = {
            "schema": _SCHEMA,
            "key": key.to_json(),
            "images": images,
            "classes": classes,
            "form": "logits" if self._full else f"top-{TOP_CLASSES}",
        }
        self._check_card()

    def missing(self, banks: int) -> list[int]:
        """Return which of the first `banks` views are not answered yet."""
        return [bank for bank in range(banks) if not all(path.exists() for path in self._paths(bank))]

    def bytes_of(self, banks: int) -> int:
        """Return the size of the first `banks` views on disk."""
        return banks * self._images * self._width * (2 if self._full else 6)

    def build(self, banks: int, teacher: Teacher, feed: ViewFeed, accelerator: Accelerator) -> None:
        """Answer what is missing; processes that train together share the views among them.

        Raises:
            EdgebertError: the teacher answers with something that is no finite number; views done before stay.
            CannotWriteError: no room, or no permission.
        """
        missing = self.missing(banks)
        accelerator.wait_for_everyone()  # all have looked before anyone writes
        if accelerator.is_main_process and missing:
            with staged_file(self.folder / _CARD, force=True) as staging:
                staging.write_text(dump_json(self._card), encoding="utf-8")
        accelerator.wait_for_everyone()  # the card first: a folder with answers and no card would be nobody's
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        parts = np.array_split(np.arange(self._images), -(-self._images // _BATCH_SIZE))
        with Progress("teacher", len(mine) * len(parts)) as progress:
            for bank in mine:
                self._build_bank(bank, [*parts], teacher, feed, progress)
        accelerator.wait_for_everyone()

    def verify(self, banks: int, teacher: Teacher, feed: ViewFeed) -> None:
        """Ask the teacher again for 64 answers, chosen anew each time, and compare.

        Raises:
            RefusedError: one of them is not what is stored.
        """
        count = min(RECHECKED, banks * self._images)
        chosen = np.random.default_rng().choice(banks * self._images, size=count, replace=False)
        tolerance = _TOLERANCE[self._key.precision]
        for bank in np.unique(chosen // self._images):
            positions = np.sort(chosen[chosen // self._images == bank] % self._images)
            batch = next(feed.read([positions], int(bank)))
            made = teacher(batch).logits.cpu()
            stored, classes = self._stored(batch)
            if classes is not None:  # what was cut off cannot be compared, and two classes may have changed places
                made = functional.log_softmax(made, dim=1).gather(1, classes)
            scale = torch.maximum(made.abs().amax(dim=1), stored.abs().amax(dim=1)).clamp(min=1.0)
            difference = (made - stored).abs().amax(dim=1) / scale
            if not bool((difference <= tolerance).all()):  # in this form NaN is refused, too
                worst = int((~(difference <= tolerance)).float().argmax())
                raise RefusedError(
                    f"the cache `{self.folder}` does not hold what the teacher answers: view {bank} of "
                    f"`{feed.images.name_of(int(positions[worst]))}` differs by {float(difference[worst]):.1%} of its largest logit",
                    expected=f"at most {tolerance:.1%}",
                    hint=f"remove `{self.folder}`, or name another folder with --cache",
                )

    def answers(self, batch: ViewBatch) -> Answers:
        """Return what is stored for the views of a batch."""
        stored, classes = self._stored(batch)
        logits = stored if classes is None else dense_log_probabilities(classes, stored, self._classes)
        return Answers(logits=logits, tokens={}, grids={})

    def _stored(self, batch: ViewBatch) -> tuple[Tensor, Tensor | None]:
        """Return float32 (batch, width) values, and int64 (batch, width) classes where only some are stored."""
        values, classes = self._bank(batch.bank)
        stored = torch.from_numpy(values[batch.positions].astype(np.float32))
        return stored, None if classes is None else torch.from_numpy(classes[batch.positions].astype(np.int64))

    def _build_bank(
        self, bank: int, parts: list[NDArray[np.int64]], teacher: Teacher, feed: ViewFeed, progress: Progress
    ) -> None:
        shape = (self._images, self._width)
        with contextlib.ExitStack() as files:
            # The values are finished last: a bank counts when its first file is there, and then the other one is.
            values, *others = (
                _mapped_array(files.enter_context(staged_file(path, force=True)), kind, shape)
                for path, kind in zip(self._paths(bank), (np.float16, np.int32), strict=False)
            )
            for batch in feed.read(parts, bank):
                logits = teacher(batch).logits.float().cpu()
                if self._full:
                    values[batch.positions] = half_logits(logits, task=self._task)
                else:
                    top = functional.log_softmax(logits, dim=1).topk(TOP_CLASSES, dim=1)
                    values[batch.positions] = top.values.clamp(min=float(np.finfo(np.float16).min)).numpy()
                    others[0][batch.positions] = top.indices.numpy()
                progress.advance(note=f"view {bank + 1}")
            for array in (values, *others):
                array.flush()

    def _bank(self, bank: int) -> tuple[NDArray[np.float16], NDArray[np.int32] | None]:
        if self._mapped is None or self._mapped[0] != bank:
            try:
                arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in self._paths(bank)]
            except (OSError, ValueError) as error:
                raise BadDataError(
                    f"view {bank} in the cache `{self.folder}` cannot be read: {error}",
                    hint=f"remove `{self._paths(bank)[0]}`; it is made again",
                ) from error
            if any(array.shape != (self._images, self._width) for array in arrays):
                raise BadDataError(
                    f"view {bank} in the cache `{self.folder}` has shape {arrays[0].shape}",
                    expected=f"({self._images}, {self._width})",
                    hint=f"remove `{self._paths(bank)[0]}`; it is made again",
                )
            self._mapped = (bank, arrays[0], arrays[1] if len(arrays) == 2 else None)
        return self._mapped[1:]

    def _paths(self, bank: int) -> tuple[Path, ...]:
        values = self.folder / f"bank-{bank:05d}.npy"
        return (values,) if self._full else (values, self.folder / f"bank-{bank:05d}.top.npy")

    def _check_card(self) -> None:
        path = self.folder / _CARD
        if not path.exists():
            if self.folder.exists() and not _is_free(self.folder):
                raise CannotWriteError(
                    f"`{self.folder}` is no cache of a teacher's answers",
                    expected="a folder that --cache made, or a new name",
                )
            return
        what = f"`{path}`"
        card = Fields(parse_json_object(read_input(path, what="the cache's card"), what=what), what=what)
        here, there = flat(self._card), flat(card.value)
        changed = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if changed:
            listed = "; ".join(f"{name} `{there.get(name)}` there, `{here.get(name)}` now" for name in changed[:4])
            raise RefusedError(
                f"the cache `{self.folder}` holds answers to something else: {listed}",
                expected="the same teacher, data and views",
                hint="name another folder with --cache, or remove this one",
            )


class CachedTeacher:
    """Answers out of a cache, for the views that it holds."""

    def __init__(self, cache: TeacherCache, device: torch.device, images: ImageBatches) -> None:
        self._cache, self._device, self._images = cache, device, images

    def __call__(self, batch: ViewBatch) -> Answers:
        answers = self._cache.answers(batch)
        check_answers(answers.logits, batch, self._images)
        return Answers(logits=answers.logits.to(self._device), tokens={}, grids={})


def dense_log_probabilities(classes: Tensor, values: Tensor, count: int) -> Tensor:
    """Return float32 (batch, count) log-probabilities: the given ones, and the rest spread evenly over the others.

    Args:
        classes: int64 (batch, k), different ones in each row.
        values: float32 (batch, k) log-probabilities.
        count: of all classes, above k.
    """
    rest = (1.0 - values.exp().sum(dim=1, keepdim=True)).clamp(min=1e-7)
    dense = (rest / (count - classes.shape[1])).log().expand(-1, count).clone()
    return dense.scatter_(1, classes, values)


def half_logits(logits: Tensor, *, task: Task) -> NDArray[np.float16]:
    """Return logits in half precision, float16 of the same shape.

    A row beyond its range is moved as a whole, which changes no softmax; sigmoids are 0 or 1 long before that range ends.
    """
    limit = float(np.finfo(np.float16).max)
    if task == "single-label":
        beyond = logits.abs().amax(dim=1, keepdim=True) > limit
        logits = torch.where(beyond, logits - logits.amax(dim=1, keepdim=True), logits)
    half: NDArray[np.float16] = logits.clamp(min=-limit, max=limit).numpy().astype(np.float16)
    return half


def _mapped_array(path: Path, kind: type[Any], shape: tuple[int, int]) -> np.memmap[Any, Any]:
    """Return a new .npy file's content, mapped, its room on the disk taken: a full one is an error here, and not a SIGBUS later.

    Raises:
        OSError: there is no room.
    """
    mapped: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return mapped


def _is_free(path: Path) -> bool:
    """Say whether a folder holds nothing, or only what an interrupted write left."""
    return path.is_dir() and all(entry.name.startswith(f".{_CARD}.") for entry in path.iterdir())
