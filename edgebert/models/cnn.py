"""Two small convolutional networks: the plain baseline of the articles, and a residual teacher for small images.

`plain`, the preset `cnn`: three 3x3 convolutions, each with batch norm, ReLU and a pooling of 2, then the mean over the map
and one linear layer. It is what an article compares with, not what anybody should ship.

`residual`, the preset `resnet-mini`: the residual network that He et al. train on CIFAR-10 (arXiv 1512.03385, section 4.2: 3x3
convolutions, three stages, each of half the edges and twice the channels of the one before), with wider and fewer blocks, so
that it is quick on a CPU. On small data a CNN is a better teacher of a transformer than a transformer is (compression.md, 4).
Images above 48 pixels are first halved by a stem of convolutions until they are not.

Both take any size from 1 pixel on; every batch norm stands behind a convolution and folds into it at export.

>>> config = CnnConfig(image_size=(28, 28), kind="residual", widths=(8, 16), depths=(1, 1))
>>> config.halvings, CnnConfig(image_size=(224, 224), kind="residual", widths=(8, 16), depths=(1, 1)).halvings
(0, 3)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from edgebert.errors import BadDataError
from edgebert.models.outputs import classified
from edgebert.models.stem import StemBlock
from edgebert.models.student import checked_image_size

Kind = Literal["plain", "residual"]

_FULL_RESOLUTION_SIDE = 48  # the first stage runs at the image's own resolution up to here: CIFAR's 32 and some more


class CnnConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """The shape of a convolutional classifier.

    Args:
        image_size: (height, width) in pixels, or one number for both; 1 to 4,096 each.
        kind: `plain` or `residual`.
        widths: channels of each stage.
        depths: of a residual network, the blocks of each stage; a plain stage is one convolution.

    Raises:
        BadDataError: a value is outside its range.
    """

    model_type = "edgebert-cnn"

    def __init__(
        self,
        image_size: int | tuple[int, int] | list[int] = (32, 32),
        kind: Kind = "plain",
        widths: tuple[int, ...] | list[int] = (32, 64, 128),
        depths: tuple[int, ...] | list[int] = (1, 1, 1),
        **kwargs: Any,  # what every Hugging Face config takes: id2label, label2id, dtype, ...
    ) -> None:
        self.image_size = checked_image_size(image_size)
        self.kind: Kind = kind
        self.widths = tuple(widths)
        self.depths = tuple(depths)
        if kind not in get_args(Kind):
            raise BadDataError(f"the CNN has kind `{kind}`", expected=" or ".join(get_args(Kind)))
        for name, values in (("widths", self.widths), ("depths", self.depths)):
            if not values or not all(type(value) is int and value >= 1 for value in values):
                raise BadDataError(f"the CNN has {name} `{values}`", expected="whole numbers, at least 1")
        if len(self.widths) != len(self.depths):
            raise BadDataError(
                f"the CNN has {len(self.widths)} widths and {len(self.depths)} depths", expected="one each a stage"
            )
        super().__init__(**kwargs)

    @property
    def halvings(self) -> int:
        """How often the stem of a residual network halves the image; a plain one has no stem."""
        halvings = 0
        while self.kind == "residual" and max(self.image_size) > _FULL_RESOLUTION_SIDE << halvings:
            halvings += 1
        return halvings


class _Residual(nn.Module):
    """Two convolutions beside a shortcut: He et al.'s basic block; a change of shape has a 1x1 convolution in the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = StemBlock(channels_in, channels_out, stride)
        self.second = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.activation = nn.ReLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.activation(self.second(self.first(maps)) + self.shortcut(maps)))


class CnnForImageClassification(PreTrainedModel):  # type: ignore[no-untyped-call]  # its subclass hook has no types
    """A convolutional network with its classification head.

    >>> model = CnnForImageClassification(CnnConfig(image_size=8, widths=(8, 8), depths=(1, 1), num_labels=10))
    >>> model(torch.zeros(1, 3, 8, 8)).logits.shape
    torch.Size([1, 10])
    """

    config_class = CnnConfig
    base_model_prefix = "cnn"
    main_input_name = "pixel_values"
    # No gradient checkpointing: running a stage twice would move its batch norms' statistics twice.
    supports_gradient_checkpointing = False
    _no_split_modules = ["_Residual"]  # noqa: RUF012  # the type the base class declares

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        if config.kind == "plain":
            self.stem = nn.Sequential()
            inputs = (3, *config.widths)
            self.stages = nn.ModuleList(_plain_stage(*pair) for pair in itertools.pairwise(inputs))
        else:
            self.stem = nn.Sequential(*_residual_stem(config.widths[0], config.halvings))
            inputs = (config.widths[0], *config.widths)
            self.stages = nn.ModuleList(
                _residual_stage(inputs[index], inputs[index + 1], depth, stride=1 if index == 0 else 2)
                for index, depth in enumerate(config.depths)
            )
        # A module and not a mean over two axes: it becomes GlobalAveragePool, which every INT8 engine knows.
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(config.widths[-1], config.num_labels or 2)
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
        maps = self.stem(pixel_values)
        for stage in self.stages:
            maps = stage(maps)  # (batch, channels, rows, columns)
        return classified(self.classifier(self.pool(maps)), labels, self.config, return_dict=return_dict)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He et al.'s normal for convolutions in front of a ReLU (arXiv 1502.01852); the rest as transformers has it."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]  # transformers has no types here


def _plain_stage(channels_in: int, channels_out: int) -> nn.Module:
    # Rounded up, as a map of one place cannot be halved.
    return nn.Sequential(StemBlock(channels_in, channels_out, stride=1), nn.MaxPool2d(2, ceil_mode=True))


def _residual_stem(width: int, halvings: int) -> list[StemBlock]:
    strides = [2] * halvings or [1]
    return [StemBlock(3 if index == 0 else width, width, stride) for index, stride in enumerate(strides)]


def _residual_stage(channels_in: int, channels_out: int, depth: int, *, stride: int) -> nn.Module:
    first = _Residual(channels_in, channels_out, stride)
    return nn.Sequential(first, *(_Residual(channels_out, channels_out, stride=1) for _ in range(depth - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CnnPreset:
    """A named convolutional network.

    Attributes:
        kind: `plain` or `residual`.
        widths: channels of each stage.
        depths: blocks of each stage.
        summary: one line for people.
    """

    kind: Kind
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    summary: str

    def config(self, image_size: tuple[int, int]) -> CnnConfig:
        """Return the config for images of (height, width) pixels."""
        return CnnConfig(image_size=image_size, kind=self.kind, widths=self.widths, depths=self.depths)


CNN_PRESETS: dict[str, CnnPreset] = {
    "cnn": CnnPreset(kind="plain", widths=(32, 64, 128), depths=(1, 1, 1), summary="the articles' baseline"),
    # 16 channels at full resolution and not 32: twice as quick to train on a CPU, and nearly as many weights.
    "resnet-mini": CnnPreset(kind="residual", widths=(16, 64, 128), depths=(1, 1, 2), summary="teacher, 8 to 64 px"),
}
