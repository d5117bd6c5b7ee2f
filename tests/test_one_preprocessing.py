"""One preprocessing: training's evaluation, calibration, bench and runtime see the same bits of the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert import Classifier
from edgebert.data import Example
from edgebert.preprocess import Preprocessing, decode_image, pixel_sha256
from edgebert.runtime.ort_runner import OrtRunner
from tests.four_rooms import in_bench, in_calibration, in_training

RULES = [
    Preprocessing(height=6, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
    Preprocessing(height=8, width=6, resize="crop", shortest_edge=9, interpolation="bicubic"),
    Preprocessing(height=7, width=7, resize="stretch-crop", shortest_edge=10, interpolation="lanczos"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every kind whose conversion could differ between two implementations."""
    folder = tmp_path_factory.mktemp("photographs")
    colour = Image.fromarray(_landscape(23, 37, 3).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: rotate by 90 degrees
    colour.save(folder / "turned.jpg", exif=turned)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("L").save(folder / "grey.bmp")
    colour.save(folder / "lossless.webp", lossless=True)
    colour.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(_landscape(31, 19, 4).astype(np.uint8)).save(folder / "alpha.png")
    Image.fromarray((257 * _landscape(21, 22, 1)[:, :, 0]).astype(np.uint16)).save(folder / "deep.png")
    return sorted(folder.iterdir())


def _landscape(height: int, width: int, channels: int) -> NDArray[np.float64]:
    """Return (height, width, channels) in [0, 255]: waves under a little noise; calibration refuses pure noise."""
    rows, columns, channel = np.mgrid[0:height, 0:width, 0:channels]
    waves = 120 * np.sin(rows / 5 + channel) * np.cos(columns / 7 - channel)
    noise = np.random.default_rng(5).normal(0, 3, waves.shape)
    landscape: NDArray[np.float64] = np.clip(127 + waves + noise, 0, 255)
    return landscape


@pytest.fixture(scope="module")
def examples(photographs: list[Path]) -> list[Example]:
    return [
        Example(id=path.name, labels=(0,), pixel_sha256=pixel_sha256(decode_image(path)), source=path)
        for path in photographs
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.resize)
def test_training_calibration_and_bench_see_equal_tensors(
    examples: list[Example], rule: Preprocessing, tmp_path: Path
) -> None:
    trained = in_training(examples, rule)
    assert trained.shape == (len(examples), rule.height, rule.width, 3)
    np.testing.assert_array_equal(in_calibration(examples, rule), trained)
    np.testing.assert_array_equal(in_bench(examples, rule, tmp_path), trained)


def test_runtime_sees_the_tensors_of_training(
    examples: list[Example],
    photographs: list[Path],
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    seen: list[NDArray[np.uint8]] = []
    answer = OrtRunner.infer

    def remember(runner: OrtRunner, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(batch.copy())
        return answer(runner, batch)

    with Classifier(make_toy_bundle(tmp_path / "toy.edgebert"), target="cpu") as classifier:
        monkeypatch.setattr(OrtRunner, "infer", remember)
        for path in photographs:
            classifier.predict(path)
        classifier.predict_batch(photographs)
    trained = in_training(examples, RULES[0])
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate([trained, trained]))
