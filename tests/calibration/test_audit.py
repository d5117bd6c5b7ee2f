"""The audit: what was planted is found, clean data are good, and nothing is kept that grows with the images."""

from __future__ import annotations

import html
import json
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from edgebert.calibration import audit as room
from edgebert.calibration.audit import (
    AuditOptions,
    audit_of_calibration,
    audit_of_dataset,
    value_extremes,
)
from edgebert.calibration.audit_findings import range_finding
from edgebert.calibration.audit_report import page_of, section_of
from edgebert.calibration.audit_result import AuditReport
from edgebert.card import ModelCard
from edgebert.cli import app
from edgebert.data import Dataset, Example
from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, UsageError
from edgebert.export.metadata import card_of_model, parse_graph
from edgebert.preprocess import RgbImage, pixel_sha256

SMALL = AuditOptions(images=200, held_out=100)


def _example(identity: str, labels: tuple[int, ...], pixels: RgbImage) -> Example:
    return Example(id=identity, labels=labels, pixel_sha256=pixel_sha256(pixels), source=pixels)


def _paler(image: RgbImage) -> RgbImage:
    paler: RgbImage = (image.astype(np.uint16) * 19 // 20 + 3).astype(np.uint8)
    return paler


def _changed(examples: tuple[Example, ...], change: Callable[[RgbImage], RgbImage]) -> tuple[Example, ...]:
    return tuple(_example(example.id, example.labels, change(example.load())) for example in examples)


@pytest.fixture(scope="module")
def model(trained_graph: Path) -> onnx.ModelProto:
    return parse_graph(trained_graph)


@pytest.fixture(scope="module")
def audited(model: onnx.ModelProto) -> Callable[..., AuditReport]:
    """Audit a data set with the student of the digits."""
    card: ModelCard = card_of_model(model)

    def audit(dataset: Dataset, options: AuditOptions = SMALL) -> AuditReport:
        return audit_of_dataset(model, card, dataset, options)

    return audit


@pytest.fixture(scope="module")
def clean(trained_graph: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditReport:
    """The digits as they are, with every option at its default."""
    return audit_of_calibration(trained_graph, "digits", tmp_path_factory.mktemp("audit") / "audit.html")


def test_audit_of_the_digits_is_good(clean: AuditReport) -> None:
    assert [finding.name for finding in clean.findings if finding.severity != "ok"] == []
    assert clean.verdict == "good"
    assert clean.exit_code == 0


def test_audit_looks_at_all_it_promises(clean: AuditReport) -> None:
    names = {finding.name for finding in clean.findings}
    assert {"unreadable files", "classes", "leaks", "near duplicates of test", "activation ranges"} <= names
    assert {
        f"{what} of {of} images" for what in ("brightness", "contrast", "size") for of in ("calibration", "validation")
    } <= names
    assert (clean.calibration_images, clean.held_out_images) == (512, 512)
    assert len(clean.ranges) == 8  # as many values are quantised in this student


def test_audit_finds_exact_duplicates(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    copies = tuple(replace(example, id=f"copy of {example.id}") for example in digits.train[:100])
    finding = audited(replace(digits, train=digits.train + copies)).finding("exact duplicates")
    assert finding.severity == "warning"
    assert finding.text.startswith("100 of 1,393 training images have the pixels of another one")


def test_audit_finds_one_picture_under_two_labels(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    first = digits.train[0]
    other = replace(first, id="other", labels=((first.label + 1) % 10,))
    finding = audited(replace(digits, train=(*digits.train, other))).finding("exact duplicates")
    assert finding.severity == "warning"
    assert "1 of these pictures under different labels" in finding.text


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_audit_finds_near_duplicates(digits: Dataset, audited: Callable[..., AuditReport], split: str) -> None:
    originals = digits.split(split)[:70]  # type: ignore[arg-type]  # one of the three
    planted = tuple(replace(example, id=f"near {example.id}") for example in _changed(originals, _paler))
    report = audited(replace(digits, train=digits.train + planted))
    name = {"train": "in training", "val": "of validation", "test": "of test"}[split]
    finding = report.finding(f"near duplicates {name}")
    assert finding.severity == "warning"
    assert int(finding.text.partition(" of ")[0]) >= (140 if split == "train" else 70)


def test_audit_finds_leaked_images(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    leaked = tuple(replace(example, id="leaked") for example in digits.test[:2])
    report = audited(replace(digits, train=digits.train + leaked))
    assert report.verdict == "unusable"
    assert report.finding("leaks").text.startswith("2 training images have the pixels of a test or validation image")
    assert report.finding("near duplicates of test").severity == "ok"  # said once


def test_audit_finds_a_class_without_images(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    hole = replace(digits, train=tuple(example for example in digits.train if example.label != 7))
    finding = audited(hole).finding("classes")
    assert finding.severity == "bad"
    assert finding.text == "1 of 10 classes are shown by no calibration image: `7`"


def test_audit_finds_a_class_of_few_images(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    few = [example for example in digits.train if example.label == 7][:3]
    thin = replace(digits, train=(*(example for example in digits.train if example.label != 7), *few))
    finding = audited(thin).finding("classes")
    assert finding.severity == "warning"
    assert "`7` by 2" in finding.text


def test_audit_finds_a_brightness_shift(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    shifted = _changed(digits.val, lambda image: np.minimum(image.astype(np.uint16) + 40, 255).astype(np.uint8))
    report = audited(replace(digits, val=shifted))
    assert report.finding("brightness of validation images").severity == "bad"
    assert report.finding("brightness of calibration images").severity == "ok"
    assert report.verdict == "unusable"


def test_audit_finds_another_size(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    larger = _changed(digits.val, lambda image: np.repeat(np.repeat(image, 2, axis=0), 2, axis=1))
    finding = audited(replace(digits, val=larger)).finding("size of validation images")
    assert finding.severity == "warning"
    assert finding.text.startswith("mean 16 px against 8 px")


def test_audit_takes_no_other_share_of_the_classes_for_a_shift(
    digits: Dataset, audited: Callable[..., AuditReport]
) -> None:
    ones = [example for example in digits.train if example.label == 1][:12]
    others = [example for example in digits.train if example.label != 1]
    report = audited(replace(digits, train=(*others, *ones)))
    assert {finding.severity for finding in report.findings if "brightness" in finding.name} == {"ok"}


def test_audit_finds_black_images(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    black = tuple(
        _example(f"{number}.png", (number % 10,), np.full((8, 8 + number, 3), 1, np.uint8)) for number in range(60)
    )
    finding = audited(replace(digits, train=black)).finding("real images")
    assert finding.severity == "bad"
    assert finding.text.endswith("are black")


def test_audit_finds_activations_beyond_the_range(digits: Dataset, model: onnx.ModelProto) -> None:
    first = digits.train[:16]
    faint = _changed(first, lambda image: np.floor_divide(image, 16, dtype=np.uint8))
    card = card_of_model(model)
    ranges = room._ranges(model, card.preprocessing, faint, digits.train[100:200])
    finding = range_finding(ranges, 16, 100)
    assert finding.severity in ("warning", "bad")
    assert "raise `--images`" in finding.hint


def test_audit_refuses_fewer_than_sixteen_pictures(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    with pytest.raises(BadDataError, match=r"15 different training image\(s\)"):
        audited(replace(digits, train=digits.train[:15]))


def test_scan_keeps_little_of_each_image(digits: Dataset, model: onnx.ModelProto) -> None:
    """600 images leave behind 72 bytes and a reference to an example more each than 100, and no pixels."""
    rule = card_of_model(model).preprocessing

    def kept(images: int) -> tuple[int, int, int]:
        dataset = replace(digits, train=digits.train[:images], val=(), test=())
        seen = room._scan(dataset, digits.train[:50], rule)
        spreads = [spread for strata in seen.spreads.values() for spread in strata.values()]
        histograms = sum(spread.counts.nbytes for spread in spreads)
        return seen.sketches.nbytes, histograms, len(seen.darkest) + len(seen.brightest)

    small, large = kept(100), kept(600)
    assert large[0] - small[0] == 500 * 72
    assert large[1:] == small[1:]


def test_scan_holds_one_image_at_a_time(
    digits: Dataset, model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[RgbImage]] = []
    most = 0
    load = Example.load

    def counted(example: Example) -> RgbImage:
        nonlocal most
        image: RgbImage = load(example).copy()
        alive[:] = [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(image))
        most = max(most, len(alive))
        return image

    monkeypatch.setattr(Example, "load", counted)
    room._scan(replace(digits, train=digits.train[:120]), digits.train[:50], card_of_model(model).preprocessing)
    assert most <= 2  # the one before is let go when the next is there


def test_value_extremes_are_those_of_the_values() -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "w"], ["y"])],
        "extremes",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 2, 3])],
        [numpy_helper.from_array(np.array(-2, np.float32), "w")],
    )
    tiny = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    fed = 0

    def images() -> Iterator[RgbImage]:
        nonlocal fed
        for level in (10, 30, 20):
            fed += 1
            yield np.full((2, 2, 3), level, np.uint8)

    found = value_extremes(tiny, ["x"], images(), {"x": 15.0})["x"]
    assert (found.minimum, found.maximum, found.absmax) == (10, 30, 30)
    assert (found.elements, found.beyond, fed) == (36, 24, 3)


def test_page_holds_the_verdict_and_nothing_from_elsewhere(clean: AuditReport) -> None:
    assert clean.path is not None
    page = clean.path.read_text(encoding="utf-8")
    assert "good: these images stand for the data" in page
    assert len(page.encode()) < 2 << 20
    assert page.count("<svg") == 6
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)="(?!data:|#)""", page)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_page_is_the_same_for_the_same_report(clean: AuditReport) -> None:
    assert page_of(clean) == page_of(clean)


def test_page_escapes_hostile_names(digits: Dataset, audited: Callable[..., AuditReport]) -> None:
    evil = "<script>alert('x')</script>\x1b[31m"
    named = tuple(replace(example, id=evil) for example in digits.train)
    hostile = replace(digits, name=evil, class_names=(evil, *digits.class_names[1:]), train=named)
    page = page_of(audited(hostile))
    assert "<script" not in page
    assert "\x1b" not in page
    assert html.escape("<script>") in page


def test_section_can_stand_in_another_page(clean: AuditReport) -> None:
    section = section_of(clean)
    assert "<html" not in section
    assert "good: these images stand for the data" in section


def test_report_in_json_holds_no_pictures(clean: AuditReport) -> None:
    answer = json.loads(json.dumps(clean.to_json()))
    assert answer["verdict"] == "good"
    assert len(answer["comparisons"]) == 6
    assert "pictures" not in answer


def test_existing_page_is_refused_before_any_work(trained_graph: Path, tmp_path: Path) -> None:
    (tmp_path / "audit.html").write_text("mine")
    with pytest.raises(CannotWriteError):
        audit_of_calibration(trained_graph, tmp_path / "no-such-folder", tmp_path / "audit.html")
    assert (tmp_path / "audit.html").read_text() == "mine"


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"missing\.onnx"):
        audit_of_calibration(tmp_path / "missing.onnx", "digits", None)


@pytest.mark.parametrize("change", [{"images": 15}, {"images": 100_001}, {"held_out": 0}])
def test_audit_options_refuse_what_cannot_be_meant(change: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(change.values())))):
        AuditOptions(**change)  # type: ignore[arg-type]  # one of the two numbers


