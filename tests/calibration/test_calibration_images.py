"""Which images calibrate: of the training split alone, as many of each class, never noise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from edgebert.calibration.images import calibration_examples, check_images_are_real
from edgebert.data import Dataset
from edgebert.errors import BadDataError


def test_calibration_examples_are_training_images_spread_over_the_classes(digits: Dataset) -> None:
    chosen = calibration_examples(digits, 100)
    assert {example.pixel_sha256 for example in chosen} <= {example.pixel_sha256 for example in digits.train}
    assert not {example.pixel_sha256 for example in chosen} & {example.pixel_sha256 for example in digits.test}
    assert set(Counter(example.label for example in chosen).values()) == {10}
    assert len({example.pixel_sha256 for example in chosen}) == 100


def test_calibration_examples_do_not_depend_on_the_order_of_the_files(digits: Dataset) -> None:
    turned = replace(digits, train=digits.train[::-1])
    chosen, again = calibration_examples(digits, 64), calibration_examples(turned, 64)
    assert [example.pixel_sha256 for example in chosen] == [example.pixel_sha256 for example in again]


def test_calibration_examples_are_all_there_are_when_fewer_than_asked(digits: Dataset) -> None:
    few = replace(digits, train=digits.train[:7])
    assert set(calibration_examples(few, 512)) == set(few.train)


def test_calibration_examples_refuse_a_data_set_without_training_images(digits: Dataset) -> None:
    with pytest.raises(BadDataError, match="no training images"):
        calibration_examples(replace(digits, train=()), 16)


def test_check_images_are_real_accepts_the_digits(digits: Dataset) -> None:
    check_images_are_real([example.load() for example in digits.train[:64]], name="digits")


@pytest.mark.parametrize("side", [8, 32, 64])
def test_check_images_are_real_refuses_noise(side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    with pytest.raises(BadDataError, match="look like noise"):
        check_images_are_real(list(noise), name="noise")


def test_check_images_are_real_refuses_images_of_one_colour(digits: Dataset) -> None:
    grey = [np.full((8, 8, 3), value, np.uint8) for value in range(40)]
    with pytest.raises(BadDataError, match="40 of 60 calibration images of `grey` are of one colour"):
        check_images_are_real([*grey, *(example.load() for example in digits.train[:20])], name="grey")
