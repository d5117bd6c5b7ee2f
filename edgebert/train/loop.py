"""The training loop: from a network and images to the best and the last weights, resumable after any interruption.

Run alone or under `accelerate launch` / `torchrun`: `batch_size` counts the images of all processes together, so the
same options mean the same training. Only the main process writes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from edgebert._progress import Progress
from edgebert.card import Task
from edgebert.errors import EdgebertError, UnavailableError
from edgebert.models.features import (
    FrozenLower,
    enable_gradient_checkpointing,
    freeze_batch_norm,
    freeze_lower,
    layers_of,
)
from edgebert.models.pixels import PixelClassifier
from edgebert.train.batches import balancing_weights, shuffled_batches
from edgebert.train.curve import EpochRecord, Tally
from edgebert.train.evaluation import Evaluation
from edgebert.train.feed import ViewBatch, ViewFeed
from edgebert.train.objective import Learner
from edgebert.train.optimizer import adamw, learning_rate_at, set_learning_rate
from edgebert.train.options import Device, LoopOptions, MixedPrecision
from edgebert.train.state import Position, RunFolder, SavedRun
from edgebert.train.teacher import Answers, Teacher

_log = logging.getLogger("edgebert")

EpochHook = Callable[[int, float], None]
"""Called by the main process after each epoch, counted from 1, with the validation score; what it raises ends the run."""

# One process may decode, evaluate or write for long while the others wait for it.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything one run needs.

    Attributes:
        learner: what is trained, with its loss; changed in place.
        feed: the views to learn from.
        teacher: who answers for them; None where the labels are enough.
        banks: how many views of each image there are; epoch e shows view e modulo this. 0: a new one in each epoch.
        task: of the data.
        has_labels: whether the targets say anything.
        evaluate: how good a classifier is on the images that choose the best epoch.
        options: with nothing left open.
        folder: where the state is kept.
        write: fills a folder with the checkpoint of a classifier and what it reached in an epoch, counted from 1.
        on_epoch: see `EpochHook`.
        what: shown while training.
    """

    learner: Learner
    feed: ViewFeed
    teacher: Teacher | None
    banks: int
    task: Task
    has_labels: bool
    evaluate: Callable[[PixelClassifier], Evaluation]
    options: LoopOptions
    folder: RunFolder
    write: Callable[[Path, PixelClassifier, Evaluation, int], None]
    on_epoch: EpochHook | None = None
    what: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        best: the folder of the best checkpoint.
        best_epoch: counted from 1.
        epochs: that were run; fewer than asked for where there was no better one for long.
        last: the classifier after the last epoch.
        curve: one entry for each epoch.
        images_per_second: of training, as far as this process did it; 0 where it did none.
    """

    best: Path
    best_epoch: int
    epochs: int
    last: PixelClassifier
    curve: tuple[EpochRecord, ...]
    images_per_second: float


def run_epochs(run: Run, accelerator: Accelerator, saved: SavedRun | None = None) -> Outcome:
    """Train all epochs that are not done yet.

    The global random generators of torch are as before when this returns.

    Args:
        run: what to train.
        accelerator: of `new_accelerator`.
        saved: an interrupted run to go on with.

    Raises:
        EdgebertError: the loss or the gradient is no finite number; the last state that was saved stays.
    """
    cuda = [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        loop = _Loop(run, accelerator)
        if saved is not None:
            loop.restore(saved)
        try:
            return loop.run_all()
        except KeyboardInterrupt:
            if loop.saved_at is not None:
                _log.info(
                    "interrupted: `train` and `distill` go on after %s with --resume, a recipe by itself", loop.saved_at
                )
            raise
        finally:
            accelerator.free_memory()  # a second run with it must not find the first one's optimizer


def new_accelerator(mixed_precision: MixedPrecision, device: Device = "auto") -> Accelerator:
    """Return the Accelerator of one run.

    Raises:
        UnavailableError: there is no such device, or it does not have this precision.
    """
    AcceleratorState._reset_state()  # a process may train twice, a teacher and its student, in two precisions
    if device == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("device `cuda`", expected="a CUDA device that torch sees", hint="--device cpu")
    cuda = torch.cuda.is_available() and device != "cpu"
    if mixed_precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "no"
    elif mixed_precision == "fp16" and not cuda:
        raise UnavailableError("mixed precision `fp16` on a CPU", expected="a CUDA device, or `auto`, `no`, `bf16`")
    else:
        precision = mixed_precision
    waits = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(mixed_precision=precision, cpu=not cuda, kwargs_handlers=[waits])


def seed_of(*position: int | str) -> int:
    """Return a 63-bit seed that depends on every part of a position and on nothing else.

    >>> seed_of(0, "order", 1) == seed_of(0, "order", 1), seed_of(0, "order", 1) == seed_of(0, "order", 2)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(position).encode()).digest()[:8], "big") >> 1


