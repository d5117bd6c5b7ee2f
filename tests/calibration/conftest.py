"""A student trained for a few seconds on the digits, and its FP32 graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Dataset, load_dataset
from edgebert.examples import example_images
from edgebert.export.graph import graph_from_checkpoint
from edgebert.models.checkpoint import PixelClassifier, new_model, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch

_STEPS, _BATCH = 250, 64  # about 12 epochs: 95 % of the validation digits, in some five seconds on two cores


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The built-in digits."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def trained_folder(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a `nano` that knows its digits, without distillation or any care."""
    rule = Preprocessing(height=8, width=8)
    model = new_model("nano", preprocessing=rule, class_names=digits.class_names, seed=0)
    classifier = PixelClassifier(model, rule).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only waits for a second one
    images = torch.from_numpy(load_batch([example.load() for example in digits.train], rule))
    labels = torch.tensor([example.label for example in digits.train])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=_STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(images), (_BATCH,), generator=generator)
        loss = torch.nn.functional.cross_entropy(classifier(images[batch]), labels[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    card = ModelCard(
        class_names=digits.class_names,
        preprocessing=rule,
        provenance=Provenance(stage="train", made_from={"data": digits.sha256()}, parameters=parameter_count(model)),
        seen=ImageSet.from_hashes(example.pixel_sha256 for example in digits.val),
    )
    folder = tmp_path_factory.mktemp("trained")
    save_checkpoint(folder, model.train(False), card, example_images(digits.train, digits.class_names, rule))
    return folder


@pytest.fixture(scope="session")
def trained_graph(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained student's FP32 graph."""
    return graph_from_checkpoint(trained_folder, tmp_path_factory.mktemp("fp32") / "student.onnx").path
