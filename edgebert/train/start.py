"""Where a run starts: an untrained preset or a checkpoint's weights, and the preprocessing that goes with it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from edgebert._files import sha256_of_folder
from edgebert._progress import tracked
from edgebert.card import ImageSet, Provenance
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.models.checkpoint import PRESETS, Checkpoint, is_preset, load_checkpoint, new_model, with_classes
from edgebert.models.fusion import is_fusion, new_fusion
from edgebert.models.source import find_weights
from edgebert.preprocess import Preprocessing, Resize, load_image
from edgebert.train.options import LoopOptions

_log = logging.getLogger("edgebert")

_PRESET_EPOCHS, _PRETRAINED_EPOCHS = 100, 10
_PRESET_LEARNING_RATE, _PRETRAINED_LEARNING_RATE = 1e-3, 5e-5

# Sides a square input is given from the data: multiples of the strides and patches of the presets, and the sizes that
# public data sets and pretrained models come in.
_SIDES = (8, 12, 16, 24, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224)

_MEASURED_IMAGES = 1024  # for the default size, the mean and the deviation: at most this many training images are read
_LEAST_STD = 0.02  # of 1: five grey levels; a constant channel would be divided by next to nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A model before training.

    Attributes:
        model: with a head for the classes of the data.
        name: the preset, or the architecture of the checkpoint.
        preprocessing: how its images are made.
        epochs: the default for such a start.
        learning_rate: the default for such a start.
        made_from: role -> SHA-256 of the weights it starts from; empty for random ones.
        source: provenance of the checkpoint it starts from.
        seen: images that checkpoint has seen.
        untrained: whether all weights are random.
    """

    model: PreTrainedModel
    name: str
    preprocessing: Preprocessing
    epochs: int
    learning_rate: float
    made_from: Mapping[str, str]
    source: Provenance | None
    seen: ImageSet
    untrained: bool


def start_from(
    name: str,
    options: LoopOptions,
    dataset: Dataset,
    *,
    teacher: Checkpoint | None = None,
    text_weights: str | None = None,
    text_model: str | None = None,
    revision: str | None = None,
) -> Start:
    """Make the model that a run trains.

    Args:
        name: a preset, a shape, a checkpoint folder or a hub id.
        options: of the run.
        dataset: its class names, in the order of the logits; a preset's default size, mean and deviation are measured on
            its training split.
        teacher: a preset takes over its preprocessing, but for what the options say.
        text_weights: for a BERT preset, a text BERT to start from.
        text_model: make a fusion model of this text BERT, or of a small one where this is `scratch`.
        revision: of a model of the hub.

    Raises:
        UsageError: an option that this start cannot have.
        EdgebertError: as `load_checkpoint` and `new_model`.
    """
    start = _image_start(name, options, dataset, teacher=teacher, text_weights=text_weights, revision=revision)
    return start if text_model is None else _fused(start, text_model, options, dataset)


def _image_start(
    name: str,
    options: LoopOptions,
    dataset: Dataset,
    *,
    teacher: Checkpoint | None,
    text_weights: str | None,
    revision: str | None,
) -> Start:
    class_names = dataset.class_names
    if not is_preset(name):
        if text_weights is not None:
            raise UsageError(f"text weights for `{name}`", expected="a BERT preset", hint="--model bert-base")
        return _pretrained_start(_loaded(name, revision), options, dataset, is_student=teacher is not None)
    if revision is not None:
        raise UsageError(f"revision `{revision}` for the preset `{name}`", expected="a model of the hub")
    if teacher is None:
        rule = _measured_rule(options, dataset.train)
    else:
        rule = _teachers_rule(options, teacher.card.preprocessing)
    made_from = {} if text_weights is None else {"init": sha256_of_folder(find_weights(text_weights).path)}
    return Start(
        model=new_model(
            name, preprocessing=rule, class_names=class_names, seed=options.seed, text_weights=text_weights
        ),
        name=name,
        preprocessing=rule,
        epochs=_PRESET_EPOCHS,
        learning_rate=_PRESET_LEARNING_RATE,
        made_from=made_from,
        source=None,
        seen=ImageSet(),
        untrained=text_weights is None,
    )


def _fused(start: Start, text_model: str, options: LoopOptions, dataset: Dataset) -> Start:
    """Return a start whose model reads the text of each image as well."""
    _check_has_texts(dataset)
    texts = [example.text for example in dataset.train]
    made_from = dict(start.made_from)
    if text_model != "scratch":
        made_from["text"] = sha256_of_folder(find_weights(text_model).path)
    model = new_fusion(start.model, text_model, texts, dataset.class_names, options.seed)
    return replace(start, model=model, name=f"fusion of {start.name}", made_from=made_from, untrained=False)


