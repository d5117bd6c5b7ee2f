"""What a batch is judged by: the network under training with its loss, as one module.

One module, so that processes that train together exchange the gradients of all of it. The loop knows none of the terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebert.card import Task
from edgebert.models.features import FeatureTap, blocks, regrid
from edgebert.models.fusion import is_fusion
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import ImageBatches
from edgebert.train.feed import ViewBatch
from edgebert.train.losses import (
    distillation_loss,
    hard_label_loss,
    label_loss,
    pooled_loss,
    relation_loss,
    token_loss,
)
from edgebert.train.options import DistillOptions
from edgebert.train.teacher import Answers, Size
from edgebert.train.texts import blended_embeddings
from edgebert.train.views import network_views, uniforms


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTerm:
    """The label loss.

    Attributes:
        task: of the data.
        class_weights: float32 (classes,) with mean 1 over the images, or None.
        smoothing: of the labels.
    """

    task: Task
    class_weights: Tensor | None
    smoothing: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return label_loss(logits, targets, task=self.task, class_weights=weights, smoothing=self.smoothing)


class Learner(nn.Module):
    """A network under training; subclasses say how it is judged.

    Args:
        classifier: the network.
        size: (height, width) of its input.
    """

    def __init__(self, classifier: PixelClassifier, size: Size) -> None:
        super().__init__()
        self.classifier = classifier
        self._size = size

    def forward(self, batch: ViewBatch, answers: Answers | None, progress: float) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar to minimise, and the logits, float32 (batch, classes).

        Args:
            batch: the views.
            answers: of the teacher, where there is one.
            progress: share of the run that is done, in [0, 1).
        """
        raise NotImplementedError

    def views(self, batch: ViewBatch) -> Tensor:
        """Return what the network takes: uint8 (batch, height, width, 3)."""
        return network_views(batch.views, height=self._size[0], width=self._size[1])


class LabelLearner(Learner):
    """Judged by the labels alone.

    Args:
        classifier: the network; a fusion model reads the images' texts as well.
        size: (height, width) of its input.
        term: the label loss.
        images: where the texts are.
    """

    def __init__(self, classifier: PixelClassifier, size: Size, *, term: LabelTerm, images: ImageBatches) -> None:
        super().__init__(classifier, size)
        self._term, self._images = term, images

    def forward(self, batch: ViewBatch, answers: Answers | None, progress: float) -> tuple[Tensor, Tensor]:
        model = self.classifier.model
        text = blended_embeddings(model, batch, self._images) if is_fusion(model) else None
        logits: Tensor = self.classifier(self.views(batch), text)
        return self._term(logits, batch.targets), logits


class DistillLearner(Learner):
    """Judged by a teacher, and by the labels as far as they have weight.

    Args:
        classifier: the student.
        size: (height, width) of its input.
        term: the label loss.
        options: the weights of the terms.
        teacher_widths: block number -> width of the teacher's tokens, for the blocks it is asked for; empty without terms
            on features.
    """

    def __init__(
        self,
        classifier: PixelClassifier,
        size: Size,
        *,
        term: LabelTerm,
        options: DistillOptions,
        teacher_widths: dict[int, int],
    ) -> None:
        super().__init__(classifier, size)
        self._term, self._options = term, options
        self._last = len(blocks(classifier.model)) - 1 if teacher_widths else 0
        self._teacher_last = max(teacher_widths, default=0)
        early = early_blocks(options, classifier, self._teacher_last + 1) if teacher_widths else ()
        self._early = early
        widths = token_widths(classifier, size, {*early, self._last}) if teacher_widths else {}
        # The student is lifted to the teacher's width, and not the teacher squeezed: what a narrow student cannot hold
        # would be asked of it otherwise (compression.md, section 1, last paragraph).
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.early_lifts = nn.ModuleList(nn.Linear(widths[block], teacher_widths[block]) for block in early)
            self.pooled_lift = (
                nn.Linear(widths[self._last], teacher_widths[self._teacher_last]) if options.pooled_weight else None
            )

    def forward(self, batch: ViewBatch, answers: Answers | None, progress: float) -> tuple[Tensor, Tensor]:
        assert answers is not None
        options, task = self._options, self._term.task
        uses_features = bool(answers.tokens) and progress < options.feature_until
        if uses_features:
            with FeatureTap(self.classifier.model, (*self._early, self._last)) as tap:
                logits: Tensor = self.classifier(self.views(batch))
                loss = self._feature_terms(tap, answers)
        else:
            logits = self.classifier(self.views(batch))
            # Every parameter takes part in every step, as processes that train together expect.
            loss = sum((parameter.sum() * 0.0 for parameter in self._lifts()), logits.new_zeros(()))
        # A term of weight 0 is left out instead of multiplied, so that an infinity in it cannot turn the sum into NaN.
        if options.kl_weight:
            distilled = distillation_loss(logits, answers.logits, temperature=options.temperature, task=task)
            loss = loss + options.kl_weight * distilled
        if options.hard_weight:
            loss = loss + options.hard_weight * hard_label_loss(logits, answers.logits, task=task)
        if options.labels_weigh:
            loss = loss + options.labels_weigh * self._term(logits, batch.targets)
        return loss, logits

    def _feature_terms(self, tap: FeatureTap, answers: Answers) -> Tensor:
        options = self._options
        last, taught = tap.features[self._last].mean(dim=1), answers.tokens[self._teacher_last].mean(dim=1)
        loss = last.new_zeros((), dtype=torch.float32)
        for block, lift in zip(self._early, self.early_lifts, strict=True):
            wanted = regrid(answers.tokens[block], answers.grids[block], tap.grid[block])
            loss = loss + options.early_weight / len(self._early) * token_loss(lift(tap.features[block]), wanted)
        if self.pooled_lift is not None:
            loss = loss + options.pooled_weight * pooled_loss(self.pooled_lift(last), taught)
        if options.relation_weight:
            loss = loss + options.relation_weight * relation_loss(last, taught)
        return loss

    def _lifts(self) -> Sequence[nn.Parameter]:
        pooled = () if self.pooled_lift is None else tuple(self.pooled_lift.parameters())
        return (*self.early_lifts.parameters(), *pooled)


