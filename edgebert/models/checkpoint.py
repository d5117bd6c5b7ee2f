"""Checkpoints: making a model from a preset, loading any Hugging Face image classifier, saving ours.

A checkpoint of edgebert's is a Hugging Face folder with a card beside it (`edgebert.card_io`). A foreign folder has no card:
class names come from its config, preprocessing from its image processor.

>>> rule = Preprocessing(height=8, width=8)
>>> parameter_count(new_model("nano", preprocessing=rule, class_names=("cat", "dog"), seed=0))
22866
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from edgebert._files import read_input
from edgebert._json import JsonObject, parse_json_object
from edgebert.card import ModelCard, Provenance
from edgebert.card_io import (
    CARD_FILE,
    checkpoint_sha256,
    read_checkpoint_card,
    read_checkpoint_examples,
    write_checkpoint_card,
)
from edgebert.errors import BadDataError, UsageError
from edgebert.examples import ExampleImage
from edgebert.models import OURS
from edgebert.models.bert import BERT_PRESETS, BertForImageClassification, start_from_text
from edgebert.models.cnn import CNN_PRESETS, CnnForImageClassification, CnnPreset
from edgebert.models.fusion import (
    FusionForImageClassification,
    give_tokenizer,
    read_tokenizer,
    write_tokenizer,
)
from edgebert.models.loading import MODEL_ERRORS, evaluating, first_line, listed, load_weights, quiet
from edgebert.models.outputs import MULTI_LABEL
from edgebert.models.pixels import PixelClassifier
from edgebert.models.processor import preprocessing_from_processor
from edgebert.models.source import WeightsFolder, find_weights
from edgebert.models.student import STUDENT_PRESETS, StudentForImageClassification, student_shape
from edgebert.preprocess import Preprocessing

__all__ = [
    "PRESETS",
    "Checkpoint",
    "PixelClassifier",
    "is_preset",
    "load_checkpoint",
    "new_model",
    "parameter_count",
    "read_checkpoint_card",
    "save_checkpoint",
    "with_classes",
]

_LOG = logging.getLogger("edgebert")

_Config = TypeVar("_Config", bound=PretrainedConfig)

PRESETS = (*STUDENT_PRESETS, *BERT_PRESETS, *CNN_PRESETS)
"""The names that `new_model` takes, besides the shapes of `edgebert.models.student.student_shape`."""

_OURS = {config.model_type: model.__name__ for config, model in OURS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded classifier.

    Attributes:
        model: in evaluation mode, float32 weights, eager attention.
        card: class names, preprocessing, provenance, seen images.
        examples: example images that travel with it; none for a foreign model.
        sha256: of config, weights and preprocessing.
    """

    model: PreTrainedModel
    card: ModelCard
    examples: tuple[ExampleImage, ...]
    sha256: str


def is_preset(name: str) -> bool:
    """Say whether `new_model` makes a model of this name: a preset, or a student's shape such as `d64-l3-h2-r2`.

    Raises:
        UsageError: a shape that no student can have.
    """
    return name in PRESETS or student_shape(name) is not None


def new_model(
    preset: str,
    *,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...],
    seed: int,
    text_weights: str | None = None,
) -> PreTrainedModel:
    """Make an untrained model: the same weights for the same arguments.

    Args:
        preset: one of `PRESETS`, or a student's shape such as `d64-l3-h2-r2`.
        preprocessing: its height and width are the model's.
        class_names: in the order of the logits.
        seed: of the random weights.
        text_weights: folder or hub id of a text BERT to start a BERT preset from; width and layers are then its own.

    Raises:
        UsageError: no such preset, an impossible shape, or text weights for anything but a BERT.
        InputNotFoundError, BadDataError, RefusedError: the text weights are not there or not what they must be.
    """
    size = (preprocessing.height, preprocessing.width)
    if preset in BERT_PRESETS:
        config = _with_labels(BERT_PRESETS[preset].config(size), class_names)
        weights = None if text_weights is None else find_weights(text_weights)
        with _seeded(seed):
            bert = BertForImageClassification(config) if weights is None else start_from_text(weights, config)
        return evaluating(bert)
    named = CNN_PRESETS.get(preset) or student_shape(preset)
    if named is None:
        raise UsageError(
            f"no such model: `{preset}`", expected=f"{', '.join(PRESETS)}, or a student's shape such as `d64-l3-h2-r2`"
        )
    if text_weights is not None:
        raise UsageError(
            f"`{preset}` is no BERT; text weights fit a BERT only", expected=f"one of {', '.join(BERT_PRESETS)}"
        )
    with _seeded(seed):
        if isinstance(named, CnnPreset):
            return evaluating(CnnForImageClassification(_with_labels(named.config(size), class_names)))
        return evaluating(StudentForImageClassification(_with_labels(named.config(size), class_names)))


