"""The student: a small vision transformer made for INT8 on edge devices.

Convolution stem, learned positions, pre-LN blocks, mean pooling, linear head (compression.md, sections 8, 9 and 12):

* the stem halves the image until at most 64 tokens are left (`max_tokens` sets another number): 16 for 8x8, 49 for 28x28 and
  224x224, 64 for 32x32. Token count and width decide speed, and 64 tokens are few enough for a symmetric INT8 softmax;
* each stem block is convolution, batch norm, ReLU; the batch norm folds into the convolution when the graph is exported;
* queries, keys and values have a linear layer each, and attention is written out in four dimensions (batch, heads, tokens,
  head width), so that OpenVINO fuses it and TensorRT recognises it. There is no mask, hence no Where in the graph;
* every activation is an exact GELU, one operator from opset 20 on.

>>> config = StudentConfig(image_size=(8, 8), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
>>> config.token_grid
(4, 4)

A student is named by a preset or by its shape: width, layers, heads, MLP ratio, and at most so many tokens.

>>> student_shape("d64-l3-h2-r2-t49").config((32, 32)).token_grid
(4, 4)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ImageClassifierOutput

from edgebert.errors import BadDataError, UsageError
from edgebert.models.outputs import classified
from edgebert.models.stem import stem_blocks, stem_channels
from edgebert.preprocess import MAX_SIDE

MAX_TOKENS = 64  # section 5.3: up to here a symmetric INT8 softmax loses nothing

# Mimetic initialisation (Trockman and Kolter, arXiv 2305.09828): pretrained attention has W_q W_k^T near +I and W_v W_o
# near -I. Each product starts as strength * (noise / sqrt(width) ± I), cut to the rank that a head has. Measured with
# `nano` on digits (labels only, 60 epochs, mean of 3 seeds): 98.2 % of held-out digits, 97.3 % with truncated normal weights.
_QUERY_KEY_STRENGTH = 0.7
_VALUE_OUTPUT_STRENGTH = 0.4


class StudentConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """The shape of a student.

    Args:
        image_size: (height, width) in pixels, or one number for both; 1 to 4,096 each.
        hidden_size: width of a token; a multiple of `num_attention_heads`, at least 8.
        num_hidden_layers: transformer blocks, at least 1.
        num_attention_heads: at least 2; OpenVINO splits attention over heads among threads.
        mlp_ratio: width of the hidden layer of a block's MLP, in multiples of `hidden_size`.
        layer_norm_eps: added to the variance in each layer norm.
        initializer_range: standard deviation of weights at the start.
        max_tokens: the stem halves the image until at most so many tokens are left, at least 1.

    Raises:
        BadDataError: a value is outside its range.
    """

    model_type = "edgebert-student"

    def __init__(
        self,
        image_size: int | tuple[int, int] | list[int] = (224, 224),
        hidden_size: int = 256,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 8,
        mlp_ratio: int = 4,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        max_tokens: int = MAX_TOKENS,
        **kwargs: Any,  # what every Hugging Face config takes: id2label, label2id, dtype, ...
    ) -> None:
        self.image_size = checked_image_size(image_size)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.max_tokens = max_tokens
        for name, value, least in (
            ("hidden_size", hidden_size, 8),
            ("num_hidden_layers", num_hidden_layers, 1),
            ("num_attention_heads", num_attention_heads, 2),
            ("mlp_ratio", mlp_ratio, 1),
            ("max_tokens", max_tokens, 1),
        ):
            if type(value) is not int or value < least:
                raise BadDataError(f"the student has {name} `{value}`", expected=f"a whole number, at least {least}")
        if hidden_size % num_attention_heads:
            raise BadDataError(
                f"the student has hidden_size `{hidden_size}` and {num_attention_heads} heads",
                expected="a multiple of num_attention_heads",
            )
        super().__init__(**kwargs)

    @property
    def halvings(self) -> int:
        """How often the stem halves the image: at least once, until `max_tokens` or fewer tokens are left."""
        halvings = 1
        while _halved(self.image_size[0], halvings) * _halved(self.image_size[1], halvings) > self.max_tokens:
            halvings += 1
        return halvings

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return _halved(self.image_size[0], self.halvings), _halved(self.image_size[1], self.halvings)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.token_grid[0] * self.token_grid[1]

    @property
    def stem_channels(self) -> tuple[int, ...]:
        """Output channels of each stem block; see `edgebert.models.stem`."""
        return stem_channels(self.image_size, self.hidden_size, self.halvings)


class _Attention(nn.Module):
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # The scale is applied to the query, so that nothing stands between the product and the softmax.
        query = self._by_head(self.query(hidden)) * self.head_size**-0.5
        key, value = self._by_head(self.key(hidden)), self._by_head(self.value(hidden))
        weights = torch.softmax(query @ key.transpose(2, 3), dim=-1)  # (batch, heads, tokens, tokens)
        mixed = (weights @ value).transpose(1, 2).flatten(2)  # (batch, tokens, hidden)
        return cast(torch.Tensor, self.output(mixed))

    def _by_head(self, hidden: torch.Tensor) -> torch.Tensor:
        split = hidden.reshape(-1, hidden.shape[1], self.heads, self.head_size)  # (batch, tokens, heads, head size)
        return split.transpose(1, 2)  # (batch, heads, tokens, head size)


class _Mlp(nn.Module):
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.activation = nn.GELU()
        self.contract = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.contract(self.activation(self.expand(hidden))))


class _Block(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = _Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _Mlp(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + cast(torch.Tensor, self.mlp(self.mlp_norm(hidden)))


class StudentForImageClassification(PreTrainedModel):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """The student with its classification head.

    >>> model = StudentForImageClassification(StudentConfig(image_size=8, hidden_size=32, num_attention_heads=2, num_labels=10))
    >>> model(torch.zeros(1, 3, 8, 8)).logits.shape
    torch.Size([1, 10])
    """

    config_class = StudentConfig
    base_model_prefix = "student"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["_Block"]  # noqa: RUF012  # the type the base class declares

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        self.stem = nn.Sequential(*stem_blocks(config.stem_channels, config.halvings))
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, config.hidden_size))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
        hidden = self.stem(pixel_values).flatten(2).transpose(1, 2)  # (batch, tokens, hidden)
        hidden = hidden + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.classifier(self.norm(hidden).mean(dim=1))
        return classified(logits, labels, self.config, return_dict=return_dict)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal for linear layers and positions, He for the ReLU stem, mimetic for attention."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, StudentForImageClassification):
            init.trunc_normal_(module.positions, std=self.config.initializer_range)
            # Here and not in a branch of their own: transformers passes over modules without weights of their own.
            for part in module.modules():
                if isinstance(part, _Attention):
                    _init_mimetic(part)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]  # transformers has no types here


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPreset:
    """A named student.

    Attributes:
        hidden_size: width of a token.
        layers: transformer blocks.
        heads: attention heads.
        mlp_ratio: width of the MLP in multiples of `hidden_size`.
        summary: one line for people.
        max_tokens: the stem leaves at most so many tokens.
    """

    hidden_size: int
    layers: int
    heads: int
    mlp_ratio: int
    summary: str
    max_tokens: int = MAX_TOKENS

    def config(self, image_size: tuple[int, int]) -> StudentConfig:
        """Return the config for images of (height, width) pixels."""
        return StudentConfig(
            image_size=image_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            max_tokens=self.max_tokens,
        )


# Widths are multiples of 64 (32 for the smallest), as INT8 tiles want them; shapes from compression.md, sections 7 and 11.
STUDENT_PRESETS: dict[str, StudentPreset] = {
    "nano": StudentPreset(hidden_size=32, layers=2, heads=2, mlp_ratio=2, summary="digits and icons"),
    "micro": StudentPreset(hidden_size=64, layers=3, heads=2, mlp_ratio=2, summary="28 to 32 px, few classes"),
    "tiny": StudentPreset(hidden_size=128, layers=6, heads=4, mlp_ratio=2, summary="32 px and above"),
    "small": StudentPreset(hidden_size=256, layers=6, heads=8, mlp_ratio=4, summary="photographs, 224 px"),
}


# What a shape's name may say. Widths in steps of 8 fill the registers of every device; a head of fewer than 8 numbers has no
# room for a score; the other ends are far beyond what compression.md measures.
_SHAPE = re.compile(r"d(\d+)-l(\d+)-h(\d+)-r(\d+)(?:-t(\d+))?")
_MEANT_AS_SHAPE = re.compile(r"d\d+-l\d+.*", re.IGNORECASE)
_WIDTHS, _WIDTH_STEP, _LEAST_HEAD_WIDTH = (16, 1024), 8, 8
_LAYERS, _RATIOS, _TOKENS = (1, 24), (1, 8), (1, 256)


def student_shape(name: str) -> StudentPreset | None:
    """Return the student of this name: a preset, or a shape such as `d64-l3-h2-r2` or `d64-l3-h2-r2-t49`.

    `d` is the width of a token, `l` the layers, `h` the heads, `r` the MLP's width in multiples of the token's, and `t` the
    most tokens, 64 where it is not said.

    Returns:
        The student, or None where the name is neither a preset nor meant as a shape.

    Raises:
        UsageError: a shape that no student can have.
    """
    if name in STUDENT_PRESETS:
        return STUDENT_PRESETS[name]
    if not _MEANT_AS_SHAPE.fullmatch(name):
        return None
    match = _SHAPE.fullmatch(name)
    if match is None:
        raise UsageError(
            f"`{name}` is no shape of a student",
            expected="dWIDTH-lLAYERS-hHEADS-rRATIO, and -tTOKENS where wanted, such as `d64-l3-h2-r2` or `d64-l3-h2-r2-t49`",
        )
    width, layers, heads, ratio = (int(number) for number in match.groups()[:4])
    tokens = MAX_TOKENS if match[5] is None else int(match[5])
    for what, value, (least, most) in (
        ("width (d)", width, _WIDTHS),
        ("number of layers (l)", layers, _LAYERS),
        ("MLP ratio (r)", ratio, _RATIOS),
        ("number of tokens (t)", tokens, _TOKENS),
    ):
        if not least <= value <= most:
            raise UsageError(f"the student `{name}` has the {what} {value}", expected=f"{least} to {most}")
    if width % _WIDTH_STEP:
        raise UsageError(f"the student `{name}` has the width (d) {width}", expected=f"a multiple of {_WIDTH_STEP}")
    if heads < 2 or width % heads or width // heads < _LEAST_HEAD_WIDTH:
        possible = [str(n) for n in range(2, width // _LEAST_HEAD_WIDTH + 1) if width % n == 0]
        raise UsageError(
            f"the student `{name}` has {heads} heads (h) for the width {width}",
            expected=f"a divisor of the width that leaves each head at least {_LEAST_HEAD_WIDTH}: {', '.join(possible)}",
        )
    return StudentPreset(
        hidden_size=width, layers=layers, heads=heads, mlp_ratio=ratio, summary="a shape by name", max_tokens=tokens
    )


def shape_name(config: StudentConfig) -> str:
    """Return the shape's name: `student_shape(shape_name(config)).config(config.image_size)` has the same shape.

    >>> shape_name(STUDENT_PRESETS["micro"].config((28, 28)))
    'd64-l3-h2-r2'
    """
    name = f"d{config.hidden_size}-l{config.num_hidden_layers}-h{config.num_attention_heads}-r{config.mlp_ratio}"
    return name if config.max_tokens == MAX_TOKENS else f"{name}-t{config.max_tokens}"


def checked_image_size(image_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        BadDataError: not one or two whole numbers of 1 to 4,096 pixels.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise BadDataError(
            f"the model has image_size `{image_size}`", expected=f"height and width, 1 to {MAX_SIDE} pixels"
        )
    return sides[0], sides[1]


def _halved(side: int, halvings: int) -> int:
    """Return what a 3x3 convolution with stride 2 and padding 1 leaves of `side` when applied `halvings` times."""
    return -(-side >> halvings)  # rounded up: ceil(ceil(n / 2) / 2) == ceil(n / 4)


def _init_mimetic(attention: _Attention) -> None:
    layers = (attention.query, attention.key, attention.value, attention.output)
    query, key, value, output = (torch.empty_like(layer.weight) for layer in layers)
    for head in range(attention.heads):
        rows = slice(head * attention.head_size, (head + 1) * attention.head_size)
        # A linear layer multiplies by its weight transposed, so a head's rows of W_q and W_k give W_q^T W_k in the scores.
        query[rows], key[rows] = _factors_near_identity(attention, _QUERY_KEY_STRENGTH, sign=1)
        value[rows], transposed = _factors_near_identity(attention, _VALUE_OUTPUT_STRENGTH, sign=-1)
        output[:, rows] = transposed.T
    for layer, weight in zip(layers, (query, key, value, output), strict=True):
        init.copy_(layer.weight, weight)


def _factors_near_identity(attention: _Attention, strength: float, *, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two (head size, hidden) matrices A and B with A^T B near strength * (noise ± I), cut to a head's rank."""
    width = attention.query.in_features
    target = strength * (torch.randn(width, width) / width**0.5 + sign * torch.eye(width))
    left, singular, right = torch.linalg.svd(target)
    root = singular[: attention.head_size].sqrt().unsqueeze(1)
    return root * left.T[: attention.head_size], root * right[: attention.head_size]