class MaskedImageLearner(Learner):
    """Judged by what it makes of hidden patches: SimMIM (Xie et al. 2022, arXiv 2111.09886).

    Patches of the view are filled with its mean colour, and a linear layer tells their pixels from the tokens of the last
    block; the loss is the mean absolute error over the hidden pixels, in units of the normalised image.

    Args:
        classifier: the network.
        size: (height, width) of its input.
        seed: of the hidden patches.
    """

    # SimMIM hides 0.6 of all patches of 32 x 32 in images of 192 x 192 (table 1): a sixth of the side.
    HIDDEN_SHARE = 0.6
    PATCHES_A_SIDE = 6

    def __init__(self, classifier: PixelClassifier, size: Size, *, seed: int) -> None:
        super().__init__(classifier, size)
        self._seed = seed
        self._last = len(blocks(classifier.model)) - 1
        width, grid = _token_shapes(classifier, size, {self._last})[self._last]
        self._grid = grid
        self._cell = (-(-size[0] // grid[0]), -(-size[1] // grid[1]))  # pixels that one token stands for
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixels = nn.Linear(width, 3 * self._cell[0] * self._cell[1])

    def forward(self, batch: ViewBatch, answers: Answers | None, progress: float) -> tuple[Tensor, Tensor]:
        views = self.views(batch)  # uint8 (batch, height, width, 3)
        hidden = self.hidden(batch).to(views.device)  # bool (batch, 1, height, width)
        wanted = self.classifier.normalized(views)
        mean = views.float().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8)  # (batch, 1, 1, 3)
        with FeatureTap(self.classifier.model, (self._last,)) as tap:
            logits: Tensor = self.classifier(torch.where(hidden.permute(0, 2, 3, 1), mean, views))
        made = self.pixels(tap.features[self._last]).float()  # (batch, tokens, 3 * cell)
        made = made.transpose(1, 2).reshape(len(made), -1, *self._grid)
        made = _unfolded(made, self._cell)[:, :, : wanted.shape[2], : wanted.shape[3]]
        error = ((made - wanted).abs() * hidden).sum() / (3.0 * hidden.sum())
        # What lies behind the last block takes part with weight 0, as processes that train together expect.
        return error + 0.0 * logits.sum(), logits

    def hidden(self, batch: ViewBatch) -> Tensor:
        """Return which pixels are hidden, bool (batch, 1, height, width): the same for the same view of an image."""
        side = self.PATCHES_A_SIDE
        draws = uniforms(self._seed, batch.bank, batch.keys, "hidden patches", side * side)
        count = round(self.HIDDEN_SHARE * side * side)
        chosen = draws.argsort(axis=1).argsort(axis=1) < count  # exactly as many in every image
        patches = torch.from_numpy(chosen.reshape(-1, 1, side, side)).float()
        return nn.functional.interpolate(patches, self._size, mode="nearest") > 0.5


def early_blocks(options: DistillOptions, student: PixelClassifier, teacher_blocks: int) -> tuple[int, ...]:
    """Return the blocks of student and teacher that `early_weight` compares, from 0; empty where it is 0."""
    if not options.early_weight:
        return ()
    return tuple(range(min(options.early_layers, len(blocks(student.model)), teacher_blocks)))


def token_widths(classifier: PixelClassifier, size: Size, chosen: set[int]) -> dict[int, int]:
    """Return block number -> width of its tokens, of the chosen blocks."""
    return {block: width for block, (width, _) in _token_shapes(classifier, size, chosen).items()}


def _token_shapes(classifier: PixelClassifier, size: Size, chosen: set[int]) -> dict[int, tuple[int, Size]]:
    device = classifier.mean.device
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()  # two images, and no batch norm may learn from them
    with torch.no_grad(), FeatureTap(classifier.model, sorted(chosen)) as tap:
        classifier(torch.zeros(2, *size, 3, dtype=torch.uint8, device=device))
    for module, training in modes:
        module.training = training
    return {block: (tap.features[block].shape[2], tap.grid[block]) for block in chosen}


def _unfolded(patches: Tensor, cell: Size) -> Tensor:
    """Turn (batch, 3 * cell height * cell width, rows, columns) into (batch, 3, rows * cell height, columns * cell width)."""
    batch, _, rows, columns = patches.shape
    split = patches.reshape(batch, 3, *cell, rows, columns)
    joined = split.permute(0, 1, 4, 2, 5, 3)  # (batch, 3, rows, cell height, columns, cell width)
    return joined.flatten(4, 5).flatten(2, 3)
