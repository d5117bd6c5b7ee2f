"""The FP32 graphs that quantisers are compared on, and the data that go with them.

    digits     `nano`, 8 x 8 px: scikit-learn's handwritten digits
    fashion    `d64-l2-h2-r2`, 28 x 28 px: Fashion-MNIST
    cells      `d128-l4-h4-r2-t49`, 224 x 224 px: photographs of blood cells
    vit-s      ViT-S/16 (width 384, 12 layers, 6 heads), 224 x 224 px, random weights: only its latency means anything

The students are trained where they are not there yet, by fixed recipes, and kept under a name with the recipe's hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _fashion import fashion_data

GRAPHS = ("digits", "fashion", "cells", "vit-s")
UNTRAINED = ("vit-s",)

# Chosen on the validation splits: enough for a student whose errors are worth counting, in minutes on a core.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "nano",
        "epochs": 60,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "shift": 0.0625,
        "mixup": 0.2,
    },
    "fashion": {
        "model": "d64-l2-h2-r2",
        "epochs": 15,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "ema": 0.998,
        "augment": ("flip",),
    },
    "cells": {
        "model": "d128-l4-h4-r2-t49",
        "image_size": 224,
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "augment": ("flip", "vertical-flip", "rotate"),
    },
}
_VIT_S: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
}
_VIT_S_IMAGES = 300  # training images of its data: a forward pass takes 50 ms, and they are only there to be computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One FP32 graph to quantise.

    Attributes:
        name: of `GRAPHS`.
        graph: an `.onnx` file of edgebert's.
        data: DATA whose training split calibrates and whose test split judges.
    """

    name: str
    graph: Path
    data: str

    @property
    def trained(self) -> bool:
        """Whether its answers mean anything."""
        return self.name not in UNTRAINED


def subject(name: str, source: Path, output: Path, *, graph: Path | None = None, epochs: int | None = None) -> Subject:
    """Return a graph with its data; what is missing is made under `output`, and reused when it is there.

    Args:
        name: of `GRAPHS`.
        source: the folder of `fashion_mnist/` and `bccd_cells/`.
        output: the folder to keep data and graphs in.
        graph: a ready graph instead of the recipe's.
        epochs: of training, instead of the recipe's.
    """
    output.mkdir(parents=True, exist_ok=True)
    data = _DATA[name](source, output)
    if graph is None:
        graph = _untrained_vit(data, output) if name in UNTRAINED else _student(name, data, output, epochs)
    return Subject(name=name, graph=graph, data=data)


def _digits(source: Path, output: Path) -> str:
    return "digits"


def _fashion(source: Path, output: Path) -> str:
    folder = output / "data" / "fashion"
    folder.parent.mkdir(exist_ok=True)
    if not folder.exists():
        fashion_data(source / "fashion_mnist", folder)
    return str(folder)


def _cells(source: Path, output: Path) -> str:
    return str(source / "bccd_cells")


def _few_cells(source: Path, output: Path) -> str:
    """Write some of the cells as a folder of their own: `edgebert quantize` would compare on all validation images."""
    from size_twin import write_images

    from edgebert.data import load_dataset

    folder = output / "data" / "few-cells"
    if not folder.exists():
        write_images(load_dataset(_cells(source, output)), folder, _VIT_S_IMAGES)
    return str(folder)


_DATA: dict[str, Callable[[Path, Path], str]] = {
    "digits": _digits,
    "fashion": _fashion,
    "cells": _cells,
    "vit-s": _few_cells,
}


def _student(name: str, data: str, output: Path, epochs: int | None) -> Path:
    from edgebert.export.graph import ExportOptions, graph_from_checkpoint
    from edgebert.train import TrainOptions, checkpoint_from_data

    recipe = RECIPES[name] | ({} if epochs is None else {"epochs": epochs})
    stem = output / f"{name}-{_short_hash(recipe)}"
    path = stem.with_suffix(".onnx")
    if not path.exists():
        checkpoint_from_data(data, stem, TrainOptions(**recipe, device="cpu", resume=True, force=True))
        graph_from_checkpoint(stem, path, ExportOptions(data=data))
    return path


def _untrained_vit(data: str, output: Path) -> Path:
    path = output / f"vit-s-{_short_hash(_VIT_S)}.onnx"
    if path.exists():
        return path
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from edgebert.card import ModelCard, Provenance
    from edgebert.data import load_dataset
    from edgebert.export.graph import ExportOptions, graph_from_checkpoint
    from edgebert.models.checkpoint import save_checkpoint
    from edgebert.preprocess import Preprocessing

    names = load_dataset(data).class_names
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**_VIT_S, id2label=dict(enumerate(names))))
    card = ModelCard(
        class_names=names, preprocessing=Preprocessing(height=224, width=224), provenance=Provenance(stage="import")
    )
    if not path.with_suffix("").exists():
        save_checkpoint(path.with_suffix(""), model, card, ())
    graph_from_checkpoint(path.with_suffix(""), path, ExportOptions(data=data))
    return path


def _short_hash(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
