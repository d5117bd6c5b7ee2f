"""What a measurement is asked to do, and what a rigor makes of it.

>>> budget_of(BenchOptions(data="digits")).launches
3
>>> budget_of(BenchOptions(data="digits", rigor="standard", seconds=2.0)).seconds
2.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from edgebert.bench.schema import Rigor, ScenarioName
from edgebert.errors import UsageError

MAX_SEED = 2**32 - 1
MAX_THREADS = 1024
COLD = "cold"  # named like a scenario, and kept in `startup.cold`


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much of everything a run takes; one row of the table below, with what the options change.

    Attributes:
        launches: fresh processes of each arm before the first look at the intervals.
        max_launches: there is no launch after this one.
        queries: timed single-stream queries per arm in `launches`, at least.
        seconds: timed seconds per arm in `launches`, at least.
        max_seconds: timed seconds per arm in all launches, at most; wins over everything else.
        max_warmup_seconds: of each launch.
        half_width: relative half-width of the interval of the p50 ratio at which no more launches are started; twice that for p90.
        cold_starts: fresh processes per arm for the cold start.
        scenario_launches: of every scenario but single-stream.
        window_seconds: of a sweep.
        windows: per point of a sweep and launch.
    """

    launches: int
    max_launches: int
    queries: int
    seconds: float
    max_seconds: float
    max_warmup_seconds: float
    half_width: float
    cold_starts: int
    scenario_launches: int
    window_seconds: float
    windows: int