def _write_digits(digits: Dataset, folder: Path, val_shift: int = 0) -> None:
    """Write forty digits of each class for training, ten for validation, brightened by `val_shift`, ten for test."""
    for split, examples in (("train", digits.train[:400]), ("val", digits.val), ("test", digits.test)):
        for number, example in enumerate(examples):
            place = folder / split / digits.class_names[example.label]
            place.mkdir(parents=True, exist_ok=True)
            shift = val_shift if split == "val" else 0
            pixels = np.minimum(example.load().astype(np.uint16) + shift, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--min-agreement", "99.5"], "`--min-agreement` with `--audit`"),
        (["--effort", "best"], "`--effort` with `--audit`"),
        (["--finetune", "digits"], "`--finetune` with `--audit`"),
    ],
)
def test_cli_refuses_options_that_an_audit_would_leave_without_effect(
    trained_graph: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    page = tmp_path / "audit.html"
    command = ["quantize", str(trained_graph), "--calibration", "digits", "--audit", "-o", str(page), *flags]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert not page.exists()


def test_cli_writes_the_page_and_no_graph(trained_graph: Path, digits: Dataset, tmp_path: Path) -> None:
    _write_digits(digits, tmp_path / "data")
    (tmp_path / "data" / "train" / "0" / "broken.png").write_bytes(b"no image")
    page = tmp_path / "out" / "audit.html"
    command = ["quantize", str(trained_graph), "--calibration", str(tmp_path / "data"), "--audit", "-o", str(page)]
    ran = CliRunner().invoke(app, [*command, "--images", "200"])
    assert ran.exit_code == 0, ran.output
    assert "data: usable: ranges can be measured on these images" in ran.stdout
    assert "broken.png" in page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["audit.html"]


def test_cli_exits_65_when_unusable_and_writes_the_page(trained_graph: Path, digits: Dataset, tmp_path: Path) -> None:
    _write_digits(digits, tmp_path / "data", val_shift=60)
    page = tmp_path / "audit.html"
    command = ["quantize", str(trained_graph), "--calibration", str(tmp_path / "data"), "--audit", "-o", str(page)]
    ran = CliRunner().invoke(app, [*command, "--images", "200", "--json"])
    assert ran.exit_code == 65
    assert json.loads(ran.stdout)["verdict"] == "unusable"
    assert "unusable: ranges measured on these images" in page.read_text(encoding="utf-8")
