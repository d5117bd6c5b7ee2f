"""The same files through the loaders of training, calibration, bench and runtime: what each of them feeds to a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields
from edgebert.bench.images import first_that_fit, write_images
from edgebert.bench.loading import LoadedArm
from edgebert.bench.worker import Worker
from edgebert.calibration.images import images_of
from edgebert.card import ModelCard, Provenance
from edgebert.data import DataOptions, Example, load_dataset
from edgebert.errors import ImageError, InputNotFoundError
from edgebert.preprocess import Preprocessing
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import InputSpec
from edgebert.testing import FakeRunner

Tensor = NDArray[np.uint8]  # (height, width, 3)


def in_training(examples: Sequence[Example], rule: Preprocessing, classes: int = 1) -> Tensor:
    """Return what evaluation during training feeds its model, in the order of the examples."""
    from edgebert.train.batches import ImageBatches

    images = ImageBatches(list(examples), rule, classes=classes)
    batches: Iterator[Tensor] = (pixels.numpy() for _, pixels in images.in_order(2))
    return np.concatenate(list(batches))


def in_calibration(examples: Sequence[Example], rule: Preprocessing) -> Tensor:
    """Return what ranges are measured on, in the order of the examples."""
    return np.stack(list(images_of(examples, rule)()))


def in_bench(examples: Sequence[Example], rule: Preprocessing, folder: Path) -> Tensor:
    """Return what a worker feeds its runner, from the images that the harness sends it."""
    sent = write_images(folder / "images.bin", first_that_fit(examples))
    pipeline, seen = _remembering(rule)
    loaded = cast(LoadedArm, SimpleNamespace(pipeline=pipeline))  # all that a worker reads of it here
    worker = Worker(lambda request, before_loading: loaded)
    worker._arm = loaded
    worker._on_classify(Fields({**sent, "answers": str(folder / "answers.npz")}, what="images"))
    return np.concatenate(seen)


def in_runtime(paths: Sequence[Path], rule: Preprocessing) -> dict[Path, Tensor | str]:
    """Return what `Classifier.predict(path)` feeds its runner, or the type and the words of its refusal."""
    pipeline, _ = _remembering(rule)
    return {path: outcome(lambda path=path: pipeline.pre(path)[0]) for path in paths}  # type: ignore[misc]


def outcome(load: Callable[[], Tensor]) -> Tensor | str:
    """Return pixels, or the type and the first words of a typed refusal; anything else is raised."""
    try:
        return load()
    except (ImageError, InputNotFoundError) as error:
        return f"{type(error).__name__}: {error.what}"


def _remembering(rule: Preprocessing) -> tuple[Pipeline, list[Tensor]]:
    seen: list[Tensor] = []

    def remember(batch: Tensor) -> NDArray[np.float32]:
        seen.append(batch.copy())
        return np.zeros((len(batch), 2), np.float32)

    spec = InputSpec(height=rule.height, width=rule.width, classes=2)
    card = ModelCard(class_names=("no", "yes"), preprocessing=rule, provenance=Provenance(stage="export"))
    return Pipeline(FakeRunner(spec, logits=remember), card), seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of a folder of images.

    Attributes:
        tensors: of each file that is used, by room.
        refused: files that a data set skips, with the reason.
        runtime: files that the runtime refuses, with its type and reason.
        differences: in words; empty where all rooms agree on every file.
    """

    tensors: dict[str, dict[str, Tensor]]
    refused: dict[str, str]
    runtime: dict[str, str]
    differences: tuple[str, ...]


def look(folder: Path, rule: Preprocessing, scratch: Path) -> Seen:
    """Take every file of a data set through all four rooms.

    Args:
        folder: `<class>/<file>`, two classes or more.
        rule: of a network.
        scratch: an empty folder.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    dataset = load_dataset(folder, DataOptions(max_skipped=0.99))
    examples = [*dataset.train, *dataset.val, *dataset.test]
    names = [example.id for example in examples]
    outcomes = {path.relative_to(folder).as_posix(): found for path, found in in_runtime(paths, rule).items()}
    rooms = {
        "training": in_training(examples, rule, len(dataset.class_names)),
        "calibration": in_calibration(examples, rule),
        "bench": in_bench(examples, rule, scratch),
    }
    tensors = {name: {room: stack[index] for room, stack in rooms.items()} for index, name in enumerate(names)}
    for name, found in outcomes.items():
        if not isinstance(found, str):
            tensors.setdefault(name, {})["runtime"] = found
    refused = {file.id: file.reason for file in dataset.skipped}
    runtime = {name: found for name, found in outcomes.items() if isinstance(found, str)}
    return Seen(
        tensors=tensors, refused=refused, runtime=runtime, differences=tuple(_differences(tensors, refused, runtime))
    )


def _differences(
    tensors: dict[str, dict[str, Tensor]], refused: dict[str, str], runtime: dict[str, str]
) -> Iterator[str]:
    for name, rooms in sorted(tensors.items()):
        if len(rooms) != 4:
            yield f"{name} is used in {', '.join(rooms)} only"
        elif any(not np.array_equal(rooms["training"], tensor) for tensor in rooms.values()):
            yield f"{name} gives other tensors in some rooms"
    for name in sorted(set(refused) | set(runtime)):
        said = runtime.get(name, "").partition(": ")[2]
        if refused.get(name) != said:
            yield f"{name}: a data set says `{refused.get(name)}`, the runtime `{said}`"
