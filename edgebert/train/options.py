"""The options of `train` and `distill`, checked where they are made.

docs/options.md says for each what it is for, its default and where that comes from; a test holds the page against this file.

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

    from edgebert.train.views import ViewSpec

Augmentation = Literal["crop", "erase", "flip", "jitter", "mask", "randaugment", "rotate", "shift", "vertical-flip"]
MixedPrecision = Literal["auto", "no", "bf16", "fp16"]
DataTask = Literal["auto", "single-label", "multi-label"]
Device = Literal["auto", "cpu", "cuda"]
Sampling = Literal["natural", "balanced"]
ClassWeights = Literal["none", "inverse", "effective"]
Init = Literal["auto", "teacher", "anew"]
Pretrain = Literal["none", "mim"]

# These change how a run is carried out and not what comes out of it, so no artefact stores them and a resumed run may
# change them. `model`, `student` and `revision` may be paths or names; the artefact stores what they held, by SHA-256.
_NOT_STORED = frozenset(
    {
        "cache",
        "force",
        "gradient_checkpointing",
        "model",
        "pretrain_data",
        "resume",
        "revision",
        "save_every",
        "student",
        "teachers",
        "text_model",
        "text_weights",
        "workers",
    }
)


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
        device: `auto` is CUDA where there is a device, else the CPU.
        augment: what is done to training images, each view anew (`edgebert.train.views`): `shift` and `rotate` (default;
            no class changes its meaning by them), `crop` (of random size and place), `flip` (left and right),
            `vertical-flip`, `jitter` (brightness, contrast, saturation, hue), `randaugment` (two of its operations at
            strength 9), `erase` (a rectangle), `mask` (patches). Empty for none.
        shift: for `shift`, the largest, as a share of the image's side.
        rotation: for `rotate`, the largest, in degrees.
        crop_scale: for `crop`, the smallest, as a share of the image's area.
        jitter: for `jitter`, the largest change, as a share.
        erase: for `erase`, the probability that an image loses a rectangle.
        mask: for `mask`, the share of patches that are hidden.
        mixup: images are blended in pairs with shares drawn from Beta(mixup, mixup); 0 for never, 1 for even shares.
        cutmix: a rectangle of one image is laid over another, its area drawn from Beta(cutmix, cutmix); 0 for never. With
            `mixup` as well, each image gets one of the two.
        sampling: `natural` shows every image once an epoch; `balanced` draws as many from each class, some twice.
        class_weights: weight of each class in the label loss: `none`, `inverse` to its images, or `effective` number.
        smoothing: of the labels, spread evenly over all classes.
        ema: decay of the running average of the weights, per step; the average is what is evaluated and kept. 0 for none.
        freeze: lower blocks, and the embedding below them, that keep the weights they start from.
        freeze_batch_norm: batch norms keep the statistics they start from.
        layer_decay: each block's learning rate is this times that of the block above it; 1 for the same everywhere.
        gradient_checkpointing: recompute each block in the backward pass: less memory, a third more time.
        patience: epochs without a better one after which the run stops; 0 to run all.
        save_every: batches after which the state is saved, besides after every epoch; 0 for no more than that.
        seed: every random draw follows from it.
        view_seed: seed of the views alone, so that runs of different seeds can share a cache. None: `seed`.
        task: `auto` for what the labels say; `multi-label` where an image may have several although none has; `single-label`
            refuses several.
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
    device: Device = "auto"
    augment: tuple[Augmentation, ...] = ("shift", "rotate")
    shift: float = 0.125
    rotation: float = 10.0
    crop_scale: float = 0.6
    jitter: float = 0.3
    erase: float = 0.25
    mask: float = 0.3
    mixup: float = 0.0
    cutmix: float = 0.0
    sampling: Sampling = "natural"
    class_weights: ClassWeights = "none"
    smoothing: float = 0.0
    ema: float = 0.0
    freeze: int = 0
    freeze_batch_norm: bool = False
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False
    patience: int = 0
    save_every: int = 0
    seed: int = 0
    view_seed: int | None = None
    task: DataTask = "auto"
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
        check_choice("device", self.device, get_args(Device))
        for name in self.augment:
            check_choice("augment", name, get_args(Augmentation))
        if len(set(self.augment)) < len(self.augment):
            raise UsageError(f"augment `{','.join(self.augment)}`", expected="each name once")
        check_range("shift", self.shift, 0.0, 0.5)
        check_range("rotation", self.rotation, 0.0, 180.0)
        check_range("crop_scale", self.crop_scale, 0.01, 1.0)
        check_range("jitter", self.jitter, 0.0, 1.0)
        check_range("erase", self.erase, 0.0, 1.0)
        check_range("mask", self.mask, 0.0, 0.95)
        check_range("mixup", self.mixup, 0.0, 10.0)
        check_range("cutmix", self.cutmix, 0.0, 10.0)
        check_choice("sampling", self.sampling, get_args(Sampling))
        check_choice("class_weights", self.class_weights, get_args(ClassWeights))
        check_range("smoothing", self.smoothing, 0.0, 0.9)
        check_range("freeze", self.freeze, 0, 1024)
        check_range("layer_decay", self.layer_decay, 0.01, 1.0)
        check_range("patience", self.patience, 0, 1_000_000)
        check_range("save_every", self.save_every, 0, 10**9)
        check_range("view_seed", self.view_seed, 0, 2**63 - 1)
        check_range("ema", self.ema, 0.0, 0.99999)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_choice("task", self.task, get_args(DataTask))
        check_example_count(self.examples)
        check_range("workers", self.workers, 0, 1024)
        check_range("max_skipped", self.max_skipped, 0.0, 0.99)

    def view_spec(self, *, height: int, width: int) -> ViewSpec:
        """Return how training images of this size become views."""
        from edgebert.train.views import ViewSpec  # here, so that a recipe is read without torch

        return ViewSpec(
            height=height,
            width=width,
            augment=self.augment,
            shift=self.shift,
            rotation=self.rotation,
            crop_scale=self.crop_scale,
            jitter=self.jitter,
            erase=self.erase,
            mask=self.mask,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )

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
                if isinstance(value, Mapping):
                    value = dict(value)
                stored[entry.name] = list(value) if isinstance(value, tuple) else value
        return stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(LoopOptions):
    """How to train a checkpoint from labels.

    Attributes:
        model: a preset, a shape such as `d64-l3-h2-r2`, a checkpoint folder, or a model id of the Hugging Face hub.
        text_weights: for a BERT preset: a text BERT (folder or hub id) whose encoder it starts from.
        text_model: make a fusion teacher, which reads the `text` of each image as well: a text BERT with its tokenizer
            (folder or hub id), or `scratch` for a small one.
        pretrain: `mim` trains the network on hidden patches first, without labels.
        pretrain_epochs: of that.
        pretrain_data: its images, labelled or not. None: the training split.
    """

    model: str
    text_weights: str | None = None
    text_model: str | None = None
    pretrain: Pretrain = "none"
    pretrain_epochs: int = 50
    pretrain_data: str | None = None

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        check_named("model", self.model)
        check_choice("pretrain", self.pretrain, get_args(Pretrain))
        check_range("pretrain_epochs", self.pretrain_epochs, 1, 1_000_000)
        if self.pretrain_data is not None and self.pretrain == "none":
            raise UsageError("pretrain_data without pretrain", expected="both, or neither", hint="--pretrain mim")
        if self.text_model is not None and self.pretrain != "none":
            raise UsageError(
                "pretrain with text_model", expected="one of the two: a fusion teacher starts from its parts"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions(LoopOptions):
    """How to train a student from one teacher, or from several.

    Attributes:
        student: a preset, a shape such as `d64-l3-h2-r2`, or a checkpoint folder.
        teachers: further teachers, checkpoint folders or hub ids, whose probabilities are averaged with the first one's.
        unlabelled: DATA is images at any depth, whatever their folders are called; the teacher is the judge.
        init: `teacher` starts the student from the teacher's own weights, cut to its size; `anew` does not; `auto` does
            where the blocks are of one type.
        temperature: T; both distributions are softened by it.
        kl_weight: of T^2 * KL between teacher and student, on the same views.
        label_weight: of the label loss. None: 0.1, and 0 with `unlabelled`.
        hard_weight: of the label loss against the teacher's decision.
        early_weight: of the cosine distance between the tokens of the first `early_layers` blocks, lifted to the teacher's width.
        early_layers: how many blocks that are.
        pooled_weight: of the cosine distance between the pooled tokens of the last blocks, lifted likewise.
        relation_weight: of the distance between the batch's similarities, teacher's and student's.
        feature_until: share of the run after which the terms on features (early, pooled, relation) end.
        cache: folder for the teacher's answers, kept and used again by later runs. None: none is kept.
        cache_views: views of each image that are answered once and then read; they come again when there are more epochs.
            0: the teacher answers in every step, and with `cache`, 16 or the epochs where these are fewer.
    """

    student: str
    teachers: tuple[str, ...] = ()
    unlabelled: bool = False
    init: Init = "auto"
    # reference: short schedules want a high temperature (compression.md, section 12: 4 up to 100 epochs), labels little.
    temperature: float = 4.0
    kl_weight: float = 0.9
    label_weight: float | None = None
    hard_weight: float = 0.0
    early_weight: float = 0.0
    early_layers: int = 2
    pooled_weight: float = 0.0
    relation_weight: float = 0.0
    feature_until: float = 0.7
    cache: str | None = None
    cache_views: int = 0

    def __post_init__(self) -> None:
        LoopOptions.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        check_named("student", self.student)
        check_choice("init", self.init, get_args(Init))
        check_range("temperature", self.temperature, 0.05, 1000.0)
        for name in ("kl", "label", "hard", "early", "pooled", "relation"):
            check_range(f"{name}_weight", getattr(self, f"{name}_weight"), 0.0, 1000.0)
        check_range("early_layers", self.early_layers, 1, 1024)
        check_range("feature_until", self.feature_until, 0.0, 1.0)
        check_range("cache_views", self.cache_views, 0, 65_536)
        if self.unlabelled and self.label_weight:
            raise UsageError(f"label_weight `{self.label_weight}` without labels", expected="0, or data with labels")
        asks_for_labels = {
            "class_map": bool(self.class_map),
            "sampling": self.sampling != "natural",
            "class_weights": self.class_weights != "none",
            "smoothing": self.smoothing > 0.0,
        }
        asked = [name for name, given in asks_for_labels.items() if given]
        if self.unlabelled and asked:
            raise UsageError(f"{asked[0]} without labels", expected="its default, or data with labels")
        if not (self.kl_weight or self.labels_weigh or self.hard_weight or self.uses_features):
            raise UsageError("every weight is 0", expected="at least one term of the loss", hint="--kl-weight 0.9")
        if self.uses_cache and self.uses_features:
            raise UsageError(
                "a cache with terms on features: it holds logits only",
                expected="early_weight, pooled_weight and relation_weight 0, or no cache",
            )

    @property
    def labels_weigh(self) -> float:
        """Weight of the label loss, the default filled in."""
        return (0.0 if self.unlabelled else 0.1) if self.label_weight is None else self.label_weight

    @property
    def uses_features(self) -> bool:
        """Whether a term looks inside the teacher."""
        return bool(self.early_weight or self.pooled_weight or self.relation_weight)

    @property
    def uses_cache(self) -> bool:
        """Whether the teacher's answers are kept in files."""
        return bool(self.cache_views or self.cache)


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
