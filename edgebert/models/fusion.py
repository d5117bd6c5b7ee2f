"""The fusion teacher: it sees an image and reads a text about it (a caption, what OCR found, an inspection note).

The image's features are what any image classifier gives its head (pooled tokens, a class token, a pooled map); the text's
embedding is the mean over BERT's last hidden states, padding left out. Both stand side by side in front of a small head, the
way that articles join a ViT with a BERT; one hidden layer in it lets the text change what the image means. A text that is
missing is the empty text.

A device has no text: a fusion model is a teacher, distilled into a student that sees the image only, and nothing else is done
with it. Its tokenizer travels in the checkpoint's folder as `tokenizer.json`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

from edgebert._files import read_input
from edgebert._fusion import FUSION_MODEL_TYPE, fusion_refused
from edgebert.errors import BadDataError, UsageError
from edgebert.models.loading import evaluating, first_line, load_weights
from edgebert.models.outputs import classified
from edgebert.models.source import WeightsFolder, find_weights

if TYPE_CHECKING:
    from edgebert.models.checkpoint import Checkpoint

SCRATCH = "scratch"
"""The text source that is a small untrained BERT with a vocabulary of the data's own texts."""

TOKENIZER_FILE = "tokenizer.json"

_TEXT_LENGTH = 128  # tokens of a text that are read: a paragraph; attention's cost grows with the square
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_MOST_CHARACTERS, _MOST_WORDS = 2_000, 8_000  # the scale of BERT's own 30,522 pieces, for texts of one data set

# Of an image model's config: what belongs to its own head, or to the file that it came from.
_NOT_SHAPE = ("architectures", "id2label", "label2id", "problem_type", "transformers_version", "_name_or_path", "dtype")


class FusionConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """The shape of a fusion model.

    Args:
        image: the config of the image classifier, `model_type` included; its head is left out.
        text: the config of the BERT.
        text_length: tokens of a text that are read, 2 to BERT's positions.

    Raises:
        BadDataError: a config that is none, or a text length outside its range.
    """

    model_type = FUSION_MODEL_TYPE

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        text_length: int = _TEXT_LENGTH,
        **kwargs: Any,  # what every Hugging Face config takes: id2label, label2id, dtype, ...
    ) -> None:
        # transformers makes a config without arguments to learn the defaults.
        self.image = {"model_type": "edgebert-student"} if image is None else dict(image)
        self.text = {} if text is None else dict(text)
        self.text_length = text_length
        positions = self.text_config().max_position_embeddings
        if type(text_length) is not int or not 2 <= text_length <= positions:
            raise BadDataError(f"the fusion model has text_length `{text_length}`", expected=f"2 to {positions}")
        super().__init__(**kwargs)

    def image_config(self) -> PretrainedConfig:
        """Return the config of the image classifier inside.

        Raises:
            BadDataError: it names no architecture that is known, or is itself a fusion.
        """
        values = dict(self.image)
        model_type = values.pop("model_type", None)
        if not isinstance(model_type, str) or model_type == FUSION_MODEL_TYPE:
            raise BadDataError(
                f"the fusion model has an image config of `{model_type}`", expected="an image classifier"
            )
        try:
            config = AutoConfig.for_model(model_type, **values)
        except ValueError as error:
            raise BadDataError(
                f"the fusion model has an image config of `{model_type}`: {first_line(error)}"
            ) from error
        assert isinstance(config, PretrainedConfig)
        config._attn_implementation = "eager"
        return config

    def text_config(self) -> BertConfig:
        """Return the config of the BERT inside."""
        config = BertConfig(**{key: value for key, value in self.text.items() if key != "model_type"})
        config._attn_implementation = "eager"
        return config


