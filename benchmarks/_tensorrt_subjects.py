"""The networks whose graphs are held against TensorRT's rules: random weights, exported and quantised by edgebert.

    presets        nano 8 px, micro 32 px, tiny 64 px, small 224 px, and the CNNs cnn and resnet-mini at 32 px
    bert           the BERT classifier, bert-medium at 224 px
    vit-s          ViT-S/16, 224 px            deit     DeiT-Ti/16, 224 px
    swin-t         Swin-T, 224 px              resnet   ResNet-18, 224 px

Small ones have the same families' operators in seconds: two or three blocks, 32 px. Every weight gets normal noise on top of its
random start, so that norms, biases and positions are no constants and attention is not uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

from edgebert.calibration.calibrate import Calibration, QuantizationRecipe, calibrated
from edgebert.calibration.placement import Layout
from edgebert.card import ModelCard, Provenance
from edgebert.examples import ExampleImage, example_png
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.metadata import parse_graph
from edgebert.models.checkpoint import new_model, save_checkpoint
from edgebert.preprocess import Preprocessing, resize_image

CLASSES = tuple(f"class {number}" for number in range(10))

_PRESETS = {
    "nano": (8, 8),
    "micro": (32, 16),
    "tiny": (64, 32),
    "small": (224, 32),
    "cnn": (32, 16),
    "resnet-mini": (32, 16),
}
_BERT = {"full": ("bert-medium", 224), "small": ("bert-nano", 16)}
_VIT: dict[str, Any] = {"num_hidden_layers": 12, "image_size": 224, "patch_size": 16}
_TINY_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
# name -> family of transformers, full configuration (the published one), small configuration
_FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit-s": ("ViT", {**_VIT, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}, _TINY_VIT),
    "deit": ("DeiT", {**_VIT, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}, _TINY_VIT),
    "swin-t": (
        "Swin",
        {"image_size": 224, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
        # Two blocks in a stage: the second shifts its windows, which needs a mask.
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "resnet": (
        "ResNet",
        {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
}
SUBJECTS = (*_PRESETS, "bert", *_FAMILIES)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network with what was measured of it.

    Attributes:
        name: of `SUBJECTS`.
        float32: its FP32 graph.
        calibration: of some crops of photographs.
        images: uint8 (images, height, width, 3): other crops.
    """

    name: str
    float32: onnx.ModelProto
    calibration: Calibration
    images: NDArray[np.uint8]

    def int8(self, layout: Layout | None = None) -> onnx.ModelProto:
        """Return the INT8 graph of a layout; the portable one where none is given."""
        scaled = self.calibration.scaled(QuantizationRecipe())
        return scaled.emitted(self.calibration.places(layout or Layout()))

    @property
    def has_attention(self) -> bool:
        """Whether there are products that a layout may quantise beside the portable graph."""
        return bool(self.calibration.placement.products)


def subject(
    name: str, folder: Path, *, full: bool, calibrate: int = 8, judge: int = 16, noise: float = 0.05
) -> Subject:
    """Make a network, export it, and measure it for INT8.

    Args:
        name: of `SUBJECTS`.
        folder: an empty one, for the checkpoint and the graph.
        full: the published size, or a small one.
        calibrate: how many crops are measured.
        judge: how many others are returned.
        noise: standard deviation of what every weight is moved by.
    """
    model, side = _model(name, full=full)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.data += noise * torch.randn_like(weight)
    rule = Preprocessing(height=side, width=side)
    photographs = crops(max(side, 32), calibrate + judge)
    card = ModelCard(class_names=CLASSES, preprocessing=rule, provenance=Provenance(stage="import"))
    examples = [ExampleImage((CLASSES[number],), example_png(photographs[number], rule)) for number in range(4)]
    save_checkpoint(folder, model, card, examples)
    graph_from_checkpoint(folder, folder / "graph.onnx")
    graph = parse_graph(folder / "graph.onnx")
    images = np.stack([resize_image(photograph, rule) for photograph in photographs])
    measured = calibrated(graph, lambda: iter(images[:calibrate]), calibrate)
    return Subject(name=name, float32=graph, calibration=measured, images=images[calibrate:])


def crops(side: int, count: int) -> list[NDArray[np.uint8]]:
    """Return uint8 (side, side, 3): crops of scikit-learn's two photographs, the same in every call."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    found = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (int(rng.integers(0, edge - side + 1)) for edge in photograph.shape[:2])
        found.append(np.ascontiguousarray(photograph[top : top + side, left : left + side]))
    return found


def _model(name: str, *, full: bool) -> tuple[transformers.PreTrainedModel, int]:
    if name in _FAMILIES:
        family, published, small = _FAMILIES[name]
        side = 224 if full else 32
        return _of_transformers(family, published if full else small), side
    preset, side = _BERT["full" if full else "small"] if name == "bert" else (name, _PRESETS[name][0 if full else 1])
    rule = Preprocessing(height=side, width=side)
    return new_model(preset, preprocessing=rule, class_names=CLASSES, seed=0), side


def _of_transformers(family: str, shape: dict[str, Any]) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**shape, id2label=dict(enumerate(CLASSES)))
    config._attn_implementation = "eager"
    make: Callable[..., transformers.PreTrainedModel] = getattr(transformers, f"{family}ForImageClassification")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(config).eval()
