"""What a bundle that was calibrated and may abstain shows: its description, its predictions, the lines of `predict`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgebert import cli
from edgebert._json import dump_json
from edgebert.artefact import describe, predict_files, verify
from edgebert.bundle import read_bundle, write_bundle
from edgebert.confidence import Confidence
from edgebert.manifest import Manifest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

CALIBRATED = Confidence(temperature=2.5, ece_before=0.2, ece_after=0.125, images=1200)
ABSTAINING = Confidence(
    temperature=2.5,
    ece_before=0.2,
    ece_after=0.125,
    images=1200,
    abstain_below=0.36,
    wanted_precision=0.9,
    precision=0.91,
    precision_low=0.87,
    coverage=0.8,
)


@pytest.fixture(scope="module")
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the toy classifier that abstains below 0.36."""
    plain = read_bundle(make_toy_bundle(tmp_path_factory.mktemp("plain") / "toy.edgebert"))
    manifest = json.loads(dump_json(plain.manifest.to_json()))
    manifest["card"]["confidence"] = ABSTAINING.to_json()
    folder = tmp_path_factory.mktemp("abstaining") / "toy.edgebert"
    folder.mkdir()
    files = {name: plain.files[name] for name in plain.manifest.sizes}
    write_bundle(folder, Manifest.from_json(manifest, what="manifest.json"), files)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), np.uint8)
    paths = [folder / f"{number}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_to_text_says_what_was_measured_on_how_many_images() -> None:
    assert CALIBRATED.to_text() == (
        "temperature 2.5, expected calibration error 0.200 before, 0.125 after, on 1,200 validation images"
    )
    assert ABSTAINING.to_text() == (
        f"{CALIBRATED.to_text()}; abstains below 0.36: precision 91.0 % (at least 87.0 %) on 80.0 % of them"
    )


def test_a_score_at_the_threshold_is_answered() -> None:
    assert [ABSTAINING.abstains(score) for score in (0.0, 0.3599, 0.36, 1.0)] == [True, True, False, False]
    assert not CALIBRATED.abstains(0.0)


def test_inspect_shows_the_confidence(bundle: Path) -> None:
    assert ABSTAINING.to_text() in describe(bundle).to_text()
    assert '"abstain_below": 0.36' in dump_json(describe(bundle).to_json())


def test_canaries_answer_as_before_in_a_bundle_that_abstains(bundle: Path) -> None:
    assert sum("canaries" in line for line in verify(bundle)) == 2


def test_predict_files_say_which_answers_are_abstained_from(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    *answers, broken = predict_files(bundle, [*images, tmp_path / "none.png"])
    assert [answer.abstained for answer in answers] == [answer.score < 0.36 for answer in answers if answer.score]
    assert {answer.abstained for answer in answers} == {False, True}
    assert all(answer.label and answer.exit_code == 0 for answer in answers)
    assert (broken.abstained, broken.exit_code) == (None, 66)


def test_predict_marks_an_abstained_answer_in_a_fourth_column(bundle: Path, images: list[Path]) -> None:
    ran = CliRunner().invoke(cli.app, ["predict", str(bundle), *map(str, images)])
    assert ran.exit_code == 0
    rows = [line.split("\t") for line in ran.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(path) for path in images]
    assert [row[3:] for row in rows] == [["abstained"] if float(row[2]) < 0.36 else [] for row in rows]
    assert {len(row) for row in rows} == {3, 4}


def test_predict_gives_abstained_in_json(bundle: Path, images: list[Path]) -> None:
    ran = CliRunner().invoke(cli.app, ["predict", "--json", str(bundle), *map(str, images)])
    assert ran.exit_code == 0
    answers = json.loads(ran.stdout)["predictions"]
    assert [answer["abstained"] for answer in answers] == [answer["score"] < 0.36 for answer in answers]
