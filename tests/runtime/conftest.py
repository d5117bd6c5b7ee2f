"""A bundle whose model is scripted: it can be made to wait, to fail, and to say what it was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgebert.runtime.choice as choice_module
from edgebert import Classifier
from edgebert._json import dump_json
from edgebert.testing import FakeRunner

Batch = NDArray[np.uint8]


class Model(FakeRunner):
    """The toy's right answers, under a test's control.

    Attributes:
        batches: what it was asked, in order, since it was opened and self-tested.
        go: a call waits until this is set.
        entered: calls that have begun.
        error: raised instead of an answer.
        broken: whether the answer to an image is NaN.
        closed: how often it was closed.
    """

    def __init__(self, toy: Any) -> None:
        self.batches: list[Batch] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.broken: Callable[[Batch], bool] | None = None
        self.closed = 0
        super().__init__(toy.spec, logits=toy.logits)

    def infer(self, batch: Batch) -> NDArray[np.float32]:
        self.batches.append(batch.copy())
        self.entered.release()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        logits = super().infer(batch)
        if self.broken is not None:
            logits[[self.broken(image) for image in batch]] = np.nan
        return logits

    def close(self) -> None:
        self.closed += 1
        super().close()

    def wait_for_call(self) -> None:
        """Wait until a call has begun."""
        assert self.entered.acquire(timeout=30)

    @property
    def sizes(self) -> list[int]:
        """Images in each call."""
        return [len(batch) for batch in self.batches]


class Models:
    """What was opened, in order; each `Model` forgets what its self-test asked when it is looked at first."""

    def __init__(self) -> None:
        self.opened: list[Model] = []

    def __getitem__(self, place: int) -> Model:
        return self.opened[place]


@pytest.fixture
def models(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Give every bundle that is opened a `Model`."""
    found = Models()

    def open_runner(*_: object) -> Model:
        found.opened.append(Model(toy))
        return found.opened[-1]

    monkeypatch.setattr(choice_module, "open_runner", open_runner)
    monkeypatch.setattr(choice_module, "check_device", lambda *_: None)
    return found


@pytest.fixture(scope="session")
def toy_bundle(make_toy_bundle: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle that no test may change."""
    return make_toy_bundle(tmp_path_factory.mktemp("toy") / "toy.edgebert")


@pytest.fixture(scope="session")
def other_bundle(make_toy_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network under another name, and so with another digest."""
    folder = make_toy_bundle(tmp_path_factory.mktemp("other") / "other.edgebert")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["name"] = "other"
    path.write_text(dump_json(manifest), encoding="utf-8")
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{digest}  manifest.json\n" if line.endswith("  manifest.json\n") else line for line in lines]
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")
    return Path(folder)


class Open:
    """A Classifier over a scripted model, opened and forgotten what its self-test asked."""

    def __init__(self, models: Models, bundle: Path) -> None:
        self._models, self._bundle = models, bundle
        self._made: list[Classifier] = []

    def __call__(self, **options: Any) -> tuple[Classifier, Model]:
        classifier = Classifier(self._bundle, **options)
        self._made.append(classifier)
        model = self._models.opened[-1]
        forget(model)
        return classifier, model

    def close(self) -> None:
        for model in self._models.opened:
            model.go.set()
        for classifier in self._made:
            classifier.close("cancel")


def forget(model: Model) -> None:
    """Forget what a self-test asked."""
    model.batches.clear()
    while model.entered.acquire(blocking=False):
        pass


@pytest.fixture
def opened(models: Models, toy_bundle: Path) -> Iterator[Open]:
    """Return a function that opens a Classifier over a scripted model; it is closed when the test ends."""
    function = Open(models, toy_bundle)
    yield function
    function.close()


@pytest.fixture
def other_toy_bundle(toy: Any, make_toy_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle of other class names and another input size."""
    rng = np.random.default_rng(11)
    rule = replace(toy.card.preprocessing, height=4, width=10)
    card = replace(toy.card, class_names=("left", "right"), preprocessing=rule)
    weight = rng.normal(0, 0.2, (4 * 10 * 3, 2)).astype(np.float32)
    return make_toy_bundle(
        tmp_path / "sides.edgebert", replace(toy, card=card, weight=weight, bias=np.zeros(2, np.float32))
    )
