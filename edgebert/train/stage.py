"""Carrying out a training stage: from what `train` and `distill` differ in to the checkpoint on disk."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import accelerate
import kornia
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from edgebert import __version__
from edgebert._files import check_folder_is_free, check_not_input, staged_folder
from edgebert._json import JsonObject, flat
from edgebert.card import ImageSet, ModelCard, Provenance, Task
from edgebert.card_io import CARD_FILE, CHECKPOINT_FOLDER, read_checkpoint_card
from edgebert.data import Dataset, Example
from edgebert.errors import UsageError
from edgebert.examples import MIN_EXAMPLES, ExampleImage, example_images
from edgebert.models.checkpoint import PixelClassifier, load_checkpoint, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing
from edgebert.train.batches import ImageBatches
from edgebert.train.evaluation import Evaluation, evaluated
from edgebert.train.feed import ViewFeed
from edgebert.train.loop import EpochHook, Outcome, Run, new_accelerator, run_epochs
from edgebert.train.losses import class_weights
from edgebert.train.objective import LabelTerm, Learner
from edgebert.train.options import LoopOptions
from edgebert.train.report import TrainingReport
from edgebert.train.start import Start
from edgebert.train.state import RunFolder
from edgebert.train.teacher import Teacher

_log = logging.getLogger("edgebert")

_Options = TypeVar("_Options", bound=LoopOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What a stage's network is judged by.

    Attributes:
        learner: the network with its loss.
        teacher: who answers for the views; None where the labels are enough.
        banks: how many views of each image there are; 0 for a new one in each epoch.
    """

    learner: Learner
    teacher: Teacher | None = None
    banks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the two commands differ in, decided; from here on they are one.

    Attributes:
        name: of the command.
        accelerator: of this run.
        dataset: with labels in the order of the logits.
        task: of the network.
        start: the network before.
        options: with nothing left open.
        judge: makes what it is judged by, from the views and the label loss; `folder` is for files of the run.
        views: how training images are prepared before they become views.
        made_from: for the card.
        source: for the card.
        seen: for the card.
        on_epoch: see `edgebert.train.loop.EpochHook`.
    """

    name: str
    accelerator: Accelerator
    dataset: Dataset
    task: Task
    start: Start
    options: LoopOptions
    judge: Callable[[ViewFeed, LabelTerm, Path], Judge]
    views: Preprocessing
    made_from: Mapping[str, str]
    source: Provenance | None
    seen: ImageSet
    on_epoch: EpochHook | None = None

    def run(self, output: Path, started: float) -> TrainingReport:
        """Train, write the checkpoint and report."""
        folder = RunFolder(output, self._fingerprint())
        accelerator = self.accelerator
        force = self.options.force or self._made(output)
        check_folder_is_free(output, force=force, kind=CHECKPOINT_FOLDER)
        self._check_processes()
        with folder.held() if accelerator.is_main_process else contextlib.nullcontext():
            _log.info("%s", self._summary())
            saved = folder.interrupted_run(resume=self.options.resume)
            val = self.images(self.dataset.val, self.start.preprocessing, folder.path, "decode val")
            feed = self.feed(folder.path)
            judge = self.judge(feed, self._label_term(feed), folder.path)
            examples = self._examples()
            run = Run(
                learner=judge.learner,
                feed=feed,
                teacher=judge.teacher,
                banks=judge.banks,
                task=self.task,
                has_labels=self.dataset.task != "unlabelled",
                evaluate=lambda classifier: evaluated(classifier, val, self.dataset.class_names, self.task),
                options=self.options,
                folder=folder,
                write=lambda path, classifier, evaluation, epoch: save_checkpoint(
                    path, classifier.model, self._card(evaluation, epoch), examples
                ),
                on_epoch=self.on_epoch,
            )
            outcome = run_epochs(run, accelerator, saved)
            told: list[TrainingReport | None] = [None]
            if accelerator.is_main_process:
                told = [self._report(outcome, val, output, time.monotonic() - started)]
                self._write(outcome, val, examples, output, force=force)
                folder.remove()
            if accelerator.num_processes > 1:
                broadcast_object_list(told)
        assert told[0] is not None
        return told[0]

    def feed(self, folder: Path) -> ViewFeed:
        """Return the views of the training split."""
        options, views = self.options, self.views
        return ViewFeed(
            self.images(self.dataset.train, views, folder, "decode train"),
            options.view_spec(height=views.height, width=views.width),
            seed=options.seed if options.view_seed is None else options.view_seed,
            device=self.accelerator.device,
        )

    def images(self, examples: tuple[Example, ...], rule: Preprocessing, folder: Path, what: str) -> ImageBatches:
        """Return the images of a split; processes that train together share what is decoded into a file."""
        with self.accelerator.main_process_first():
            return ImageBatches(
                examples,
                rule,
                classes=len(self.dataset.class_names),
                folder=folder,
                workers=self.options.workers,
                what=what,
            )

    def _label_term(self, feed: ViewFeed) -> LabelTerm:
        kind = self.options.class_weights
        weights = None if kind == "none" else class_weights(feed.images.class_counts(), kind)
        return LabelTerm(task=self.task, class_weights=weights, smoothing=self.options.smoothing)

    def _examples(self) -> tuple[ExampleImage, ...]:
        """Return the images that travel with the checkpoint: of the validation split where it has enough."""
        dataset = self.dataset
        shown = dataset.val if len(dataset.val) >= MIN_EXAMPLES or dataset.task == "unlabelled" else dataset.train
        return example_images(shown, dataset.class_names, self.start.preprocessing, self.options.examples)

    def _made(self, output: Path) -> bool:
        """Say whether the output is what this very run wrote before it was killed, its state not yet removed."""
        if not (self.options.resume and (output / CARD_FILE).is_file()):
            return False
        provenance = read_checkpoint_card(output).provenance
        ours = (self.name, dict(self.made_from), flat(self._stored_options()))
        return (provenance.stage, dict(provenance.made_from), flat(provenance.options)) == ours

    def _check_processes(self) -> None:
        """Refuse batches in which some process would have no image."""
        images, processes = len(self.dataset.train), self.accelerator.num_processes
        smallest = images // -(-images // self.options.batch_size)
        if smallest < processes:
            raise UsageError(
                f"a batch of {smallest} image(s) for {processes} processes",
                expected=f"batch_size at least {processes}: it counts the images of all processes together",
            )

    def _write(
        self,
        outcome: Outcome,
        val: ImageBatches,
        examples: tuple[ExampleImage, ...],
        output: Path,
        *,
        force: bool,
    ) -> None:
        """Write the best checkpoint to `output`, and the last one into it."""
        last = self._card(evaluated(outcome.last, val, self.dataset.class_names, self.task), outcome.epochs)
        with staged_folder(output, force=force, kind=CHECKPOINT_FOLDER) as staging:
            shutil.copytree(outcome.best, staging, dirs_exist_ok=True)
            (staging / "last").mkdir()
            save_checkpoint(staging / "last", outcome.last.model, last, examples)

    def _report(self, outcome: Outcome, val: ImageBatches, output: Path, seconds: float) -> TrainingReport:
        """Measure the checkpoint that is shipped, as it is read back from disk."""
        best = load_checkpoint(outcome.best)
        classifier = PixelClassifier(best.model, best.card.preprocessing).to(self.accelerator.device)
        evaluation = evaluated(classifier, val, self.dataset.class_names, self.task)
        return TrainingReport(
            path=output,
            last=output / "last",
            score_name=evaluation.score_name,
            score=evaluation.score,
            macro_f1=evaluation.others["macro_f1"],
            against="labels" if self.dataset.task != "unlabelled" else "teacher",
            per_class=evaluation.rows,
            curve=outcome.curve,
            epochs=outcome.epochs,
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
            task=self.task,
            thresholds=evaluation.thresholds,
        )

    def _fingerprint(self) -> JsonObject:
        return {
            "stage": self.name,
            "options": dict(self._stored_options()),
            "made_from": dict(self.made_from),
            "classes": list(self.dataset.class_names),
            "labels": self.dataset.sha256(),
            "processes": self.accelerator.num_processes,
        }

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


def checked_request(output: Path, options: LoopOptions, *inputs: str) -> Accelerator:
    """Refuse before any image is read what would be refused later."""
    check_not_input(output, *inputs)
    if not (options.resume and RunFolder(output, {}).path.exists()):  # else it may be this run's own: `Stage.run` looks
        check_folder_is_free(output, force=options.force, kind=CHECKPOINT_FOLDER)
    return new_accelerator(options.mixed_precision, options.device)


def check_apart(output: Path, cache: str | None) -> None:
    """Refuse a cache inside the output, which is written as a whole, and an output inside the cache.

    Raises:
        UsageError: they lie in one another.
    """
    if cache is None:
        return
    folder, made = Path(cache).resolve(), output.resolve()
    if made in (folder, *folder.parents) or folder in made.parents:
        raise UsageError(f"the cache `{cache}` and the output `{output}` lie in one another", expected="two folders")


def settled(options: _Options, start: Start) -> _Options:
    """Return the options with what the user left open taken from the start."""
    rule = start.preprocessing
    return options.derived(
        image_size=rule.height, resize=rule.resize, epochs=start.epochs, learning_rate=start.learning_rate
    )


def seen_in(dataset: Dataset) -> ImageSet:
    """Return the images of a data set that training sees."""
    return ImageSet.from_hashes(example.pixel_sha256 for example in (*dataset.train, *dataset.val))


def size_of(rule: Preprocessing) -> tuple[int, int]:
    """Return (height, width) of what a rule makes."""
    return rule.height, rule.width
