"""Quantisation-aware distillation: the weights, and the scales with them, learn to live with the rounding.

The FP32 graph is run with the rounding of the Q/DQ graph in it and trained to answer as it did without, or as a teacher
does. Training images are seen as every later stage sees them, without augmentation, so that the answers to be learned are
computed once. The epoch that comes nearest to them on the validation images is kept; epoch 0, before any training, counts.

>>> FinetuneOptions(epochs=9)
Traceback (most recent call last):
...
edgebert.errors.UsageError: finetune_epochs `9`
expected: 1 to 5
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from edgebert._json import JsonObject
from edgebert._progress import Progress, tracked
from edgebert._sources import shortened
from edgebert.calibration.images import spread_over_classes
from edgebert.calibration.table import ScaleTable
from edgebert.calibration.torch_graph import TorchGraph
from edgebert.card import ImageSet, ModelCard
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError, EdgebertError
from edgebert.models.checkpoint import Checkpoint, load_checkpoint, with_classes
from edgebert.models.fusion import is_fusion
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import ImageBatches, shuffled_batches
from edgebert.train.loop import seed_of
from edgebert.train.losses import distillation_loss, label_loss
from edgebert.train.optimizer import adamw, learning_rate_at, set_learning_rate
from edgebert.train.options import check_choice, check_named, check_range
from edgebert.train.texts import text_embeddings

Scales = Literal["learned", "frozen"]

_log = logging.getLogger("edgebert")

_WARMUP = 0.05  # share of the steps in which the learning rate rises
_CLIP_NORM = 1.0
_SCALE_SHARE = 10.0
_RAM_BYTES = 1 << 30  # of resized pixels: 430,000 images of 28 px, or 7,100 of 224 px; more are decoded in each epoch
_VALIDATION_IMAGES = 2000  # as many as INT8 is compared with FP32 on
_INFERENCE_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training images, 1 to 5.
        learning_rate: the highest.
        batch_size: images of a step.
        scales: whether the scales are learned with the weights, or stay as they were measured.
        temperature: of the distillation.
        label_weight: weight of the cross-entropy with the labels beside it; 0 for the answers alone.
        teacher: a checkpoint folder, or a Hugging Face id, to answer as; None for the FP32 graph itself.
        seed: of the order of the images.
    """

    epochs: int = 2
    learning_rate: float = 1e-5
    batch_size: int = 64
    scales: Scales = "learned"
    temperature: float = 1.0
    label_weight: float = 0.0
    teacher: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("finetune_epochs", self.epochs, 1, 5)
        check_range("finetune_learning_rate", self.learning_rate, 1e-8, 1e-2)
        check_range("batch_size", self.batch_size, 1, 65_536)
        check_choice("finetune_scales", self.scales, ("learned", "frozen"))
        check_range("temperature", self.temperature, 0.1, 100.0)
        check_range("label_weight", self.label_weight, 0.0, 1e6)
        check_range("seed", self.seed, 0, 2**63 - 1)
        if self.teacher is not None:
            check_named("teacher", self.teacher)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """What came of it.

    Attributes:
        model: the FP32 graph with the weights of the best epoch; nodes and their values keep their names.
        table: the table with the scales of the best epoch at the places; all of it as it was where they are frozen.
        losses: mean over the steps of each epoch.
        val_kl: mean KL divergence of INT8 from what is answered for on the validation images, in nats, before the first
            epoch and after each.
        best_epoch: of the weights, from 0, which is before the first.
        images: how many training images were learned from.
        validation_images: how many images chose the epoch.
        made_from: role -> SHA-256: `finetune` for the data, `teacher` where there is one.
        seen: the images learned from, those that chose, and all that the teacher had seen.
        options: in effect.
    """

    model: onnx.ModelProto
    table: ScaleTable
    losses: tuple[float, ...]
    val_kl: tuple[float, ...]
    best_epoch: int
    images: int
    validation_images: int
    made_from: Mapping[str, str]
    seen: ImageSet
    options: FinetuneOptions

    @property
    def kl_before(self) -> float:
        """On the validation images, without fine-tuning."""
        return self.val_kl[0]

    @property
    def kl_after(self) -> float:
        """On the validation images, of the epoch that is kept; never above `kl_before`."""
        return self.val_kl[self.best_epoch]

    def provenance(self) -> JsonObject:
        """Return what a card's `options` say of it; `made_from` and `seen` have fields of their own there."""
        return {
            "epochs": self.options.epochs,
            "best_epoch": self.best_epoch,
            "learning_rate": self.options.learning_rate,
            "batch_size": self.options.batch_size,
            "scales": self.options.scales,
            "temperature": self.options.temperature,
            "label_weight": self.options.label_weight,
            "seed": self.options.seed,
            "reference": "teacher" if "teacher" in self.made_from else "fp32",
            "images": self.images,
            "validation_images": self.validation_images,
            "losses": list(self.losses),
            "val_kl": list(self.val_kl),
        }


