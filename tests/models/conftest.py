"""Tiny random classifiers of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from edgebert.models.checkpoint import new_model
from edgebert.preprocess import Preprocessing

CLASSES = ("cat", "dog", "hen")
ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"depths": [1, 1], "hidden_sizes": [8, 16], "image_size": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "ViT": ENCODER,
    "DeiT": ENCODER,
    "Beit": {**ENCODER, "layer_scale_init_value": 0.5, "use_relative_position_bias": True},
    "Dinov2": {**ENCODER, "mlp_ratio": 2, "layerscale_value": 0.5},
    "Dinov2WithRegisters": {**ENCODER, "mlp_ratio": 2, "num_register_tokens": 3},
    "Swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ConvNext": {**STAGES, "num_stages": 2},
    "ResNet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "MobileViT": {
        "image_size": 32,
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
        "num_attention_heads": 2,
    },
}

MakeClassifier = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def classifier_of() -> MakeClassifier:
    """Make a model: a family of transformers for images of 32 pixels, or one of our presets and shapes for 16."""

    def make(name: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        if name not in SHAPES:
            rule = Preprocessing(height=16, width=16)
            return new_model(name, preprocessing=rule, class_names=CLASSES, seed=seed)
        labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {label: i for i, label in enumerate(CLASSES)}}
        config = getattr(transformers, f"{name}Config")(**{**SHAPES[name], **labels, **changes})
        config._attn_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = getattr(transformers, f"{name}ForImageClassification")(config)
            # Layer norms, biases, tokens and positions start as constants, which would hide a wrong weight.
            for weight in model.parameters():
                weight.data += 0.1 * torch.randn_like(weight)
        model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
        return model

    return make
