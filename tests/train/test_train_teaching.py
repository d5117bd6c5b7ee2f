"""Teachers: several, without labels, with features, with a cache, with texts, and those that fail."""

from __future__ import annotations

import csv
import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from edgebert._files import sha256_of_file, sha256_of_folder
from edgebert.card_io import read_checkpoint_card
from edgebert.data import Dataset
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, RefusedError, UsageError
from edgebert.models.checkpoint import load_checkpoint, save_checkpoint
from edgebert.models.student import StudentForImageClassification
from edgebert.preprocess import Preprocessing
from edgebert.train import DistillOptions, TrainOptions, checkpoint_from_data, checkpoint_from_teacher
from edgebert.train.batches import ImageBatches
from edgebert.train.cache import CacheKey, TeacherCache, dense_log_probabilities
from edgebert.train.feed import ViewBatch, ViewFeed
from edgebert.train.loop import new_accelerator
from edgebert.train.teacher import Answers, LiveTeacher
from edgebert.train.views import ViewSpec

pytestmark = pytest.mark.usefixtures("uses_small_digits")

_OPTIONS = DistillOptions(student="nano", epochs=2, batch_size=50, learning_rate=2e-3)


@pytest.fixture(scope="module")
def make_teacher(small_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def make(model: str, **changes: Any) -> Path:
        name = f"{model}-{changes}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("teachers") / "teacher"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: small_digits)
                options = TrainOptions(model=model, epochs=2, batch_size=50, learning_rate=2e-3)
                checkpoint_from_data("digits", made[name], replace(options, **changes))
        return made[name]

    return make


def _weights(path: Path) -> str:
    return sha256_of_file(path / "model.safetensors")


def _distil(teacher: Path | list[Path], output: Path, **changes: Any) -> Path:
    first, *others = teacher if isinstance(teacher, list) else [teacher]
    options = replace(_OPTIONS, teachers=tuple(str(path) for path in others), **changes)
    checkpoint_from_teacher("digits", str(first), output, options)
    return output


def test_every_term_changes_what_is_learned(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    teacher = make_teacher("nano", seed=3)
    terms: dict[str, dict[str, Any]] = {
        "plain": {},
        "labels": {"label_weight": 0.5},
        "hard": {"hard_weight": 0.5},
        "early": {"early_weight": 0.5},
        "pooled": {"pooled_weight": 0.5},
        "relation": {"relation_weight": 5.0},
        "temperature": {"temperature": 1.0},
        "all": {"hard_weight": 0.5, "early_weight": 0.5, "pooled_weight": 0.5, "relation_weight": 5.0},
    }
    weights = {name: _weights(_distil(teacher, tmp_path / name, **changes)) for name, changes in terms.items()}
    assert len(set(weights.values())) == len(terms)


def test_terms_on_features_end_when_told(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    teacher = make_teacher("nano", seed=3)
    never = _distil(teacher, tmp_path / "never", early_weight=0.5, feature_until=0.0)
    assert _weights(never) == _weights(_distil(teacher, tmp_path / "plain"))


def test_features_of_a_convolutional_teacher_are_lifted_and_regridded(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = make_teacher("cnn")
    made = _distil(teacher, tmp_path / "out", early_weight=0.5, pooled_weight=0.5, relation_weight=1.0)
    assert {name.split(".")[0] for name in load_checkpoint(made).model.state_dict()} == {
        *{"stem", "positions", "blocks", "norm", "classifier"}  # the lifts are not shipped
    }


def test_several_teachers_are_averaged_whatever_the_order_of_their_classes(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = make_teacher("nano", seed=3), make_teacher("micro")
    checkpoint = load_checkpoint(second)
    turned = checkpoint.card.class_names[::-1]
    model = checkpoint.model
    assert isinstance(model, StudentForImageClassification)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    (tmp_path / "turned").mkdir()
    save_checkpoint(tmp_path / "turned", model, replace(checkpoint.card, class_names=turned), ())
    plain = _distil([first, second], tmp_path / "plain")
    assert _weights(plain) == _weights(_distil([first, tmp_path / "turned"], tmp_path / "also"))
    assert _weights(plain) != _weights(_distil(first, tmp_path / "one"))
    made_from = read_checkpoint_card(plain).provenance.made_from
    assert made_from["teacher"] == load_checkpoint(first).sha256
    assert made_from["teacher-2"] == checkpoint.sha256


def test_teachers_of_other_classes_are_refused_with_the_difference(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    first = make_teacher("nano", seed=3)
    checkpoint = load_checkpoint(first)
    names = ("zero", *checkpoint.card.class_names[1:])
    (tmp_path / "other").mkdir()
    save_checkpoint(tmp_path / "other", checkpoint.model, replace(checkpoint.card, class_names=names), ())
    with pytest.raises(BadDataError, match=r"only the first has `0`, only another has `zero`"):
        _distil([first, tmp_path / "other"], tmp_path / "out")


def test_features_of_several_teachers_are_refused(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    first = make_teacher("nano", seed=3)
    with pytest.raises(UsageError, match="terms on features with 2 teachers"):
        _distil([first, first], tmp_path / "out", pooled_weight=1.0)


@pytest.mark.parametrize("cached", [False, True])
def test_teacher_that_answers_nan_stops_the_run_and_names_the_images(
    make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    logits_of = LiveTeacher._logits

    def broken(self: LiveTeacher, classifier: Any, size: Any, batch: Any) -> Tensor:
        logits = logits_of(self, classifier, size, batch).clone()
        logits[1, 3] = torch.nan
        return logits

    monkeypatch.setattr(LiveTeacher, "_logits", broken)
    with pytest.raises(
        EdgebertError, match=r"NaN or infinity for 1 of \d+ images of a batch \(view 0\): `digits/\d{4}`"
    ):
        _distil(make_teacher("nano", seed=3), tmp_path / "out", cache_views=2 if cached else 0)
    assert not (tmp_path / "out").exists()


def test_unlabelled_images_are_judged_by_the_teacher(
    make_teacher: Callable[..., Path], tmp_path: Path, small_digits: Dataset
) -> None:
    images = tmp_path / "images/any/depth"
    images.mkdir(parents=True)
    for index, example in enumerate(small_digits.train):
        Image.fromarray(example.load()).save(images / f"{index}.png")
    teacher = make_teacher("nano", seed=3)
    report = checkpoint_from_teacher(
        str(tmp_path / "images"), str(teacher), tmp_path / "out", replace(_OPTIONS, unlabelled=True, epochs=3)
    )
    assert report.against == "teacher"
    assert sum(row.support for row in report.per_class) == 15  # a tenth
    card = read_checkpoint_card(tmp_path / "out")
    assert card.class_names == small_digits.class_names
    assert all(example.pixel_sha256 in card.seen for example in small_digits.train)
    # The weights of an inherited student already agree with the teacher; that is what is measured.
    assert report.score > 0.5


def test_student_starts_from_its_teacher_where_the_blocks_match(
    make_teacher: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    teacher = make_teacher("nano", seed=3)
    inherited = _distil(teacher, tmp_path / "inherited", epochs=1)
    assert "started from weights of the" in caplog.text
    assert _weights(inherited) != _weights(_distil(teacher, tmp_path / "anew", epochs=1, init="anew"))
    caplog.clear()
    _distil(make_teacher("bert-nano", epochs=1), tmp_path / "bert", epochs=1)
    assert "the student starts anew" in caplog.text
    with pytest.raises(UsageError, match="init `teacher`"):
        _distil(make_teacher("bert-nano", epochs=1), tmp_path / "refused", init="teacher")


def test_cache_gives_the_weights_that_live_answers_give(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    # As many views as epochs: the same views, the same answers but for their rounding to half precision.
    teacher = make_teacher("nano", seed=3)
    live = load_checkpoint(_distil(teacher, tmp_path / "live", mixup=0.5)).model.state_dict()
    cached = load_checkpoint(_distil(teacher, tmp_path / "cached", mixup=0.5, cache_views=2)).model.state_dict()
    for name, weight in live.items():
        assert torch.allclose(weight, cached[name], atol=2e-3), name
    assert not (tmp_path / ".cached.training").exists()


def test_cache_is_kept_and_used_again(
    make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, cache = make_teacher("nano", seed=3), tmp_path / "cache"
    first = _distil(teacher, tmp_path / "first", cache=str(cache), mixup=0.5)
    before = sha256_of_folder(cache)
    asked: list[int] = []
    call = LiveTeacher.__call__

    def counted(self: LiveTeacher, batch: Any) -> Any:
        asked.append(len(batch.positions))
        return call(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", counted)
    assert _weights(_distil(teacher, tmp_path / "again", cache=str(cache), mixup=0.5)) == _weights(first)
    assert sum(asked) == 64  # checked again, and no more
    _distil(teacher, tmp_path / "other", cache=str(cache), mixup=0.5, student="d32-l1-h2-r1", seed=7, view_seed=0)
    assert sum(asked) == 128
    assert sha256_of_folder(cache) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup": 0.4}, r"key\.views\.spec\.mixup"),
        ({"seed": 1}, r"key\.views\.seed"),
        ({"teacher": "micro"}, r"key\.teacher"),
        ({"image_size": 12}, r"key\.data"),
    ],
)
def test_cache_of_something_else_is_refused_with_the_difference(
    make_teacher: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    _distil(make_teacher("nano", seed=3), tmp_path / "first", cache=str(tmp_path / "cache"), epochs=1)
    other = make_teacher(changes.pop("teacher")) if "teacher" in changes else make_teacher("nano", seed=3)
    with pytest.raises(RefusedError, match=named):
        _distil(other, tmp_path / "out", cache=str(tmp_path / "cache"), epochs=1, init="anew", **changes)


def test_cache_whose_answers_were_changed_is_refused(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    teacher, cache = make_teacher("nano", seed=3), tmp_path / "cache"
    _distil(teacher, tmp_path / "first", cache=str(cache))
    bank = np.load(cache / "bank-00001.npy")
    np.save(cache / "bank-00001.npy", bank[:, ::-1])
    with pytest.raises(RefusedError, match=r"does not hold what the teacher answers: view 1 of `digits/"):
        _distil(teacher, tmp_path / "out", cache=str(cache))
    np.save(cache / "bank-00001.npy", bank[:-1])
    with pytest.raises(BadDataError, match="has shape"):
        _distil(teacher, tmp_path / "out", cache=str(cache))


def test_cache_with_a_nan_is_refused(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    teacher, cache = make_teacher("nano", seed=3), tmp_path / "cache"
    _distil(teacher, tmp_path / "first", cache=str(cache), epochs=1)
    np.save(cache / "bank-00000.npy", np.load(cache / "bank-00000.npy") * np.float16(np.nan))
    with pytest.raises(EdgebertError, match="view 0"):
        _distil(teacher, tmp_path / "out", cache=str(cache), epochs=1)


def test_cache_on_a_full_disk_is_an_error_and_leaves_no_half_bank(
    make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgebert.train.cache.os.posix_fallocate", full)
    with pytest.raises(CannotWriteError, match="No space left"):
        _distil(make_teacher("nano", seed=3), tmp_path / "out", cache=str(tmp_path / "cache"), epochs=1)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json"]


def test_cache_whose_card_was_being_written_is_begun_again(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/.cache.json.staging-1.json").write_text("{")
    _distil(make_teacher("nano", seed=3), tmp_path / "out", cache=str(tmp_path / "cache"), epochs=1)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["bank-00000.npy", "cache.json"]


@pytest.mark.parametrize("cache", ["out", "out/answers", "."])
def test_cache_and_output_in_one_another_are_refused(
    make_teacher: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    with pytest.raises(UsageError, match="lie in one another"):
        _distil(make_teacher("nano", seed=3), tmp_path / "out", cache=str(tmp_path / cache))


def test_cache_of_many_classes_holds_the_ten_most_probable(tmp_path: Path) -> None:
    answers = torch.randn(6, 150) * 5.0
    chosen = functional.log_softmax(answers, dim=1).topk(10, dim=1)
    dense = dense_log_probabilities(chosen.indices, chosen.values, 150)
    assert torch.allclose(dense.exp().sum(dim=1), torch.ones(6), atol=1e-5)
    assert torch.equal(dense.gather(1, chosen.indices), chosen.values)
    rest = dense.scatter(1, chosen.indices, torch.nan)
    assert all(len(row[~row.isnan()].unique()) == 1 for row in rest)  # spread evenly


def test_cache_recheck_lets_classes_of_equal_rank_change_places(
    small_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.train.cache.FULL_CLASSES", 5)
    monkeypatch.setattr("edgebert.train.cache.TOP_CLASSES", 4)
    images = ImageBatches(small_digits.train, Preprocessing(height=8, width=8), classes=10)
    feed = ViewFeed(images, ViewSpec(height=8, width=8), seed=0, device=torch.device("cpu"))
    key = CacheKey(teacher="t", data="d", views={}, precision="bf16")
    cache = TeacherCache(tmp_path / "cache", key, images=len(images), classes=10, task="single-label")
    fixed = torch.tensor([9.0, 7.0, 5.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    def teacher(swap: float) -> Callable[[ViewBatch], Answers]:
        logits = fixed + swap * torch.eye(10)[4]
        return lambda batch: Answers(logits=logits.expand(len(batch.positions), -1), tokens={}, grids={})

    cache.build(1, teacher(-0.01), feed, new_accelerator("no", "cpu"))
    cache.verify(1, teacher(+0.01), feed)  # now class 4 is the fourth, and class 3 the fifth
    with pytest.raises(RefusedError):
        cache.verify(1, teacher(20.0), feed)


def test_cache_takes_no_folder_of_something_else(make_teacher: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/read.me").write_text("mine")
    with pytest.raises(CannotWriteError, match="is no cache"):
        _distil(make_teacher("nano", seed=3), tmp_path / "out", cache=str(tmp_path / "notes"))
    assert (tmp_path / "notes/read.me").read_text() == "mine"


def test_fusion_teacher_reads_texts_and_its_student_does_not(
    tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "labels", "text"])
        for index, example in enumerate(small_digits.train[:100]):
            Image.fromarray(example.load()).save(folder / f"{index}.png")
            kind = "even" if example.label % 2 == 0 else "odd"
            rows.writerow([f"{index}.png", kind, f"an {kind} digit"])
    monkeypatch.undo()  # `load_dataset` reads this folder
    options = TrainOptions(model="cnn", text_model="scratch", epochs=6, batch_size=20, learning_rate=2e-3, mixup=0.2)
    report = checkpoint_from_data(str(folder), tmp_path / "fusion", options)
    assert report.score == 1.0  # the text says it
    checkpoint_from_teacher(
        str(folder), str(tmp_path / "fusion"), tmp_path / "student", replace(_OPTIONS, cache_views=2)
    )
    student = load_checkpoint(tmp_path / "student")
    assert isinstance(student.model, StudentForImageClassification)
    assert student.card.provenance.made_from["teacher"] == load_checkpoint(tmp_path / "fusion").sha256

    with pytest.raises(UsageError, match="a fusion model as a student"):
        checkpoint_from_teacher(
            str(folder), str(tmp_path / "fusion"), tmp_path / "out", replace(_OPTIONS, student=str(tmp_path / "fusion"))
        )
    with pytest.raises(BadDataError, match="has a text"):
        checkpoint_from_data(
            "digits", tmp_path / "out", replace(options, model=str(tmp_path / "fusion"), text_model=None)
        )


def test_text_model_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="no training image of `digits` has a text"):
        checkpoint_from_data("digits", tmp_path / "out", TrainOptions(model="cnn", text_model="scratch", epochs=1))


def test_several_labels_are_learned_and_distilled(
    tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tagged(examples: tuple[Any, ...]) -> tuple[Any, ...]:
        even, large = 0, 1
        return tuple(
            replace(
                example, labels=(*((even,) if example.label % 2 == 0 else ()), *((large,) if example.label > 4 else ()))
            )
            for example in examples
        )

    several = replace(
        small_digits,
        task="multi-label",
        class_names=("even", "large"),
        train=tagged(small_digits.train),
        val=tagged(small_digits.val),
        test=(),
    )
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: several)
    options = TrainOptions(model="micro", epochs=12, batch_size=25, learning_rate=3e-3, class_weights="effective")
    report = checkpoint_from_data("digits", tmp_path / "teacher", options)
    assert report.score_name == "map"
    assert report.score > 0.8  # chance is the share of positives, about a half
    card = read_checkpoint_card(tmp_path / "teacher")
    assert card.task == "multi-label"
    assert len(card.thresholds) == 2
    student = checkpoint_from_teacher(
        "digits",
        str(tmp_path / "teacher"),
        tmp_path / "out",
        replace(_OPTIONS, epochs=8, hard_weight=0.1, cache_views=4),
    )
    assert student.score_name == "map"
    assert student.score > 0.6
    assert read_checkpoint_card(tmp_path / "out").task == "multi-label"


def test_task_of_data_and_teacher_must_be_one(
    make_teacher: Callable[..., Path], tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = replace(small_digits, task="multi-label")
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: several)
    with pytest.raises(BadDataError, match="the data are multi-label and the teacher is single-label"):
        _distil(make_teacher("nano", seed=3), tmp_path / "out")