class _Loop:
    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        options, classifier = run.options, run.learner.classifier
        assert options.epochs is not None  # filled in by LoopOptions.derived
        assert options.learning_rate is not None
        self._run, self._accelerator = run, accelerator
        self._epochs, self._peak = options.epochs, options.learning_rate
        # What is evaluated and kept: the running average of the weights, or a copy of them.
        self._kept = copy.deepcopy(classifier).to(accelerator.device).requires_grad_(False)
        self._frozen: FrozenLower = freeze_lower(classifier.model, options.freeze)
        if options.gradient_checkpointing:
            enable_gradient_checkpointing(classifier.model)
        # Convolutions take images channel by channel of a pixel: that is how they come, and a fifth quicker on a CPU.
        run.learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack this form
        optimizer = adamw(_shares(run.learner, options.layer_decay), weight_decay=options.weight_decay)
        self._model, self._optimizer = accelerator.prepare(run.learner, optimizer)
        self._weights = balancing_weights(run.feed.images) if options.sampling == "balanced" else None
        self._batches = -(-len(run.feed.images) // options.batch_size)
        self._steps_per_epoch = -(-self._batches // options.accumulate)
        self._images = self._seconds = 0.0
        self._tally = Tally()
        self._curve: list[EpochRecord] = []
        self._best_epoch = 0
        self._best: tuple[float, float] | None = None
        self._done = (0, 0)  # complete epochs, and batches of the one after them
        self.saved_at: str | None = None

    def run_all(self) -> Outcome:
        """Run the epochs that are left; evaluate and save after each."""
        done, begun = self._done
        with Progress(self._run.what, (self._epochs - done) * self._batches - begun) as progress:
            for epoch in range(done, self._epochs):
                if self._is_stale(epoch):
                    _log.info("stopping after epoch %d: none was better than epoch %d", epoch, self._best_epoch)
                    break
                started = time.monotonic()
                self._run_epoch(epoch, progress)
                self._seconds += time.monotonic() - started
                self._finish_epoch(epoch)
        return Outcome(
            best=self._run.folder.best(self._best_epoch),
            best_epoch=self._best_epoch,
            epochs=self._done[0],
            last=self._kept,
            curve=tuple(self._curve),
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
        )

    def restore(self, saved: SavedRun) -> None:
        """Go to where an interrupted run was."""
        self._bare().load_state_dict(_with_prefix(saved.tensors, "learner."))
        self._kept.load_state_dict(_with_prefix(saved.tensors, "kept."))
        state = self._optimizer.state_dict()
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(saved.tensors, "optimizer.").items():
            index, _, moment = name.partition(".")
            parameter = parameters[int(index)]
            # In the parameter's own order in memory: the fused step goes through both side by side.
            laid = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
            moments.setdefault(int(index), {})[moment] = laid.detach()
        self._optimizer.load_state_dict({**state, "state": moments})
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(saved.position.scaler))
        position = saved.position
        self._best_epoch, self._best, self._curve = position.best_epoch, position.best, list(position.curve)
        self._done = (position.epochs, position.batches)
        self._tally = position.tally if self._accelerator.is_main_process else Tally()
        self.saved_at = _told(self._done)

    def _is_stale(self, epoch: int) -> bool:
        patience = self._run.options.patience
        return patience > 0 and epoch - self._best_epoch >= patience

    def _run_epoch(self, epoch: int, progress: Progress) -> None:
        run, options = self._run, self._run.options
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        batches = shuffled_batches(
            len(run.feed.images),
            options.batch_size,
            seed=seed_of(options.seed, "order", epoch),
            share=(rank, processes),
            weights=self._weights,
        )
        begun = self._done[1]
        self._train_mode()
        self._optimizer.zero_grad()
        seen, started = 0, time.monotonic()
        bank = epoch % run.banks if run.banks else epoch
        for index, batch in enumerate(run.feed.read(batches[begun:], bank), start=begun):
            torch.manual_seed(seed_of(options.seed, "step", epoch, index, rank))
            first = index - index % options.accumulate  # of the batches that make one step together
            summed = min(options.accumulate, self._batches - first)
            steps = index == first + summed - 1
            step = epoch * self._steps_per_epoch + index // options.accumulate
            rate = self._set_learning_rate(step)
            where = f"step {index + 1} of epoch {epoch + 1} (learning rate {rate:.3g})"
            # The processes' gradients are averaged, each with equal weight: a share of one image more counts for more.
            size = _global_batch_size(len(run.feed.images), self._batches, index)
            scale = len(batch.positions) * processes / size / summed
            loss, right = self._learn(batch, step, scale=scale, steps=steps, where=where)
            self._tally = self._tally.plus(loss, right, len(batch.positions))
            seen += len(batch.positions)
            speed = seen * processes / max(time.monotonic() - started, 1e-9)
            progress.advance(note=f"epoch {epoch + 1}/{self._epochs}, {self._note(speed)}")
            self._done = (epoch, index + 1)
            # Between two steps alone, where no gradient is waiting: at the first one behind each multiple.
            every = options.save_every
            if steps and every and (index + 1) // every > first // every and index + 1 < self._batches:
                self._save()
        self._images += seen * processes
        self._done = (epoch + 1, 0)

    def _train_mode(self) -> None:
        self._model.train()
        self._frozen.to_evaluation()
        if self._run.options.freeze_batch_norm:
            freeze_batch_norm(self._bare())

    def _learn(self, batch: ViewBatch, step: int, *, scale: float, steps: bool, where: str) -> tuple[float, float]:
        """Do one batch: forward, backward, and with `steps` the optimizer's step. Returns the loss and the share of right decisions."""
        accelerator, run = self._accelerator, self._run
        answers = None if run.teacher is None else run.teacher(batch)
        progress = step / (self._epochs * self._steps_per_epoch)
        # Around the forward pass as well: that is where processes agree on whether gradients are exchanged.
        with contextlib.nullcontext() if steps else accelerator.no_sync(self._model):
            with accelerator.autocast():
                loss, logits = self._model(batch, answers, progress)
            value = float(loss.detach())
            self._check_finite("loss", value, where)
            accelerator.backward(loss * scale)
        if steps:
            self._step(where)
        wanted = _wanted(batch, answers, run)
        return value, 0.0 if wanted is None else _share_right(logits.detach(), wanted, run.task)

    def _step(self, where: str) -> None:
        limit = self._run.options.clip_norm or math.inf
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), limit)
        if norm is not None and self._accelerator.scaler is None:  # the scaler of fp16 skips such a step by itself
            self._check_finite("gradient's norm", float(norm), where)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._run.options.ema:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the kept weights towards the trained ones; buffers are copied."""
        share, trained = 1.0 - self._run.options.ema, self._bare().classifier
        for average, weight in zip(self._kept.parameters(), trained.parameters(), strict=True):
            average.lerp_(weight, share)
        for buffer, source in zip(self._kept.buffers(), trained.buffers(), strict=True):
            buffer.copy_(source)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate, keep the checkpoint where it is the best, and save the state."""
        run, main = self._run, self._accelerator.is_main_process
        if not run.options.ema:
            self._kept.load_state_dict(self._bare().classifier.state_dict())
        evaluation = self._evaluation()
        self._check_finite("validation loss", evaluation.loss, f"the end of epoch {epoch + 1}")
        tally = self._tally.over(self._accelerator)
        self._tally = Tally()
        self._curve.append(
            EpochRecord(
                loss=tally.loss / tally.images,
                right=tally.right / tally.images,
                val_score=evaluation.score,
                val_loss=evaluation.loss,
            )
        )
        if evaluation.better_than(self._best):
            self._best_epoch, self._best = epoch + 1, (evaluation.score, evaluation.loss)
            if main:
                run.folder.save_best(epoch + 1, lambda folder: run.write(folder, self._kept, evaluation, epoch + 1))
        self._save()
        if run.on_epoch is not None and main:
            run.on_epoch(epoch + 1, evaluation.score)

    def _evaluation(self) -> Evaluation:
        """Evaluate in the main process; the others are told, so that all decide alike."""
        told = [self._run.evaluate(self._kept) if self._accelerator.is_main_process else None]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(told)
        assert told[0] is not None
        return told[0]

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            scaler = self._accelerator.scaler
            position = Position(
                epochs=self._done[0],
                batches=self._done[1],
                best_epoch=self._best_epoch,
                best=self._best,
                scaler=scaler.state_dict() if scaler is not None else {},
                tally=self._tally,
                curve=tuple(self._curve),
            )
            self._run.folder.save(position, self._tensors())
            self.saved_at = _told(self._done)
        self._accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"learner.{name}": tensor for name, tensor in self._bare().state_dict().items()}
        tensors.update({f"kept.{name}": tensor for name, tensor in self._kept.state_dict().items()})
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()})
        return tensors

    def _bare(self) -> Learner:
        bare = self._accelerator.unwrap_model(self._model)
        assert isinstance(bare, Learner)
        return bare

    def _set_learning_rate(self, step: int) -> float:
        steps = self._epochs * self._steps_per_epoch
        warmup_steps = round(self._run.options.warmup * steps)
        rate = learning_rate_at(step, steps=steps, warmup_steps=warmup_steps, peak=self._peak)
        set_learning_rate(self._optimizer, rate)
        return rate

    def _note(self, speed: float) -> str:
        tally, note = self._tally, ""
        if self._run.has_labels or self._run.teacher is not None:
            what = "accuracy" if self._run.has_labels else "agreement"
            note = f", {what} {tally.right / tally.images:.1%}"
        best = f", best val {self._best[0]:.1%}" if self._best else ""
        return f"loss {tally.loss / tally.images:.3f}{note}, {speed:,.0f} images/s{best}"

    def _check_finite(self, what: str, value: float, where: str) -> None:
        if math.isfinite(value):
            return
        kept = (
            f"the best checkpoint so far is `{self._run.folder.best(self._best_epoch)}`"
            if self._best
            else "no epoch was complete"
        )
        raise EdgebertError(
            f"the {what} is {value} at {where}; {kept}",
            expected="a finite number",
            hint=f"a lower learning rate, such as --learning-rate {self._peak / 3:.1g}",
        )


