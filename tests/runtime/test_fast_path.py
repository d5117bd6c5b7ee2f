"""The way of an array through the runtime: nothing of its size is copied or allocated, and every answer is what it would be otherwise."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.card import ModelCard
from edgebert.confidence import Confidence
from edgebert.decisions import softmax
from edgebert.errors import ImageError, NotFiniteError
from edgebert.preprocess import Preprocessing, load_image, takes_as_is, view_image
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
from edgebert.testing import FakeRunner

SIDE = 160
CROPS = [
    Preprocessing(height=6, width=8),
    Preprocessing(height=8, width=8, resize="crop", shortest_edge=8),
    Preprocessing(height=6, width=8, resize="crop", shortest_edge=9),
    Preprocessing(height=6, width=8, resize="stretch-crop", shortest_edge=10),
]


def images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def large(toy: Any) -> Any:
    """The toy at 160 x 160 pixels: its input is larger than anything else that an answer takes."""
    card = replace(toy.card, preprocessing=replace(toy.card.preprocessing, height=SIDE, width=SIDE))
    weight = np.random.default_rng(1).normal(0, 0.01, (SIDE * SIDE * 3, 4)).astype(np.float32)
    return replace(toy, card=card, weight=weight)


@pytest.fixture(params=["onnxruntime", "openvino"])
def pipeline(request: pytest.FixtureRequest, large: Any) -> Iterator[Pipeline]:
    pytest.importorskip(request.param)
    source = ModelSource(spec=large.spec, files={"model.onnx": large.graph()})
    with open_runner(request.param, source, RunnerOptions(threads=1)) as runner:
        yield Pipeline(runner, large.card)


def layouts(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return the same pixels in arrays of several kinds of strides."""
    height, width, _ = image.shape
    wide = np.zeros((height, 2 * width, 3), np.uint8)
    wide[:, ::2] = image
    read_only = image.copy()
    read_only.flags.writeable = False
    return {
        "contiguous": image,
        "read-only": read_only,
        "fortran": np.asfortranarray(image),
        "every other column": wide[:, ::2],
        "negative": image[::-1, ::-1].copy()[::-1, ::-1],
        "bgr": image[..., ::-1].copy()[..., ::-1],
    }


