"""Our rule against transformers' own image processors (their Pillow variants, which need no torchvision)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from edgebert._json import JsonObject
from edgebert.errors import BadDataError, RefusedError
from edgebert.models.pixels import PixelClassifier
from edgebert.models.processor import preprocessing_from_processor
from edgebert.preprocess import Preprocessing, load_image

SIZES = [(40, 40), (37, 61), (300, 200), (90, 301), (513, 353)]

# Processor -> settings as real checkpoints have them; {} is what the class itself has.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ViT", {}),
    ("ViT", {"size": {"height": 32, "width": 48}, "resample": 3, "image_mean": [0.4, 0.5, 0.6]}),
    ("ViT", {"size": 64, "resample": 0}),
    ("ViT", {"size": 64, "resample": 1}),
    ("ViT", {"size": 64, "resample": 4}),
    ("ViT", {"size": 64, "resample": 5}),
    ("ViT", {"size": 64, "do_rescale": False}),
    ("ViT", {"size": 64, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]}),
    ("ViT", {"size": 64, "do_normalize": False}),
    ("ViT", {"size": 64, "do_convert_rgb": True}),
    ("DeiT", {}),
    ("DeiT", {"size": 256, "crop_size": 224, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    ("DeiT", {"size": {"height": 32, "width": 32}, "crop_size": {"height": 24, "width": 30}}),
    ("DeiT", {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}),
    ("Beit", {}),
    ("Beit", {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224}),
    ("Bit", {}),
    ("Bit", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}),
    ("Bit", {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 27}, "resample": 2}),
    ("CLIP", {}),
    ("ConvNext", {}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNext", {"size": 224}),
    ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.95, "resample": 2}),
    ("ConvNext", {"size": {"shortest_edge": 400}}),
    ("EfficientNet", {}),
    ("EfficientNet", {"size": 64, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
    ("EfficientNet", {"size": 64, "do_center_crop": True, "crop_size": 56, "image_std": [0.2, 0.3, 0.4]}),
    ("Levit", {}),
    ("MobileNetV1", {}),
    ("MobileNetV2", {}),
    ("MobileViT", {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}),
    ("MobileViT", {"size": 40, "crop_size": 32, "do_flip_channel_order": False, "resample": 2}),
    ("PoolFormer", {}),
    ("PoolFormer", {"size": {"shortest_edge": 64}, "crop_pct": 0.95, "crop_size": 64}),
    ("Pvt", {}),
    ("Segformer", {}),
    ("Siglip", {}),
]


@pytest.fixture(autouse=True)
def rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Pillow resize along the rows first for transformers as well: 12.3 always does, 13.0 by the image's shape."""
    resize = Image.Image.resize

    def in_two_steps(
        image: Image.Image, size: tuple[int, int], resample: int, box: Any = None, reducing_gap: None = None
    ) -> Image.Image:
        assert reducing_gap is None
        if box is not None:  # ours
            return resize(image, size, resample, box)
        return resize(resize(image, (size[0], image.height), resample), (size[0], size[1]), resample)

    monkeypatch.setattr(Image.Image, "resize", in_two_steps)


def processed_by_transformers(name: str, settings: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0], np.float32)


def processed_by_us(rule: Preprocessing, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    classifier = PixelClassifier(nn.Identity(), rule)  # type: ignore[arg-type]  # only its normalisation is used
    batch = torch.from_numpy(load_image(image, rule)).unsqueeze(0)
    return np.asarray(classifier.normalized(batch)[0].numpy())


def random_image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_preprocessing_from_processor_gives_the_tensors_of_transformers(name: str, settings: dict[str, Any]) -> None:
    rule = preprocessing_from_processor({"image_processor_type": f"{name}ImageProcessor", **settings}, what="a file")
    for size in SIZES:
        image = random_image(*size)
        theirs = processed_by_transformers(name, settings, image)
        ours = processed_by_us(rule, image)
        assert ours.shape == theirs.shape
        # Where values are not rescaled they reach 255 / std: rounding is relative.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5 if settings.get("do_rescale") is False else 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES} - {"MobileViT"}))
def test_preprocessing_from_processor_reads_what_transformers_saves(name: str) -> None:
    processor = getattr(transformers, f"{name}ImageProcessorPil")()
    saved = json.loads(processor.to_json_string())
    bare = {"image_processor_type": f"{name}ImageProcessor"}
    assert preprocessing_from_processor(saved, what="a file") == preprocessing_from_processor(bare, what="a file")


def test_preprocessing_from_processor_keeps_mean_and_std_exactly_when_the_factor_is_a_255th() -> None:
    value: JsonObject = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 0.00392156862745098,
    }
    rule = preprocessing_from_processor(value, what="a file")
    assert rule == Preprocessing(
        height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
    )


