"""The options of `train` and `distill`, checked where they are made.

>>> TrainOptions(model="nano", epochs=3).batch_size
64
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from edgebert._json import JsonObject, JsonValue
from edgebert.errors import UsageError
from edgebert.examples import check_example_count
from edgebert.preprocess import MAX_SIDE, Resize

if TYPE_CHECKING:
    from typing_extensions import Self

Augmentation = Literal["crop", "flip", "randaugment", "rotate", "shift", "vertical-flip"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]

# These change how a run is carried out and not what comes out of it, so no artefact stores them and a resumed run may
# change them. `model`, `student` and `revision` may be paths or names; the artefact stores what they held, by SHA-256.
_NOT_STORED = frozenset({"class_map", "force", "model", "resume", "revision", "student", "text_weights", "workers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """What `train` and `distill` have in common.

    Attributes:
        image_size: side of the network's square input, in pixels. None: the pretrained model's or teacher's own; for a
            preset without a teacher, from the data.
        resize: how images become square, for a preset. None: the teacher's way, or `stretch`.
        epochs: passes over the training split. None: 100 for a preset, 10 for a pretrained model.
        batch_size: images of the largest batch; an epoch is cut into batches of equal size, give or take one image.
        accumulate: batches whose gradients are summed up for one step of the optimizer.
        learning_rate: the highest. None: 1e-3 for a preset, 5e-5 for a pretrained model.
        weight_decay: of AdamW; biases, norms, positions and class tokens have none.
        warmup: share of all steps in which the learning rate rises from 0.
        clip_norm: the gradient's norm is cut to this; 0 leaves it alone.
        mixed_precision: `auto` is bf16 where a CUDA device has it, else full precision.
        augment: what is done to training images, each draw anew: `shift` and `rotate` (default; no class changes its
            meaning by them), `crop` (of random size and place), `flip` (left and right), `vertical-flip`, `randaugment`
            (two of its operations at strength 9). Empty for none.
        shift: for `shift`, the largest, as a share of the image's side.
        rotation: for `rotate`, the largest, in degrees.
        crop_scale: for `crop`, the smallest, as a share of the image's area.
        mixup: images are blended in pairs with shares drawn from Beta(mixup, mixup); 0 for never, 1 for even shares.
        ema: decay of the running average of the weights, per step; the average is what is evaluated and kept. 0 for none.
        seed: every random draw follows from it.
        examples: images that travel with the checkpoint, for parity checks and canaries; 0 for none.
        workers: threads that decode images; 0 for one by physical core.
        class_map: class name in the data -> class name of the model.
        max_skipped: largest share of unreadable images before the run stops.
        revision: of the model or teacher, where it comes from the hub.
        resume: go on with the interrupted run of the same output.
        force: replace an existing output.
    """

    image_size: int | None = None
    resize: Resize | None = None
    epochs: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float | None = None
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    mixed_precision: MixedPrecision = "auto"
    augment: tuple[Augmentation, ...] = ("shift", "rotate")
    shift: float = 0.125
    rotation: float = 10.0
    crop_scale: float = 0.6
    mixup: float = 0.0
    ema: float = 0.0
    seed: int = 0
    examples: int = 4
    workers: int = 0
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    revision: str | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 4, MAX_SIDE)
        check_choice("resize", self.resize, (None, *get_args(Resize)))
        check_range("epochs", self.epochs, 1, 1_000_000)
        check_range("batch_size", self.batch_size, 1, 65_536)
        check_range("accumulate", self.accumulate, 1, 65_536)
        check_range("learning_rate", self.learning_rate, 1e-9, 10.0)
        check_range("weight_decay", self.weight_decay, 0.0, 10.0)
        check_range("warmup", self.warmup, 0.0, 0.9)
        check_range("clip_norm", self.clip_norm, 0.0, 1e6)
        check_choice("mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        for name in self.augment:
            check_choice("augment", name, get_args(Augmentation))
        if len(set(self.augment)) < len(self.augment):
            raise UsageError(f"augment `{','.join(self.augment)}`", expected="each name once")
        check_range("shift", self.shift, 0.0, 0.5)
        check_range("rotation", self.rotation, 0.0, 180.0)
        check_range("crop_scale", self.crop_scale, 0.01, 1.0)
        check_range("mixup", self.mixup, 0.0, 10.0)
        check_range("ema", self.ema, 0.0, 0.99999)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_example_count(self.examples)
        check_range("workers", self.workers, 0, 1024)
        check_range("max_skipped", self.max_skipped, 0.0, 0.99)

    def derived(self, *, image_size: int, resize: Resize, epochs: int, learning_rate: float) -> Self:
        """Return these options with what the user left open filled in."""
        return replace(
            self,
            image_size=image_size,
            resize=resize,
            epochs=self.epochs or epochs,
            learning_rate=self.learning_rate or learning_rate,
        )

    def to_json(self) -> JsonObject:
        """Return what decides the outcome, as an artefact stores it: no path, and nothing about how it was carried out."""
        stored: dict[str, JsonValue] = {}
        for entry in fields(self):
            if entry.name not in _NOT_STORED:
                value: JsonValue = getattr(self, entry.name)
                stored[entry.name] = list(value) if isinstance(value, tuple) else value
        return stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(LoopOptions):
    """How to train a checkpoint from labels.

    Attributes:
        model: a preset, a checkpoint folder, or a model id of the Hugging Face hub.
        text_weights: for a BERT preset: a text BERT (folder or hub id) whose encoder it starts from.
    """

    model: str
    text_weights: str | None = None

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        check_named("model", self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions(LoopOptions):
    """How to train a student from a teacher.

    Attributes:
        student: a preset or a checkpoint folder.
        temperature: T; both distributions are softened by it.
        alpha: weight of the teacher's answers, in [0, 1]; the labels get the rest.
    """

    student: str
    # reference: short schedules want a high temperature (compression.md, section 12: 4 up to 100 epochs), labels little.
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        check_named("student", self.student)
        check_range("temperature", self.temperature, 0.05, 1000.0)
        check_range("alpha", self.alpha, 0.0, 1.0)


def check_range(name: str, value: float | None, lowest: float, highest: float) -> None:
    """Raise `UsageError` unless `value` is None or a finite number in [lowest, highest]."""
    if value is not None and not (math.isfinite(value) and lowest <= value <= highest):
        raise UsageError(f"{name} `{value}`", expected=f"{lowest:,} to {highest:,}")


def check_choice(name: str, value: str | None, choices: Iterable[str | None]) -> None:
    """Raise `UsageError` unless `value` is one of `choices`."""
    allowed = tuple(choices)
    if value not in allowed:
        raise UsageError(f"{name} `{value}`", expected=", ".join(choice for choice in allowed if choice))


def check_named(name: str, value: str) -> None:
    """Raise `UsageError` where a name is empty."""
    if not value.strip():
        raise UsageError(f"{name} is empty", expected="a preset, a checkpoint folder or a model id")
