"""The two stages on a small part of the digits: what they write, refuse, resume and stop at."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from edgebert._files import sha256_of_file, sha256_of_folder
from edgebert.card_io import read_checkpoint_card
from edgebert.data import Dataset
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, LockedError, UnavailableError, UsageError
from edgebert.models.checkpoint import PixelClassifier, load_checkpoint
from edgebert.train import DistillOptions, TrainOptions, checkpoint_from_data, checkpoint_from_teacher
from edgebert.train.batches import ImageBatches
from edgebert.train.curve import Tally
from edgebert.train.evaluation import evaluated
from edgebert.train.feed import ViewBatch, ViewFeed
from edgebert.train.loop import seed_of
from edgebert.train.state import Position, RunFolder

pytestmark = pytest.mark.usefixtures("uses_small_digits")

_OPTIONS = TrainOptions(model="nano", epochs=3, batch_size=32, learning_rate=2e-3)

# The same as the fixture `small_digits`, in a process of its own.
_TRAIN_SMALL_DIGITS = """
import sys
from dataclasses import replace
from pathlib import Path
from edgebert.data import load_dataset
from edgebert.train import TrainOptions, checkpoint, checkpoint_from_data

digits = load_dataset("digits")
checkpoint.load_dataset = lambda data, options: replace(digits, train=digits.train[:150], val=digits.val[:40])
options = TrainOptions(model="nano", epochs=40, batch_size=32, learning_rate=2e-3)
checkpoint_from_data("digits", Path(sys.argv[1]), options)
"""


@pytest.fixture(scope="module")
def teacher(small_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: small_digits)
        checkpoint_from_data("digits", path, replace(_OPTIONS, model="micro", epochs=4))
    return path


def _weights(path: Path) -> str:
    return sha256_of_file(path / "model.safetensors")


def _interrupting(call: int, error: type[BaseException]) -> Callable[..., Iterator[ViewBatch]]:
    """Return a stand-in for `ViewFeed.read` that raises before its n-th batch: in the middle of an epoch."""
    calls = iter(range(1, 1_000_000))
    read = ViewFeed.read

    def stand_in(feed: ViewFeed, parts: Sequence[NDArray[np.int64]], bank: int) -> Iterator[ViewBatch]:
        for batch in read(feed, parts, bank):
            if next(calls) == call:
                raise error
            yield batch

    return stand_in


def test_checkpoint_from_data_writes_best_and_last_and_reports_what_ships(
    tmp_path: Path, small_digits: Dataset
) -> None:
    report = checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    assert (report.path, report.last, report.epochs) == (tmp_path / "out", tmp_path / "out/last", 3)
    assert not (tmp_path / ".out.training").exists()
    best, last = load_checkpoint(report.path), load_checkpoint(report.last)
    images = ImageBatches(small_digits.val, best.card.preprocessing, classes=10)
    measured = evaluated(PixelClassifier(best.model, best.card.preprocessing), images, best.card.class_names)
    assert (report.score_name, report.score, report.per_class) == ("top1", measured.score, measured.rows)
    assert report.macro_f1 == measured.others["macro_f1"]
    assert [record.val_score for record in report.curve][report.best_epoch - 1] == report.score
    assert len(report.curve) == 3
    assert sum(row.support for row in report.per_class) == 40
    provenance = best.card.provenance
    assert provenance.stage == "train"
    assert provenance.made_from == {"data": small_digits.sha256()}
    assert provenance.metrics == {**measured.metrics(), "epoch": float(report.best_epoch)}
    assert provenance.parameters == report.parameters == 23130
    assert {"torch", "transformers", "edgebert"} <= set(provenance.versions)
    assert provenance.options["image_size"] == 8
    assert provenance.options["mixed_precision"] == "no"
    assert last.card.provenance.metrics["epoch"] == 3.0
    assert all(example.pixel_sha256 in best.card.seen for example in (*small_digits.train, *small_digits.val))
    assert not any(example.pixel_sha256 in best.card.seen for example in small_digits.test)
    assert len(best.examples) == 4


def test_checkpoint_from_data_gives_equal_bytes_for_the_same_seed_only(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed + 17)  # the caller's random state plays no part
        before = torch.get_rng_state()
        checkpoint_from_data("digits", tmp_path / name, replace(_OPTIONS, epochs=2, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert sha256_of_folder(tmp_path / "a") == sha256_of_folder(tmp_path / "b")
    assert _weights(tmp_path / "a") != _weights(tmp_path / "c")


def test_checkpoint_from_data_ships_no_image_when_told_so(tmp_path: Path) -> None:
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, epochs=1, examples=0))
    assert load_checkpoint(tmp_path / "out").examples == ()


def test_checkpoint_from_data_fine_tunes_a_checkpoint(teacher: Path, tmp_path: Path) -> None:
    report = checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, model=str(teacher), epochs=1))
    card = read_checkpoint_card(tmp_path / "out")
    assert card.provenance.made_from["init"] == load_checkpoint(teacher).sha256
    assert card.provenance.source == read_checkpoint_card(teacher).provenance
    assert card.provenance.options["model"] == "edgebert-student"
    assert report.epochs == 1


@pytest.mark.parametrize("wrong", [{"image_size": 16}, {"resize": "crop"}])
def test_checkpoint_from_data_refuses_another_size_for_a_pretrained_model(
    teacher: Path, tmp_path: Path, wrong: dict[str, int | str]
) -> None:
    with pytest.raises(UsageError, match="pretrained"):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, model=str(teacher), **wrong))  # type: ignore[arg-type]  # one of two fields


def test_checkpoint_from_data_measures_size_mean_and_std(tmp_path: Path, small_digits: Dataset) -> None:
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, epochs=1, image_size=12, resize="crop"))
    rule = read_checkpoint_card(tmp_path / "out").preprocessing
    assert (rule.height, rule.width, rule.resize, rule.shortest_edge) == (12, 12, "crop", 12)
    assert all(0.25 < value < 0.4 for value in (*rule.mean, *rule.std))


def test_checkpoint_from_data_refuses_an_output_that_exists_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/preprocessing.json").write_text("{}")
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", None)
    with pytest.raises(CannotWriteError, match="exists"):
        checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)


def test_checkpoint_from_data_refuses_fp16_without_a_cuda_device(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UnavailableError, match="fp16"):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, mixed_precision="fp16"))


def test_checkpoint_from_data_refuses_a_second_writer(tmp_path: Path) -> None:
    # Whoever holds a lock may take it again, so that the second writer is another thread.
    with RunFolder(tmp_path / "out", {}).held(), ThreadPoolExecutor(1) as other, pytest.raises(LockedError):
        other.submit(checkpoint_from_data, "digits", tmp_path / "out", _OPTIONS).result()


def test_resume_gives_the_weights_of_an_uninterrupted_run(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything that has a state takes part: moments, running average, mixup's draws, a half step at the epoch's end.
    options = DistillOptions(student="nano", epochs=3, batch_size=32, accumulate=2, ema=0.9, mixup=0.5)
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "edgebert.train.feed.ViewFeed.read", _interrupting(12, KeyboardInterrupt)
        )  # of 5 batches an epoch
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_teacher("digits", str(teacher), tmp_path / "cut", options)
    assert not (tmp_path / "cut").exists()
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "cut", replace(options, resume=True))
    assert sha256_of_folder(tmp_path / "cut") == sha256_of_folder(tmp_path / "whole")
    assert not (tmp_path / ".cut.training").exists()


def test_interrupted_run_leaves_a_readable_state_and_no_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    monkeypatch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(8, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    assert "go on after epoch 1 with --resume" in caplog.text
    folder = tmp_path / ".out.training"
    best = [entry for entry in folder.iterdir() if entry.name.startswith("best-")]
    assert len(best) == 1
    assert load_checkpoint(best[0]).card.provenance.metrics["epoch"] == 1.0
    files = {entry.suffix for entry in folder.rglob("*") if entry.is_file()}
    assert files == {".safetensors", ".json", ".png", ""}  # the last is the list of hashes
    with safe_open(next(folder.glob("state-*-1-0")) / "state.safetensors", framework="pt") as stream:
        assert json.loads(stream.metadata()["state"])["epochs"] == 1


def test_resume_refuses_the_state_of_another_run_and_names_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(8, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    with pytest.raises(UsageError, match=r"options\.learning_rate `0\.002` then, `0\.004` now"):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, learning_rate=4e-3, resume=True))
    assert len(list((tmp_path / ".out.training").glob("state-*-1-0/state.safetensors"))) == 1


@pytest.mark.parametrize("file", ["state-*/state.safetensors", "state-*/SHA256SUMS", "best-*/model.safetensors"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_resume_refuses_a_state_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(8, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    path = next((tmp_path / ".out.training").glob(file))
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadDataError, match="no state in"):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, resume=True))
    assert "does not count" in caplog.text
    assert not (tmp_path / "out").exists()


def test_resume_takes_the_state_before_one_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_from_data("digits", tmp_path / "whole", _OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(8, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    state = next((tmp_path / ".out.training").glob("state-*-1-0"))
    further = state.with_name(state.name.replace("-1-0", "-1-2"))
    shutil.copytree(state, further)
    (further / "state.safetensors").write_bytes(b"\x00" * 100)
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, resume=True))
    assert sha256_of_folder(tmp_path / "out") == sha256_of_folder(tmp_path / "whole")


def test_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = iter(range(1, 1000))
    save = save_file

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if next(writes) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    options = replace(_OPTIONS, save_every=2)
    checkpoint_from_data("digits", tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        patch.setattr("edgebert.train.state.save_file", full)
        with pytest.raises(CannotWriteError, match="No space left"):
            checkpoint_from_data("digits", tmp_path / "out", options)
    left = sorted(entry.name for entry in (tmp_path / ".out.training").iterdir() if not entry.name.startswith("best"))
    assert [name[-4:] for name in left] == ["-0-4"]
    checkpoint_from_data("digits", tmp_path / "out", replace(options, resume=True))
    assert sha256_of_folder(tmp_path / "out") == sha256_of_folder(tmp_path / "whole")


def test_resume_finishes_a_run_that_was_killed_before_its_state_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: RunFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    whole = sha256_of_folder(tmp_path / "out")
    with pytest.raises(CannotWriteError, match="exists"):
        checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    with pytest.raises(CannotWriteError, match="exists"):  # that of another run
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, seed=5, resume=True))
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, resume=True))
    assert sha256_of_folder(tmp_path / "out") == whole
    assert not (tmp_path / ".out.training").exists()


def test_resume_takes_its_own_state_before_one_of_another_run_that_is_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_from_data("digits", tmp_path / "whole", _OPTIONS)
    for options, stop in ((replace(_OPTIONS, seed=9), 14), (_OPTIONS, 8)):
        with monkeypatch.context() as patch:
            patch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(stop, KeyboardInterrupt))
            patch.setattr("edgebert.train.state.shutil.rmtree", lambda path, **_: None)  # killed before it tidies up
            with pytest.raises(KeyboardInterrupt):
                checkpoint_from_data("digits", tmp_path / "out", options)
    assert len(list((tmp_path / ".out.training").glob("state-*"))) == 3
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, resume=True))
    assert sha256_of_folder(tmp_path / "out") == sha256_of_folder(tmp_path / "whole")


def test_scaler_of_fp16_survives_a_state(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))  # makes its tensors
    folder = RunFolder(tmp_path / "out", {})
    position = Position(
        epochs=1, batches=0, best_epoch=1, best=(0.5, 1.0), scaler=scaler.state_dict(), tally=Tally(), curve=()
    )
    folder.best(1).mkdir(parents=True)
    folder.save(position, {})
    saved = folder.interrupted_run(resume=True)
    assert saved is not None
    again = torch.amp.GradScaler("cpu")
    again.load_state_dict(dict(saved.position.scaler))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    torch.autograd.backward(again.scale(weight.sum()))
    again.step(optimizer)
    again.update()  # refuses counts that are no whole numbers
    assert again.get_scale() == 8.0


def test_run_without_resume_replaces_an_interrupted_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgebert.train.feed.ViewFeed.read", _interrupting(8, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    caplog.set_level(logging.INFO, "edgebert")
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, epochs=1, seed=5))
    assert "--resume continues it" in caplog.text
    assert not (tmp_path / ".out.training").exists()


def test_resume_starts_from_the_beginning_when_there_is_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, epochs=1, resume=True))
    assert "no interrupted run to resume" in caplog.text


def test_run_killed_by_sigkill_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = replace(_OPTIONS, epochs=40)
    process = subprocess.Popen([sys.executable, "-c", _TRAIN_SMALL_DIGITS, str(tmp_path / "out")])
    folder = tmp_path / ".out.training"
    deadline = time.monotonic() + 120
    while not any(folder.glob("state-*-1-0")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    caplog.set_level(logging.INFO, "edgebert")
    report = checkpoint_from_data("digits", tmp_path / "out", replace(options, resume=True))
    assert "resuming after epoch" in caplog.text
    assert report.epochs == 40
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("quantity", ["loss", "gradient's norm"])
def test_run_stops_at_a_number_that_is_not_finite_and_keeps_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantity: str
) -> None:
    from edgebert.train import objective

    calls = iter(range(1, 1000))

    def diverging(logits: Tensor, targets: Tensor, **_: object) -> Tensor:
        loss = (logits * targets).square().mean()
        if next(calls) != 8:
            return loss
        # sqrt(0) has a finite value and an infinite slope.
        return loss * torch.nan if quantity == "loss" else (logits * 0.0).sum().sqrt()

    monkeypatch.setattr(objective, "label_loss", diverging)
    with pytest.raises(EdgebertError) as caught:
        checkpoint_from_data("digits", tmp_path / "out", _OPTIONS)
    assert f"the {quantity} is nan at step 3 of epoch 2 (learning rate" in caught.value.what
    assert "--learning-rate" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    best = next((tmp_path / ".out.training").glob("best-*"))
    assert str(best) in caught.value.what
    assert load_checkpoint(best).card.provenance.metrics["epoch"] == 1.0


def test_checkpoint_from_teacher_learns_from_it_and_names_it(
    teacher: Path, tmp_path: Path, small_digits: Dataset
) -> None:
    options = DistillOptions(student="nano", epochs=1)
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "out", options)
    card, taught = read_checkpoint_card(tmp_path / "out"), load_checkpoint(teacher)
    assert card.provenance.stage == "distill"
    assert card.provenance.made_from == {"data": small_digits.sha256(), "teacher": taught.sha256}
    assert card.provenance.source == taught.card.provenance
    assert card.preprocessing == taught.card.preprocessing
    assert card.provenance.options["temperature"] == 4.0


def test_checkpoint_from_teacher_takes_the_teachers_order_of_classes(
    teacher: Path, tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_names(examples: tuple, count: int = 10) -> tuple:  # type: ignore[type-arg]  # of Example
        return tuple(replace(example, labels=(count - 1 - example.label,)) for example in examples)

    turned = replace(
        small_digits,
        class_names=small_digits.class_names[::-1],
        train=reversed_names(small_digits.train),
        val=reversed_names(small_digits.val),
    )
    options = DistillOptions(student="nano", epochs=2)
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "plain", options)
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: turned)
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "turned", options)
    assert read_checkpoint_card(tmp_path / "turned").class_names == small_digits.class_names
    assert _weights(tmp_path / "turned") == _weights(tmp_path / "plain")


def test_checkpoint_from_teacher_refuses_other_class_names(
    teacher: Path, tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(small_digits, class_names=("zero", *small_digits.class_names[1:]))
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", lambda data, options: other)
    with pytest.raises(BadDataError, match="zero") as caught:
        checkpoint_from_teacher("digits", str(teacher), tmp_path / "out", DistillOptions(student="nano", epochs=1))
    assert "--class-map" in str(caught.value.hint)
    mapped = DistillOptions(student="nano", epochs=1, class_map={"zero": "0"})
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "out", mapped)
    assert read_checkpoint_card(tmp_path / "out").class_names == small_digits.class_names


def test_checkpoint_from_teacher_shows_a_foreign_teacher_larger_views_and_says_so(
    tmp_path: Path, small_digits: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    names = dict(enumerate(small_digits.class_names))
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit/preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": 16, "width": 16},
                "resample": 2,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    caplog.set_level(logging.INFO, "edgebert")
    options = DistillOptions(student="nano", epochs=1, image_size=8)
    checkpoint_from_teacher("digits", str(tmp_path / "vit"), tmp_path / "out", options)
    assert "views are made at 16 x 16 px" in caplog.text
    card = read_checkpoint_card(tmp_path / "out")
    assert (card.preprocessing.height, card.preprocessing.width) == (8, 8)
    assert card.provenance.source is not None
    assert card.provenance.source.stage == "import"


def test_checkpoint_from_teacher_takes_a_checkpoint_as_student(teacher: Path, tmp_path: Path) -> None:
    options = DistillOptions(student=str(teacher), epochs=1, learning_rate=1e-4)
    checkpoint_from_teacher("digits", str(teacher), tmp_path / "out", options)
    made_from = read_checkpoint_card(tmp_path / "out").provenance.made_from
    assert made_from["init"] == made_from["teacher"] == load_checkpoint(teacher).sha256


def test_seed_of_depends_on_every_part() -> None:
    seeds = {seed_of(*parts) for parts in ((0, "step", 1, 2), (0, "step", 12), (0, "order", 1, 2), (1, "step", 1, 2))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