def load_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Load a checkpoint of edgebert's, any Hugging Face folder of an image classifier, or one from the hub.

    Args:
        source: a folder, or a hub id `OWNER/NAME`.
        revision: a branch, tag or commit on the hub.

    Raises:
        InputNotFoundError: no such folder or model, or the hub cannot be reached.
        BadDataError: no image classifier, config and weights do not fit, weights are not finite, or its preprocessing
            cannot be reproduced.
        RefusedError: pickled weights, or code of its own.
        UnavailableError: the architecture needs a package that is not installed.
    """
    folder = find_weights(source, revision=revision)
    _check_is_classifier(folder)
    if (folder.path / CARD_FILE).is_file():
        card = read_checkpoint_card(folder.path)
        _check_task(folder, card)
        examples = read_checkpoint_examples(folder.path)
        model = load_weights(AutoModelForImageClassification.from_pretrained, folder)
    else:
        preprocessing = _foreign_preprocessing(folder)
        model = load_weights(AutoModelForImageClassification.from_pretrained, folder)
        card, examples = _foreign_card(folder, model, preprocessing), ()
    if isinstance(model, FusionForImageClassification):
        give_tokenizer(model, read_tokenizer(folder.path, name=folder.name))
    _check_runs(model, card, name=folder.name)
    return Checkpoint(model=model, card=card, examples=examples, sha256=checkpoint_sha256(folder.path))


def save_checkpoint(folder: Path, model: PreTrainedModel, card: ModelCard, examples: Sequence[ExampleImage]) -> None:
    """Write a checkpoint into an existing, empty folder, usually a staging one.

    Writes `config.json` with the card's class names and task, `model.safetensors`, `preprocessing.json`, `examples/`, and of a fusion
    model `tokenizer.json`. Equal inputs give equal bytes.
    """
    _with_labels(model.config, card.class_names)
    if card.task == "multi-label":
        model.config.problem_type = MULTI_LABEL
    elif model.config.problem_type == MULTI_LABEL:
        model.config.problem_type = None
    with quiet():
        model.save_pretrained(folder, max_shard_size="1TB")
    if isinstance(model, FusionForImageClassification):
        write_tokenizer(folder, model)
    write_checkpoint_card(folder, card, examples)


def with_classes(checkpoint: Checkpoint, class_names: tuple[str, ...], *, seed: int = 0) -> PreTrainedModel:
    """Return a model for these classes that starts from a checkpoint's weights.

    The same names in the same order: the checkpoint's own model. The same names in another order: the rows of its head are
    permuted, and it gives the same answers. Other names: a new, untrained head; everything else keeps its weights.

    Args:
        checkpoint: left as it is.
        class_names: in the order of the logits wanted.
        seed: of a new head's random weights.
    """
    old_names = checkpoint.card.class_names
    if class_names == old_names:
        return checkpoint.model
    same = sorted(class_names) == sorted(old_names)
    head = _head_parameters(checkpoint.model)
    with _seeded(seed), quiet():
        model = _same_architecture(checkpoint.model, _with_labels(copy.deepcopy(checkpoint.model.config), class_names))
    weights = checkpoint.model.state_dict()
    if same:
        order = torch.tensor([old_names.index(name) for name in class_names])
        weights = {name: weight[order] if name in head else weight for name, weight in weights.items()}
        _LOG.info("the model's classes are in another order than the data's: its head was permuted")
    else:
        weights = {name: weight for name, weight in weights.items() if name not in head}
        _LOG.info(
            "the model's %d classes (%s) are not the data's %d: its head starts anew",
            len(old_names),
            listed(old_names),
            len(class_names),
        )
    missing = set(model.load_state_dict(weights, strict=False).missing_keys)
    assert missing == (set() if same else head), f"weights without a source: {missing}"
    if isinstance(model, FusionForImageClassification):
        assert isinstance(checkpoint.model, FusionForImageClassification)
        model.tokenizer = checkpoint.model.tokenizer  # it is no weight
    return evaluating(model)


def parameter_count(model: torch.nn.Module) -> int:
    """Return the number of weights; batch norm's running statistics are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_is_classifier(folder: WeightsFolder) -> None:
    config = folder.config
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, (list, tuple)) and architectures else None
    if not isinstance(model_type, str):
        raise BadDataError(
            f"config.json of `{folder.name}` names no model_type",
            expected="a model in the format of Hugging Face transformers (a timm checkpoint has another format)",
        )
    table: Mapping[str, object] = {**MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES}
    known = table.get(model_type)
    classes = known if isinstance(known, tuple) else (known,)
    if model_type in _OURS:
        classes = (_OURS[model_type],)
    if known is None and model_type not in _OURS:
        raise BadDataError(f"`{folder.name}` is a `{named or model_type}`", expected="an image classifier")
    if named is not None and named not in classes:
        raise BadDataError(
            f"`{folder.name}` is a `{named}`, which has no trained classification head",
            expected=" or ".join(f"`{name}`" for name in classes),
        )
    if config.get("problem_type") not in (None, "single_label_classification", MULTI_LABEL):
        raise BadDataError(
            f"`{folder.name}` was trained for `{config['problem_type']}`",
            expected="classes, one or several of an image",
        )


