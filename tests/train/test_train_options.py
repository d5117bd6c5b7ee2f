"""Options refuse what cannot be meant, and say what would be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgebert.errors import UsageError
from edgebert.train.options import DistillOptions, TrainOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": " "},
        {"image_size": 2},
        {"resize": "squash"},
        {"epochs": 0},
        {"batch_size": 0},
        {"accumulate": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
        {"warmup": 1.0},
        {"clip_norm": float("inf")},
        {"mixed_precision": "int8"},
        {"augment": ("flip", "flop")},
        {"augment": ("flip", "flip")},
        {"shift": 0.6},
        {"rotation": 181.0},
        {"crop_scale": 0.0},
        {"mixup": -1.0},
        {"ema": 1.0},
        {"seed": -1},
        {"examples": 2},
        {"workers": -1},
        {"max_skipped": 1.0},
    ],
)
def test_train_options_refuse_a_value_outside_its_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        TrainOptions(**{"model": "nano", **wrong})
    value = next(iter(wrong.values()))
    assert (value[1] if isinstance(value, tuple) else str(value)) in caught.value.what
    assert caught.value.expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"student": ""},
        {"temperature": 0.0},
        {"kl_weight": -0.1},
        {"epochs": 0},
        {"unlabelled": True, "label_weight": 0.5},
        {"unlabelled": True, "sampling": "balanced"},
        {"unlabelled": True, "class_map": {"a": "b"}},
        {"kl_weight": 0.0, "label_weight": 0.0},
        {"cache_views": 4, "early_weight": 0.5},
    ],
)
def test_distill_options_refuse_a_value_outside_its_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DistillOptions(**{"student": "nano", **wrong})


def test_derived_fills_in_only_what_was_left_open() -> None:
    options = TrainOptions(model="nano", epochs=7).derived(image_size=32, resize="crop", epochs=100, learning_rate=1e-3)
    assert (options.image_size, options.resize, options.epochs, options.learning_rate) == (32, "crop", 7, 1e-3)


def test_to_json_holds_what_decides_the_outcome_and_no_path() -> None:
    stored = DistillOptions(student="/somewhere/student", resume=True, force=True).to_json()
    decides = {field.name for field in dataclasses.fields(DistillOptions)}
    assert decides - set(stored) == {
        "cache",
        "force",
        "gradient_checkpointing",
        "resume",
        "revision",
        "save_every",
        "student",
        "teachers",
        "workers",
    }
    assert "/somewhere" not in str(stored)
    assert stored["augment"] == ["shift", "rotate"]
    assert stored["temperature"] == 4.0
