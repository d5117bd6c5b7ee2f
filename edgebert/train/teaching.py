"""The teachers of a distillation: who they are, what they see, and how they are asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from edgebert._progress import tracked
from edgebert.card import ImageSet, Task, hash_of_hashes
from edgebert.data import Dataset
from edgebert.errors import BadDataError, UsageError
from edgebert.models.checkpoint import Checkpoint, with_classes
from edgebert.models.features import blocks
from edgebert.models.pixels import PixelClassifier
from edgebert.preprocess import Preprocessing
from edgebert.train.batches import ImageBatches
from edgebert.train.cache import DEFAULT_VIEWS, CachedTeacher, CacheKey, TeacherCache
from edgebert.train.feed import ViewFeed, plain_batch
from edgebert.train.objective import DistillLearner, LabelTerm, early_blocks, token_widths
from edgebert.train.options import DistillOptions
from edgebert.train.stage import Judge, size_of
from edgebert.train.teacher import LiveTeacher, Size
from edgebert.train.views import float_views

_log = logging.getLogger("edgebert")

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Teachers:
    """One teacher, or several that are averaged, all with the same classes in the same order.

    Attributes:
        checkpoints: the teachers; the first one's classes and preprocessing are the student's.
        options: of the distillation.
        accelerator: of the run.
    """

    checkpoints: tuple[Checkpoint, ...]
    options: DistillOptions
    accelerator: Accelerator

    @classmethod
    def of(cls, checkpoints: Sequence[Checkpoint], options: DistillOptions, accelerator: Accelerator) -> Teachers:
        """Put the teachers' classes into one order.

        Raises:
            BadDataError: two teachers have other classes, or another task.
            UsageError: several teachers, and terms on features.
        """
        first, *others = checkpoints
        if others and options.uses_features:
            raise UsageError(
                f"terms on features with {len(checkpoints)} teachers",
                expected="one teacher, or early_weight, pooled_weight and relation_weight 0",
            )
        alike = [first]
        for other in others:
            ours, theirs = set(first.card.class_names), set(other.card.class_names)
            if ours != theirs or other.card.task != first.card.task:
                raise BadDataError(
                    f"two teachers differ: only the first has {_listed(ours - theirs)}, only another has "
                    f"{_listed(theirs - ours)}; they are {first.card.task} and {other.card.task}",
                    expected="the same classes and the same task",
                )
            card = replace(other.card, class_names=first.card.class_names)
            alike.append(replace(other, model=with_classes(other, first.card.class_names), card=card))
        return cls(checkpoints=tuple(alike), options=options, accelerator=accelerator)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.checkpoints[0].card.class_names

    @property
    def task(self) -> Task:
        """What the teachers were made for."""
        return self.checkpoints[0].card.task

    def made_from(self) -> Mapping[str, str]:
        """Return role -> SHA-256 of each teacher."""
        roles = ["teacher", *(f"teacher-{number}" for number in range(2, len(self.checkpoints) + 1))]
        return {role: checkpoint.sha256 for role, checkpoint in zip(roles, self.checkpoints, strict=True)}

    def seen(self) -> ImageSet:
        """Return the images that any teacher has seen."""
        seen = ImageSet()
        for checkpoint in self.checkpoints:
            seen = seen | checkpoint.card.seen
        return seen

    def views_for(self, student: Preprocessing) -> Preprocessing:
        """Return how training images are prepared: as the student's, at the largest of all sizes."""
        views = student
        for checkpoint in self.checkpoints:
            views = _views(views, student, checkpoint.card.preprocessing)
        if (views.height, views.width) != (student.height, student.width):
            _log.info(
                "views are made at %d x %d px and shrunk on the device: the student takes %d x %d",
                *(views.height, views.width, student.height, student.width),
            )
        return views

    def judged(self, dataset: Dataset) -> Dataset:
        """Return unlabelled images with the teacher's decisions on the validation split, which choose the best epoch.

        The training images stay without labels: the teacher answers for their views.
        """
        rule = self.views_for(self.checkpoints[0].card.preprocessing)
        images = ImageBatches(dataset.val, rule, classes=len(self.class_names), workers=self.options.workers)
        teacher = self._live(images)
        decided: list[tuple[int, ...]] = []
        batches = -(-len(images) // _BATCH_SIZE)
        for positions, pixels in tracked(images.in_order(_BATCH_SIZE), what="judge val", total=batches):
            views = float_views(pixels.to(self.accelerator.device))
            targets = views.new_zeros((len(positions), len(self.class_names)))
            logits = teacher(plain_batch(images, positions, views, targets)).logits.cpu()
            if self.task == "single-label":
                decided += [(int(label),) for label in logits.argmax(dim=1)]
            else:
                thresholds = np.array(self.checkpoints[0].card.thresholds or (0.5,) * len(self.class_names))
                decided += [tuple(np.flatnonzero(row).tolist()) for row in logits.sigmoid().numpy() >= thresholds]
        val = tuple(replace(example, labels=labels) for example, labels in zip(dataset.val, decided, strict=True))
        return replace(dataset, val=val)

    def judge(
        self, student: PixelClassifier, size: Size, *, epochs: int, term: LabelTerm, feed: ViewFeed, folder: Path
    ) -> Judge:
        """Return the student with its loss, and the teachers, live or out of their cache.

        Args:
            student: the network.
            size: (height, width) of its input.
            epochs: of the run.
            term: the label loss.
            feed: the views of the training split.
            folder: for files of the run.

        Raises:
            RefusedError: the cache that is named holds answers to something else.
            EdgebertError: the teacher answers with something that is no finite number.
        """
        options = self.options
        widths: dict[int, int] = {}
        if options.uses_features:
            card = self.checkpoints[0].card
            teacher = PixelClassifier(self.checkpoints[0].model, card.preprocessing).to(self.accelerator.device)
            last = len(blocks(teacher.model)) - 1
            chosen = {*early_blocks(options, student, last + 1), last}
            widths = token_widths(teacher, size_of(card.preprocessing), chosen)
        live = self._live(feed.images, tuple(sorted(widths)))
        learner = DistillLearner(student, size, term=term, options=options, teacher_widths=widths)
        if not options.uses_cache:
            return Judge(learner=learner, teacher=live)
        banks = min(options.cache_views or DEFAULT_VIEWS, epochs)
        cache = self._cache(feed, folder)
        if cache.missing(banks):
            _log.info(
                "the teacher answers %d views of %s images once, into `%s` (%s kB)",
                *(banks, f"{len(feed.images):,}", cache.folder, f"{cache.bytes_of(banks) / 1000:,.0f}"),
            )
        cache.build(banks, live, feed, self.accelerator)
        cache.verify(banks, live, feed)
        return Judge(learner=learner, teacher=CachedTeacher(cache, self.accelerator.device, feed.images), banks=banks)

    def _cache(self, feed: ViewFeed, folder: Path) -> TeacherCache:
        key = CacheKey(
            teacher=hash_of_hashes(self.made_from().values()),
            data=feed.images.sha256(),
            views={"seed": feed.seed, "spec": feed.spec.to_json()},
            precision=str(self.accelerator.mixed_precision),
        )
        named = self.options.cache
        path = folder / f"answers-{key.sha256()[:16]}" if named is None else Path(named)
        return TeacherCache(path, key, images=len(feed.images), classes=len(self.class_names), task=self.task)

    def _live(self, images: ImageBatches, tapped: tuple[int, ...] = ()) -> LiveTeacher:
        rules = [checkpoint.card.preprocessing for checkpoint in self.checkpoints]
        return LiveTeacher(
            [PixelClassifier(checkpoint.model, rule) for checkpoint, rule in zip(self.checkpoints, rules, strict=True)],
            [size_of(rule) for rule in rules],
            task=self.task,
            accelerator=self.accelerator,
            images=images,
            tapped=tapped,
        )


def _views(views: Preprocessing, student: Preprocessing, teacher: Preprocessing) -> Preprocessing:
    """Return `views`, at the teacher's size where that is larger."""
    if student.resize != teacher.resize:
        _log.info("the teacher was made for `%s`, and sees the student's `%s`", teacher.resize, student.resize)
    height, width = max(views.height, teacher.height), max(views.width, teacher.width)
    if (height, width) == (views.height, views.width):
        return views
    if student.shortest_edge is None:
        return Preprocessing(height=height, width=width, interpolation=student.interpolation)
    margin = student.shortest_edge / max(student.height, student.width)
    return Preprocessing(
        height=height,
        width=width,
        resize="crop",
        shortest_edge=round(margin * max(height, width)),
        interpolation=student.interpolation,
    )


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)[:10]) or "none"
