from __future__ import annotations

import logging

import numpy as np
import pytest

from edgebert.bench.selection import select_images
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing

PIXELS = np.zeros((2, 2, 3), np.uint8)


def dataset(images: int = 200, classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    test = tuple(
        Example(id=f"{index}.png", labels=(index % len(classes),), pixel_sha256=f"{index:064x}"[::-1], source=PIXELS)
        for index in range(images)
    )
    return Dataset(name="d", class_names=classes, train=(), val=(), test=test, skipped=())


def card(seen: tuple[str, ...] = (), classes: tuple[str, ...] = ("a", "b")) -> ModelCard:
    return ModelCard(
        class_names=classes,
        preprocessing=Preprocessing(height=2, width=2),
        provenance=Provenance(stage="train"),
        seen=ImageSet.from_hashes(seen),
    )


def test_select_images_leaves_out_what_any_arm_has_seen_and_says_it(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset()
    seen = (data.test[7].pixel_sha256, data.test[8].pixel_sha256)
    with caplog.at_level(logging.WARNING, "edgebert"):
        found = select_images(data, ["x", "y"], [card(seen[:1]), card(seen)])
    assert len(found.examples) == 198
    assert [(entry.id, entry.seen_by) for entry in found.excluded] == [("7.png", ("x", "y")), ("8.png", ("y",))]
    assert "2 of 200 test images were used to make x, y" in caplog.text
    assert found.record(5).n == 198
    assert found.record(5).excluded == found.excluded


def test_select_images_refuses_when_more_than_one_percent_was_seen() -> None:
    data = dataset()
    with pytest.raises(BadDataError, match="3 of 200") as caught:
        select_images(data, ["x"], [card(tuple(example.pixel_sha256 for example in data.test[:3]))])
    assert caught.value.exit_code == 65


def test_select_images_refuses_when_a_class_falls_empty() -> None:
    data = dataset()
    only = Example(id="c.png", labels=(2,), pixel_sha256="ff" * 32, source=PIXELS)
    data = Dataset(name="d", class_names=("a", "b", "c"), train=(), val=(), test=(*data.test, only), skipped=())
    with pytest.raises(BadDataError, match="class `c` has no other test image"):
        select_images(data, ["x"], [card(("ff" * 32,), ("a", "b", "c"))])


def test_select_images_maps_each_arm_by_class_name() -> None:
    found = select_images(dataset(), ["x", "y"], [card(classes=("b", "a")), card(classes=("a", "b"))])
    assert found.class_names == ("b", "a")
    assert [order.tolist() for order in found.orders] == [[0, 1], [1, 0]]
    assert found.examples[0].label == 1


def test_select_images_records_the_identity_of_pixels_and_labels() -> None:
    first = select_images(dataset(), ["x"], [card()]).record(1)
    assert first == select_images(dataset(), ["x"], [card()]).record(1)
    assert first.sha256 != select_images(dataset(201), ["x"], [card()]).record(1).sha256
    assert first.per_class == (100, 100)
