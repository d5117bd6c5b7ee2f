"""The training loop: from a model and images to the best and the last weights, resumable after any interruption.

Run alone or under `accelerate launch` / `torchrun`: `batch_size` counts the images of all processes together, so the
same options mean the same training. Only the main process writes.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from edgebert._progress import Progress
from edgebert.errors import EdgebertError, UnavailableError
from edgebert.models.pixels import PixelClassifier
from edgebert.train.augment import augmentation, float_views, mixed
from edgebert.train.batches import ImageBatches, shuffled_batches
from edgebert.train.evaluation import Evaluation, evaluated
from edgebert.train.objective import Objective
from edgebert.train.optimizer import adamw, learning_rate_at
from edgebert.train.options import LoopOptions, MixedPrecision
from edgebert.train.state import Position, RunFolder, SavedRun

_log = logging.getLogger("edgebert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything one run needs.

    Attributes:
        classifier: what is trained; changed in place.
        objective: from views and targets to the loss.
        train: the images to learn from.
        val: the images that choose the best epoch.
        class_names: in the order of the logits.
        view_size: (height, width) of the images in `train`.
        options: with nothing left open.
        folder: where the state is kept.
        write: fills a folder with the checkpoint of a classifier and what it reached in an epoch, counted from 1.
    """

    classifier: PixelClassifier
    objective: Objective
    train: ImageBatches
    val: ImageBatches
    class_names: tuple[str, ...]
    view_size: tuple[int, int]
    options: LoopOptions
    folder: RunFolder
    write: Callable[[Path, PixelClassifier, Evaluation, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        best: the folder of the best checkpoint.
        best_epoch: counted from 1.
        last: the classifier after the last epoch.
        images_per_second: of training, as far as this process did it; 0 where it did none.
    """

    best: Path
    best_epoch: int
    last: PixelClassifier
    images_per_second: float


def run_epochs(run: Run, accelerator: Accelerator, saved: SavedRun | None = None) -> Outcome:
    """Train all epochs that are not done yet.

    The global random generators of torch are as before when this returns.

    Args:
        run: what to train.
        accelerator: of `new_accelerator`.
        saved: an interrupted run to go on with.

    Raises:
        EdgebertError: the loss or the gradient is no finite number; the state of the last complete epoch stays.
    """
    cuda = [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        loop = _Loop(run, accelerator)
        if saved is not None:
            loop.restore(saved)
        try:
            return loop.run_all()
        except KeyboardInterrupt:
            if loop.position is not None:
                _log.info(
                    "interrupted: `train` and `distill` go on after epoch %d with --resume, a recipe by itself",
                    loop.position.epochs,
                )
            raise


def new_accelerator(mixed_precision: MixedPrecision) -> Accelerator:
    """Return the Accelerator of one run: CUDA where there is a device, else the CPU.

    Raises:
        UnavailableError: the device does not have this precision.
    """
    AcceleratorState._reset_state()  # a process may train twice, a teacher and its student, in two precisions
    cuda = torch.cuda.is_available()
    if mixed_precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "no"
    elif mixed_precision == "fp16" and not cuda:
        raise UnavailableError("mixed precision `fp16` on a CPU", expected="a CUDA device, or `auto`, `no`, `bf16`")
    else:
        precision = mixed_precision
    return Accelerator(mixed_precision=precision, cpu=not cuda)


def seed_of(*position: int | str) -> int:
    """Return a 63-bit seed that depends on every part of a position and on nothing else.

    >>> seed_of(0, "order", 1) == seed_of(0, "order", 1), seed_of(0, "order", 1) == seed_of(0, "order", 2)
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(position).encode()).digest()[:8], "big") >> 1


