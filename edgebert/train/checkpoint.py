"""The two stages of this room: a checkpoint from labelled images, and a checkpoint from a teacher.

Every choice is made on the validation split; the test split is not read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import accelerate
import kornia
import torch
import transformers
from accelerate import Accelerator

from edgebert import __version__
from edgebert._files import check_folder_is_free, check_not_input, staged_folder
from edgebert._json import JsonObject
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.card_io import CHECKPOINT_FOLDER
from edgebert.data import DataOptions, Dataset, align_classes, load_dataset
from edgebert.examples import MIN_EXAMPLES, ExampleImage, example_images
from edgebert.models.checkpoint import (
    Checkpoint,
    PixelClassifier,
    load_checkpoint,
    parameter_count,
    save_checkpoint,
)
from edgebert.preprocess import Preprocessing
from edgebert.train.batches import ImageBatches
from edgebert.train.evaluation import Evaluation, evaluated
from edgebert.train.loop import Outcome, Run, new_accelerator, run_epochs
from edgebert.train.objective import LabelObjective, Objective, TeacherObjective
from edgebert.train.options import DistillOptions, LoopOptions, TrainOptions
from edgebert.train.report import TrainingReport
from edgebert.train.start import Start, start_from
from edgebert.train.state import RunFolder

_log = logging.getLogger("edgebert")


def checkpoint_from_data(data: str, output: Path, options: TrainOptions) -> TrainingReport:
    """Train a preset from scratch, or fine-tune a pretrained classifier.

    Args:
        data: a folder, a file, a data set id or `digits`, as `edgebert.data.load_dataset` takes it.
        output: the folder to write: the best checkpoint, and the last one as `last/` inside it.
        options: how.

    Raises:
        EdgebertError: what the user can mend, see `edgebert.errors`; the loss became NaN or infinite.
    """
    started = time.monotonic()
    accelerator = _checked_request(output, options, options.model)
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped, class_map=options.class_map))
    start = start_from(
        options.model,
        options,
        dataset.class_names,
        dataset.train,
        text_weights=options.text_weights,
        revision=options.revision,
    )
    size = (start.preprocessing.height, start.preprocessing.width)
    stage = _Stage(
        name="train",
        accelerator=accelerator,
        dataset=dataset,
        start=start,
        options=_settled(options, start),
        objective=LabelObjective(size=size),
        views=start.preprocessing,
        made_from={"data": dataset.sha256(), **start.made_from},
        source=start.source,
        seen=_seen(dataset) | start.seen,
    )
    return stage.run(output, started)


def checkpoint_from_teacher(data: str, teacher: str, output: Path, options: DistillOptions) -> TrainingReport:
    """Train a student to answer as a teacher does, on the same views of the training images.

    Args:
        data: as for `checkpoint_from_data`; its class names must be the teacher's.
        teacher: a checkpoint folder, any Hugging Face image classifier, or a hub id.
        output: the folder to write: the best checkpoint, and the last one as `last/` inside it.
        options: how.

    Raises:
        BadDataError: the data's class names are not the teacher's.
        EdgebertError: what else the user can mend, see `edgebert.errors`; the loss became NaN or infinite.
    """
    started = time.monotonic()
    accelerator = _checked_request(output, options, teacher, options.student)
    taught = load_checkpoint(teacher, revision=options.revision)
    loaded = load_dataset(data, DataOptions(max_skipped=options.max_skipped))
    dataset = align_classes(loaded, taught.card.class_names, class_map=options.class_map)
    start = start_from(options.student, options, dataset.class_names, dataset.train, teacher=taught)
    views = _views(start.preprocessing, taught.card.preprocessing)
    stage = _Stage(
        name="distill",
        accelerator=accelerator,
        dataset=dataset,
        start=start,
        options=_settled(options, start),
        objective=_teacher_objective(taught, start.preprocessing, options, accelerator.device),
        views=views,
        made_from={"data": loaded.sha256(), "teacher": taught.sha256, **start.made_from},
        source=taught.card.provenance,
        seen=_seen(dataset) | start.seen | taught.card.seen,
    )
    return stage.run(output, started)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What the two commands differ in, decided; from here on they are one.

    Attributes:
        name: of the command.
        accelerator: of this run.
        dataset: with labels in the order of the logits.
        start: the model.
        options: with nothing left open.
        objective: what a batch is judged by.
        views: how training images are prepared before they are augmented.
        made_from: for the card.
        source: for the card.
        seen: for the card.
    """

    name: str
    accelerator: Accelerator
    dataset: Dataset
    start: Start
    options: LoopOptions
    objective: Objective
    views: Preprocessing
    made_from: Mapping[str, str]
    source: Provenance | None
    seen: ImageSet

    def run(self, output: Path, started: float) -> TrainingReport:
        """Train, write the checkpoint and report."""
        folder = RunFolder(
            output,
            {
                "stage": self.name,
                "options": dict(self._stored_options()),
                "made_from": dict(self.made_from),
                "classes": list(self.dataset.class_names),
            },
        )
        rule, options, accelerator = self.start.preprocessing, self.options, self.accelerator
        with folder.held() if accelerator.is_main_process else contextlib.nullcontext():
            _log.info("%s", self._summary())
            saved = folder.interrupted_run(resume=options.resume)
            shown = self.dataset.val if len(self.dataset.val) >= MIN_EXAMPLES else self.dataset.train
            examples = example_images(shown, self.dataset.class_names, rule, options.examples)
            val = ImageBatches(self.dataset.val, rule, workers=options.workers, what="decode val")
            run = Run(
                classifier=PixelClassifier(self.start.model, rule),
                objective=self.objective,
                train=ImageBatches(self.dataset.train, self.views, workers=options.workers, what="decode train"),
                val=val,
                class_names=self.dataset.class_names,
                view_size=(self.views.height, self.views.width),
                options=options,
                folder=folder,
                write=lambda path, classifier, evaluation, epoch: save_checkpoint(
                    path, classifier.model, self._card(evaluation, epoch), examples
                ),
            )
            outcome = run_epochs(run, accelerator, saved)
            report = self._report(outcome, val, output, time.monotonic() - started)
            accelerator.wait_for_everyone()  # the others have read what is removed now
            if accelerator.is_main_process:
                self._write(outcome, val, examples, output)
                folder.remove()
        return report

    def _write(self, outcome: Outcome, val: ImageBatches, examples: tuple[ExampleImage, ...], output: Path) -> None:
        """Write the best checkpoint to `output`, and the last one into it."""
        assert self.options.epochs is not None
        last = self._card(evaluated(outcome.last, val, self.dataset.class_names), self.options.epochs)
        with staged_folder(output, force=self.options.force, kind=CHECKPOINT_FOLDER) as staging:
            shutil.copytree(outcome.best, staging, dirs_exist_ok=True)
            (staging / "last").mkdir()
            save_checkpoint(staging / "last", outcome.last.model, last, examples)

    def _report(self, outcome: Outcome, val: ImageBatches, output: Path, seconds: float) -> TrainingReport:
        """Measure the checkpoint that is shipped, as it is read back from disk."""
        assert self.options.epochs is not None
        best = load_checkpoint(outcome.best)
        classifier = PixelClassifier(best.model, best.card.preprocessing).to(self.accelerator.device)
        evaluation = evaluated(classifier, val, self.dataset.class_names)
        return TrainingReport(
            path=output,
            last=output / "last",
            top1=evaluation.top1,
            macro_f1=evaluation.macro_f1,
            per_class=evaluation.rows,
            epochs=self.options.epochs,
            best_epoch=outcome.best_epoch,
            parameters=parameter_count(best.model),
            seconds=seconds,
            images_per_second=outcome.images_per_second,
        )

    def _card(self, evaluation: Evaluation, epoch: int) -> ModelCard:
        versions = {
            "accelerate": accelerate.__version__,
            "edgebert": __version__,
            "kornia": kornia.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        return ModelCard(
            class_names=self.dataset.class_names,
            preprocessing=self.start.preprocessing,
            provenance=Provenance(
                stage=self.name,
                made_from=self.made_from,
                options=self._stored_options(),
                versions=versions,
                metrics={**evaluation.metrics(), "epoch": float(epoch)},
                parameters=parameter_count(self.start.model),
                source=self.source,
            ),
            seen=self.seen,
        )

    def _stored_options(self) -> JsonObject:
        return {
            **self.options.to_json(),
            "model": self.start.name,
            "device": self.accelerator.device.type,
            "mixed_precision": str(self.accelerator.mixed_precision),
        }

    def _summary(self) -> str:
        options, rule = self.options, self.start.preprocessing
        return (
            f"{self.name} {self.start.name}: {parameter_count(self.start.model):,} parameters, "
            f"{rule.height} x {rule.width} px ({rule.resize}), {options.epochs} epochs of "
            f"{len(self.dataset.train):,} images, learning rate {options.learning_rate:g}, "
            f"on {self.accelerator.device.type}, mixed precision {self.accelerator.mixed_precision}"
        )


def _checked_request(output: Path, options: LoopOptions, *inputs: str) -> Accelerator:
    """Refuse before any image is read what would be refused later."""
    check_not_input(output, *inputs)
    check_folder_is_free(output, force=options.force, kind=CHECKPOINT_FOLDER)
    return new_accelerator(options.mixed_precision)


def _settled(options: LoopOptions, start: Start) -> LoopOptions:
    rule = start.preprocessing
    return options.derived(
        image_size=rule.height, resize=rule.resize, epochs=start.epochs, learning_rate=start.learning_rate
    )


def _views(student: Preprocessing, teacher: Preprocessing) -> Preprocessing:
    """Return how training images are prepared: as the student's, at the larger of the two sizes."""
    height, width = max(student.height, teacher.height), max(student.width, teacher.width)
    if student.resize != teacher.resize:
        _log.info("the teacher was made for `%s`, and sees the student's `%s`", teacher.resize, student.resize)
    if (height, width) == (student.height, student.width) == (teacher.height, teacher.width):
        return student
    _log.info(
        "views are made at %d x %d px and shrunk on the device: the teacher takes %d x %d, the student %d x %d",
        *(height, width, teacher.height, teacher.width, student.height, student.width),
    )
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


def _teacher_objective(
    teacher: Checkpoint, rule: Preprocessing, options: DistillOptions, device: torch.device
) -> TeacherObjective:
    card = teacher.card
    classifier = PixelClassifier(teacher.model, card.preprocessing).eval().requires_grad_(False).to(device)
    return TeacherObjective(
        teacher=classifier,
        size=(rule.height, rule.width),
        teacher_size=(card.preprocessing.height, card.preprocessing.width),
        temperature=options.temperature,
        alpha=options.alpha,
    )


def _seen(dataset: Dataset) -> ImageSet:
    return ImageSet.from_hashes(example.pixel_sha256 for example in (*dataset.train, *dataset.val))
