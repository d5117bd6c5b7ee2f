"""One session: the conversation with the workers, from opening the artefacts to the raw samples.

The workers hold the models, and only one of them works at any time. Nothing is timed in this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgebert._progress import Progress
from edgebert.bench.accuracy_pass import AccuracyPass, accuracy_pass, check_answers, in_data_order, recheck_pass
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import from_json
from edgebert.bench.environment.computer import Activity, read_activity
from edgebert.bench.images import first_that_fit, write_images
from edgebert.bench.options import BenchOptions, Budget, budget_of
from edgebert.bench.recorder import (
    BLOCK_ROW_COLUMNS,
    FLAG_DROPPED,
    FLAG_ERROR,
    FLAG_REWARM,
    FLAG_WARMUP,
    ROW_COLUMNS,
)
from edgebert.bench.samples import GROUPS, IntArray, Samples
from edgebert.bench.schedule import Plan, order_of_blocks, plan_from_times, settle_ns
from edgebert.bench.schema import HarnessCost, Precision
from edgebert.bench.selection import Selection
from edgebert.bench.statistics.formulas import percentile
from edgebert.bench.worker_process import WorkerProcess
from edgebert.card import ModelCard
from edgebert.errors import BadDataError
from edgebert.preprocess import RgbImage
from edgebert.runtime.runner import physical_cores
from edgebert.target import TARGETS

_LOAD_TIMEOUT_S = 900.0
_ANSWER_TIMEOUT_S = 120.0  # on top of what a block or a warm-up is expected to take
_BLOCK_TIMEOUT_FACTOR = 20  # bench.md, section 10
# What the accuracy pass writes, by the beginnings of its columns' names (`edgebert.bench.samples`).
_PASS_COLUMNS = ("accuracy_", "logit", "truth_", "said_", "score")


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
    first_ns: int
    rss: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedFacts:
    """What a worker said at the end."""

    peak: int | None
    properties: Mapping[str, str]
    input_sensitivity: float | None
    first_error: str | None
    harness: HarnessCost | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFacts:
    """Everything one worker said in one launch."""

    loaded: LoadedFacts
    warm: WarmFacts
    finished: FinishedFacts
    images_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSession:
    """Everything the workers of one arm said, launch by launch."""

    card: ModelCard
    launches: tuple[LaunchFacts, ...]

    @property
    def loaded(self) -> LoadedFacts:
        """What the first worker said of the artefact; the same artefact says the same later."""
        return self.launches[0].loaded

    @property
    def first_error(self) -> str | None:
        """The message of the first query that failed, in any launch."""
        return next((facts.finished.first_error for facts in self.launches if facts.finished.first_error), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a session gave: the arms' facts, the raw samples, and what went on around them.

    Attributes:
        arms: in the order of the requests.
        samples: of all arms and launches; classes in the data set's order.
        timed: distinct images timed.
        activities: of the computer, before and after the blocks of each launch.
        own_cpu_s: processor seconds in between that were the workers' and this process's own.
        looks: how often the intervals were looked at.
    """

    arms: tuple[ArmSession, ...]
    samples: Samples
    timed: int
    activities: tuple[tuple[Activity, Activity], ...]
    own_cpu_s: float
    looks: int


@dataclass(slots=True)
class OpenArm:
    """A worker that has opened its arm; `image_s` is what its first untimed answer took, None before it was given."""

    name: str
    worker: WorkerProcess
    loaded: LoadedFacts
    card: ModelCard
    image_s: float | None = None


