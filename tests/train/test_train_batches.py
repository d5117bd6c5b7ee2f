"""Batches: every image once an epoch, the same pixels from memory and from the threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgebert.data import Example
from edgebert.preprocess import Preprocessing, RgbImage, load_image, pixel_sha256
from edgebert.train.batches import ImageBatches, balancing_weights, shuffled_batches
from edgebert.train.optimizer import adamw, learning_rate_at, set_learning_rate

_RULE = Preprocessing(height=6, width=6)


@pytest.fixture
def examples() -> list[Example]:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (9, 7 + index % 3, 3), dtype=np.uint8) for index in range(23)]
    return [
        Example(id=f"{index}.png", labels=(index % 4,), pixel_sha256=pixel_sha256(image), source=image)
        for index, image in enumerate(images)
    ]


@pytest.mark.parametrize("kept", ["memory", "file", "nowhere"])
def test_image_batches_read_what_preprocess_makes(examples: list[Example], kept: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" if kept == "file" else None
    images = ImageBatches(examples, _RULE, classes=4, folder=folder, ram_bytes=1 << 20 if kept == "memory" else 0)
    assert images.decodes_once is (kept != "nowhere")
    assert len(list(tmp_path.rglob("*.bin"))) == (kept == "file")
    parts = shuffled_batches(len(images), 4, seed=1)
    for positions, pixels in zip(parts, images.read(parts), strict=True):
        expected = np.stack([load_image(examples[position].load(), _RULE) for position in positions])
        assert pixels.dtype == torch.uint8
        assert np.array_equal(pixels.numpy(), expected)
        assert images.targets(positions).argmax(axis=1).tolist() == [examples[at].label for at in positions]


def test_image_batches_use_the_file_that_another_process_made(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageBatches(examples, _RULE, classes=4, folder=tmp_path, ram_bytes=0)
    monkeypatch.setattr("edgebert.train.batches.load_image", lambda *_: pytest.fail("decoded again"))
    second = ImageBatches(examples, _RULE, classes=4, folder=tmp_path, ram_bytes=0)
    parts = [np.arange(23)]
    assert torch.equal(next(iter(first.read(parts))), next(iter(second.read(parts))))


def test_image_batches_take_no_file_of_other_images_or_another_rule(examples: list[Example], tmp_path: Path) -> None:
    for rule, chosen in ((_RULE, examples), (_RULE, examples[:-1]), (Preprocessing(height=5, width=6), examples)):
        images = ImageBatches(chosen, rule, classes=4, folder=tmp_path, ram_bytes=0)
        expected = np.stack([load_image(example.load(), rule) for example in chosen])
        assert np.array_equal(next(iter(images.read([np.arange(len(chosen))]))).numpy(), expected)
    assert len(list(tmp_path.glob("*.bin"))) == 3


def test_image_batches_hold_several_labels_and_none() -> None:
    image = np.zeros((6, 6, 3), np.uint8)
    labels: list[tuple[int, ...]] = [(0, 2), (), (1,)]
    images = ImageBatches(
        [
            Example(id=str(at), labels=chosen, pixel_sha256=pixel_sha256(image), source=image)
            for at, chosen in enumerate(labels)
        ],
        _RULE,
        classes=3,
    )
    assert images.targets(np.array([2, 0, 1])).tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert images.class_counts().tolist() == [1, 1, 1]


def test_balancing_weights_draw_every_class_as_often() -> None:
    image = np.zeros((6, 6, 3), np.uint8)
    classes = [0] * 90 + [1] * 10
    images = ImageBatches(
        [
            Example(id=str(at), labels=(label,), pixel_sha256=pixel_sha256(image), source=image)
            for at, label in enumerate(classes)
        ],
        _RULE,
        classes=2,
    )
    weights = balancing_weights(images)
    drawn = np.concatenate(
        [np.concatenate(shuffled_batches(100, 10, seed=seed, weights=weights)) for seed in range(50)]
    )
    assert len(drawn) == 5000
    assert np.bincount(images.labels[drawn])[1] == pytest.approx(2500, abs=150)  # three deviations are 106
    # The same draws for every process, each its own part.
    shares = [shuffled_batches(100, 10, seed=1, share=(rank, 2), weights=weights) for rank in range(2)]
    whole = shuffled_batches(100, 10, seed=1, weights=weights)
    assert [sorted([*first, *second]) for first, second in zip(*shares, strict=True)] == [
        sorted(part) for part in whole
    ]


def test_image_batches_stop_decoding_when_the_reader_stops(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageBatches(examples, _RULE, classes=4, ram_bytes=0)
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
    images = ImageBatches(examples, _RULE, classes=4)
    read = list(images.in_order(5))
    assert np.concatenate([positions for positions, _ in read]).tolist() == list(range(23))
    expected = np.stack([load_image(example.load(), _RULE) for example in examples])
    assert np.array_equal(torch.cat([pixels for _, pixels in read]).numpy(), expected)


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
    named = [(name, parameter, 1.0) for name, parameter in model.named_parameters()]
    decayed, free = adamw(named, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3)]
    assert sum(parameter.numel() for parameter in free["params"]) == 4 + 4 + 4 + 20 + 4


def test_adamw_gives_each_group_its_share_of_the_learning_rate() -> None:
    low, high = nn.Linear(3, 4), nn.Linear(4, 2)
    named = [
        (name, parameter, share)
        for layer, share in ((low, 0.5), (high, 1.0))
        for name, parameter in layer.named_parameters()
    ]
    optimizer = adamw(named, weight_decay=0.0)
    set_learning_rate(optimizer, 0.1)
    assert [(group["lr"], group["lr_share"]) for group in optimizer.param_groups] == [(0.1, 1.0), (0.05, 0.5)]