@pytest.mark.parametrize("layout", layouts(images(2, 2, 3)))
def test_an_answer_allocates_nothing_of_the_size_of_the_array(pipeline: Pipeline, layout: str) -> None:
    image = layouts(images(SIDE, SIDE, 3))[layout]
    for _ in range(3):
        pipeline.post(pipeline.infer(pipeline.pre(image)))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            pipeline.post(pipeline.infer(pipeline.pre(image)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < image.nbytes // 8


@pytest.mark.parametrize("layout", layouts(images(2, 2, 3)))
def test_an_answer_is_the_same_from_every_layout(pipeline: Pipeline, large: Any, layout: str) -> None:
    image = images(SIDE, SIDE, 3, seed=2)
    expected = pipeline.infer(load_image(image, large.card.preprocessing)[np.newaxis])
    np.testing.assert_array_equal(pipeline.infer(pipeline.pre(layouts(image)[layout])), expected)


def test_an_array_may_change_when_its_answer_is_there(pipeline: Pipeline) -> None:
    first, second = images(SIDE, SIDE, 3, seed=3), images(SIDE, SIDE, 3, seed=4)
    expected = [pipeline.infer(pipeline.pre(image)) for image in (first, second)]
    frame = first.copy()
    kept = pipeline.infer(pipeline.pre(frame))
    frame[:] = second
    np.testing.assert_array_equal(pipeline.infer(pipeline.pre(frame)), expected[1])
    np.testing.assert_array_equal(kept, expected[0])


def test_pre_does_not_copy_an_array_of_the_right_size(large: Any) -> None:
    pipeline = Pipeline(FakeRunner(large.spec), large.card)
    image = images(SIDE, SIDE, 3)
    assert np.shares_memory(pipeline.pre(image), image)
    assert not np.shares_memory(load_image(image, large.card.preprocessing), image)


@pytest.mark.parametrize("rule", CROPS, ids=lambda rule: f"{rule.resize}-{rule.shortest_edge}")
@pytest.mark.parametrize("shape", [(6, 8, 3), (8, 8, 3), (9, 9, 3), (9, 14, 3), (10, 10, 3), (31, 17, 3)])
def test_view_image_has_the_pixels_of_load_image(toy: Any, rule: Preprocessing, shape: tuple[int, ...]) -> None:
    image = images(*shape)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    pipeline = Pipeline(FakeRunner(toy.spec), replace(toy.card, preprocessing=rule))
    for source in (image, np.asfortranarray(image), Image.fromarray(image), stream.getvalue()):
        expected = load_image(source, rule)
        assert expected.flags.owndata
        assert expected.flags.writeable
        assert expected.flags.c_contiguous
        np.testing.assert_array_equal(view_image(source, rule), expected)
        np.testing.assert_array_equal(pipeline.pre(source), expected[np.newaxis])


@pytest.mark.parametrize("rule", CROPS, ids=lambda rule: f"{rule.resize}-{rule.shortest_edge}")
def test_takes_as_is_says_whether_an_array_of_the_input_size_changes(rule: Preprocessing) -> None:
    image = images(rule.height, rule.width, 3)
    assert takes_as_is(rule) == np.array_equal(load_image(image, rule), image)


def test_pre_refuses_an_array_of_the_right_size_and_another_dtype(toy: Any) -> None:
    pipeline = Pipeline(FakeRunner(toy.spec), toy.card)
    with pytest.raises(ImageError, match="dtype"):
        pipeline.pre(cast(Any, np.zeros((6, 8, 3), np.int8)))


def test_pre_takes_a_masked_array_for_its_pixels(toy: Any) -> None:
    image = images(6, 8, 3)
    tensor = Pipeline(FakeRunner(toy.spec), toy.card).pre(np.ma.masked_array(image, mask=True))
    assert type(tensor) is np.ndarray
    np.testing.assert_array_equal(tensor[0], image)


# Answers without numpy


def card_of(toy: Any, classes: int, *, temperature: float | None = None) -> ModelCard:
    confidence = None
    if temperature is not None:
        confidence = Confidence(temperature=temperature, ece_before=0.1, ece_after=0.05, images=100)
    names = tuple(f"class {number}" for number in range(classes))
    card: ModelCard = replace(toy.card, class_names=names, confidence=confidence)
    return card


def answering(card: ModelCard) -> Pipeline:
    rule = card.preprocessing
    return Pipeline(FakeRunner(InputSpec(height=rule.height, width=rule.width, classes=len(card.class_names))), card)


@pytest.mark.parametrize("classes", [2, 10, 100, 101, 1000])
@pytest.mark.parametrize("temperature", [None, 1.7])
def test_post_gives_the_softmax_however_many_classes(toy: Any, classes: int, temperature: float | None) -> None:
    logits = np.random.default_rng(classes).normal(0, 4, (3, classes)).astype(np.float32)
    answers = answering(card_of(toy, classes, temperature=temperature)).post(logits)
    expected = softmax(logits.astype(np.float64) / (temperature or 1))
    np.testing.assert_allclose([answer.scores for answer in answers], expected, rtol=1e-13)
    assert [answer.index for answer in answers] == logits.argmax(axis=1).tolist()
    assert [answer.score for answer in answers] == [answer.scores[answer.index] for answer in answers]


@pytest.mark.parametrize("classes", [4, 200])
def test_post_takes_the_first_of_equal_logits(toy: Any, classes: int) -> None:
    logits = np.zeros((1, classes), np.float32)
    logits[0, 2:4] = 1
    assert answering(card_of(toy, classes)).post(logits)[0].index == 2


@pytest.mark.parametrize("classes", [4, 200])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_post_refuses_what_is_not_finite(toy: Any, classes: int, value: float, place: int) -> None:
    logits = np.ones((2, classes), np.float32)
    logits[1, place] = value
    with pytest.raises(NotFiniteError, match="image 1"):
        answering(card_of(toy, classes)).post(logits)


@pytest.mark.parametrize("classes", [4, 200])
def test_post_takes_finite_logits_whose_probability_rounds_to_nothing(toy: Any, classes: int) -> None:
    logits = np.full((1, classes), -3e38, np.float32)
    logits[0, 1] = 3e38
    answer = answering(card_of(toy, classes)).post(logits)[0]
    assert (answer.index, answer.score, answer.scores[0]) == (1, 1.0, 0.0)


def test_an_answer_does_not_alias_the_logits(toy: Any) -> None:
    logits = np.array([[1, 2, 3, 4]], np.float32)
    answer = answering(toy.card).post(logits)[0]
    before = answer.scores
    logits[:] = 0
    assert answer.scores == before
    assert isinstance(answer.scores, tuple)