def finetuned(
    model: onnx.ModelProto,
    table: ScaleTable,
    places: Collection[str],
    dataset: Dataset,
    card: ModelCard,
    options: FinetuneOptions | None = None,
) -> FinetuneResult:
    """Train a graph under the rounding of its Q/DQ graph. The same inputs and options give the same weights on one machine.

    Args:
        model: an FP32 graph whose nodes are named; not changed.
        table: scales of every value and weight that is rounded.
        places: names of Conv, Gemm and MatMul nodes, as for `edgebert.calibration.emit.int8_graph`, which makes the Q/DQ
            graph of the result.
        dataset: with the classes in the order of the card; its training split teaches, its validation split chooses the
            epoch, its test split is not touched.
        card: of the graph.
        options: defaults where None.

    Raises:
        BadDataError: a split is empty, the graph holds an unknown operator, or the teacher has other classes.
        InputNotFoundError: no such teacher.
        EdgebertError: an answer or the loss became NaN or infinite, or the table has no scale for a place.
    """
    options = options or FinetuneOptions()
    for split, examples in (("training", dataset.train), ("validation", dataset.val)):
        if not examples:
            raise BadDataError(f"`{dataset.name}` has no {split} images", expected=f"a {split} split to fine-tune with")
    graph = TorchGraph(model, table=table, places=places, learned=options.scales == "learned")
    teacher = None if options.teacher is None else _teacher(options.teacher, card)
    judges = spread_over_classes(dataset.val, _VALIDATION_IMAGES)
    classes = len(card.class_names)
    train = ImageBatches(dataset.train, card.preprocessing, classes=classes, ram_bytes=_RAM_BYTES, what="decode train")
    val = ImageBatches(judges, card.preprocessing, classes=classes, ram_bytes=_RAM_BYTES, what="decode val")
    with _deterministic():
        answers = _Answers(
            train=_answers(model, teacher, dataset.train, train),
            val=_answers(model, teacher, judges, val),
        )
        course = _trained(graph, train, val, answers, card, options)
    is_trained = course.best_epoch > 0
    result = FinetuneResult(
        model=graph.model() if is_trained else model,
        table=_merged(table, graph.table()) if is_trained and options.scales == "learned" else table,
        losses=course.losses,
        val_kl=course.val_kl,
        best_epoch=course.best_epoch,
        images=len(train),
        validation_images=len(val),
        made_from={"finetune": dataset.sha256(), **({} if teacher is None else {"teacher": teacher.sha256})},
        seen=ImageSet.from_hashes(example.pixel_sha256 for example in (*dataset.train, *judges))
        | (ImageSet() if teacher is None else teacher.card.seen),
        options=options,
    )
    _log.info(
        "fine-tuned on %s training images; KL divergence on %s validation images: %.3g before, %.3g after epoch %d of %d",
        *(f"{result.images:,}", f"{result.validation_images:,}", result.kl_before, result.kl_after),
        *(result.best_epoch, options.epochs),
    )
    if not is_trained:
        _log.warning("no epoch of fine-tuning came nearer on the validation images: the weights stay as they were")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What is to be answered, float32 (images, classes) logits in the order of each split."""

    train: Tensor
    val: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """How the training went; the graph holds the weights and scales of the best epoch."""

    losses: tuple[float, ...]
    val_kl: tuple[float, ...]
    best_epoch: int


def _trained(
    graph: TorchGraph,
    train: ImageBatches,
    val: ImageBatches,
    answers: _Answers,
    card: ModelCard,
    options: FinetuneOptions,
) -> _Course:
    optimizer = adamw(
        [
            *((name, parameter, 1.0) for name, parameter in graph.weights()),
            *((name, parameter, _SCALE_SHARE) for name, parameter in graph.scale_growths()),
        ],
        weight_decay=0.0,
    )
    best, best_epoch = copy.deepcopy(graph.state_dict()), 0
    val_kl, losses = [_divergence(graph, val, answers.val, card)], []
    steps_each = -(-len(train) // options.batch_size)
    steps = steps_each * options.epochs
    with Progress("fine-tune", steps) as progress:
        for epoch in range(options.epochs):
            order = shuffled_batches(
                len(train), options.batch_size, seed=seed_of(options.seed, "fine-tuning order", epoch)
            )
            total = 0.0
            for step, (positions, pixels) in enumerate(zip(order, train.read(order), strict=True), epoch * steps_each):
                rate = learning_rate_at(
                    step, steps=steps, warmup_steps=round(_WARMUP * steps), peak=options.learning_rate
                )
                set_learning_rate(optimizer, rate)
                loss = _loss(graph(pixels), answers.train[positions], train.targets(positions), card, options)
                if not math.isfinite(loss.item()):
                    raise EdgebertError(
                        f"the loss of fine-tuning became `{loss.item()}` in step {step + 1} of {steps}",
                        expected="a finite loss",
                        hint=f"--finetune-learning-rate {options.learning_rate / 10:.0e}",
                    )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                clip_grad_norm_(graph.parameters(), _CLIP_NORM)
                optimizer.step()
                total += loss.item()
                progress.advance(note=f"loss {loss.item():.3g}, KL {val_kl[-1]:.3g}")
            losses.append(total / steps_each)
            val_kl.append(_divergence(graph, val, answers.val, card))
            if val_kl[-1] < val_kl[best_epoch]:
                best, best_epoch = copy.deepcopy(graph.state_dict()), epoch + 1
    graph.load_state_dict(best)
    return _Course(losses=tuple(losses), val_kl=tuple(val_kl), best_epoch=best_epoch)


def _loss(
    logits: Tensor, answers: Tensor, targets: NDArray[np.float32], card: ModelCard, options: FinetuneOptions
) -> Tensor:
    loss = distillation_loss(logits, answers, temperature=options.temperature, task=card.task)
    if options.label_weight:
        loss = loss + options.label_weight * label_loss(logits, torch.from_numpy(targets), task=card.task)
    return loss


def _divergence(graph: TorchGraph, images: ImageBatches, answers: Tensor, card: ModelCard) -> float:
    """Return the mean KL divergence from the answers, in nats."""
    with torch.no_grad():
        logits = torch.cat([graph(pixels) for _, pixels in images.in_order(_INFERENCE_BATCH)])
        return float(distillation_loss(logits, answers, temperature=1.0, task=card.task))


def _answers(
    model: onnx.ModelProto, teacher: Checkpoint | None, examples: Sequence[Example], images: ImageBatches
) -> Tensor:
    """Let the FP32 graph, or the teacher at its own size, answer for a split.

    Raises:
        EdgebertError: an answer is no finite number; the message names the image.
    """
    if teacher is None:
        answer: Callable[[NDArray[np.int64], Tensor], Tensor] = _answer_of_graph(TorchGraph(model))
    else:
        images = ImageBatches(examples, teacher.card.preprocessing, classes=len(teacher.card.class_names), ram_bytes=0)
        answer = _answer_of_teacher(teacher, images)
    batches = -(-len(images) // _INFERENCE_BATCH)
    with torch.no_grad():
        answers = torch.cat(
            [
                answer(positions, pixels)
                for positions, pixels in tracked(images.in_order(_INFERENCE_BATCH), what="answers", total=batches)
            ]
        )
    wrong = torch.nonzero(~torch.isfinite(answers).all(dim=1)).flatten().tolist()
    if wrong:
        listed = ", ".join(f"`{images.name_of(position)}`" for position in wrong[:5])
        raise EdgebertError(
            f"{'the FP32 graph' if teacher is None else 'the teacher'} answers with NaN or infinity for {len(wrong)} of "
            f"{len(answers)} images: {listed}",
            expected="finite logits",
        )
    return answers


def _answer_of_graph(graph: TorchGraph) -> Callable[[NDArray[np.int64], Tensor], Tensor]:
    return lambda _, pixels: graph(pixels)


def _answer_of_teacher(teacher: Checkpoint, images: ImageBatches) -> Callable[[NDArray[np.int64], Tensor], Tensor]:
    classifier = PixelClassifier(teacher.model, teacher.card.preprocessing).train(False)

    def answer(positions: NDArray[np.int64], pixels: Tensor) -> Tensor:
        text = text_embeddings(teacher.model, images, positions) if is_fusion(teacher.model) else None
        logits: Tensor = classifier(pixels, text)
        return logits

    return answer


def _teacher(name: str, card: ModelCard) -> Checkpoint:
    """Load a teacher and put its classes into the order of the graph's.

    Raises:
        BadDataError: it has other classes, or another task.
    """
    teacher = load_checkpoint(name)
    ours, theirs = set(card.class_names), set(teacher.card.class_names)
    if ours != theirs or card.task != teacher.card.task:
        raise BadDataError(
            f"the teacher `{name}` is not of the graph's classes: only the graph has {_listed(ours - theirs)}, only the "
            f"teacher has {_listed(theirs - ours)}; they are {card.task} and {teacher.card.task}",
            expected="the same classes and the same task",
            hint="leave --teacher out: the FP32 graph is then what INT8 answers as",
        )
    order = replace(teacher.card, class_names=card.class_names, thresholds=card.thresholds)
    return replace(teacher, model=with_classes(teacher, card.class_names), card=order)


def _merged(table: ScaleTable, trained: ScaleTable) -> ScaleTable:
    return ScaleTable(
        activations={**table.activations, **trained.activations}, weights={**table.weights, **trained.weights}
    )


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Take only operators that give the same bits every time."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _listed(names: set[str]) -> str:
    return shortened(sorted(names)) or "none"
