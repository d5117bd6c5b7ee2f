"""What the loop promises: what is frozen stays, several processes train as one, every kill is survived."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgebert._files import sha256_of_file, sha256_of_folder
from edgebert.card_io import read_checkpoint_card
from edgebert.data import Dataset, load_dataset
from edgebert.errors import UnavailableError, UsageError
from edgebert.models.checkpoint import load_checkpoint
from edgebert.train import TrainOptions, checkpoint_from_data

_OPTIONS = TrainOptions(model="nano", epochs=2, batch_size=50, learning_rate=2e-3)


def _state(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).model.state_dict()


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.mark.usefixtures("uses_small_digits")
def test_freeze_leaves_the_lower_blocks_and_what_is_below_them_alone(tmp_path: Path) -> None:
    checkpoint_from_data("digits", tmp_path / "start", _OPTIONS)
    options = replace(_OPTIONS, model=str(tmp_path / "start"), epochs=1)
    checkpoint_from_data("digits", tmp_path / "tuned", replace(options, freeze=1))
    changed = _changed(_state(tmp_path / "start"), _state(tmp_path / "tuned"))
    assert changed
    assert all(name.startswith(("blocks.1.", "norm.", "classifier.")) for name in changed)
    with pytest.raises(UsageError, match="2"):
        checkpoint_from_data("digits", tmp_path / "out", replace(options, freeze=3))


@pytest.mark.usefixtures("uses_small_digits")
def test_freeze_batch_norm_leaves_the_statistics_alone(tmp_path: Path) -> None:
    checkpoint_from_data("digits", tmp_path / "start", _OPTIONS)
    options = replace(_OPTIONS, model=str(tmp_path / "start"), epochs=1, freeze_batch_norm=True)
    checkpoint_from_data("digits", tmp_path / "tuned", options)
    changed = _changed(_state(tmp_path / "start"), _state(tmp_path / "tuned"))
    assert "stem.0.0.weight" in changed
    assert not any("running" in name or "tracked" in name for name in changed)


@pytest.mark.usefixtures("uses_small_digits")
def test_layer_decay_moves_lower_blocks_less(tmp_path: Path) -> None:
    checkpoint_from_data("digits", tmp_path / "start", _OPTIONS)
    options = replace(_OPTIONS, model=str(tmp_path / "start"), epochs=1)
    checkpoint_from_data("digits", tmp_path / "even", options)
    checkpoint_from_data("digits", tmp_path / "decayed", replace(options, layer_decay=0.1))
    start, even, decayed = (_state(tmp_path / name) for name in ("start", "even", "decayed"))
    for block, share in ((0, 0.01), (1, 0.1)):
        name = f"blocks.{block}.mlp.expand.weight"
        moved = float((decayed[name] - start[name]).norm() / (even[name] - start[name]).norm())
        assert moved == pytest.approx(share, rel=0.5)


@pytest.mark.usefixtures("uses_small_digits")
def test_patience_stops_a_run_that_gets_no_better(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    checkpoint_from_data("digits", tmp_path / "start", replace(_OPTIONS, epochs=20))
    options = replace(_OPTIONS, model=str(tmp_path / "start"), learning_rate=1e-9, epochs=50, patience=2)
    report = checkpoint_from_data("digits", tmp_path / "out", options)
    assert report.epochs == report.best_epoch + 2 < 50
    assert len(report.curve) == report.epochs
    assert "none was better than epoch" in caplog.text


@pytest.mark.usefixtures("uses_small_digits")
def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path) -> None:
    for name, saving in (("plain", False), ("saving", True)):
        checkpoint_from_data("digits", tmp_path / name, replace(_OPTIONS, gradient_checkpointing=saving))
    for name, weight in _state(tmp_path / "plain").items():
        assert torch.allclose(weight, _state(tmp_path / "saving")[name], atol=1e-5), name


@pytest.mark.usefixtures("uses_small_digits")
def test_states_within_an_epoch_change_nothing(tmp_path: Path) -> None:
    for name, every in (("none", 0), ("two", 2)):
        checkpoint_from_data("digits", tmp_path / name, replace(_OPTIONS, save_every=every))
    assert sha256_of_folder(tmp_path / "none") == sha256_of_folder(tmp_path / "two")


@pytest.mark.usefixtures("uses_small_digits")
def test_hook_is_told_each_epoch_and_can_end_the_run(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    class Enough(Exception):
        pass

    def hook(epoch: int, score: float) -> None:
        told.append((epoch, score))
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, epochs=5), on_epoch=hook)
    assert [epoch for epoch, _ in told] == [1, 2]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("uses_small_digits")
def test_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnavailableError, match="device `cuda`"):
        checkpoint_from_data("digits", tmp_path / "out", replace(_OPTIONS, device="cuda"))


@pytest.mark.usefixtures("uses_small_digits")
@pytest.mark.parametrize("model", ["nano", "bert-nano", "cnn"])
def test_pretraining_learns_to_fill_in_and_hands_its_weights_on(
    tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    options = replace(_OPTIONS, model=model, epochs=1, pretrain="mim", pretrain_epochs=2)
    checkpoint_from_data("digits", tmp_path / "out", options)
    checkpoint_from_data("digits", tmp_path / "again", replace(options, pretrain_epochs=1))
    checkpoint_from_data("digits", tmp_path / "plain", replace(options, pretrain="none"))
    assert "pre-training on hidden patches of 150 images" in caplog.text
    assert len({sha256_of_file(tmp_path / name / "model.safetensors") for name in ("out", "again", "plain")}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out", "plain"]  # nothing is left


@pytest.mark.usefixtures("uses_small_digits")
def test_pretraining_error_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgebert.train import pretraining

    errors: list[float] = []
    measure = pretraining._error_on

    def noted(*arguments: Any) -> Any:
        evaluation = measure(*arguments)
        errors.append(evaluation.loss)
        return evaluation

    monkeypatch.setattr(pretraining, "_error_on", noted)
    options = replace(_OPTIONS, epochs=1, pretrain="mim", pretrain_epochs=15, augment=())
    checkpoint_from_data("digits", tmp_path / "out", options)
    assert len(errors) == 15
    assert errors[-1] < 0.85 * errors[0]


@pytest.mark.usefixtures("uses_small_digits")
def test_pretraining_leaves_out_test_images(
    tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaking = replace(small_digits, train=(*small_digits.train, *small_digits.test[:5]), task="unlabelled")
    monkeypatch.setattr("edgebert.train.pretraining.load_unlabelled", lambda data, options: leaking)
    caplog.set_level(logging.INFO, "edgebert")
    options = replace(_OPTIONS, epochs=1, pretrain="mim", pretrain_epochs=1, pretrain_data="elsewhere")
    checkpoint_from_data("digits", tmp_path / "out", options)  # the fixture's test images cannot be read
    assert "left out: 5 test images" in caplog.text
    card = read_checkpoint_card(tmp_path / "out")
    assert not any(example.pixel_sha256 in card.seen for example in small_digits.test)


@pytest.mark.usefixtures("uses_small_digits")
def test_images_of_pretraining_are_seen_and_another_model_does_not_go_on(
    tmp_path: Path, small_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = load_dataset("digits").train[200:230]
    elsewhere = replace(small_digits, train=more, task="unlabelled")
    monkeypatch.setattr("edgebert.train.pretraining.load_unlabelled", lambda data, options: elsewhere)
    options = replace(_OPTIONS, epochs=1, pretrain="mim", pretrain_epochs=1, pretrain_data="elsewhere")
    checkpoint_from_data("digits", tmp_path / "out", options)
    card = read_checkpoint_card(tmp_path / "out")
    assert all(example.pixel_sha256 in card.seen for example in more)

    def stop(epoch: int, score: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint_from_data("digits", tmp_path / "cut", options, on_epoch=stop)
    with pytest.raises(UsageError, match=r"options\.model"):
        checkpoint_from_data("digits", tmp_path / "cut", replace(options, model="micro", resume=True))


@pytest.mark.usefixtures("uses_small_digits")
def test_states_come_behind_each_multiple_where_gradients_are_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgebert.train.state import RunFolder

    saved: list[tuple[int, int]] = []
    save = RunFolder.save

    def noted(folder: RunFolder, position: Any, tensors: Any) -> None:
        saved.append((position.epochs, position.batches))
        save(folder, position, tensors)

    monkeypatch.setattr(RunFolder, "save", noted)
    options = replace(_OPTIONS, epochs=1, batch_size=10, accumulate=4, save_every=5)
    checkpoint_from_data("digits", tmp_path / "out", options)  # 15 batches
    assert saved == [(0, 8), (0, 12), (1, 0)]


@pytest.mark.usefixtures("uses_small_digits")
def test_pretraining_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgebert.train.feed import ViewFeed

    options = replace(_OPTIONS, epochs=2, pretrain="mim", pretrain_epochs=2)
    checkpoint_from_data("digits", tmp_path / "whole", options)
    read = ViewFeed.read
    for stop in (5, 8):  # three batches an epoch: in the second epoch of pre-training, and in training
        seen = iter(range(1, 1000))

        def cut(feed: ViewFeed, parts: Any, bank: int, seen: Any = seen, stop: int = stop) -> Any:
            for batch in read(feed, parts, bank):
                if next(seen) == stop:
                    raise KeyboardInterrupt
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(ViewFeed, "read", cut)
            with pytest.raises(KeyboardInterrupt):
                checkpoint_from_data("digits", tmp_path / "cut", replace(options, resume=True))
    checkpoint_from_data("digits", tmp_path / "cut", replace(options, resume=True))
    assert sha256_of_folder(tmp_path / "cut") == sha256_of_folder(tmp_path / "whole")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The batch is that of all processes together; batch norms are frozen, as each process has statistics of its own.

    Tolerance: sums of two halves are rounded in another order than the sum of the whole, and AdamW lets a difference of one
    rounding grow. After 42 steps 1e-6 of the loss was seen; 1e-4 is allowed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checkpoint_from_data(
        "digits", tmp_path / "teacher", TrainOptions(model="nano", epochs=2, learning_rate=3e-3, device="cpu")
    )
    command = ["-m", "edgebert", "distill", "digits", "--teacher", str(tmp_path / "teacher"), "--student", "nano"]
    command += ["--init", "anew", "--epochs", "2", "--device", "cpu", "--json", "--freeze-batch-norm", "--workers", "1"]
    command += ["--mixup", "0.3", "--cache-views", "2", "--early-weight", "0"]
    pair = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    curves: dict[str, list[dict[str, float]]] = {}
    for name, start in (("one", [sys.executable]), ("two", pair)):
        ran = subprocess.run(
            [*start, *command, "-o", str(tmp_path / name)], capture_output=True, text=True, env=environment, check=False
        )
        assert ran.returncode == 0, ran.stderr
        curves[name] = json.loads(ran.stdout)["curve"]  # one process speaks
        assert ran.stderr.count("the teacher answers 2 views") == 1
    for first, second in zip(curves["one"], curves["two"], strict=True):
        assert second == pytest.approx(first, rel=1e-4)
    one, two = (_state(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-3), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "teacher", "two"]
    small = [*pair, *command, "--batch-size", "1", "-o", str(tmp_path / "small")]
    ran = subprocess.run(small, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode != 0
    assert "a batch of 1 image(s) for 2 processes" in ran.stderr