class FusionForImageClassification(PreTrainedModel):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """An image classifier and a BERT, side by side in front of one head.

    Attributes:
        image: the image classifier, whose head gives back what it is given.
        text: the BERT.
        tokenizer: of the texts; None until one is given, as nothing but weights comes out of a model file.
    """

    config_class = FusionConfig
    base_model_prefix = "fusion"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        make = AutoModelForImageClassification.from_config
        self.image: PreTrainedModel = make(config.image_config())  # type: ignore[no-untyped-call]  # transformers has no types here
        width = _remove_head(self.image)
        self.text = BertModel(config.text_config(), add_pooling_layer=False)
        self.fuse = nn.Sequential(nn.Linear(width + self.text.config.hidden_size, width), nn.GELU())
        self.classifier = nn.Linear(width, config.num_labels or 2)
        self.tokenizer: Tokenizer | None = None
        self.post_init()  # type: ignore[no-untyped-call]  # transformers has no types here

    def forward(
        self,
        pixel_values: torch.Tensor,
        text_embedding: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Classify images with their texts.

        Args:
            pixel_values: (batch, 3, height, width) float32, normalised, of the size that the image classifier takes.
            text_embedding: (batch, width), what the method of this name gave; None: every text is the empty one.
            labels: as `edgebert.models.outputs.classified` takes them; when given, the loss is returned as `loss`.
            return_dict: False returns a plain tuple.

        Returns:
            `logits` (batch, classes) float32, and `loss` where labels were given.
        """
        seen = self.image(pixel_values=pixel_values).logits  # (batch, width): the head is gone
        if text_embedding is None:
            empty = {name: tensor.to(seen.device) for name, tensor in self.encode_texts([""]).items()}
            text_embedding = self.text_embedding(**empty).expand(seen.shape[0], -1)
        fused = self.fuse(torch.cat((seen, text_embedding.to(seen.dtype)), dim=1))
        return classified(self.classifier(fused), labels, self.config, return_dict=return_dict)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return what `text_embedding` takes, on the CPU.

        Args:
            texts: at least one; longer ones are cut at the config's `text_length`.

        Returns:
            `input_ids` and `attention_mask`, both int64 (texts, length of the longest).

        Raises:
            BadDataError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise BadDataError("the fusion model has no tokenizer", expected=f"`{TOKENIZER_FILE}` beside its weights")
        encoded = self.tokenizer.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([text.ids for text in encoded]),
            "attention_mask": torch.tensor([text.attention_mask for text in encoded]),
        }

    def text_embedding(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (texts, width): the mean over BERT's last hidden states.

        Args:
            input_ids: int64 (texts, length).
            attention_mask: int64 (texts, length), 0 where there is padding.
        """
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (texts, length, 1)
        summed: torch.Tensor = (hidden * mask).sum(dim=1)
        return summed / mask.sum(dim=1)  # never 0: each text has its two special tokens


def is_fusion(model: nn.Module) -> bool:
    """Say whether a model sees a text with each image."""
    return isinstance(model, FusionForImageClassification)


def refuse_fusion(checkpoint: Checkpoint) -> None:
    """Refuse a fusion model where images alone are classified.

    Raises:
        UsageError: it is one.
    """
    if is_fusion(checkpoint.model):
        raise fusion_refused("the checkpoint")


def new_fusion(
    image_model: PreTrainedModel, text_source: str, texts: Sequence[str], class_names: tuple[str, ...], seed: int
) -> FusionForImageClassification:
    """Make a fusion model with an untrained head: the same weights for the same arguments.

    Args:
        image_model: an image classifier, untrained or trained; all but its head is copied.
        text_source: a folder or hub id of a text BERT with its `tokenizer.json`, or `scratch`: 2 layers of width 128, with a
            vocabulary made from `texts`.
        texts: of the training split; read for `scratch` only.
        class_names: in the order of the logits.
        seed: of the random weights.

    Raises:
        UsageError: the image classifier's head cannot be found, it is a fusion itself, or there are no texts to start from.
        InputNotFoundError, BadDataError, RefusedError: the text BERT is not there or not what it must be.
    """
    if is_fusion(image_model):
        raise UsageError("a fusion model as the image side of another", expected="an image classifier")
    trained: BertModel | None = None
    if text_source == SCRATCH:
        tokenizer = tokenizer_from_texts(texts)
        # Widths as in the published BERT-Tiny (arXiv 1908.08962); no dropout, as in our other models from scratch.
        text = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=_TEXT_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
    else:
        folder = find_weights(text_source)
        trained = _text_bert(folder)
        text = trained.config
        tokenizer = read_tokenizer(folder.path, name=folder.name)
        if tokenizer.get_vocab_size() > text.vocab_size:
            raise BadDataError(
                f"the tokenizer of `{folder.name}` has {tokenizer.get_vocab_size()} pieces",
                expected=f"at most the {text.vocab_size} of its config.json",
            )
    length = min(_TEXT_LENGTH, text.max_position_embeddings)
    image = {key: value for key, value in image_model.config.to_dict().items() if key not in _NOT_SHAPE}
    words = {key: value for key, value in text.to_dict().items() if key not in _NOT_SHAPE}
    image["architectures"] = [type(image_model).__name__]  # DeiT has two kinds of classifiers
    config = FusionConfig(image=image, text=words, text_length=length)
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in enumerate(class_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FusionForImageClassification(config)
    weights = image_model.state_dict()
    model.image.load_state_dict({name: weights[name] for name in model.image.state_dict()})
    if trained is not None:
        model.text.load_state_dict(trained.state_dict())
    give_tokenizer(model, tokenizer)
    evaluating(model)
    return model


def give_tokenizer(model: FusionForImageClassification, tokenizer: Tokenizer) -> None:
    """Give a model its tokenizer, which from here on cuts at the model's text length and fills shorter texts up."""
    tokenizer.enable_truncation(max_length=model.config.text_length)
    padding = int(model.text.config.pad_token_id or 0)
    tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "[PAD]")
    model.tokenizer = tokenizer


def read_tokenizer(folder: Path, *, name: str) -> Tokenizer:
    """Read the `tokenizer.json` of a folder.

    Raises:
        BadDataError: there is none, or it is malformed.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise BadDataError(
            f"`{name}` has no {TOKENIZER_FILE}",
            expected="the tokenizer of its texts beside the weights",
            hint=f'where it has a vocab.txt: `from transformers import AutoTokenizer as A; A.from_pretrained("{name}")'
            '.save_pretrained("FOLDER")`',
        )
    text = read_input(path, what="the tokenizer").decode("utf-8", errors="replace")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise BadDataError(f"{TOKENIZER_FILE} of `{name}` is malformed: {first_line(error)}") from error


def write_tokenizer(folder: Path, model: FusionForImageClassification) -> None:
    """Write a model's `tokenizer.json` into an existing folder: equal tokenizers give equal bytes.

    Raises:
        BadDataError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise BadDataError("the fusion model has no tokenizer", expected="one from `new_fusion` or `load_checkpoint`")
    (folder / TOKENIZER_FILE).write_text(model.tokenizer.to_str(pretty=True), encoding="utf-8")


def tokenizer_from_texts(texts: Sequence[str]) -> Tokenizer:
    """Make a WordPiece tokenizer for texts: lower case, whole words that occur twice or more, all others letter by letter.

    The vocabulary is counted here and not by the library's trainer, which breaks ties by chance: six runs on the same texts gave
    six vocabularies.

    Raises:
        UsageError: there is no word in them.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not counts:
        raise UsageError(
            "there is no text to make a vocabulary from", expected="a `text` column with a text for each image"
        )
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        characters.update(dict.fromkeys(word, count))
    letters = sorted(_most_frequent(characters, _MOST_CHARACTERS))
    words = _most_frequent(Counter({word: n for word, n in counts.items() if n > 1 and len(word) > 1}), _MOST_WORDS)
    pieces = (*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return tokenizer


def _most_frequent(counts: Counter[str], most: int) -> list[str]:
    """Return the most frequent, equal ones in the order of their letters."""
    return sorted(counts, key=lambda entry: (-counts[entry], entry))[:most]


def _text_bert(folder: WeightsFolder) -> BertModel:
    if folder.config.get("model_type") != BertConfig.model_type:
        raise BadDataError(
            f"`{folder.name}` has model_type `{folder.config.get('model_type')}`",
            expected=f"`{BertConfig.model_type}`, or `{SCRATCH}`",
        )
    text = load_weights(functools.partial(BertModel.from_pretrained, add_pooling_layer=False), folder)
    assert isinstance(text, BertModel)
    return text


def _remove_head(image: PreTrainedModel) -> int:
    """Put nothing in the place of a classifier's last linear layer, and return the width of what it was given."""
    linear = [name for name, module in image.named_modules() if isinstance(module, nn.Linear)]
    head = image.get_submodule(linear[-1]) if linear else None
    if not isinstance(head, nn.Linear) or head.out_features != image.config.num_labels:
        raise UsageError(
            f"the head of a `{image.config.model_type}` cannot be found", expected="a linear layer at the end of it"
        )
    image.set_submodule(linear[-1], nn.Identity())
    return head.in_features
