"""One session: the conversation with the workers, from opening the artefacts to the raw samples.

The workers hold the models, and only one of them works at any time. Nothing is timed in this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields
from edgebert._progress import Progress
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import from_json
from edgebert.bench.environment import Activity, read_activity
from edgebert.bench.images import chunks, first_that_fit, write_images
from edgebert.bench.options import BenchOptions
from edgebert.bench.recorder import BLOCK_COLUMNS, NO_CLASS, QUERY_COLUMNS
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schedule import order_of_blocks, plan_from_times
from edgebert.bench.schema import Precision
from edgebert.bench.selection import Selection
from edgebert.bench.several import code_of_names, several_columns, truth_of
from edgebert.bench.worker_process import WorkerProcess
from edgebert.card import ModelCard
from edgebert.errors import EdgebertError
from edgebert.target import TARGETS

_log = logging.getLogger("edgebert")

_SETTLE_S = 0.03  # after another worker's turn: busy-waiting threads of that one end (bench.md, section 3)
_LOAD_TIMEOUT_S = 900.0
_IMAGE_TIMEOUT_S = 60.0  # for one image of the accuracy pass
_ANSWER_TIMEOUT_S = 120.0  # on top of what a block or a warm-up is expected to take
_VERIFY = "edgebert verify ARTEFACT"
_BLOCK_TIMEOUT_FACTOR = 20  # bench.md, section 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFacts:
    """What a worker said when it had opened its arm; see `edgebert.bench.loading.LoadedArm`."""

    target: str
    backend: str
    device: str
    files: Mapping[str, int]
    precision: Precision
    source_model: str | None
    bundle_digest: str | None
    import_ns: int
    load_ns: int
    rss_before_load: int | None
    rss_after_load: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmFacts:
    """What a worker said after its warm-up."""

    converged: bool
    queries: int
    ns: int
    median_ns: int
    mean_ns: int
    timer_overhead_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedFacts:
    """What a worker said at the end."""

    peak: int | None
    properties: Mapping[str, str]
    input_sensitivity: float | None
    first_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSession:
    """Everything one worker said."""

    loaded: LoadedFacts
    card: ModelCard
    warm: WarmFacts
    finished: FinishedFacts
    images_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a session gave: the arms' facts, the raw samples, and what went on around them.

    Attributes:
        arms: in the order of the requests.
        samples: of all arms; classes in the data set's order.
        timed: distinct images timed.
        before: activity of the computer before the first block.
        after: the same after the last.
    """

    arms: tuple[ArmSession, ...]
    samples: Samples
    timed: int
    before: Activity
    after: Activity


@dataclass(slots=True)
class OpenArm:
    """A worker that has opened its arm."""

    name: str
    worker: WorkerProcess
    loaded: LoadedFacts
    card: ModelCard


def open_arms(
    workers: Sequence[WorkerProcess], arms: Sequence[ArmRequest], *, threads: int, default_target: str
) -> list[OpenArm]:
    """Open every arm, one after the other, so that load times do not disturb each other.

    Bundles come first: a graph without `--target` runs where the first of them runs, so that both are comparable.

    Raises:
        EdgebertError: of the class that the worker met, such as `UnavailableError` for a target that is not here.
    """
    opened: dict[int, OpenArm] = {}
    backend_target = default_target
    for index in sorted(range(len(arms)), key=lambda index: arms[index].kind != "bundle"):
        arm = arms[index]
        target = backend_target if arm.kind == "graph" and arm.target is None else arm.target
        request = {"path": str(arm.path), "kind": arm.kind, "target": target, "threads": threads}
        answer = workers[index].ask("load", request, timeout_s=_LOAD_TIMEOUT_S)
        loaded = from_json(LoadedFacts, answer.value, what=answer.what)
        card = ModelCard.from_json(answer.fields("card").value, what=f"the card of `{arm.name}`")
        opened[index] = OpenArm(name=arm.name, worker=workers[index], loaded=loaded, card=card)
        if arm.kind == "bundle" and len(opened) == 1:
            backend_target = _graph_target(loaded, default_target)
    return [opened[index] for index in range(len(arms))]