class _Loop:
    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        options = run.options
        assert options.epochs is not None  # filled in by LoopOptions.derived
        assert options.learning_rate is not None
        self._run, self._accelerator = run, accelerator
        self._epochs, self._peak = options.epochs, options.learning_rate
        # What is evaluated and kept: the running average of the weights, or a copy of them.
        self._kept = copy.deepcopy(run.classifier).to(accelerator.device).requires_grad_(False)
        optimizer = adamw(run.classifier, weight_decay=options.weight_decay)
        self._model, self._optimizer = accelerator.prepare(run.classifier, optimizer)
        height, width = run.view_size
        self._augment = augmentation(options, height=height, width=width).to(accelerator.device)
        batches = -(-len(run.train) // options.batch_size)
        self._steps_per_epoch = -(-batches // options.accumulate)
        self._images = self._seconds = 0.0
        self.position: Position | None = None

    def run_all(self) -> Outcome:
        """Run the epochs that are left; evaluate and save after each."""
        done = self.position.epochs if self.position else 0
        batches = -(-len(self._run.train) // self._run.options.batch_size)
        stream = None if self._accelerator.is_main_process else io.StringIO()
        with Progress("train", (self._epochs - done) * batches, stream) as progress:
            for epoch in range(done, self._epochs):
                started = time.monotonic()
                self._run_epoch(epoch, progress)
                self._seconds += time.monotonic() - started
                self._finish_epoch(epoch)
        assert self.position is not None
        return Outcome(
            best=self._run.folder.best(self.position.best_epoch),
            best_epoch=self.position.best_epoch,
            last=self._kept,
            images_per_second=self._images / self._seconds if self._seconds else 0.0,
        )

    def restore(self, saved: SavedRun) -> None:
        """Go to where an interrupted run was."""
        self._bare().load_state_dict(_with_prefix(saved.tensors, "model."))
        self._kept.load_state_dict(_with_prefix(saved.tensors, "kept."))
        state = self._optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(saved.tensors, "optimizer.").items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self._optimizer.load_state_dict({**state, "state": moments})
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(saved.position.scaler))
        self.position = saved.position

    def _run_epoch(self, epoch: int, progress: Progress) -> None:
        run, options = self._run, self._run.options
        share = (self._accelerator.process_index, self._accelerator.num_processes)
        batches = shuffled_batches(
            len(run.train), options.batch_size, seed=seed_of(options.seed, "order", epoch), share=share
        )
        self._model.train()
        self._optimizer.zero_grad()
        right = seen = 0
        total_loss = 0.0
        started = time.monotonic()
        for index, (pixels, labels) in enumerate(run.train.read(batches)):
            torch.manual_seed(seed_of(options.seed, "step", epoch, index, share[0]))
            first = index - index % options.accumulate  # of the batches that make one step together
            summed = min(options.accumulate, len(batches) - first)
            steps = index == first + summed - 1
            rate = self._set_learning_rate(epoch * self._steps_per_epoch + index // options.accumulate)
            where = f"step {index + 1} of epoch {epoch + 1} (learning rate {rate:.3g})"
            loss, correct = self._learn(pixels, labels, scale=1.0 / summed, steps=steps, where=where)
            seen, right, total_loss = seen + len(labels), right + correct, total_loss + loss * len(labels)
            speed = seen / max(time.monotonic() - started, 1e-9) * share[1]
            progress.advance(
                note=f"epoch {epoch + 1}/{self._epochs}, {self._note(total_loss / seen, right / seen, speed)}"
            )
        self._images += seen * share[1]

    def _learn(self, pixels: Tensor, labels: Tensor, *, scale: float, steps: bool, where: str) -> tuple[float, int]:
        """Do one batch: forward, backward, and with `steps` the optimizer's step. Returns loss and right decisions."""
        accelerator, run = self._accelerator, self._run
        with torch.no_grad():
            views = self._augment(float_views(pixels.to(accelerator.device))).clamp(0.0, 1.0)
            targets = functional.one_hot(labels.to(accelerator.device), len(run.class_names)).float()
            views, targets = mixed(views, targets, strength=run.options.mixup)
        with accelerator.autocast():
            loss, logits = run.objective(self._model, views, targets)
        value = float(loss.detach())
        self._check_finite("loss", value, where)
        if not steps:
            with accelerator.no_sync(self._model):
                accelerator.backward(loss * scale)
        else:
            accelerator.backward(loss * scale)
            self._step(where)
        return value, int((logits.argmax(dim=1) == targets.argmax(dim=1)).sum())

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
        share = 1.0 - self._run.options.ema
        for average, weight in zip(self._kept.parameters(), self._bare().parameters(), strict=True):
            average.lerp_(weight, share)
        for buffer, source in zip(self._kept.buffers(), self._bare().buffers(), strict=True):
            buffer.copy_(source)

    def _finish_epoch(self, epoch: int) -> None:
        """Evaluate, keep the checkpoint where it is the best, and save the state."""
        run = self._run
        if not run.options.ema:
            self._kept.load_state_dict(self._bare().state_dict())
        evaluation = evaluated(self._kept, run.val, run.class_names)
        self._check_finite("validation loss", evaluation.loss, f"the end of epoch {epoch + 1}")
        before = self.position
        improved = before is None or evaluation.better_than(before.best)
        scaler = self._accelerator.scaler
        self.position = Position(
            epochs=epoch + 1,
            best_epoch=epoch + 1 if improved or before is None else before.best_epoch,
            best=(evaluation.top1, evaluation.loss) if improved or before is None else before.best,
            scaler=scaler.state_dict() if scaler is not None else {},
        )
        if self._accelerator.is_main_process:
            if improved:
                run.folder.save_best(epoch + 1, lambda folder: run.write(folder, self._kept, evaluation, epoch + 1))
            run.folder.save(self.position, self._tensors())
        self._accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self._bare().state_dict().items()}
        tensors.update({f"kept.{name}": tensor for name, tensor in self._kept.state_dict().items()})
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()})
        return tensors

    def _bare(self) -> nn.Module:
        bare: nn.Module = self._accelerator.unwrap_model(self._model)
        return bare

    def _set_learning_rate(self, step: int) -> float:
        steps = self._epochs * self._steps_per_epoch
        warmup_steps = round(self._run.options.warmup * steps)
        rate = learning_rate_at(step, steps=steps, warmup_steps=warmup_steps, peak=self._peak)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _note(self, loss: float, accuracy: float, speed: float) -> str:
        note = f"loss {loss:.3f}, accuracy {accuracy:.1%}, {speed:,.0f} images/s"
        return f"{note}, best val top-1 {self.position.best[0]:.1%}" if self.position else note

    def _check_finite(self, what: str, value: float, where: str) -> None:
        if math.isfinite(value):
            return
        kept = (
            f"the best checkpoint so far is `{self._run.folder.best(self.position.best_epoch)}`"
            if self.position
            else "no epoch was complete"
        )
        raise EdgebertError(
            f"the {what} is {value} at {where}; {kept}",
            expected="a finite number",
            hint=f"a lower learning rate, such as --learning-rate {self._peak / 3:.1g}",
        )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