# bench.md, section 4.2: `quick` about 15 s per arm, `standard` at most 3 min, `publish` at most 20 min.
# 299 queries are what a 95 % bound on p99 takes, 2,995 what one on p99.9 takes.
BUDGETS: Mapping[Rigor, Budget] = {
    "quick": Budget(
        launches=3,
        max_launches=3,
        queries=330,
        seconds=4.0,
        max_seconds=30.0,
        max_warmup_seconds=4.0,
        half_width=math.inf,
        cold_starts=5,
        scenario_launches=1,
        window_seconds=0.25,
        windows=3,
    ),
    "standard": Budget(
        launches=5,
        max_launches=14,
        queries=1_000,
        seconds=10.0,
        max_seconds=120.0,
        max_warmup_seconds=8.0,
        half_width=0.01,
        cold_starts=5,
        scenario_launches=2,
        window_seconds=0.5,
        windows=5,
    ),
    "publish": Budget(
        launches=10,
        max_launches=20,
        queries=3_400,
        seconds=60.0,
        max_seconds=900.0,
        max_warmup_seconds=30.0,
        half_width=0.01,
        cold_starts=10,
        scenario_launches=5,
        window_seconds=1.0,
        windows=2,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure. None stands for what the rigor says.

    Attributes:
        data: where the test images come from, as in every command.
        targets: which form of a bundle, and which backend for a graph; empty means what the runtime would pick.
        rigor: how much is measured.
        scenarios: beside single-stream: multi-stream, offline, paced, server, soak, energy, cold, or `all` but soak and energy; `publish` adds
            offline and cold.
        launches: fresh processes of each arm before the first look at the intervals; with `max_launches` unset also the last.
        max_launches: there is no launch after this one.
        queries: timed queries per arm, at least; 299 are what a 95 % bound on p99 takes (bench.md, section 4.2).
        seconds: timed seconds per arm, at least.
        max_seconds: timed seconds per arm, at most; wins over `queries` and `seconds`.
        max_warmup_seconds: each warm-up ends here, steady or not; what was not steady is said.
        margin: relative difference that matters; less is not claimed.
        images: how many distinct test images are timed; accuracy always takes the whole test split.
        threads: intra-op threads of every arm; 0 means the physical cores this process may use.
        cpus: processors that the workers may use, such as `0,1` or `0-3`; empty for all that this process may use.
        seed: of the order of images, the order of blocks, arrivals and the bootstrap.
        baseline: name of the arm that speed-ups refer to; the first arm if not given.
        reference: name of the arm that agreement refers to; if not given, the FP32 arm made from the same checkpoint.
        fps: frames per second of the paced scenario.
        deadline_ms: by which a paced frame must be answered; the time to the next frame if not given.
        policy: what becomes of a paced frame that comes while another is worked on.
        streams: images that a query of the multi-stream scenario asks for.
        bound_ms: latency that the server scenario must keep; five times the arm's own p50 if not given.
        bound_share: share of the server scenario's queries that must keep it.
        soak_minutes: length of the soak scenario.
        flipped: how many images that an arm decides otherwise than its reference are kept, with a thumbnail of each.
        class_map: class name in the data -> class name in the artefacts.
        max_skipped: largest share of unreadable images before the run stops.
        force: replace an existing result.
    """

    data: str
    targets: tuple[str, ...] = ()
    rigor: Rigor = "quick"
    scenarios: tuple[str, ...] = ()
    launches: int | None = None
    max_launches: int | None = None
    queries: int | None = None
    seconds: float | None = None
    max_seconds: float | None = None
    max_warmup_seconds: float | None = None
    margin: float = 0.01
    images: int = 256
    threads: int = 0
    cpus: str = ""
    seed: int = 0
    baseline: str | None = None
    reference: str | None = None
    fps: float = 30.0
    deadline_ms: float | None = None
    policy: Literal["drop", "queue"] = "drop"
    streams: int = 8
    bound_ms: float | None = None
    bound_share: float = 0.99
    soak_minutes: float = 10.0
    flipped: int = 12
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("launches", self.launches, 1, 100),
            ("max-launches", self.max_launches, 1, 100),
            ("queries", self.queries, 1, 10_000_000),
            ("seconds", self.seconds, 0.0, 86_400.0),
            ("max-seconds", self.max_seconds, 0.1, 86_400.0),
            ("max-warmup-seconds", self.max_warmup_seconds, 0.0, 3_600.0),
            ("margin", self.margin, 0.0, 1.0),
            ("images", self.images, 1, 100_000),
            ("threads", self.threads, 0, MAX_THREADS),
            ("seed", self.seed, 0, MAX_SEED),
            ("fps", self.fps, 0.01, 100_000.0),
            ("deadline-ms", self.deadline_ms, 0.001, 3_600_000.0),
            ("streams", self.streams, 1, 1_024),
            ("bound-ms", self.bound_ms, 0.001, 3_600_000.0),
            ("bound-share", self.bound_share, 0.5, 0.9999),
            ("soak-minutes", self.soak_minutes, 0.01, 10_080.0),
            ("flipped", self.flipped, 0, 1_000),
        ):
            if value is not None and (not math.isfinite(value) or not low <= value <= high):
                raise UsageError(f"`--{flag} {value}` is out of range", expected=f"{low:g} to {high:g}")
        known = (*get_args(ScenarioName), COLD, "all")
        for name in self.scenarios:
            if name not in known:
                raise UsageError(f"`--scenario {name}` is no scenario", expected=", ".join(known))
        if self.rigor not in BUDGETS:
            raise UsageError(f"`--rigor {self.rigor}` is unknown", expected=", ".join(BUDGETS))
        if self.launches and self.max_launches and self.max_launches < self.launches:
            raise UsageError(f"`--max-launches {self.max_launches}` is below `--launches {self.launches}`")
        processors(self.cpus)


def budget_of(options: BenchOptions) -> Budget:
    """Return what the rigor asks for, with what the options change."""
    budget = BUDGETS[options.rigor]
    launches = options.launches or budget.launches
    if options.launches is None and options.max_launches is not None:
        launches = min(launches, options.max_launches)
    most = options.max_launches or (options.launches or budget.max_launches)
    changes = {
        name: value
        for name in ("queries", "seconds", "max_seconds", "max_warmup_seconds")
        if (value := getattr(options, name)) is not None
    }
    return replace(budget, launches=launches, max_launches=most, **changes)


def scenarios_of(options: BenchOptions) -> tuple[ScenarioName, ...]:
    """Return the scenarios to run, single-stream first; `cold` is none of them (see `cold_starts_of`)."""
    known = get_args(ScenarioName)
    wanted = set(options.scenarios)
    if "all" in wanted:
        wanted |= set(known) - {"soak", "energy"}
    if options.rigor == "publish":
        wanted.add("offline")
    return tuple(name for name in known if name == "single-stream" or name in wanted)


def cold_starts_of(options: BenchOptions) -> int:
    """Return how many cold starts are made of each arm; 0 where none were asked for."""
    asked = options.rigor == "publish" or not {COLD, "all"}.isdisjoint(options.scenarios)
    return budget_of(options).cold_starts if asked else 0


def processors(text: str) -> frozenset[int]:
    """Return the processor numbers of a list such as `0-2,5`; none for an empty text.

    Raises:
        UsageError: anything else.
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) > 4_096:
            raise UsageError(f"`--cpus {text:.80}` is no list of processors", expected="such as `0,1` or `0-3`")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """How to make a report.

    Attributes:
        force: replace an existing report.
    """

    force: bool = False
