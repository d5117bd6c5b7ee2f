"""Batches: every image once an epoch, the same pixels from memory and from the threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgebert.data import Example
from edgebert.preprocess import Preprocessing, RgbImage, load_image, pixel_sha256
from edgebert.train.batches import ImageBatches, shuffled_batches
from edgebert.train.optimizer import adamw, learning_rate_at

_RULE = Preprocessing(height=6, width=6)


@pytest.fixture
def examples() -> list[Example]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (9, 7 + index % 3, 3), dtype=np.uint8) for index in range(23)]
    return [
        Example(id=f"{index}.png", label=index % 4, pixel_sha256=pixel_sha256(image), source=image)
        for index, image in enumerate(images)
    ]


@pytest.mark.parametrize("ram_bytes", [1 << 20, 0])
def test_image_batches_read_what_preprocess_makes(examples: list[Example], ram_bytes: int) -> None:
    images = ImageBatches(examples, _RULE, ram_bytes=ram_bytes)
    assert images.in_memory is (ram_bytes > 0)
    parts = shuffled_batches(len(images), 4, seed=1)
    for positions, (pixels, labels) in zip(parts, images.read(parts), strict=True):
        expected = np.stack([load_image(examples[position].load(), _RULE) for position in positions])
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), expected)
        assert labels.tolist() == [examples[position].label for position in positions]


def test_image_batches_stop_decoding_when_the_reader_stops(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageBatches(examples, _RULE, ram_bytes=0)
    decoded: list[int] = []
    load = images._load

    def remember(position: int) -> RgbImage:
        decoded.append(position)
        return load(position)

    monkeypatch.setattr(images, "_load", remember)
    reader = images.read(shuffled_batches(len(images), 2, seed=1))
    next(reader)
    reader.close()  # type: ignore[attr-defined]  # a generator
    assert 2 <= len(decoded) <= 6 < len(images)  # the batch that was read, and the two ahead of it at most


def test_in_order_yields_the_split_in_order(examples: list[Example]) -> None:
    images = ImageBatches(examples, _RULE)
    labels = torch.cat([labels for _, labels in images.in_order(5)])
    assert labels.tolist() == [example.label for example in examples]


def test_shuffled_batches_hold_every_image_once_in_equal_batches() -> None:
    batches = shuffled_batches(1293, 64, seed=3)
    assert len(batches) == 21
    assert {len(batch) for batch in batches} == {61, 62}
    assert sorted(np.concatenate(batches)) == list(range(1293))


def test_shuffled_batches_follow_the_seed() -> None:
    first, again, other = (np.concatenate(shuffled_batches(100, 10, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_shuffled_batches_give_each_process_its_own_images() -> None:
    shares = [shuffled_batches(101, 10, seed=1, share=(rank, 3)) for rank in range(3)]
    assert len({len(batches) for batches in shares}) == 1
    assert sorted(np.concatenate([np.concatenate(batches) for batches in shares])) == list(range(101))


def test_learning_rate_at_rises_and_falls() -> None:
    rates = [learning_rate_at(step, steps=100, warmup_steps=10, peak=2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.02)


def test_learning_rate_at_is_finite_when_there_is_one_step() -> None:
    assert learning_rate_at(0, steps=1, warmup_steps=0, peak=1.0) == 1.0


def test_adamw_decays_matrices_only() -> None:
    model = nn.Module()
    model.dense = nn.Linear(3, 4)
    model.norm = nn.LayerNorm(4)
    model.position_embeddings = nn.Embedding(5, 4)
    model.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
    model.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    decayed, free = adamw(model, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3)]
    assert sum(parameter.numel() for parameter in free["params"]) == 4 + 4 + 4 + 20 + 4
