"""The image corpus: documented pixels or a typed refusal for each file, the same in every room, and never a third thing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert import Classifier
from edgebert.errors import ImageError
from edgebert.preprocess import FORMATS, Preprocessing, decode_image
from edgebert.runtime.ort_runner import OrtRunner
from tests.four_rooms import Seen, look
from tests.image_corpus import CORPUS, Case, Exactly, Nearly, Refused, Unseen, write_corpus

ROOT = Path(__file__).parents[1]
ACCEPTED = [case for case in CORPUS if not isinstance(case.expected(), Refused)]
RULE = Preprocessing(height=6, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))  # the toy bundle's


def named(cases: list[Case] | tuple[Case, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(case: Case, decoded: NDArray[np.uint8]) -> None:
    """Compare decoded pixels with what the case expects."""
    expected = case.expected()
    assert decoded.dtype == np.uint8
    if isinstance(expected, Unseen):
        assert decoded.shape == (expected.height, expected.width, 3)
        return
    assert not isinstance(expected, Refused), "it was decoded, and must be refused"
    assert decoded.shape == expected.pixels.shape
    most = expected.most if isinstance(expected, Nearly) else 0
    assert np.abs(decoded.astype(int) - expected.pixels).max() <= most


def test_the_corpus_holds_what_the_proof_asks_for() -> None:
    kinds = [type(case.expected()) for case in CORPUS]
    assert len({case.name for case in CORPUS}) == len(CORPUS) >= 150
    assert kinds.count(Exactly) >= 150
    assert kinds.count(Nearly) >= 50
    assert kinds.count(Refused) >= 150


@named(CORPUS)
def test_decode_image_gives_the_documented_pixels_or_a_typed_refusal(case: Case) -> None:
    expected = case.expected()
    if isinstance(expected, Refused):
        with pytest.raises(ImageError) as raised:
            decode_image(case.make())
        assert expected.words in str(raised.value)
    else:
        check(case, decode_image(case.make()))


@named(ACCEPTED)
def test_decode_image_gives_the_same_pixels_of_an_opened_pillow_image(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of odd EXIF blocks; `decode_image` keeps them in
        opened = Image.open(io.BytesIO(case.make()), formats=FORMATS)
    with opened as image:
        np.testing.assert_array_equal(decode_image(image), decode_image(case.make()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a data set, with two files of a class that is always usable."""
    corpus = tmp_path_factory.mktemp("corpus")
    write_corpus(corpus)
    for number in range(20):  # each split needs an image of each class
        Image.new("RGB", (9, 9), (number, 0, 0)).save(corpus / f"others/usable-{number}.png")
    return corpus


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    pytest.importorskip("torch")
    return look(folder, RULE, tmp_path_factory.mktemp("scratch"))


def test_training_calibration_bench_and_runtime_agree_on_every_file(seen: Seen) -> None:
    assert seen.differences == ()


def test_every_room_uses_what_is_accepted_and_nothing_else(seen: Seen) -> None:
    assert {name for name in seen.tensors if "usable-" not in name} == {case.name for case in ACCEPTED}
    assert set(seen.refused) == {case.name for case in CORPUS} - {case.name for case in ACCEPTED}


def test_classifier_feeds_its_backend_what_training_saw(
    folder: Path,
    seen: Seen,
    make_toy_bundle: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    fed: list[NDArray[np.uint8]] = []
    answer = OrtRunner.infer

    def remember(runner: OrtRunner, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        fed.append(batch.copy())
        return answer(runner, batch)

    with Classifier(make_toy_bundle(tmp_path / "toy.edgebert"), target="cpu") as classifier:
        monkeypatch.setattr(OrtRunner, "infer", remember)
        for case in ACCEPTED:
            classifier.predict(folder / case.name)
        for name in seen.refused:
            with pytest.raises(ImageError):
                classifier.predict(folder / name)
    trained = [seen.tensors[case.name]["training"] for case in ACCEPTED]
    np.testing.assert_array_equal(np.concatenate(fed), np.stack(trained))


_BOMBS = """
import resource, sys
from pathlib import Path
from edgebert.errors import ImageError
from edgebert.preprocess import decode_image
from tests.image_corpus import CORPUS
bombs = [case.make() for case in CORPUS if "bomb" in case.name or "65536" in case.name or "megapixels" in case.name]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    try:
        decode_image(bomb)
    except ImageError:
        continue
    raise SystemExit("a bomb was decoded")
print(len(bombs), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_decode_image_needs_no_memory_for_a_bomb() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", _BOMBS], capture_output=True, text=True, check=True, env=environment
    )
    bombs, grown_kib = map(int, ran.stdout.split())
    assert bombs >= 15
    assert grown_kib < 64 << 10  # a picture of 50 megapixels takes 150 MB


def test_mutated_files_give_pixels_or_a_typed_refusal(tmp_path: Path) -> None:
    script, result = ROOT / "benchmarks/image_mutations.py", tmp_path / "result.json"
    command = [sys.executable, str(script), "--decodes", "3000", "--seed", "11", "--json", str(result)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["decodes"] == 3000
    assert found["untyped"] == found["deaths"] == 0
    assert found["decoded"] > 0
    assert found["refused"] > 0


def test_the_fuzzer_notices_an_untyped_error(tmp_path: Path) -> None:
    script, result = ROOT / "benchmarks/image_mutations.py", tmp_path / "result.json"
    command = [sys.executable, str(script), "--decodes", "200", "--json", str(result), "--plant", "untyped"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 1
    assert json.loads(result.read_text(encoding="utf-8"))["untyped"] > 0


def test_the_fuzzer_survives_the_death_of_its_child(tmp_path: Path) -> None:
    script, result = ROOT / "benchmarks/image_mutations.py", tmp_path / "result.json"
    command = [sys.executable, str(script), "--decodes", "200", "--json", str(result), "--plant", "death"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 1
    assert json.loads(result.read_text(encoding="utf-8"))["deaths"] > 0


def test_every_room_is_told_apart_when_one_resizes_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    data = tmp_path / "data"
    for number in range(24):
        kind = data / ("ant" if number % 2 else "bee")
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), np.uint8)
        Image.fromarray(pixels).save(kind / f"{number}.png")
    other = Preprocessing(height=6, width=8, interpolation="nearest")
    monkeypatch.setattr("tests.four_rooms.images_of", lambda examples, rule: _calibrated_by(examples, other))
    assert len(look(data, RULE, tmp_path).differences) == 24


def _calibrated_by(examples: object, rule: Preprocessing) -> object:
    from edgebert.calibration.images import images_of

    return images_of(examples, rule)  # type: ignore[arg-type]  # handed through