def _shares(learner: Learner, layer_decay: float) -> list[tuple[str, nn.Parameter, float]]:
    """Return name, parameter and share of the learning rate: that of a block is `layer_decay` times the next one's."""
    named = list(learner.named_parameters())
    if layer_decay == 1.0:
        return [(name, parameter, 1.0) for name, parameter in named]
    layers = {f"classifier.model.{name}": layer for name, layer in layers_of(learner.classifier.model).items()}
    top = max(layers.values())
    return [(name, parameter, layer_decay ** (top - layers.get(name, top))) for name, parameter in named]


def _wanted(batch: ViewBatch, answers: Answers | None, run: Run) -> Tensor | None:
    """Return what the progress compares with: the targets, else the teacher's probabilities, else nothing."""
    if run.has_labels:
        return batch.targets
    if answers is None:
        return None
    return answers.logits.sigmoid() if run.task == "multi-label" else answers.logits


def _share_right(logits: Tensor, wanted: Tensor, task: Task) -> float:
    if task == "multi-label":
        return float(((logits > 0.0) == (wanted > 0.5)).float().mean())
    return float((logits.argmax(dim=1) == wanted.argmax(dim=1)).float().mean())


def _global_batch_size(images: int, batches: int, index: int) -> int:
    """Return the images of batch `index` over all processes, as `numpy.array_split` cuts them."""
    return images // batches + (1 if index < images % batches else 0)


def _told(done: tuple[int, int]) -> str:
    epochs, batches = done
    return f"epoch {epochs}" + (f" and {batches} batches" if batches else "")


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