def _check_task(folder: WeightsFolder, card: ModelCard) -> None:
    problem = folder.config.get("problem_type")
    if (problem == MULTI_LABEL) != (card.task == "multi-label"):
        raise BadDataError(
            f"`{folder.name}` is `{card.task}` in its card, and config.json has problem_type `{problem}`",
            expected=f"`{MULTI_LABEL}` of a multi-label model, and of no other",
        )


def _foreign_preprocessing(folder: WeightsFolder) -> Preprocessing:
    model_type = str(folder.config["model_type"])
    path = folder.path / "preprocessor_config.json"
    if path.is_file():
        what = f"preprocessor_config.json of `{folder.name}`"
        return preprocessing_from_processor(_json_of(path, what), what=what, model_type=model_type)
    path = folder.path / "processor_config.json"  # what newer versions of transformers write
    if path.is_file():
        what = f"processor_config.json of `{folder.name}`"
        nested = _json_of(path, what).get("image_processor")
        if isinstance(nested, dict):
            return preprocessing_from_processor(nested, what=what, model_type=model_type)
    raise BadDataError(
        f"`{folder.name}` does not say how its images are prepared: no preprocessor_config.json",
        expected="size, resampling, mean and std of its image processor; they are not guessed",
        hint='save one beside the model, such as {"image_processor_type": "ViTImageProcessor", "size": 224, '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}',
    )


def _foreign_card(folder: WeightsFolder, model: PreTrainedModel, preprocessing: Preprocessing) -> ModelCard:
    options: dict[str, str] = {"architecture": type(model).__name__, "name": folder.name}
    if folder.revision is not None:
        options["revision"] = folder.revision
    class_names = _foreign_class_names(folder, model.config)
    several = model.config.problem_type == MULTI_LABEL
    return ModelCard(
        class_names=class_names,
        task="multi-label" if several else "single-label",
        # Nobody says which thresholds it was meant for: a logit of 0, until it is trained here.
        thresholds=(0.5,) * len(class_names) if several else (),
        preprocessing=preprocessing,
        provenance=Provenance(
            stage="import",
            made_from={"checkpoint": checkpoint_sha256(folder.path)},
            options=options,
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
            parameters=parameter_count(model),
        ),
    )


def _foreign_class_names(folder: WeightsFolder, config: PretrainedConfig) -> tuple[str, ...]:
    id2label = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if sorted(id2label) != list(range(len(id2label))):
        raise BadDataError(f"config.json of `{folder.name}` does not name every class", expected="id2label from 0 on")
    names = tuple(id2label[index] for index in range(len(id2label)))
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        _LOG.warning("`%s` does not name its %d classes: they are called LABEL_0 and so on", folder.name, len(names))
    # ImageNet's own list holds `crane` twice, the bird and the machine.
    twice = {name for name, count in Counter(names).items() if count > 1}
    if twice:
        _LOG.info(
            "`%s` has class names that appear twice; their number was added: %s", folder.name, listed(sorted(twice))
        )
    return tuple(f"{name} ({index})" if name in twice else name for index, name in enumerate(names))


def _check_runs(model: PreTrainedModel, card: ModelCard, *, name: str) -> None:
    """Run one image, so that a wrong input size is found here and not in a long stage."""
    rule = card.preprocessing
    image = torch.zeros(1, rule.height, rule.width, 3, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            shape = tuple(PixelClassifier(model, rule)(image).shape)
    except MODEL_ERRORS as error:
        raise BadDataError(
            f"`{name}` does not take the {rule.height} x {rule.width} pixels that its preprocessing makes: {first_line(error)}"
        ) from error
    if shape != (1, len(card.class_names)):
        raise BadDataError(
            f"`{name}` answers with shape {shape}", expected=f"(1, {len(card.class_names)}), one logit a class"
        )


def _head_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights whose first dimension is the number of classes: those that grow with it."""
    config = copy.deepcopy(model.config)
    config.num_labels = (model.config.num_labels or 2) + 1
    with torch.device("meta"), quiet():
        grown = _same_architecture(model, config).state_dict()
    return {name for name, weight in model.state_dict().items() if weight.shape != grown[name].shape}


def _same_architecture(model: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    made = type(model)._from_config(config, attn_implementation="eager", dtype=torch.float32)  # type: ignore[no-untyped-call]  # transformers has no types here
    assert isinstance(made, PreTrainedModel)
    return made


def _with_labels(config: _Config, class_names: tuple[str, ...]) -> _Config:
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    return config


def _json_of(path: Path, what: str) -> JsonObject:
    return parse_json_object(read_input(path, what="the image processor's file"), what=what)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a while; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