def run_session(arms: Sequence[OpenArm], selection: Selection, folder: Path, options: BenchOptions) -> Session:
    """Measure accuracy, then latency, of arms that are open.

    Args:
        arms: opened.
        selection: the test images.
        folder: temporary; images and samples pass through it.
        options: how to measure.
    """
    accuracy = _accuracy_pass(arms, selection, folder)
    order = np.random.default_rng([options.seed, 1]).permutation(len(selection.examples))[: options.images]
    images = first_that_fit(selection.examples[index] for index in order)
    message = write_images(folder / "timed", images)
    sizes = [arm.worker.ask("images", message, timeout_s=_LOAD_TIMEOUT_S).integer("bytes") for arm in arms]
    warm = [_warm_up(arm, options) for arm in arms]
    before = read_activity()
    schedule = _run_blocks(arms, warm, options)
    after = read_activity()
    finished, columns = [], []
    for index, arm in enumerate(arms):
        file = folder / f"arm-{index}.npz"
        answer = arm.worker.ask("finish", {"file": str(file)}, timeout_s=_LOAD_TIMEOUT_S)
        finished.append(from_json(FinishedFacts, answer.value, what=answer.what))
        columns.append(_arm_columns(file, index, selection, order[: len(images)]))
        _check_answers(arm, columns[-1]["pred"][columns[-1]["flags"] == 0], finished[-1].first_error)
    merged = {name: np.concatenate([entry[name] for entry in columns]) for name in columns[0]}
    sessions = (
        ArmSession(
            loaded=arm.loaded, card=arm.card, warm=warm[index], finished=finished[index], images_bytes=sizes[index]
        )
        for index, arm in enumerate(arms)
    )
    return Session(
        arms=tuple(_with_error(session, error) for session, error in zip(sessions, accuracy.first_errors, strict=True)),
        samples=Samples({**merged, **accuracy.columns, "schedule": schedule.reshape(-1)}),
        timed=len(images),
        before=before,
        after=after,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _AccuracyPass:
    columns: Mapping[str, IntArray]
    first_errors: tuple[str | None, ...]


def _accuracy_pass(arms: Sequence[OpenArm], selection: Selection, folder: Path) -> _AccuracyPass:
    """Let every arm classify every test image; a chunk of images is decoded once for all arms."""
    labels = _truth_codes(selection)
    decisions = np.full((len(arms), len(labels)), NO_CLASS, np.int64)  # (arms, images)
    several = _Several.empty(len(arms), selection) if selection.task == "multi-label" else None
    first_errors: list[str | None] = [None] * len(arms)
    with Progress("accuracy", len(labels) * len(arms)) as progress:
        for positions, images in chunks(selection.examples):
            message = write_images(folder / "chunk", images)
            for index, arm in enumerate(arms):
                answers = folder / "answers.npz"
                request = {**message, "answers": str(answers)}
                answer = arm.worker.ask("classify", request, timeout_s=_IMAGE_TIMEOUT_S * len(images))
                decisions[index, positions] = _in_order(_integers(answer, "predictions"), selection, index)
                if several is not None:
                    several.fill(index, positions, answers, selection.orders[index])
                first_errors[index] = first_errors[index] or answer.optional_text("first_error")
                progress.advance(len(images), note=f"{len(arms)} arms")
    for arm, row, error in zip(arms, decisions, first_errors, strict=True):
        _check_answers(arm, row, error)
    count = len(labels)
    columns = {
        "accuracy_arm": np.repeat(np.arange(len(arms), dtype=np.int64), count),
        "accuracy_sample": np.tile(np.arange(count, dtype=np.int64), len(arms)),
        "accuracy_label": np.tile(labels, len(arms)),
        "accuracy_pred": decisions.reshape(-1),  # (arms * images,)
        **({} if several is None else several_columns(several.truth, several.said, several.scores)),
    }
    return _AccuracyPass(columns=columns, first_errors=tuple(first_errors))


@dataclass(frozen=True, slots=True)
class _Several:
    """What multi-label arms said, in the data's class order: (images, classes), and (arms, images, classes) twice."""

    truth: NDArray[np.bool_]
    said: NDArray[np.bool_]
    scores: NDArray[np.float64]

    @classmethod
    def empty(cls, arms: int, selection: Selection) -> _Several:
        truth = truth_of([example.labels for example in selection.examples], len(selection.class_names))
        return cls(truth, np.zeros((arms, *truth.shape), np.bool_), np.zeros((arms, *truth.shape)))

    def fill(self, arm: int, positions: range, answers: Path, order: IntArray) -> None:
        """Take what a worker wrote of a chunk of images; see `edgebert.bench.several.answer_columns`."""
        with np.load(answers, allow_pickle=False) as archive:
            said, scores = archive["said"] == 1, archive["score"].view(np.float64)
        shape = (len(positions), len(order))  # the arm's class number i is the data's order[i]
        self.said[arm, positions.start : positions.stop, order] = said.reshape(shape).T
        self.scores[arm, positions.start : positions.stop, order] = scores.reshape(shape).T


def _truth_codes(selection: Selection) -> IntArray:
    """Return int64 (images,): the class of each test image, or the number of its set of labels."""
    if selection.task == "single-label":
        return np.array([example.label for example in selection.examples], np.int64)
    names = selection.class_names
    return np.array(
        [code_of_names(names[label] for label in example.labels) for example in selection.examples], np.int64
    )


def _check_answers(arm: OpenArm, decisions: IntArray, error: str | None) -> None:
    """Raise where every query failed: there is nothing to make statistics of."""
    if (decisions == NO_CLASS).all():
        raise EdgebertError(f"arm `{arm.name}` failed on every image: {error}", expected="an answer", hint=_VERIFY)


def _warm_up(arm: OpenArm, options: BenchOptions) -> WarmFacts:
    time.sleep(_SETTLE_S)
    timeout_s = options.max_warmup_seconds + _ANSWER_TIMEOUT_S
    answer = arm.worker.ask("warm", {"max_ns": round(options.max_warmup_seconds * 1e9)}, timeout_s=timeout_s)
    return from_json(WarmFacts, answer.value, what=answer.what)


def _run_blocks(arms: Sequence[OpenArm], warm: Sequence[WarmFacts], options: BenchOptions) -> IntArray:
    """Run every block of the plan and return the schedule: the arm of each block."""
    plan = plan_from_times([facts.median_ns for facts in warm], [facts.mean_ns for facts in warm], options)
    schedule = order_of_blocks(arms=len(arms), rounds=plan.rounds, seed=options.seed)
    last = None
    with Progress("latency", schedule.size) as progress:
        for position, index in enumerate(schedule.reshape(-1).tolist()):
            if index != last:
                time.sleep(_SETTLE_S)
            last = index
            timeout_s = _ANSWER_TIMEOUT_S + _BLOCK_TIMEOUT_FACTOR * plan.expected_ns[index] / 1e9
            request = {"index": position, "queries": plan.queries[index]}
            arms[index].worker.ask("block", request, timeout_s=timeout_s)
            progress.advance()
    return schedule


def _arm_columns(file: Path, arm: int, selection: Selection, timed: IntArray) -> dict[str, IntArray]:
    """Read a worker's samples and put them into the terms of the result: test image numbers, the data's classes."""
    with np.load(file, allow_pickle=False) as archive:
        columns: dict[str, IntArray] = {name: archive[name] for name in (*QUERY_COLUMNS, *BLOCK_COLUMNS)}
    columns["sample_index"] = timed[columns["sample_index"]].astype(np.int64)
    columns["pred"] = _in_order(columns["pred"], selection, arm)
    columns["arm"] = np.full_like(columns["block"], arm)
    columns["launch"] = np.zeros_like(columns["block"])
    columns["block_arm"] = np.full_like(columns["block_index"], arm)
    return columns


def _in_order(predictions: IntArray, selection: Selection, arm: int) -> IntArray:
    """Return class numbers of an arm as class numbers of the data; a failed query stays `NO_CLASS`.

    The number of a set of labels is made of their names, and needs no translation.
    """
    if selection.task == "multi-label":
        return predictions
    return np.where(predictions == NO_CLASS, NO_CLASS, selection.orders[arm][np.maximum(predictions, 0)])


def _integers(answer: Fields, key: str) -> IntArray:
    return np.array(answer.integers(key), np.int64)


def _with_error(session: ArmSession, error: str | None) -> ArmSession:
    """Keep the first error of the accuracy pass, which came before those of the timed queries."""
    return session if error is None else replace(session, finished=replace(session.finished, first_error=error))


def _graph_target(loaded: LoadedFacts, default: str) -> str:
    """Return the target of the same backend and device, for a graph that is measured beside a bundle."""
    return next(
        (
            name
            for name, target in TARGETS.items()
            if (target.backend, target.device) == (loaded.backend, loaded.device)
        ),
        default,
    )
