"""Hugging Face image processors, read from their JSON and turned into our one preprocessing rule, or refused with the reason.

What a file leaves out comes from the processor's class. Our result equals the Pillow variants of transformers ("slow", or
`backend="pil"`), which the tests hold it against; their torchvision variants may differ from both by a grey level.

A processor computes (value * factor - mean) / std of values from 0 to 255, ours (value / 255 - mean) / std. So a factor other
than 1/255 is folded into mean and std: with scale = 255 * factor, ours are mean / scale and std / scale.

>>> rule = preprocessing_from_processor({"image_processor_type": "ViTImageProcessor", "size": 32}, what="an example")
>>> rule.height, rule.resize, rule.mean
(32, 'stretch', (0.5, 0.5, 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError, RefusedError
from edgebert.preprocess import Interpolation, Preprocessing

_Rgb: TypeAlias = tuple[float, float, float]

# Pillow's numbers, as the files hold them.
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# transformers.image_utils
_HALF: _Rgb = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: _Rgb = (0.485, 0.456, 0.406)
_IMAGENET_STD: _Rgb = (0.229, 0.224, 0.225)
_CLIP_MEAN: _Rgb = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: _Rgb = (0.26862954, 0.26130258, 0.27577711)

# Keys that decide pixels and are understood below.
_UNDERSTOOD = frozenset(
    (
        *("do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "crop_pct", "do_pad"),
        *("do_rescale", "rescale_factor", "rescale_offset", "do_normalize", "image_mean", "image_std", "include_top"),
        "do_flip_channel_order",
    )
)
# Keys that change no pixel of one RGB image: names, file formats, how batches are made, segmentation maps, and the
# conversion to RGB, which has always happened here.
_WITHOUT_EFFECT = frozenset(
    (
        *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "backend", "device"),
        *("do_convert_rgb", "do_reduce_labels", "reduce_labels", "data_format", "input_data_format", "return_tensors"),
        *("disable_grouping", "pad_size", "_valid_processor_keys"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resizing:
    """What is scaled, and what is then cut from the centre.

    Attributes:
        edges: (height, width) to scale to, or one number for the shortest edge.
        crop: (height, width) to cut, or None for all of it.
    """

    edges: tuple[int, int] | int
    crop: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Processor:
    """The defaults of a processor's class, and how it resizes.

    Attributes:
        size: `size` where the file has none.
        crop_size: `crop_size` where the file has none.
        center_crop: `do_center_crop` where the file has none.
        resample: Pillow's number.
        mean: of normalisation.
        std: of normalisation.
        square: a `size` of one number means both edges, not the shortest.
        normalizes: False where the class never normalises, whatever the file says.
        include_top: the class divides by the standard deviation once more.
        flips: `do_flip_channel_order` where the file has none.
        resizing: makes the class's own steps from (settings, size, crop size or None).
    """

    size: JsonValue
    crop_size: JsonValue = 224
    center_crop: bool = True
    resample: int = 3
    mean: _Rgb = _HALF
    std: _Rgb = _HALF
    square: bool = False
    normalizes: bool = True
    include_top: bool = False
    flips: bool = False
    resizing: Callable[[_Settings, tuple[int, int] | int, tuple[int, int] | None], _Resizing]


class _Settings:
    """The settings of one file, with the defaults of its class."""

    def __init__(self, value: JsonObject, *, what: str) -> None:
        self.fields = Fields(value, what=what)
        self.what = what

    def flag(self, key: str, default: bool) -> bool:
        value = self.fields.value.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadDataError(f"{self.what} holds `{value!r:.80}` as `{key}`", expected="true or false")
        return value

    def number(self, key: str, default: float) -> float:
        return default if self.fields.value.get(key) is None else self.fields.number(key)

    def channels(self, key: str, default: _Rgb) -> _Rgb:
        value = self.fields.value.get(key)
        if value is None:
            return default
        values = self.fields.numbers(key) if isinstance(value, (list, tuple)) else (self.fields.number(key),) * 3
        if len(values) != 3:
            raise BadDataError(
                f"{self.what} holds {len(values)} numbers as `{key}`", expected="one for each of 3 channels"
            )
        return values[0], values[1], values[2]

    def size(self, key: str, default: JsonValue, *, square: bool) -> tuple[int, int] | int:
        """Return (height, width), or one number for the shortest edge."""
        value = self.fields.value.get(key)
        value = default if value is None else value
        if isinstance(value, Mapping):
            sides = Fields(value, what=f"{self.what}, `{key}`")
            if set(value) == {"height", "width"}:
                return sides.integer("height"), sides.integer("width")
            if set(value) == {"shortest_edge"}:
                return sides.integer("shortest_edge")
            raise self.refused(f"`{key}` has {', '.join(f'`{name}`' for name in sorted(value)) or 'nothing'}")
        if isinstance(value, (list, tuple)) and len(value) == 2:
            pair = Fields({"height": value[0], "width": value[1]}, what=f"{self.what}, `{key}`")
            return pair.integer("height"), pair.integer("width")
        side = Fields({key: value}, what=self.what).integer(key)
        return (side, side) if square else side

    def refused(self, reason: str) -> BadDataError:
        return BadDataError(
            f"{self.what} asks for preprocessing that edgebert cannot reproduce: {reason}",
            expected="stretch to a fixed size, or shortest edge and centre crop, then rescale and normalise",
            hint="change the file to the nearest rule of this kind, and fine-tune with `edgebert train`",
        )


def preprocessing_from_processor(value: JsonObject, *, what: str, model_type: str | None = None) -> Preprocessing:
    """Turn the content of a `preprocessor_config.json` into our rule.

    Args:
        value: the parsed file.
        what: what it is, for messages.
        model_type: the model's, which names the processor where an old file does not.

    Raises:
        BadDataError: a value is malformed, or the rule cannot be reproduced; the reason is in the message.
        RefusedError: it asks for code of its own.
    """
    if "auto_map" in value:
        raise RefusedError(f"{what} asks for code of its own (`auto_map`)", expected="a processor of transformers")
    settings = _Settings(value, what=what)
    processor = _processor(settings, model_type)
    _check_keys(settings)
    sample = int(settings.number("resample", processor.resample))
    if not 0 <= sample < len(_INTERPOLATIONS):
        raise BadDataError(f"{what} holds `{sample}` as `resample`", expected="a filter of Pillow's, 0 to 5")
    size = settings.size("size", processor.size, square=settings.flag("default_to_square", processor.square))
    crop = None
    if settings.flag("do_center_crop", processor.center_crop):
        wanted = settings.size("crop_size", processor.crop_size, square=True)
        crop = (wanted, wanted) if isinstance(wanted, int) else wanted
    mean, std = _normalization(settings, processor)
    return _rule(
        settings,
        processor.resizing(settings, size, crop),
        interpolation=_INTERPOLATIONS[sample],
        mean=mean,
        std=std,
        bgr=settings.flag("do_flip_channel_order", processor.flips),
    )


def _processor(settings: _Settings, model_type: str | None) -> _Processor:
    fields = settings.fields
    named = fields.optional_text("image_processor_type") or fields.optional_text("feature_extractor_type")
    if named is None:
        named = _TYPE_OF_MODEL.get(model_type or "", f"the processor of `{model_type}`")
    for suffix in ("Fast", "Pil"):
        named = named.removesuffix(suffix)
    known = named.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if known not in _PROCESSORS:
        raise BadDataError(
            f"{settings.what} is of type `{named}`, which edgebert cannot reproduce",
            expected=", ".join(f"{name}ImageProcessor" for name in sorted(_PROCESSORS)),
        )
    return _PROCESSORS[known]


def _check_keys(settings: _Settings) -> None:
    value = settings.fields.value
    unknown = sorted(
        key for key in value if key not in _UNDERSTOOD | _WITHOUT_EFFECT and value[key] not in (None, False)
    )
    if unknown:
        raise settings.refused(f"`{unknown[0]}` is unknown")
    if settings.flag("do_pad", False):
        raise settings.refused("it pads (`do_pad`)")
    if not settings.flag("do_resize", True):
        raise settings.refused("it does not resize (`do_resize` is false), so the network's input has no fixed size")


def _normalization(settings: _Settings, processor: _Processor) -> tuple[_Rgb, _Rgb]:
    """Return our mean and std: see the top of this module."""
    factor = settings.number("rescale_factor", 1 / 255) if settings.flag("do_rescale", True) else 1.0
    if not math.isfinite(factor) or factor <= 0:
        raise BadDataError(f"{settings.what} holds `{factor}` as `rescale_factor`", expected="a number above 0")
    scale = 1.0 if math.isclose(255 * factor, 1.0, rel_tol=1e-6) else 255 * factor  # files hold 0.00392156862745098
    offset = -1.0 if settings.flag("rescale_offset", False) else 0.0
    normalizes = processor.normalizes and settings.flag("do_normalize", True)
    class_std = settings.channels("image_std", processor.std)
    mean = settings.channels("image_mean", processor.mean) if normalizes else (0.0, 0.0, 0.0)
    std = class_std if normalizes else (1.0, 1.0, 1.0)
    again = class_std if settings.flag("include_top", processor.include_top) else (1.0, 1.0, 1.0)
    means = [(value - offset) / scale for value in mean]
    stds = [first * second / scale for first, second in zip(std, again, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _rule(
    settings: _Settings, resizing: _Resizing, *, interpolation: Interpolation, mean: _Rgb, std: _Rgb, bgr: bool
) -> Preprocessing:
    edges, crop = resizing.edges, resizing.crop
    if isinstance(edges, int) and crop is None:
        raise settings.refused(
            "it scales the shortest edge and crops nothing, so the network's input has no fixed size"
        )
    if crop is not None and max(crop) > (edges if isinstance(edges, int) else min(edges)):
        raise settings.refused(
            f"it crops {crop[0]} x {crop[1]} pixels from a smaller image, which is padded with black"
        )
    if not isinstance(edges, int) and crop not in (None, edges) and edges[0] != edges[1]:
        raise settings.refused(f"it stretches to {edges[0]} x {edges[1]} pixels and then crops")
    stretched = not isinstance(edges, int) and crop in (None, edges)
    height, width = crop if crop is not None else (edges, edges) if isinstance(edges, int) else edges
    return Preprocessing(
        height=height,
        width=width,
        resize="crop" if isinstance(edges, int) else "stretch" if stretched else "stretch-crop",
        shortest_edge=None if stretched else edges if isinstance(edges, int) else edges[0],
        interpolation=interpolation,
        mean=mean,
        std=std,
        channel_order="bgr" if bgr else "rgb",
    )


def _plain(settings: _Settings, size: tuple[int, int] | int, crop: tuple[int, int] | None) -> _Resizing:
    return _Resizing(edges=size, crop=crop)


def _convnext(settings: _Settings, size: tuple[int, int] | int, crop: tuple[int, int] | None) -> _Resizing:
    """Below 384 pixels, scale the shortest edge to size / crop_pct and crop to size; from there on, stretch."""
    if not isinstance(size, int):
        raise settings.refused("a ConvNextImageProcessor needs `shortest_edge` in `size`")
    if crop is not None:
        raise settings.refused("a ConvNextImageProcessor with `do_center_crop` crops twice")
    if size >= 384:
        return _Resizing(edges=(size, size), crop=None)
    return _Resizing(edges=int(size / _crop_pct(settings, 224 / 256)), crop=(size, size))


def _levit(settings: _Settings, size: tuple[int, int] | int, crop: tuple[int, int] | None) -> _Resizing:
    return _Resizing(edges=int((256 / 224) * size) if isinstance(size, int) else size, crop=crop)


def _poolformer(settings: _Settings, size: tuple[int, int] | int, crop: tuple[int, int] | None) -> _Resizing:
    if not isinstance(size, int) and size[0] != size[1]:
        raise settings.refused("a PoolFormerImageProcessor with a `size` that is not square")
    side = size if isinstance(size, int) else size[0]
    return _Resizing(edges=int(side / _crop_pct(settings, 0.9)), crop=crop)


def _crop_pct(settings: _Settings, default: float) -> float:
    share = settings.number("crop_pct", default)
    if not 0 < share <= 1:
        raise BadDataError(f"{settings.what} holds `{share}` as `crop_pct`", expected="above 0, at most 1")
    return share


# The defaults of each class in transformers (models/*/image_processing_*.py); tests compare results with those classes.
_PROCESSORS: dict[str, _Processor] = {
    "ViT": _Processor(size=224, center_crop=False, resample=2, square=True, resizing=_plain),
    "DeiT": _Processor(size=256, square=True, resizing=_plain),
    "Beit": _Processor(size=224, center_crop=False, square=True, resizing=_plain),
    "Bit": _Processor(size=224, mean=_CLIP_MEAN, std=_CLIP_STD, resizing=_plain),
    "CLIP": _Processor(size=224, mean=_CLIP_MEAN, std=_CLIP_STD, resizing=_plain),
    "ConvNext": _Processor(size=384, center_crop=False, resizing=_convnext),
    "EfficientNet": _Processor(
        size=346, crop_size=289, center_crop=False, square=True, include_top=True, resizing=_plain
    ),
    "Levit": _Processor(size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, resizing=_levit),
    "MobileNetV1": _Processor(size=256, resample=2, resizing=_plain),
    "MobileNetV2": _Processor(size=256, resample=2, resizing=_plain),
    "MobileViT": _Processor(size=224, crop_size=256, normalizes=False, flips=True, resizing=_plain),
    "PoolFormer": _Processor(size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, resizing=_poolformer),
    "Pvt": _Processor(
        size=224, center_crop=False, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, square=True, resizing=_plain
    ),
    "Segformer": _Processor(
        size=512, center_crop=False, resample=2, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, square=True, resizing=_plain
    ),
    "Siglip": _Processor(size={"height": 224, "width": 224}, center_crop=False, resizing=_plain),
}

# For old files that name no class: the processor that transformers takes for the model.
_TYPE_OF_MODEL = {
    "beit": "Beit",
    "bit": "Bit",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "cvt": "ConvNext",
    "data2vec-vision": "Beit",
    "deit": "DeiT",
    "dinat": "ViT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "efficientnet": "EfficientNet",
    "focalnet": "Bit",
    "hiera": "Bit",
    "levit": "Levit",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT",
    "mobilevitv2": "MobileViT",
    "poolformer": "PoolFormer",
    "pvt": "Pvt",
    "pvt_v2": "Pvt",
    "regnet": "ConvNext",
    "resnet": "ConvNext",
    "segformer": "Segformer",
    "siglip": "Siglip",
    "swiftformer": "ViT",
    "swin": "ViT",
    "swinv2": "ViT",
    "vit": "ViT",
    "vit_msn": "ViT",
}
