"""The two stages of this room: a checkpoint from labelled images, and a checkpoint from teachers.

Every choice is made on the validation split; the test split is not read.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from edgebert.data import DataOptions, align_classes, load_dataset, load_unlabelled
from edgebert.errors import BadDataError
from edgebert.models.checkpoint import load_checkpoint
from edgebert.models.pixels import PixelClassifier
from edgebert.train.feed import ViewFeed
from edgebert.train.inheriting import inherited
from edgebert.train.loop import EpochHook
from edgebert.train.objective import LabelLearner, LabelTerm
from edgebert.train.options import DistillOptions, TrainOptions
from edgebert.train.pretraining import Pretraining
from edgebert.train.report import TrainingReport
from edgebert.train.stage import Judge, Stage, check_apart, checked_request, seen_in, settled, size_of
from edgebert.train.start import start_from
from edgebert.train.teaching import Teachers


def checkpoint_from_data(
    data: str, output: Path, options: TrainOptions, *, on_epoch: EpochHook | None = None
) -> TrainingReport:
    """Train a preset from scratch, or fine-tune a pretrained classifier.

    Args:
        data: a folder, a file, a data set id or `digits`, as `edgebert.data.load_dataset` takes it.
        output: the folder to write: the best checkpoint, and the last one as `last/` inside it.
        options: how.
        on_epoch: called after each epoch, counted from 1, with the validation score; what it raises ends the run.

    Raises:
        EdgebertError: what the user can mend, see `edgebert.errors`; the loss became NaN or infinite.
    """
    started = time.monotonic()
    accelerator = checked_request(output, options, options.model)
    dataset = load_dataset(
        data, DataOptions(max_skipped=options.max_skipped, class_map=options.class_map, task=options.task)
    )
    assert dataset.task != "unlabelled"  # only `load_unlabelled` makes that
    start = start_from(
        options.model,
        options,
        dataset,
        text_weights=options.text_weights,
        text_model=options.text_model,
        revision=options.revision,
    )
    pretraining = None
    if options.pretrain == "mim":
        pretraining = Pretraining.of(start, settled(options, start), dataset, output, accelerator)
        start = pretraining.run()

    def judge(feed: ViewFeed, term: LabelTerm, folder: Path) -> Judge:
        classifier = PixelClassifier(start.model, start.preprocessing)
        return Judge(learner=LabelLearner(classifier, size_of(start.preprocessing), term=term, images=feed.images))

    stage = Stage(
        name="train",
        accelerator=accelerator,
        dataset=dataset,
        task=dataset.task,
        start=start,
        options=settled(options, start),
        judge=judge,
        views=start.preprocessing,
        made_from={"data": dataset.sha256(), **start.made_from},
        source=start.source,
        seen=seen_in(dataset) | start.seen,
        on_epoch=on_epoch,
    )
    report = stage.run(output, started)
    if pretraining is not None:
        pretraining.remove()
    return report


def checkpoint_from_teacher(
    data: str,
    teacher: str,
    output: Path,
    options: DistillOptions,
    *,
    on_epoch: EpochHook | None = None,
) -> TrainingReport:
    """Train a student to answer as a teacher does, on the same views of the training images.

    Args:
        data: as for `checkpoint_from_data`; its class names must be the teacher's. With `options.unlabelled`: images.
        teacher: a checkpoint folder, any Hugging Face image classifier, or a hub id; `options.teachers` names further ones.
        output: the folder to write: the best checkpoint, and the last one as `last/` inside it.
        options: how.
        on_epoch: called after each epoch, counted from 1, with the validation score; what it raises ends the run.

    Raises:
        BadDataError: the data's class names are not the teacher's; or two teachers have other classes.
        EdgebertError: what else the user can mend, see `edgebert.errors`; a teacher's answer, the loss or a gradient
            became NaN or infinite.
    """
    started = time.monotonic()
    names = (teacher, *options.teachers)
    accelerator = checked_request(output, options, *names, options.student)
    check_apart(output, options.cache)
    teachers = Teachers.of([load_checkpoint(name, revision=options.revision) for name in names], options, accelerator)
    if options.unlabelled:
        loaded = load_unlabelled(data, DataOptions(max_skipped=options.max_skipped))
        dataset = teachers.judged(replace(loaded, class_names=teachers.class_names))
    else:
        task = teachers.task if options.task == "auto" else options.task
        loaded = load_dataset(data, DataOptions(max_skipped=options.max_skipped, task=task))
        dataset = align_classes(loaded, teachers.class_names, class_map=options.class_map)
        if loaded.task != teachers.task:
            raise BadDataError(
                f"the data are {loaded.task} and the teacher is {teachers.task}",
                expected="one task",
                hint=f"--task {teachers.task}, where the labels can be read so",
            )
    start = start_from(options.student, options, dataset, teacher=teachers.checkpoints[0])
    views = teachers.views_for(start.preprocessing)
    start = inherited(start, teachers.checkpoints[0], dataset, options)
    settled_options = settled(options, start)

    def judge(feed: ViewFeed, term: LabelTerm, folder: Path) -> Judge:
        return teachers.judge(
            PixelClassifier(start.model, start.preprocessing),
            size_of(start.preprocessing),
            epochs=settled_options.epochs or 1,
            term=term,
            feed=feed,
            folder=folder,
        )

    stage = Stage(
        name="distill",
        accelerator=accelerator,
        dataset=dataset,
        task=teachers.task,
        start=start,
        options=settled_options,
        judge=judge,
        views=views,
        made_from={"data": loaded.sha256(), **teachers.made_from(), **start.made_from},
        source=teachers.checkpoints[0].card.provenance,
        seen=seen_in(dataset) | start.seen | teachers.seen(),
        on_epoch=on_epoch,
    )
    return stage.run(output, started)