def open_arms(
    workers: Sequence[WorkerProcess],
    arms: Sequence[ArmRequest],
    *,
    threads: int,
    default_target: str,
    cpus: Sequence[int] = (),
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
        request = {
            "path": str(arm.path),
            "kind": arm.kind,
            "target": target,
            "threads": threads,
            "cpus": list(cpus),
        }
        answer = workers[index].ask("load", request, timeout_s=_LOAD_TIMEOUT_S)
        loaded = from_json(LoadedFacts, answer.value, what=answer.what)
        card = ModelCard.from_json(answer.fields("card").value, what=f"the card of `{arm.name}`")
        opened[index] = OpenArm(name=arm.name, worker=workers[index], loaded=loaded, card=card)
        if arm.kind == "bundle" and len(opened) == 1:
            backend_target = _graph_target(loaded, default_target)
    return [opened[index] for index in range(len(arms))]


def run_session(arms: Sequence[OpenArm], selection: Selection, folder: Path, options: BenchOptions) -> Session:
    """Measure accuracy, then single-stream latency, of arms that are open: one launch, and nothing else.

    Args:
        arms: opened.
        selection: the test images.
        folder: temporary; images and samples pass through it.
        options: how to measure.
    """
    run = Run(selection, options, folder)
    run.launch(arms)
    return run.session()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """What one launch added to a run, beside its columns: enough to go on from it in another process.

    Attributes:
        number: of the launch, from 0.
        arms: what each worker said.
        activity: of the computer, before and after the blocks.
        own_cpu_s: of all launches so far.
        looks: at the intervals so far.
        plan: of the blocks.
        timed: numbers of the timed images among the test images.
        first_errors: of the accuracy pass; empty but in the first launch.
    """

    number: int
    arms: tuple[LaunchFacts, ...]
    activity: tuple[Activity, Activity]
    own_cpu_s: float
    looks: int
    plan: Plan
    timed: tuple[int, ...]
    first_errors: tuple[str | None, ...]


class Run:
    """Collects what one launch after the other gives.

    Args:
        selection: the test images.
        options: how to measure.
        folder: temporary; images and samples pass through it.
    """

    def __init__(self, selection: Selection, options: BenchOptions, folder: Path) -> None:
        self.selection = selection
        self.looks = 0
        self._options, self._folder, self._budget = options, folder, budget_of(options)
        self._threads = options.threads or physical_cores()
        count = min(options.images, len(selection.examples))
        order = np.random.default_rng([options.seed, 1]).permutation(len(selection.examples))[:count]
        images = first_that_fit(selection.examples[index] for index in order)
        self._timed: IntArray = order[: len(images)].astype(np.int64)
        self._message = write_images(folder / "timed", images)
        self._facts: list[list[LaunchFacts]] = []  # of each launch, the arms in their order
        self._cards: list[ModelCard] = []
        self._columns: list[Mapping[str, IntArray]] = []
        self._activities: list[tuple[Activity, Activity]] = []
        self._own_cpu_s = 0.0
        self._kept = 0  # columns that `last_launch` has returned
        self._plan: Plan | None = None
        self._accuracy: AccuracyPass | None = None

    @property
    def launches(self) -> int:
        """Complete launches so far, those of other scenarios included."""
        return len(self._facts)

    def launch(self, arms: Sequence[OpenArm]) -> None:
        """Run a launch of single-stream blocks; an interruption keeps the rounds that are complete, and goes on."""
        before_blocks = self._begin(arms)
        plan = self._plan = self._plan or self._planned(before_blocks)
        schedule = order_of_blocks(
            arms=len(arms), rounds=plan.rounds, seed=self._options.seed, launch=self.launches
        ).reshape(-1)
        done: list[int] = []
        activity = self._watch(arms)
        try:
            self._blocks(arms, plan, schedule, done)
        except KeyboardInterrupt:
            complete = len(done) - len(done) % (2 * len(arms))
            if not complete:
                raise
            for arm in arms:
                arm.worker.settle(timeout_s=_ANSWER_TIMEOUT_S)
            self._end(arms, before_blocks, activity, schedule[:complete])
            raise
        self._end(arms, before_blocks, activity, schedule)

    def last_launch(self) -> tuple[LaunchRecord, dict[str, IntArray]]:
        """Return what the last launch of single-stream blocks added, and its columns; `restore` takes both."""
        assert self._plan is not None
        assert self._accuracy is not None
        number, columns = self.launches - 1, list(self._columns[self._kept :])
        self._kept = len(self._columns)
        if number == 0:
            columns.append(self._accuracy.columns)
        record = LaunchRecord(
            number=number,
            arms=tuple(self._facts[number]),
            activity=self._activities[number],
            own_cpu_s=self._own_cpu_s,
            looks=self.looks,
            plan=self._plan,
            timed=tuple(self._timed.tolist()),
            first_errors=self._accuracy.first_errors if number == 0 else (),
        )
        return record, merged_columns(columns)

    def restore(
        self, launches: Sequence[tuple[LaunchRecord, Mapping[str, IntArray]]], cards: Sequence[ModelCard]
    ) -> None:
        """Take over launches that were measured before, so that the next one goes on from them.

        Args:
            launches: what `last_launch` returned after each, in their order; at least one.
            cards: of the arms.

        Raises:
            BadDataError: they are not launches of this run.
        """
        for number, (record, columns) in enumerate(launches):
            if record.number != number or record.timed != tuple(self._timed.tolist()) or len(record.arms) != len(cards):
                raise BadDataError(f"launch {number + 1} of the run that was kept is another run's")
            first = number == 0
            pass_names = {name for name in columns if name.startswith(_PASS_COLUMNS)} if first else set[str]()
            if first:
                self._accuracy = AccuracyPass(
                    columns={name: columns[name] for name in pass_names}, first_errors=record.first_errors
                )
            self._columns.append({name: column for name, column in columns.items() if name not in pass_names})
            self._facts.append(list(record.arms))
            self._activities.append(record.activity)
            self._own_cpu_s, self.looks, self._plan = record.own_cpu_s, record.looks, record.plan
        self._cards, self._kept = list(cards), len(self._columns)

    def scenario_launch(self, arms: Sequence[OpenArm], work: Callable[[], None]) -> None:
        """Run a launch of something else: `work` asks the warmed workers, which keep what they measure."""
        warm = self._begin(arms)
        activity = self._watch(arms)
        work()
        self._end(arms, warm, activity, np.zeros(0, np.int64))

    def add(self, columns: Mapping[str, IntArray]) -> None:
        """Keep columns that belong to no launch."""
        self._columns.append(columns)

    def targets(self) -> list[str]:
        """Return the target that each arm runs on."""
        return [facts.loaded.target for facts in self._facts[0]]

    def medians_ns(self) -> list[int]:
        """Return the end-to-end p50 of each arm in single-stream, of all launches so far."""
        samples = self.samples()
        found = []
        for index in range(len(self._cards)):
            rows = samples.queries_of(index)
            counted = (rows["flags"] & (FLAG_WARMUP | FLAG_REWARM | FLAG_ERROR)) == 0
            found.append(percentile((rows["t_done"] - rows["t_issue"])[counted], 0.5))
        return found

    def first_image(self) -> RgbImage:
        """Return the first of the timed images, uint8 (height, width, 3) RGB."""
        return self.selection.examples[int(self._timed[0])].load()

    def samples(self) -> Samples:
        """Return the samples of all launches so far."""
        assert self._accuracy is not None
        merged = merged_columns([*self._columns, self._accuracy.columns])
        return Samples(merged)

    def session(self) -> Session:
        """Return all that was collected, of at least one launch."""
        accuracy = self._accuracy
        assert accuracy is not None
        arms = []
        for index, card in enumerate(self._cards):
            facts = [launch[index] for launch in self._facts]
            facts[0] = _with_error(facts[0], accuracy.first_errors[index])
            arms.append(ArmSession(card=card, launches=tuple(facts)))
        return Session(
            arms=tuple(arms),
            samples=self.samples(),
            timed=len(self._timed),
            activities=tuple(self._activities),
            own_cpu_s=self._own_cpu_s,
            looks=self.looks,
        )

    def _begin(self, arms: Sequence[OpenArm]) -> list[tuple[WarmFacts, int]]:
        """Check answers, hand over the images and warm up; return each arm's warm-up and bytes of images."""
        if self._accuracy is None:
            self._cards = [arm.card for arm in arms]
            self._accuracy = accuracy_pass(arms, self.selection, self._folder)
        else:
            self._columns.append(
                recheck_pass(arms, self.selection, self._timed, self._message, self._folder, self.launches)
            )
        sizes = [arm.worker.ask("images", self._message, timeout_s=_LOAD_TIMEOUT_S).integer("bytes") for arm in arms]
        warm = []
        with Progress(f"warm-up of {self._title()}", len(arms)) as progress:
            for arm in arms:
                warm.append(_warm_up(arm, self._budget, self._threads))
                progress.advance(note=arm.name)
        return list(zip(warm, sizes, strict=True))

    def _planned(self, warm: Sequence[tuple[WarmFacts, int]]) -> Plan:
        return plan_from_times(
            [facts.median_ns for facts, _ in warm],
            [facts.mean_ns for facts, _ in warm],
            self._budget,
            threads=self._threads,
        )

    def _title(self) -> str:
        return f"launch {self.launches + 1}"

    def _watch(self, arms: Sequence[OpenArm]) -> Activity:
        """Return the activity of this moment, from which on the processor time of the arms is counted as our own."""
        self._own_cpu_s -= own_cpu_s(arms)
        return read_activity()

    def _blocks(self, arms: Sequence[OpenArm], plan: Plan, schedule: IntArray, done: list[int]) -> None:
        """Run the blocks of a launch; the arm of each goes into `done` when it is."""
        last = None
        with Progress(self._title(), schedule.size) as progress:
            for position, index in enumerate(schedule.tolist()):
                if index != last:
                    time.sleep(settle_ns(self._threads) / 1e9)
                last = index
                timeout_s = _ANSWER_TIMEOUT_S + _BLOCK_TIMEOUT_FACTOR * plan.expected_ns[index] / 1e9
                request = {"index": position, "queries": plan.queries[index]}
                arms[index].worker.ask("block", request, timeout_s=timeout_s)
                progress.advance()
                done.append(index)

    def _end(
        self,
        arms: Sequence[OpenArm],
        warm: Sequence[tuple[WarmFacts, int]],
        before: Activity,
        schedule: IntArray,
    ) -> None:
        """Collect the samples of a launch, and keep it."""
        after, launch = read_activity(), self.launches
        self._own_cpu_s += own_cpu_s(arms)
        facts, columns = [], []
        for index, arm in enumerate(arms):
            file = self._folder / f"arm-{index}.npz"
            answer = arm.worker.ask("finish", {"file": str(file), "cost": launch == 0}, timeout_s=_LOAD_TIMEOUT_S)
            finished = from_json(FinishedFacts, answer.value, what=answer.what)
            columns.append(self._arm_columns(file, index, launch, len(schedule) or None))
            seen = (columns[-1]["flags"] & FLAG_DROPPED) == 0
            check_answers(arm, columns[-1]["pred"][seen], finished.first_error)
            warmed, size = warm[index]
            facts.append(LaunchFacts(loaded=arm.loaded, warm=warmed, finished=finished, images_bytes=size))
        order = {"schedule": schedule, "schedule_launch": np.full_like(schedule, launch)}
        self._columns += [*columns, order]
        self._facts.append(facts)
        self._activities.append((before, after))

    def _arm_columns(self, file: Path, arm: int, launch: int, blocks: int | None) -> dict[str, IntArray]:
        """Read a worker's samples and put them into the terms of the result: test image numbers, the data's classes.

        Of a launch that was cut short, only the first `blocks` blocks are taken.
        """
        with np.load(file, allow_pickle=False) as archive:
            columns: dict[str, IntArray] = {name: archive[name] for name in (*ROW_COLUMNS, *BLOCK_ROW_COLUMNS)}
        if blocks is not None:
            for index, names in (("block", ROW_COLUMNS), ("block_index", BLOCK_ROW_COLUMNS)):
                kept = columns[index] < blocks
                columns.update({name: columns[name][kept] for name in names})
        columns["sample_index"] = self._timed[columns["sample_index"]]
        columns["pred"] = in_data_order(columns["pred"], self.selection, arm)
        for name, like in (("arm", "block"), ("block_arm", "block_index")):
            columns[name] = np.full_like(columns[like], arm)
        for name, like in (("launch", "block"), ("block_launch", "block_index")):
            columns[name] = np.full_like(columns[like], launch)
        return columns


def own_cpu_s(arms: Sequence[OpenArm]) -> float:
    """Return the processor seconds that the workers and this process have used so far (proc(5): utime and stime)."""
    spent = time.process_time()
    for arm in arms:
        try:
            fields = Path(f"/proc/{arm.worker.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # not Linux
            continue
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def merged_columns(parts: Sequence[Mapping[str, IntArray]]) -> dict[str, IntArray]:
    """Return the columns of all parts, one after the other; a column that no part has is empty."""
    names = {name for group in GROUPS for name in group}.union(*parts)
    empty = np.zeros(0, np.int64)
    return {name: np.concatenate([empty, *(part[name] for part in parts if name in part)]) for name in sorted(names)}


def _warm_up(arm: OpenArm, budget: Budget, threads: int) -> WarmFacts:
    time.sleep(settle_ns(threads) / 1e9)
    timeout_s = budget.max_warmup_seconds + _ANSWER_TIMEOUT_S
    answer = arm.worker.ask("warm", {"max_ns": round(budget.max_warmup_seconds * 1e9)}, timeout_s=timeout_s)
    return from_json(WarmFacts, answer.value, what=answer.what)


def _with_error(facts: LaunchFacts, error: str | None) -> LaunchFacts:
    """Keep the first error of the accuracy pass, which came before those of the timed queries."""
    return facts if error is None else replace(facts, finished=replace(facts.finished, first_error=error))


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
