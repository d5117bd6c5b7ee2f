"""Measures several artefacts side by side: accuracy and latency of each from the same sessions of the same processes.

the arms, and the baseline once more as A/A control -> launches, each with a fresh worker per arm: accuracy, warm-up, blocks
of single queries interleaved between the arms -> after each whole launch: are the intervals narrow enough? -> the other
scenarios, in launches of their own -> cold starts -> statistics -> result

An interruption, or a worker that fails, ends the run; what was measured by then is written and marked partial.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgebert._files import check_can_be_written, check_file_is_free, check_not_input, sha256_of_path
from edgebert._json import Fields, JsonObject
from edgebert.bench.arms import ArmRequest, arms_from_paths, control_of, find_arm
from edgebert.bench.comparisons import NARROW, comparisons_from_samples
from edgebert.bench.device_lock import device_lock
from edgebert.bench.energy import ENERGY_SCENARIOS, IDLE_S, idle_columns
from edgebert.bench.environment.jetson.rails import label_of
from edgebert.bench.environment.preflight import preflight
from edgebert.bench.environment.sampler_process import Sampler
from edgebert.bench.environment.telemetry import Telemetry, columns_of_telemetry
from edgebert.bench.loading import DEFAULT_GRAPH_TARGET
from edgebert.bench.options import BenchOptions, budget_of, cold_starts_of, processors, scenarios_of
from edgebert.bench.record import Measured, nothing_measured, result_from_session, roles_of
from edgebert.bench.result import samples_path, write_result
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.scenarios.cold import cold_starts
from edgebert.bench.scenarios.plan import ScenarioArm, merged_points, run_scenarios, scenario_params
from edgebert.bench.schema import ColdStart, PreflightCheck, Result, ScenarioName, ScenarioParams
from edgebert.bench.scratch import scratch_folder
from edgebert.bench.selection import Selection, common_task, select_images
from edgebert.bench.session import LaunchRecord, OpenArm, Run, open_arms
from edgebert.bench.statistics.formulas import minimum_queries
from edgebert.bench.statistics.stopping import StoppingRule
from edgebert.bench.worker_process import WORKER_COMMAND, StartWorker, WorkerProcess
from edgebert.card import ModelCard
from edgebert.data import DataOptions, load_dataset
from edgebert.errors import EdgebertError, RefusedError, UnavailableError
from edgebert.runtime.runner import physical_cores

_log = logging.getLogger("edgebert")


def result_from_arms(
    paths: Sequence[str | Path],
    output: Path,
    options: BenchOptions,
    *,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> Result:
    """Measure artefacts on the test split and write the result and its raw samples.

    Args:
        paths: bundles, graphs, checkpoints, each as a path or `NAME=PATH`; none for the bundles of the current folder.
        output: the result, a `.json` file; the samples go beside it.
        options: how to measure.
        worker_command: what runs an arm; tests give their own.

    Returns:
        what was written; `status` and `exit_code` say whether the numbers may be compared.

    Raises:
        UnavailableError: a target cannot run here; found out before anything is measured.
        BadDataError: the data do not fit the artefacts, or an artefact has seen the test images.
        LockedError: another measurement runs on this computer.
        EdgebertError: a worker failed; a partial result was written.
        KeyboardInterrupt: interrupted; a partial result was written.
    """
    check_file_is_free(output, force=options.force)
    check_file_is_free(samples_path(output), force=options.force)
    check_can_be_written(output)
    arms = arms_from_paths(paths, options.targets)
    check_not_input(output, *(arm.path for arm in arms))
    names = [arm.name for arm in arms]
    baseline = find_arm(names, options.baseline, flag="baseline") if options.baseline else 0
    reference = find_arm(names, options.reference, flag="reference") if options.reference else None
    with device_lock(), scratch_folder() as folder:
        bench = Bench(
            arms=(*arms, control_of(arms[baseline])),
            baseline=baseline,
            reference=reference,
            options=options,
            folder=folder,
            worker_command=worker_command,
        )
        try:
            bench.measure()
        except (KeyboardInterrupt, EdgebertError) as reason:
            with uninterrupted():
                bench.keep_partial(output, reason)
            raise
        with uninterrupted():
            result, samples = bench.result(interrupted=None)
            return write_result(output, result, samples, force=options.force)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait: a result is written whole, or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(slots=True, kw_only=True)
class Bench:
    """One call of `bench`: what was asked, and what is known so far.

    A device that is benched over a link gives the three functions of its own: it has the images from its host, its workers must not
    be disturbed by the link, and what a launch gave goes to the host.

    Attributes:
        arms: as requested; the A/A control is one of them.
        baseline: index of the arm that speed-ups refer to.
        reference: index of the arm that agreement refers to; None to find one by provenance.
        options: how to measure.
        folder: temporary.
        worker_command: what runs an arm.
        select: names and cards of the arms -> the test images; from `options.data` if None.
        start_worker: name, threads and command -> a worker.
        after_launch: told what each launch of single-stream blocks gave.
        measured_before: such launches of the same run, to go on from.
    """

    arms: tuple[ArmRequest, ...]
    baseline: int
    reference: int | None
    options: BenchOptions
    folder: Path
    worker_command: Sequence[str]
    select: Callable[[Sequence[str], Sequence[ModelCard]], Selection] | None = None
    start_worker: StartWorker = WorkerProcess
    after_launch: Callable[[LaunchRecord, Mapping[str, IntArray]], None] | None = None
    measured_before: Sequence[tuple[LaunchRecord, Mapping[str, IntArray]]] = ()
    threads: int = 0
    hashes: tuple[str, ...] = ()
    checks: tuple[PreflightCheck, ...] = ()
    run: Run | None = None
    telemetry: Telemetry | None = None
    params: tuple[Mapping[ScenarioName, ScenarioParams], ...] = ()
    notes: list[str] = field(default_factory=list)
    cold: tuple[ColdStart | None, ...] = ()
    idle: list[tuple[int, int]] = field(default_factory=list)

    def measure(self) -> None:
        """Do all of it; what is complete stays where this ends early."""
        self.threads = self.options.threads or physical_cores()
        self.hashes = tuple(sha256_of_path(arm.path) for arm in self.arms)
        with Sampler(avoid=processors(self.options.cpus)) as sampler:
            try:
                self.checks = preflight_records()
                self._rest(sampler)
                with self._opened() as opened:
                    cards = [arm.card for arm in opened]
                    names = [arm.name for arm in opened]
                    select = self.select or self._select
                    self.run = Run(select(names, cards), self.options, self.folder)
                    if self.measured_before:
                        self.run.restore(self.measured_before, cards)
                        self.notes.append(
                            f"the run was taken up again after {self.run.launches} launches: what the sensors saw before is not kept"
                        )
                    else:
                        self._launch(self.run, opened)
                self._more_launches(self.run)
                self._other_scenarios(self.run)
                self._cold_starts(self.run)
                self._rest(sampler)
            finally:
                self.telemetry = sampler.finish()
        for arm, before in zip(self.arms, self.hashes, strict=True):
            if sha256_of_path(arm.path) != before:
                raise RefusedError(f"`{arm.path}` changed while it was measured", hint="measure again")

    def _select(self, names: Sequence[str], cards: Sequence[ModelCard]) -> Selection:
        return selection_from_data(self.options, names, cards)

    def _launch(self, run: Run, opened: Sequence[OpenArm]) -> None:
        run.launch(opened)
        if self.after_launch is not None:
            self.after_launch(*run.last_launch())

    def result(self, *, interrupted: str | None) -> tuple[Result, Samples]:
        """Return what was measured so far."""
        if self.run is None or not self.run.launches:
            return nothing_measured(self.arms, self.options, self.threads, self.checks, interrupted or "?")
        session = self.run.session()
        if self.telemetry is not None:
            session = replace(
                session,
                samples=Samples(
                    {**session.samples.columns, **columns_of_telemetry(self.telemetry), **idle_columns(self.idle)}
                ),
            )
        measured = Measured(
            arms=self.arms,
            hashes=self.hashes,
            selection=self.run.selection,
            session=session,
            options=self.options,
            threads=self.threads,
            baseline=self.baseline,
            reference=self.reference,
            telemetry=self.telemetry,
            preflight=self.checks,
            params=self.params,
            cold=self.cold,
            notes=tuple(dict.fromkeys(self.notes)),
            interrupted=interrupted,
        )
        return result_from_session(measured), session.samples

    def keep_partial(self, output: Path, reason: KeyboardInterrupt | EdgebertError) -> None:
        """Write what there is of a run that ends early, where it got as far as opening its arms."""
        nothing = self.run is None or not self.run.launches
        if isinstance(reason, RefusedError) or (isinstance(reason, EdgebertError) and nothing):
            return  # what was measured is not what was named, or nothing was: there is nothing to keep
        words = reason.what if isinstance(reason, EdgebertError) else "interrupted"
        result, samples = self.result(interrupted=words)
        write_result(output, result, samples, force=self.options.force)
        launches = 0 if self.run is None else self.run.launches
        _log.warning("what was measured in %d launches is in `%s`, marked partial", launches, output)

    @contextmanager
    def _opened(self) -> Iterator[list[OpenArm]]:
        """Start a fresh worker for every arm and open it."""
        with ExitStack() as stack:
            workers = [
                stack.enter_context(self.start_worker(arm.name, self.threads, self.worker_command)) for arm in self.arms
            ]
            yield open_arms(
                workers,
                self.arms,
                threads=self.threads,
                default_target=DEFAULT_GRAPH_TARGET,
                cpus=sorted(processors(self.options.cpus)),
            )

    def _rest(self, sampler: Sampler) -> None:
        """Leave the computer alone for the time that idle power takes, where energy is asked for.

        Raises:
            UnavailableError: energy was asked for by name, and no power rail can be read.
        """
        names = set(scenarios_of(self.options))
        if names.isdisjoint(ENERGY_SCENARIOS):
            return
        if not any(map(label_of, sampler.columns)):
            if "energy" in names:
                raise UnavailableError(
                    "`--scenario energy`: no power rail can be read here",
                    expected="a Jetson with an INA3221 or INA238 in /sys/class/hwmon, or with tegrastats on PATH",
                    hint="edgebert doctor --bench",
                )
            return
        _log.info("note: idle power is measured for %g s", IDLE_S)
        start = time.perf_counter_ns()
        time.sleep(IDLE_S)
        self.idle.append((start, time.perf_counter_ns()))

    def _more_launches(self, run: Run) -> None:
        budget = budget_of(self.options)
        rule = StoppingRule(
            min_launches=budget.launches,
            max_launches=budget.max_launches,
            half_width=budget.half_width,
            min_queries=minimum_queries(0.99),
        )
        while True:
            if run.launches >= rule.min_launches:
                run.looks += 1
                if self._is_enough(run, rule):
                    return
            with self._opened() as opened:
                self._launch(run, opened)

    def _is_enough(self, run: Run, rule: StoppingRule) -> bool:
        """Say whether the intervals that the result will state are narrow enough, or the budget is spent."""
        samples = run.samples()
        comparisons = comparisons_from_samples(
            samples,
            [arm.name for arm in self.arms],
            roles_of(self.arms, self.baseline),
            margin=self.options.margin,
            seed=self.options.seed,
        )
        queries = min(np.count_nonzero(samples.queries_of(arm)["flags"] == 0) for arm in range(len(self.arms)))
        decisions = {
            replace(rule, half_width=factor * rule.half_width).decide(
                [found for found in comparisons if found.metric == metric],
                launches=run.launches,
                looks=run.looks,
                queries=int(queries),
            )
            for metric, factor in NARROW.items()
        }
        return "go on" not in decisions

    def _other_scenarios(self, run: Run) -> None:
        """Run every scenario but single-stream, in launches of their own; the A/A control takes no part."""
        names = scenarios_of(self.options)[1:]
        if not names:
            return
        budget, p50s = budget_of(self.options), run.medians_ns()
        asked = [index for index, arm in enumerate(self.arms) if not arm.control]
        self.params = tuple(
            {name: scenario_params(name, self.options, budget, p50s[index]) for name in names} if index in asked else {}
            for index in range(len(self.arms))
        )
        plans = [ScenarioArm(name=self.arms[index].name, p50_ns=p50s[index]) for index in asked]
        points: list[dict[str, IntArray]] = []
        try:
            for launch in range(budget.scenario_launches):
                points.append(self._scenario_launch(run, plans, asked, launch))
        finally:
            run.add(merged_points(points))  # of the launches that are complete

    def _scenario_launch(
        self, run: Run, plans: Sequence[ScenarioArm], asked: Sequence[int], launch: int
    ) -> dict[str, IntArray]:
        """Run one launch of the other scenarios, and return the points of their sweeps."""
        made: dict[str, IntArray] = {}
        with self._opened() as opened:

            def ask(arm: int, kind: str, content: JsonObject, timeout_s: float) -> Fields:
                return opened[asked[arm]].worker.ask(kind, content, timeout_s=timeout_s)

            def work() -> None:
                found, facts = run_scenarios(
                    plans,
                    self.options,
                    budget_of(self.options),
                    ask,
                    launch=launch,
                    auto_inflight=max(1, (len(processors(self.options.cpus)) or physical_cores()) // self.threads),
                )
                made.update(found)
                self.notes += facts.notes

            run.scenario_launch(opened, work)
        return made

    def _cold_starts(self, run: Run) -> None:
        count = cold_starts_of(self.options)
        if not count:
            return
        self.cold = tuple(
            None
            if arm.control
            else cold_starts(
                # With the target that was found for it: a graph beside a bundle runs where the bundle does.
                arm if arm.kind == "checkpoint" else replace(arm, target=target),
                run.first_image(),
                threads=self.threads,
                count=count,
                cpus=sorted(processors(self.options.cpus)),
                worker_command=self.worker_command,
                start_worker=self.start_worker,
            )
            for arm, target in zip(self.arms, run.targets(), strict=True)
        )


def selection_from_data(options: BenchOptions, names: Sequence[str], cards: Sequence[ModelCard]) -> Selection:
    """Return the test images of the data that the options name.

    Args:
        options: `data`, `class_map` and `max_skipped` count.
        names: of the arms.
        cards: of the arms.

    Raises:
        BadDataError: the data do not fit the arms, or an arm has seen them; or as `edgebert.data.load_dataset`.
    """
    reading = DataOptions(class_map=options.class_map, max_skipped=options.max_skipped, task=common_task(names, cards))
    return select_images(load_dataset(options.data, reading), names, cards)


def preflight_records() -> tuple[PreflightCheck, ...]:
    """Return the state of the computer as a result keeps it."""
    return tuple(
        PreflightCheck(name=check.name, state=check.state, found=check.found, fix=check.fix) for check in preflight()
    )
