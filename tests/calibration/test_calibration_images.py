"""Which images calibrate: of the training split alone, each picture once, as many of each class, never noise."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from edgebert.calibration.images import calibration_examples, calibration_slices, check_images_are_real
from edgebert.data import Dataset
from edgebert.errors import BadDataError


def test_calibration_examples_are_training_images_spread_over_the_classes(digits: Dataset) -> None:
    chosen = calibration_examples(digits, 100)
    assert {example.pixel_sha256 for example in chosen} <= {example.pixel_sha256 for example in digits.train}
    assert not {example.pixel_sha256 for example in chosen} & {example.pixel_sha256 for example in digits.test}
    assert set(Counter(example.label for example in chosen).values()) == {10}
    assert len({example.pixel_sha256 for example in chosen}) == 100


def test_calibration_examples_are_all_there_are_when_fewer_than_asked(digits: Dataset) -> None:
    few = replace(digits, train=digits.train[:120])
    assert set(calibration_examples(few, 512)) == set(few.train)


def test_calibration_examples_are_the_first_slice_where_there_are_enough(digits: Dataset) -> None:
    assert calibration_examples(digits, 200) == calibration_slices(digits, 200, 200)[0]


def test_calibration_slices_share_no_image(digits: Dataset) -> None:
    first, second = calibration_slices(digits, 200, 300)
    assert (len(first), len(second)) == (200, 300)
    assert not {example.pixel_sha256 for example in first} & {example.pixel_sha256 for example in second}


def test_calibration_slices_hold_as_many_of_each_class(digits: Dataset) -> None:
    for chosen in calibration_slices(digits, 200, 300):
        assert set(Counter(example.label for example in chosen).values()) == {len(chosen) // 10}


def test_calibration_slices_share_a_rare_class(digits: Dataset) -> None:
    rare = [example for example in digits.train if example.label == 3][:20]
    unbalanced = replace(digits, train=(*(example for example in digits.train if example.label != 3), *rare))
    first, second = calibration_slices(unbalanced, 300, 300)
    assert [sum(example.label == 3 for example in chosen) for chosen in (first, second)] == [10, 10]


def test_calibration_slices_do_not_depend_on_the_names_and_order_of_the_files(digits: Dataset) -> None:
    renamed = [replace(example, id=f"{number}.png") for number, example in enumerate(digits.train[::-1])]
    expected = calibration_slices(digits, 64, 64)
    found = calibration_slices(replace(digits, train=tuple(renamed)), 64, 64)
    for before, after in zip(expected, found, strict=True):
        assert [example.pixel_sha256 for example in before] == [example.pixel_sha256 for example in after]


def test_calibration_slices_are_two_to_one_when_there_are_too_few(
    digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    few = replace(digits, train=digits.train[:300])
    with caplog.at_level(logging.INFO, logger="edgebert"):
        first, second = calibration_slices(few, 512, 512)
    assert (len(first), len(second)) == (200, 100)
    assert "has 300 different images: 200 calibrate and 100 choose" in caplog.text


def test_calibration_slices_give_what_the_second_does_not_want_to_the_first(digits: Dataset) -> None:
    few = replace(digits, train=digits.train[:300])
    assert [len(chosen) for chosen in calibration_slices(few, 295, 20)] == [280, 20]


def test_calibration_slices_draw_each_picture_once(digits: Dataset) -> None:
    copies = tuple(replace(example, id=f"copy of {example.id}") for example in digits.train)
    first, second = calibration_slices(replace(digits, train=digits.train + copies), 200, 200)
    assert len({example.pixel_sha256 for example in (*first, *second)}) == 400


@pytest.mark.parametrize("split", ["val", "test"])
def test_calibration_slices_refuse_a_training_image_of_another_split(digits: Dataset, split: str) -> None:
    leaked = [replace(example, id=f"leaked {number}") for number, example in enumerate(digits.split(split)[:3])]  # type: ignore[arg-type]  # one of the two
    with pytest.raises(BadDataError, match=rf"3 training image\(s\).* the first is `leaked 0` = `.*` \({split}\)"):
        calibration_slices(replace(digits, train=(*digits.train, *leaked)), 64, 64)


def test_calibration_examples_refuse_a_data_set_without_training_images(digits: Dataset) -> None:
    with pytest.raises(BadDataError, match="no training images"):
        calibration_examples(replace(digits, train=()), 16)


def test_calibration_examples_refuse_fewer_than_sixteen_pictures(digits: Dataset) -> None:
    with pytest.raises(BadDataError, match=r"15 different training image\(s\)"):
        calibration_examples(replace(digits, train=digits.train[:15] * 3), 16)


def test_calibration_examples_warn_of_fewer_than_a_hundred(digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    calibration_examples(replace(digits, train=digits.train[:99]), 64)
    assert "only 99 different training images: ranges of fewer than 100 are uncertain" in caplog.text


def test_calibration_examples_say_nothing_of_a_hundred(digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    calibration_examples(replace(digits, train=digits.train[:100]), 64)
    assert caplog.text == ""


def test_calibration_examples_warn_of_a_class_that_none_shows(
    digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    hole = replace(digits, train=tuple(example for example in digits.train if example.label != 4))
    calibration_examples(hole, 64)
    assert "the calibration images show nothing of class `4`" in caplog.text


def test_calibration_examples_refuse_images_of_one_class(digits: Dataset) -> None:
    alone = replace(digits, train=tuple(example for example in digits.train if example.label == 4))
    with pytest.raises(BadDataError, match="all show `4`"):
        calibration_examples(alone, 64)


def test_check_images_are_real_accepts_the_digits(digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    check_images_are_real([example.load() for example in digits.train[:64]], name="digits")
    assert caplog.text == ""


@pytest.mark.parametrize("side", [8, 32, 64])
def test_check_images_are_real_refuses_noise(side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    with pytest.raises(BadDataError, match="look like noise"):
        check_images_are_real(list(noise), name="noise")


def test_check_images_are_real_refuses_mostly_images_of_one_colour(digits: Dataset) -> None:
    grey = [np.full((8, 8, 3), value, np.uint8) for value in range(40)]
    with pytest.raises(BadDataError, match="40 of 60 calibration images of `grey` are of one colour"):
        check_images_are_real([*grey, *(example.load() for example in digits.train[:20])], name="grey")


def test_check_images_are_real_refuses_images_of_one_colour_each() -> None:
    grey = [np.full((8, 8, 3), 6 * value, np.uint8) for value in range(40)]
    with pytest.raises(
        BadDataError, match="40 calibration images of `grey` that were looked at are of one colour each"
    ):
        check_images_are_real(grey, name="grey")


def test_check_images_are_real_refuses_black_images() -> None:
    with pytest.raises(BadDataError, match="20 calibration images of `lens` that were looked at are black"):
        check_images_are_real([np.full((8, 8, 3), level % 2, np.uint8) for level in range(20)], name="lens")


def test_check_images_are_real_warns_of_some_images_of_one_colour(
    digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    constant = [np.full((8, 8, 3), value, np.uint8) for value in (0, 0, 90, 255)]
    check_images_are_real([*constant, *(example.load() for example in digits.train[:36])], name="digits")
    assert "4 of 40 calibration images are of one colour, 2 of them black" in caplog.text


def test_check_images_are_real_says_nothing_of_one_in_forty(digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    constant = np.full((8, 8, 3), 90, np.uint8)
    check_images_are_real([constant, *(example.load() for example in digits.train[:39])], name="digits")
    assert caplog.text == ""