def _check_has_texts(dataset: Dataset) -> None:
    if not any(example.text for example in dataset.train):
        raise BadDataError(
            f"no training image of `{dataset.name}` has a text",
            expected="a column `text` in labels.csv or in the table",
            hint="train a model of the image alone: leave out --text-model",
        )


def _loaded(name: str, revision: str | None) -> Checkpoint:
    try:
        return load_checkpoint(name, revision=revision)
    except InputNotFoundError as error:  # here a preset could have been meant, too
        near = difflib.get_close_matches(name, PRESETS, n=1)
        raise InputNotFoundError(
            error.what,
            expected=f"{error.expected or 'a model'}, one of the presets {', '.join(PRESETS)}, or a shape such as d64-l3-h2-r2",
            hint=f"did you mean `{near[0]}`?" if near else error.hint,
        ) from error


def _pretrained_start(checkpoint: Checkpoint, options: LoopOptions, dataset: Dataset, *, is_student: bool) -> Start:
    rule = checkpoint.card.preprocessing
    if is_fusion(checkpoint.model):
        if is_student:
            raise UsageError(
                "a fusion model as a student: it reads a text with each image", expected="an image classifier"
            )
        _check_has_texts(dataset)
    if options.image_size is not None and (options.image_size, options.image_size) != (rule.height, rule.width):
        raise UsageError(
            f"image size `{options.image_size}` for a pretrained model",
            expected=f"its own, {rule.height} x {rule.width}",
            hint="leave out --image-size, or train a preset",
        )
    if options.resize is not None and options.resize != rule.resize:
        raise UsageError(
            f"resize `{options.resize}` for a pretrained model",
            expected=f"its own, `{rule.resize}`",
            hint="leave out --resize, or train a preset",
        )
    return Start(
        model=with_classes(checkpoint, dataset.class_names, seed=options.seed),
        name=str(checkpoint.model.config.model_type),
        preprocessing=rule,
        epochs=_PRETRAINED_EPOCHS,
        learning_rate=_PRETRAINED_LEARNING_RATE,
        made_from={"init": checkpoint.sha256},
        source=checkpoint.card.provenance,
        seen=checkpoint.card.seen,
        untrained=False,
    )


def _teachers_rule(options: LoopOptions, rule: Preprocessing) -> Preprocessing:
    """Return the teacher's preprocessing with the size and the way of resizing that the options name.

    The margin of a centre crop keeps its share: 256 -> 224 becomes 128 -> 112.
    """
    height, width = (options.image_size, options.image_size) if options.image_size else (rule.height, rule.width)
    resize = options.resize or rule.resize
    margin = 1.0 if rule.shortest_edge is None else rule.shortest_edge / max(rule.height, rule.width)
    edge = round(margin * max(height, width)) if resize == "crop" else None
    return replace(rule, height=height, width=width, resize=resize, shortest_edge=edge)


def _measured_rule(options: LoopOptions, train: Sequence[Example]) -> Preprocessing:
    """Return a preprocessing with mean and deviation of the training split, and its size where none is given.

    Measured and not fixed at one half: scans and microscope images often use a tenth of the range, and a network from
    scratch starts well from inputs of zero mean and unit variance (LeCun et al. 1998, "Efficient BackProp", 4.3).
    """
    chosen = sorted(train, key=lambda example: example.pixel_sha256)[:_MEASURED_IMAGES]
    images = [example.load() for example in tracked(chosen, what="measure", total=len(chosen))]
    side = options.image_size
    if side is None:
        median = int(np.median([min(image.shape[:2]) for image in images]))
        side = max((size for size in _SIDES if size <= median), default=_SIDES[0])
        _log.info("image size %d: the training images' shortest edges have median %d px", side, median)
    resize: Resize = options.resize or "stretch"
    rule = Preprocessing(height=side, width=side, resize=resize, shortest_edge=side if resize == "crop" else None)
    pixels = np.stack([load_image(image, rule) for image in images]).reshape(-1, 3)  # (images * height * width, 3)
    mean = pixels.mean(axis=0, dtype=np.float64) / 255.0
    std = np.maximum(pixels.std(axis=0, dtype=np.float64) / 255.0, _LEAST_STD)
    mean, std = np.round(mean, 4), np.round(std, 4)
    return replace(
        rule,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
    )
