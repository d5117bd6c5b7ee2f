"""Pre-training without labels: the network learns to tell the pixels of hidden patches before it learns classes.

SimMIM (Xie et al. 2022, arXiv 2111.09886); see `edgebert.train.objective.MaskedImageLearner`. Worth trying where there are
many images and few labels; on small, fully labelled data a good supervised recipe gives as much (compression.md, section 10).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from edgebert.card import ModelCard, Provenance
from edgebert.data import DataOptions, Dataset, load_unlabelled
from edgebert.models.checkpoint import PixelClassifier, save_checkpoint
from edgebert.train.batches import ImageBatches
from edgebert.train.evaluation import Evaluation
from edgebert.train.feed import ViewFeed, plain_batch
from edgebert.train.loop import Run, run_epochs
from edgebert.train.objective import MaskedImageLearner
from edgebert.train.options import TrainOptions
from edgebert.train.stage import seen_in
from edgebert.train.start import Start
from edgebert.train.state import RunFolder
from edgebert.train.views import float_views

_log = logging.getLogger("edgebert")

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """One pre-training, to be run before the training it belongs to.

    Attributes:
        start: what it starts from.
        options: of the training; `pretrain_epochs` epochs are run.
        dataset: its images; labels are not looked at.
        made_from: role -> SHA-256 of what goes into it.
        folder: of its state, kept until the training is complete.
        accelerator: of the run.
    """

    start: Start
    options: TrainOptions
    dataset: Dataset
    made_from: Mapping[str, str]
    folder: RunFolder
    accelerator: Accelerator

    @classmethod
    def of(
        cls, start: Start, options: TrainOptions, labelled: Dataset, output: Path, accelerator: Accelerator
    ) -> Pretraining:
        """Find the images: `pretrain_data`, or the labelled data's own training and validation images.

        Args:
            start: the network.
            options: with nothing left open.
            labelled: the data of the training.
            output: of the training.
            accelerator: of the run.
        """
        dataset, made_from = labelled, dict(start.made_from)
        if options.pretrain_data is not None:
            tested = {example.pixel_sha256 for example in labelled.test}
            loaded = load_unlabelled(options.pretrain_data, DataOptions(max_skipped=options.max_skipped))
            train = tuple(example for example in loaded.train if example.pixel_sha256 not in tested)
            if len(train) < len(loaded.train):
                _log.info("left out: %d test images of the data", len(loaded.train) - len(train))
            dataset = replace(loaded, train=train)
            made_from["pretrain-data"] = loaded.sha256()
        fingerprint = {
            "stage": "pretrain",
            "options": {
                **options.to_json(),
                "model": start.name,
                "device": accelerator.device.type,
                "mixed_precision": str(accelerator.mixed_precision),
            },
            "made_from": {"data": dataset.sha256(), **made_from},
            "classes": list(labelled.class_names),
            "processes": accelerator.num_processes,
        }
        return cls(
            start=start,
            options=replace(
                options, epochs=options.pretrain_epochs, mixup=0.0, cutmix=0.0, sampling="natural", freeze=0, patience=0
            ),
            dataset=dataset,
            made_from=made_from,
            folder=RunFolder(output.with_name(f"{output.name}.pretraining"), fingerprint),
            accelerator=accelerator,
        )

    def run(self) -> Start:
        """Train, and return the start with the weights after the last epoch."""
        rule, options, device = self.start.preprocessing, self.options, self.accelerator.device
        size = (rule.height, rule.width)
        seed = options.seed if options.view_seed is None else options.view_seed
        with self.folder.held() if self.accelerator.is_main_process else contextlib.nullcontext():
            saved = self.folder.interrupted_run(resume=options.resume)
            with self.accelerator.main_process_first():
                train, val = (
                    ImageBatches(
                        examples,
                        rule,
                        classes=len(self.dataset.class_names),
                        folder=self.folder.path,
                        workers=options.workers,
                        what=f"decode {what}",
                    )
                    for what, examples in (("train", self.dataset.train), ("val", self.dataset.val))
                )
            classifier = PixelClassifier(self.start.model, rule)
            learner = MaskedImageLearner(classifier, size, seed=seed)
            _log.info("pre-training on hidden patches of %s images", f"{len(train):,}")
            outcome = run_epochs(
                Run(
                    learner=learner,
                    feed=ViewFeed(train, options.view_spec(height=size[0], width=size[1]), seed=seed, device=device),
                    teacher=None,
                    banks=0,
                    task="single-label",
                    has_labels=False,
                    evaluate=lambda _: _error_on(learner, val, device),
                    options=options,
                    folder=self.folder,
                    write=self._write,
                    what="pretrain",
                ),
                self.accelerator,
                saved,
            )
        self.start.model.load_state_dict(outcome.last.model.state_dict())
        return replace(self.start, made_from=self.made_from, seen=self.start.seen | seen_in(self.dataset))

    def remove(self) -> None:
        """Remove the state, once the training is complete."""
        if self.accelerator.is_main_process:
            self.folder.remove()

    def _write(self, path: Path, classifier: PixelClassifier, evaluation: Evaluation, epoch: int) -> None:
        names = self.dataset.class_names or ("none", "nothing")  # the head is not trained
        provenance = Provenance(stage="train", metrics={**evaluation.metrics(), "epoch": float(epoch)})
        card = ModelCard(class_names=names, preprocessing=self.start.preprocessing, provenance=provenance)
        save_checkpoint(path, classifier.model, card, ())


@torch.no_grad()
def _error_on(learner: MaskedImageLearner, images: ImageBatches, device: torch.device) -> Evaluation:
    """Return the error on hidden patches of unchanged images."""
    learner.eval()
    total = 0.0
    for positions, pixels in images.in_order(_BATCH_SIZE):
        views = float_views(pixels.to(device))
        batch = plain_batch(images, positions, views, views.new_zeros(len(views), 0))
        error, _ = learner(batch, None, 0.0)
        total += float(error) * len(positions)
    error = total / max(1, len(images))
    return Evaluation(score_name="error", score=-error, loss=error)
