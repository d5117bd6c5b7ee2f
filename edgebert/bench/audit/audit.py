"""`edgebert bench --audit`: is a fast backend fast because it works fast?

Of each arm, in one worker: every timed image's answer -> warm-up -> rounds of mirrored blocks under four conditions (the
images in one order; in another; images never met before; one image again and again) -> more blocks until enough answers are
compared -> a check for every way to cheat that bench.md, section 10, and MLPerf's audit tests (TEST01 accuracy, TEST04
caching, TEST05 seed) look for. Nothing here is a measurement to quote.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgebert
from edgebert._files import staged_file
from edgebert._json import JsonObject, dump_json
from edgebert._progress import Progress
from edgebert.bench.arms import arms_from_paths
from edgebert.bench.audit.checks import (
    AUDIT_SCHEMA,
    TARGET_QUERIES,
    AuditCheck,
    AuditedArm,
    AuditReport,
    check_answers,
    check_harness,
    check_memory,
    check_order,
    check_remembered,
    check_repeated,
    check_skipped,
    check_waiting,
)
from edgebert.bench.audit.honesty import differing, instant_queries, theil_sen_slope
from edgebert.bench.codec import from_json
from edgebert.bench.device_lock import device_lock
from edgebert.bench.images import first_that_fit, write_images
from edgebert.bench.loading import DEFAULT_GRAPH_TARGET
from edgebert.bench.options import BenchOptions, processors
from edgebert.bench.recorder import FLAG_ERROR, FLAG_REWARM
from edgebert.bench.samples import IntArray
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.scratch import scratch_folder
from edgebert.bench.selection import common_task, select_images
from edgebert.bench.session import FinishedFacts, OpenArm, open_arms
from edgebert.bench.statistics.formulas import Contrast, interleaved_ratio
from edgebert.bench.worker_process import WORKER_COMMAND, WorkerProcess
from edgebert.data import DataOptions, load_dataset
from edgebert.preprocess import RgbImage
from edgebert.runtime.runner import physical_cores

ORDER_A, ORDER_B, NEW_IMAGES, ONE_IMAGE = range(4)  # the conditions
_CONDITIONS = 4
_MIN_ROUNDS, _GOOD_ROUNDS, _MAX_ROUNDS = 5, 20, 60  # each has two blocks of every condition; an interval takes five

SECONDS = 60.0  # per arm, without opening and warm-up
_COMPARING = 0.4  # share of the time that the rounds get
_PATIENCE = 1.5  # of that; new images can take far longer than those of the warm-up
_WARM_UP_SECONDS = 4.0
_BLOCK_NS = (
    50_000_000  # shorter than a measurement's: on a shared computer many short pairs tell more than few long ones
)
_BLOCK_QUERIES = 10
_MAX_BLOCK_QUERIES = 20_000

_LOAD_TIMEOUT_S = 900.0
_IMAGE_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 120.0
_BLOCK_TIMEOUT_FACTOR = 20  # bench.md, section 10


def audit_arms(
    paths: Sequence[str | Path],
    options: BenchOptions,
    *,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> AuditReport:
    """Look for every fault that makes a backend's numbers worthless, and name it.

    Args:
        paths: bundles, graphs, checkpoints, each as a path or `NAME=PATH`; none for the bundles of the current folder.
        options: `max_seconds` is the time per arm (60 s if not given); rigor and scenarios play no part.
        worker_command: what runs an arm; tests give their own.

    Raises:
        UnavailableError: a target cannot run here.
        BadDataError: the data do not fit the artefacts.
        LockedError: another measurement runs on this computer.
        EdgebertError: a worker failed.
    """
    arms = arms_from_paths(paths, options.targets)
    threads = options.threads or physical_cores()
    with device_lock(), scratch_folder() as folder, ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(arm.name, threads, worker_command)) for arm in arms]
        opened = open_arms(
            workers,
            arms,
            threads=threads,
            default_target=DEFAULT_GRAPH_TARGET,
            cpus=sorted(processors(options.cpus)),
        )
        names, cards = [arm.name for arm in arms], [arm.card for arm in opened]
        reading = DataOptions(
            class_map=options.class_map, max_skipped=options.max_skipped, task=common_task(names, cards)
        )
        examples = select_images(load_dataset(options.data, reading), names, cards).examples
        order = np.random.default_rng([options.seed, 1]).permutation(len(examples))[: options.images]
        images = first_that_fit(examples[index] for index in order)
        audited = tuple(_Audit(arm, options, folder).run(images) for arm in opened)
    return AuditReport(
        schema=AUDIT_SCHEMA,
        edgebert=edgebert.__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        arms=audited,
    )


def write_audit(path: Path, report: AuditReport, *, force: bool) -> None:
    """Write a report as JSON.

    Raises:
        CannotWriteError: the file exists without `force`, or cannot be written.
    """
    with staged_file(path, force=force) as staged:
        staged.write_text(dump_json(report.to_json()), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlockFacts:
    """What a worker said after a block; see `edgebert.bench.audit.block`."""

    cpu_ns: int
    queued_ns: int | None
    wall_ns: int
    first_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """What one block gave: its queries, less those that warm up again, and what the worker used.

    Attributes:
        sample: int64 (queries,), the images that were asked for.
        counted: bool (queries,), all but the first ones and those that failed.
    """

    condition: int
    sample: IntArray
    e2e_ns: IntArray
    infer_ns: IntArray
    pred: IntArray
    confidence: IntArray
    failed: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    rss: int
    facts: _BlockFacts

    def lower_quartile(self, times: IntArray) -> float:
        """Return the lower quartile of the counted queries, of all where none is counted.

        Other programs only make a query longer, so the fast side of a block says best what the work itself takes.
        """
        return max(1.0, float(np.quantile(times[self.counted] if self.counted.any() else times, 0.25)))


@dataclass(slots=True)
class _Audit:
    """The audit of one arm that is open."""

    arm: OpenArm
    options: BenchOptions
    folder: Path
    expected: IntArray = field(init=False)  # (images,), classes
    confidence: IntArray = field(init=False)  # (images,), their probabilities
    images: int = 0
    blocks: list[_Block] = field(default_factory=list)
    first_error: str | None = None

    def run(self, images: Sequence[RgbImage]) -> AuditedArm:
        """Ask for everything, and judge it."""
        started, self.images = time.monotonic(), len(images)
        message = write_images(self.folder / "audited", images)
        self._judge({**message, "answers": str(self.folder / "answers.npz")})
        self.arm.worker.ask("images", message, timeout_s=_LOAD_TIMEOUT_S)
        median_ns, mean_ns = self._warm_up()
        seconds = SECONDS if self.options.max_seconds is None else self.options.max_seconds
        contrasts = self._compare(median_ns, mean_ns, seconds)
        self._more_answers(mean_ns, seconds - (time.monotonic() - started))
        checks = self._checks(*contrasts)
        loaded = self.arm.loaded
        return AuditedArm(
            id=self.arm.name,
            target=loaded.target,
            backend=loaded.backend,
            device=loaded.device,
            queries=sum(len(block.sample) for block in self.blocks),
            seconds=time.monotonic() - started,
            checks=checks,
        )

    def _judge(self, message: JsonObject) -> None:
        answer = self.arm.worker.ask("classify", message, timeout_s=_IMAGE_TIMEOUT_S * self.images)
        self.expected = np.array(answer.integers("predictions"), np.int64)
        self.confidence = np.array(answer.integers("confidences"), np.int64)
        self.first_error = answer.optional_text("first_error")

    def _warm_up(self) -> tuple[int, int]:
        budget = self.options.max_warmup_seconds
        cap = _WARM_UP_SECONDS if budget is None else budget
        answer = self.arm.worker.ask("warm", {"max_ns": round(cap * 1e9)}, timeout_s=cap + _ANSWER_TIMEOUT_S)
        return answer.integer("median_ns"), answer.integer("mean_ns")

    def _compare(self, median_ns: int, mean_ns: int, seconds: float) -> tuple[Contrast, Contrast]:
        """Run the rounds, and return the time of another order over one order, and of one image over new ones."""
        available_ns = seconds * _COMPARING * 1e9
        goal_ns = min(_BLOCK_NS, available_ns / (_GOOD_ROUNDS * 2 * _CONDITIONS))
        queries = min(_MAX_BLOCK_QUERIES, max(_BLOCK_QUERIES, math.ceil(goal_ns / max(1, median_ns))))
        round_ns = 2 * _CONDITIONS * queries * max(1, mean_ns)
        rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, int(available_ns / round_ns)))
        order = order_of_blocks(arms=_CONDITIONS, rounds=rounds, seed=self.options.seed)  # (rounds, 2 * conditions)
        until = time.monotonic() + _PATIENCE * available_ns / 1e9
        with Progress(f"audit of {self.arm.name}: order and repetition", order.size) as progress:
            for number, conditions in enumerate(order.tolist()):
                if number >= _MIN_ROUNDS and time.monotonic() > until:
                    order = order[:number]
                    break
                for condition in conditions:
                    self._block(condition, queries, mean_ns)
                    progress.advance()
        e2e = np.array([block.lower_quartile(block.e2e_ns) for block in self.blocks]).reshape(order.shape)
        infer = np.array([block.lower_quartile(block.infer_ns) for block in self.blocks]).reshape(order.shape)

        def pairs(times: NDArray[np.float64], condition: int) -> NDArray[np.float64]:
            chosen: NDArray[np.float64] = times[order == condition].reshape(
                -1, 2
            )  # row by row, so the pairs stay together
            return chosen

        seed = self.options.seed
        # Only `infer` of the repeated image: its pixels are warm in the caches when they are resized, which is no fault.
        return (
            interleaved_ratio(pairs(e2e, ORDER_A), pairs(e2e, ORDER_B), seed=seed),
            interleaved_ratio(pairs(infer, NEW_IMAGES), pairs(infer, ONE_IMAGE), seed=seed),
        )

    def _more_answers(self, mean_ns: int, seconds: float) -> None:
        """Run blocks in both orders until enough answers are compared, or the time is over."""
        queries = min(_MAX_BLOCK_QUERIES, max(_BLOCK_QUERIES, math.ceil(_BLOCK_NS / max(1, mean_ns))))
        until = time.monotonic() + seconds
        known = sum(len(block.sample) for block in self._known_images())
        with Progress(f"audit of {self.arm.name}: answers", TARGET_QUERIES) as progress:
            progress.advance(min(known, TARGET_QUERIES))
            while known < TARGET_QUERIES and time.monotonic() < until:
                count = min(queries, max(_BLOCK_QUERIES, TARGET_QUERIES - known))
                self._block(ORDER_A, count, mean_ns)
                known += count
                progress.advance(count)

    def _block(self, condition: int, queries: int, mean_ns: int) -> None:
        number, file = len(self.blocks), self.folder / "block.npz"
        order = self._order(condition, number, queries)
        noise = number if condition in (NEW_IMAGES, ONE_IMAGE) else -1
        request = {"order": order.tolist(), "queries": queries, "noise": noise, "columns": str(file)}
        expected_s = _BLOCK_TIMEOUT_FACTOR * queries * mean_ns / 1e9
        answer = self.arm.worker.ask("audit", request, timeout_s=_ANSWER_TIMEOUT_S + expected_s)
        facts = from_json(
            _BlockFacts,
            {name: answer.value[name] for name in ("cpu_ns", "queued_ns", "wall_ns", "first_error")},
            what=answer.what,
        )
        self.first_error = self.first_error or facts.first_error
        with np.load(file, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        flags = columns["flags"]
        self.blocks.append(
            _Block(
                condition=condition,
                sample=order[columns["sample_index"]],
                e2e_ns=columns["t_done"] - columns["t_issue"],
                infer_ns=columns["t_inf_end"] - columns["t_pre_end"],
                pred=columns["pred"],
                confidence=columns["confidence"],
                failed=(flags & FLAG_ERROR) != 0,
                counted=(flags & (FLAG_ERROR | FLAG_REWARM)) == 0,
                rss=int(columns["block_rss"][0]),
                facts=facts,
            )
        )

    def _order(self, condition: int, number: int, queries: int) -> IntArray:
        """Return int64 (images or fewer,): which images a block asks for, again from the start at the end.

        New images are as many as there are queries, so that none is met twice. Each block of one order goes on elsewhere in
        it, so that all images are met.
        """
        if condition == ONE_IMAGE:
            return np.array([number % self.images], np.int64)
        generator = np.random.default_rng([self.options.seed, 6, condition])
        order = np.roll(generator.permutation(self.images), -number * queries)
        return np.resize(order, queries) if condition == NEW_IMAGES else order[:queries].astype(np.int64)

    def _known_images(self) -> list[_Block]:
        return [block for block in self.blocks if block.condition in (ORDER_A, ORDER_B)]

    def _checks(self, order: Contrast, repeated: Contrast) -> tuple[AuditCheck, ...]:
        known = self._known_images()
        request: JsonObject = {"file": str(self.folder / "end.npz"), "cost": True}
        answer = self.arm.worker.ask("finish", request, timeout_s=_LOAD_TIMEOUT_S)
        finished = from_json(FinishedFacts, answer.value, what=answer.what)
        assert finished.harness is not None, "its cost was asked for"
        place = np.repeat(np.arange(len(known)), [len(block.sample) for block in known])
        infer = np.concatenate([block.infer_ns for block in known])
        answered = ~np.concatenate([block.failed for block in known])
        sample = np.concatenate([block.sample for block in known])[answered]
        different = differing(
            self.expected[sample],
            self.confidence[sample],
            np.concatenate([block.pred for block in known])[answered],
            np.concatenate([block.confidence for block in known])[answered],
        )
        errors = sum(int(np.count_nonzero(block.failed)) for block in self.blocks) + int((self.expected < 0).sum())
        p50 = int(np.median(np.concatenate([block.e2e_ns for block in known])))
        return (
            check_answers(int(answered.sum()), int(different.sum()), errors, self.first_error),
            check_repeated(repeated),
            check_remembered(finished.input_sensitivity),
            check_skipped(instant_queries(infer, place), len(infer), queued=self._queued_share() or 0.0),
            check_waiting(self._waiting(), device=self.arm.loaded.device),
            check_order(order),
            check_memory(self._growth(), queries=sum(len(block.sample) for block in self.blocks)),
            check_harness(finished.harness.recorder_ns, max(1, p50)),
        )

    def _waiting(self) -> float | None:
        """Return the time of a query in which no thread computed or wanted to, over what a query takes undisturbed.

        Over the lower quartile, not over the wall time: on a busy computer most of that is the queue for a processor, and a
        sleep would hide in it.
        """
        facts = [block.facts for block in self._known_images()]
        queued = self._queued_share()
        if queued is None:
            return None
        wall = sum(fact.wall_ns for fact in facts)
        idle_ns = max(0.0, wall - sum(fact.cpu_ns for fact in facts) - queued * wall)
        queries = sum(len(block.sample) for block in self._known_images())
        undisturbed = float(np.median([block.lower_quartile(block.e2e_ns) for block in self._known_images()]))
        return idle_ns / queries / undisturbed

    def _queued_share(self) -> float | None:
        """Return the time in the queue for a processor, all threads together, over the wall time; None where unknown."""
        facts = [block.facts for block in self._known_images()]
        queued = [fact.queued_ns for fact in facts if fact.queued_ns is not None]
        return sum(queued) / sum(fact.wall_ns for fact in facts) if len(queued) == len(facts) else None

    def _growth(self) -> float | None:
        """Return the trend of the resident memory over all queries; blocks with copies of images of their own have no say."""
        if any(block.rss < 0 for block in self.blocks):
            return None
        queries = np.cumsum([len(block.sample) for block in self.blocks])
        known = np.array([block.condition in (ORDER_A, ORDER_B) for block in self.blocks])
        rss = np.array([block.rss for block in self.blocks], np.float64)
        return theil_sen_slope(queries[known].astype(np.float64), rss[known])