def test_preprocessing_from_processor_takes_one_mean_for_all_channels() -> None:
    rule = preprocessing_from_processor(
        {"image_processor_type": "ViTImageProcessorFast", "image_mean": 0.25, "image_std": 0.125}, what="a file"
    )
    assert (rule.mean, rule.std) == ((0.25,) * 3, (0.125,) * 3)


@pytest.mark.parametrize(
    ("value", "model_type", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, None, ("stretch", None, "bilinear")),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 40, "crop_size": 32},
            None,
            ("stretch-crop", 40, "bicubic"),
        ),
        ({"size": 40, "crop_size": 32}, "deit", ("stretch-crop", 40, "bicubic")),
        ({"size": 40, "crop_size": 32}, "dinov2", ("crop", 40, "bicubic")),
        ({"size": 32}, "resnet", ("crop", 36, "bicubic")),
        ({"size": [32, 32]}, "swin", ("stretch", None, "bilinear")),
    ],
)
def test_preprocessing_from_processor_reads_old_files(
    value: JsonObject, model_type: str | None, expected: tuple[str, int | None, str]
) -> None:
    rule = preprocessing_from_processor(value, what="a file", model_type=model_type)
    assert (rule.resize, rule.shortest_edge, rule.interpolation) == expected
    assert (rule.height, rule.width) == (32, 32)


def test_preprocessing_from_processor_marks_bgr() -> None:
    rule = preprocessing_from_processor(
        {"image_processor_type": "MobileViTImageProcessor", "size": 288, "crop_size": 256}, what="a file"
    )
    assert (rule.channel_order, rule.mean, rule.std) == ("bgr", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"do_pad": True}, "it pads"),
        ({"do_resize": False}, "does not resize"),
        ({"size": {"shortest_edge": 224}}, "crops nothing"),
        ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "`longest_edge`, `shortest_edge`"),
        ({"size": {"max_height": 224, "max_width": 448}}, "`max_height`"),
        ({"size": {}}, "nothing"),
        ({"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 32}, "padded with black"),
        ({"size": {"height": 32, "width": 24}, "do_center_crop": True, "crop_size": 32}, "padded with black"),
        ({"size": {"height": 32, "width": 40}, "do_center_crop": True, "crop_size": 32}, "stretches to 32 x 40"),
        ({"do_pan_and_scan": True}, "`do_pan_and_scan` is unknown"),
        ({"size_divisor": 32}, "`size_divisor` is unknown"),
    ],
)
def test_preprocessing_from_processor_refuses_with_the_reason_what_it_cannot_reproduce(
    value: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadDataError, match="cannot reproduce") as raised:
        preprocessing_from_processor({"image_processor_type": "ViTImageProcessor", **value}, what="a file")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, "ImageGPTImageProcessor"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 32, "width": 32}}, "shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 1.5}, "crop_pct"),
        ({"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True}, "crops twice"),
        ({"image_processor_type": "PoolFormerImageProcessor", "size": {"height": 32, "width": 40}}, "not square"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "padded with black"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 6}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "size": "large"}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "size": 0}, "height"),
        ({"image_processor_type": "ViTImageProcessor", "size": [1.5, 2]}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}, "image_mean"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.5, 0.0]}, "std"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 0}, "rescale_factor"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": "yes"}, "do_resize"),
        ({"image_processor_type": 7}, "image_processor_type"),
        ({"size": 224}, "unheard-of"),
    ],
)
def test_preprocessing_from_processor_refuses_malformed_files(value: JsonObject, found: str) -> None:
    with pytest.raises(BadDataError) as raised:
        preprocessing_from_processor(value, what="a file", model_type="unheard-of")
    assert found in str(raised.value)


def test_preprocessing_from_processor_refuses_code_of_its_own() -> None:
    value: JsonObject = {"image_processor_type": "ViTImageProcessor", "auto_map": {"AutoImageProcessor": "mine.Mine"}}
    with pytest.raises(RefusedError, match="auto_map"):
        preprocessing_from_processor(value, what="a file")
