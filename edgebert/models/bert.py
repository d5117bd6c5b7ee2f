"""The BERT image classifier: image patches, read by a BERT encoder as if they were words.

A convolution turns each patch into a vector (`bert-nano`: a stack of small ones), a class token is put in front, and `transformers.BertModel` takes them through
`inputs_embeds`. What BERT's own embedding layer then adds is kept as it is: its position embeddings are the learned
positions (one for each patch and one for the class token), its token type is a constant, its layer norm normalises the sum.
The word table is gone, since there are no words. The head reads the class token of the last layer.

It is a vision transformer with BERT's post-LN blocks. It can start from the weights of a text BERT; no accuracy is claimed
for that: fully trained on CIFAR-10, text weights and random weights came out equal (arXiv 2107.12460, in compression.md 10).

>>> config = BertImageConfig(image_size=(8, 8), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
>>> config.patch_size, config.token_grid
(2, (4, 4))
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from edgebert.errors import BadDataError
from edgebert.models.loading import load_weights
from edgebert.models.outputs import classified
from edgebert.models.source import WeightsFolder
from edgebert.models.stem import stem_blocks, stem_channels
from edgebert.models.student import checked_image_size

Embedding = Literal["patches", "convolutions"]

_LOG = logging.getLogger("edgebert")


class BertImageConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """The shape of a BERT image classifier.

    Args:
        image_size: (height, width) in pixels, or one number for both.
        patch_size: edge of a patch in pixels; None derives it from the image size (`patch_size_for`).
        hidden_size: width of a token; a multiple of `num_attention_heads`.
        num_hidden_layers: transformer blocks, at least 1.
        num_attention_heads: at least 1.
        embedding: `patches`, one convolution as large as a patch; or `convolutions`, a stem of 3x3 convolutions that halve
            the image until one place is left for each patch (`edgebert.models.stem`), for a patch size that is a power of two.
        intermediate_size: width of the MLP; None means four times `hidden_size`, as BERT has it.
        hidden_act: BERT's activation.
        hidden_dropout_prob: dropout of tokens while training; BERT's 0.1 suits its millions of sentences, not a few photographs.
        attention_probs_dropout_prob: dropout of attention while training.
        layer_norm_eps: added to the variance in each layer norm.
        initializer_range: standard deviation of weights at the start; None derives it from the width.

    Raises:
        BadDataError: a value is outside its range.
    """

    model_type = "edgebert-bert"

    def __init__(
        self,
        image_size: int | tuple[int, int] | list[int] = (224, 224),
        patch_size: int | None = None,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        embedding: Embedding = "patches",
        intermediate_size: int | None = None,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        layer_norm_eps: float = 1e-12,
        initializer_range: float | None = None,
        **kwargs: Any,  # what every Hugging Face config takes: id2label, label2id, dtype, ...
    ) -> None:
        self.image_size = checked_image_size(image_size)
        self.patch_size = patch_size_for(*self.image_size) if patch_size is None else patch_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.embedding: Embedding = embedding
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        for name in ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BadDataError(f"the BERT classifier has {name} `{value}`", expected="a whole number, at least 1")
        if hidden_size % num_attention_heads:
            raise BadDataError(
                f"the BERT classifier has hidden_size `{hidden_size}` and {num_attention_heads} heads",
                expected="a multiple of num_attention_heads",
            )
        if embedding not in get_args(Embedding):
            raise BadDataError(
                f"the BERT classifier has embedding `{embedding}`", expected=", ".join(get_args(Embedding))
            )
        if embedding == "convolutions" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise BadDataError(
                f"the BERT classifier has patch_size `{self.patch_size}` and a stem of convolutions",
                expected="a power of two, at least 2",
            )
        self.initializer_range = _initializer_range(hidden_size) if initializer_range is None else initializer_range
        super().__init__(**kwargs)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of patches; the last may reach over the edge, where the image is padded."""
        return -(-self.image_size[0] // self.patch_size), -(-self.image_size[1] // self.patch_size)

    @property
    def tokens(self) -> int:
        """The number of tokens, class token included."""
        return self.token_grid[0] * self.token_grid[1] + 1

    def encoder_config(self) -> BertConfig:
        """Return the config of the `BertModel` inside."""
        config = BertConfig(
            vocab_size=1,
            type_vocab_size=1,
            max_position_embeddings=self.tokens,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            hidden_act=self.hidden_act,
            hidden_dropout_prob=self.hidden_dropout_prob,
            attention_probs_dropout_prob=self.attention_probs_dropout_prob,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
        )
        config._attn_implementation = "eager"  # a clean graph: the fused form leaves IsNaN and Where (compression.md 7)
        return config


class BertForImageClassification(PreTrainedModel):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """A BERT encoder over image patches with a classification head.

    >>> model = BertForImageClassification(BertImageConfig(image_size=8, hidden_size=32, num_attention_heads=2, num_labels=10))
    >>> model(torch.zeros(1, 3, 8, 8)).logits.shape
    torch.Size([1, 10])
    """

    config_class = BertImageConfig
    base_model_prefix = "bert"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BertLayer"]  # noqa: RUF012  # the type the base class declares

    def __init__(self, config: BertImageConfig) -> None:
        super().__init__(config)
        rows, columns = config.token_grid
        # Bottom and right edges that are no multiple of the patch are filled with zeros: the mean colour.
        self.padding = (
            0,
            columns * config.patch_size - config.image_size[1],
            0,
            rows * config.patch_size - config.image_size[0],
        )
        self.patches = _EMBEDDINGS[config.embedding](config)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.bert = BertModel(config.encoder_config(), add_pooling_layer=False)
        self.bert.embeddings.add_module("word_embeddings", nn.Identity())
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers has no types here

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Classify images.

        Args:
            pixel_values: (batch, 3, height, width) float32, normalised, of the size in the config.
            labels: as `edgebert.models.outputs.classified` takes them; when given, the loss is returned as `loss`.
            return_dict: False returns a plain tuple.

        Returns:
            `logits` (batch, classes) float32, and `loss` where labels were given.
        """
        if any(self.padding):
            pixel_values = nn.functional.pad(pixel_values, self.padding)
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)  # (batch, patches, hidden)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        tokens = torch.cat((class_token, patches), dim=1)  # (batch, 1 + patches, hidden)
        # BertModel.forward does these two steps with a mask of zeros between them, which would stay in every layer's graph.
        embedded = self.bert.embeddings(inputs_embeds=tokens, token_type_ids=self.bert.embeddings.token_type_ids)
        encoded = self.bert.encoder(embedded).last_hidden_state  # (batch, 1 + patches, hidden)
        logits = self.classifier(encoded[:, 0])
        return classified(logits, labels, self.config, return_dict=return_dict)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]  # transformers has no types here
        if isinstance(module, nn.Conv2d) and self.config.embedding == "convolutions":
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, BertForImageClassification):
            init.trunc_normal_(module.class_token, std=self.config.initializer_range)


def _patch_convolution(config: BertImageConfig) -> nn.Module:
    return nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)


def _convolution_stem(config: BertImageConfig) -> nn.Module:
    """The stem, and one linear map to the width of a token, as ReLU would leave only its positive half."""
    halvings = config.patch_size.bit_length() - 1
    channels = stem_channels(config.image_size, config.hidden_size, halvings)
    return nn.Sequential(
        *stem_blocks(channels, halvings), nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1)
    )


_EMBEDDINGS: dict[Embedding, Callable[[BertImageConfig], nn.Module]] = {
    "patches": _patch_convolution,
    "convolutions": _convolution_stem,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BertPreset:
    """A named BERT image classifier.

    Attributes:
        hidden_size: width of a token.
        layers: transformer blocks.
        heads: attention heads.
        summary: one line for people.
        embedding: how an image becomes tokens.
    """

    hidden_size: int
    layers: int
    heads: int
    summary: str
    embedding: Embedding = "patches"

    def config(self, image_size: tuple[int, int]) -> BertImageConfig:
        """Return the config for images of (height, width) pixels."""
        return BertImageConfig(
            image_size=image_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            embedding=self.embedding,
        )


# bert-mini, -small, -medium and -base have the shapes of the published text models of these names (arXiv 1908.08962), so
# that their weights fit; bert-nano is ours, the digits teacher of compression.md, section 11, G1. Its stem, measured on two
# folds of the training digits (60 epochs, mixup .2, 581 images): 4 errors, and 7 with plain patches.
BERT_PRESETS: dict[str, BertPreset] = {
    "bert-nano": BertPreset(hidden_size=96, layers=4, heads=4, summary="digits and icons", embedding="convolutions"),
    "bert-mini": BertPreset(hidden_size=256, layers=4, heads=4, summary="28 to 32 px"),
    "bert-small": BertPreset(hidden_size=512, layers=4, heads=8, summary="32 px and above"),
    "bert-medium": BertPreset(hidden_size=512, layers=8, heads=8, summary="photographs"),
    "bert-base": BertPreset(hidden_size=768, layers=12, heads=12, summary="photographs, the original BERT"),
}


def start_from_text(weights: WeightsFolder, config: BertImageConfig) -> BertForImageClassification:
    """Make a classifier whose encoder starts from a text BERT.

    Taken over: all blocks, the first position embeddings, the token type of a first sentence, the embeddings' layer norm. New:
    patch embedding, class token, head.

    Args:
        weights: the folder of a BERT in safetensors.
        config: its image size, classes and patch size are kept; width, layers and the like are the text model's.

    Raises:
        BadDataError: no BERT, damaged, or with fewer positions than the image has tokens.
        UnavailableError: it needs a package that is not installed.
    """
    if weights.config.get("model_type") != BertConfig.model_type:
        raise BadDataError(
            f"`{weights.name}` has model_type `{weights.config.get('model_type')}`",
            expected=f"`{BertConfig.model_type}`",
        )
    text = load_weights(functools.partial(BertModel.from_pretrained, add_pooling_layer=False), weights)
    if config.tokens > text.config.max_position_embeddings:
        raise BadDataError(
            f"an image of {config.image_size[0]} x {config.image_size[1]} pixels makes {config.tokens} tokens, and"
            f" `{weights.name}` has {text.config.max_position_embeddings} positions",
            hint="choose a smaller `--image-size`",
        )
    taken = BertImageConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=text.config.hidden_size,
        num_hidden_layers=text.config.num_hidden_layers,
        num_attention_heads=text.config.num_attention_heads,
        embedding=config.embedding,
        intermediate_size=text.config.intermediate_size,
        hidden_act=text.config.hidden_act,
        layer_norm_eps=text.config.layer_norm_eps,
        id2label=config.id2label,
        label2id=config.label2id,
    )
    model = BertForImageClassification(taken)
    state = text.state_dict()
    positions, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    state[positions], state[types] = state[positions][: taken.tokens], state[types][:1]
    del state["embeddings.word_embeddings.weight"]
    model.bert.load_state_dict(state)
    _LOG.info("started from `%s`: %d layers of width %d", weights.name, taken.num_hidden_layers, taken.hidden_size)
    return model


def _initializer_range(hidden_size: int) -> float:
    """Return BERT's 0.02, scaled so that a narrower layer starts with outputs as large as in BERT's own width of 768.

    Measured with `bert-nano` on digits (30 epochs, mean of 2 seeds): 96.8 % of held-out digits, 93.2 % with 0.02.
    """
    return 0.02 * math.sqrt(768 / hidden_size)


def patch_size_for(height: int, width: int) -> int:
    """Return the power of two nearest to the square root of the image's side: as many patches as pixels in a patch.

    >>> [patch_size_for(side, side) for side in (8, 28, 32, 224, 384)]
    [2, 4, 4, 16, 16]
    """
    side = math.sqrt(height * width)
    return int(2 ** max(0, math.ceil(math.log2(side) / 2 - 0.5)))
