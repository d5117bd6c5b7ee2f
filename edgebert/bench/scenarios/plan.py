"""The scenarios beside single-stream, in one launch: which windows and probes each arm gets, and in which order.

Offline, multi-stream and energy alternate between the arms window by window (ABBA); paced, server and soak run one arm after the other, in
a random order: they show an arm in its own steady state.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert._progress import Progress
from edgebert.bench.analysis import REGION
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.energy import WINDOW_S, WINDOWS
from edgebert.bench.options import BenchOptions, Budget, scenarios_of
from edgebert.bench.samples import POINT_COLUMNS, SCENARIOS, IntArray
from edgebert.bench.scenarios.probe import Probed, ProbeRequest
from edgebert.bench.scenarios.server_search import keeps_bound, late_allowed, point_of_rate, rate_mhz, search
from edgebert.bench.schema import Rigor, ScenarioName, ScenarioParams
from edgebert.bench.statistics.formulas import minimum_queries

BATCHES = (1, 2, 4, 8, 16, 32)  # bench.md, section 7
BOUND_FACTOR = 5  # times the arm's own single-stream p50

_SETTLE_S = 0.03  # after another worker's turn: busy-waiting threads of that one end (bench.md, section 3)
_ANSWER_TIMEOUT_S = 120.0
_TIMEOUT_FACTOR = 20  # bench.md, section 10
_RUNS = 5  # of paced arrivals and windows of multi-stream, at least: a bootstrap over fewer blocks says nothing
_FIRST_LOAD = 0.5  # of a server's capacity, where the search begins
_LATE_ALLOWED = {"quick": 1, "standard": 3, "publish": 6}  # late queries that a probe may have at a share it keeps
_BOUNDS = 50  # latency bounds that a server probe lasts, at least
_PROBES = 9  # that a search takes, about
_SOAK_WINDOW_S = 5.0
_SOAK_QUERIES = 600_000  # that are kept of a soak; the load goes on between them


Ask = Callable[[int, str, JsonObject, float], Fields]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioArm:
    """An arm whose worker is open and warm: its name, and its end-to-end p50 in single-stream."""

    name: str
    p50_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioFacts:
    """What is to be known beside the samples: `notes` of what was left out, or ended early."""

    notes: tuple[str, ...]


def scenario_params(name: ScenarioName, options: BenchOptions, budget: Budget, p50_ns: int) -> ScenarioParams:
    """Return what defines a scenario for an arm; of offline, batch and in-flight are those of the best point, found later.

    Args:
        name: of the scenario.
        options: how to measure.
        budget: of the options.
        p50_ns: the arm's end-to-end p50 in single-stream; the server's bound is five of it unless one is given.
    """
    params = ScenarioParams(batch=1, inflight=1, start="memory", region=REGION)
    if name == "multi-stream":
        return replace(params, batch=options.streams, samples_per_query=options.streams)
    if name == "offline":
        return replace(params, seconds=budget.window_seconds)
    if name == "paced":
        deadline_ms = options.deadline_ms or 1_000 / options.fps
        return replace(params, fps=options.fps, deadline_ns=round(deadline_ms * 1e6), policy=options.policy)
    if name == "server":
        bound = BOUND_FACTOR * p50_ns if options.bound_ms is None else round(options.bound_ms * 1e6)
        return replace(params, bound_ns=bound, bound_share=options.bound_share)
    if name == "soak":
        return replace(params, seconds=60 * options.soak_minutes)
    if name == "energy":
        return replace(params, seconds=WINDOW_S)
    return params


def run_scenarios(
    arms: Sequence[ScenarioArm],
    options: BenchOptions,
    budget: Budget,
    ask: Ask,
    *,
    launch: int = 0,
    auto_inflight: int = 1,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, IntArray], ScenarioFacts]:
    """Run every scenario but single-stream in one launch.

    Args:
        arms: open and warm.
        options: how to measure.
        budget: of the options.
        ask: sends a message to the worker of an arm: index, type, content, seconds to wait.
        launch: number of the launch; other launches see other arrivals.
        auto_inflight: calls at once that fill the processors: their number over the threads of a call.
        sleep: called with seconds between the turns of two workers.

    Returns:
        points: the columns `POINT_COLUMNS`; see `merged_points` for several launches.
        facts: what else is to be known.
    """
    names = scenarios_of(options)[1:]  # single-stream is the first
    run = _Run(
        arms=arms, options=options, budget=budget, ask=ask, launch=launch, auto_inflight=auto_inflight, sleep=sleep
    )
    with Progress("scenarios", sum(run.steps(name) for name in names)) as progress:
        run.progress = progress
        work: dict[ScenarioName, Callable[[], None]] = {
            "multi-stream": run.multi_stream,
            "offline": run.offline,
            "paced": run.paced,
            "server": run.server,
            "soak": run.soak,
            "energy": run.energy,
        }
        for name in names:
            work[name]()
    return run.point_columns(), ScenarioFacts(notes=tuple(dict.fromkeys(run.notes)))


def merged_points(launches: Sequence[Mapping[str, IntArray]]) -> dict[str, IntArray]:
    """Return the points of several launches, each once, in the order of scenario and number."""
    rows = np.concatenate(
        [np.zeros((0, len(POINT_COLUMNS)), np.int64)]
        + [np.column_stack([columns[name] for name in POINT_COLUMNS]) for columns in launches]
    )
    rows = np.unique(rows, axis=0)  # (points, columns), sorted by the first columns
    return {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(POINT_COLUMNS)}


def offline_points(medians: Sequence[int], budget: Budget, inflight: int) -> list[tuple[int, int]]:
    """Return the points (batch, in-flight) of the sweep, small batches first; the slowest arm stays within `max_seconds`.

    Batch 1 is always among them.
    """
    points: list[tuple[int, int]] = []
    spent = 0.0
    for batch in BATCHES:
        call_s = batch * max(medians) / 1e9
        for at_once in sorted({1, 2, inflight}):
            # A window has a question of each thread at least; before it each asks once, and the size is tried.
            spent += budget.windows * (max(budget.window_seconds, at_once * call_s) + (at_once + 1) * call_s)
        if points and spent * budget.scenario_launches > budget.max_seconds:
            break
        points.extend((batch, at_once) for at_once in sorted({1, 2, inflight}))
    return points


def alternating(arms: int, windows: int, generator: np.random.Generator) -> Iterator[int]:
    """Yield whose window is next: a random order of the arms, then its mirror image, and again (ABBA or BAAB for two)."""
    order = generator.permutation(arms)
    for window in range(windows):
        if window % 2 == 0 and window:
            order = generator.permutation(arms)
        yield from (order if window % 2 == 0 else order[::-1]).tolist()


@dataclass(slots=True, kw_only=True)
class _Run:
    """One launch of the scenarios under way."""

    arms: Sequence[ScenarioArm]
    options: BenchOptions
    budget: Budget
    ask: Ask
    launch: int
    sleep: Callable[[float], None]
    auto_inflight: int
    progress: Progress = field(init=False)
    notes: list[str] = field(default_factory=list)
    _points: set[tuple[int, ...]] = field(default_factory=set)
    _blocks: Iterator[int] = field(default_factory=itertools.count)
    _last_arm: int | None = None

    def offline(self) -> None:
        """Sweep batch and in-flight in a random order; a batch that a model refuses is left out for it."""
        points = offline_points([arm.p50_ns for arm in self.arms], self.budget, self.auto_inflight)
        if points[-1][0] < BATCHES[-1]:
            self.notes.append(
                f"offline: batches above {points[-1][0]} were left out: more than {self.budget.max_seconds:g} s for an arm"
            )
        generator = self._generator("offline")
        refused: set[tuple[int, int]] = set()  # (arm, batch)
        for place in generator.permutation(len(points)).tolist():
            batch, inflight = points[place]
            for step, arm in enumerate(alternating(len(self.arms), self.budget.windows, generator)):
                if (arm, batch) in refused:
                    self.progress.advance()
                    continue
                found = self._probe(
                    arm,
                    ProbeRequest(
                        scenario="offline",
                        point=_offline_number(batch, inflight),
                        block=next(self._blocks),
                        seed=self._seed("offline", place, step // len(self.arms)),
                        batch=batch,
                        inflight=inflight,
                        seconds=self.budget.window_seconds,
                    ),
                )
                if found.batch == 0:
                    refused.add((arm, batch))
                    self.notes.append(f"offline: `{self.arms[arm].name}` takes no batch of {batch}")

    def multi_stream(self) -> None:
        """Run windows of queries for several images each."""
        windows = max(_RUNS, self.budget.windows)
        generator = self._generator("multi-stream")
        for step, arm in enumerate(alternating(len(self.arms), windows, generator)):
            query_s = self.options.streams * self.arms[arm].p50_ns / 1e9
            wanted = max(self.budget.window_seconds, self._queries() * query_s / windows)
            allowed = self.budget.max_seconds / self.budget.scenario_launches / windows
            self._probe(
                arm,
                ProbeRequest(
                    scenario="multi-stream",
                    point=0,
                    block=next(self._blocks),
                    seed=self._seed("multi-stream", 0, step // len(self.arms)),
                    samples=self.options.streams,
                    seconds=min(wanted, allowed),
                ),
            )

    def paced(self) -> None:
        """Run a camera for each arm."""
        allowed = self.budget.max_seconds / self.budget.scenario_launches * self.options.fps
        frames = math.ceil(min(self._queries(), max(_RUNS, allowed)) / _RUNS)
        for arm in self._order("paced"):
            params = scenario_params("paced", self.options, self.budget, self.arms[arm].p50_ns)
            for run in range(_RUNS):
                found = self._probe(
                    arm,
                    ProbeRequest(
                        scenario="paced",
                        point=0,
                        block=next(self._blocks),
                        seed=self._seed("paced", 0, run),
                        queries=frames,
                        rate=self.options.fps,
                        policy=self.options.policy,
                        bound_ns=params.deadline_ns,
                    ),
                )
                if found.backlog:
                    self.notes.append(f"paced: `{self.arms[arm].name}` fell behind by a whole run, which ended there")

    def server(self) -> None:
        """Look for the largest rate that each arm serves within its bound."""
        for arm in self._order("server"):
            params = scenario_params("server", self.options, self.budget, self.arms[arm].p50_ns)
            start = point_of_rate(_FIRST_LOAD * 1e9 / max(1, self.arms[arm].p50_ns))
            found = search(self._server_probe(arm, params), start=start)
            self.progress.advance(_PROBES - found.probes)  # of the plan, which could not know
            if found.limit is None:
                self.notes.append(f"server: `{self.arms[arm].name}` keeps its bound at no rate that was tried")

    def _server_probe(self, arm: int, params: ScenarioParams) -> Callable[[int, int], bool]:
        share = self.options.bound_share

        def kept(point: int, attempt: int) -> bool:
            rate = rate_mhz(point) / 1_000
            queries = server_queries(rate, params, self.budget, self.options.rigor)
            found = self._probe(
                arm,
                ProbeRequest(
                    scenario="server",
                    point=point,
                    block=next(self._blocks),
                    seed=self._seed("server", point, attempt),
                    queries=queries,
                    rate=rate,
                    policy="queue",
                    bound_ns=params.bound_ns,
                    late_allowed=late_allowed(queries, share),
                ),
                note=f"{rate:.4g}/s",
            )
            return keeps_bound(found.within, found.queries + found.dropped + found.failed, share)

        return kept

    def soak(self) -> None:
        """Keep each arm busy for long, in windows, so that there is something to show meanwhile."""
        seconds, windows = soak_windows(self.options.soak_minutes)
        for arm in self._order("soak"):
            for window in range(windows):
                self._probe(
                    arm,
                    ProbeRequest(
                        scenario="soak",
                        point=0,
                        block=next(self._blocks),
                        seed=self._seed("soak", 0, window),
                        seconds=seconds,
                        queries=math.ceil(_SOAK_QUERIES / windows),
                    ),
                )

    def energy(self) -> None:
        """Keep the arms busy in turns, in windows that are long for the sensors of the power rails."""
        generator = self._generator("energy")
        for step, arm in enumerate(alternating(len(self.arms), WINDOWS, generator)):
            self._probe(
                arm,
                ProbeRequest(
                    scenario="energy",
                    point=0,
                    block=next(self._blocks),
                    seed=self._seed("energy", 0, step // len(self.arms)),
                    seconds=WINDOW_S,
                ),
            )

    def steps(self, name: ScenarioName) -> int:
        """Return how many probes a scenario takes, about."""
        points = len(offline_points([arm.p50_ns for arm in self.arms], self.budget, self.auto_inflight))
        each = {
            "offline": points * self.budget.windows,
            "multi-stream": max(_RUNS, self.budget.windows),
            "paced": _RUNS,
            "server": _PROBES,
            "soak": soak_windows(self.options.soak_minutes)[1],
            "energy": WINDOWS,
        }
        return len(self.arms) * each[name]

    def point_columns(self) -> dict[str, IntArray]:
        """Return the points met so far."""
        rows = np.array(sorted(self._points), np.int64).reshape(-1, len(POINT_COLUMNS))
        return {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(POINT_COLUMNS)}

    def _probe(self, arm: int, request: ProbeRequest, *, note: str = "") -> Probed:
        if self._last_arm not in (None, arm):
            self.sleep(_SETTLE_S)
        self._last_arm = arm
        longest = request.longest_s + _TIMEOUT_FACTOR * request.group * request.inflight * self.arms[arm].p50_ns / 1e9
        answer = self.ask(arm, "probe", to_json(request), _ANSWER_TIMEOUT_S + 3 * longest)
        found = from_json(Probed, answer.value, what=answer.what)
        if found.batch:
            rate = 0 if request.rate is None else round(1_000 * request.rate)
            self._points.add((SCENARIOS.index(request.scenario), found.point, found.batch, request.inflight, rate))
        words = (request.scenario, f"`{self.arms[arm].name}`", note)
        self.progress.advance(note=" ".join(filter(None, words)))
        return found

    def _queries(self) -> int:
        """Queries of each arm in this launch."""
        return math.ceil(self.budget.queries / self.budget.scenario_launches)

    def _order(self, name: ScenarioName) -> list[int]:
        order: list[int] = self._generator(name).permutation(len(self.arms)).tolist()
        return order

    def _generator(self, name: ScenarioName) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, 6, self.launch, SCENARIOS.index(name)])

    def _seed(self, name: ScenarioName, point: int, attempt: int) -> int:
        """Return a seed that all arms share, so that they see the same images and, at one rate, the same arrivals."""
        entropy = [self.options.seed, self.launch, SCENARIOS.index(name), point, attempt]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def server_queries(rate: float, params: ScenarioParams, budget: Budget, rigor: Rigor) -> int:
    """Return how many arrivals a probe has: as many as the test of the bound takes, and those of `window_seconds` at least.

    It is also far longer than the bound: a queue that grows without end takes about a bound until queries are late. The more late queries a probe may have, the rarer it fails by bad luck; fewer are allowed where it would last too long.
    """
    share, bound_s = params.bound_share or 1.0, (params.bound_ns or 0) / 1e9
    longest_s = budget.max_seconds / budget.scenario_launches / _PROBES
    needed = (minimum_queries(share, exceedances=late) for late in range(_LATE_ALLOWED[rigor], -1, -1))
    fitting = next((count for count in needed if count <= longest_s * rate), minimum_queries(share))
    return max(fitting, math.ceil(rate * max(budget.window_seconds, _BOUNDS * bound_s)))


def soak_windows(minutes: float) -> tuple[float, int]:
    """Return length in seconds and number of the windows of a soak; at least 20, so that a tenth of it holds two."""
    seconds = min(_SOAK_WINDOW_S, 60 * minutes / 20)
    return seconds, math.ceil(60 * minutes / seconds)


def _offline_number(batch: int, inflight: int) -> int:
    """Return the number of a point of the sweep: the same in every launch, and for every arm."""
    return 1_000 * batch + inflight
